"""The shape of each coordinate's distribution, as a label from stated thresholds.

This is a **reconstruction**: the paper on peak ablation shows Gaussian, double-exponential and bimodal examples and
states no rule, so the rule below is ours. The first that applies:

1. ``point mass``: at least ``POINT_MASS_SHARE`` of the values lie in one of the histogram's bins, or are exactly 0.
2. ``bimodal``: of a Gaussian, a Laplace and a two-Gaussian mixture, fitted to the counts, the mixture has the lowest
   BIC; both its parts hold at least ``LESSER_SHARE`` of the values; and the smoothed histogram has two maxima, the
   lower at least ``LESSER_HEIGHT`` of the higher, with a valley of at most ``VALLEY_DEPTH`` of the lower between
   that is deeper than ``VALLEY_NOISE`` standard errors.
3. ``off-centre``: the mean lies more than ``OFF_CENTRE`` standard deviations from 0.
4. ``near-Gaussian`` or ``Laplace-like``: the lower BIC of the two, if its density misplaces no more than
   ``MISFIT`` of the values (total variation distance to the counts, less what sampling alone would give).
5. ``other``, such as skewed or flat.

A histogram with an outlier is coarse: an attention sink at position 0 turns many coordinates into a ``point mass``.
"""

from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from lens_ablation.statistics.histogram import Histogram, first_maximum
from lens_ablation.statistics.moments import Moments
from lens_ablation.statistics.peaks import gaussian_kernel, smoothed

Shape = Literal["near-Gaussian", "Laplace-like", "bimodal", "off-centre", "point mass", "other", "no data"]
"""Label of a distribution; ``no data`` where no value was seen."""

POINT_MASS_SHARE = 0.4
"""Share of values in one bin (or exactly 0) from which a coordinate is a point mass."""

LESSER_HEIGHT = 0.1
"""Height of the lower of two maxima, as a part of the higher, from which it counts."""

VALLEY_DEPTH = 0.7
"""Greatest height of the valley between two maxima, as a part of the lower one."""

VALLEY_NOISE = 3.0
"""Smallest depth of that valley below the lower maximum, in standard errors of the smoothed counts."""

LESSER_SHARE = 0.05
"""Smallest share of values in either part of a bimodal mixture."""

OFF_CENTRE = 1.0
"""Distance of the mean from 0, in standard deviations, beyond which a coordinate is off-centre."""

MISFIT = 0.1
"""Largest share of values that the density named by a label may misplace, beyond sampling noise."""

SMOOTHING = (13, 2.5)
"""Kernel width and standard deviation, in bins, of the smoothing before maxima are sought."""

_AT_ONCE = 4096
_ITERATIONS = 60
_TINY = 1e-300


def shapes(moments: Moments, histogram: Histogram) -> np.ndarray:
    """The label of each coordinate, an array of text in the shape of the coordinates.

    Args:
        moments: Moments of each coordinate.
        histogram: Counts of the same values between each coordinate's own bounds.

    Reference:
        Reconstructed after Pochinkov et al., *Investigating Neuron Ablation in Attention Heads: The Case for Peak
        Activation Centering*, 2024. arXiv:2408.17322

    Example:
        >>> import torch
        >>> from lens_ablation.statistics.histogram import StreamingHistogram
        >>> from lens_ablation.statistics.moments import batch_moments
        >>> from lens_ablation.statistics.shapes import shapes
        >>> values = torch.randn(5000, 1, generator=torch.Generator().manual_seed(0))
        >>> stream = StreamingHistogram("hook", *batch_moments(values).span, bins=100)
        >>> stream.update(values)
        >>> str(shapes(batch_moments(values), stream.histogram)[0])
        'near-Gaussian'
    """
    shape = tuple(moments.count.shape)
    n = moments.count.numel()
    flat, counted = moments.reshape((n,)), histogram.reshape((n,))
    codes = [_codes(_Sample(flat, counted, slice(start, start + _AT_ONCE))) for start in range(0, n, _AT_ONCE)]
    labels = np.asarray(get_args(Shape))
    return labels[torch.cat(codes).numpy() if codes else np.zeros(0, dtype=int)].reshape(shape)


