"""Rows of weights as activations: the linear maps beside each hook, found and proved on a small forward pass."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import Module

from lens_ablation.errors import UnsupportedModel
from lens_ablation.models.anatomy import ACTIVATIONS, anatomy, probe_inputs
from lens_ablation.models.capture import without_hooks
from lens_ablation.models.fingerprint import weight_processing
from lens_ablation.models.forward import forward
from lens_ablation.models.protocol import FwdHook, LensModel

READ: Mapping[str, tuple[str, ...]] = {
    "ln1_out": ("q", "k", "v"),
    "z": (),
    "ln2_out": ("pre", "pre_linear"),
    "post": (),
}
"""Activations that linear maps read, and what those maps give; where nothing is named, it is one map."""

GIVEN = ("q", "k", "v", "attn_out", "pre", "pre_linear", "mlp_out")
"""Activations that are the output of one linear map."""

TOLERANCE = 1e-5
"""Most that an activation mask may differ from the same change of weights, over the largest logit."""

_EVERY = 3
"""The proof ablates every third coordinate."""

_GATED = ("pre", "pre_linear")


@dataclass(frozen=True, eq=False)
class RowMaps:
    """The linear maps of a model's blocks, by what they read and give.

    Attributes:
        readers: By activation and layer, the maps whose input it is.
        givers: By activation and layer, the maps whose output it is.
        shapes: By activation and layer, its size without rows and positions; hooks that did not fire are missing.
        others: Layer and shape ``[output, input]`` of maps whose output is at no hook.
        n_maps: How many linear maps ran.
    """

    readers: Mapping[tuple[str, int], tuple[Module, ...]]
    givers: Mapping[tuple[str, int], tuple[Module, ...]]
    shapes: Mapping[tuple[str, int], tuple[int, ...]]
    others: tuple[tuple[int, tuple[int, ...]], ...]
    n_maps: int


_found: WeakKeyDictionary[Any, RowMaps] = WeakKeyDictionary()
_refusals: WeakKeyDictionary[Any, dict[str, str]] = WeakKeyDictionary()


def row_maps(model: LensModel) -> RowMaps:
    """The linear maps beside each hook, found once by comparing what they read and give with what hooks show."""
    if model not in _found:
        _found[model] = _measure(model)
    return _found[model]


def require_rows(model: LensModel, activation: str) -> None:
    """Refuse an activation whose coordinates are, on this model, not the rows of weights that they stand for.

    Writing at the hook is compared, on a small batch, with the same change made at the linear maps themselves.

    Raises:
        UnsupportedModel: the weights were processed on loading, or the two differ; the message says how.
    """
    processing = weight_processing(model)
    if processing != "raw" and not _is_untouched_bridge(model):
        raise UnsupportedModel(
            f"the weights of this model were processed on loading ({processing}), so that their rows are others than "
            "the model's own. Load it with lens_ablation.load_model(name_or_path), which leaves weights as they are."
        )
    known = _refusals.setdefault(model, {})
    if activation not in known:
        known[activation] = _refusal(model, activation)
    if known[activation]:
        raise UnsupportedModel(known[activation])


def _is_untouched_bridge(model: LensModel) -> bool:
    """Whether the model is a bridge as loaded; value biases that are all zero are then the checkpoint's own."""
    return hasattr(model, "original_model") and not getattr(model, "compatibility_mode", False)


def unhooked_maps(model: LensModel) -> str:
    """What linear maps of the blocks give their output to no hook, in words; empty if there are none."""
    others = row_maps(model).others
    if not others:
        return ""
    layer, shape = others[0]
    return f"{len(others)} linear maps of this model (the first in layer {layer}, {shape[0]} outputs) show no hook"


def bias_of(model: LensModel, activation: str, layer: int) -> Float[Tensor, "*coordinate"]:
    """What the linear map that gives an activation adds to each of its coordinates, 0 without a bias.

    Raises:
        UnsupportedModel: no linear map of this model gives the activation.
    """
    shape = anatomy(model).coordinates(activation)
    if activation in GIVEN and _has_own_parameters(model):
        bias = _parameter_bias(model, activation, layer)
    else:
        maps = row_maps(model).givers.get((activation, layer), ())
        if len(maps) != 1:
            raise UnsupportedModel(
                f"{ACTIVATIONS[activation].format(layer)} of this model is the output of no linear map, so there is no "
                "bias to write. Use Zero() for activations that linear maps read."
            )
        bias = maps[0].bias
    if not isinstance(bias, Tensor):
        return torch.zeros(shape, dtype=next(iter(model.parameters())).dtype)
    return bias.detach().clone().reshape(shape)


