"""Pruning curves: the metric as growing parts of a site set are removed."""

import numpy as np
import plotly.graph_objects as go

from lens_ablation.plots.grid import site_noun
from lens_ablation.plots.style import (
    FONT_SIZE,
    MUTED,
    add_note,
    band,
    line,
    metric_name,
    metric_with_unit,
    new_figure,
    plain,
    setting_words,
    unit_suffix,
)
from lens_ablation.studies.intervals import weighted_mean
from lens_ablation.studies.pruning import PruningCurve

HEIGHT = 480


def pruning_figure(curve: PruningCurve) -> go.Figure:
    """The metric against the share of sites removed: a line for each method, with the range of the seeds.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task = la.tasks.ioi(model, n=8)
        >>> curve = la.pruning_curve(model, task, la.heads(model), la.Zero(), seeds=(0, 1), progress=False)
        >>> figure = la.plots.pruning_figure(curve)
    """
    metric = metric_name(curve.settings)
    figure = new_figure(
        f"{metric[0].upper()}{metric[1:]} while {_what(curve)} are removed",
        setting_words(curve.settings, curve.values.shape[-1]),
        height=HEIGHT,
    )
    mean = curve.mean.numpy()
    for i, method in enumerate(curve.methods):
        if len(curve.seeds) > 1:
            figure.add_trace(band(_removed_percent(curve), mean[i].min(axis=0), mean[i].max(axis=0), i))
        figure.add_trace(_line(curve, mean[i], method, i))
    baseline = float(weighted_mean(curve.baseline, curve.weights))
    figure.add_hline(
        y=baseline,
        line={"color": MUTED, "dash": "dash", "width": 1.5},
        annotation={"text": "untouched model", "font": {"color": MUTED, "size": 12}},
        annotation_position="top right",
    )
    figure.update_xaxes(title_text="sites removed (%)", range=[-2, 102], dtick=10)
    figure.update_yaxes(title_text=metric_with_unit(curve.settings), zeroline=False)
    figure.update_layout(legend={"title": {"text": "ablation", "font": {"size": FONT_SIZE}}})
    add_note(figure, _note(curve))
    return figure


def _what(curve: PruningCurve) -> str:
    kind = str(curve.settings.get("kind", ""))
    return f"{site_noun(kind)}s" if kind else "sites"


def _removed_percent(curve: PruningCurve) -> np.ndarray:
    return 100 * np.asarray(curve.n_removed) / curve.n_sites


def _line(curve: PruningCurve, mean: np.ndarray, method: str, i: int) -> go.Scatter:
    middle = mean.mean(axis=0)
    details = np.stack(
        [np.asarray(curve.n_removed), mean.min(axis=0), mean.max(axis=0), 100 * np.asarray(curve.fractions)], axis=-1
    )
    spread = "<br>seeds %{customdata[1]:.4g} to %{customdata[2]:.4g}" if len(curve.seeds) > 1 else ""
    return line(
        _removed_percent(curve),
        middle,
        plain(method),
        i,
        customdata=details,
        hovertemplate=(
            f"<b>{plain(method)}</b><br>%{{customdata[0]}} of {curve.n_sites} sites removed "
            f"(%{{x:.1f}} %, asked %{{customdata[3]:.3~g}} %)<br>"
            f"{metric_name(curve.settings)} <b>%{{y:.4g}}</b>{unit_suffix(curve.settings)}{spread}<extra></extra>"
        ),
    )


def _note(curve: PruningCurve) -> str:
    seeds = ", ".join(map(str, curve.seeds))
    order = str(curve.settings.get("order", "")).replace("_", " ")
    if len(curve.seeds) == 1:
        return f"order: {plain(order)}, seed {seeds}, the same for every method"
    return (
        f"line: mean of {len(curve.seeds)} seeds ({seeds}) · band: lowest to highest seed · order: {plain(order)}, "
        "the same for every method"
    )
