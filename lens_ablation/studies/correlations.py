"""Pearson's and Spearman's correlations, as all studies take them."""

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.stats import rankdata
from torch import Tensor


def pearson(
    x: Float[Tensor, "..."], y: Float[Tensor, "..."], *, dim: int = -1, constant: float = float("nan")
) -> Float64[Tensor, "..."]:
    """Pearson correlation along one axis, in float64.

    Args:
        x: Values.
        y: As many others.
        dim: The axis, which the result lacks.
        constant: What it is where one of both does not vary.
    """
    a, b = (v.double() - v.double().mean(dim=dim, keepdim=True) for v in (x, y))
    scale = a.norm(dim=dim) * b.norm(dim=dim)
    return torch.where(scale > 0, (a * b).sum(dim=dim) / scale.where(scale > 0, 1.0), constant)


def spearman(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation; NaN where one of the two never changes."""
    first, second = (torch.from_numpy(rankdata(v)) for v in (a, b))
    return float(pearson(first, second))
