"""What verbs accept as their data becomes the task that one would expect."""

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, TensorDataset

from lens_ablation.data.as_task import as_task
from lens_ablation.data.builders import next_token
from lens_ablation.data.task import Task

pytestmark = pytest.mark.model

TOKENS = torch.arange(4, 34).reshape(5, 6)
MASK = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 6, [1] * 2 + [0] * 4, [1] * 6])
TEXTS = ["The king was happy .", "Mary and John went home ."]
PIXELS = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 1, 2, 3, 4])


def test_a_task_stays_what_it_is(lm):
    task = Task(TOKENS, CLASSES)
    assert as_task(task, lm) is task


def test_tokens_ask_for_every_next_token(lm):
    task = as_task(TOKENS, lm)
    assert torch.equal(task.answers, TOKENS[:, 1:])
    assert task.positions is not None
    assert task.positions[0].tolist() == [0, 1, 2, 3, 4]


def test_masked_batches_ask_at_real_tokens_only(lm):
    task = as_task([(TOKENS[:2], MASK[:2]), (TOKENS[2:], MASK[2:])], lm)
    assert task.n_targets.tolist() == (MASK.sum(dim=1) - 1).tolist()
    assert task.fingerprint == as_task({"input_ids": TOKENS, "attention_mask": MASK}, lm).fingerprint


@pytest.mark.parametrize("data", [TEXTS, Dataset.from_dict({"text": TEXTS})], ids=["texts", "dataset"])
def test_texts_ask_for_every_next_token(lm, data):
    assert as_task(data, lm).fingerprint == next_token(lm, TEXTS).fingerprint


@pytest.mark.parametrize(
    "data",
    [
        {"pixel_values": PIXELS, "labels": CLASSES},
        DataLoader(TensorDataset(PIXELS, CLASSES), batch_size=2),
        [Task(PIXELS, CLASSES)],
        Dataset.from_dict({"image": PIXELS.tolist(), "label": CLASSES.tolist()}),
    ],
    ids=["mapping", "loader", "tasks", "dataset"],
)
def test_labelled_images_ask_for_their_class(vit, data):
    task = as_task(data, vit)
    assert torch.equal(task.inputs, PIXELS)
    assert torch.equal(task.answers, CLASSES)


@pytest.mark.parametrize("data", [PIXELS, [PIXELS], {"pixel_values": PIXELS}], ids=["tensor", "list", "mapping"])
def test_images_without_classes_are_refused(vit, data):
    with pytest.raises(ValueError, match="give their classes"):
        as_task(data, vit)


def test_answers_beyond_the_outputs_of_the_model_are_refused(lm, vit):
    with pytest.raises(ValueError, match=r"wrong_answers go up to 5000 .* 0\.\.1156"):
        as_task(Task(TOKENS, CLASSES, wrong_answers=CLASSES + 4996), lm)
    with pytest.raises(ValueError, match=r"answers go up to 5 .* 0\.\.4"):
        as_task([(PIXELS, CLASSES + 1)], vit)


def test_tasks_of_another_kind_of_model_are_refused(lm, vit, bert):
    with pytest.raises(ValueError, match="language model"):
        as_task(Task(PIXELS, CLASSES), lm)
    with pytest.raises(ValueError, match="reads images"):
        as_task(Task(TOKENS, CLASSES), vit)
    with pytest.raises(ValueError, match="masked_token"):
        as_task(TOKENS, bert)


@pytest.mark.parametrize(
    ("data", "message"),
    [(7, "cannot make a task of int"), ([], "no rows"), (TOKENS[:, :1], "no next token"), (TOKENS[0], r"\[None\]")],
    ids=["number", "nothing", "one position", "one prompt"],
)
def test_what_asks_nothing_is_refused(lm, data, message):
    with pytest.raises(ValueError, match=message):
        as_task(data, lm)


def test_padding_without_a_mask_is_refused(lm):
    padded = TOKENS.masked_fill(MASK == 0, lm.tokenizer.pad_token_id)
    for data in (padded, Task(padded, CLASSES)):
        with pytest.raises(ValueError, match="Pass attention_mask="):
            as_task(data, lm)
