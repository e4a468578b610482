"""Gradients of a metric with respect to how much of each site is kept."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_ablation.ablation import Firings, removal_masks, repeat_rows, replacing_hooks
from lens_ablation.data.metrics import Metric
from lens_ablation.engine.part import Part
from lens_ablation.models.forward import forward
from lens_ablation.models.protocol import FwdHook, LensModel, modules_in
from lens_ablation.sites import HookPoint, SiteSet

Shares = Sequence[Float[np.ndarray, "variant _"]]
"""How much of each site a variant removes, 0 to 1, one array to each set of sites."""


class GateGradients(NamedTuple):
    """The metric of examples under some variants, and its slopes in how much of each site is kept."""

    values: Float[Tensor, "variant example"]
    slopes: list[Float[Tensor, "variant example _"]]


def gate_gradients(part: Part, shares: Shares) -> GateGradients:
    """The metric under each variant, and its gradient with respect to the keep gate of every site.

    A gate keeps a share ``g`` of a site: ``activation * g + replacement * (1 - g)``. One forward and one backward
    pass give the slopes at all sites.

    Args:
        part: Examples prepared with ``gradients=True``.
        shares: What each variant removes of each site, ``1 - g``.

    Raises:
        HookDidNotFire: an ablation fired a wrong number of times.
    """
    n_variants = len(shares[0])
    with torch.enable_grad(), frozen_weights(part.model):
        leaves = [_leaves(part, sites, rows) for (sites, _), rows in zip(part.sets, shares, strict=True)]
        firings = Firings()
        pairs = _hooks(part, leaves, n_variants, firings)
        values = _values(part, pairs, n_variants)
        firings.check(1)
        flat = [leaf for by_point in leaves for leaf in by_point.values()]
        found = iter(torch.autograd.grad(values.sum(), flat, materialize_grads=True, allow_unused=True))
    slopes = [
        _at_sites(sites, {point: next(found) for point in by_point})
        for (sites, _), by_point in zip(part.sets, leaves, strict=True)
    ]
    shape = (n_variants, part.n_examples)
    return GateGradients(values.detach().reshape(shape), [slope.reshape(*shape, -1) for slope in slopes])


@contextmanager
def frozen_weights(model: LensModel) -> Iterator[None]:
    """Inside, no weight asks for a gradient, so that passes keep nothing for it; after it, modules hold no graph."""
    asking = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in asking:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in asking:
            weight.requires_grad_(True)
        # some bridges keep a pattern of their last pass, with which a model could not be copied
        for module in modules_in(model, getattr(model, "original_model", None)):
            for name, value in vars(module).items():
                if isinstance(value, Tensor) and value.grad_fn is not None:
                    vars(module)[name] = value.detach()


def _leaves(
    part: Part, sites: SiteSet, shares: Float[np.ndarray, "variant site"]
) -> dict[HookPoint, Float[Tensor, "row ..."]]:
    """By hook, the share of each coordinate that each row ``[variant, example]`` removes."""
    dtype = next(iter(part.model.parameters())).dtype
    shaped = removal_masks(sites, np.ones((1, len(sites)), dtype=bool), part.sizes)
    leaves: dict[HookPoint, Tensor] = {}
    for point, mask in shaped.items():
        here = sites.addresses[:, 0] == point.layer
        filled = torch.zeros(len(shares), *mask.shape[1:], dtype=dtype)
        given = torch.from_numpy(np.ascontiguousarray(shares[:, here])).to(dtype)
        index = tuple(torch.from_numpy(axis) for axis in sites.addresses[here, 1:].T)
        if index:
            filled[(slice(None), *index)] = given
        else:
            filled = given[:, 0]
        leaf = filled.repeat_interleave(part.n_examples, dim=0).to(part.device)
        leaves[point] = leaf.requires_grad_(True)
    return leaves


def _hooks(
    part: Part, leaves: Sequence[Mapping[HookPoint, Tensor]], n_variants: int, firings: Firings
) -> list[FwdHook]:
    rows = repeat_rows(part.rows, n_variants, part.n_examples)
    pairs: list[FwdHook] = []
    parts = zip(part.sets, part.replacements, leaves, strict=True)
    # values first: a pattern is realised with those that its head then has
    for (_, method), replacement, by_point in sorted(parts, key=lambda entry: entry[0][0].kind != "v"):
        pairs += replacing_hooks(dict(by_point), replacement, rows, firings, positional=method.positional)
    return pairs


def _values(part: Part, pairs: Sequence[FwdHook], n_variants: int) -> Float[Tensor, " row"]:
    """The metric of every row, differentiable."""
    if not part.path.prefix:
        batch = part.repeated(slice(0, n_variants * part.n_examples))
        inputs = part.inputs.repeat(n_variants, *([1] * (part.inputs.ndim - 1)))
        mask = None if batch.attention_mask is None else batch.attention_mask.to(part.device)
        assert isinstance(batch.metric, Metric)
        return batch.metric(forward(part.model, inputs, attention_mask=mask, fwd_hooks=pairs), batch)
    first = min(layer for sites, _ in part.sets for layer in sites.layers)
    residual = part.clean.entering(first).repeat(n_variants, 1, 1)
    with part.model.hooks(fwd_hooks=list(pairs)):
        for layer in range(first, part.sizes.n_layers):
            with part.shortcuts(layer, n_variants, n_variants if layer == first else 0):
                residual = part.clean.calls(n_variants)[layer](part.clean.blocks[layer], residual)
    return torch.cat(list(part.tail_scores(residual)))


def _at_sites(sites: SiteSet, gradients: Mapping[HookPoint, Tensor]) -> Float[Tensor, "row site"]:
    """Slopes in the keep gates of the sites, in their order: the gradients in what is removed, turned round."""
    columns: list[Tensor] = []
    places: list[np.ndarray] = []
    for point, gradient in gradients.items():
        here = np.flatnonzero(sites.addresses[:, 0] == point.layer)
        index = tuple(torch.from_numpy(axis) for axis in sites.addresses[here, 1:].T)
        columns.append(-(gradient[(slice(None), *index)] if index else gradient[:, None]).cpu())
        places.append(here)
    order = np.argsort(np.concatenate(places))
    return torch.cat(columns, dim=1)[:, torch.from_numpy(order)]
