"""Whatever a verb was given as its data, as a task."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lens_ablation.data import metrics
from lens_ablation.data.builders import next_token, next_token_of
from lens_ablation.data.checks import n_outputs
from lens_ablation.data.images import image_classification
from lens_ablation.data.inputs import checked_batch, image_column_of, text_column_of
from lens_ablation.data.padding import pad_rows
from lens_ablation.data.sources import is_source
from lens_ablation.data.task import Task
from lens_ablation.data.tokens import fill_id, require_causal
from lens_ablation.models.anatomy import anatomy
from lens_ablation.models.protocol import LensModel


def as_task(data: object, model: LensModel) -> Task:
    """``data`` as a task for ``model``.

    A ``Task`` stays what it is, once it is known to fit. Tokens ask for every next token; texts and a
    ``datasets.Dataset`` too. Images need classes: a dataset with a column ``label``, or batches that are
    pairs ``(pixels, labels)``.

    Raises:
        UnknownName: a dataset without a column of texts, or of images and labels.
        ValueError: it cannot be made a task, does not fit the model, or has padding without a mask.

    Example:
        >>> import torch, lens_ablation as la
        >>> from lens_ablation.data.as_task import as_task
        >>> as_task(torch.randint(4, 90, (3, 8)), la.load_model("tiny-lm")).n_targets.tolist()
        [7, 7, 7]
    """
    if isinstance(data, Task):
        return _fitting(data, model)
    modality = anatomy(model).modality
    if is_source(data) and modality == "tokens":
        return next_token(model, data, text_column=text_column_of(data))
    if is_source(data):
        return image_classification(model, data, image_column=image_column_of(data))
    parts = [data] if isinstance(data, Tensor | Mapping) else data
    if not isinstance(parts, Iterable):
        raise ValueError(
            f"cannot make a task of {type(data).__name__}; pass a Task, a tensor of tokens, a "
            "datasets.Dataset or an iterable of batches"
        )
    return _of_images(parts, model) if modality == "pixels" else _of_tokens(parts, model)


def _of_tokens(parts: Iterable[object], model: LensModel) -> Task:
    require_causal(model)
    rows: list[list[int]] = []
    for part in parts:
        batch = checked_batch(part, model)
        assert batch.attention_mask is not None
        rows += [row[mask].tolist() for row, mask in zip(batch.inputs, batch.attention_mask, strict=True)]
    if not rows:
        raise ValueError("the data has no rows, so there is nothing to ask")
    return next_token_of(*pad_rows(rows, fill_id(model)))


def _of_images(parts: Iterable[object], model: LensModel) -> Task:
    pixels, labels = [], []
    for part in parts:
        label = _labels(part)
        if label is None:
            raise ValueError(
                "images alone ask nothing; give their classes too: Task(inputs=pixels, answers=labels), a "
                "dataset with a column label, or batches (pixels, labels)"
            )
        pixels.append(checked_batch(part, model).inputs)
        labels.append(label.cpu())
    if not pixels:
        raise ValueError("the data has no rows, so there is nothing to ask")
    return _fitting(Task(torch.cat(pixels), torch.cat(labels), metric=metrics.correct_margin), model)


def _labels(part: object) -> Tensor | None:
    """Labels that came with a batch: of a mapping its ``labels``, of a pair the second."""
    if isinstance(part, Mapping):
        return next((torch.as_tensor(part[key]) for key in ("labels", "label") if key in part), None)
    if isinstance(part, Task):
        return part.answers
    return part[1] if isinstance(part, tuple | list) and len(part) == 2 and isinstance(part[1], Tensor) else None


def _fitting(task: Task, model: LensModel) -> Task:
    checked_batch(task, model)
    n = n_outputs(model)
    for name in ("answers", "wrong_answers"):
        ids = getattr(task, name)
        if ids is not None and n is not None and int(ids.max()) >= n:
            raise ValueError(f"{name} go up to {int(ids.max())} and this model's outputs are numbered 0..{n - 1}")
    return task
