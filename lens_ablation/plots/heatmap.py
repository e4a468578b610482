"""The effect of ablating each site: a heatmap by layer and head or unit, or bars by layer."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from lens_ablation.plots.grid import (
    EffectGrid,
    column_title,
    effect_grid,
    effect_words,
    scale_limit,
    site_noun,
)
from lens_ablation.plots.style import (
    BOTTOM_MARGIN,
    CELL_TEXT_SIZE,
    COLOUR_BAR_MARGIN,
    MUTED,
    NOT_MEASURED,
    TEXT,
    TITLE_HEIGHT,
    add_note,
    metric_name,
    new_figure,
    number,
    plain,
    same_decimals,
    setting_words,
    unit_suffix,
)
from lens_ablation.studies.intervals import weighted_mean
from lens_ablation.studies.sweep import SweepResult

MOST_COLUMNS_WITH_TEXT = 16
MOST_COLUMNS_WITH_MARKS = 64


def sweep_heatmap(result: SweepResult, *, limit: float | None = None, confidence: float = 0.95) -> go.Figure:
    """The mean effect of each site, by layer and head (or unit); of whole layers, bars with their intervals.

    Colours are symmetric about zero. Effects beyond the scale are marked with a triangle; cells that were not
    measured are grey, with a cross where there is room for it, and never zero.

    Args:
        result: A sweep.
        limit: End of the colour scale in the metric's unit; by default the largest effect, or three root mean
            squares if some effects are far larger than the rest.
        confidence: Of the interval on hover.

    Raises:
        ValueError: ``limit`` is not positive.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> result = la.sweep(model, la.tasks.ioi(model, n=8), la.heads(model), la.Zero(), progress=False)
        >>> figure = la.plots.sweep_heatmap(result)
    """
    if limit is not None and not limit > 0:
        raise ValueError(f"limit must be positive, it is the end of a scale around zero; got {limit}")
    grid = effect_grid(result, confidence=confidence)
    end = scale_limit([grid]) if limit is None else limit
    kind = result.sites.kind
    title = f"{plain(result.method_name)} ablation, each {site_noun(kind)} alone"
    figure = new_figure(title, subtitle(result), height=figure_height(grid, kind))
    for trace in panel_traces(grid, result, end, confidence):
        figure.add_trace(trace)
    axes = panel_axes(grid, kind, result)
    figure.update_xaxes(axes["xaxis"])
    figure.update_yaxes(axes["yaxis"])
    add_note(figure, reading_note(result, [grid], end, confidence))
    if not is_by_layer(kind):
        figure.update_layout(coloraxis=colour_axis(result, [grid], end), margin={"r": COLOUR_BAR_MARGIN})
    return figure


def higher_is_better(result: SweepResult) -> bool:
    """Whether a larger metric means a better model."""
    return bool(result.settings.get("higher_is_better", True))


def is_by_layer(kind: str) -> bool:
    """Whether a layer has one site of this kind, so that bars say more than a column of cells."""
    return kind in ("attention", "mlp")


def subtitle(result: SweepResult) -> str:
    """Model, task, examples, and the metric of the untouched model."""
    baseline = number(float(weighted_mean(result.baseline, result.weights)))
    words = setting_words(result.settings, result.values.shape[1])
    return f"{words} · {metric_name(result.settings)} untouched {baseline}{unit_suffix(result.settings)}"


def reading_note(result: SweepResult, grids: Sequence[EffectGrid], limit: float, confidence: float) -> str:
    """What the colours and marks mean, as far as they occur."""
    by_layer = is_by_layer(result.sites.kind)
    worse = "lowers" if higher_is_better(result) else "raises"
    words = [f"red: ablating {worse} the {metric_name(result.settings)}"]
    if by_layer:
        words.append(f"whiskers: {confidence:.0%} interval of the mean over examples")
    elif any((np.abs(grid.mean[np.isfinite(grid.mean)]) > limit).any() for grid in grids):
        words.append("△ ▽: beyond the colour scale")
    if any(np.isnan(grid.mean).any() for grid in grids):
        words.append("×: not measured" if by_layer else "grey: not measured")
    return " · ".join(words)


def figure_height(grid: EffectGrid, kind: str) -> int:
    """Pixels for a figure of one panel."""
    if is_by_layer(kind):
        return 420
    row = 44 if grid.shape[1] <= MOST_COLUMNS_WITH_TEXT else 34
    return TITLE_HEIGHT + BOTTOM_MARGIN + max(180, min(640, row * grid.shape[0]))


def panel_traces(
    grid: EffectGrid, result: SweepResult, limit: float, confidence: float
) -> list[go.Heatmap | go.Bar | go.Scatter]:
    """What one panel draws: the cells (or bars), the cells that are missing, the marks of clipped ones."""
    if is_by_layer(result.sites.kind):
        return [_bars(grid, result, limit, confidence), *_missing_bars(grid)]
    return [
        _cells(grid, result, limit, confidence),
        *_missing_cells(grid),
        *_head_borders(result),
        *_clip_marks(grid, limit),
    ]


def panel_axes(grid: EffectGrid, kind: str, result: SweepResult) -> dict[str, dict]:
    """The ``xaxis`` and the ``yaxis`` of one panel."""
    if is_by_layer(kind):
        layers = list(range(grid.shape[0]))
        return {
            "xaxis": {"title": {"text": "layer"}, "tickvals": layers, "showgrid": False},
            "yaxis": {"title": {"text": effect_words(result)}},
        }
    n_layers, n_columns = grid.shape
    step = max(1, -(-n_layers // 16))
    layers = list(range(0, n_layers, step))
    columns = {"tickvals": grid.tick_places, "ticktext": grid.tick_labels, "range": [-0.5, n_columns - 0.5]}
    rows = {"tickvals": layers, "range": [n_layers - 0.5, -0.5]}
    still = {"showgrid": False, "zeroline": False}
    return {
        "xaxis": {"title": {"text": column_title(kind)}, **columns, **still},
        "yaxis": {"title": {"text": "layer"}, **rows, **still},
    }


def colour_axis(result: SweepResult, grids: Sequence[EffectGrid], limit: float) -> dict:
    """The symmetric colour scale with its bar; red is the direction in which the metric gets worse."""
    effects = np.concatenate([grid.mean[np.isfinite(grid.mean)] for grid in grids])
    ends = ("≤ " if (effects < -limit).any() else "", "≥ " if (effects > limit).any() else "")
    places = [-limit, -limit / 2, 0, limit / 2, limit]
    labels = [number(place) for place in places]
    labels[0], labels[-1] = ends[0] + labels[0], ends[1] + labels[-1]
    words = effect_words(result).replace("change of ", "change of<br>").replace(" (", "<br>(") + "<br>&nbsp;"
    return {
        "cmin": -limit,
        "cmax": limit,
        "colorscale": "RdBu" if higher_is_better(result) else "RdBu_r",
        "colorbar": {
            "title": {"text": words, "side": "top", "font": {"size": 12}},
            "tickvals": places,
            "ticktext": labels,
            "thickness": 14,
            "outlinewidth": 0,
            "len": 1,
            "lenmode": "fraction",
        },
    }


def hover_text(result: SweepResult, value: str, confidence: float) -> str:
    """What hovering over a site shows; ``value`` is plotly's name of the effect."""
    metric, unit = metric_name(result.settings), unit_suffix(result.settings)
    baseline = number(float(weighted_mean(result.baseline, result.weights)))
    return (
        f"<b>%{{hovertext}}</b> · {plain(result.method_name)}<br>"
        f"change of {metric} <b>%{{{value}:+.3g}}</b>{unit}<br>"
        f"{confidence:.0%} interval %{{customdata[0]:+.3g}} to %{{customdata[1]:+.3g}}<br>"
        f"{metric} %{{customdata[2]:.4g}}{unit}, untouched {baseline}<extra></extra>"
    )


