"""Each definition of the peak against a direct formula on the raw values."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from lens_ablation.statistics.histogram import StreamingHistogram
from lens_ablation.statistics.moments import batch_moments
from lens_ablation.statistics.peaks import (
    ESTIMATORS,
    Averaged,
    CoarseToFine,
    GlobalRange,
    KernelDensity,
    Known,
    Mode,
    OwnRange,
    PeakEstimator,
    Smoothed,
    estimator_from,
)

ALL = [
    OwnRange(),
    OwnRange(bins=30),
    GlobalRange(),
    CoarseToFine(),
    Averaged(),
    Smoothed(),
    KernelDensity(grid=200),
    Mode(),
]


def sample(n: int = 900, n_coordinates: int = 8, seed: int = 0) -> torch.Tensor:
    """Two clusters of values in each coordinate, one of them denser."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.rand(n, n_coordinates, generator=generator) < torch.linspace(0.3, 0.7, n_coordinates)
    centres = torch.where(left, -1.5, 2.0)
    return centres + 0.7 * torch.randn(n, n_coordinates, generator=generator)


def peaks(
    estimator: PeakEstimator,
    values: torch.Tensor,
    sizes: list[int] | None = None,
    valid: torch.Tensor | None = None,
    overall: tuple[float, float] | None = None,
) -> torch.Tensor:
    """The peaks by the estimator's own passes over batches of the values."""
    sizes = sizes or [len(values)]
    masks = [None] * len(sizes) if valid is None else valid.split(sizes)
    moments = batch_moments(values, valid)
    own = StreamingHistogram("hook", *moments.span, estimator.kept_bins)
    extremes = overall or (float(moments.span[0].min()), float(moments.span[1].max()))
    run = estimator.measure(Known(name="hook", moments=moments, own=own, overall=extremes))
    n_passes = 0
    while True:
        try:
            accumulators = next(run)
        except StopIteration as finished:
            assert n_passes == estimator.n_passes
            return finished.value
        n_passes += 1
        for part, mask in zip(values.split(sizes), masks, strict=True):
            for accumulator in accumulators:
                accumulator.update(part, mask)


def direct_peak(x: torch.Tensor, bins: int, low: float, high: float) -> torch.Tensor:
    """The published definition on raw values (of equal bins the lowest)."""
    counts = torch.histc(x.float(), bins, low, high)
    a, b = torch.tensor(low), torch.tensor(high)
    return a + (b - a) / bins * (int(np.argmax(counts.numpy())) + 0.5)


def own(x: torch.Tensor, bins: int) -> torch.Tensor:
    return direct_peak(x, bins, float(x.min()), float(x.max()))


@pytest.mark.parametrize("bins", [1, 7, 100])
def test_own_range_is_the_centre_of_the_fullest_bin(bins: int):
    values = sample()
    assert torch.equal(peaks(OwnRange(bins), values), torch.stack([own(x, bins) for x in values.T]))


def test_own_range_finds_a_known_dense_bin():
    values = torch.cat([torch.tensor([0.0, 10.0]), torch.full((20,), 3.21), torch.linspace(0, 10, 50)])[:, None]
    assert float(peaks(OwnRange(), values)) == pytest.approx(3.25)


def test_of_equal_bins_the_lowest_is_the_peak():
    assert float(peaks(OwnRange(bins=4), torch.tensor([[0.0], [1.5], [2.5], [4.0]]))) == 0.5


def test_global_range_shares_its_bounds():
    values = sample()
    low, high = float(values.min()) - 1, float(values.max()) + 2
    expected = torch.stack([direct_peak(x, 100, low, high) for x in values.T])
    assert torch.equal(peaks(GlobalRange(), values, overall=(low, high)), expected)


def test_coarse_to_fine_looks_inside_the_winning_bin():
    values = sample(5000, 6)
    found = peaks(CoarseToFine(bins=10), values)
    for x, peak in zip(values.T, found, strict=True):
        a, width = x.min(), (x.max() - x.min()) / 10
        winner = int(np.argmax(torch.histc(x, 10, float(a), float(x.max())).numpy()))
        low = a + width * winner
        assert float(peak) == float(direct_peak(x, 10, float(low), float(low + width)))


def test_averaged_is_the_mean_of_two_resolutions():
    values = sample()
    expected = torch.stack([(own(x, 1000) + own(x, 10000)) / 2 for x in values.T])
    torch.testing.assert_close(peaks(Averaged(), values), expected)


