"""What the untouched model says where a task reads its answers."""

from collections.abc import Iterator

import torch

from lens_ablation.data.inputs import rows_that_fit
from lens_ablation.data.metrics import AnswerLogits, answer_logits
from lens_ablation.data.task import Task
from lens_ablation.models.forward import forward
from lens_ablation.models.protocol import LensModel, input_device


def untouched_answers(model: LensModel, task: Task, batch_size: int | None = None) -> Iterator[AnswerLogits]:
    """The model's logits at the answers of consecutive examples, ``[example, target, d_vocab]``, on its device.

    Args:
        model: A TransformerLens model in evaluation mode.
        task: Examples with answers.
        batch_size: Rows in a forward pass; about 4096 tokens by default.
    """
    for batch in task.batches(rows_that_fit(task.inputs) if batch_size is None else batch_size):
        part = batch.to(input_device(model))
        with torch.inference_mode():
            logits = answer_logits(forward(model, part.inputs, attention_mask=part.attention_mask), part)
        yield logits
