"""From (sites, method) to TransformerLens hooks, and the context manager that installs them."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_ablation.data.task import Task
from lens_ablation.errors import BadActivation, HookDidNotFire
from lens_ablation.methods.method import Method, Replacement, Request
from lens_ablation.models.anatomy import Anatomy, anatomy
from lens_ablation.models.capture import token_positions
from lens_ablation.models.checks import pattern_at_z, require_meaning
from lens_ablation.models.protocol import FwdHook, LensModel, require_evaluation_mode
from lens_ablation.sites import HookPoint, Site, SiteSet, as_site_set, check_sites_exist, grid

Positions = str | Int[Tensor, "row target"]
"""Which tokens are ablated: ``all``, ``all_but_first``, ``answer``, or indices of each row (``-1``: none)."""

RemovalMasks = Mapping[HookPoint, Bool[Tensor, "row ..."]] | Mapping[HookPoint, Float[Tensor, "row ..."]]
"""By hook, what each row removes: ``[row, head, d_head]``, ``[row, unit]``, ``[row, head]`` or ``[row]``.

Floats are shares: ``activation * (1 - share) + replacement * share``, of which gradients can be taken."""


def hooks(
    model: LensModel,
    sites: Site | SiteSet | Iterable[Site],
    method: Method,
    *,
    positions: Positions = "all",
    attention_mask: Bool[Tensor, "row pos"] | Int[Tensor, "row pos"] | None = None,
    task: Task | None = None,
) -> list[FwdHook]:
    """Plain ``(name, fn)`` pairs that ablate ``sites`` together, for ``run_with_hooks`` or ``model.hooks``.

    Two of the pairs only watch: they make a forward pass fail in which an ablation fired a wrong number of times.

    Args:
        model: A TransformerLens model in evaluation mode.
        sites: What to ablate, of one kind; add two lists for two kinds.
        method: What stands in the place of the activation.
        positions: ``all`` tokens, ``all_but_first``, the ``answer`` position of ``task``, or token indices
            ``[row, target]``.
        attention_mask: True where a token is real; others are left alone and counted by no position.
        task: Where the rows come from, instead of ``attention_mask``: row ``i`` is its example ``i``.

    Raises:
        ValueError: sites, method and model do not fit together; the model is in training mode.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> tokens = la.tasks.ioi(model, n=4).inputs
        >>> logits = model.run_with_hooks(tokens, fwd_hooks=la.hooks(model, la.heads(model)[2, 1], la.Zero()))
    """
    return _together(model, sites, method, positions, attention_mask, task).pairs


@contextmanager
def ablate(
    model: LensModel,
    sites: Site | SiteSet | Iterable[Site],
    method: Method,
    *,
    positions: Positions = "all",
    attention_mask: Bool[Tensor, "row pos"] | Int[Tensor, "row pos"] | None = None,
    task: Task | None = None,
) -> Iterator[LensModel]:
    """The model with ``sites`` ablated inside the ``with`` block, and untouched after it, whatever happens.

    Contexts nest: several methods act on disjoint sites at once. Arguments as in ``hooks``.

    Raises:
        HookDidNotFire: an ablation did not fire exactly once in each forward pass of the block.
        ValueError: as in ``hooks``.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task = la.tasks.ioi(model, n=4)
        >>> with la.ablate(model, la.heads(model)[2, 1], la.Zero()):
        ...     logits = model(task.inputs)
    """
    installed = _together(model, sites, method, positions, attention_mask, task)
    with model.hooks(fwd_hooks=installed.pairs):
        yield model
    installed.firings.check_all()


def removal_masks(
    sites: SiteSet, removed: Bool[np.ndarray, "row site"], sizes: Anatomy
) -> dict[HookPoint, Bool[Tensor, "row ..."]]:
    """What each row removes at each hook, from flags ``[row, site]``; hooks that no row touches are left out."""
    masks: dict[HookPoint, Tensor] = {}
    shape = grid(sites.kind, sizes)[1:]
    for point in sites.hook_points:
        here = np.flatnonzero(sites.addresses[:, 0] == point.layer)
        flags = removed[:, here]
        if not flags.any():
            continue
        mask = np.zeros((len(removed), *shape), dtype=bool)
        mask[(slice(None), *sites.addresses[here, 1:].T)] = flags if shape else flags[:, 0]
        masks[point] = torch.from_numpy(mask)
    return masks


@dataclass(frozen=True, eq=False, kw_only=True)
class Rows:
    """The rows of a forward pass: which examples they are, and which of their tokens may be replaced.

    Attributes:
        examples: Example index of each row; ``None`` where row ``i`` is example ``i``.
        attention_mask: True where a token is real; ``None`` everywhere.
        where: ``all``, ``all_but_first``, or token indices ``[row, target]``.
    """

    examples: Int[Tensor, " row"] | None = None
    attention_mask: Bool[Tensor, "row pos"] | None = None
    where: Literal["all", "all_but_first"] | Int[Tensor, "#row target"] = "all"

    def mask_for(self, n_pos: int) -> Bool[Tensor, "#row pos"] | None:
        """The attention mask for an activation of ``n_pos`` tokens; generated tokens are real.

        Raises:
            BadActivation: the activation has fewer tokens than the mask, and more than one.
        """
        mask = self.attention_mask
        if mask is None or mask.shape[1] == n_pos:
            return mask
        if n_pos > mask.shape[1]:
            return torch.nn.functional.pad(mask, (0, n_pos - mask.shape[1]), value=True)
        if n_pos == 1:
            return None
        raise BadActivation(
            f"attention_mask covers {mask.shape[1]} tokens and the activation has {n_pos}; pass the mask of this batch"
        )

    def positions_for(self, n_pos: int) -> Int[Tensor, "#row pos"]:
        """Position of each token from its row's first real one, ``[row or 1, pos]``."""
        mask = self.mask_for(n_pos)
        return torch.arange(n_pos)[None] if mask is None else token_positions(mask)

    def replaced(self, n_pos: int) -> Bool[Tensor, "#row pos"] | None:
        """True at the tokens that may be replaced, ``[row or 1, pos]``; ``None`` for all.

        Raises:
            BadActivation: tokens were named by index and the activation has not that many.
        """
        mask = self.mask_for(n_pos)
        if isinstance(self.where, Tensor):
            if int(self.where.max()) >= n_pos:
                raise BadActivation(
                    f"positions name token {int(self.where.max())} and the activation has {n_pos} tokens; in "
                    "generation with a key-value cache only positions='all' can be ablated"
                )
            chosen = torch.zeros(len(self.where), n_pos + 1, dtype=torch.bool)
            chosen.scatter_(1, self.where.where(self.where >= 0, n_pos).cpu(), True)
            return chosen[:, :n_pos] if mask is None else chosen[:, :n_pos] & mask.cpu()
        if self.where == "all":
            return mask
        later = self.positions_for(n_pos) > 0
        return later if mask is None else later & mask


