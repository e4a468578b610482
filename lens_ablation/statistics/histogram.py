"""Streaming histograms: how often each coordinate's values fell into equal bins of a known range."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float32, Int, Int32
from torch import Tensor

from lens_ablation.errors import BadActivation
from lens_ablation.statistics.blocks import blocks

MOST_SAMPLES = 2**31 - 1
"""Most samples that a histogram counts: its counts are 32-bit integers."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Histogram:
    """Counts of values in equal bins between two bounds, for each coordinate.

    Attributes:
        lowest: Left edge of the first bin.
        highest: Right edge of the last bin, which includes it.
        counts: Values in each bin.
    """

    lowest: Float32[Tensor, "*coordinate"]
    highest: Float32[Tensor, "*coordinate"]
    counts: Int32[Tensor, "*coordinate bin"]

    @property
    def bins(self) -> int:
        """Number of bins."""
        return self.counts.shape[-1]

    @property
    def bin_width(self) -> Float32[Tensor, "*coordinate"]:
        """Width of a bin in the activation's unit: the resolution of a peak; 0 for a constant."""
        return (self.highest - self.lowest) / self.bins

    @property
    def edges(self) -> Float32[Tensor, "*coordinate edge"]:
        """Bin edges, one more than there are bins."""
        steps = torch.arange(self.bins + 1, dtype=torch.float32)
        return self.lowest[..., None] + self.bin_width[..., None] * steps

    @property
    def centres(self) -> Float32[Tensor, "*coordinate bin"]:
        """Bin centres."""
        steps = torch.arange(self.bins, dtype=torch.float32) + 0.5
        return self.lowest[..., None] + self.bin_width[..., None] * steps

    def centre_of(self, index: Int[Tensor, "*coordinate"]) -> Float32[Tensor, "*coordinate"]:
        """Centre of one bin of each coordinate: ``lowest + bin_width * (index + 0.5)``."""
        return self.lowest + self.bin_width * (index.float() + 0.5)

    def merge(self, other: "Histogram") -> "Histogram":
        """Counts of both sets of values, which must have been counted between the same bounds.

        Raises:
            ValueError: bounds or bins differ, or there are too many samples.
        """
        same = self.counts.shape == other.counts.shape and all(
            torch.equal(getattr(self, bound), getattr(other, bound)) for bound in ("lowest", "highest")
        )
        if not same:
            raise ValueError(
                "histograms counted between different bounds cannot be merged exactly. Measure the bounds of "
                "all shards first, with collect_statistics(..., histograms=False) and merge, and hand what you "
                "got to each shard as collect_statistics(..., ranges=merged)."
            )
        counts = self.counts.long() + other.counts
        if counts.numel() and int(counts.sum(-1).max()) > MOST_SAMPLES:
            raise ValueError(f"a histogram counts at most {MOST_SAMPLES} samples; use fewer tokens")
        return Histogram(lowest=self.lowest, highest=self.highest, counts=counts.int())

    def reshape(self, shape: tuple[int, ...]) -> "Histogram":
        """The same numbers with the coordinates arranged in ``shape``, on the CPU."""
        return Histogram(
            lowest=self.lowest.cpu().reshape(shape),
            highest=self.highest.cpu().reshape(shape),
            counts=self.counts.cpu().reshape(*shape, self.bins),
        )


