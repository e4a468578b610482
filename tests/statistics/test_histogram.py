"""Streaming histograms against ``torch.histc`` on the raw values."""

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_ablation.errors import BadActivation
from lens_ablation.statistics import histogram as module
from lens_ablation.statistics.histogram import Histogram, StreamingHistogram, first_maximum

BINS = 100


def counted(values: torch.Tensor, sizes: list[int], bins: int = BINS) -> Histogram:
    exact = values.float()
    stream = StreamingHistogram("hook", exact.amin(0), exact.amax(0), bins)
    for part in values.split(sizes):
        stream.update(part)
    return stream.histogram


def histc(values: torch.Tensor, bins: int = BINS) -> torch.Tensor:
    columns = values.float().T
    return torch.stack([torch.histc(x, bins, float(x.min()), float(x.max())) for x in columns]).int()


def sample(n: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = 10 ** (4 * torch.rand(6, generator=generator) - 2)
    values = torch.randn(n, 6, generator=generator) * scale + 5 * torch.randn(6, generator=generator)
    return values.to(dtype)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 200), min_size=2, max_size=8),
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_counts_equal_histc_for_any_batching_and_dtype(sizes: list[int], seed: int, dtype: torch.dtype):
    values = sample(sum(sizes), seed, dtype)
    assert torch.equal(counted(values, sizes).counts, histc(values))


def test_batches_of_several_blocks_equal_histc():
    values = torch.randn(3000, 300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(counted(values, [3000]).counts, histc(values))


def test_values_on_edges_fall_where_histc_puts_them():
    values = torch.arange(101.0)[:, None] / 7
    assert torch.equal(counted(values, [101]).counts, histc(values))


def test_the_largest_value_falls_into_the_last_bin():
    counts = counted(torch.tensor([[0.0], [0.05], [1.0]]), [3], bins=10).counts[0]
    assert counts.tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("bins", [1, 7, 100])
def test_a_constant_is_counted_in_the_middle_and_its_peak_is_its_value(bins: int):
    constants = sample(50, 0).flatten()
    values = constants.expand(5, -1)
    found = counted(values, [2, 3], bins)
    assert torch.equal(found.counts, histc(values, bins))
    assert torch.equal(found.centre_of(first_maximum(found.counts)), constants)
    assert (found.bin_width == 0).all()


def test_of_equal_bins_the_lowest_is_the_maximum():
    assert first_maximum(torch.tensor([[1, 3, 3, 0], [2, 2, 2, 2], [0, 0, 0, 1]])).tolist() == [1, 0, 3]


def test_edges_centres_and_width_agree():
    found = counted(torch.tensor([[0.0], [10.0]]), [2], bins=5)
    assert found.edges.tolist() == [[0, 2, 4, 6, 8, 10]]
    assert found.centres.tolist() == [[1, 3, 5, 7, 9]]
    assert found.bin_width.tolist() == [2]
    assert found.bins == 5


@pytest.mark.parametrize("value", [1.001, -0.001, float("nan")])
def test_a_value_outside_the_bounds_is_refused(value: float):
    stream = StreamingHistogram("blocks.0.mlp.hook_post", torch.zeros(2), torch.ones(2), BINS)
    with pytest.raises(BadActivation, match=r"hook_post .* coordinate 1, outside the bounds 0\.\.1 "):
        stream.update(torch.tensor([[0.5, value]]))


def test_outside_values_are_skipped_on_request():
    stream = StreamingHistogram("hook", torch.zeros(1), torch.ones(1), 4, outside="skip")
    stream.update(torch.tensor([[-0.1], [0.1], [0.3], [1.0], [1.1]]))
    assert stream.histogram.counts.tolist() == [[1, 1, 0, 1]]


@pytest.mark.parametrize("outside", ["refuse", "skip"])
def test_only_valid_values_are_counted(outside: Literal["refuse", "skip"]):
    values = sample(500, 3)
    valid = torch.rand(values.shape, generator=torch.Generator().manual_seed(0)) > 0.4
    lowest = values.masked_fill(~valid, torch.inf).amin(0)
    highest = values.masked_fill(~valid, -torch.inf).amax(0)
    stream = StreamingHistogram("hook", lowest, highest, BINS, outside=outside)
    for part, mask in zip(values.masked_fill(~valid, torch.nan).split(60), valid.split(60), strict=True):
        stream.update(part, mask)
    for i in range(values.shape[1]):
        assert torch.equal(stream.histogram.counts[i], histc(values[valid[:, i], i][:, None])[0])


def test_only_valid_samples_are_counted():
    values, valid = sample(300, 4), torch.arange(300) % 2 == 0
    kept = values[valid]
    stream = StreamingHistogram("hook", kept.amin(0), kept.amax(0), BINS)
    stream.update(values, valid)
    assert torch.equal(stream.histogram.counts, histc(kept))


def test_merged_shards_equal_one_pass():
    values = sample(700, 5)
    parts = []
    for part in values.split([300, 400]):
        stream = StreamingHistogram("hook", values.amin(0), values.amax(0), BINS)
        stream.update(part)
        parts.append(stream.histogram)
    assert torch.equal(parts[0].merge(parts[1]).counts, histc(values))


def test_shards_between_other_bounds_are_not_merged():
    first, second = sample(50, 1), sample(50, 2)
    with pytest.raises(ValueError, match=r"different bounds .* ranges=merged"):
        counted(first, [50]).merge(counted(second, [50]))


def test_more_samples_than_a_count_holds_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST_SAMPLES", 100)
    with pytest.raises(ValueError, match="at most 100 samples"):
        counted(sample(101, 0), [50, 51])
    half = counted(sample(60, 0), [60])
    with pytest.raises(ValueError, match="at most 100 samples"):
        half.merge(half)


def test_bounds_too_far_apart_for_float32_are_refused():
    with pytest.raises(BadActivation, match=r"too far apart .* histograms=False"):
        StreamingHistogram("hook", torch.tensor([-3e38]), torch.tensor([3e38]), BINS)


def test_the_input_is_left_alone():
    values = sample(100, 0)
    before = values.clone()
    counted(values, [100])
    assert torch.equal(values, before)
