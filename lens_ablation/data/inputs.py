"""What a model is run on, in batches, whatever form the data came in."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lens_ablation.data.checks import require_pixels, require_tokens
from lens_ablation.data.images import pixels_of
from lens_ablation.data.padding import pad_rows, require_mask_for_padding
from lens_ablation.data.sources import Source, column_names, columns, is_on_hub, is_source, open_rows
from lens_ablation.data.task import Inputs, Task
from lens_ablation.data.tokens import fill_id, text_rows
from lens_ablation.errors import unknown_name
from lens_ablation.models.anatomy import anatomy
from lens_ablation.models.capture import token_positions
from lens_ablation.models.protocol import LensModel, input_device

TEXT_COLUMNS = ("input_ids", "tokens", "text")
IMAGE_COLUMNS = ("pixel_values", "pixels", "image", "img")

_Item = TypeVar("_Item")


TOKENS_PER_PASS = 4096
"""Tokens in a forward pass where the caller leaves the choice; larger passes gain nothing on small models."""

IMAGES_PER_PASS = 256
"""Images in a forward pass where the caller leaves the choice."""


@dataclass(frozen=True, eq=False)
class InputBatch:
    """Some rows of inputs.

    Attributes:
        inputs: Tokens ``[row, pos]`` or pixels ``[row, channel, height, width]``.
        attention_mask: ``True`` where a token is real; ``None`` for images only.
        answer_positions: Where a task reads its answers, ``-1`` for none; ``None`` if the data was no task.
    """

    inputs: Inputs
    attention_mask: Bool[Tensor, "example pos"] | None
    answer_positions: Int[Tensor, "example target"] | None

    @property
    def position_ids(self) -> Int[Tensor, "example pos"] | None:
        """Position of each token counted from the first real one; ``None`` for images."""
        if self.attention_mask is None:
            return None
        return token_positions(self.attention_mask)

    def mapped(self, fn: Callable[[Tensor], Tensor]) -> "InputBatch":
        """The batch with ``fn`` applied to every tensor."""
        mask, positions = self.attention_mask, self.answer_positions
        return InputBatch(
            fn(self.inputs), None if mask is None else fn(mask), None if positions is None else fn(positions)
        )


class Batches:
    """The inputs of some data in batches, on the device of the model; every iteration starts anew.

    Attributes:
        batch_size: Most rows in a batch.
    """

    def __init__(self, parts: Callable[[], Iterable[object]], model: LensModel, batch_size: int, *, can_repeat: bool):
        self.batch_size = batch_size
        self._parts, self._model, self._can_repeat = parts, model, can_repeat
        self._is_used = False
        self._digests: tuple[str, str] | None = None

    def __iter__(self) -> Iterator[InputBatch]:
        device = input_device(self._model)
        for batch in self._on_cpu():
            yield batch.mapped(lambda tensor: tensor.to(device))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the real tokens (or pixels) of all rows; batch size and padding leave no trace.

        Raises:
            ValueError: the data can be read only once and was not yet read to its end.
        """
        return self._known_digests()[0]

    @property
    def answers_fingerprint(self) -> str:
        """SHA-256 over the places, among the real tokens of each row, at which answers are read.

        Raises:
            ValueError: the data can be read only once and was not yet read to its end.
        """
        return self._known_digests()[1]

    def _known_digests(self) -> tuple[str, str]:
        if self._digests is None and self._can_repeat:
            for _ in self._on_cpu():
                pass
        if self._digests is None:
            raise ValueError(
                "the fingerprint of data that can be read only once is known when it was read to its end; "
                "pass a list, a DataLoader or a Dataset to know it before"
            )
        return self._digests

    def _on_cpu(self) -> Iterator[InputBatch]:
        if self._is_used and not self._can_repeat:
            raise ValueError("this data can be read only once and was read; pass a list, a DataLoader or a Dataset")
        self._is_used = True
        rows, answers = hashlib.sha256(), hashlib.sha256()
        n_rows = 0
        for part in self._parts():
            whole = checked_batch(part, self._model)
            for start in range(0, whole.inputs.shape[0], self.batch_size):
                end = start + self.batch_size
                batch = whole.mapped(lambda tensor, start=start, end=end: tensor[start:end])
                _digest_rows(rows, answers, batch)
                n_rows += batch.inputs.shape[0]
                yield batch
        if n_rows == 0:
            raise ValueError("the data has no rows, so there is nothing to run the model on")
        self._digests = rows.hexdigest(), answers.hexdigest()


