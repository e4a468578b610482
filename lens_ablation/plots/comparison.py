"""Several sweeps side by side on one scale."""

from collections.abc import Sequence
from math import ceil

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_ablation.plots.grid import effect_grid, scale_limit, site_noun
from lens_ablation.plots.heatmap import (
    MOST_COLUMNS_WITH_TEXT,
    colour_axis,
    is_by_layer,
    panel_axes,
    panel_traces,
    reading_note,
)
from lens_ablation.plots.style import (
    BOTTOM_MARGIN,
    COLOUR_BAR_MARGIN,
    SUBTITLE_SIZE,
    TITLE_HEIGHT,
    add_note,
    dress,
    literal,
    metric_with_unit,
    number,
    plain,
    setting_words,
    unit_suffix,
)
from lens_ablation.studies.intervals import weighted_mean
from lens_ablation.studies.sweep import SweepResult

PANEL_HEIGHT, PANEL_GAP, TOP_MARGIN = 200, 76, TITLE_HEIGHT + 24


def comparison_figure(
    results: Sequence[SweepResult], *, limit: float | None = None, confidence: float = 0.95
) -> go.Figure:
    """Sweeps of the same kind of site under the same metric as small multiples on one colour scale.

    Args:
        results: One panel each, for example one for each ablation method.
        limit: End of the colour scale; chosen from all results together when ``None``.
        confidence: Of the interval on hover.

    Raises:
        ValueError: there are no results, or they differ in metric or kind of site.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task, heads = la.tasks.ioi(model, n=8), la.heads(model)
        >>> methods = [la.Zero(), la.Resample(task, match="batch")]
        >>> figure = la.plots.comparison_figure([la.sweep(model, task, heads, m, progress=False) for m in methods])
    """
    _check_comparable(results)
    first, kind = results[0], results[0].sites.kind
    grids = [effect_grid(result, confidence=confidence) for result in results]
    end = scale_limit(grids) if limit is None else limit
    n_columns = 1 if max(grid.shape[1] for grid in grids) > MOST_COLUMNS_WITH_TEXT else min(2, len(results))
    n_rows = ceil(len(results) / n_columns)
    height = TOP_MARGIN + BOTTOM_MARGIN + n_rows * PANEL_HEIGHT + (n_rows - 1) * PANEL_GAP
    figure = make_subplots(
        rows=n_rows,
        cols=n_columns,
        subplot_titles=_panel_titles(results),
        vertical_spacing=PANEL_GAP / (height - TOP_MARGIN - BOTTOM_MARGIN),
        horizontal_spacing=0.09,
    )
    for i, (result, grid) in enumerate(zip(results, grids, strict=True)):
        row, column = i // n_columns + 1, i % n_columns + 1
        figure.add_traces(panel_traces(grid, result, end, confidence), rows=row, cols=column)
        axes = panel_axes(grid, kind, result)
        if is_by_layer(kind):
            axes["yaxis"]["title"]["text"] = "change"
        figure.update_xaxes(axes["xaxis"], row=row, col=column)
        figure.update_yaxes(axes["yaxis"] if column == 1 else axes["yaxis"] | {"title": None}, row=row, col=column)
    title = f"Each {site_noun(kind)} ablated alone: change of {metric_with_unit(first.settings)}"
    dress(figure, title, _subtitle(results), height=height)
    figure.update_layout(margin={"t": TOP_MARGIN})
    figure.update_annotations(font={"size": SUBTITLE_SIZE})
    add_note(figure, reading_note(first, grids, end, confidence))
    if is_by_layer(kind):
        figure.update_yaxes(matches="y")
    else:
        figure.update_layout(coloraxis=colour_axis(first, grids, end), margin={"r": COLOUR_BAR_MARGIN})
    return figure


def _check_comparable(results: Sequence[SweepResult]) -> None:
    if not results:
        raise ValueError("no results were given; pass several sweeps, for example one for each method")
    first = results[0]
    for result in results[1:]:
        for what in ("metric", "unit"):
            if result.settings[what] != first.settings[what]:
                raise ValueError(
                    f"results on one colour scale need one {what}; got {first.settings[what]!r} and "
                    f"{result.settings[what]!r}. Draw them in two figures."
                )
        if result.sites.kind != first.sites.kind:
            raise ValueError(
                f"results side by side need one kind of site; got {first.sites.kind} and {result.sites.kind}"
            )


def _panel_titles(results: Sequence[SweepResult]) -> list[str]:
    """The method, and of model and task what differs between the results."""
    differing = [key for key in ("model", "task") if len({str(result.settings[key]) for result in results}) > 1]
    return [
        " · ".join([f"<b>{plain(result.method_name)}</b>", *(literal(result.settings[key]) for key in differing)])
        for result in results
    ]


def _subtitle(results: Sequence[SweepResult]) -> str:
    first = results[0]
    sources = {setting_words(result.settings, result.values.shape[1]) for result in results}
    if len(sources) > 1:
        return f"{len(results)} results"
    baseline = number(float(weighted_mean(first.baseline, first.weights)))
    return f"{sources.pop()} · untouched model {baseline}{unit_suffix(first.settings)}"
