"""Correlations against scipy."""

import numpy as np
import pytest
import scipy.stats
import torch

from lens_ablation.studies.correlations import pearson, spearman


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_pearson_is_scipys_along_any_axis(dim: int):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 5, 6, 7, generator=generator)
    expected = scipy.stats.pearsonr(x.double().numpy(), y.double().numpy(), axis=dim).statistic
    np.testing.assert_allclose(pearson(x, y, dim=dim).numpy(), expected, rtol=1e-12)


def test_what_never_varies_has_the_correlation_that_the_caller_names():
    x, still = torch.arange(4.0).expand(2, 4), torch.tensor([[0.0, 1, 2, 3], [5, 5, 5, 5]])
    assert float(pearson(x, still)[0]) == pytest.approx(1)
    assert bool(pearson(x, still)[1].isnan())
    assert pearson(still, x, constant=0.0).tolist() == pytest.approx([1, 0])
    assert np.isnan(spearman(np.ones(5), np.arange(5.0)))


def test_spearman_is_scipys_with_ties():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, size=(2, 40)).astype(float)
    assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic, rel=1e-12)