def rows_that_fit(inputs: Inputs) -> int:
    """Rows of such inputs in a forward pass where the caller leaves the choice."""
    return IMAGES_PER_PASS if inputs.ndim == 4 else max(1, TOKENS_PER_PASS // inputs.shape[1])


def rows_per_pass(data: object, model: LensModel) -> int:
    """Rows of any data that ``batches_of`` takes in a forward pass where the caller leaves the choice."""
    return rows_that_fit(next(iter(batches_of(data, model, 1))).inputs)


def batches_of(data: object, model: LensModel, batch_size: int, *, single_pass: bool = False) -> Batches:
    """Inputs of ``data`` in batches of at most ``batch_size`` rows, with masks, for ``model``.

    Args:
        data: A ``Task``; a token or pixel tensor; texts, a ``datasets.Dataset`` or a local file; or an
            iterable of batches, each a tensor, a task, a mapping with ``input_ids`` and ``attention_mask``
            (or with ``pixel_values``), a pair ``(tokens, attention_mask)`` or a pair ``(pixels, labels)``.
        model: The model that they are for.
        batch_size: Most rows in a batch.
        single_pass: Accept an iterator, which can be read only once.

    Raises:
        UnknownName: a dataset without a column of texts (or images).
        ValueError: no rows, no known form, data for another kind of model, padding without a mask, or an
            iterator where data must be read again.

    Example:
        >>> import torch, lens_ablation as la
        >>> from lens_ablation.data.inputs import batches_of
        >>> model = la.load_model("tiny-lm")
        >>> [batch.inputs.shape[0] for batch in batches_of(torch.randint(4, 90, (5, 8)), model, 2)]
        [2, 2, 1]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    if isinstance(data, Tensor | Task | Mapping):
        return Batches(lambda: [data], model, batch_size, can_repeat=True)
    if is_source(data):
        return Batches(lambda: _source_parts(data, model, batch_size), model, batch_size, can_repeat=True)
    if not isinstance(data, Iterable):
        raise ValueError(
            f"cannot read inputs from {type(data).__name__}; pass a Task, a token or pixel tensor, a "
            "datasets.Dataset or an iterable of batches"
        )
    is_iterator = iter(data) is data
    if is_iterator and not single_pass:
        raise ValueError(
            f"the data is a {type(data).__name__}, which can be read only once, and it must be read again; "
            "pass list(data), a DataLoader or a datasets.Dataset"
        )
    return Batches(lambda: data, model, batch_size, can_repeat=not is_iterator)


def checked_batch(part: object, model: LensModel) -> InputBatch:
    """One batch of any accepted form, on the CPU, known to fit ``model``.

    Raises:
        ValueError: it has no known form, does not fit the model, or has padding without a mask.
    """
    inputs, mask = _inputs_and_mask(part)
    inputs = inputs.detach().cpu()
    if inputs.ndim == 4:
        require_pixels(inputs, model)
        return InputBatch(inputs.to(next(iter(model.parameters())).dtype), None, None)
    require_tokens(inputs, model)
    require_mask_for_padding(inputs, mask, getattr(model, "tokenizer", None))
    mask = torch.ones_like(inputs) if mask is None else mask.detach().cpu()
    if mask.shape != inputs.shape or not bool(mask.bool().any(dim=1).all()):
        raise ValueError(
            f"attention_mask {tuple(mask.shape)} must have one entry to each of the tokens "
            f"{tuple(inputs.shape)} and leave at least one in every row"
        )
    positions = part.answer_positions if isinstance(part, Task | InputBatch) else None
    return InputBatch(inputs.long(), mask.bool(), None if positions is None else positions.detach().cpu())


def text_column_of(source: Source) -> str:
    """The column of a dataset that holds texts or token ids, by its usual names.

    Raises:
        UnknownName: there is none.
    """
    return _usual_column(source, TEXT_COLUMNS, "text")


def image_column_of(source: Source) -> str:
    """The column of a dataset that holds images, by its usual names.

    Raises:
        UnknownName: there is none.
    """
    return _usual_column(source, IMAGE_COLUMNS, "image")


def _usual_column(source: Source, usual: Sequence[str], wanted: str) -> str:
    names = column_names(open_rows(source))
    found = next((name for name in usual if name in names), None)
    if found is None:
        raise unknown_name("column", wanted, names, "dataset.column_names")
    return found


def _source_parts(source: Source, model: LensModel, size: int) -> Iterator[object]:
    if is_on_hub(source):
        raise ValueError(
            f"{source!r} is no local file, so it would be streamed whole; make a task of part of it: "
            "tasks.next_token(model, dataset, n_tokens=...)"
        )
    if anatomy(model).modality == "pixels":
        images = columns(open_rows(source), (image_column_of(source),))
        for part in _groups(images, size):
            yield pixels_of(model, [image for (image,) in part])
        return
    for rows in _groups(text_rows(model, source, text_column=text_column_of(source)), size):
        tokens, mask = pad_rows(rows, fill_id(model))
        yield {"input_ids": tokens, "attention_mask": mask}


def _groups(items: Iterator[_Item], size: int) -> Iterator[list[_Item]]:
    while group := list(islice(items, size)):
        yield group


def _inputs_and_mask(part: object) -> tuple[Tensor, Tensor | None]:
    if isinstance(part, Tensor):
        return part, None
    if isinstance(part, Task | InputBatch):
        return part.inputs, part.attention_mask
    if isinstance(part, Mapping):
        return _of_mapping(part)
    if not isinstance(part, tuple | list) or not part or not all(isinstance(item, Tensor) for item in part):
        raise ValueError(
            f"cannot read a batch from {type(part).__name__}; give a tensor, a Task, a mapping with "
            "input_ids or pixel_values, a pair (tokens, attention_mask) or a pair (pixels, labels)"
        )
    inputs, *rest = part
    if not rest or inputs.ndim == 4:
        return inputs, None
    is_mask = rest[0].shape == inputs.shape and bool(((rest[0] == 0) | (rest[0] == 1)).all())
    if len(rest) > 1 or not is_mask:
        raise ValueError(
            "a batch of tokens may be a pair (tokens, attention_mask) of one shape with 0 and 1 in the mask; "
            f"got shapes {', '.join(str(tuple(item.shape)) for item in part)}"
        )
    return inputs, rest[0]


def _of_mapping(part: Mapping[Any, Any]) -> tuple[Tensor, Tensor | None]:
    usual = ("input_ids", "tokens", "inputs", "pixel_values", "pixels")
    key = next((key for key in usual if key in part), None)
    if key is None:
        raise ValueError(f"a batch has none of {', '.join(usual)}; it has {', '.join(map(str, part))}")
    mask = part.get("attention_mask")
    return torch.as_tensor(part[key]), None if mask is None else torch.as_tensor(mask)


def _digest_rows(rows: "hashlib._Hash", answers: "hashlib._Hash", batch: InputBatch) -> None:
    """Add each row such that batch size and padding leave no trace."""
    if batch.attention_mask is None or batch.position_ids is None:
        for image in batch.inputs.float():
            rows.update(f"{tuple(image.shape)}".encode() + image.contiguous().numpy().tobytes())
        return
    for row, mask in zip(batch.inputs, batch.attention_mask, strict=True):
        rows.update(f"{int(mask.sum())}:".encode() + row[mask].contiguous().numpy().tobytes())
    if batch.answer_positions is None:
        return
    for asked, places in zip(batch.answer_positions, batch.position_ids, strict=True):
        read = places[asked[asked >= 0]]
        answers.update(f"{len(read)}:".encode() + read.contiguous().numpy().tobytes())
