"""Which sites a pruning curve removes at each point: nested sets, the same for every method."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from lens_ablation.sites import SiteSet

Order = Literal["random_per_layer", "random"] | Float[Tensor, " site"]
"""``random_per_layer`` (the same share of every layer), ``random`` over all sites, or scores: highest go first."""

Rounding = Literal["total", "step"]
"""``total`` removes ``floor(fraction * width)`` sites; ``step`` adds ``floor(step * width)`` at each point, as the
paper does, so that the last point may leave some sites."""


def nested_removals(
    sites: SiteSet, fractions: Sequence[float], order: Order, seed: int, rounding: Rounding = "total"
) -> Bool[np.ndarray, "fraction site"]:
    """Flags ``[fraction, site]`` of what is removed; each row's set holds the one before it.

    Draws come from a private generator seeded here, so equal seeds give equal masks whatever ran before.

    Raises:
        ValueError: fractions do not rise within 0..1, or scores do not fit the sites.
    """
    _check_fractions(fractions)
    generator = np.random.default_rng(seed)
    removed = np.zeros((len(fractions), len(sites)), dtype=bool)
    for places in _queues(sites, order, generator):
        for row, n in enumerate(_counts(len(places), fractions, rounding)):
            removed[row, places[:n]] = True
    return removed


def _queues(sites: SiteSet, order: Order, generator: np.random.Generator) -> list[np.ndarray]:
    """Places of the sites in the order of their removal, one queue to a group that is emptied evenly."""
    if isinstance(order, Tensor):
        scores = order.detach().cpu().double().numpy()
        if scores.shape != (len(sites),):
            raise ValueError(f"scores have shape {scores.shape} for {len(sites)} sites; give one score to a site")
        if not np.isfinite(scores).all():
            raise ValueError("scores hold NaN or infinity; a removal order needs a finite score for every site")
        return [np.argsort(-scores, kind="stable")]
    if order == "random":
        return [generator.permutation(len(sites))]
    if order != "random_per_layer":
        raise ValueError(f"order must be 'random_per_layer', 'random' or scores [site], got {order!r}")
    layers = sites.addresses[:, 0]
    return [generator.permutation(np.flatnonzero(layers == layer)) for layer in sites.layers]


def _counts(width: int, fractions: Sequence[float], rounding: Rounding) -> list[int]:
    if rounding == "total":
        return [int(fraction * width + 1e-9) for fraction in fractions]
    if rounding != "step":
        raise ValueError(f"rounding must be 'total' or 'step', got {rounding!r}")
    steps = np.diff([0.0, *fractions])
    return np.cumsum([int(step * width + 1e-9) for step in steps]).tolist()


def _check_fractions(fractions: Sequence[float]) -> None:
    if not fractions or min(fractions) < 0 or max(fractions) > 1 or list(fractions) != sorted(fractions):
        raise ValueError(f"fractions must rise within 0..1, got {list(fractions)}")