def test_smoothed_is_the_fullest_bin_after_a_gaussian():
    values = sample()
    found = peaks(Smoothed(), values)
    weights = stats.norm.pdf(np.arange(-2, 3))
    for x, peak in zip(values.T, found, strict=True):
        counts = torch.histc(x, 100, float(x.min()), float(x.max())).double().numpy()
        heights = ndimage.convolve1d(counts, weights / weights.sum(), mode="nearest")
        a, b = x.min(), x.max()
        assert float(peak) == float(a + (b - a) / 100 * (int(heights.argmax()) + 0.5))


def test_kernel_density_is_scipys():
    values = sample(400, 5)
    found = peaks(KernelDensity(), values, [100, 300])
    for x, peak in zip(values.T.double().numpy(), found, strict=True):
        grid = np.linspace(x.min(), x.max(), 1000)
        density = stats.gaussian_kde(x, bw_method=0.1)(grid)
        assert float(peak) == pytest.approx(grid[density.argmax()], abs=1e-6)


def test_mode_is_the_most_frequent_value_and_the_lowest_of_several():
    values = torch.tensor([[1.0, 5.0], [2.0, 5.0], [2.0, -1.0], [1.0, 4.0], [0.0, -1.0]])
    assert peaks(Mode(), values, [2, 3]).tolist() == [1.0, -1.0]
    coarse = sample().half().mul(8).round().div(8)
    expected = [float(stats.mode(x.numpy()).mode) for x in coarse.T]
    assert peaks(Mode(), coarse, [300, 600]).tolist() == expected


@pytest.mark.parametrize("estimator", ALL, ids=repr)
def test_batching_does_not_matter(estimator: PeakEstimator):
    values = sample()
    assert torch.equal(peaks(estimator, values), peaks(estimator, values, [1, 40, 859]))


@pytest.mark.parametrize("estimator", ALL, ids=repr)
def test_values_that_do_not_count_leave_no_trace(estimator: PeakEstimator):
    values = sample()
    valid = torch.rand(values.shape, generator=torch.Generator().manual_seed(3)) > 0.2
    spoiled = values.masked_fill(~valid, torch.nan)
    extremes = -5.0, 5.0
    found = peaks(estimator, spoiled, [450, 450], valid, overall=extremes)
    for i in range(values.shape[1]):
        alone = values[valid[:, i], i][:, None]
        assert float(found[i]) == float(peaks(estimator, alone, overall=extremes))


@pytest.mark.parametrize("estimator", ALL, ids=repr)
def test_the_peak_of_a_constant_is_its_value(estimator: PeakEstimator):
    found = peaks(estimator, torch.full((50, 2), 0.3), overall=(0.3, 0.3))
    torch.testing.assert_close(found, torch.full((2,), 0.3))


@settings(max_examples=20, deadline=None)
@given(shift=st.floats(-50, 50))
def test_the_peak_moves_with_a_shift(shift: float):
    # a dense bin far above the others, so that rounding at bin edges cannot change the winner
    values = torch.cat([torch.linspace(-1, 1, 101), torch.full((300,), 0.335)])[:, None]
    moved = peaks(OwnRange(), values + shift)
    torch.testing.assert_close(moved, peaks(OwnRange(), values) + shift, rtol=0, atol=1e-4)


@pytest.mark.parametrize("estimator", ALL, ids=repr)
def test_a_kept_histogram_gives_the_same_peaks_or_none(estimator: PeakEstimator):
    values = sample()
    moments = batch_moments(values)
    stream = StreamingHistogram("hook", *moments.span, estimator.kept_bins)
    stream.update(values)
    found = estimator.from_histogram(stream.histogram)
    assert (found is not None) == isinstance(estimator, OwnRange | Smoothed)
    if found is not None:
        assert torch.equal(found, peaks(estimator, values))


@pytest.mark.parametrize("estimator", ALL, ids=repr)
def test_estimators_come_back_from_their_settings(estimator: PeakEstimator):
    stored = json.loads(json.dumps(vars(estimator)))
    assert estimator_from(type(estimator).__name__, stored) == estimator
    assert type(estimator) in ESTIMATORS


def test_an_estimator_of_somebody_else_is_not_rebuilt():
    assert estimator_from("Theirs", {}) is None


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("OwnRange", {"bins": 0}),
        ("OwnRange", {"bins": "100"}),
        ("GlobalRange", {"bins": 2.5}),
        ("Smoothed", {"kernel": 4}),
        ("Smoothed", {"sigma": 0}),
        ("Averaged", {"bins": []}),
        ("KernelDensity", {"bandwidth": -1}),
        ("KernelDensity", {"grid": 1}),
    ],
)
def test_impossible_settings_are_refused(name: str, wrong: dict[str, object]):
    with pytest.raises((ValueError, TypeError), match=r"needs|typechecking"):
        estimator_from(name, wrong)
