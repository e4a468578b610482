"""Optimal ablation: methods against each other, and how constants were found."""

from math import ceil

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_ablation.methods.optimal_constants import OptimalConstants
from lens_ablation.optimal.compare import MethodComparison
from lens_ablation.plots.style import (
    BOTTOM_MARGIN,
    MUTED,
    PALETTE,
    SUBTITLE_SIZE,
    TITLE_HEIGHT,
    add_note,
    dress,
    literal,
    new_figure,
    plain,
    setting_words,
)
from lens_ablation.studies.correlations import spearman

PANEL, GAP, COLUMNS = 210, 96, 3
TOP = TITLE_HEIGHT + 40
DECADES = 5
"""Powers of ten below the largest gap that are shown; smaller gaps stand at the edge, as crosses."""


def gaps_figure(comparison: MethodComparison, *, against: str | None = None) -> go.Figure:
    """Gap of each site by each method against its gap by one, a panel to a method, on logarithmic axes.

    Args:
        comparison: From ``compare_methods``.
        against: The method across; counterfactual ablation by default, or else the last.

    Raises:
        ValueError: there is no such method, or only one.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task, heads = la.tasks.ioi(model, n=32), la.heads(model)
        >>> methods = [la.Zero(), la.Counterfactual(task)]
        >>> figure = la.plots.gaps_figure(la.compare_methods(model, task, heads, methods, progress=False))
    """
    names = comparison.methods
    across = against or ("Counterfactual" if "Counterfactual" in names else names[-1])
    comparison.of(across)
    others = [name for name in names if name != across]
    if not others:
        raise ValueError("a comparison needs two methods or more")
    n_rows = ceil(len(others) / COLUMNS)
    height = TOP + BOTTOM_MARGIN + n_rows * PANEL + (n_rows - 1) * GAP
    gap = comparison.gap.numpy().astype(np.float64)
    top = float(gap.max()) * 1.6
    low = max(top / 10**DECADES / 1.6, 1e-12)
    x = gap[names.index(across)]
    titles = [f"<b>{plain(name)}</b><br>rank correlation {spearman(gap[names.index(name)], x):.2f}" for name in others]
    figure = make_subplots(
        rows=n_rows,
        cols=COLUMNS,
        subplot_titles=titles,
        shared_xaxes=True,
        shared_yaxes=True,
        vertical_spacing=GAP / (height - TOP - BOTTOM_MARGIN),
        horizontal_spacing=0.05,
    )
    for i, name in enumerate(others):
        row, column = i // COLUMNS + 1, i % COLUMNS + 1
        figure.add_traces(_panel(comparison, name, across, low, top), rows=row, cols=column)
    unit = plain(comparison.settings["unit"])
    ends = [np.log10(low / 1.5), np.log10(top)]
    figure.update_xaxes(type="log", range=ends, dtick=1, exponentformat="power", showticklabels=True)
    figure.update_yaxes(type="log", range=ends, dtick=1, exponentformat="power")
    for column in range(1, COLUMNS + 1):
        last = (len(others) - column) // COLUMNS + 1
        if last >= 1:
            figure.update_xaxes(title_text=f"{plain(across)} ({unit})", row=last, col=column)
    for row in range(1, n_rows + 1):
        figure.update_yaxes(title_text=f"gap ({unit})", row=row, col=1)
    dress(
        figure,
        "What ablating each site alone adds to the loss, by method",
        setting_words(comparison.settings, comparison.gaps.shape[2]),
        height=height,
    )
    figure.update_layout(margin={"t": TOP}, showlegend=False)
    figure.update_annotations(font={"size": SUBTITLE_SIZE})
    add_note(
        figure,
        "line: both methods agree · above it the panel's method finds more harm · crosses: smaller gaps, at the edge",
    )
    return figure


def _panel(comparison: MethodComparison, name: str, across: str, low: float, top: float) -> list[go.Scatter]:
    names = comparison.methods
    x, y = (comparison.gap[names.index(one)].numpy() for one in (across, name))
    error = comparison.error[names.index(name)].numpy()
    diagonal = go.Scatter(x=[low, top], y=[low, top], mode="lines", line={"color": MUTED, "width": 1}, hoverinfo="skip")
    points = go.Scatter(
        x=np.maximum(x, low),
        y=np.maximum(y, low),
        mode="markers",
        marker={
            "color": PALETTE[0],
            "size": 6,
            "opacity": 0.75,
            "symbol": np.where((x < low) | (y < low), "x", "circle"),
        },
        customdata=np.stack([x, y, error], axis=-1),
        hovertext=[literal(site) for site in comparison.sites],
        hovertemplate=(
            f"<b>%{{hovertext}}</b><br>{plain(name)} %{{customdata[1]:.3g}} ± %{{customdata[2]:.2g}}<br>"
            f"{plain(across)} %{{customdata[0]:.3g}}<extra></extra>"
        ),
    )
    return [diagonal, points]


def descent_figure(constants: OptimalConstants) -> go.Figure:
    """Validation gap of every problem while its constants were searched for, as a share of the gap of the means.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task = la.tasks.ioi(model, n=64)
        >>> found = la.fit_optimal(model, task, la.heads(model)[3], steps=10, evaluate_every=5, progress=False)
        >>> figure = la.plots.descent_figure(found)
    """
    curve = constants.curve.numpy().astype(np.float64)
    share = 100 * curve / np.where(np.abs(curve[0]) > 0, curve[0], np.nan)
    provenance = constants.provenance
    figure = new_figure(
        "Search for the constants that hurt least",
        f"{literal(provenance.model_name)}, {plain(provenance.measurement['task'])} · "
        f"{'a constant to each position' if constants.per_position else 'one constant for all positions'} · "
        + (f"{len(constants.problems)} sites alone" if constants.ablated_fraction is None else constants.problems[0]),
        height=460,
    )
    steps = constants.steps.numpy()
    for i, name in enumerate(constants.problems):
        figure.add_trace(
            go.Scatter(
                x=steps,
                y=share[:, i],
                mode="lines",
                line={"color": MUTED, "width": 1},
                opacity=0.45,
                name="a site" if constants.ablated_fraction is None else "all together",
                legendgroup="each",
                showlegend=i == 0,
                hovertemplate=f"<b>{literal(name)}</b><br>step %{{x}}: %{{y:.1f}} %<extra></extra>",
            )
        )
    # a problem that has stopped counts with its best value from then on
    best = np.fmin.accumulate(np.where(np.isfinite(share), share, np.inf), axis=0)
    figure.add_trace(
        go.Scatter(
            x=steps,
            y=np.median(best, axis=1),
            mode="lines+markers",
            line={"color": PALETTE[0], "width": 3},
            name="median of the best so far",
            hovertemplate="median, step %{x}: %{y:.1f} %<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="step", rangemode="tozero")
    figure.update_yaxes(title_text="gap (% of that of the mean)", range=[0, 130])
    add_note(figure, "on validation examples · 100 %: ablation to the mean · a line ends where its search stopped")
    return figure
