"""Heatmaps of sweeps: one scale around zero, and nothing that was not measured shown as zero."""

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
import pytest
import torch

from lens_ablation.plots import sweep_heatmap
from tests.plots.results import a_sweep


def test_the_scale_is_symmetric_about_zero():
    figure = sweep_heatmap(a_sweep(effects=torch.arange(12.0) - 2))
    assert figure.layout.coloraxis.cmin == -figure.layout.coloraxis.cmax < 0
    assert figure.layout.coloraxis.cmax == pytest.approx(9.0, rel=1e-5)


def test_cells_are_the_mean_effects_by_layer_and_head():
    result = a_sweep()
    cells = sweep_heatmap(result).data[0]
    np.testing.assert_allclose(cells.z, result.mean.reshape(3, 4), rtol=1e-6)
    assert cells.hovertext[2, 1] == "L2H1"


def test_a_site_that_was_not_measured_is_grey_and_not_zero():
    figure = sweep_heatmap(a_sweep(keep=[0, 1, 2, 3, 8]))
    cells, missing = figure.data[:2]
    assert np.isnan(cells.z).sum() == 7
    assert cells.hoverongaps is False
    assert (np.isnan(missing.z) == ~np.isnan(cells.z)).all()
    assert missing.hovertext[1, 0] == "L1H0<br>not measured"
    assert missing.text[1, 0] == "×"
    assert "grey: not measured" in figure.layout.annotations[-1].text


def test_an_effect_that_is_not_finite_is_told_from_one_that_was_not_measured():
    effects = torch.ones(11)
    effects[0] = torch.nan
    figure = sweep_heatmap(a_sweep(keep=list(range(11)), effects=effects))
    missing = figure.data[1]
    assert missing.hovertext[0, 0] == "L0H0<br>not finite"
    assert missing.hovertext[2, 3] == "L2H3<br>not measured"


def test_without_gaps_nothing_is_drawn_as_missing():
    figure = sweep_heatmap(a_sweep(effects=torch.ones(12)))
    assert len(figure.data) == 1
    assert "grey" not in figure.layout.annotations[-1].text


def test_outliers_do_not_eat_the_scale_and_are_marked():
    effects = torch.full((48,), 0.1)
    effects[5], effects[30] = 9.0, -8.0
    figure = sweep_heatmap(a_sweep(shape=(6, 8), effects=effects))
    marks = figure.data[-1]
    assert figure.layout.coloraxis.cmax < 8
    assert list(marks.x) == [5, 6]
    assert list(marks.marker.symbol) == ["triangle-up", "triangle-down"]
    assert figure.layout.coloraxis.colorbar.ticktext[0].startswith("≤ −")
    assert figure.layout.coloraxis.colorbar.ticktext[-1].startswith("≥ ")
    assert figure.data[0].z[0, 5] == pytest.approx(9.0, rel=1e-5)


def test_a_single_effect_is_no_outlier_among_zeros():
    effects = torch.zeros(48)
    effects[5] = -1.0
    assert sweep_heatmap(a_sweep(shape=(6, 8), effects=effects)).layout.coloraxis.cmax == pytest.approx(1, rel=0.01)


def test_a_scale_can_be_given():
    figure = sweep_heatmap(a_sweep(), limit=0.5)
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-0.5, 0.5)
    with pytest.raises(ValueError, match="limit must be positive"):
        sweep_heatmap(a_sweep(), limit=0.0)


def test_no_effect_at_all_still_has_a_scale():
    assert sweep_heatmap(a_sweep(effects=torch.zeros(12))).layout.coloraxis.cmax > 0


def test_hover_shows_site_method_value_interval_and_unit():
    result = a_sweep(method="Peak")
    cells = sweep_heatmap(result, confidence=0.9).data[0]
    low, high = result.interval(0.9)
    np.testing.assert_allclose(cells.customdata[..., 0].ravel(), low, rtol=1e-6)
    np.testing.assert_allclose(cells.customdata[..., 1].ravel(), high, rtol=1e-6)
    np.testing.assert_allclose(cells.customdata[..., 2].ravel(), result.values.mean(dim=1), rtol=1e-5)
    for words in ("%{hovertext}", "Peak", "logits", "90% interval", "logit difference"):
        assert words in cells.hovertemplate


@pytest.mark.parametrize(("higher_is_better", "lowest"), [(True, "rgb(103,0,31)"), (False, "rgb(5,48,97)")])
def test_red_is_where_the_metric_gets_worse(higher_is_better: bool, lowest: str):
    figure = sweep_heatmap(a_sweep(higher_is_better=higher_is_better))
    assert figure.layout.coloraxis.colorscale[0][1] == lowest
    assert f"red: ablating {'lowers' if higher_is_better else 'raises'}" in figure.layout.annotations[-1].text


def test_attention_neurons_lie_by_head_and_coordinate():
    result = a_sweep("z", (2, 3, 4))
    figure = sweep_heatmap(result)
    cells = figure.data[0]
    assert cells.z.shape == (2, 12)
    assert cells.hovertext[1, 2 * 4 + 3] == "L1H2.z3"
    assert cells.z[1, 11] == pytest.approx(float(result.mean[-1]), rel=1e-6)
    assert list(figure.layout.xaxis.ticktext) == ["H0", "H1", "H2"]


def test_neurons_lie_by_unit_and_have_no_text_in_their_cells():
    figure = sweep_heatmap(a_sweep("neuron", (2, 200), keep=list(range(250))))
    assert figure.data[0].z.shape == (2, 200)
    assert figure.data[0].text is None
    assert len(figure.layout.xaxis.tickvals) <= 10


@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_whole_layers_are_bars_with_their_intervals(kind: str):
    result = a_sweep(kind, (4,), keep=[0, 1, 3])
    bars, missing = sweep_heatmap(result).data
    low, high = result.interval()
    assert isinstance(bars, go.Bar)
    np.testing.assert_allclose(bars.y[[0, 1, 3]] + bars.error_y.array[[0, 1, 3]], high, rtol=1e-5)
    np.testing.assert_allclose(bars.y[[0, 1, 3]] - bars.error_y.arrayminus[[0, 1, 3]], low, rtol=1e-5)
    assert np.isnan(bars.y[2])
    assert list(missing.x) == [2]


def test_the_title_says_method_model_task_and_number_of_examples():
    title = sweep_heatmap(a_sweep(method="Peak", n=16)).layout.title
    assert title.text == "Peak ablation, each head alone"
    assert "a-model · ioi, 16 examples · logit difference untouched" in title.subtitle.text


def test_what_is_not_as_usual_is_said():
    subtitle = sweep_heatmap(a_sweep(positions="answer", weight_processing="compatibility")).layout.title.subtitle
    assert "positions: answer" in subtitle.text
    assert "weights: compatibility" in subtitle.text


def test_names_are_never_markup():
    figure = sweep_heatmap(a_sweep(method="<b>x</b>", model="<i>m</i>"))
    assert "&lt;b&gt;x" in figure.layout.title.text
    assert "&lt;i&gt;m" in figure.layout.title.subtitle.text


def test_plotly_keeps_its_defaults_and_has_no_say(monkeypatch: pytest.MonkeyPatch):
    before = pio.templates.default, pio.renderers.default
    figure = sweep_heatmap(a_sweep())
    assert (pio.templates.default, pio.renderers.default) == before
    monkeypatch.setattr(pio.templates, "default", "plotly_dark")
    assert sweep_heatmap(a_sweep()).to_json() == figure.to_json()
