"""Streaming moments against float64 formulas on all values at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lens_ablation.errors import BadActivation
from lens_ablation.statistics.moments import (
    Moments,
    StreamingMoments,
    batch_moments,
    batch_position_means,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def sample(n: int, n_coordinates: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Skewed values whose means lie up to 300 standard deviations from 0."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, n_coordinates, generator=generator).exp()
    offsets = torch.linspace(-300, 300, n_coordinates)
    return (values * torch.linspace(0.1, 3, n_coordinates) + offsets).to(dtype)


def streamed(values: torch.Tensor, sizes: list[int]) -> Moments:
    stream = StreamingMoments("hook", tuple(values.shape[1:]))
    for part in values.split(sizes):
        stream.update(part)
    return stream.moments


def assert_moments_of(moments: Moments, values: np.ndarray, rtol: float = 1e-10) -> None:
    x = values.astype(np.float64)
    assert np.all(moments.count.numpy() == len(x))
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=rtol, atol=rtol * np.abs(x).max())
    np.testing.assert_allclose(moments.variance, x.var(0), rtol=rtol)
    np.testing.assert_allclose(moments.skewness, stats.skew(x), rtol=rtol, atol=rtol)
    np.testing.assert_allclose(moments.kurtosis, stats.kurtosis(x, fisher=False), rtol=rtol)
    np.testing.assert_array_equal(moments.minimum, x.min(0))
    np.testing.assert_array_equal(moments.maximum, x.max(0))
    np.testing.assert_array_equal(moments.zero_share, (x == 0).mean(0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_streaming_equals_float64_on_all_values(dtype: torch.dtype):
    values = sample(3000, 40, dtype=dtype)
    assert_moments_of(streamed(values, [1, 2, 700, 2297]), values.double().numpy())


def test_batches_of_several_blocks_equal_float64_on_all_values():
    values = sample(3000, 400)
    assert_moments_of(streamed(values, [3000]), values.double().numpy())


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=12), seed=st.integers(0, 10_000))
def test_batching_does_not_matter(sizes: list[int], seed: int):
    values = sample(sum(sizes), 5, seed)
    values[:, 0] = 7.7
    values[seed % len(values), 1] = 1e4
    one, many = streamed(values, [len(values)]), streamed(values, sizes)
    for name in ("mean", "variance", "skewness", "kurtosis"):
        torch.testing.assert_close(getattr(many, name), getattr(one, name), rtol=1e-9, atol=1e-9, equal_nan=True)
    assert torch.equal(one.minimum, many.minimum)
    assert torch.equal(one.maximum, many.maximum)


def test_a_batch_far_from_the_others_costs_no_digits():
    values = sample(2000, 10)
    values[:1000] += 1e5
    assert_moments_of(streamed(values, [1000, 1000]), values.double().numpy(), rtol=1e-9)


def test_merging_shards_equals_one_pass():
    values = sample(900, 6)
    shards = [batch_moments(part) for part in values.split([100, 500, 300])]
    assert_moments_of(shards[2].merge(shards[0]).merge(shards[1]), values.double().numpy())


def test_merging_other_coordinates_is_refused():
    with pytest.raises(ValueError, match=r"\(3,\) and \(4,\) cannot be merged"):
        batch_moments(sample(5, 3)).merge(batch_moments(sample(5, 4)))


def test_moments_move_with_a_shift():
    values = sample(500, 8, dtype=torch.float64)
    here, there = batch_moments(values), batch_moments(values + 1000)
    torch.testing.assert_close(there.mean, here.mean + 1000)
    for name in ("variance", "skewness", "kurtosis"):
        torch.testing.assert_close(getattr(there, name), getattr(here, name), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_constant_has_no_variance_and_no_shape(dtype: torch.dtype):
    values = torch.full((1001, 3), 0.1, dtype=dtype)
    moments = streamed(values, [1, 300, 700])
    assert moments.mean.tolist() == pytest.approx([float(values[0, 0])] * 3, rel=1e-15)
    assert moments.variance.tolist() == [0.0] * 3
    assert moments.skewness.isnan().all()
    assert moments.kurtosis.isnan().all()


def test_exact_zeros_are_counted():
    values = torch.tensor([[0.0, 1.0], [-0.0, 0.0], [1e-30, 2.0], [0.0, 3.0]])
    assert batch_moments(values).zero_share.tolist() == [0.75, 0.25]


def test_only_valid_samples_count():
    values = sample(400, 7)
    valid = torch.arange(400) % 3 != 0
    spoiled = values.masked_fill(~valid[:, None], torch.nan)
    assert_moments_of(batch_moments(spoiled, valid), values[valid].double().numpy())


def test_only_valid_values_count():
    values = sample(400, 7)
    valid = torch.rand(400, 7, generator=torch.Generator().manual_seed(1)) > 0.3
    valid[:, 3] = False
    spoiled = values.masked_fill(~valid, torch.inf)
    stream = StreamingMoments("hook", (7,))
    for part, mask in zip(spoiled.split(90), valid.split(90), strict=True):
        stream.update(part, mask)
    moments = stream.moments
    for i in (0, 1, 2, 4, 5, 6):
        x = values[valid[:, i], i].double().numpy()
        assert int(moments.count[i]) == len(x)
        assert float(moments.mean[i]) == pytest.approx(x.mean(), rel=1e-12)
        assert float(moments.kurtosis[i]) == pytest.approx(stats.kurtosis(x, fisher=False), rel=1e-9)
        assert float(moments.maximum[i]) == x.max()
    assert int(moments.count[3]) == 0
    assert bool(moments.mean[3].isnan())
    assert bool(moments.variance[3].isnan())


def test_a_batch_without_valid_samples_changes_nothing():
    stream = StreamingMoments("hook", (4,))
    stream.update(sample(10, 4), torch.zeros(10, dtype=torch.bool))
    stream.update(sample(50, 4))
    assert_moments_of(stream.moments, sample(50, 4).double().numpy())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_named(bad: float):
    stream = StreamingMoments("blocks.1.attn.hook_z", (2, 3))
    values = sample(10, 6)
    values[4, 5] = bad
    with pytest.raises(BadActivation, match=r"blocks.1.attn.hook_z .* coordinate \[1, 2\] and 0 others"):
        stream.update(values)


def test_the_input_is_left_alone():
    values = sample(100, 4, dtype=torch.float64)
    before = values.clone()
    batch_moments(values)
    assert torch.equal(values, before)


def test_position_means_are_those_of_each_position():
    generator = torch.Generator().manual_seed(0)
    long, short = torch.randn(5, 7, 3, generator=generator), torch.randn(4, 2, 3, generator=generator)
    valid = torch.arange(7) < torch.tensor([7, 3, 5, 1, 2])[:, None]
    spoiled = long.masked_fill(~valid[..., None], torch.nan)
    means = batch_position_means(spoiled, valid).merge(batch_position_means(short))
    assert means.count.tolist() == [9, 8, 3, 2, 2, 1, 1]
    first = torch.cat([long[:, 0], short[:, 0]]).double().mean(0)
    torch.testing.assert_close(means.mean[0], first)
    torch.testing.assert_close(means.mean[4], long[[0, 2], 4].double().mean(0))
