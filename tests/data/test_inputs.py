"""Inputs of every form come out as the same batches."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, TensorDataset

from lens_ablation.data.inputs import Batches, batches_of
from lens_ablation.data.task import Task
from lens_ablation.errors import UnknownName

pytestmark = pytest.mark.model

TOKENS = torch.arange(4, 34).reshape(5, 6)
MASK = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 6, [1] * 2 + [0] * 4, [1] * 6])
TEXTS = ["The king was happy .", "Mary and John went home .", "The queen slept"]
PIXELS = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 1, 2, 3, 4])


def rows(batches: Batches) -> list[list[int]]:
    """The real tokens of every row."""
    return [
        row[mask].tolist()
        for batch in batches
        if batch.attention_mask is not None
        for row, mask in zip(batch.inputs, batch.attention_mask, strict=True)
    ]


FORMS: dict[str, Callable[[], Any]] = {
    "task": lambda: Task(TOKENS, CLASSES, attention_mask=MASK, positions=torch.tensor([5, 3, 0, 1, 2])),
    "mapping": lambda: {"input_ids": TOKENS, "attention_mask": MASK},
    "pairs": lambda: [(TOKENS[:2], MASK[:2]), (TOKENS[2:], MASK[2:])],
    "loader": lambda: DataLoader(TensorDataset(TOKENS, MASK), batch_size=3),
    "batches of tasks": lambda: list(FORMS["task"]().batches(2)),
    "batches of lists": lambda: [{"tokens": TOKENS.tolist(), "attention_mask": MASK.tolist()}],
    "rows of ids": lambda: Dataset.from_dict({"input_ids": TOKENS.tolist(), "attention_mask": MASK.tolist()}),
    "rows of a stream": lambda: FORMS["rows of ids"]().to_iterable_dataset(),
    "padded further": lambda: {
        "input_ids": torch.cat([TOKENS, TOKENS], dim=1),
        "attention_mask": torch.cat([MASK, torch.zeros_like(MASK)], dim=1),
    },
    "padded on the left": lambda: {
        "input_ids": torch.stack([row.roll(6 - int(m.sum())) for row, m in zip(TOKENS, MASK, strict=True)]),
        "attention_mask": MASK.flip(1),
    },
}


@pytest.mark.parametrize("batch_size", [1, 2, 5, 99])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows_and_fingerprint(lm, form, batch_size):
    batches = batches_of(FORMS[form](), lm, batch_size)
    wanted = [row[mask.bool()].tolist() for row, mask in zip(TOKENS, MASK, strict=True)]
    assert rows(batches) == wanted
    assert all(len(batch.inputs) <= batch_size for batch in batches)
    assert batches.fingerprint == batches_of({"input_ids": TOKENS, "attention_mask": MASK}, lm, 5).fingerprint


def test_position_ids_count_real_tokens(lm):
    (batch,) = batches_of(FORMS["padded on the left"](), lm, 5)
    assert batch.position_ids is not None
    assert batch.position_ids[1].tolist() == [0, 0, 0, 1, 2, 3]


def test_answer_positions_come_with_tasks_only(lm):
    task: Task = FORMS["task"]()
    got = [batch.answer_positions for batch in batches_of(task, lm, 2)]
    assert torch.cat([positions for positions in got if positions is not None]).tolist() == [[5], [3], [0], [1], [2]]
    (batch,) = batches_of(TOKENS, lm, 5)
    assert batch.answer_positions is None


def test_answers_fingerprint_tells_positions_apart_and_not_padding(lm):
    task: Task = FORMS["task"]()
    others = [
        Task(TOKENS, CLASSES, attention_mask=MASK, positions=torch.tensor([4, 3, 0, 1, 2])),
        Task(**{**vars(task), "positions": None}),
    ]
    digests = {batches_of(other, lm, 2).answers_fingerprint for other in (task, *others)}
    assert len(digests) == 3
    wider = Task(
        torch.cat([torch.zeros_like(TOKENS), TOKENS], dim=1),
        CLASSES,
        attention_mask=torch.cat([torch.zeros_like(MASK), MASK], dim=1),
        positions=torch.tensor([11, 9, 6, 7, 8]),
    )
    assert batches_of(wider, lm, 2).answers_fingerprint in digests
    assert batches_of(wider, lm, 2).fingerprint == batches_of(task, lm, 2).fingerprint


def test_fingerprint_differs_with_the_data(lm):
    changed = TOKENS.clone()
    changed[4, 5] += 1
    splits = [TOKENS, changed, TOKENS[:4], TOKENS.flip(0), TOKENS.reshape(6, 5)]
    assert len({batches_of(tokens, lm, 2).fingerprint for tokens in splits}) == 5


def test_texts_are_read_as_the_model_was_trained(lm):
    ids = [[lm.tokenizer.bos_token_id, *lm.tokenizer(t, add_special_tokens=False)["input_ids"]] for t in TEXTS]
    for data in (TEXTS, Dataset.from_dict({"text": TEXTS}), Dataset.from_dict({"text": TEXTS}).to_iterable_dataset()):
        assert rows(batches_of(data, lm, 2)) == ids


def test_texts_of_a_bidirectional_model(bert):
    (row,) = rows(batches_of(["w1 w2"], bert, 2))
    assert bert.tokenizer.convert_ids_to_tokens(row) == ["[CLS]", "w1", "w2", "[SEP]"]


@pytest.mark.parametrize(
    "data",
    [
        PIXELS,
        {"pixel_values": PIXELS},
        [(PIXELS[:3], CLASSES[:3]), (PIXELS[3:], CLASSES[3:])],
        DataLoader(TensorDataset(PIXELS), batch_size=2),
        Task(PIXELS, CLASSES),
        Dataset.from_dict({"image": PIXELS.tolist(), "label": CLASSES.tolist()}),
    ],
    ids=["tensor", "mapping", "labelled", "loader", "task", "dataset"],
)
def test_images_of_every_form(vit, data):
    batches = batches_of(data, vit, 2)
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), PIXELS)
    assert all(batch.attention_mask is None and batch.position_ids is None for batch in batches)
    assert batches.fingerprint == batches_of(PIXELS, vit, 5).fingerprint


def test_pixels_take_the_type_of_the_model(vit):
    (batch,) = batches_of(PIXELS.double(), vit, 5)
    assert batch.inputs.dtype == torch.float32


def test_iterators_are_refused_unless_one_pass_is_enough(lm):
    with pytest.raises(ValueError, match=r"pass list\(data\)"):
        batches_of(iter([TOKENS]), lm, 2)
    batches = batches_of(iter([TOKENS]), lm, 2, single_pass=True)
    with pytest.raises(ValueError, match="known when it was read"):
        _ = batches.fingerprint
    assert len(list(batches)) == 3
    assert batches.fingerprint == batches_of(TOKENS, lm, 5).fingerprint
    with pytest.raises(ValueError, match="read only once and was read"):
        list(batches)


def test_a_pass_that_was_broken_off_leaves_no_fingerprint(lm):
    batches = batches_of(iter([TOKENS, TOKENS]), lm, 2, single_pass=True)
    next(iter(batches))
    with pytest.raises(ValueError, match="known when it was read"):
        _ = batches.fingerprint


def test_padding_without_a_mask_is_refused(lm):
    padded = TOKENS.masked_fill(MASK == 0, lm.tokenizer.pad_token_id)
    for data in (padded, Task(padded, CLASSES), [padded]):
        with pytest.raises(ValueError, match="Pass attention_mask="):
            list(batches_of(data, lm, 2))
    list(batches_of({"input_ids": padded, "attention_mask": torch.ones_like(padded)}, lm, 2))


REFUSED: dict[str, tuple[Any, str]] = {
    "one prompt": (TOKENS[0], r"pass tokens\[None\]"),
    "floats": (TOKENS.float(), "must be integers"),
    "no positions": (TOKENS[:, :0], "empty"),
    "ids above the vocabulary": (TOKENS + 10_000, "another tokenizer"),
    "negative ids": (TOKENS - 10, "another tokenizer"),
    "too long": (TOKENS.repeat(1, 20), "at most 64"),
    "images": (PIXELS, "language model"),
    "no batches": ([], "no rows"),
    "a number": (3, "cannot read inputs from int"),
    "a batch of numbers": ([3], "cannot read a batch from int"),
    "a mapping of something else": ({"labels": TOKENS}, "has none of input_ids"),
    "tokens and labels": ([(TOKENS, CLASSES)], "pair"),
    "tokens and tokens": ([(TOKENS, TOKENS)], "pair"),
    "a short mask": ({"input_ids": TOKENS, "attention_mask": MASK[:, :3]}, "one entry"),
    "a mask that hides a row": ({"input_ids": TOKENS, "attention_mask": torch.zeros_like(MASK)}, "at least one"),
    "a name on the hub": ("somebody/corpus", "n_tokens="),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused(lm, case):
    data, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        list(batches_of(data, lm, 2))


def test_a_dataset_without_texts_names_its_columns(lm):
    with pytest.raises(UnknownName, match="content"):
        list(batches_of(Dataset.from_dict({"content": TEXTS}), lm, 2))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TOKENS, "reads images"),
        (PIXELS[:, :, :4], "resize"),
        ((PIXELS * 255).to(torch.uint8), "normalised"),
        (Dataset.from_dict({"image": (PIXELS * 255).int().tolist()}), "processor="),
    ],
    ids=["tokens", "size", "bytes", "integers"],
)
def test_images_that_do_not_fit_are_refused(vit, data, message):
    with pytest.raises(ValueError, match=message):
        list(batches_of(data, vit, 2))


def test_batch_size_must_be_positive(lm):
    with pytest.raises(ValueError, match="batch_size"):
        batches_of(TOKENS, lm, 0)
