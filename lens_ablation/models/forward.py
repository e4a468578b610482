"""One forward pass of any model, with hooks and attention mask, the same way for every family."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_ablation.errors import BadActivation
from lens_ablation.models.protocol import FwdHook, LensModel

Inputs = Int[Tensor, "row pos"] | Float[Tensor, "row channel height width"]
Mask = Bool[Tensor, "row pos"]


def forward(
    model: LensModel,
    inputs: Inputs,
    *,
    attention_mask: Mask | None = None,
    fwd_hooks: Sequence[FwdHook] = (),
) -> Float[Tensor, "row read d_vocab"] | Float[Tensor, "row n_classes"]:
    """Logits of the model on ``inputs`` with ``fwd_hooks`` in place, without a key-value cache.

    Raises:
        BadActivation: the model returned something that is not a tensor of logits.
    """
    options: dict[str, Any] = {}
    if attention_mask is not None and not bool(attention_mask.all()):
        options["attention_mask"] = attention_mask.to(device=inputs.device, dtype=inputs.dtype)
    if "original_model" in dir(type(model)) and inputs.ndim == 2:
        options["use_cache"] = False
    if fwd_hooks:
        logits = model.run_with_hooks(inputs, fwd_hooks=list(fwd_hooks), return_type="logits", **options)
    else:
        logits = model(inputs, return_type="logits", **options)
    if not isinstance(logits, Tensor):
        raise BadActivation(f"the model returned {type(logits).__name__} where logits were expected")
    return logits


@contextmanager
def hooks_installed(hook_points: Mapping[str, Any], fwd_hooks: Sequence[FwdHook]) -> Iterator[None]:
    """``model.hooks`` for hook points that are known by name, at a third of its time and without its records.

    Args:
        hook_points: The model's ``hook_dict``.
        fwd_hooks: ``(hook name, function)`` pairs.
    """
    with ExitStack() as installed:
        for name, function in fwd_hooks:
            point = hook_points[name]
            point.add_hook(function)
            installed.callback(point.fwd_hooks.pop().hook.remove)
        yield
