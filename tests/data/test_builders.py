"""Tasks from anybody's texts, against the evaluation that the peak-ablation paper describes."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F

from lens_ablation.data import corpus, metrics
from lens_ablation.data.builders import (
    common_tokens,
    masked_token,
    next_token,
    next_token_of,
    outside_common,
)
from lens_ablation.data.task import IGNORED, Task
from lens_ablation.models.forward import forward
from tests.families import build

pytestmark = pytest.mark.model

TEXTS = [*corpus.documents("prose", 12, length=30), "The king was happy .", "Mary and John went home ."]


def prose(n_words: int) -> list[str]:
    return [" ".join(f"w{i}" for i in range(n_words))]


def ids_of(model: Any, text: str) -> list[int]:
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture
def parquet(tmp_path):
    path = tmp_path / "texts.parquet"
    Dataset.from_dict({"content": TEXTS}).to_parquet(path)
    return path


def test_every_next_token_is_asked_once(lm, parquet):
    task = next_token(lm, parquet, text_column="content")
    assert task.attention_mask is not None
    assert task.positions is not None
    for row, mask, answers, positions, text in zip(
        task.inputs, task.attention_mask, task.answers, task.positions, TEXTS, strict=True
    ):
        ids = [lm.tokenizer.bos_token_id, *ids_of(lm, text)]
        assert row[mask].tolist() == ids
        assert answers[answers != IGNORED].tolist() == ids[1:]
        assert positions[positions != IGNORED].tolist() == list(range(len(ids) - 1))


def test_loss_equals_cross_entropy_of_each_text_alone(lm):
    task = next_token(lm, TEXTS)
    with torch.no_grad():
        scores = task.score(forward(lm, task.inputs, attention_mask=task.attention_mask))
        wanted = []
        for text in TEXTS:
            ids = torch.tensor([[lm.tokenizer.bos_token_id, *ids_of(lm, text)]])
            wanted.append(F.cross_entropy(forward(lm, ids)[0, :-1], ids[0, 1:]))
    torch.testing.assert_close(scores, torch.stack(wanted))


def test_weights_by_targets_give_the_mean_over_tokens(lm):
    task = next_token(lm, TEXTS)
    with torch.no_grad():
        logits = forward(lm, task.inputs, attention_mask=task.attention_mask)
    scores, weights = task.score(logits), task.n_targets
    asked = task.answers != IGNORED
    per_token = F.cross_entropy(logits[:, :-1][asked], task.answers[asked])
    torch.testing.assert_close((scores * weights).sum() / weights.sum(), per_token)


def test_reading_stops_after_the_text_that_brings_more_targets_than_asked(lm):
    lengths = [len(ids_of(lm, text)) for text in TEXTS]
    totals = np.cumsum(lengths)
    for n_tokens in (1, int(totals[2]) - 1, int(totals[2]), int(totals[-1])):
        n_texts = min(int(np.searchsorted(totals, n_tokens, side="right")) + 1, len(TEXTS))
        assert next_token(lm, TEXTS, n_tokens=n_tokens).n_examples == n_texts


def test_data_that_ends_early_is_an_error(lm):
    stream = Dataset.from_dict({"text": TEXTS}).to_iterable_dataset()
    n_targets = int(next_token(lm, stream).n_targets.sum())
    with pytest.raises(ValueError, match=f"ended after {n_targets} of n_tokens={n_targets + 1}"):
        next_token(lm, stream, n_tokens=n_targets + 1)


def test_common_tokens_do_not_count_towards_the_stop(lm):
    profile = next_token(lm, TEXTS)
    common = common_tokens(profile, k=3)
    task = next_token(lm, TEXTS, n_tokens=60, common=common)
    uncommon = [int((~torch.isin(row[row != IGNORED], common)).sum()) for row in task.answers]
    assert sum(uncommon) > 60 >= sum(uncommon[:-1])
    assert int(outside_common(task, common).n_targets.sum()) == sum(uncommon)


def test_common_tokens_are_the_most_counted_answers(lm):
    task = next_token(lm, TEXTS)
    counts = Counter(task.answers[task.answers != IGNORED].tolist())
    wanted = sorted(counts, key=lambda token: (-counts[token], token))[:5]
    assert common_tokens(task, k=5).tolist() == wanted
    assert len(common_tokens(task, k=10_000)) == len(counts)


def test_accuracy_outside_the_common_tokens(lm):
    task = next_token(lm, TEXTS, metric=metrics.top1)
    common = common_tokens(task, k=4)
    part = outside_common(task, common)
    with torch.no_grad():
        best = forward(lm, part.inputs, attention_mask=part.attention_mask)[:, :-1].argmax(-1)
        scores = part.score(forward(lm, part.inputs, attention_mask=part.attention_mask))
    targets = part.inputs[:, 1:]
    assert part.attention_mask is not None
    counted = part.attention_mask[:, 1:] & ~torch.isin(targets, common)
    wanted = (best == targets)[counted].float().mean()
    torch.testing.assert_close((scores * part.n_targets).sum() / part.n_targets.sum(), wanted)


def test_rows_of_common_tokens_only_are_left_out(lm):
    task = next_token(lm, ["The king", "The queen slept"])
    ids = ids_of(lm, "The king")
    assert outside_common(task, torch.tensor(ids)).n_examples == 1
    with pytest.raises(ValueError, match="every answer is among"):
        outside_common(task, common_tokens(task))


def test_skipping_what_was_profiled_gives_other_texts(lm):
    texts = ["", *TEXTS[:2], "", *TEXTS[2:]]
    profile = next_token(lm, texts, n_tokens=60)
    rest = next_token(lm, texts, skip=profile.n_examples)
    assert profile.n_examples + rest.n_examples == len(TEXTS)
    first = rest.inputs[0][rest.attention_mask[0]].tolist() if rest.attention_mask is not None else []
    assert first[1:] == ids_of(lm, TEXTS[profile.n_examples])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_tokens": 0}, "n_tokens must be"),
        ({"skip": -1}, "skip must be"),
        ({"max_length": 1}, r"2\.\.64"),
        ({"skip": 99}, "skip fewer"),
    ],
)
def test_impossible_amounts_are_refused(lm, options, message):
    with pytest.raises(ValueError, match=message):
        next_token(lm, TEXTS, **options)


def test_a_name_on_the_hub_needs_an_amount(lm, bert):
    for build_task, model in ((next_token, lm), (masked_token, bert)):
        with pytest.raises(ValueError, match="say n_tokens="):
            build_task(model, "somebody/corpus")


def test_wrong_kinds_of_model_are_refused(lm, bert, vit):
    with pytest.raises(ValueError, match="bidirectional"):
        next_token(bert, prose(20))
    with pytest.raises(ValueError, match="reads images"):
        next_token(vit, TEXTS)
    with pytest.raises(ValueError, match="no mask token"):
        masked_token(lm, TEXTS)
    with pytest.raises(ValueError, match="no tokenizer"):
        masked_token(build("bert").model, prose(20))


def test_tokens_of_one_position_leave_nothing_to_ask():
    with pytest.raises(ValueError, match="no next token"):
        next_token_of(torch.tensor([[1], [2]]), None)
    with pytest.raises(ValueError, match="single unmasked token"):
        next_token_of(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1, 1], [1, 0]]))


def test_outside_common_needs_many_targets():
    task = Task(torch.tensor([[1, 2]]), torch.tensor([3]))
    with pytest.raises(ValueError, match="many positions"):
        outside_common(task, torch.tensor([1]))


@pytest.mark.parametrize("share", [0.15, 0.5, 1.0])
def test_masking_follows_the_sheet(bert, share):
    n_words = 27
    task = masked_token(bert, prose(n_words), share=share)
    wanted = share * n_words
    n_chosen, n_masked, n_random = int(wanted), int(0.8 * wanted), int(0.1 * wanted)
    original = torch.tensor(bert.tokenizer(prose(n_words)[0])["input_ids"])
    changed = task.inputs[0] != original
    assert task.positions is not None
    places = task.positions[0]
    assert task.n_targets.tolist() == [n_chosen]
    assert torch.equal(task.answers[0], original[places])
    assert set(changed.nonzero()[:, 0].tolist()) <= set(places.tolist())
    assert int(places.min()) > 0
    assert int(places.max()) < len(original) - 1
    is_masked = task.inputs[0] == bert.tokenizer.mask_token_id
    assert int(is_masked.sum()) == n_masked
    assert n_masked <= int(changed.sum()) <= n_masked + n_random
    assert not set(task.inputs[0][changed & ~is_masked].tolist()) & set(bert.tokenizer.all_special_ids)


def test_masking_depends_on_seed_and_place_only(bert):
    texts = [*prose(20), "w1 w2", *prose(30), *prose(25)]
    whole, again, other = (masked_token(bert, texts, seed=seed) for seed in (0, 0, 1))
    assert whole.fingerprint == again.fingerprint != other.fingerprint
    rest = masked_token(bert, texts, skip=1)
    assert torch.equal(rest.inputs, whole.inputs[1:, : rest.inputs.shape[1]])
    assert rest.n_examples == 2


def test_masked_loss_is_read_at_the_chosen_positions_only(bert):
    task = masked_token(bert, [*prose(20), *prose(30)])
    with torch.no_grad():
        scores = task.score(forward(bert, task.inputs, attention_mask=task.attention_mask))
        for row in range(2):
            part = task.select(slice(row, row + 1))
            assert part.positions is not None
            assert part.attention_mask is not None
            places = part.positions[0][part.positions[0] != IGNORED]
            logits = forward(bert, part.inputs[:, part.attention_mask[0]])[0, places]
            loss = F.cross_entropy(logits, part.answers[0][part.answers[0] != IGNORED])
            torch.testing.assert_close(scores[row], loss, rtol=1e-4, atol=1e-5)


def test_masked_token_stops_and_complains_like_next_token(bert):
    texts = prose(20) * 4
    assert masked_token(bert, texts, n_tokens=5).n_examples == 2
    with pytest.raises(ValueError, match="ended after 12"):
        masked_token(bert, texts, n_tokens=13)
    with pytest.raises(ValueError, match="none of 1 texts"):
        masked_token(bert, ["w1 w2 w3"])
    with pytest.raises(ValueError, match="share must lie"):
        masked_token(bert, texts, share=0)
