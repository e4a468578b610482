"""The ordinary Hugging Face model behind a bridge: its copy, and its logits beside those of the bridge."""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel

from lens_ablation.errors import BadActivation, UnsupportedModel
from lens_ablation.models.anatomy import probe_inputs
from lens_ablation.models.fingerprint import named_weights, weight_processing
from lens_ablation.models.forward import forward
from lens_ablation.models.protocol import FwdHook, LensModel, input_device

ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""By dtype, the largest difference of logits, relative to the largest logit, that counts as rounding."""

WRAPPER = "_original_component"
"""What a bridge adds to the name of each module that it wraps."""


@dataclass(frozen=True)
class Difference:
    """How far two models' logits are apart: ``largest``, and as a share of the largest logit."""

    largest: float
    relative: float


def wrapped_model(model: LensModel) -> PreTrainedModel:
    """The Hugging Face model that a bridge wraps.

    Raises:
        UnsupportedModel: there is none.
    """
    root = getattr(model, "original_model", None)
    if not isinstance(root, PreTrainedModel):
        raise UnsupportedModel(
            f"{type(model).__name__} holds no Hugging Face model that an ablation could be baked into. Load the "
            "checkpoint with lens_ablation.load_model(name_or_path), which gives a TransformerBridge."
        )
    return root


def plain_name(name: str) -> str:
    """The name of a wrapped module or weight in the checkpoint."""
    return name.replace(f"{WRAPPER}.", "").removesuffix(f".{WRAPPER}")


def skeleton(model: LensModel, switches: Collection[str] = ()) -> PreTrainedModel:
    """The modules of the Hugging Face model without memory for weights, with these settings switched on."""
    with torch.device("meta"):
        return _built(wrapped_model(model), switches)


def bias_switches(model: LensModel, maps: Collection[str]) -> tuple[str, ...]:
    """Settings of the model's configuration that give each of these linear maps a bias.

    Args:
        model: A bridge.
        maps: Module paths in the Hugging Face model.

    Raises:
        UnsupportedModel: the architecture has no bias there.
    """
    config = wrapped_model(model).config
    known = [name for name, value in vars(config).items() if value is False and "bias" in name]
    chosen: tuple[str, ...] = ()
    plain = skeleton(model)
    for path in maps:
        if _has_bias(plain, path):
            continue
        trials = {(*chosen, name): skeleton(model, (*chosen, name)) for name in known}
        found = [switches for switches, trial in trials.items() if _has_bias(trial, path)]
        if not found:
            raise UnsupportedModel(
                f"{path} has no bias, and {type(config).__name__} has no setting that gives it one, so no constant "
                "but zero can be baked into its weights. Bake lens_ablation.Zero(), which needs no bias, or run the "
                "model under lens_ablation.ablate(...)."
            )
        chosen, plain = found[0], trials[found[0]]
    return chosen


def plain_copy(model: LensModel, switches: Collection[str] = ()) -> PreTrainedModel:
    """A new Hugging Face model with the weights of a bridge, which shares no memory with it.

    Args:
        model: A bridge.
        switches: Settings from ``bias_switches``; the biases that they add are zero.

    Raises:
        UnsupportedModel: the new model does not give the bridge's logits, as with processed weights.
    """
    root = wrapped_model(model)
    with torch.random.fork_rng(devices=[]):
        plain = _built(root, switches)
    added = set(dict(plain.named_parameters())) - set(dict(skeleton(model).named_parameters()))
    _fill(plain, dict(named_weights(model)), added)
    held = {plain_name(name): buffer for name, buffer in root.named_buffers(remove_duplicate=False)}
    for name, buffer in plain.named_buffers():
        if name in held:
            buffer.data = held[name].detach().clone()
    if plain.can_generate():
        plain.generation_config = copy.deepcopy(root.generation_config)
    plain.eval()
    _require_same(model, plain)
    return plain


def difference(
    model: LensModel,
    plain: Module,
    inputs: Tensor,
    attention_mask: Tensor | None = None,
    fwd_hooks: Sequence[FwdHook] = (),
) -> Difference:
    """How far a plain model's logits are from those of a bridge with hooks in place, at real tokens.

    The plain model is given what the bridge gives to the model that it wraps, positions of padded rows included.

    Raises:
        BadActivation: a logit is not finite.
    """
    calls: list[tuple[tuple[Any, ...], Mapping[str, Any]]] = []
    mask = None if attention_mask is None else attention_mask.bool()
    handle = wrapped_model(model).register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    try:
        with torch.no_grad():
            hooked = forward(model, inputs.to(input_device(model)), attention_mask=mask, fwd_hooks=fwd_hooks)
    finally:
        handle.remove()
    if len(calls) != 1:
        raise UnsupportedModel(f"a forward pass of the bridge ran its model {len(calls)} times and should run it once")
    with torch.no_grad():
        baked: Tensor = plain(*calls[0][0], **calls[0][1]).logits
    if mask is not None:
        hooked, baked = hooked[mask.to(hooked.device)], baked[mask.to(baked.device)]
    if not bool(torch.isfinite(hooked).all() and torch.isfinite(baked).all()):
        raise BadActivation(
            "the logits of these inputs are not finite, so they cannot be compared. Eager attention gives NaN for "
            "rows padded on the left in float64: pad on the right, or use float32."
        )
    largest, scale = (hooked - baked).abs().max(), hooked.abs().max()
    return Difference(float(largest), float(largest) / max(float(scale), torch.finfo(hooked.dtype).tiny))


def rounding(model: LensModel) -> float:
    """The relative difference of logits that counts as rounding in the model's dtype."""
    dtype = next(iter(model.parameters())).dtype
    if dtype not in ROUNDING:
        raise UnsupportedModel(f"weights of {dtype} cannot be baked into; load the model in float32")
    return ROUNDING[dtype]


def _built(root: PreTrainedModel, switches: Collection[str]) -> PreTrainedModel:
    config = copy.deepcopy(root.config)
    config.output_attentions = False  # bridges ask for patterns; the checkpoint need not
    for name in switches:
        setattr(config, name, True)
    return type(root)(config)


def _has_bias(plain: PreTrainedModel, path: str) -> bool:
    return getattr(plain.get_submodule(path), "bias", None) is not None


def _fill(plain: PreTrainedModel, weights: Mapping[str, Tensor], added: Collection[str]) -> None:
    filled: dict[Tensor, str] = {}
    like = next(iter(weights.values()))
    for name, parameter in plain.named_parameters(remove_duplicate=False):
        if name in added:
            parameter.data = torch.zeros_like(parameter.data, dtype=like.dtype, device=like.device)
            continue
        if name not in weights or weights[name].shape != parameter.shape:
            raise _no_checkpoint(f"it holds no weight {name} of shape {tuple(parameter.shape)}")
        if parameter not in filled:
            parameter.data = weights[name].detach().clone()
            filled[parameter] = name
        elif not torch.equal(weights[name], weights[filled[parameter]]):
            raise _no_checkpoint(f"{name} and {filled[parameter]} are one weight in it and differ here")


def _require_same(model: LensModel, plain: PreTrainedModel) -> None:
    found = difference(model, plain, probe_inputs(model))
    if found.relative > rounding(model):
        processing = weight_processing(model)
        raise _no_checkpoint(f"its logits differ by {found.largest:.2g} (weight processing: {processing})")


def _no_checkpoint(why: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"no Hugging Face checkpoint stands for this bridge as it is: {why}. Load the model with "
        "lens_ablation.load_model(name_or_path), which leaves weights unprocessed."
    )
