"""Packed masks as numbers, some at a time, and their moments: what regressions read."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_ablation.engine.removals import Packed

AT_ONCE = 2**28
"""Bytes of numbers unpacked at once."""

_MOST_ROWS = 2048


def row_chunks(
    removed: Packed, mean: Float[Tensor, " component"] | None = None, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[slice, Float[Tensor, "chunk component"]]]:
    """Keep masks, 1 where a component is kept, less their mean if one is given; some masks at a time."""
    n_masks, n_components = removed.shape
    step = max(1, min(_MOST_ROWS, AT_ONCE // (n_components * dtype.itemsize)))
    kept = 1.0 if mean is None else 1 - mean.to(dtype)
    for start in range(0, n_masks, step):
        rows = slice(start, min(start + step, n_masks))
        flags = np.unpackbits(removed.bits[rows], axis=1, count=n_components)
        yield rows, torch.from_numpy(flags).to(dtype).neg_().add_(kept)


def column_chunks(
    removed: Packed, mean: Float[Tensor, " component"]
) -> Iterator[tuple[slice, Float[Tensor, "mask chunk"]]]:
    """Keep masks less their mean, some components at a time."""
    n_masks, n_components = removed.shape
    step = 8 * max(1, AT_ONCE // (8 * n_masks * mean.itemsize))
    for start in range(0, n_components, step):
        columns = slice(start, min(start + step, n_components))
        bits = removed.bits[:, start // 8 : -(-columns.stop // 8)]
        flags = np.unpackbits(bits, axis=1, count=columns.stop - start)
        yield columns, torch.from_numpy(flags).to(mean.dtype).neg_().add_(1 - mean[columns])


def keep_mean(removed: Packed) -> Float[Tensor, " component"]:
    """Share of the masks that keep each component."""
    total = torch.zeros(removed.n_sites, dtype=torch.float64)
    for _, x in row_chunks(removed):
        total += x.sum(dim=0).double()
    return (total / removed.shape[0]).float()


def column_square(n_masks: int, mean: Float[Tensor, " component"]) -> float:
    """Mean sum of squares of a centred mask column."""
    return float(n_masks * (mean * (1 - mean)).mean().clamp(min=1e-6))
