"""Where a coordinate's activations are densest: the candidates for "the peak", one class each.

``OwnRange`` is peak ablation as published. The others are what its authors also tried; none of them is a default.

| estimator | passes | memory for each coordinate | computed on |
|---|---|---|---|
| ``OwnRange`` | 1 | 4 bytes a bin | counts between the coordinate's own bounds |
| ``GlobalRange`` | 1 | 4 bytes a bin, twice | counts between the bounds of the whole measurement |
| ``Smoothed`` | 1 | 4 bytes a bin | the counts of ``OwnRange``, smoothed |
| ``Averaged`` | 1 | 44,400 bytes | two finer histograms |
| ``CoarseToFine`` | 2 | 4 bytes a bin, twice | counts, then counts inside the winning bin |
| ``KernelDensity`` | 1 | 8 bytes a grid point | every value: ``grid`` exponentials each, so for small models only |
| ``Mode`` | 1 | every value | every value, kept on the CPU |

Passes are those after the pass that measures moments. All but ``Mode`` take memory that does not grow with the data.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from lens_ablation.statistics.blocks import blocks
from lens_ablation.statistics.histogram import Histogram, StreamingHistogram, first_maximum
from lens_ablation.statistics.moments import Moments

BINS = 100
"""Bins of a histogram where nothing else is asked for."""


@runtime_checkable
class Accumulator(Protocol):
    """Something that is shown every batch of one pass."""

    def update(
        self,
        values: Float[Tensor, "sample coordinate"],
        valid: Bool[Tensor, " sample"] | Bool[Tensor, "sample coordinate"] | None = None,
    ) -> None:
        """Take in a batch, of which only the ``valid`` values count."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Known:
    """What is known of a hook once its moments are measured.

    Attributes:
        name: Name of the hook.
        moments: Its moments.
        own: The histogram between each coordinate's own bounds that the coming pass counts in any case, with
            ``kept_bins`` bins.
        overall: Smallest and largest value of all hooks of the measurement.
    """

    name: str
    moments: Moments
    own: StreamingHistogram
    overall: tuple[float, float]


Measurement = Generator[tuple[Accumulator, ...], None, Float[Tensor, " coordinate"]]
"""Yields the accumulators of each pass (one or more) before it starts, and returns the peaks after the last one."""


@runtime_checkable
class PeakEstimator(Protocol):
    """A definition of the peak. Estimators are frozen dataclasses; write your own with these members.

    Attributes:
        n_passes: Passes over the data that it needs after the moments.
    """

    n_passes: ClassVar[int]

    @property
    def kept_bins(self) -> int:
        """Bins of the own-range histogram that is kept with the statistics."""
        ...

    def measure(self, known: Known) -> Measurement:
        """Run the passes for one hook."""
        ...

    def from_histogram(self, histogram: Histogram) -> Float[Tensor, "*coordinate"] | None:
        """The peaks, if the kept histogram is all that they depend on; else ``None``."""
        ...


@dataclass(frozen=True)
class OwnRange:
    """Centre of the fullest of equal bins between the coordinate's own smallest and largest value.

    ``peak = a + (b - a) / bins * (j + 0.5)`` with bounds ``a``, ``b`` and the fullest bin ``j``, the lowest one of
    several; a constant coordinate's peak is its value. An outlier widens the bins: see ``bin_width``.

    Attributes:
        bins: Number of bins.

    Reference:
        Pochinkov et al., *Investigating Neuron Ablation in Attention Heads: The Case for Peak Activation
        Centering*, 2024. arXiv:2408.17322

    Example:
        >>> import lens_ablation as la
        >>> from lens_ablation.statistics.peaks import OwnRange
        >>> OwnRange(bins=100)
        OwnRange(bins=100)
    """

    bins: int = BINS
    n_passes: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _require_bins(self.bins)

    @property
    def kept_bins(self) -> int:
        return self.bins

    def measure(self, known: Known) -> Measurement:
        yield (known.own,)
        return self.from_histogram(known.own.histogram)

    def from_histogram(self, histogram: Histogram) -> Float[Tensor, "*coordinate"]:
        return histogram.centre_of(first_maximum(histogram.counts))