@dataclass(eq=False)
class Firings:
    """Counts of firings, compared with the number of forward passes that began since the last comparison."""

    names: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    began: int = 0

    def watch(self, name: str) -> int:
        """A place among the counts for a hook; several hooks may bear one name."""
        self.names.append(name)
        self.counts.append(0)
        return len(self.counts) - 1

    def pass_began(self, activation: Tensor, hook: object) -> None:
        """A watching hook for the first block."""
        self.began += 1

    def pass_ended(self, activation: Tensor, hook: object) -> None:
        """A watching hook for the last block: every counted hook has fired once by now."""
        self.check(max(1, self.began))
        self.began = 0
        self.counts[:] = [0] * len(self.counts)

    def check_all(self) -> None:
        """Compare at the end of a block of forward passes, which may have been stopped early."""
        self.check(max(self.began, *self.counts))

    def check(self, expected: int) -> None:
        """Raise ``HookDidNotFire`` for the first hook with another count."""
        for name, got in zip(self.names, self.counts, strict=True):
            if got != expected:
                raise HookDidNotFire(name, expected, got)


@dataclass(frozen=True, eq=False)
class InstalledHooks:
    """Hook pairs, and the counts they keep."""

    pairs: list[FwdHook]
    firings: Firings


def ablation_hooks(
    model: LensModel, removed: RemovalMasks, replacement: Replacement, rows: Rows, *, positional: bool
) -> InstalledHooks:
    """The hooks that replace what ``removed`` marks, row by row, and those that watch them."""
    last = anatomy(model).n_layers - 1
    firings = Firings()
    began: FwdHook = (HookPoint("resid_pre", 0).name, firings.pass_began)
    ended: FwdHook = (HookPoint("resid_post", last).name, firings.pass_ended)
    written = replacing_hooks(removed, replacement, rows, firings, positional=positional)
    return InstalledHooks([began, *written, ended], firings)


