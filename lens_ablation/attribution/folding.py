"""Constants written over activations, as changes of the linear maps before or behind them."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import Module

from lens_ablation.ablation import removal_masks
from lens_ablation.attribution.plain import plain_name, wrapped_model
from lens_ablation.engine.linears import linear_order
from lens_ablation.errors import BadActivation, UnsupportedModel
from lens_ablation.methods.method import Method, Replacement, Request
from lens_ablation.models.anatomy import Anatomy, anatomy, probe_inputs
from lens_ablation.models.fingerprint import weight_processing
from lens_ablation.models.forward import forward
from lens_ablation.models.protocol import LensModel
from lens_ablation.models.rows import weight_of
from lens_ablation.sites import HookPoint, SiteSet

READ = ("z", "post")
"""Activations that a linear map reads; the others are what one gives."""


@dataclass(frozen=True, eq=False)
class Write:
    """What is written over an activation: ``values`` where ``marked``, at every token alike."""

    marked: Bool[Tensor, " width"]
    values: Float[Tensor, " width"]


@dataclass(frozen=True, eq=False)
class Folded:
    """Weight and bias of a linear map with writes folded in; no bias where it had none and needs none."""

    weight: Float[Tensor, "input output"]
    bias: Float[Tensor, " output"] | None


def writes(model: LensModel, parts: Sequence[tuple[SiteSet, Method]]) -> dict[HookPoint, Write]:
    """By hook, what the parts write there together.

    Raises:
        ValueError: a replacement is no constant, or two parts write to one coordinate.
    """
    found: dict[HookPoint, Write] = {}
    for sites, method in parts:
        for point, write in _writes_of(model, sites, method).items():
            before = found.get(point)
            if before is not None and bool((before.marked & write.marked).any()):
                raise ValueError(f"two methods were given for one part of {point}; give each site to one method only")
            if before is not None:
                values = torch.where(write.marked, write.values, before.values)
                write = Write(before.marked | write.marked, values)
            found[point] = write
    return found


def _writes_of(model: LensModel, sites: SiteSet, method: Method) -> dict[HookPoint, Write]:
    sizes = anatomy(model)
    constants = _constants(model, sites.hook_points, method)
    masks = removal_masks(sites, np.ones((1, len(sites)), dtype=bool), sizes)
    found = {}
    for point, values in constants.items():
        mask = masks[point][0]
        marked = mask.reshape(*mask.shape, *([1] * (values.ndim - mask.ndim))).expand(values.shape)
        found[point] = Write(marked.flatten(), values.flatten())
    return found


def _constants(model: LensModel, points: Sequence[HookPoint], method: Method) -> dict[HookPoint, Tensor]:
    """What the method puts at each hook, ``[head, d_head]`` or ``[width]``, once it is known to be a constant."""
    refusal = (
        f"{method.name} cannot be baked: what it puts in the place of an activation depends on the input or the "
        "position, and weights hold one constant for all. Methods that can be baked: Zero, Constant, Mean (not per "
        "position), Peak, and any other that gives each coordinate one value."
    )
    if method.positional:
        raise ValueError(refusal)
    sizes, dtype = anatomy(model), next(iter(model.parameters())).dtype
    replacement = method.prepare(model, points)
    found = {}
    for point in points:
        first, second = (_asked(replacement, point, sizes, dtype, seed) for seed in (0, 1))
        constant = first[0, 0]
        if not bool(torch.isfinite(first).all() and torch.isfinite(second).all()):
            raise BadActivation(f"{method.name} gives values for {point} that are not finite, which cannot be baked")
        if not (torch.equal(first, constant.expand_as(first)) and torch.equal(second, constant.expand_as(second))):
            raise ValueError(refusal)
        found[point] = constant
    return found


def _asked(
    replacement: Replacement, point: HookPoint, sizes: Anatomy, dtype: torch.dtype, seed: int
) -> Float[Tensor, "row pos ..."]:
    """The replacement for some rows and positions, which are others for another seed."""
    shape = torch.Size((2 + seed, 4 - seed, *sizes.coordinates(point.activation)))
    generator = torch.Generator().manual_seed(seed)
    request = Request(
        point=point,
        shape=shape,
        examples=torch.arange(shape[0]) + seed,
        positions=(torch.arange(shape[1]) + seed)[None],
        activation=torch.randn(shape, generator=generator).to(dtype),
    )
    return replacement(request).to(device="cpu", dtype=dtype).expand(shape)


def linear_maps(model: LensModel, points: Sequence[HookPoint]) -> dict[HookPoint, Module]:
    """The linear map that reads the activation of each hook or, for layer outputs, gives it.

    Raises:
        UnsupportedModel: the hook's activation is neither.
    """
    order = linear_order(model)
    found: dict[HookPoint, Module] = {}
    for point in points:
        reads = point.activation in READ
        maps = (order.after if reads else order.before).get(point, ())
        if not maps:
            raise _not_between(model, point)
        found[point] = maps[0 if reads else -1]
    seen: dict[object, Tensor] = {}
    with ExitStack() as hooked:
        for linear in set(found.values()):
            hooked.callback(linear.register_forward_hook(partial(_keep_both, seen)).remove)
        pairs = [(point.name, partial(_keep, seen, point)) for point in points]
        with torch.inference_mode():
            forward(model, probe_inputs(model), fwd_hooks=pairs)
    for point, linear in found.items():
        other = seen.get((linear, "input" if point.activation in READ else "output"))
        if other is None or not torch.equal(seen[point].flatten(), other.flatten()):
            raise _not_between(model, point)
    return found


def _not_between(model: LensModel, point: HookPoint) -> UnsupportedModel:
    place = "read by" if point.activation in READ else "the output of"
    return UnsupportedModel(
        f"{point} of this model (weight processing: {weight_processing(model)}) is not {place} one linear map, so an "
        "ablation there cannot be written into weights. Run the model under lens_ablation.ablate(...)."
    )


def _keep(seen: dict[object, Tensor], key: object, activation: Tensor, hook: object) -> None:
    seen[key] = activation


def _keep_both(seen: dict[object, Tensor], linear: Module, args: tuple[Any, ...], out: Tensor) -> None:
    seen[linear, "input"], seen[linear, "output"] = args[0], out


def module_path(model: LensModel, linear: Module, plain: Module) -> str:
    """Where a linear map of the bridge stands in the plain model.

    Raises:
        UnsupportedModel: it has no place there, or several.
    """
    names = [name for name, module in wrapped_model(model).named_modules(remove_duplicate=False) if module is linear]
    known = dict(plain.named_modules())
    paths = {plain_name(name) for name in names} & known.keys()
    if len(paths) != 1:
        raise UnsupportedModel(
            f"the linear map {names[0] if names else type(linear).__name__} stands at {len(paths)} places of the "
            "Hugging Face model and should stand at one, so nothing can be baked into it"
        )
    return paths.pop()


def fold(linear: Module, here: Mapping[HookPoint, Write]) -> Folded:
    """The weight and bias with which ``linear`` does what ``here`` writes around it.

    Sums run in float64 and are rounded once. Where the map's output is written over, what it reads counts no more.
    """
    weight, bias = weight_of(linear).clone(), _bias_of(linear)
    total = torch.zeros(weight.shape[1], dtype=torch.float64) if bias is None else bias.cpu().double()
    for write in (write for point, write in here.items() if point.activation in READ):
        total = total + write.values[write.marked].double() @ weight.cpu()[write.marked].double()
        weight[write.marked.to(weight.device)] = 0
    for write in (write for point, write in here.items() if point.activation not in READ):
        total = torch.where(write.marked, write.values.double(), total)
        weight[:, write.marked.to(weight.device)] = 0
    needs_bias = bias is not None or bool(total.any())
    return Folded(weight, total.to(weight) if needs_bias else None)


def put(linear: Module, new: Folded) -> None:
    """Give a linear map its new weight and bias."""
    weight_of(linear).copy_(new.weight)
    bias = _bias_of(linear)
    if new.bias is not None:
        assert bias is not None
        bias.copy_(new.bias)


def _bias_of(linear: Module) -> Float[Tensor, " output"] | None:
    bias = linear.bias
    return bias.data if isinstance(bias, Tensor) else None