@dataclass(frozen=True)
class Smoothed:
    """``OwnRange`` after the counts were smoothed by a Gaussian kernel, the outermost counts repeated outwards.

    Attributes:
        bins: Number of bins.
        kernel: Width of the kernel in bins, odd.
        sigma: Its standard deviation in bins.
    """

    bins: int = BINS
    kernel: int = 5
    sigma: float = 1.0
    n_passes: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _require_bins(self.bins)
        if self.kernel < 1 or self.kernel % 2 == 0 or not self.sigma > 0:
            raise ValueError(
                f"Smoothed needs an odd kernel and a positive sigma, got kernel={self.kernel}, sigma={self.sigma}"
            )

    @property
    def kept_bins(self) -> int:
        return self.bins

    def measure(self, known: Known) -> Measurement:
        yield (known.own,)
        return self.from_histogram(known.own.histogram)

    def from_histogram(self, histogram: Histogram) -> Float[Tensor, "*coordinate"]:
        return histogram.centre_of(first_maximum(smoothed(histogram.counts, self.kernel, self.sigma)))


@dataclass(frozen=True)
class GlobalRange:
    """Centre of the fullest of equal bins between the smallest and largest value of all measured hooks.

    Attributes:
        bins: Number of bins.
    """

    bins: int = BINS
    n_passes: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _require_bins(self.bins)

    @property
    def kept_bins(self) -> int:
        return BINS

    def measure(self, known: Known) -> Measurement:
        lowest, highest = (torch.full_like(known.own.lowest, bound) for bound in known.overall)
        shared = StreamingHistogram(known.name, lowest, highest, self.bins)
        yield (shared,)
        return shared.histogram.centre_of(first_maximum(shared.histogram.counts))

    def from_histogram(self, histogram: Histogram) -> None:
        return None


@dataclass(frozen=True)
class CoarseToFine:
    """Centre of the fullest of equal bins inside the fullest bin of ``OwnRange``; takes one more pass.

    The finer histogram counts what ``torch.histc`` counts between the edges of the winning bin, both included.

    Attributes:
        bins: Number of bins, the same both times.
    """

    bins: int = BINS
    n_passes: ClassVar[int] = 2

    def __post_init__(self) -> None:
        _require_bins(self.bins)

    @property
    def kept_bins(self) -> int:
        return self.bins

    def measure(self, known: Known) -> Measurement:
        yield (known.own,)
        coarse = known.own.histogram
        winner = first_maximum(coarse.counts)
        lowest = coarse.lowest + coarse.bin_width * winner.float()
        highest = lowest + coarse.bin_width
        fine = StreamingHistogram(known.name, lowest, highest, self.bins, outside="skip")
        yield (fine,)
        return fine.histogram.centre_of(first_maximum(fine.histogram.counts))

    def from_histogram(self, histogram: Histogram) -> None:
        return None


@dataclass(frozen=True)
class Averaged:
    """Mean of the ``OwnRange`` peaks at several numbers of bins.

    Attributes:
        bins: Numbers of bins.
    """

    bins: tuple[int, ...] = (1000, 10000)
    n_passes: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not self.bins:
            raise ValueError("Averaged needs at least one number of bins, such as bins=(1000, 10000)")
        for bins in self.bins:
            _require_bins(bins)

    @property
    def kept_bins(self) -> int:
        return BINS

    def measure(self, known: Known) -> Measurement:
        own = known.own
        finer = tuple(StreamingHistogram(known.name, own.lowest, own.highest, bins) for bins in self.bins)
        yield finer
        peaks = [stream.histogram.centre_of(first_maximum(stream.histogram.counts)) for stream in finer]
        return torch.stack(peaks).mean(0)

    def from_histogram(self, histogram: Histogram) -> None:
        return None


@dataclass(frozen=True)
class KernelDensity:
    """Highest point, on an even grid between the coordinate's bounds, of a Gaussian kernel density estimate.

    Every value adds its kernel to every grid point in float64, so nothing is approximated and no value is kept; the
    price is ``grid`` exponentials a value. Equals ``scipy.stats.gaussian_kde(values, bw_method=bandwidth)``.

    Attributes:
        bandwidth: Width of the kernel in standard deviations of the coordinate (``n - 1`` in the divisor).
        grid: Number of grid points.
    """

    bandwidth: float = 0.1
    grid: int = 1000
    n_passes: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.grid < 2 or not self.bandwidth > 0:
            raise ValueError(
                "KernelDensity needs a positive bandwidth and at least 2 grid points, got "
                f"bandwidth={self.bandwidth}, grid={self.grid}"
            )

    @property
    def kept_bins(self) -> int:
        return BINS

    def measure(self, known: Known) -> Measurement:
        density = _GridDensity(known.moments, self.bandwidth, self.grid)
        yield (density,)
        index = first_maximum(density.total)
        return density.points.gather(-1, index[:, None])[:, 0].float()

    def from_histogram(self, histogram: Histogram) -> None:
        return None


