"""Cutting a batch of activations into pieces whose intermediate results stay in fast memory."""

from collections.abc import Iterator

from jaxtyping import Bool, Float
from torch import Tensor

VALUES_ON_CPU = 2**18
"""Values in a block on the CPU: its float64 copy (2 MiB) about fills a core's cache."""

VALUES_ON_ACCELERATOR = 2**24
"""Values in a block elsewhere, where only memory limits it."""


def blocks(
    values: Float[Tensor, "sample coordinate"],
    valid: Bool[Tensor, " sample"] | Bool[Tensor, "sample coordinate"] | None = None,
    copies: int = 1,
) -> Iterator[tuple[Float[Tensor, "part coordinate"], Bool[Tensor, "part coordinate"] | None]]:
    """Consecutive samples of a batch, with a mask only where whole samples could not simply be left out.

    Args:
        values: Activations, one row to a sample.
        valid: True where a sample, or a value, counts; ``None`` for all.
        copies: Numbers that the caller makes of each value.
    """
    values = values.detach()
    if valid is not None and valid.ndim == 1:
        values, valid = values[valid], None
    budget = VALUES_ON_CPU if values.device.type == "cpu" else VALUES_ON_ACCELERATOR
    step = max(1, budget // (max(1, values.shape[1]) * copies))
    for start in range(0, values.shape[0], step):
        part = slice(start, start + step)
        yield values[part], None if valid is None else valid[part]
