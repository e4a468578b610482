"""Tasks from anybody's texts: the next token, and masked tokens."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lens_ablation.data import metrics
from lens_ablation.data.metrics import Metric, MetricFn
from lens_ablation.data.padding import pad_rows
from lens_ablation.data.sources import Source, is_on_hub
from lens_ablation.data.task import IGNORED, Task
from lens_ablation.data.tokens import fill_id, is_bidirectional, require_causal, text_rows, tokenizer_of
from lens_ablation.models.protocol import LensModel


def next_token(
    model: LensModel,
    dataset: Source,
    *,
    text_column: str = "text",
    split: str = "train",
    n_tokens: int | None = None,
    max_length: int | None = None,
    prepend_bos: bool | None = None,
    skip: int = 0,
    common: Int[Tensor, " common"] | None = None,
    metric: Metric | MetricFn = metrics.loss,
    name: str = "next_token",
) -> Task:
    """Every next token of texts, one text to a row.

    Each text is cut to ``max_length`` tokens and filled up on the right behind a mask; texts are not packed.
    Rows of different lengths count alike in a mean over examples; weigh them with ``task.n_targets`` for a
    mean over tokens.

    Args:
        model: A causal language model with its tokenizer.
        dataset: A ``datasets.Dataset`` or ``IterableDataset``, a list of texts, a local Parquet, JSON, CSV or
            text file, a folder of them, or the name of a dataset on the hub, which is streamed.
        text_column: The column of the texts, or of lists of token ids.
        split: Which part of a dataset that has several.
        n_tokens: Stop after the text that brings more than this many targets; ``None`` for all texts.
        max_length: Most tokens of a row, BOS included; by default what the model takes, at most 1000.
        prepend_bos: ``None`` to begin with BOS if the model's training did (``cfg.default_prepend_bos``).
        skip: Texts to pass over: ``profile.n_examples`` of an earlier task of the same data gives other
            texts.
        common: Ids of tokens that do not count towards ``n_tokens``, from ``common_tokens``. They are still
            asked for; ``outside_common(task, common)`` asks for the others only.
        metric: How logits are scored.
        name: What reports call the task.

    Raises:
        UnknownName: no such column or split.
        ValueError: no tokenizer, a bidirectional model, too few or too short texts, or a name on the hub
            without ``n_tokens``.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task = la.tasks.next_token(model, ["Mary and John went to the store .", "The king was happy ."])
        >>> task.n_targets.tolist()
        [8, 5]
    """
    tokenizer_of(model)
    require_causal(model)
    _check_amount(dataset, n_tokens, skip)
    ignored = set() if common is None else set(common.tolist())
    rows: list[list[int]] = []
    total = 0
    for row in text_rows(
        model,
        dataset,
        text_column=text_column,
        split=split,
        max_length=max_length,
        prepend_bos=prepend_bos,
        skip=skip,
    ):
        rows.append(row)
        total += sum(token not in ignored for token in row[1:])
        if n_tokens is not None and total > n_tokens:
            break
    _check_reached(total, n_tokens)
    return next_token_of(*pad_rows(rows, fill_id(model)), metric=metric, name=name)


def next_token_of(
    tokens: Int[Tensor, "example pos"],
    attention_mask: Tensor | None,
    *,
    metric: Metric | MetricFn = metrics.loss,
    name: str = "next_token",
) -> Task:
    """The task of every next token of rows that are tokens already.

    Raises:
        ValueError: rows of a single token, after which nothing is asked.
    """
    if tokens.shape[1] < 2:
        raise ValueError(f"tokens {list(tokens.shape)} leave no next token to predict; give rows of two or more")
    mask = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    asked = mask[:, :-1] & mask[:, 1:]
    if not bool(asked.any(dim=1).all()):
        raise ValueError("a row has a single unmasked token, after which nothing is asked; leave that row out")
    return Task(
        inputs=tokens,
        answers=tokens[:, 1:].masked_fill(~asked, IGNORED),
        attention_mask=mask,
        positions=torch.arange(tokens.shape[1] - 1).expand(asked.shape).masked_fill(~asked, IGNORED),
        metric=metric,
        name=name,
    )


def common_tokens(task: Task, k: int = 50) -> Int[Tensor, " common"]:
    """Ids of the ``k`` most common answers of a task, the most common first; count them on profiling data.

    Raises:
        ValueError: ``k`` is below 1.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task = la.tasks.next_token(model, ["the king and the queen and the cat"])
        >>> model.tokenizer.decode(la.tasks.common_tokens(task, k=1))
        'the'
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}")
    ids, counts = task.answers[task.answers != IGNORED].unique(return_counts=True)
    return ids[counts.argsort(descending=True, stable=True)][:k]


def outside_common(task: Task, common: Int[Tensor, " common"]) -> Task:
    """The part of a task whose answers are not among ``common``; rows without such an answer are left out.

    Raises:
        ValueError: the task asks one answer to a row, or no answer is left.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task = la.tasks.next_token(model, ["the king and the queen and the cat"])
        >>> la.tasks.outside_common(task, la.tasks.common_tokens(task, k=2)).n_targets.tolist()
        [3]
    """
    if task.positions is None or task.positions.ndim != 2:
        raise ValueError("outside_common needs a task that asks at many positions, such as next_token")
    left = ~torch.isin(task.answers, common.to(task.answers)) & (task.answers != IGNORED)
    rows = left.any(dim=1).nonzero()[:, 0]
    if len(rows) == 0:
        raise ValueError(f"every answer is among the {len(common)} common tokens; give fewer")
    part = task.select(rows)
    asked = {
        "answers": part.answers.masked_fill(~left[rows], IGNORED),
        "positions": task.positions[rows].masked_fill(~left[rows], IGNORED),
    }
    return replace(part, **asked, name=f"{task.name}, uncommon")