@dataclass(frozen=True)
class Mode:
    """The value that occurs most often, the lowest of several: of little meaning where values hardly repeat.

    Keeps **every value** of the measured hooks on the CPU, in the model's dtype.
    """

    n_passes: ClassVar[int] = 1

    @property
    def kept_bins(self) -> int:
        return BINS

    def measure(self, known: Known) -> Measurement:
        kept = _KeptValues()
        yield (kept,)
        return kept.modes().to(known.own.lowest.device)

    def from_histogram(self, histogram: Histogram) -> None:
        return None


ESTIMATORS: tuple[type[PeakEstimator], ...] = (
    OwnRange,
    GlobalRange,
    CoarseToFine,
    Averaged,
    Smoothed,
    KernelDensity,
    Mode,
)
"""The estimators of this package."""


def estimator_from(name: str, settings: Mapping[str, Any]) -> PeakEstimator | None:
    """The estimator of that class name and those settings; ``None`` where this package has no such class.

    Raises:
        TypeError: the settings are not those of the class.
        ValueError: a setting lies outside what the class allows.
    """
    known = {estimator.__name__: estimator for estimator in ESTIMATORS}
    # JSON has no tuples
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    return known[name](**plain) if name in known else None


def smoothed(
    counts: Float[Tensor, "*coordinate bin"] | Int[Tensor, "*coordinate bin"], kernel: int, sigma: float
) -> Float64[Tensor, "*coordinate bin"]:
    """Counts after a Gaussian kernel of ``kernel`` bins, the outermost counts repeated outwards."""
    rows = counts.double().reshape(-1, 1, counts.shape[-1])
    padded = F.pad(rows, (kernel // 2, kernel // 2), mode="replicate")
    return F.conv1d(padded, gaussian_kernel(kernel, sigma).to(rows)[None, None]).reshape(counts.shape)


def gaussian_kernel(width: int, sigma: float) -> Float64[Tensor, " offset"]:
    """Weights of a Gaussian of standard deviation ``sigma`` at ``width`` whole steps, adding up to 1."""
    offsets = torch.arange(width, dtype=torch.float64) - width // 2
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return weights / weights.sum()


class _GridDensity:
    """Sum of the Gaussian kernels of all values at the points of each coordinate's grid."""

    def __init__(self, moments: Moments, bandwidth: float, grid: int):
        seen = moments.count > 0
        lowest, highest = moments.minimum.where(seen, 0.0), moments.maximum.where(seen, 0.0)
        steps = torch.linspace(0, 1, grid, dtype=torch.float64, device=lowest.device)
        self.points = lowest[:, None] + (highest - lowest)[:, None] * steps
        self.total = torch.zeros_like(self.points)
        sd = (moments.m2 / (moments.count - 1).clamp(min=1)).sqrt()
        self._width = (bandwidth * sd).where(highest > lowest, 1.0)

    def update(
        self,
        values: Float[Tensor, "sample coordinate"],
        valid: Bool[Tensor, " sample"] | Bool[Tensor, "sample coordinate"] | None = None,
    ) -> None:
        for block, mask in blocks(values, valid, copies=self.points.shape[1]):
            distance = (self.points - block.double()[..., None]) / self._width[:, None]
            kernels = distance.square_().mul_(-0.5).exp_()
            self.total += (kernels if mask is None else kernels.where(mask[..., None], 0.0)).sum(0)


class _KeptValues:
    """Every value that counts, with NaN in the place of those that do not."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def update(
        self,
        values: Float[Tensor, "sample coordinate"],
        valid: Bool[Tensor, " sample"] | Bool[Tensor, "sample coordinate"] | None = None,
    ) -> None:
        for block, mask in blocks(values, valid):
            self._kept.append((block if mask is None else block.where(mask, torch.nan)).cpu().clone())

    def modes(self) -> Float[Tensor, " coordinate"]:
        """The most frequent value of each coordinate, from the longest run of equal values once sorted."""
        values = torch.cat(self._kept).T
        return torch.cat([_longest_run(part.sort(-1).values) for part in values.split(64)])


def _longest_run(ordered: Float[Tensor, "coordinate sample"]) -> Float[Tensor, " coordinate"]:
    place = torch.arange(ordered.shape[1])
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    begun = place.where(begins, 0).cummax(-1).values
    longest = first_maximum(place - begun)
    found = ordered.gather(-1, longest[:, None])[:, 0]
    return found.to(torch.promote_types(found.dtype, torch.float32))


def _require_bins(bins: object) -> None:
    if not isinstance(bins, int) or bins < 1:
        raise ValueError(f"a histogram needs a whole number of bins, 1 or more, got {bins!r}")
