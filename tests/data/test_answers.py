"""Answers of the untouched model against the plain Hugging Face model."""

import pytest
import torch

import lens_ablation as la
from lens_ablation.data.answers import untouched_answers
from tests.families import build

DOUBLE = torch.float64


@pytest.mark.model
def test_answers_of_padded_rows_are_those_of_single_prompts_in_the_order_of_the_examples():
    family = build("gpt2", dtype=DOUBLE)
    inputs, lengths = family.inputs(3, 6), torch.tensor([4, 6, 5])
    task = la.Task(inputs=inputs, answers=torch.zeros(3).long(), attention_mask=torch.arange(6) < lengths[:, None])
    with torch.no_grad():
        alone = [family.plain(inputs[i : i + 1, :n]).logits[:, -1] for i, n in enumerate(lengths.tolist())]
    found = list(untouched_answers(family.model, task, batch_size=2))
    assert [len(logits) for logits in found] == [2, 1]
    torch.testing.assert_close(torch.cat(found)[:, 0], torch.cat(alone), atol=1e-10, rtol=1e-9)


def test_images_have_one_answer_each():
    family = build("vit", dtype=DOUBLE)
    images = family.inputs(3)
    (found,) = untouched_answers(family.model, la.Task(inputs=images, answers=torch.zeros(3).long()))
    with torch.no_grad():
        torch.testing.assert_close(found[:, 0], family.plain(images).logits, atol=1e-10, rtol=1e-9)