def masked_token(
    model: LensModel,
    dataset: Source,
    *,
    text_column: str = "text",
    split: str = "train",
    share: float = 0.15,
    n_tokens: int | None = None,
    max_length: int | None = None,
    skip: int = 0,
    seed: int = 0,
    metric: Metric | MetricFn = metrics.loss,
    name: str = "masked_token",
) -> Task:
    """Chosen tokens of texts, most of them hidden, for a bidirectional model.

    Of ``f = share * n`` ordinary tokens of a text, ``int(f)`` are chosen and asked for: ``int(0.8 f)`` are
    replaced by the mask token, ``int(0.1 f)`` by a random ordinary token, the rest stay. Which, depends on
    ``seed`` and the place of the text among all texts alone.

    Args:
        model: A bidirectional language model with its tokenizer.
        dataset: As in ``next_token``.
        text_column: The column of the texts.
        split: Which part of a dataset that has several.
        share: Share of the ordinary tokens that is chosen, between 0 and 1.
        n_tokens: Stop after the text that brings more than this many chosen tokens; ``None`` for all texts.
        max_length: Most tokens of a row, special ones included; by default what model and tokenizer take.
        skip: Texts to pass over, counted as ``profile.n_examples`` of an earlier task of the same data.
        seed: Another seed chooses other tokens.
        metric: How logits are scored.
        name: What reports call the task.

    Raises:
        UnknownName: no such column or split.
        ValueError: no tokenizer, no mask token, a causal model, ``share`` outside 0..1, or too short texts.
    """
    tokenizer = tokenizer_of(model)
    if tokenizer.mask_token_id is None or not is_bidirectional(model):
        lacks = "no mask token" if tokenizer.mask_token_id is None else "a causal model"
        raise ValueError(f"masked_token needs an encoder such as BERT, and this is {lacks}; use tasks.next_token")
    if not 0 < share <= 1:
        raise ValueError(f"share must lie above 0 and be at most 1, got {share}")
    _check_amount(dataset, n_tokens, skip)
    corruption = _Corruption(tokenizer, share, seed)
    rows: list[_Corrupted] = []
    total = 0
    for row in text_rows(
        model,
        dataset,
        text_column=text_column,
        split=split,
        max_length=max_length,
        skip=skip,
        is_usable=lambda row: corruption.n_chosen(row) > 0,
    ):
        rows.append(corruption.of(row, skip + len(rows)))
        total += len(rows[-1].positions)
        if n_tokens is not None and total > n_tokens:
            break
    _check_reached(total, n_tokens)
    inputs, mask = pad_rows([row.tokens for row in rows], fill_id(model))
    return Task(
        inputs=inputs,
        answers=pad_rows([row.answers for row in rows], IGNORED)[0],
        attention_mask=mask,
        positions=pad_rows([row.positions for row in rows], IGNORED)[0],
        metric=metric,
        name=name,
    )


@dataclass(frozen=True)
class _Corrupted:
    tokens: list[int]
    positions: list[int]
    answers: list[int]


class _Corruption:
    """How masked_token hides tokens of a row."""

    def __init__(self, tokenizer: Any, share: float, seed: int):
        self._mask, self._share, self._seed = tokenizer.mask_token_id, share, seed
        names = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "pad_token_id")
        self._markers = {getattr(tokenizer, name, None) for name in names}
        self._ordinary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)

    def n_chosen(self, row: list[int]) -> int:
        return int(self._share * len(self._places(row)))

    def of(self, row: list[int], index: int) -> _Corrupted:
        generator = np.random.default_rng([self._seed, index])
        wanted = self._share * len(self._places(row))
        chosen = generator.permutation(self._places(row))[: int(wanted)].tolist()
        masked, randomised = int(0.8 * wanted), int(0.1 * wanted)
        tokens = list(row)
        for place in chosen[:masked]:
            tokens[place] = self._mask
        for place in chosen[masked : masked + randomised]:
            tokens[place] = int(generator.choice(self._ordinary))
        chosen.sort()
        return _Corrupted(tokens, chosen, [row[place] for place in chosen])

    def _places(self, row: list[int]) -> list[int]:
        return [place for place, token in enumerate(row) if token not in self._markers]


def _check_amount(dataset: Source, n_tokens: int | None, skip: int) -> None:
    if n_tokens is not None and n_tokens < 1:
        raise ValueError(f"n_tokens must be 1 or more, got {n_tokens}")
    if skip < 0:
        raise ValueError(f"skip must be 0 or more, got {skip}")
    if n_tokens is None and is_on_hub(dataset):
        raise ValueError(f"{dataset!r} is no local file, so it would be streamed whole; say n_tokens=...")


def _check_reached(total: int, n_tokens: int | None) -> None:
    if n_tokens is not None and total < n_tokens:
        raise ValueError(
            f"the data ended after {total} of n_tokens={n_tokens} targets; ask for fewer, or for "
            "n_tokens=None to take what there is"
        )