class StreamingHistogram:
    """Counts of a stream of batches between bounds that are known beforehand.

    With bounds ``a``, ``b`` and ``B`` bins a value ``x`` falls into bin ``floor((x - a) * B / (b - a))``,
    computed in float32, and ``x = b`` into the last one: ``torch.histc`` on all values at once gives the same
    counts, whatever the batches and the dtype of the activations. Where ``a = b`` all values go to
    the middle bin, as ``torch.histc`` has it, which counts between ``a - 1`` and ``a + 1`` then.

    Args:
        name: Name of the hook, for messages.
        lowest: Left bounds.
        highest: Right bounds.
        bins: Number of bins.
        outside: ``refuse`` values outside the bounds, or ``skip`` them.

    Raises:
        BadActivation: the bounds are so far apart that float32 cannot count between them.

    Example:
        >>> import torch
        >>> from lens_ablation.statistics.histogram import StreamingHistogram
        >>> stream = StreamingHistogram("blocks.0.mlp.hook_post", torch.zeros(1), torch.ones(1), bins=4)
        >>> stream.update(torch.tensor([[0.1], [0.2], [1.0]]))
        >>> stream.histogram.counts.tolist()
        [[2, 0, 0, 1]]
    """

    def __init__(
        self,
        name: str,
        lowest: Float32[Tensor, " coordinate"],
        highest: Float32[Tensor, " coordinate"],
        bins: int,
        *,
        outside: Literal["refuse", "skip"] = "refuse",
    ):
        if not bool(((highest - lowest) * bins).isfinite().all()):
            raise BadActivation(
                f"{name} has activations too far apart for a float32 histogram (up to "
                f"{float((highest.double() - lowest.double()).max()):.3g}). Collect with histograms=False."
            )
        self.name, self.lowest, self.highest, self.bins, self.outside = name, lowest, highest, bins, outside
        varies = highest > lowest
        self._left = lowest.where(varies, lowest - 1)
        width = highest.where(varies, highest + 1) - self._left
        self._width = width.where(width > 0, 1.0)
        self._first_bin = torch.arange(len(lowest), device=lowest.device) * bins
        self._counts = torch.zeros(len(lowest) * bins, dtype=torch.int32, device=lowest.device)
        self._one = torch.ones((), dtype=torch.int32, device=lowest.device)
        self._n_samples = 0

    @property
    def histogram(self) -> Histogram:
        """Counts of everything seen so far."""
        counts = self._counts.reshape(-1, self.bins)
        return Histogram(lowest=self.lowest, highest=self.highest, counts=counts)

    def update(
        self,
        values: Float[Tensor, "sample coordinate"],
        valid: Bool[Tensor, " sample"] | Bool[Tensor, "sample coordinate"] | None = None,
    ) -> None:
        """Count a batch of values, of which only the ``valid`` ones count.

        Raises:
            BadActivation: a value that counts is not finite, or lies outside the bounds.
            ValueError: there are more samples than 32-bit counts hold.
        """
        self._n_samples += len(values)
        if self._n_samples > MOST_SAMPLES:
            raise ValueError(f"a histogram counts at most {MOST_SAMPLES} samples; use fewer tokens")
        for block, mask in blocks(values, valid):
            block = block.float()
            if mask is not None:
                block = block.where(mask, self.lowest)
            inside = self._inside(block)
            counted = inside if mask is None else mask if inside is None else inside & mask
            index = (block - self._left).mul_(self.bins).div_(self._width).to(torch.int64)
            index.clamp_(0, self.bins - 1).add_(self._first_bin)
            ones = self._one.expand(index.numel()) if counted is None else counted.int().reshape(-1)
            self._counts.scatter_add_(0, index.reshape(-1), ones)

    def _inside(self, block: Float32[Tensor, "part coordinate"]) -> Bool[Tensor, "part coordinate"] | None:
        """Which values lie between the bounds; ``None`` for all."""
        if self.outside == "skip":
            return (block >= self.lowest) & (block <= self.highest)
        # a comparison with NaN is false, so NaN does not pass either
        fits = (block.amin(0) >= self.lowest) & (block.amax(0) <= self.highest)
        if not bool(fits.all()):
            where = int((~fits).nonzero()[0, 0])
            found, low, high = block[:, where], float(self.lowest[where]), float(self.highest[where])
            raise BadActivation(
                f"{self.name} holds {float(found.min()):.6g}..{float(found.max()):.6g} at coordinate {where}, "
                f"outside the bounds {low:.6g}..{high:.6g} measured before. The data or the model changed "
                "between two passes: turn off dropout, augmentation and shuffling, and collect again."
            )
        return None


def first_maximum(
    scores: Float[Tensor, "*coordinate bin"] | Int[Tensor, "*coordinate bin"],
) -> Int[Tensor, "*coordinate"]:
    """Index of the largest entry of each row, the lowest of several (``torch.argmax`` leaves that open)."""
    n = scores.shape[-1]
    index = torch.arange(n, device=scores.device)
    return index.where(scores == scores.amax(-1, keepdim=True), n - 1).amin(-1)
