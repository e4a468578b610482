"""Several sweeps in one figure, comparable at a glance."""

import pytest
import torch

from lens_ablation.plots import comparison_figure
from tests.plots.results import a_sweep

METHODS = ["Zero", "Mean", "Peak", "Resample (other examples)"]


def test_all_panels_share_one_symmetric_scale():
    results = [a_sweep(method=method, effects=torch.full((12,), float(i))) for i, method in enumerate(METHODS)]
    figure = comparison_figure(results)
    assert {trace.coloraxis for trace in figure.data} == {"coloraxis"}
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == pytest.approx((-3, 3), rel=1e-5)


def test_every_panel_is_named_by_its_method():
    figure = comparison_figure([a_sweep(method=method, seed=i) for i, method in enumerate(METHODS)])
    titles = [annotation.text for annotation in figure.layout.annotations]
    assert titles[:4] == [f"<b>{method}</b>" for method in METHODS]
    assert len({(trace.xaxis, trace.yaxis) for trace in figure.data if trace.type == "heatmap"}) == 4


def test_panels_say_in_what_else_they_differ():
    figure = comparison_figure([a_sweep(), a_sweep(model="other-model")])
    assert figure.layout.annotations[1].text == "<b>Zero</b> · other-model"


def test_layers_share_the_axis_of_their_bars():
    figure = comparison_figure([a_sweep("mlp", (4,), method=method) for method in METHODS])
    assert figure.layout.yaxis2.matches == "y"
    assert {trace.type for trace in figure.data} == {"bar"}


def test_gaps_stay_gaps_in_every_panel():
    figure = comparison_figure([a_sweep(keep=[0, 1]), a_sweep(keep=[2])])
    assert [trace.type for trace in figure.data] == ["heatmap"] * 4
    assert "grey: not measured" in figure.layout.annotations[-1].text


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"metric": "loss", "unit": "nats"}, "need one metric"),
        ({"kind": "pattern"}, "need one kind of site"),
    ],
)
def test_what_cannot_be_compared_is_refused(other: dict, said: str):
    with pytest.raises(ValueError, match=said):
        comparison_figure([a_sweep(), a_sweep(**other)])


def test_nothing_is_refused():
    with pytest.raises(ValueError, match="no results"):
        comparison_figure([])
