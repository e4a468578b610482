"""Streaming moments: mean, variance, skewness and kurtosis of each coordinate, with no value kept.

Each batch gives float64 power sums about its own mean, which become central moments and are merged by the
pairwise formulas of Chan et al. and Pébay. For any batching, mean, variance and kurtosis agree with the float64
formulas on all values at once to 1e-10 of their size, and skewness to 1e-10 of the larger of 1 and its size, as
long as the mean is no more than 1000 standard deviations from 0.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from lens_ablation.errors import BadActivation
from lens_ablation.statistics.blocks import blocks


@dataclass(frozen=True, eq=False, kw_only=True)
class Moments:
    """Sums behind the moments of each coordinate, which two measurements can be merged by.

    Attributes:
        count: How many values were seen.
        centre: Their mean; 0 where there were none.
        m2: Sum of squared deviations from the mean; ``m3`` and ``m4`` of the third and fourth powers.
        minimum: Smallest value; infinity where there were none.
        maximum: Largest value; minus infinity where there were none.
        zeros: How many values were exactly 0.

    Reference:
        Pébay, *Formulas for robust, one-pass parallel computation of covariances and arbitrary-order
        statistical moments*, Sandia report SAND2008-6212, 2008.
    """

    count: Int[Tensor, "*coordinate"]
    centre: Float64[Tensor, "*coordinate"]
    m2: Float64[Tensor, "*coordinate"]
    m3: Float64[Tensor, "*coordinate"]
    m4: Float64[Tensor, "*coordinate"]
    minimum: Float64[Tensor, "*coordinate"]
    maximum: Float64[Tensor, "*coordinate"]
    zeros: Int[Tensor, "*coordinate"]

    @property
    def mean(self) -> Float64[Tensor, "*coordinate"]:
        """Mean, NaN where no value was seen."""
        return self.centre.where(self.count > 0, torch.nan)

    @property
    def variance(self) -> Float64[Tensor, "*coordinate"]:
        """Mean squared deviation (division by the count), 0 for a constant, NaN where no value was seen."""
        return self.m2.where(self.minimum < self.maximum, 0.0) / self.count

    @property
    def skewness(self) -> Float64[Tensor, "*coordinate"]:
        """Third standardised moment, NaN for a constant."""
        sd = self._spread
        return self.m3 / self.count / sd / sd / sd

    @property
    def kurtosis(self) -> Float64[Tensor, "*coordinate"]:
        """Fourth standardised moment, 3 for a Gaussian and 6 for a Laplace shape, NaN for a constant."""
        sd = self._spread
        return self.m4 / self.count / sd / sd / sd / sd

    @property
    def _spread(self) -> Float64[Tensor, "*coordinate"]:
        sd = self.variance.sqrt()
        return sd.where(sd > 0, torch.nan)

    @property
    def zero_share(self) -> Float64[Tensor, "*coordinate"]:
        """Share of values that are exactly 0, NaN where no value was seen."""
        return self.zeros.double() / self.count

    @property
    def span(self) -> tuple[Float[Tensor, "*coordinate"], Float[Tensor, "*coordinate"]]:
        """Smallest and largest value in float32, as histograms count them; 0 where no value was seen."""
        seen = self.count > 0
        return self.minimum.where(seen, 0.0).float(), self.maximum.where(seen, 0.0).float()

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets of values together.

        Raises:
            ValueError: the two are not about the same number of coordinates.
        """
        if self.count.shape != other.count.shape:
            raise ValueError(
                f"moments of shapes {tuple(self.count.shape)} and {tuple(other.count.shape)} cannot be merged"
            )
        a, b = self.count.double(), other.count.double()
        n = (a + b).clamp(min=1)
        p, q, d = a / n, b / n, other.centre - self.centre
        both = a * q
        return Moments(
            count=self.count + other.count,
            centre=self.centre + d * q,
            m2=self.m2 + other.m2 + d**2 * both,
            m3=self.m3 + other.m3 + d**3 * both * (p - q) + 3 * d * (p * other.m2 - q * self.m2),
            m4=self.m4
            + other.m4
            + d**4 * both * (p * p - p * q + q * q)
            + 6 * d**2 * (p * p * other.m2 + q * q * self.m2)
            + 4 * d * (p * other.m3 - q * self.m3),
            minimum=torch.minimum(self.minimum, other.minimum),
            maximum=torch.maximum(self.maximum, other.maximum),
            zeros=self.zeros + other.zeros,
        )

    def reshape(self, shape: tuple[int, ...]) -> "Moments":
        """The same numbers with the coordinates arranged in ``shape``, on the CPU."""
        return Moments(**{f.name: getattr(self, f.name).cpu().reshape(shape) for f in fields(self)})


def batch_moments(
    values: Float[Tensor, "sample coordinate"],
    valid: Bool[Tensor, " sample"] | Bool[Tensor, "sample coordinate"] | None = None,
) -> Moments:
    """Moments of one batch, from float64 power sums about the mean of its first block."""
    n = values.shape[1]
    counts, zeros = (torch.zeros(n, dtype=torch.int64, device=values.device) for _ in range(2))
    sums = torch.zeros(4, n, dtype=torch.float64, device=values.device)
    lowest, highest = torch.full_like(sums[0], torch.inf), torch.full_like(sums[0], -torch.inf)
    about: Tensor | None = None
    for block, mask in blocks(values, valid):
        exact = block.double()
        seen = torch.full_like(counts, len(exact)) if mask is None else mask.sum(0)
        counts += seen
        lowest = torch.minimum(lowest, _filled(exact, mask, torch.inf).amin(0))
        highest = torch.maximum(highest, _filled(exact, mask, -torch.inf).amax(0))
        zeros += (_filled(exact, mask, torch.inf) == 0).sum(0)
        if about is None:
            about = _filled(exact, mask, 0.0).sum(0) / seen.clamp(min=1)
        # a new tensor, made into its own powers step by step
        power = _filled(exact - about, mask, 0.0)
        square = power * power
        sums[0] += power.sum(0)
        sums[1] += square.sum(0)
        sums[2] += power.mul_(square).sum(0)
        sums[3] += square.mul_(square).sum(0)
    return _central(counts, lowest, highest, zeros, sums, sums[0] if about is None else about)


