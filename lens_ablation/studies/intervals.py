"""Confidence intervals of means over examples."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Interval(NamedTuple):
    """Lower and upper end of a confidence interval, in the unit of the values."""

    low: Float[Tensor, "..."]
    high: Float[Tensor, "..."]


def weighted_mean(
    values: Float[Tensor, "... example"], weights: Float[Tensor, " example"] | Int[Tensor, " example"]
) -> Float[Tensor, "..."]:
    """Mean over examples, each counted ``weights`` times."""
    w = weights.to(torch.float64)
    return ((values.to(torch.float64) * w).sum(dim=-1) / w.sum()).to(values.dtype)


def bootstrap_interval(
    values: Float[Tensor, "... example"],
    weights: Float[Tensor, " example"] | Int[Tensor, " example"],
    *,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of the weighted mean over examples.

    All rows share the same resamples, so that intervals of two rows can be compared.

    Raises:
        ValueError: ``confidence`` lies outside 0..1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    n = values.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n, (n_resamples, n), generator=generator)
    counts = torch.zeros(n_resamples, n, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(n_resamples, n, dtype=torch.float64)
    )
    weighted = counts * weights.to(torch.float64)
    weighted = weighted / weighted.sum(dim=1, keepdim=True).clamp(min=1e-12)
    tail = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    # rows in parts, so that a sweep over many sites does not hold all its resampled means at once
    ends = [
        torch.quantile(part.to(torch.float64) @ weighted.T, tail, dim=-1) for part in values.reshape(-1, n).split(4096)
    ]
    low, high = torch.cat(ends, dim=1).to(values.dtype).reshape(2, *values.shape[:-1])
    return Interval(low, high)
