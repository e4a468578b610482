"""Modularity: what selective pruning forgets and keeps."""

from collections.abc import Mapping

import plotly.graph_objects as go

from lens_ablation.modularity.pruned import SELECTED, SelectivePruning
from lens_ablation.plots.style import (
    DASHES,
    FONT_SIZE,
    MUTED,
    PALETTE,
    SYMBOLS,
    add_note,
    literal,
    metric_name,
    metric_with_unit,
    new_figure,
    plain,
)

HEIGHT = 500


def selective_figure(results: Mapping[str, SelectivePruning]) -> go.Figure:
    """The metric on what is to be forgotten against that on what is retained, a line to a result, random ones in grey.

    Args:
        results: Selective pruning of one task by name of what differs: the score, or the method.

    Raises:
        ValueError: there are no results, or they are of different tests.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> sets = {
        ...     f"{use}{end}": la.tasks.domain(model, n=8, name=name, split=split)
        ...     for use, name in (("retain", "prose"), ("forget", "arithmetic"))
        ...     for end, split in (("", "train"), ("_test", "held_out"))
        ... }
        >>> found = la.prune_selectively(model, **sets, steps=2, rescore=False, n_random=1, progress=False)
        >>> figure = la.plots.selective_figure({"abs": found})
    """
    if not results:
        raise ValueError("no results were given; pass one or several by name")
    first = next(iter(results.values()))
    compared = ("model_fingerprint", "task_fingerprint", "retain_fingerprint", "metric")
    if any(result.settings[key] != first.settings[key] for result in results.values() for key in compared):
        raise ValueError("these results are of different models, tests or metrics; draw one figure to each")
    settings = first.settings
    figure = new_figure(
        f"Forgetting {plain(settings['task'])} by selective pruning",
        f"{literal(settings['model'])} · {first.forget.shape[2]} examples to forget, {first.retain.shape[2]} to retain",
        height=HEIGHT,
    )
    for curve, name in enumerate(first.curves):
        if name != SELECTED:
            is_first = curve == first.curves.index(name)
            figure.add_trace(_line(first, curve, plain(name), None, name != first.curves[1], is_first))
    for i, (name, result) in enumerate(results.items()):
        figure.add_trace(_line(result, 0, plain(name), i, False, True))
    figure.update_xaxes(title_text=f"{metric_with_unit(settings)}, retained: {plain(settings['retain'])}")
    figure.update_yaxes(title_text=f"{metric_name(settings)}, to forget", zeroline=False, rangemode="tozero")
    figure.update_layout(legend={"title": {"text": "pruned by", "font": {"size": FONT_SIZE}}})
    add_note(
        figure, "each point is a step, all from the untouched model · lower right: only what is to be forgotten is lost"
    )
    return figure


def _line(
    result: SelectivePruning, curve: int, name: str, i: int | None, is_matched: bool, is_first: bool
) -> go.Scatter:
    """A curve in its colour; a random one in grey."""
    grey = i is None
    place = 0 if i is None else i
    colour = MUTED if grey else PALETTE[place % len(PALETTE)]
    dash = ("dash" if is_matched else "dot") if grey else DASHES[place % len(DASHES)]
    return go.Scatter(
        x=result.retain_mean[curve].numpy(),
        y=result.forget_mean[curve].numpy(),
        name=name,
        mode="lines" if grey else "lines+markers",
        legendgroup=name,
        showlegend=is_first,
        line={"color": colour, "dash": dash, "width": 1.5 if grey else 2.5},
        marker={"symbol": SYMBOLS[place % len(SYMBOLS)], "size": 7},
        customdata=[100 * n / result.n_sites for n in result.n_removed],
        hovertemplate=f"<b>{name}</b><br>%{{customdata:.1f}} % pruned<br>retained %{{x:.3f}}<br>to forget "
        "<b>%{y:.3f}</b><extra></extra>",
    )
