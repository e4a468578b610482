"""Modularity: what selective pruning forgets and keeps, and what tasks share."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from lens_ablation.modularity.cross import CrossPruning
from lens_ablation.modularity.enrichment import Enrichment
from lens_ablation.modularity.overlap import Overlap
from lens_ablation.modularity.pruned import SELECTED, SelectivePruning
from lens_ablation.modularity.routing import RoutedQuality
from lens_ablation.plots.style import (
    CELL_TEXT_SIZE,
    COLOUR_BAR_MARGIN,
    DASHES,
    FONT_SIZE,
    MUTED,
    NOT_MEASURED,
    PALETTE,
    SYMBOLS,
    add_note,
    line,
    literal,
    metric_name,
    metric_with_unit,
    new_figure,
    number,
    plain,
    same_decimals,
    setting_words,
)
from lens_ablation.studies.intervals import weighted_mean

HEIGHT = 500
CELL_HEIGHT = 34
MOST_COUNTS = 32
"""Experts in a layer up to which their counts stand in the cells of the map."""


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
    figure.add_annotation(
        x=float(first.retain_mean[0, 0]),
        y=float(first.forget_mean[0, 0]),
        text="untouched",
        showarrow=False,
        yshift=14,
        font={"size": CELL_TEXT_SIZE},
    )
    add_note(
        figure, "each point is a step · straight down: only what is to be forgotten is lost · mind where axes begin"
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


def cross_pruning_figure(result: CrossPruning) -> go.Figure:
    """The change of the metric on every task (column) while the neurons of each (row) are pruned.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> tasks, tests = (
        ...     {name: la.tasks.domain(model, n=8, name=name, split=split) for name in ("prose", "code")}
        ...     for split in ("train", "held_out")
        ... )
        >>> figure = la.plots.cross_pruning_figure(la.cross_pruning(model, tasks, tests, progress=False))
    """
    settings = result.settings
    figure = new_figure(
        "Each task's neurons pruned, every task measured",
        f"{literal(settings['model'])} · {100 * _float(settings['fraction']):.3g} % of the neurons, by "
        f"{plain(settings['kind'])}",
        height=_matrix_height(len(result.names)),
    )
    limit = float(np.abs(result.change).max()) or 1.0
    hover = "pruned for <b>%{y}</b><br>measured on <b>%{x}</b><br>%{text}<extra></extra>"
    figure.add_trace(_matrix(result.change, result.names, limit, hover, higher=bool(settings["higher_is_better"])))
    _label_matrix(figure, "measured on", "pruned for", f"change of<br>{metric_with_unit(settings)}")
    add_note(figure, "rows: whose neurons are pruned · the diagonal: what that costs the task itself")
    return figure


def overlap_figure(result: Overlap) -> go.Figure:
    """Overlap of each two sets beyond that of random sets with as many sites in every layer.

    Example:
        >>> import lens_ablation as la
        >>> neurons = la.neurons(la.load_model("tiny-lm"))
        >>> sets = {name: neurons.sample(0.1, seed=i) for i, name in enumerate("abc")}
        >>> figure = la.plots.overlap_figure(la.overlap(sets))
    """
    n = len(result.names)
    figure = new_figure(
        "Overlap of sets of neurons beyond chance",
        f"{int(result.sizes[0])} of {int(result.width.sum())} sites in the first set · chance: random sets "
        "with as many in every layer",
        height=_matrix_height(n),
    )
    excess = np.where(np.eye(n, dtype=bool), np.nan, result.excess)
    limit = float(np.nanmax(np.abs(excess))) or 1.0
    detail = [
        [
            f"overlap {result.overlap[a, b]:.3f}<br>chance {result.chance_in_layers[a, b]:.3f}<br>"
            f"Jaccard {result.jaccard[a, b]:.3f}<br>z {number(float(result.z[a, b]))}"
            if a != b
            else ""
            for b in range(n)
        ]
        for a in range(n)
    ]
    hover = "<b>%{y}</b> and <b>%{x}</b><br>%{customdata}<extra></extra>"
    trace = _matrix(excess, result.names, limit, hover, higher=False)
    trace.customdata = detail
    figure.add_trace(trace)
    _label_matrix(figure, "second set", "first set", "share of the<br>first set,<br>less chance")
    figure.update_layout(plot_bgcolor=NOT_MEASURED)
    add_note(figure, "red: more of the first set is in the second than by chance · grey: the set itself")
    return figure


def enrichment_figure(result: Enrichment) -> go.Figure:
    """How unevenly each set lies in the experts of each layer, in standard deviations of random sets.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-vit")
        >>> experts = la.split_into_experts(model, None, 8, la.RandomSplit(), progress=False)
        >>> sets = {name: la.neurons(model).sample(0.1, seed=i) for i, name in enumerate("ab")}
        >>> figure = la.plots.enrichment_figure(la.enrichment(sets, experts, n_permutations=100))
    """
    figure = new_figure(
        "Do the neurons of a task gather in few experts?",
        f"{_experts_words(result)} · {len(result.null)} permutations",
        height=HEIGHT,
    )
    layers = np.asarray(result.layers)
    for i, name in enumerate(result.names):
        hover = f"<b>{plain(name)}</b><br>layer %{{x}}<br>z <b>%{{y:.1f}}</b><extra></extra>"
        figure.add_trace(line(layers, result.z[i], plain(name), i, hovertemplate=hover))
    figure.add_hrect(y0=-3, y1=3, fillcolor=MUTED, opacity=0.12, line_width=0)
    figure.update_xaxes(title_text="layer", tickvals=layers.tolist(), zeroline=False)
    figure.update_yaxes(title_text="z of concentration (standard deviations)")
    figure.update_layout(legend={"title": {"text": "neurons of", "font": {"size": FONT_SIZE}}})
    add_note(figure, "grey: within 3 standard deviations of random sets · a gap: no neurons of the task in the layer")
    return figure


def expert_map(result: Enrichment, name: str | None = None) -> go.Figure:
    """How many of a set's neurons each expert has, beside the mean of the layer's experts.

    Colours go by the logarithm of count over mean; experts are in the order of their counts.

    Args:
        result: Enrichment of one set, or of several.
        name: Which of them; the first by default.

    Raises:
        ValueError: there is no such set.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-vit")
        >>> experts = la.split_into_experts(model, None, 8, la.RandomSplit(), progress=False)
        >>> figure = la.plots.expert_map(la.enrichment(experts[2, 3], experts, n_permutations=100))
    """
    wanted = result.names[0] if name is None else name
    if wanted not in result.names:
        raise ValueError(f"there is no set {wanted!r}; sets are {', '.join(result.names)}")
    i = result.names.index(wanted)
    # experts in the order of their counts, as their numbers mean nothing
    counts = np.sort(result.counts[i], axis=1)[:, ::-1]
    ratio = np.sort(result.ratio[i], axis=1)[:, ::-1]
    # none at all has no logarithm: it is shown as the end of the scale, which no other count reaches
    limit = int(np.ceil(np.abs(np.log2(ratio[ratio > 0])).max(initial=0))) + 1
    shown = np.where(ratio > 0, np.log2(np.where(ratio > 0, ratio, 1)), np.where(np.isnan(ratio), np.nan, -limit))
    ticks = range(1 - limit, limit)
    figure = new_figure(
        f"Experts that hold the neurons of {plain(wanted)}",
        _experts_words(result),
        height=_matrix_height(len(result.layers)),
    )
    figure.add_trace(
        go.Heatmap(
            z=shown,
            x=np.arange(1, counts.shape[1] + 1),
            y=[str(layer) for layer in result.layers],
            customdata=counts,
            text=counts if counts.shape[1] <= MOST_COUNTS else None,
            texttemplate="%{text}" if counts.shape[1] <= MOST_COUNTS else None,
            textfont={"size": CELL_TEXT_SIZE},
            colorscale="RdBu_r",
            zmin=-limit,
            zmid=0,
            zmax=limit,
            xgap=1,
            ygap=1,
            colorbar={
                "title": {"text": "neurons over<br>the mean of<br>the layer", "font": {"size": FONT_SIZE}},
                "tickvals": [-limit, *ticks],
                "ticktext": ["none", *(f"{2**t}×" if t >= 0 else f"1/{2**-t}×" for t in ticks)],
            },
            hovertemplate="layer %{y}<br><b>%{customdata}</b> neurons<extra></extra>",
        )
    )
    figure.update_xaxes(
        title_text="experts, in order of how many of the neurons they hold", showgrid=False, zeroline=False
    )
    figure.update_yaxes(title_text="layer", type="category", autorange="reversed", showgrid=False)
    figure.update_layout(margin={"r": COLOUR_BAR_MARGIN}, plot_bgcolor=NOT_MEASURED)
    z = ", ".join(number(float(value)) for value in result.z[i])
    add_note(figure, f"in the cells: how many · red: more than their share · z by layer: {z}")
    return figure


def routing_figure(result: RoutedQuality) -> go.Figure:
    """The metric against the share of experts used at each token: a line to a way of splitting.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-vit")
        >>> experts = la.split_into_experts(model, None, 8, la.RandomSplit(), progress=False)
        >>> task = la.tasks.digits(model, n=8)
        >>> figure = la.plots.routing_figure(la.routed_quality(model, task, experts, kept=(2, 8), progress=False))
    """
    settings = result.settings
    figure = new_figure(
        "Only the best experts at each token", setting_words(settings, len(result.baseline)), height=HEIGHT
    )
    share = 100 * np.asarray(result.kept) / result.n_experts
    for i, name in enumerate(result.splits):
        hover = f"<b>{plain(name)}</b><br>%{{x:.3g}} % of the experts<br><b>%{{y:.3f}}</b><extra></extra>"
        figure.add_trace(line(share, result.mean[i].numpy(), plain(name), i, hovertemplate=hover))
    untouched = float(weighted_mean(result.baseline.double(), result.weights))
    figure.add_hline(y=untouched, line={"color": MUTED, "dash": "dash", "width": 1.5})
    figure.update_xaxes(title_text="experts used in each layer (%)", rangemode="tozero")
    figure.update_yaxes(title_text=metric_with_unit(settings), zeroline=False, rangemode="tozero")
    figure.update_layout(showlegend=True, legend={"title": {"text": "experts by", "font": {"size": FONT_SIZE}}})
    add_note(
        figure, f"{result.n_experts} experts in each layer, chosen by true activations · dashed: the untouched model"
    )
    return figure


def _experts_words(result: Enrichment) -> str:
    """Whose experts these are, for a subtitle."""
    settings = result.settings
    size = f"{result.counts.shape[2]} experts of {result.size} neurons in each layer"
    return f"{literal(settings['model'])} · {size}, by {literal(settings['split'])}"


def _float(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)


def _matrix_height(n: int) -> int:
    return 230 + CELL_HEIGHT * max(n, 4)


def _matrix(values: np.ndarray, names: Sequence[str], limit: float, hover: str, *, higher: bool) -> go.Heatmap:
    """A matrix with a scale around zero and its numbers in the cells; blue is more where ``higher``, else red."""
    labels = [plain(name) for name in names]
    return go.Heatmap(
        z=values,
        x=labels,
        y=labels,
        text=[["" if np.isnan(v) else _signed_cell(float(v), limit) for v in row] for row in values],
        texttemplate="%{text}",
        textfont={"size": CELL_TEXT_SIZE},
        colorscale="RdBu" if higher else "RdBu_r",
        zmin=-limit,
        zmid=0,
        zmax=limit,
        xgap=1,
        ygap=1,
        hovertemplate=hover,
        hoverongaps=False,
    )


def _signed_cell(value: float, limit: float) -> str:
    """A change with its sign, all cells with as many decimals."""
    shown = same_decimals(value, limit)
    return "0" if float(shown.replace("−", "-")) == 0 else f"+{shown}" if value > 0 else shown


def _label_matrix(figure: go.Figure, across: str, down: str, bar: str) -> None:
    figure.update_traces(colorbar={"title": {"text": bar, "font": {"size": FONT_SIZE}}})
    figure.update_xaxes(title_text=across, type="category", showgrid=False)
    figure.update_yaxes(title_text=down, type="category", autorange="reversed", showgrid=False)
    figure.update_layout(margin={"r": COLOUR_BAR_MARGIN})
