"""Histograms of activations, and the gallery of their shapes."""

from dataclasses import replace

import numpy as np
import pytest

from lens_ablation.errors import StatisticsMismatch
from lens_ablation.plots import activation_histogram, distribution_gallery
from lens_ablation.sites import Site
from tests.plots.results import a_measurement, samples

SKEWED = Site("z", 1, head=1, unit=2)


def test_bars_are_the_counts_of_the_values():
    bars = activation_histogram(a_measurement(), SKEWED).data[0]
    values = samples()[:, 1, 2]
    assert bars.y.sum() == len(values)
    assert bars.y[0] == int((values < values.min() + (values.max() - values.min()) / 100).sum())
    assert len(bars.x) == 100


def test_zero_mean_and_peak_are_marked_where_they_are():
    statistics = a_measurement()
    marks = activation_histogram(statistics, SKEWED).data[1:]
    found = statistics[SKEWED.hook_point]
    assert [mark.name.split()[0] for mark in marks] == ["zero", "mean", "peak"]
    expected = [0.0, float(found.mean[1, 2]), float(found.peak[1, 2])]
    assert [mark.x[0] for mark in marks] == pytest.approx(expected)
    assert all(mark.x[0] == mark.x[1] for mark in marks)


def test_a_constant_can_be_drawn():
    figure = activation_histogram(a_measurement(), Site("z", 1, head=1, unit=1))
    assert figure.data[0].width > 0
    assert figure.layout.annotations[-1].text == "every value is the same"


def test_counts_can_be_logarithmic():
    assert activation_histogram(a_measurement(), SKEWED).layout.yaxis.type is None
    assert activation_histogram(a_measurement(), SKEWED, log_counts=True).layout.yaxis.type == "log"


def test_the_title_names_site_and_shape():
    assert activation_histogram(a_measurement(), Site("z", 1, head=0, unit=2)).layout.title.text == (
        "Activation of L1H0.z2: bimodal"
    )


def test_a_whole_head_is_refused():
    with pytest.raises(ValueError, match="a whole head"):
        activation_histogram(a_measurement(), Site("head", 1, head=0))


def test_a_hook_that_was_not_measured_is_refused():
    with pytest.raises(StatisticsMismatch, match=r"hold nothing on blocks\.0"):
        activation_histogram(a_measurement(), Site("z", 0, head=0, unit=0))


def test_statistics_without_histograms_are_refused():
    with pytest.raises(ValueError, match="histograms=True"):
        activation_histogram(a_measurement(histograms=False), SKEWED)
    with pytest.raises(ValueError, match="histograms=True"):
        distribution_gallery(a_measurement(histograms=False))


def test_the_gallery_shows_every_shape_that_occurs_on_a_logarithmic_axis():
    statistics = a_measurement()
    figure = distribution_gallery(statistics, examples=2)
    labels = set(np.unique(next(iter(statistics.shapes().values()))))
    shown = {a.text.split("</b>")[0].removeprefix("<b>") for a in figure.layout.annotations if "<b>" in a.text}
    assert shown == labels >= {"near-Gaussian", "Laplace-like", "bimodal", "off-centre", "point mass"}
    assert all(figure.layout[name].type == "log" for name in figure.layout if name.startswith("yaxis"))
    assert sum(trace.type == "bar" for trace in figure.data) == 6


@pytest.mark.parametrize(
    ("activation", "shape", "named"), [("pattern", (1, 2, 3), "L1H0.pattern[1, 2]"), ("mlp_out", (6,), "L1.mlp[5]")]
)
def test_coordinates_that_are_no_site_are_named_by_what_they_are_part_of(
    activation: str, shape: tuple[int, ...], named: str
):
    statistics = a_measurement()
    ((point, found),) = statistics.points.items()
    other = replace(point, activation=activation)
    parts = {name: getattr(found, name).reshape(shape) for name in ("moments", "histogram", "peak")}
    figure = distribution_gallery(replace(statistics, points={other: replace(found, point=other, **parts)}), examples=6)
    assert any(annotation.text.endswith(f" · {named}") for annotation in figure.layout.annotations)


def test_the_legend_of_the_gallery_has_each_mark_once():
    shown = [trace.name for trace in distribution_gallery(a_measurement()).data if trace.showlegend is not False]
    assert shown == ["zero", "mean", "peak"]
