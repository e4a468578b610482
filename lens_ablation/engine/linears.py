"""Linear maps inside blocks: which ones an ablation leaves untouched, and at which positions they are needed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module

from lens_ablation.engine.clean import blocks_of
from lens_ablation.models.anatomy import probe_inputs
from lens_ablation.models.forward import forward
from lens_ablation.models.protocol import LensModel
from lens_ablation.models.rows import is_linear
from lens_ablation.sites import HookPoint

WRITTEN = ("ln1_out", "q", "k", "v", "z", "attn_out", "ln2_out", "pre", "pre_linear", "post", "mlp_out")
"""Activations that ablations write to, beside patterns, which are written at ``z``."""

BEFORE_ATTENTION = ("ln1_out", "q", "k", "v", "pattern")
"""Activations of which attention makes ``z``."""

INSIDE_MLP = ("pre", "pre_linear", "post", "mlp_out")


@dataclass(frozen=True, eq=False)
class LinearOrder:
    """By hook, the linear maps of its block that have run when it fires, and those that have not.

    ``mlps`` holds each block's MLP, where it is one module.
    """

    before: Mapping[HookPoint, tuple[Module, ...]]
    after: Mapping[HookPoint, tuple[Module, ...]]
    mlps: Mapping[int, Module]


_measured: WeakKeyDictionary[Any, LinearOrder] = WeakKeyDictionary()


def linear_order(model: LensModel) -> LinearOrder:
    """In which order linear maps and hooks of each block run, measured once on a small forward pass.

    Maps that run twice in a pass, or that blocks share, are left out.
    """
    found = _measured.get(model)
    if found is None:
        found = _measured[model] = _measure(model)
    return found


def _measure(model: LensModel) -> LinearOrder:
    ran: list[tuple[int, Module | str]] = []
    found = {layer: getattr(block, "mlp", None) for layer, block in enumerate(blocks_of(model))}
    mlps = {layer: mlp for layer, mlp in found.items() if isinstance(mlp, Module)}
    called: dict[Module, list[int]] = {mlp: [] for mlp in mlps.values()}
    with ExitStack() as hooked:
        for mlp, calls in called.items():
            hooked.callback(mlp.register_forward_hook(lambda m, args, out, calls=calls: calls.append(1)).remove)
        for layer, block in enumerate(blocks_of(model)):
            for linear in dict.fromkeys(module for module in block.modules() if is_linear(module)):
                handle = linear.register_forward_hook(lambda m, args, out, layer=layer: ran.append((layer, m)))
                hooked.callback(handle.remove)
        points = [HookPoint(of, layer) for layer in range(len(blocks_of(model))) for of in WRITTEN]
        pairs = [(point.name, partial(_note, ran, point)) for point in points if point.name in model.hook_dict]
        with torch.inference_mode():
            forward(model, probe_inputs(model), fwd_hooks=pairs)
    once = [entry for _, entry in ran if not isinstance(entry, str)]
    single = {linear for linear in once if once.count(linear) == 1}
    before: dict[HookPoint, tuple[Module, ...]] = {}
    after: dict[HookPoint, tuple[Module, ...]] = {}
    for point in points:
        here = [entry for layer, entry in ran if layer == point.layer]
        if here.count(point.name) == 1:
            at = here.index(point.name)
            before[point] = tuple(entry for entry in here[:at] if not isinstance(entry, str) and entry in single)
            after[point] = tuple(entry for entry in here[at:] if not isinstance(entry, str) and entry in single)
    return LinearOrder(before, after, {layer: mlp for layer, mlp in mlps.items() if len(called[mlp]) == 1})


def writes_at(point: HookPoint) -> HookPoint:
    """The hook at which an ablation of ``point`` writes."""
    return HookPoint("z", point.layer) if point.activation == "pattern" else point


def attention_untouched(points: Sequence[HookPoint]) -> set[int]:
    """Layers that ``points`` write to, and first behind their attention: its ``z`` is that of the clean pass."""
    changed = {point.layer for point in points if point.activation in BEFORE_ATTENTION}
    return {point.layer for point in points} - changed


def untouched(order: LinearOrder, points: Sequence[HookPoint]) -> dict[int, tuple[Module, ...]]:
    """By layer, the linear maps that run before any of ``points`` is written to."""
    found: dict[int, tuple[Module, ...]] = {}
    for point in points:
        maps = order.before.get(writes_at(point), ())
        known = found.get(point.layer)
        found[point.layer] = maps if known is None else tuple(linear for linear in known if linear in maps)
    return found


def position_wise(
    order: LinearOrder, points: Sequence[HookPoint], layer: int, known: Sequence[Module]
) -> tuple[Module, ...]:
    """Modules of a block that run after its attention, and so at each position on its own, but the ``known`` ones.

    The MLP is one of them where nothing inside it is written to; else its linear maps are.
    """
    maps = tuple(linear for linear in order.after.get(HookPoint("z", layer), ()) if linear not in known)
    mlp = order.mlps.get(layer)
    if mlp is None or any(HookPoint(of, layer) in points for of in INSIDE_MLP):
        return maps
    inner = set(mlp.modules())
    return (*(linear for linear in maps if linear not in inner), mlp)


@contextmanager
def first_rows_only(outputs: Mapping[Module, Tensor], n_rows: int, n_known: int, n_variants: int) -> Iterator[None]:
    """Inside, these maps compute their first rows; the last ``n_known`` have the given outputs, repeated.

    Args:
        outputs: Clean output of each map for the examples.
        n_rows: Rows of the pass.
        n_known: Rows whose outputs are known.
        n_variants: How often the examples occur among them.
    """
    with ExitStack() as hooked:
        for linear, clean in outputs.items():
            known = clean.repeat(n_variants, *([1] * (clean.ndim - 1)))
            hooked.callback(linear.register_forward_pre_hook(partial(_cut, n_rows, n_known)).remove)
            hooked.callback(linear.register_forward_hook(partial(_append, known)).remove)
        yield


@contextmanager
def positions_only(linears: Sequence[Module], positions: Int[Tensor, "row target"], n_pos: int) -> Iterator[None]:
    """Inside, these maps compute at ``positions`` of each row and give zeros elsewhere."""
    with ExitStack() as hooked:
        for linear in linears:
            at = _AtPositions(positions, n_pos)
            hooked.callback(linear.register_forward_pre_hook(at.gather).remove)
            hooked.callback(linear.register_forward_hook(at.scatter).remove)
        yield


def _note(ran: list[tuple[int, Module | str]], point: HookPoint, activation: Tensor, hook: object) -> None:
    ran.append((point.layer, point.name))


def _cut(n_rows: int, n_known: int, linear: Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    x: Tensor = args[0]  # [row, pos, width], or of some models [row * pos, width]
    return (x[: len(x) * (n_rows - n_known) // n_rows], *args[1:])


def _append(known: Tensor, linear: Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
    return torch.cat([out, known]) if len(out) else known


class _AtPositions:
    """Hooks that let a map see some positions only, and put what it makes of them back in their places."""

    def __init__(self, positions: Int[Tensor, "row target"], n_pos: int):
        self.positions, self.n_pos = positions, n_pos
        self.rows = torch.arange(len(positions), device=positions.device)[:, None]
        self.shape = torch.Size()

    def gather(self, linear: Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x: Tensor = args[0]
        self.shape = x.shape[:-1]
        return (x.reshape(-1, self.n_pos, x.shape[-1])[self.rows, self.positions], *args[1:])

    def scatter(self, linear: Module, args: tuple[Any, ...], out: Float[Tensor, "row target width"]) -> Tensor:
        whole = out.new_zeros(len(out), self.n_pos, out.shape[-1])
        whole[self.rows, self.positions] = out
        return whole.reshape(*self.shape, out.shape[-1])