def replacing_hooks(
    removed: RemovalMasks, replacement: Replacement, rows: Rows, firings: Firings, *, positional: bool
) -> list[FwdHook]:
    """The hooks that replace what ``removed`` marks, row by row, and count themselves in ``firings``."""
    pairs: list[FwdHook] = []
    for point, mask in removed.items():
        if point.activation == "pattern":
            # whatever the method, a pattern is one entry to a pair of positions
            write = _PatternAtZ(point, mask, replacement, rows, True, firings)
            pairs += [(HookPoint("v", point.layer).name, write.keep_v)]
        else:
            write = _Replace(point, mask, replacement, rows, positional, firings)
        pairs += [(write.writes_at.name, write)]
    return pairs


@dataclass(eq=False, repr=False)  # TransformerLens names each hook by its repr, and tensors are slow to print
class _Replace:
    """Writes the replacement over the marked coordinates of one activation ``[row, pos, ...]``."""

    point: HookPoint
    removed: Bool[Tensor, "row ..."] | Float[Tensor, "row ..."]
    replacement: Replacement
    rows: Rows
    positional: bool
    firings: Firings
    place: int = field(init=False)
    passes: int = 0

    def __post_init__(self) -> None:
        self.place = self.firings.watch(self.writes_at.name)

    @property
    def writes_at(self) -> HookPoint:
        return self.point

    def __call__(self, activation: Tensor, hook: object) -> Tensor:
        n_pos = activation.shape[1]
        self._count(n_pos)
        value = self.replacement(self._request(activation.shape, activation)).to(activation)
        return _merge(self._where(activation), value, activation)

    def _count(self, n_pos: int) -> None:
        self.firings.counts[self.place] += 1
        names_tokens = self.positional or not isinstance(self.rows.where, str) or self.rows.where != "all"
        if n_pos == 1 and names_tokens and self.passes > 0:
            raise BadActivation(
                f"{self.writes_at.name} was given one token, as in generation with a key-value cache, where this "
                "ablation cannot know the token's position. Generate with use_past_kv_cache=False, or use a method "
                "that does not depend on positions, at positions='all'."
            )
        self.passes += 1

    def _request(self, shape: torch.Size, activation: Tensor | None) -> Request:
        return Request(
            point=self.point,
            shape=shape,
            examples=self.rows.examples,
            positions=self.rows.positions_for(shape[-1] if self.point.activation == "pattern" else shape[1]),
            activation=activation,
        )

    def _where(
        self, activation: Float[Tensor, "row pos ..."]
    ) -> Bool[Tensor, "#row #pos ..."] | Float[Tensor, "#row #pos ..."]:
        """Marked coordinates at marked tokens, broadcastable to the activation."""
        n_rows, trailing = activation.shape[0], activation.ndim - 2
        if len(self.removed) not in (1, n_rows):
            raise BadActivation(
                f"{self.point.name} has {n_rows} rows and the ablation was made for {len(self.removed)}"
            )
        removed = self.removed.to(activation.device)
        marked = removed.reshape(len(removed), 1, *removed.shape[1:], *([1] * (trailing - removed.ndim + 1)))
        tokens = self.rows.replaced(activation.shape[1])
        if tokens is None:
            return marked
        if len(tokens) not in (1, n_rows):
            raise BadActivation(
                f"{self.point.name} has {n_rows} rows; positions or attention_mask were given for {len(tokens)}"
            )
        here = tokens.to(activation.device).reshape(*tokens.shape, *([1] * trailing))
        return marked & here if marked.dtype == torch.bool else marked * here


class _PatternAtZ(_Replace):
    """Writes ``pattern @ v`` over the marked heads of ``hook_z``: exact on every family."""

    v: Tensor | None = None

    @property
    def writes_at(self) -> HookPoint:
        return HookPoint("z", self.point.layer)

    def keep_v(self, v: Float[Tensor, "row key kv_head d_head"], hook: object) -> None:
        self.v = v

    def __call__(self, activation: Tensor, hook: object) -> Tensor:
        if self.v is None:
            raise HookDidNotFire(HookPoint("v", self.point.layer).name, 1, 0)
        v, self.v = self.v, None
        n_rows, n_query, n_heads, _ = activation.shape
        if v.shape[1] != n_query:
            raise BadActivation(
                f"{self.point.name} cannot be replaced in generation with a key-value cache: the values of earlier "
                "tokens are not at hand. Generate with use_past_kv_cache=False."
            )
        self._count(n_query)
        shape = torch.Size((n_rows, n_heads, n_query, n_query))
        pattern = self.replacement(self._request(shape, None)).to(activation).expand(shape)
        mask = self.rows.mask_for(n_query)
        if mask is not None:
            pattern = pattern * mask.to(activation.device)[:, None, None, :]
        return _merge(self._where(activation), pattern_at_z(pattern, v), activation)


