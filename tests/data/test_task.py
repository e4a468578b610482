"""What a task holds, derives and refuses."""

from typing import Any

import pytest
import torch

from lens_ablation.data import metrics
from lens_ablation.data import task as task_module
from lens_ablation.data.task import Task

TOKENS = torch.arange(12).reshape(3, 4)
ANSWERS = torch.tensor([7, 8, 9])
RIGHT_PADDED = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]])
LEFT_PADDED = RIGHT_PADDED.flip(1)
PIXELS = torch.randn(3, 1, 2, 2)


def test_answers_are_read_at_the_last_unmasked_token():
    positions = [
        Task(TOKENS, ANSWERS, attention_mask=mask).answer_positions for mask in (None, RIGHT_PADDED, LEFT_PADDED)
    ]
    assert [p[:, 0].tolist() for p in positions if p is not None] == [[3, 3, 3], [1, 3, 2], [3, 3, 3]]


def test_position_ids_count_from_the_first_unmasked_token():
    masks = (None, RIGHT_PADDED, LEFT_PADDED)
    ids = [Task(TOKENS, ANSWERS, attention_mask=mask).position_ids for mask in masks]
    rows = [i[0].tolist() for i in ids if i is not None]
    assert rows == [[0, 1, 2, 3], [0, 1, 1, 1], [0, 0, 0, 1]]


def test_images_have_no_positions():
    task = Task(PIXELS, ANSWERS)
    assert (task.n_pos, task.position_ids, task.answer_positions) == (None, None, None)
    assert task.n_targets.tolist() == [1, 1, 1]


def test_n_targets_counts_answered_positions():
    answers = torch.tensor([[1, 2], [3, -1], [-1, 4]])
    positions = torch.tensor([[0, 1], [2, -1], [-1, 3]])
    assert Task(TOKENS, answers, positions=positions).n_targets.tolist() == [2, 1, 1]
    assert Task(TOKENS, answers).n_targets.tolist() == [1, 1, 1]


def test_select_takes_rows_of_every_field():
    task = Task(
        inputs=TOKENS,
        answers=ANSWERS,
        wrong_answers=ANSWERS + 1,
        counterfactuals=TOKENS + 1,
        attention_mask=RIGHT_PADDED,
        positions=torch.tensor([0, 1, 2]),
        spans={"subject": torch.tensor([[0, 1], [1, 2], [2, 3]])},
        clean_logits=torch.randn(3, 1, 20),
    )
    part = task.select(torch.tensor([2, 0, 2]))
    rows = [2, 0, 2]
    for name in (
        "inputs",
        "answers",
        "wrong_answers",
        "counterfactuals",
        "attention_mask",
        "positions",
        "clean_logits",
    ):
        assert torch.equal(getattr(part, name), getattr(task, name)[rows]), name
    assert torch.equal(part.spans["subject"], task.spans["subject"][rows])
    assert part.to("cpu").fingerprint == part.fingerprint


def test_batches_cover_the_examples_in_order():
    parts = list(Task(TOKENS, ANSWERS).batches(2))
    assert [part.n_examples for part in parts] == [2, 1]
    assert torch.equal(torch.cat([part.inputs for part in parts]), TOKENS)


def test_fingerprint_depends_on_what_is_measured_and_not_on_the_metric():
    task = Task(TOKENS, ANSWERS)
    others = [
        Task(TOKENS + 1, ANSWERS),
        Task(TOKENS, ANSWERS + 1),
        Task(TOKENS, ANSWERS, attention_mask=RIGHT_PADDED),
        Task(TOKENS, ANSWERS, positions=torch.tensor([0, 0, 0])),
        Task(TOKENS.reshape(6, 2), torch.arange(6)),
    ]
    assert task.with_metric(metrics.top1).fingerprint == task.fingerprint
    assert len({task.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_fingerprint_of_pixels_in_bfloat16():
    task = Task(PIXELS.bfloat16(), ANSWERS)
    assert task.fingerprint == Task(PIXELS.bfloat16(), ANSWERS).fingerprint


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no examples": ({"inputs": TOKENS[:0], "answers": ANSWERS[:0]}, "at least one example"),
    "no tokens": ({"inputs": TOKENS[:, :0]}, "one token"),
    "too few answers": ({"answers": ANSWERS[:2]}, "answers has 2 rows and inputs has 3"),
    "answers with three axes": ({"answers": ANSWERS[:, None, None]}, r"answers must be \[example\]"),
    "answers below -1": ({"answers": ANSWERS - 20}, "must be ids"),
    "example without an answer": ({"answers": torch.tensor([1, -1, 2])}, r"examples \[1\] have no answers"),
    "example without a wrong answer": (
        {"wrong_answers": torch.tensor([[1, 2], [3, -1], [-1, -1]])},
        r"examples \[2\] have no wrong_answers",
    ),
    "shorter counterfactuals": ({"counterfactuals": TOKENS[:, :3]}, "same prompt with other words"),
    "mask of another shape": ({"attention_mask": RIGHT_PADDED[:, :3]}, "one entry to a token"),
    "mask that hides a row": ({"attention_mask": torch.tensor([[1] * 4, [0] * 4, [1] * 4])}, "hides every token"),
    "position past the end": ({"positions": torch.tensor([0, 1, 4])}, r"0\.\.3"),
    "position below -1": ({"positions": torch.tensor([0, 1, -2])}, r"0\.\.3"),
    "absent position": ({"positions": torch.tensor([0, 1, -1])}, "position -1"),
    "answer without a position": (
        {"answers": TOKENS[:, :2], "positions": torch.tensor([[0, 1], [2, -1], [0, 1]])},
        "position -1",
    ),
    "masked position": (
        {"attention_mask": RIGHT_PADDED, "positions": torch.tensor([2, 0, 0])},
        "attention_mask hides",
    ),
    "positions unlike the answers": (
        {"answers": TOKENS[:, :2], "positions": TOKENS[:, :3].clamp(max=3)},
        "same shape",
    ),
    "tokens that are floats": ({"inputs": TOKENS.float()}, "whole numbers"),
    "tokens of one prompt": ({"inputs": TOKENS[0], "answers": ANSWERS[:1]}, "whole numbers"),
    "image with positions": ({"inputs": PIXELS, "positions": torch.tensor([0, 0, 0])}, "images have neither"),
    "image with a mask": ({"inputs": PIXELS, "attention_mask": torch.ones(3, 2, dtype=torch.bool)}, "images have"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_together_is_refused(case, unchecked):
    fields, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        unchecked(task_module).Task(**{"inputs": TOKENS, "answers": ANSWERS, **fields})