def _filled(values: Tensor, mask: Tensor | None, filling: float) -> Tensor:
    return values if mask is None else values.masked_fill(~mask, filling)


def _central(counts: Tensor, lowest: Tensor, highest: Tensor, zeros: Tensor, sums: Tensor, about: Tensor) -> Moments:
    """Central moments from power sums about ``about``."""
    n = counts.clamp(min=1)
    first, second, third, fourth = sums
    d = first / n
    return Moments(
        count=counts,
        centre=(about + d).where(counts > 0, 0.0),
        m2=(second - first * d).clamp(min=0),
        m3=third - 3 * d * second + 2 * first * d**2,
        m4=(fourth - 4 * d * third + 6 * d**2 * second - 3 * first * d**3).clamp(min=0),
        minimum=lowest,
        maximum=highest,
        zeros=zeros,
    )


class StreamingMoments:
    """Moments of a stream of batches.

    Args:
        name: Name of the hook, for messages.
        shape: How the coordinates are arranged, for messages.

    Example:
        >>> import torch
        >>> from lens_ablation.statistics.moments import StreamingMoments
        >>> stream = StreamingMoments("blocks.0.mlp.hook_post", (2,))
        >>> stream.update(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        >>> stream.moments.mean.tolist()
        [2.0, 5.0]
    """

    def __init__(self, name: str, shape: tuple[int, ...]):
        self.name, self.shape = name, shape
        self._total: Moments | None = None

    @property
    def moments(self) -> Moments:
        """Moments of everything seen so far.

        Raises:
            ValueError: nothing was seen.
        """
        if self._total is None:
            raise ValueError(f"{self.name} was never run, so it has no moments")
        return self._total

    def update(
        self,
        values: Float[Tensor, "sample coordinate"],
        valid: Bool[Tensor, " sample"] | Bool[Tensor, "sample coordinate"] | None = None,
    ) -> None:
        """Add a batch of values, of which only the ``valid`` ones count.

        Raises:
            BadActivation: a value that counts is not finite.
        """
        batch = batch_moments(values, valid)
        infinite = (batch.count > 0) & ~(batch.minimum.isfinite() & batch.maximum.isfinite())
        if bool(infinite.any()):
            raise BadActivation(not_finite(self.name, self.shape, infinite))
        self._total = batch if self._total is None else self._total.merge(batch)


def not_finite(name: str, shape: tuple[int, ...], where: Bool[Tensor, " coordinate"]) -> str:
    """A message that says which coordinates of a hook hold NaN or infinity."""
    first = np.unravel_index(int(where.nonzero()[0, 0]), shape or (1,))
    address = ", ".join(str(int(i)) for i in first)
    return (
        f"{name} holds NaN or infinity at coordinate [{address}] and {int(where.sum()) - 1} others. Half "
        "precision may have overflowed: load the model in float32, or check its weights and inputs."
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class PositionMeans:
    """Sums of activations by position, counted from the first real token of each row.

    Attributes:
        count: How many values were seen at each position.
        total: Their sum.
    """

    count: Int[Tensor, " pos"]
    total: Float64[Tensor, "pos *coordinate"]

    @property
    def mean(self) -> Float64[Tensor, "pos *coordinate"]:
        """Mean at each position, NaN where no value was seen."""
        return self.total / self.count.reshape(-1, *[1] * (self.total.ndim - 1))

    def merge(self, other: "PositionMeans") -> "PositionMeans":
        """Sums of both sets of values; the shorter one saw nothing at later positions."""
        n_pos = max(len(self.count), len(other.count))
        a, b = self.padded(n_pos), other.padded(n_pos)
        return PositionMeans(count=a.count + b.count, total=a.total + b.total)

    def padded(self, n_pos: int) -> "PositionMeans":
        """The same sums for ``n_pos`` positions or more, with nothing seen at the added ones."""
        more = max(0, n_pos - len(self.count))
        return PositionMeans(
            count=torch.cat([self.count, self.count.new_zeros(more)]),
            total=torch.cat([self.total, self.total.new_zeros(more, *self.total.shape[1:])]),
        )

    def reshape(self, shape: tuple[int, ...]) -> "PositionMeans":
        """The same numbers with the coordinates arranged in ``shape``, on the CPU."""
        return PositionMeans(count=self.count.cpu(), total=self.total.cpu().reshape(-1, *shape))


def batch_position_means(
    values: Float[Tensor, "row pos coordinate"], valid: Bool[Tensor, "row pos"] | None = None
) -> PositionMeans:
    """Sums of one batch whose rows all begin with their first real token."""
    n_rows, n_pos, n = values.shape
    count = torch.full((n_pos,), n_rows, device=values.device) if valid is None else valid.sum(0)
    total = torch.zeros(n_pos, n, dtype=torch.float64, device=values.device)
    for row in range(n_rows):
        total += values[row] if valid is None else values[row].where(valid[row][:, None], 0)
    return PositionMeans(count=count, total=total)