def _merge(
    removed: Bool[Tensor, "#row #pos ..."] | Float[Tensor, "#row #pos ..."], value: Tensor, activation: Tensor
) -> Tensor:
    """The activation with the value in its place where it is removed."""
    if removed.dtype == torch.bool:
        return torch.where(removed, value, activation)
    share = removed.to(activation.dtype)
    return activation * (1 - share) + value * share


def _together(
    model: LensModel,
    sites: Site | SiteSet | Iterable[Site],
    method: Method,
    positions: Positions,
    attention_mask: Tensor | None,
    task: Task | None,
) -> InstalledHooks:
    """The hooks that ablate all sites in every row."""
    chosen, rows = _checked(model, sites, positions, attention_mask, task)
    removed = removal_masks(chosen, np.ones((1, len(chosen)), dtype=bool), anatomy(model))
    method.require_sites(chosen)
    replacement = method.prepare(model, chosen.hook_points)
    return ablation_hooks(model, removed, replacement, rows, positional=method.positional)


def _checked(
    model: LensModel,
    sites: Site | SiteSet | Iterable[Site],
    positions: Positions,
    attention_mask: Tensor | None,
    task: Task | None,
) -> tuple[SiteSet, Rows]:
    anatomy(model)
    require_evaluation_mode(model)
    chosen = check_sites_exist(as_site_set(sites), model)
    require_meaning(model, chosen.kind)
    if task is not None:
        if attention_mask is not None:
            raise ValueError("give attention_mask or task, not both; a task has its own mask")
        return chosen, rows_of_task(task, positions)
    if isinstance(positions, str) and positions == "answer":
        raise ValueError("positions='answer' needs to know the task: hooks(..., positions='answer', task=task)")
    mask = None if attention_mask is None else attention_mask.bool()
    return chosen, Rows(attention_mask=mask, where=_named(positions))


def rows_of_task(task: Task, positions: Positions, examples: Int[Tensor, " chosen"] | None = None) -> Rows:
    """Rows that hold these examples of ``task`` (all by default), to be ablated at ``positions``."""
    mask = task.attention_mask if examples is None or task.attention_mask is None else task.attention_mask[examples]
    if mask is not None and bool(mask.all()):
        mask = None  # nothing is hidden, so that nothing need be compared with it
    if isinstance(positions, str) and positions == "answer":
        part = task if examples is None else task.select(examples)
        answered = part.answer_positions
        where: Literal["all", "all_but_first"] | Tensor = (
            torch.zeros(part.n_examples, 1, dtype=torch.int64) if answered is None else answered
        )
    else:
        where = _named(positions)
    if isinstance(positions, Tensor) and isinstance(where, Tensor):
        if len(where) not in (1, task.n_examples):
            raise ValueError(f"positions name tokens of {len(where)} rows and the task has {task.n_examples} examples")
        if examples is not None:
            where = where[examples] if len(where) > 1 else where.expand(len(examples), -1)
    return Rows(examples=examples, attention_mask=mask, where=where)


def _named(positions: Positions) -> Literal["all", "all_but_first"] | Tensor:
    if isinstance(positions, Tensor):
        if positions.ndim != 2:
            raise ValueError(f"positions must have shape [row, target], got {tuple(positions.shape)}")
        return positions
    if positions == "all" or positions == "all_but_first":
        return positions
    raise ValueError(
        f"positions must be 'all', 'all_but_first', 'answer' or token indices [row, target], got {positions!r}"
    )


def first_rows(rows: Rows, n: int) -> Rows:
    """The first ``n`` rows of a forward pass; they number their examples themselves."""
    assert rows.examples is not None
    return Rows(
        examples=rows.examples[:n],
        attention_mask=None if rows.attention_mask is None else rows.attention_mask[:n],
        where=rows.where[:n] if isinstance(rows.where, Tensor) and len(rows.where) > 1 else rows.where,
    )


def repeat_rows(rows: Rows, n_variants: int, n_examples: int) -> Rows:
    """The rows ``[variant, example]`` of a forward pass that holds several ablations of the same examples."""
    order = partial(repeat, pattern="row ... -> (variant row) ...", variant=n_variants)
    examples = torch.arange(n_examples) if rows.examples is None else rows.examples
    return Rows(
        examples=order(examples),
        attention_mask=None if rows.attention_mask is None else order(rows.attention_mask),
        where=order(rows.where) if isinstance(rows.where, Tensor) else rows.where,
    )
