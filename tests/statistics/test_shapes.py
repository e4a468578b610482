"""Labels of distributions on samples of known shape."""

import numpy as np
import pytest
import torch

from lens_ablation.statistics.histogram import StreamingHistogram
from lens_ablation.statistics.moments import batch_moments
from lens_ablation.statistics.shapes import shapes

N_COORDINATES = 40


def _normal(n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(n, N_COORDINATES, generator=generator)


def _laplace(n: int, generator: torch.Generator) -> torch.Tensor:
    u = torch.rand(n, N_COORDINATES, generator=generator, dtype=torch.float64) - 0.5
    return -u.sign() * torch.log1p(-2 * u.abs())


def _two(n: int, generator: torch.Generator, share: float = 0.5) -> torch.Tensor:
    left = torch.rand(n, N_COORDINATES, generator=generator) < share
    return _normal(n, generator) + torch.where(left, -3.0, 3.0)


SAMPLES = {
    "near-Gaussian": _normal,
    "Laplace-like": _laplace,
    "bimodal": _two,
    "off-centre": lambda n, g: _normal(n, g) + 2,
    "point mass": lambda n, g: _normal(n, g).relu(),
    "other": lambda n, g: torch.nn.functional.gelu(_normal(n, g)),
}


def labels(values: torch.Tensor) -> np.ndarray:
    moments = batch_moments(values)
    stream = StreamingHistogram("hook", *moments.span, bins=100)
    stream.update(values)
    return shapes(moments, stream.histogram)


@pytest.mark.parametrize("n", [1000, 20_000])
@pytest.mark.parametrize("shape", SAMPLES)
def test_a_sample_gets_the_label_of_its_distribution(shape: str, n: int):
    values = SAMPLES[shape](n, torch.Generator().manual_seed(0))
    assert (labels(values) == shape).mean() >= 0.95


def test_scale_does_not_matter():
    generator = torch.Generator().manual_seed(1)
    for shape, draw in SAMPLES.items():
        values = draw(4000, generator)
        assert (labels(1e-3 * values) == labels(values)).mean() >= 0.95, shape


def test_an_uneven_pair_of_clusters_is_bimodal():
    assert (labels(_two(3000, torch.Generator().manual_seed(2), share=0.85)) == "bimodal").all()


def test_one_cluster_with_a_long_tail_is_not_bimodal():
    values = _normal(5000, torch.Generator().manual_seed(3)).exp()
    assert not (labels(values) == "bimodal").any()


def test_a_constant_and_an_outlier_are_point_masses():
    values = torch.full((500, 2), 4.0)
    values[:, 1] = torch.randn(500, generator=torch.Generator().manual_seed(0))
    values[0, 1] = 1000
    assert labels(values).tolist() == ["point mass", "point mass"]


def test_a_coordinate_that_never_occurs_has_no_data():
    values = _normal(500, torch.Generator().manual_seed(0))
    valid = torch.ones_like(values, dtype=torch.bool)
    valid[:, 0] = False
    moments = batch_moments(values, valid)
    stream = StreamingHistogram("hook", *moments.span, bins=100)
    stream.update(values, valid)
    found = shapes(moments, stream.histogram)
    assert found[0] == "no data"
    assert found[1] == "near-Gaussian"


def test_labels_have_the_shape_of_the_coordinates():
    values = _normal(500, torch.Generator().manual_seed(0))
    moments = batch_moments(values)
    stream = StreamingHistogram("hook", *moments.span, bins=100)
    stream.update(values)
    arranged = shapes(moments.reshape((4, 10)), stream.histogram.reshape((4, 10)))
    assert arranged.shape == (4, 10)
    assert arranged.reshape(-1).tolist() == labels(values).tolist()
