"""Histograms of single activations, with what zero, mean and peak ablation would put in their place."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_ablation.plots.style import (
    BOTTOM_MARGIN,
    NOTE_SIZE,
    PALETTE,
    SUBTITLE_SIZE,
    TITLE_HEIGHT,
    add_note,
    dress,
    literal,
    new_figure,
    number,
)
from lens_ablation.sites import HookPoint, Site, unit_site
from lens_ablation.statistics.activation_statistics import ActivationStatistics, PointStatistics
from lens_ablation.statistics.shapes import Shape

HEIGHT, ROW_HEIGHT, ROW_GAP = 440, 150, 58
_LOG = {"type": "log", "dtick": 1, "exponentformat": "power"}
BAR_COLOUR = "#9fb4c7"


class _Mark(NamedTuple):
    name: str
    colour: str
    dash: str


MARKS = (
    _Mark("zero", "#000000", "dot"),
    _Mark("mean", PALETTE[0], "dash"),
    _Mark("peak", PALETTE[1], "solid"),
)


def activation_histogram(statistics: ActivationStatistics, site: Site, *, log_counts: bool = False) -> go.Figure:
    """How often an activation took which value, with zero, its mean and its peak marked.

    Args:
        statistics: Measured at the site's hook, with histograms.
        site: One coordinate: an attention neuron such as ``attention_neurons(model)[2, 1, 5]``, or an MLP neuron.
        log_counts: A logarithmic axis for the counts, which shows the tails.

    Raises:
        StatisticsMismatch: the statistics hold nothing on the site's hook.
        ValueError: the site is more than one coordinate, or no histograms were collected.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> neurons = la.attention_neurons(model)
        >>> stats = la.collect_statistics(model, la.tasks.ioi(model, n=64), neurons, progress=False)
        >>> figure = la.plots.activation_histogram(stats, neurons[2, 1, 5])
    """
    if site.unit is None:
        raise ValueError(
            f"{site} is a whole {site.kind}, and a histogram shows one activation; choose one, such as "
            "attention_neurons(model)[2, 1, 5] or neurons(model)[3, 17]"
        )
    measured, address = statistics[site.hook_point], site.address[1:]
    found, labels = _coordinate(measured, address), measured.shapes
    label = "" if labels is None else f": {labels[address]}"
    figure = new_figure(
        f"Activation of {site}{label}",
        _subtitle(statistics, int(found.counts.sum())),
        height=HEIGHT,
    )
    figure.add_traces([found.bars(), *found.marks(with_values=True, log_counts=log_counts)])
    figure.update_xaxes(title_text=f"activation at {site.hook_name}", showgrid=False, zeroline=False)
    figure.update_yaxes(title_text="count")
    if log_counts:
        figure.update_yaxes(title_text="count, log scale", **_LOG)
    figure.update_layout(bargap=0)
    add_note(figure, _note(found))
    return figure


def distribution_gallery(statistics: ActivationStatistics, *, examples: int = 3) -> go.Figure:
    """Examples of each shape of distribution that occurs, counts on a logarithmic axis.

    The labels come from stated thresholds, see ``lens_ablation.statistics.shapes``.

    Args:
        statistics: Measured with histograms.
        examples: Most coordinates shown of each shape, spread evenly over those that have it.

    Raises:
        ValueError: no histograms were collected.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> stats = la.collect_statistics(model, la.tasks.ioi(model, n=64), la.heads(model), progress=False)
        >>> figure = la.plots.distribution_gallery(stats)
    """
    by_label = {label: places for label, places in _by_label(statistics).items() if places and label != "no data"}
    if not by_label:
        raise ValueError("these statistics hold no histograms; collect them with histograms=True")
    n_rows, total = len(by_label), sum(len(places) for places in by_label.values())
    picked = {label: _spread(places, examples) for label, places in by_label.items()}
    height = TITLE_HEIGHT + 24 + BOTTOM_MARGIN + n_rows * ROW_HEIGHT + (n_rows - 1) * ROW_GAP
    titles = [
        f"<b>{label}</b> · {_name(*places[i])}" if i < len(places) else ""
        for label, places in picked.items()
        for i in range(examples)
    ]
    figure = make_subplots(
        rows=n_rows,
        cols=examples,
        subplot_titles=titles,
        vertical_spacing=0 if n_rows == 1 else ROW_GAP / (height - TITLE_HEIGHT - 24 - BOTTOM_MARGIN),
        horizontal_spacing=0.07,
    )
    for row, places in enumerate(picked.values(), start=1):
        for column, (point, address) in enumerate(places, start=1):
            found = _coordinate(statistics[point], address)
            marks = found.marks(with_values=False, log_counts=True, in_legend=row == column == 1)
            figure.add_traces([found.bars(), *marks], rows=row, cols=column)
            figure.update_yaxes(title_text="count" if column == 1 else None, row=row, col=column)
    shares = ", ".join(f"{label} {len(places)}" for label, places in by_label.items())
    dress(figure, "Shapes of activations", f"{_subtitle(statistics)} · {total} activations: {shares}", height=height)
    figure.update_annotations(font={"size": NOTE_SIZE})
    figure.update_xaxes(showgrid=False, zeroline=False, nticks=6)
    figure.update_yaxes(showgrid=False, **_LOG)
    figure.update_layout(bargap=0, margin={"t": TITLE_HEIGHT + 24}, legend={"font": {"size": SUBTITLE_SIZE}})
    add_note(figure, "counts on a logarithmic axis · labels by the thresholds of lens_ablation.statistics.shapes")
    return figure


@dataclass(frozen=True, eq=False)
class _Coordinate:
    """The histogram of one activation, with the values that ablation would write."""

    centres: np.ndarray
    counts: np.ndarray
    width: float
    values: dict[str, float]

    def bars(self) -> go.Bar:
        # a constant has bins of no width, and is drawn as one thin bar
        drawn = self.width or max(abs(self.centres[0]), 1) * 0.05
        share = 100 * self.counts / max(self.counts.sum(), 1)
        return go.Bar(
            x=self.centres,
            y=self.counts,
            width=drawn,
            marker={"color": BAR_COLOUR, "line": {"width": 0}},
            customdata=np.stack([self.centres - self.width / 2, self.centres + self.width / 2, share], axis=-1),
            hovertemplate=(
                "%{customdata[0]:.3g} to %{customdata[1]:.3g}<br>%{y} values (%{customdata[2]:.2g} %)<extra></extra>"
            ),
            showlegend=False,
        )

    def marks(self, *, with_values: bool, log_counts: bool, in_legend: bool = True) -> list[go.Scatter]:
        top = float(self.counts.max())
        return [
            go.Scatter(
                x=[self.values[mark.name]] * 2,
                y=[0.5 if log_counts else 0, top],
                mode="lines",
                line={"color": mark.colour, "dash": mark.dash, "width": 2},
                name=f"{mark.name} {number(self.values[mark.name])}" if with_values else mark.name,
                legendgroup=mark.name,
                showlegend=in_legend,
                hovertemplate=f"{mark.name} %{{x:.4g}}<extra></extra>",
            )
            for mark in MARKS
        ]


def _coordinate(found: PointStatistics, address: tuple[int, ...]) -> _Coordinate:
    if found.histogram is None or found.peak is None:
        raise ValueError("these statistics hold no histograms; collect them with histograms=True")
    return _Coordinate(
        centres=found.histogram.centres[address].double().numpy(),
        counts=found.histogram.counts[address].numpy(),
        width=float(found.histogram.bin_width[address]),
        values={"zero": 0.0, "mean": float(found.mean[address]), "peak": float(found.peak[address])},
    )


def _by_label(statistics: ActivationStatistics) -> dict[str, list[tuple[HookPoint, tuple[int, ...]]]]:
    found: dict[str, list[tuple[HookPoint, tuple[int, ...]]]] = {label: [] for label in get_args(Shape)}
    for point, labels in statistics.shapes().items():
        for address, label in np.ndenumerate(labels):
            found[str(label)].append((point, address))
    return found


def _spread(places: Sequence, n: int) -> list:
    """At most ``n`` of the places, evenly spread over them."""
    chosen = np.unique(np.linspace(0, len(places) - 1, min(n, len(places))).round().astype(int))
    return [places[i] for i in chosen]


def _name(point: HookPoint, address: tuple[int, ...]) -> str:
    """The site of a coordinate, or the one that it is a part of, with its index there."""
    axes: Iterator[int] = map(int, address)
    match point.activation:
        case "pattern":
            whole = Site("pattern", point.layer, head=next(axes))
        case "attn_out":
            whole = Site("attention", point.layer)
        case "mlp_out":
            whole = Site("mlp", point.layer)
        case _:
            return str(unit_site(point, address))
    return f"{whole}[{', '.join(map(str, axes))}]"


def _subtitle(statistics: ActivationStatistics, n: int | None = None) -> str:
    provenance = statistics.provenance
    words = [literal(provenance.model_name), f"positions: {provenance.positions.replace('_', ' ')}"]
    if provenance.weight_processing != "raw":
        words.append(f"weights: {literal(provenance.weight_processing)}")
    return " · ".join(words if n is None else [*words, f"{n:,} values"])


def _note(found: _Coordinate) -> str:
    if found.width == 0:
        return "every value is the same"
    return f"{len(found.counts)} bins of width {number(found.width)} between smallest and largest value"
