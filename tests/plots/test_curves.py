"""Pruning curves: what lines, bands and hover say."""

from dataclasses import replace

import numpy as np
import pytest

from lens_ablation.plots import pruning_figure
from tests.plots.results import a_curve


def test_a_line_is_the_mean_and_its_band_the_range_of_the_seeds():
    curve = a_curve()
    band, line, *others = pruning_figure(curve).data
    mean = curve.mean[0].numpy()
    np.testing.assert_allclose(line.y, mean.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(band.y[:4], mean.max(axis=0), rtol=1e-6)
    np.testing.assert_allclose(band.y[:3:-1], mean.min(axis=0), rtol=1e-6)
    assert len(others) == 2


def test_the_axis_has_the_share_really_removed():
    curve = a_curve()
    line = pruning_figure(curve).data[1]
    np.testing.assert_allclose(line.x, 100 * np.array([0, 7, 15, 30]) / 30)
    assert list(line.customdata[:, 0]) == [0, 7, 15, 30]
    assert "of 30 sites removed" in line.hovertemplate


def test_one_seed_has_no_band():
    figure = pruning_figure(a_curve(seeds=(7,)))
    assert [trace.name for trace in figure.data] == ["Zero", "Peak"]
    assert "band" not in figure.layout.annotations[-1].text


def test_the_note_says_which_band_and_which_order():
    note = pruning_figure(a_curve()).layout.annotations[-1].text
    assert "mean of 3 seeds (1, 2, 3)" in note
    assert "band: lowest to highest seed" in note
    assert "order: random per layer" in note


def test_the_untouched_model_is_a_dashed_line():
    curve = a_curve()
    line = pruning_figure(curve).layout.shapes[0]
    assert line.line.dash == "dash"
    assert line.y0 == line.y1 == pytest.approx(float(curve.baseline.mean()), rel=1e-6)


def test_the_title_says_what_is_removed():
    curve = a_curve()
    assert pruning_figure(curve).layout.title.text == "Logit difference while sites are removed"
    named = replace(curve, settings={**curve.settings, "kind": "z"})
    assert pruning_figure(named).layout.title.text == "Logit difference while attention neurons are removed"


def test_axes_have_units_and_methods_differ_in_more_than_colour():
    figure = pruning_figure(a_curve(methods=("Zero", "Mean", "Peak", "Noise")))
    assert figure.layout.yaxis.title.text == "logit difference (logits)"
    assert figure.layout.xaxis.title.text == "sites removed (%)"
    lines = [trace for trace in figure.data if trace.name]
    assert len({line.line.color for line in lines}) == len({line.line.dash for line in lines}) == 4
    assert len({line.marker.symbol for line in lines}) == 4
