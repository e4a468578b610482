"""Attributions: which components add, and how well that predicts ablations."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from lens_ablation.attribution.attribution import Attribution
from lens_ablation.attribution.correlation import CounterfactualCorrelation
from lens_ablation.plots.style import (
    FONT_SIZE,
    MUTED,
    PALETTE,
    TEXT,
    add_note,
    band,
    line,
    metric_name,
    metric_with_unit,
    new_figure,
    plain,
    setting_words,
    signed,
)

HEIGHT = 480
BAR_HEIGHT = 24
SHOWN = 20


def attribution_figure(attribution: Attribution, *, k: int = SHOWN) -> go.Figure:
    """The ``k`` components with the largest mean weights in size, with the interval of the mean over examples.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-vit")
        >>> task = la.tasks.digits(model, n=8).with_metric(la.metrics.correct_margin)
        >>> found = la.attribute(model, task, la.heads(model), la.Coar(n_masks=16), progress=False)
        >>> figure = la.plots.attribution_figure(found)
    """
    frame = attribution.strongest(k).iloc[::-1]
    settings = attribution.settings
    attributor = settings["attributor"]
    name = attributor["name"] if isinstance(attributor, dict) else ""
    figure = new_figure(
        f"Components with the largest weights: {plain(name)}",
        setting_words(settings, len(attribution.baseline)),
        height=180 + BAR_HEIGHT * len(frame),
    )
    figure.add_trace(_bars(frame))
    low, high = min(0.0, float(frame["low"].min())), max(0.0, float(frame["high"].max()))
    margin = 0.04 * (high - low)
    title = f"what keeping the component adds: {metric_with_unit(settings)}"
    figure.update_xaxes(title_text=title, range=[low - margin, high + margin], zeroline=True, zerolinecolor=MUTED)
    figure.update_yaxes(title_text="component", tickfont={"size": FONT_SIZE})
    figure.update_layout(showlegend=False)
    others = len(attribution.components) - len(frame)
    add_note(
        figure,
        "mean over examples with its 95 % interval · blue: keeping raises the metric, orange: it lowers it · "
        f"{others:,} others not shown",
    )
    return figure


def _bars(frame: pd.DataFrame) -> go.Bar:
    weights = frame["weight"].to_numpy(np.float64)
    return go.Bar(
        x=weights,
        y=frame["component"],
        orientation="h",
        marker={"color": [PALETTE[0] if weight > 0 else PALETTE[1] for weight in weights]},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": frame["high"] - weights,
            "arrayminus": weights - frame["low"],
            "color": TEXT,
        },
        customdata=[[signed(weight)] for weight in weights],
        hovertemplate="<b>%{y}</b><br>adds %{customdata[0]}<extra></extra>",
    )


def correlation_figure(correlation: CounterfactualCorrelation) -> go.Figure:
    """Mean correlation of predicted and measured outputs against the ablated fraction, a line for each attribution.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-vit")
        >>> task = la.tasks.digits(model, n=8).with_metric(la.metrics.correct_margin)
        >>> found = la.attribute(model, task, la.heads(model), la.Coar(n_masks=16), progress=False)
        >>> judged = la.counterfactual_correlation(found, model, task, [0.1, 0.2], n_masks=20, progress=False)
        >>> figure = la.plots.correlation_figure(judged)
    """
    settings, n_examples = correlation.settings, correlation.values.shape[2]
    figure = new_figure(
        "How well attributions predict fresh ablations",
        f"{metric_name(settings)} · {n_examples} examples · {settings['n_masks']} fresh masks for each fraction",
        height=HEIGHT,
    )
    mean, (low, high) = correlation.mean.numpy(), correlation.interval()
    x = 100 * np.asarray(correlation.fractions)
    for i, name in enumerate(correlation.attributions):
        figure.add_trace(band(x, low[i].numpy(), high[i].numpy(), i))
        figure.add_trace(
            line(
                x,
                mean[i],
                f"{plain(name)} ({correlation.n_passes[i]:,} passes)",
                i,
                hovertemplate=f"<b>{plain(name)}</b><br>%{{x:g}} % ablated<br>r = <b>%{{y:.3f}}</b><extra></extra>",
            )
        )
    figure.update_xaxes(title_text="components ablated (%)")
    figure.update_yaxes(title_text="Pearson r over masks, mean of examples", range=[min(-0.1, float(low.min())), 1.0])
    figure.update_layout(legend={"title": {"text": "attribution", "font": {"size": FONT_SIZE}}})
    add_note(figure, "band: 95 % interval of the mean over examples · a forward and a backward pass count three passes")
    return figure
