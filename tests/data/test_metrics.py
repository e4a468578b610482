"""Metrics against NumPy written from their definitions."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lens_ablation.data import metrics
from lens_ablation.data.metrics import Metric
from lens_ablation.data.task import Task
from lens_ablation.errors import UnknownName

N, POS, VOCAB = 5, 6, 11
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(N, POS, VOCAB, generator=GENERATOR, dtype=torch.float64)
CLEAN = torch.randn(N, POS, VOCAB, generator=GENERATOR, dtype=torch.float64)
TOKENS = torch.randint(0, VOCAB, (N, POS), generator=GENERATOR)
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6, [0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0]])
LAST = [3, 5, 5, 4, 0]

Questions = list[list[tuple[int, list[int], list[int]]]]
"""By example: (position, right ids, wrong ids) of each target."""


def single() -> tuple[Task, Questions]:
    """One answer each, at the last unmasked position."""
    right, wrong = [1, 2, 3, 4, 0], [5, 6, 7, 8, 10]
    task = Task(TOKENS, torch.tensor(right), torch.tensor(wrong), attention_mask=MASK)
    return task, [[(LAST[i], [right[i]], [wrong[i]])] for i in range(N)]


def choices() -> tuple[Task, Questions]:
    """Sets of answers of different sizes at given positions; absent ones come first, last and in between."""
    right = [[1, 2, -1], [-1, 3, -1], [4, -1, 5], [6, 7, 8], [-1, -1, 0]]
    wrong = [[0, -1], [-1, 1], [2, 3], [9, -1], [10, 1]]
    places = [0, 5, 2, 3, 1]
    task = Task(TOKENS, torch.tensor(right), torch.tensor(wrong), positions=torch.tensor(places))
    drop = [[[i for i in row if i != -1] for row in rows] for rows in (right, wrong)]
    return task, [[(places[i], drop[0][i], drop[1][i])] for i in range(N)]


def many_targets() -> tuple[Task, Questions]:
    """Several positions each, some absent, with a wrong answer to each."""
    places = [[0, 1, 2], [5, -1, -1], [-1, 4, 3], [1, 1, 1], [2, -1, 0]]
    right = [[1, 2, 3], [4, -1, -1], [-1, 5, 6], [7, 8, 9], [10, -1, 0]]
    wrong = [[4, 5, 6], [0, -1, -1], [-1, 1, 2], [1, 2, 3], [9, -1, 8]]
    task = Task(TOKENS, torch.tensor(right), torch.tensor(wrong), positions=torch.tensor(places))
    rows = [zip(*row, strict=True) for row in zip(places, right, wrong, strict=True)]
    return task, [[(p, [a], [w]) for p, a, w in row if p != -1] for row in rows]


def shared_wrong_answers() -> tuple[Task, Questions]:
    """Several positions each, and one set of wrong answers that serves all of them."""
    places, right = torch.tensor([[0, 1, 2]] * N), torch.tensor([[1, 2, 3]] * N)
    task = Task(TOKENS, right, torch.tensor([[4, 5]] * N), positions=places)
    return task, [[(p, [p + 1], [4, 5]) for p in range(3)]] * N


def softmax(row: np.ndarray) -> np.ndarray:
    shifted = np.exp(row - row.max())
    return shifted / shifted.sum()


def log_odds_part(row: np.ndarray, ids: list[int]) -> float:
    return float(np.log(np.exp(row[ids]).sum()))


def expected(name: str, row: np.ndarray, clean: np.ndarray, right: list[int], wrong: list[int]) -> float:
    p = softmax(row)
    others = [i for i in range(len(row)) if i not in right]
    q = softmax(clean)
    return {
        "loss": -np.log(p[right].sum()),
        "top1": float(int(row.argmax()) in right),
        "logit_difference": log_odds_part(row, right) - log_odds_part(row, wrong),
        "correct_margin": row[right].max() - row[others].max(),
        "probability": p[right].sum(),
        "probability_difference": p[right].sum() - p[wrong].sum(),
        "kl_from_clean": (q * np.log(q / p)).sum(),
    }[name]


@pytest.mark.parametrize("name", metrics.names())
@pytest.mark.parametrize("make", [single, choices, many_targets, shared_wrong_answers])
def test_metric_equals_its_definition(make, name):
    task, questions = make()
    metric = metrics.get(name)
    task = Task(**{**vars(task), "clean_logits": metrics.answer_logits(CLEAN, task), "metric": metric})
    wanted = [
        np.mean([expected(name, row[p].numpy(), clean[p].numpy(), r, w) for p, r, w in asked])
        for row, clean, asked in zip(LOGITS, CLEAN, questions, strict=True)
    ]
    np.testing.assert_allclose(task.score(LOGITS).numpy(), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", metrics.names())
def test_metric_of_images_reads_the_class_logits(name):
    logits, clean = LOGITS[:, 0], CLEAN[:, 0]
    right, wrong = [1, 2, 3, 4, 0], [5, 6, 7, 8, 10]
    task = Task(
        inputs=torch.zeros(N, 1, 2, 2),
        answers=torch.tensor(right),
        wrong_answers=torch.tensor(wrong),
        metric=metrics.get(name),
        clean_logits=clean[:, None],
    )
    wanted = [expected(name, logits[i].numpy(), clean[i].numpy(), [right[i]], [wrong[i]]) for i in range(N)]
    np.testing.assert_allclose(task.score(logits).numpy(), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", metrics.names())
@pytest.mark.parametrize("make", [choices, many_targets])
def test_gradient_is_finite_where_answers_are_absent(make, name):
    task, _ = make()
    logits = LOGITS.clone().requires_grad_()
    task = Task(**{**vars(task), "clean_logits": metrics.answer_logits(CLEAN, task), "metric": metrics.get(name)})
    scores = task.score(logits)
    if name == "top1":
        assert not scores.requires_grad
        return
    scores.sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert bool((logits.grad != 0).any())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_scored_in_float32(dtype):
    task, _ = single()
    logits = LOGITS.to(dtype)
    score = task.score(logits)
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, task.score(logits.float()))


def test_scores_of_parts_are_the_parts_of_the_scores():
    task, _ = many_targets()
    parts = [part.score(logits) for part, logits in zip(task.batches(2), LOGITS.split(2), strict=True)]
    torch.testing.assert_close(torch.cat(parts), task.score(LOGITS))


def test_users_own_function_is_given_all_logits():
    def spread(logits: Tensor, batch: Task) -> Tensor:
        return logits.flatten(1).std(dim=1)

    task = single()[0].with_metric(spread)
    assert isinstance(task.metric, Metric)
    assert task.metric.name == "spread"
    torch.testing.assert_close(task.score(LOGITS), LOGITS.flatten(1).std(dim=1))


def test_metric_that_returns_one_number_for_the_batch_is_refused():
    task = single()[0].with_metric(lambda logits, batch: logits.mean())
    with pytest.raises(ValueError, match="one number per example"):
        task.score(LOGITS)


@pytest.mark.parametrize("name", ["logit_difference", "probability_difference", "kl_from_clean"])
def test_metric_names_what_the_task_lacks(name):
    task = Task(TOKENS, torch.zeros(N, dtype=torch.int64), metric=metrics.get(name))
    with pytest.raises(ValueError, match=f"{name}.*needs"):
        task.score(LOGITS)


def test_logits_with_positions_are_refused_for_images():
    task = Task(torch.zeros(N, 1, 2, 2), torch.zeros(N, dtype=torch.int64))
    with pytest.raises(ValueError, match="task has images"):
        task.score(LOGITS)


def test_unknown_metric_lists_the_nearest():
    with pytest.raises(UnknownName, match="logit_difference"):
        metrics.get("logit_diff")