class _Sample:
    """Some coordinates: counts with bin edges, and the moments that the rules read."""

    def __init__(self, moments: Moments, histogram: Histogram, part: slice):
        self.n = moments.count[part].double()
        self.mean, self.variance = moments.mean[part], moments.variance[part]
        self.zero_share = moments.zero_share[part]
        self.counts = histogram.counts[part].double()
        self.width = histogram.bin_width[part].double()[:, None]
        self.centres = histogram.lowest[part].double()[:, None] + self.width * (
            torch.arange(histogram.bins, dtype=torch.float64) + 0.5
        )

    @property
    def inner_edges(self) -> Float64[Tensor, "coordinate edge"]:
        """Edges between two bins; the outermost bins are open, so that a density's shares add up to 1."""
        return self.centres[:, 1:] - self.width / 2

    def bic(self, shares: Float64[Tensor, "coordinate bin"], parameters: int) -> Float64[Tensor, " coordinate"]:
        """Bayesian information criterion of a distribution on the counts; lower is better."""
        return parameters * self.n.log() - 2 * (self.counts * shares.log()).sum(1)

    def misfit(self, shares: Float64[Tensor, "coordinate bin"]) -> Float64[Tensor, " coordinate"]:
        """Total variation distance to the counts, less its expectation for samples of the distribution."""
        distance = 0.5 * (self.counts / self.n[:, None] - shares).abs().sum(1)
        sampling = 0.5 * (2 / torch.pi * shares * (1 - shares).clamp(min=0) / self.n[:, None]).sqrt().sum(1)
        return distance - sampling


def _shares(below: Float64[Tensor, "coordinate edge"]) -> Float64[Tensor, "coordinate bin"]:
    """What a distribution puts into each bin, from its share below each inner edge."""
    ends = below.new_zeros(len(below), 1)
    return torch.cat([ends, below, ends + 1], dim=1).diff(dim=1).clamp(min=_TINY)


def _codes(sample: _Sample) -> Int[Tensor, " coordinate"]:
    """Index of each coordinate's label; rules are applied from the last to the first, which wins."""
    code = {label: index for index, label in enumerate(get_args(Shape))}
    gaussian, laplace = _gaussian(sample), _laplace(sample)
    gaussian_bic, laplace_bic = sample.bic(gaussian, 2), sample.bic(laplace, 2)
    prefers_laplace = laplace_bic < gaussian_bic
    found = torch.full_like(sample.n, code["other"], dtype=torch.int64)
    found[~prefers_laplace & (sample.misfit(gaussian) <= MISFIT)] = code["near-Gaussian"]
    found[prefers_laplace & (sample.misfit(laplace) <= MISFIT)] = code["Laplace-like"]
    found[sample.mean.abs() > OFF_CENTRE * sample.variance.sqrt()] = code["off-centre"]
    found[_is_bimodal(sample, torch.minimum(gaussian_bic, laplace_bic))] = code["bimodal"]
    fullest = torch.maximum(sample.counts.amax(1) / sample.n, sample.zero_share)
    found[(fullest >= POINT_MASS_SHARE) | (sample.variance == 0)] = code["point mass"]
    found[sample.n == 0] = code["no data"]
    return found


def _gaussian(sample: _Sample) -> Float64[Tensor, "coordinate bin"]:
    sd = sample.variance.sqrt().clamp(min=_TINY)
    return _shares(torch.special.ndtr((sample.inner_edges - sample.mean[:, None]) / sd[:, None]))