def _cells(grid: EffectGrid, result: SweepResult, limit: float, confidence: float) -> go.Heatmap:
    with_text = grid.shape[1] <= MOST_COLUMNS_WITH_TEXT
    texts = np.vectorize(same_decimals, otypes=[object])(grid.mean, limit) if with_text else None
    return go.Heatmap(
        z=grid.mean,
        customdata=np.stack([grid.low, grid.high, grid.value], axis=-1),
        hovertext=grid.names,
        hovertemplate=hover_text(result, "z", confidence),
        hoverongaps=False,
        text=texts,
        texttemplate="%{text}" if with_text else None,
        textfont={"size": CELL_TEXT_SIZE},
        coloraxis="coloraxis",
        xgap=1 if with_text else 0,
        ygap=1,
    )


def _missing_cells(grid: EffectGrid) -> list[go.Heatmap]:
    """A grey cell for each site without a finite effect, with a cross where it can be read."""
    missing = np.isnan(grid.mean)
    if not missing.any():
        return []
    with_marks = grid.shape[1] <= MOST_COLUMNS_WITH_MARKS
    why = np.where(grid.measured, "not finite", "not measured")
    return [
        go.Heatmap(
            z=np.where(missing, 0.0, np.nan),
            colorscale=[[0, NOT_MEASURED], [1, NOT_MEASURED]],
            showscale=False,
            text=np.where(missing, "×", "") if with_marks else None,
            texttemplate="%{text}" if with_marks else None,
            textfont={"size": CELL_TEXT_SIZE, "color": MUTED},
            hovertext=np.char.add(np.char.add(grid.names.astype(str), "<br>"), why),
            hovertemplate="%{hovertext}<extra></extra>",
            hoverongaps=False,
            xgap=1 if grid.shape[1] <= MOST_COLUMNS_WITH_TEXT else 0,
            ygap=1,
        )
    ]


