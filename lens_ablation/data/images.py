"""Tasks from anybody's labelled images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_ablation.data import metrics
from lens_ablation.data.checks import n_outputs, require_pixels
from lens_ablation.data.metrics import Metric, MetricFn
from lens_ablation.data.sources import Rows, Source, columns, is_on_hub, open_rows
from lens_ablation.data.task import Task
from lens_ablation.errors import unknown_name
from lens_ablation.models.anatomy import anatomy, probe_inputs
from lens_ablation.models.protocol import LensModel

ImageProcessor = Callable[..., Any]
"""``processor(images=[...], return_tensors="pt")["pixel_values"]``, as the processors of transformers do."""

_AT_ONCE = 32


def image_classification(
    model: LensModel,
    dataset: Source,
    *,
    image_column: str = "image",
    label_column: str = "label",
    split: str = "train",
    n: int | None = None,
    skip: int = 0,
    processor: ImageProcessor | str | Path | None = None,
    metric: Metric | MetricFn = metrics.correct_margin,
    name: str = "image_classification",
) -> Task:
    """Images with the classes they show.

    Args:
        model: A vision transformer with a classifier.
        dataset: A ``datasets.Dataset`` or ``IterableDataset``, a local Parquet or JSON file, a folder, or the
            name of a dataset on the hub, which is streamed.
        image_column: The column of the images: pictures, or arrays ``[channel, height, width]``.
        label_column: The column of the classes: ids, or names that the model's configuration lists.
        split: Which part of a dataset that has several.
        n: Number of images; ``None`` for all.
        skip: Images to pass over.
        processor: An image processor of transformers, or the folder or hub name it is loaded from. Without
            one the images must be arrays of floats that are scaled and normalised already.
        metric: How logits are scored.
        name: What reports call the task.

    Raises:
        UnknownName: no such column, split or class name.
        ValueError: a language model, images of a wrong size or type, unknown class ids, or too few images.
    """
    if n is not None and n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")
    if skip < 0:
        raise ValueError(f"skip must be 0 or more, got {skip}")
    if n is None and is_on_hub(dataset):
        raise ValueError(f"{dataset!r} is no local file, so it would be streamed whole; say n=...")
    rows = open_rows(dataset, split=split)
    images, labels = [], []
    for place, (image, label) in enumerate(columns(rows, (image_column, label_column))):
        if place >= skip:
            images.append(image)
            labels.append(label)
        if len(images) == n:
            break
    if not images or (n is not None and len(images) < n):
        raise ValueError(f"the data ended after {len(images)} images, with skip={skip} and n={n}; ask for fewer")
    return Task(
        inputs=pixels_of(model, images, processor),
        answers=_class_ids(labels, _names(rows, label_column), model),
        metric=metric,
        name=name,
    )


def pixels_of(
    model: LensModel, images: Sequence[object], processor: ImageProcessor | str | Path | None = None
) -> Float[Tensor, "example channel height width"]:
    """Images as the model reads them.

    Raises:
        ValueError: a language model, pictures without a processor, or images of a wrong size or type.
    """
    if anatomy(model).modality != "pixels":
        raise ValueError("this is a language model, which reads no images; use tasks.next_token")
    if isinstance(processor, str | Path):
        processor = _load_processor(processor)
    if processor is None:
        pixels = torch.stack([_as_pixels(image) for image in images])
    else:
        pictures = [_with_channels(image, int(probe_inputs(model, n_examples=1).shape[1])) for image in images]
        parts = [pictures[start : start + _AT_ONCE] for start in range(0, len(pictures), _AT_ONCE)]
        pixels = torch.cat([processor(images=part, return_tensors="pt")["pixel_values"] for part in parts])
    require_pixels(pixels, model)
    return pixels.to(next(iter(model.parameters())).dtype)


def _load_processor(name: str | Path) -> ImageProcessor:
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(str(name))
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(name)!r} gave no image processor: {error}") from error


def _with_channels(image: Any, n_channels: int) -> Any:
    """A picture in the colours that the model reads, as data sets mix grey and coloured ones."""
    mode = {1: "L", 3: "RGB"}.get(n_channels)
    return image.convert(mode) if mode is not None and hasattr(image, "convert") else image


def _as_pixels(image: object) -> Tensor:
    is_array = isinstance(image, Tensor | np.ndarray | list)
    pixels = torch.as_tensor(np.asarray(image)) if is_array else None
    if pixels is None or not pixels.is_floating_point():
        found = type(image).__name__ if pixels is None else f"{pixels.dtype} arrays"
        raise ValueError(
            f"the images are {found}, which have to be scaled and normalised for the model; say processor= "
            "with the folder or hub name of the model's image processor, or pass arrays of floats that are "
            "normalised"
        )
    return pixels


def _names(rows: Rows, label_column: str) -> list[str] | None:
    """Names of the classes by id, where the dataset states them."""
    return getattr((rows.features or {}).get(label_column), "names", None)


def _class_ids(labels: Sequence[Any], names: list[str] | None, model: LensModel) -> Int[Tensor, " example"]:
    """Class ids of the model; by name where both list the same names, as their orders may differ."""
    config = getattr(getattr(model, "original_model", None), "config", None)
    known: dict[str, int] = getattr(config, "label2id", None) or {}
    if names is not None and set(names) == set(known):
        labels = [names[label] for label in labels]
    if all(isinstance(label, str) for label in labels):
        for label in labels:
            if label not in known:
                raise unknown_name("class", label, known, "model.original_model.config.label2id")
        return torch.tensor([known[label] for label in labels])
    ids = torch.as_tensor(labels)
    n_classes = n_outputs(model) or int(ids.max()) + 1
    if ids.ndim != 1 or ids.is_floating_point() or int(ids.min()) < 0 or int(ids.max()) >= n_classes:
        raise ValueError(
            f"class ids must be whole numbers in 0..{n_classes - 1}, the classes of this model; got {labels[:3]}..."
        )
    return ids.long()