def _measure(model: LensModel) -> RowMaps:
    blocks = _blocks(model)
    read: dict[tuple[int, Module], Tensor] = {}
    given: dict[tuple[int, Module], Tensor] = {}
    calls: dict[Module, int] = {}
    seen: dict[tuple[str, int], Tensor] = {}

    def keep_map(linear: Module, args: tuple[Any, ...], out: Tensor, *, layer: int) -> None:
        calls[linear] = calls.get(linear, 0) + 1
        read[layer, linear], given[layer, linear] = args[0].clone(), out.clone()

    def keep(activation: Tensor, hook: object, *, key: tuple[str, int]) -> None:
        seen[key] = activation.clone()

    keys = [(of, layer) for of in (*READ, *GIVEN) for layer in range(len(blocks))]
    names = {key: ACTIVATIONS[key[0]].format(key[1]) for key in keys}
    live = model.hook_dict
    pairs = [(name, partial(keep, key=key)) for key, name in names.items() if name in live]
    with ExitStack() as hooked:
        for layer, block in enumerate(blocks):
            for linear in dict.fromkeys(module for module in block.modules() if is_linear(module)):
                hooked.callback(linear.register_forward_hook(partial(keep_map, layer=layer)).remove)
        _run(model, pairs, small=True)
    single = {linear for linear, n in calls.items() if n == 1}

    def beside(key: tuple[str, int], tensors: Mapping[tuple[int, Module], Tensor]) -> tuple[Module, ...]:
        found = (entry for entry, tensor in tensors.items() if entry[0] == key[1] and _equal(tensor, seen[key]))
        return tuple(linear for _, linear in found if linear in single)

    readers = {key: beside(key, read) for key in seen if key[0] in READ}
    givers = {key: beside(key, given) for key in seen if key[0] in GIVEN}
    hooked_maps = {linear for maps in givers.values() for linear in maps}
    others = [(layer, linear) for layer, linear in given if linear not in hooked_maps]
    unhooked = tuple((layer, (given[layer, m].shape[-1], read[layer, m].shape[-1])) for layer, m in others)
    shapes = {key: tuple(activation.shape[2:]) for key, activation in seen.items()}
    return RowMaps(readers, givers, shapes, unhooked, len(given))