def _head_borders(result: SweepResult) -> list[go.Scatter]:
    """Lines where one head's coordinates end and the next one's begin."""
    if len(result.sites.shape) != 3:
        return []
    n_layers, n_heads, width = result.sites.shape
    borders = np.arange(1, n_heads) * width - 0.5
    return [
        go.Scatter(
            x=np.stack([borders, borders, np.full_like(borders, np.nan)], axis=1).ravel(),
            y=np.tile([-0.5, n_layers - 0.5, np.nan], n_heads - 1),
            mode="lines",
            line={"color": MUTED, "width": 1},
            showlegend=False,
            hoverinfo="skip",
        )
    ]


def _clip_marks(grid: EffectGrid, limit: float) -> list[go.Scatter]:
    """A triangle in each cell whose effect lies beyond the scale, pointing the way it goes."""
    beyond = np.isfinite(grid.mean) & (np.abs(grid.mean) > limit)
    if not beyond.any():
        return []
    layers, columns = np.nonzero(beyond)
    above = grid.mean[beyond] > 0
    return [
        go.Scatter(
            x=columns,
            y=layers - 0.32,
            mode="markers",
            marker={
                "symbol": np.where(above, "triangle-up", "triangle-down").tolist(),
                "size": 9 if grid.shape[1] <= MOST_COLUMNS_WITH_MARKS else 6,
                "color": "white",
                "line": {"color": TEXT, "width": 1},
            },
            name="beyond the colour scale",
            showlegend=False,
            hoverinfo="skip",
        )
    ]


def _bars(grid: EffectGrid, result: SweepResult, limit: float, confidence: float) -> go.Bar:
    mean, low, high = grid.mean[:, 0], grid.low[:, 0], grid.high[:, 0]
    return go.Bar(
        x=np.arange(grid.shape[0]),
        y=mean,
        error_y={
            "type": "data",
            "symmetric": False,
            "array": high - mean,
            "arrayminus": mean - low,
            "color": TEXT,
            "thickness": 1.2,
            "width": 5,
        },
        marker={
            "color": mean,
            "colorscale": "RdBu" if higher_is_better(result) else "RdBu_r",
            "cmin": -limit,
            "cmax": limit,
            "line": {"color": MUTED, "width": 1},
        },
        customdata=np.stack([low, high, grid.value[:, 0]], axis=-1),
        hovertext=grid.names[:, 0],
        hovertemplate=hover_text(result, "y", confidence),
        showlegend=False,
    )


def _missing_bars(grid: EffectGrid) -> list[go.Scatter]:
    missing = np.flatnonzero(np.isnan(grid.mean[:, 0]))
    if missing.size == 0:
        return []
    why = np.where(grid.measured[missing, 0], "not finite", "not measured")
    return [
        go.Scatter(
            x=missing,
            y=np.zeros(missing.size),
            mode="markers",
            marker={"symbol": "x-thin", "size": 9, "line": {"color": MUTED, "width": 2}},
            hovertext=[f"{name}<br>{reason}" for name, reason in zip(grid.names[missing, 0], why, strict=True)],
            hovertemplate="%{hovertext}<extra></extra>",
            showlegend=False,
        )
    ]
