"""From texts to rows of token ids, the way a model was trained to read them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from lens_ablation.data.padding import require_mask_for_padding
from lens_ablation.data.sources import Source, column_names, columns, open_rows
from lens_ablation.models.anatomy import anatomy
from lens_ablation.models.protocol import LensModel

LONGEST = 1000
"""Tokens of a row, as in the peak-ablation paper, unless the model takes fewer or the caller says so."""


def tokenizer_of(model: LensModel) -> Any:
    """The tokenizer of a language model.

    Raises:
        ValueError: the model reads images, or was built without a tokenizer.
    """
    if anatomy(model).modality != "tokens":
        raise ValueError("this model reads images, so it has no texts; use tasks.digits or tasks.image_classification")
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(
            "the model has no tokenizer, so texts cannot be turned into tokens. Set model.tokenizer, or pass tokens."
        )
    return tokenizer


def is_bidirectional(model: LensModel) -> bool:
    """Whether every position sees the whole text, as in BERT, so that the next token is no question."""
    return anatomy(model).bidirectional


def require_causal(model: LensModel) -> None:
    """Refuse a model that sees the tokens it would have to predict.

    Raises:
        ValueError: the model is bidirectional.
    """
    if is_bidirectional(model):
        raise ValueError(
            "this model is bidirectional, so it sees the token that it would have to predict; use "
            "tasks.masked_token(model, dataset)"
        )


def bos_ids(model: LensModel, prepend_bos: bool | None = None) -> list[int]:
    """What stands in front of every text: the BOS token, or nothing.

    Args:
        model: A language model.
        prepend_bos: ``None`` to do as the model's training did (``cfg.default_prepend_bos``), if there is a
            BOS token.

    Raises:
        ValueError: ``prepend_bos=True`` and the tokenizer has no BOS token.
    """
    bos = tokenizer_of(model).bos_token_id
    if bos is None and prepend_bos:
        raise ValueError("prepend_bos=True, and the tokenizer has no BOS token; leave prepend_bos out")
    wanted = getattr(model.cfg, "default_prepend_bos", True) if prepend_bos is None else prepend_bos
    return [] if bos is None or not wanted else [int(bos)]


def fill_id(model: LensModel) -> int:
    """What rows are filled up with, behind a mask: the pad token, else the EOS token, else 0."""
    tokenizer = getattr(model, "tokenizer", None)
    candidates = (getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id"))
    return int(next((candidate for candidate in candidates if candidate is not None), 0))


def longest_row(model: LensModel, max_length: int | None = None) -> int:
    """Most tokens of a row, BOS included.

    Raises:
        ValueError: ``max_length`` is below 2 or above what the model takes.
    """
    context = int(getattr(model.cfg, "n_ctx", LONGEST))
    stated = getattr(tokenizer_of(model), "model_max_length", None)
    limit = min(context, int(stated)) if stated else context
    if max_length is None:
        return min(limit, LONGEST)
    if not 2 <= max_length <= context:
        raise ValueError(f"max_length must lie in 2..{context}, the most tokens this model takes; got {max_length}")
    return max_length


def text_rows(
    model: LensModel,
    source: Source,
    *,
    text_column: str = "text",
    split: str = "train",
    max_length: int | None = None,
    prepend_bos: bool | None = None,
    skip: int = 0,
    is_usable: Callable[[list[int]], bool] = lambda row: len(row) > 1,
) -> Iterator[list[int]]:
    """Token ids of each text, cut to ``max_length``; texts that are not usable are left out.

    A causal model's rows begin with BOS once; a bidirectional model's have the tokenizer's own special
    tokens. Lists of token ids are taken as they are, without what a column ``attention_mask`` beside them
    hides.

    Args:
        model: A language model with its tokenizer.
        source: A dataset, texts, a path or a hub name; see ``sources.open_rows``.
        text_column: Where the texts are.
        split: Which part of a dataset that has several.
        max_length: Most tokens of a row; by default what model and tokenizer take, at most 1000.
        prepend_bos: See ``bos_ids``.
        skip: Usable texts to pass over, so that those measured before do not come again.
        is_usable: Whether a row is long enough; by default, whether it has two tokens.

    Raises:
        ValueError: no tokenizer, no such column, no texts, or none that is usable after ``skip``.
    """
    tokenizer = tokenizer_of(model)
    encode = _Encoder(
        tokenizer,
        front=None if is_bidirectional(model) else bos_ids(model, prepend_bos),
        longest=longest_row(model, max_length),
    )
    rows = open_rows(source, split=split, text_column=text_column)
    has_mask = text_column != "text" and "attention_mask" in column_names(rows)
    n_texts = n_rows = 0
    for text, *mask in columns(rows, (text_column, "attention_mask") if has_mask else (text_column,)):
        n_texts += 1
        row = encode.text(text) if isinstance(text, str) else encode.ids(text, mask[0] if mask else None)
        if not is_usable(row):
            continue
        n_rows += 1
        if n_rows > skip:
            yield row
    if n_rows == 0:
        raise ValueError(f"none of {n_texts} texts has enough tokens; give longer texts")
    if n_rows <= skip:
        raise ValueError(f"skip={skip} passes over all {n_rows} usable texts; skip fewer")


@dataclass(frozen=True)
class _Encoder:
    """Turns texts into rows; ``front`` stands before a text, ``None`` leaves that to the tokenizer."""

    tokenizer: Any
    front: list[int] | None
    longest: int

    def text(self, text: str) -> list[int]:
        if self.front is None:
            return self.tokenizer(text, truncation=True, max_length=self.longest, verbose=False)["input_ids"]
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        n = len(self.front)
        return ids[: self.longest] if n and ids[:n] == self.front else (self.front + ids)[: self.longest]

    def ids(self, given: object, mask: object) -> list[int]:
        try:
            ids = torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError):
            ids = torch.zeros(1)
        if ids.ndim != 1 or ids.is_floating_point():
            raise ValueError(
                f"a column of {type(given).__name__} was named, and texts or lists of token ids are needed; "
                "name the right one with text_column=..."
            )
        if mask is not None:
            return ids[torch.as_tensor(mask).bool()][: self.longest].tolist()
        require_mask_for_padding(ids[None], None, self.tokenizer)
        return ids[: self.longest].tolist()
