"""Activations of a model on some inputs, aligned so that index ``t`` is the t-th real token of its row."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_ablation.models.forward import Inputs, forward
from lens_ablation.models.protocol import LensModel, input_device


def capture(
    model: LensModel,
    inputs: Inputs,
    names: Sequence[str],
    *,
    attention_mask: Bool[Tensor, "row pos"] | None = None,
) -> dict[str, Float[Tensor, "row ..."]]:
    """The untouched activations at hooks ``names``, from one forward pass without gradients.

    Raises:
        ValueError: the model has no hook of one of these names.
    """
    kept: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: object, *, name: str) -> None:
        kept[name] = activation.detach().clone()

    missing = [name for name in names if name not in model.hook_dict]
    if missing:
        raise ValueError(f"the model has no hook {missing[0]!r}; check_sites(model) shows those that are live")
    device = input_device(model)
    mask = None if attention_mask is None else attention_mask.to(device)
    with torch.inference_mode(), without_hooks(model):
        forward(
            model,
            inputs.to(device),
            attention_mask=mask,
            fwd_hooks=[(name, partial(keep, name=name)) for name in names],
        )
    silent = [name for name in names if name not in kept]
    if silent:
        raise ValueError(
            f"hook {silent[0]!r} exists and did not fire; for attention patterns load the model with eager attention"
        )
    return kept


@contextmanager
def without_hooks(model: LensModel) -> Iterator[None]:
    """Inside, hooks that are in place at the model's hook points do nothing, permanent ones excepted."""
    silenced = []
    for point in dict.fromkeys(model.hook_dict.values()):
        passing = [handle.hook.id for handle in point.fwd_hooks if not handle.is_permanent]
        if passing:
            held = point._forward_hooks
            silenced.append((point, held))
            point._forward_hooks = type(held)((key, fn) for key, fn in held.items() if key not in passing)
    try:
        yield
    finally:
        for point, held in silenced:
            point._forward_hooks = held


def token_positions(attention_mask: Bool[Tensor, "row pos"]) -> Int[Tensor, "row pos"]:
    """Position of each token counted from its row's first real token; 0 before it."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def align(
    stored: Float[Tensor, "row pos ..."], attention_mask: Bool[Tensor, "row pos"] | None
) -> Float[Tensor, "row pos ..."]:
    """The same activations with each row's first real token at index 0; what follows the last one is zero."""
    if attention_mask is None:
        return stored
    mask = attention_mask.to(stored.device)
    positions = token_positions(mask)
    aligned = torch.zeros_like(stored)
    row, pos = mask.nonzero(as_tuple=True)
    aligned[row, positions[row, pos]] = stored[row, pos]
    return aligned


def align_pattern(
    pattern: Float[Tensor, "row head query key"], attention_mask: Bool[Tensor, "row pos"] | None
) -> Float[Tensor, "row head query key"]:
    """A pattern with queries and keys counted from each row's first real token."""
    if attention_mask is None:
        return pattern
    by_query = align(pattern.permute(0, 2, 3, 1), attention_mask)
    by_key = align(by_query.transpose(1, 2), attention_mask)
    return by_key.permute(0, 3, 2, 1)