def _laplace(sample: _Sample) -> Float64[Tensor, "coordinate bin"]:
    """The fitted Laplace distribution: centred at the median, scaled by the mean distance from it."""
    below = sample.counts.cumsum(1)
    half = sample.n[:, None] / 2
    at = first_maximum((below >= half).long())[:, None]
    before, inside = (below - sample.counts).gather(1, at), sample.counts.gather(1, at)
    median = sample.centres.gather(1, at) + sample.width * ((half - before) / inside.clamp(min=1) - 0.5)
    scale = (sample.counts * (sample.centres - median).abs()).sum(1, keepdim=True) / sample.n[:, None]
    distance = (sample.inner_edges - median) / scale.clamp(min=_TINY)
    tail = 0.5 * torch.exp(-distance.abs())
    return _shares(tail.where(distance < 0, 1 - tail))


def _is_bimodal(sample: _Sample, best: Float64[Tensor, " coordinate"]) -> Bool[Tensor, " coordinate"]:
    """Whether there are two separated maxima, and a mixture begun at them beats the ``best`` BIC."""
    higher, lower = _two_maxima(smoothed(sample.counts, *SMOOTHING))
    found = lower >= 0
    rows = found.nonzero()[:, 0]
    starts = torch.stack([higher[rows], lower[rows]], dim=1)
    shares, lesser = _mixture(sample, rows, starts)
    likelihood = (sample.counts[rows] * shares.log()).sum(1)
    bic = 5 * sample.n[rows].log() - 2 * likelihood
    found[rows] = (bic < best[rows]) & (lesser >= LESSER_SHARE)
    return found


def _two_maxima(
    heights: Float64[Tensor, "coordinate bin"],
) -> tuple[Int[Tensor, " coordinate"], Int[Tensor, " coordinate"]]:
    """The highest bin, and the highest beyond a valley from it; -1 where there is none."""
    top = first_maximum(heights)
    peak = heights.amax(1, keepdim=True)
    bins = torch.arange(heights.shape[1])
    beyond = torch.zeros_like(heights)
    for flip in (False, True):
        side = (bins <= top[:, None]) if flip else (bins >= top[:, None])
        here = heights.where(side, torch.inf)
        valley = here.flip(1).cummin(1).values.flip(1) if flip else here.cummin(1).values
        noise = VALLEY_NOISE * (gaussian_kernel(*SMOOTHING).square().sum() * (heights + valley)).sqrt()
        deep = (valley <= VALLEY_DEPTH * heights) & (heights - valley >= noise)
        separate = side & deep & (heights >= LESSER_HEIGHT * peak)
        beyond = torch.maximum(beyond, heights.where(separate, 0.0))
    return top, first_maximum(beyond).where(beyond.amax(1) > 0, -1)


def _mixture(
    sample: _Sample, rows: Int[Tensor, " row"], starts: Int[Tensor, "row 2"]
) -> tuple[Float64[Tensor, "row bin"], Float64[Tensor, " row"]]:
    """Shares of each bin under a mixture of two Gaussians fitted to the counts, and its lesser weight."""
    counts, centres, n = sample.counts[rows, None], sample.centres[rows, None], sample.n[rows, None]
    edges, width = sample.inner_edges[rows, None], sample.width[rows]
    mean = sample.centres[rows].gather(1, starts)
    sd = (sample.variance[rows, None].sqrt() / 2).expand_as(mean)
    weight = torch.full_like(mean, 0.5)
    for _ in range(_ITERATIONS):
        distance = (centres - mean[..., None]) / sd[..., None]
        density = (weight / sd)[..., None] * torch.exp(-0.5 * distance**2)
        parts = counts * density / density.sum(1, keepdim=True).clamp(min=_TINY)
        total = parts.sum(2).clamp(min=_TINY)
        weight, mean = total / n, (parts * centres).sum(2) / total
        spread = (parts * (centres - mean[..., None]) ** 2).sum(2) / total
        sd = torch.maximum(spread.sqrt(), width / 2)
    below = weight[..., None] * torch.special.ndtr((edges - mean[..., None]) / sd[..., None])
    return _shares(below.sum(1)), weight.amin(1)