def _refusal(model: LensModel, activation: str) -> str:
    """Why rows cannot be ablated at an activation; empty if they can."""
    maps, sizes, hook = row_maps(model), anatomy(model), ACTIVATIONS[activation].format("L")
    layers = range(sizes.n_layers)
    silent = [layer for layer in layers if (activation, layer) not in maps.shapes]
    if silent:
        return (
            f"this model has no hook {ACTIVATIONS[activation].format(silent[0])} that fires. A TransformerBridge, as "
            "lens_ablation.load_model gives it, has one where its family has such an activation."
        )
    wanted = sizes.coordinates(activation)
    for layer in layers:
        if maps.shapes[activation, layer] != wanted:
            return f"{hook} has shape {maps.shapes[activation, layer]} in layer {layer}, and {wanted} is known of."
    if _has_own_parameters(model):
        return _refusal_of_parameters(model, activation)
    for layer in layers:
        if activation in GIVEN and len(maps.givers.get((activation, layer), ())) != 1:
            return (
                f"{hook} of this model is not the output of one linear map (in layer {layer}), so its coordinates are "
                "no rows of weights."
            )
        if activation in READ and not _is_read_by_its_maps(maps, activation, layer):
            return (
                f"{hook} of this model is not what the linear maps behind it read, and they alone (in layer {layer}; "
                "post-LN and parallel blocks are so), so its coordinates are no rows of their weights."
            )
    difference, change = _compared(model, activation, sizes.n_layers // 2, maps)
    if not difference <= TOLERANCE:
        return (
            f"writing {hook} of this model differs from the same change of the weights by {difference:.2g} of the "
            "largest logit: the activation is used elsewhere too."
        )
    return "" if change > 0 else f"writing {hook} of this model changes nothing, so its rows cannot be ablated there."


def _refusal_of_parameters(model: LensModel, activation: str) -> str:
    """The same for a model that holds its weights itself: layer outputs must be the bias where nothing is read."""
    read_by = {given: read for read, given in (("z", "attn_out"), ("post", "mlp_out"))}
    if activation not in read_by:
        return ""
    layer, seen = anatomy(model).n_layers // 2, list[Tensor]()
    nothing = (ACTIVATIONS[read_by[activation]].format(layer), lambda read, hook: torch.zeros_like(read))
    _run(model, [nothing, (ACTIVATIONS[activation].format(layer), lambda given, hook: seen.append(given))])
    bias = bias_of(model, activation, layer).to(seen[0])
    if bool(torch.isclose(seen[0], bias.expand_as(seen[0]), rtol=TOLERANCE, atol=TOLERANCE).all()):
        return ""
    return f"{ACTIVATIONS[activation].format('L')} of this model is not the output of one linear map."


def _is_read_by_its_maps(maps: RowMaps, activation: str, layer: int) -> bool:
    readers = maps.readers.get((activation, layer), ())
    named = [maps.givers.get((of, layer), ()) for of in READ[activation]]
    if not named:
        return len(readers) == 1
    return bool(readers) and set(readers) == {linear for given in named for linear in given}


def _compared(model: LensModel, activation: str, layer: int, maps: RowMaps) -> tuple[float, float]:
    """How far a mask at the hook is from one at the linear maps, over the largest logit, and how much it changes."""
    shape = anatomy(model).coordinates(activation)
    marked = torch.arange(torch.Size(shape).numel()).reshape(shape) % _EVERY == 0
    is_read = activation in READ
    value = torch.zeros(shape) if is_read else bias_of(model, activation, layer)
    at_hook = _run(model, [(ACTIVATIONS[activation].format(layer), partial(_write, marked, value))])
    chosen = maps.readers[activation, layer] if is_read else maps.givers[activation, layer]
    with _rows_cut(chosen, marked.flatten(), value.flatten(), is_read=is_read):
        at_maps = _run(model, [])
    clean = _run(model, [])
    largest = float(clean.abs().max().clamp(min=1e-12))
    return float((at_hook - at_maps).abs().max()) / largest, float((at_hook - clean).abs().max())


@contextmanager
def _rows_cut(
    linears: Sequence[Module], marked: Bool[Tensor, " width"], value: Float[Tensor, " width"], *, is_read: bool
) -> Iterator[None]:
    """Inside, these maps read or give ``value`` where ``marked``, as with rows of their weights set to zero."""

    def read(linear: Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_write(marked, value, args[0], None), *args[1:])

    def give(linear: Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        return _write(marked, value, out, None)

    with ExitStack() as hooked:
        for linear in linears:
            handle = linear.register_forward_pre_hook(read) if is_read else linear.register_forward_hook(give)
            hooked.callback(handle.remove)
        yield


def _write(marked: Tensor, value: Tensor, activation: Tensor, hook: object) -> Tensor:
    return torch.where(marked.to(activation.device), value.to(activation), activation)


def _run(model: LensModel, fwd_hooks: Sequence[FwdHook], *, small: bool = False) -> Tensor:
    inputs = probe_inputs(model) if small else probe_inputs(model, n_examples=3, n_pos=6)
    with torch.inference_mode(), without_hooks(model):
        return forward(model, inputs, fwd_hooks=fwd_hooks)


def _equal(one: Shaped[Tensor, "..."], other: Shaped[Tensor, "..."]) -> bool:
    """Whether two tensors hold the same values in the same order, in whatever shape."""
    return one.numel() == other.numel() and torch.equal(one.flatten(), other.flatten())


def is_linear(module: Module) -> bool:
    """Whether a module is a linear map with its weight in one matrix."""
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def weight_of(linear: Module) -> Float[Tensor, "input output"]:
    """The weight as ``input @ weight`` takes it, to be read or written: ``Linear`` stores the transpose."""
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return weight.data.T if isinstance(linear, torch.nn.Linear) else weight.data


def _blocks(model: LensModel) -> list[Module]:
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, torch.nn.ModuleList):
        raise UnsupportedModel("the model has no list of blocks, in which rows of weights could be looked for")
    return list(blocks)


def _has_own_parameters(model: LensModel) -> bool:
    """Whether blocks hold weights under the names of TransformerLens and no linear maps, as HookedTransformer does."""
    return row_maps(model).n_maps == 0 and isinstance(_parameter(model, 0, "attn.W_O"), Tensor)


def _parameter(model: LensModel, layer: int, name: str) -> Tensor | None:
    return dict(_blocks(model)[layer].named_parameters()).get(name)


def _parameter_bias(model: LensModel, activation: str, layer: int) -> Tensor | None:
    names = {
        "q": "attn.b_Q",
        "k": "attn.b_K",
        "v": "attn.b_V",
        "attn_out": "attn.b_O",
        "pre": "mlp.b_in",
        "mlp_out": "mlp.b_out",
    }
    if activation in _GATED and _parameter(model, layer, "mlp.W_gate") is not None:
        return None  # a gated MLP of TransformerLens adds its bias behind the product
    name = names.get(activation, "")
    # grouped queries keep the parameters of key and value heads under another name
    grouped = name.replace("b_", "_b_")
    return next((b for b in (_parameter(model, layer, n) for n in (grouped, name)) if b is not None), None)
