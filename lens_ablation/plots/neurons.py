"""Gradients of neurons: curves of shifts, linearity by layer, estimates against measurements, groups."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from lens_ablation.empirical.compare import GradientComparison
from lens_ablation.empirical.curves import LINEAR, ShiftCurves
from lens_ablation.empirical.gradients import SHIFTS, NeuronGradients
from lens_ablation.empirical.groups import GroupEffects
from lens_ablation.plots.style import (
    BOTTOM_MARGIN,
    FONT_SIZE,
    MUTED,
    PALETTE,
    SUBTITLE_SIZE,
    TITLE_HEIGHT,
    add_note,
    band,
    dress,
    line,
    new_figure,
    plain,
    setting_words,
)

HEIGHT, PANEL, GAP = 460, 220, 130
STEEPEST = 6
"""Neurons whose curves are drawn where none are chosen."""

MOST_POINTS = 4000
"""Points of a panel; of more, evenly many are left out."""

_UNITS = {"signed": "shift of |A|", "additive": "shift of A"}


def gradients_figure(found: NeuronGradients, *, candidate: int = 0) -> go.Figure:
    """The mean gradient of each neuron over examples, by layer, on a scale around zero.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> figure = la.plots.gradients_figure(la.neuron_gradients(model, la.tasks.facts(model, n=4), progress=False))
    """
    mean = found.values[:, candidate].double().nanmean(dim=0).numpy()
    layers = found.sites.addresses[:, 0]
    jitter = np.random.default_rng(0).uniform(-0.35, 0.35, size=len(layers))
    figure = new_figure(
        f"What a unit more of each neuron adds to the answer's probability ({plain(found.estimator)})",
        setting_words(found.settings, found.values.shape[0]),
        height=HEIGHT,
    )
    figure.add_trace(
        go.Scatter(
            x=layers + jitter,
            y=mean,
            mode="markers",
            marker={"color": np.where(mean > 0, PALETTE[0], PALETTE[1]), "size": 4, "opacity": 0.6},
            hovertext=[str(site) for site in found.sites],
            hovertemplate="<b>%{hovertext}</b><br>%{y:.3g} per unit<extra></extra>",
            showlegend=False,
        )
    )
    limit = 1.05 * float(np.abs(mean[np.isfinite(mean)]).max(initial=1e-12))
    figure.update_xaxes(title_text="layer", dtick=1, zeroline=False)
    figure.update_yaxes(
        title_text=f"probability per unit of {'|A|' if found.shift == 'signed' else 'A'}", range=[-limit, limit]
    )
    add_note(figure, "one point to a neuron, mean over examples · blue: raises the probability · orange: lowers it")
    return figure


def curves_figure(curves: ShiftCurves, neurons: Sequence[int] | None = None, *, candidate: int = 0) -> go.Figure:
    """Change of the probability under each shift of some neurons, mean over examples with its spread.

    Args:
        curves: From ``neuron_gradients(..., EmpiricalGradient()).curves``.
        neurons: Places in ``curves.sites``; the six with the largest mean slopes by default.
        candidate: Which candidate.

    Raises:
        ValueError: a place lies outside.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task, few = la.tasks.facts(model, n=4), la.neurons(model)[1, :3]
        >>> found = la.neuron_gradients(model, task, few, la.EmpiricalGradient(), progress=False)
        >>> figure = la.plots.curves_figure(found.curves)
    """
    if neurons is None:
        size = curves.slope[:, candidate].nanmean(dim=0).abs()
        neurons = size.argsort(descending=True)[:STEEPEST].tolist()
    wrong = [place for place in neurons if not 0 <= place < len(curves.sites)]
    if wrong or not neurons:
        raise ValueError(f"neurons must be places in 0..{len(curves.sites) - 1}, got {wrong or 'none'}")
    figure = new_figure(
        "Change of the answer's probability as neurons are shifted",
        setting_words(curves.settings, curves.outputs.shape[0]),
        height=HEIGHT,
    )
    shifts = curves.shifts.numpy()
    changes = curves.changes[:, candidate].numpy()
    middle = int(np.searchsorted(shifts, 0))
    x = np.insert(shifts, middle, 0.0)
    for i, place in enumerate(neurons):
        name = str(next(iter(curves.sites.take([place]))))
        of = np.insert(changes[:, place], middle, 0.0, axis=1)
        low, mean, high = np.nanquantile(of, 0.25, axis=0), np.nanmean(of, axis=0), np.nanquantile(of, 0.75, axis=0)
        figure.add_trace(band(x, low, high, i))
        linearity = float(curves.linearity[:, candidate, place].abs().nanmean())
        figure.add_trace(
            line(
                x,
                mean,
                f"{name}, |r| {linearity:.2f}",
                i,
                hovertemplate=f"<b>{name}</b><br>shift %{{x:.3g}}: %{{y:+.3g}}<extra></extra>",
            )
        )
    figure.update_xaxes(title_text=_shift_words(curves))
    figure.update_yaxes(title_text="change of probability")
    figure.update_layout(legend={"title": {"text": "neuron", "font": {"size": FONT_SIZE}}})
    add_note(figure, "line: mean over examples · band: middle half of them · |r|: mean linearity over examples")
    return figure


def linearity_figure(curves: ShiftCurves, *, threshold: float = LINEAR) -> go.Figure:
    """Share of linear neurons over growing ranges of shift, a line to a layer.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task, few = la.tasks.facts(model, n=4), la.neurons(model)[:, :8]
        >>> found = la.neuron_gradients(model, task, few, la.EmpiricalGradient(), progress=False)
        >>> figure = la.plots.linearity_figure(found.curves)
    """
    figure = new_figure(
        f"Share of neurons with |r| ≥ {threshold:g} of shift and change of probability",
        setting_words(curves.settings, curves.outputs.shape[0]),
        height=HEIGHT,
    )
    layers, ranges = torch.from_numpy(curves.sites.addresses[:, 0]), curves.ranges_of_linearity()
    found = [curves.within(size).linearity.abs() >= threshold for size in ranges]
    for i, layer in enumerate(curves.sites.layers):
        share = [100 * float(part[..., layers == layer].double().mean()) for part in found]
        figure.add_trace(
            line(
                np.asarray(ranges),
                np.asarray(share),
                f"layer {layer}",
                i,
                hovertemplate=f"<b>layer {layer}</b><br>within ±%{{x:.3g}}: %{{y:.1f}} %<extra></extra>",
            )
        )
    figure.update_xaxes(title_text=f"largest {_shift_words(curves)}", rangemode="tozero")
    figure.update_yaxes(title_text="linear (% of neurons on examples)", range=[0, 102])
    add_note(figure, "neurons that move nothing at all (at exactly 0 under signed shifts) count as not linear")
    return figure


def comparison_panels(comparison: GradientComparison) -> go.Figure:
    """Estimated against measured gradients as they are: a column to an estimator, a row to a convention of shifts.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task, few = la.tasks.facts(model, n=4), la.neurons(model)[:, ::128]
        >>> found = la.compare_gradients(model, task, few, [la.Gradient(), la.NeurGrad()], progress=False)
        >>> figure = la.plots.comparison_panels(found)
    """
    names = list(comparison.estimates)
    table = comparison.to_dataframe().query("probabilities == 'all'").set_index(["estimator", "measured"])
    titles = [
        f"<b>{plain(name)}</b><br>r {_signed_r(table.loc[(name, shift), 'r'])}" for shift in SHIFTS for name in names
    ]
    top = TITLE_HEIGHT + 40
    height = top + BOTTOM_MARGIN + len(SHIFTS) * PANEL + (len(SHIFTS) - 1) * GAP
    figure = make_subplots(
        rows=len(SHIFTS),
        cols=len(names),
        subplot_titles=titles,
        vertical_spacing=GAP / (height - top - BOTTOM_MARGIN),
        horizontal_spacing=0.07,
    )
    for row, shift in enumerate(SHIFTS, start=1):
        for column, name in enumerate(names, start=1):
            x, y = comparison.pairs(name, shift)
            step = max(1, len(x) // MOST_POINTS)
            figure.add_trace(
                go.Scattergl(
                    x=x[::step].numpy(),
                    y=y[::step].numpy(),
                    mode="markers",
                    marker={"color": PALETTE[row - 1], "size": 4, "opacity": 0.5},
                    hovertemplate="measured %{x:.3g}<br>estimated %{y:.3g}<extra></extra>",
                ),
                row=row,
                col=column,
            )
            figure.update_xaxes(
                title={"text": f"measured, {shift}", "font": {"size": FONT_SIZE}}, nticks=3, row=row, col=column
            )
        figure.update_yaxes(title={"text": "estimated", "font": {"size": FONT_SIZE}}, row=row, col=1)
    figure.update_xaxes(tickangle=0, exponentformat="power")
    dress(
        figure,
        "Gradients of neurons: estimated against measured",
        setting_words(comparison.measured.settings, comparison.measured.values.shape[0]),
        height=height,
    )
    figure.update_layout(margin={"t": top}, showlegend=False)
    figure.update_annotations(font={"size": SUBTITLE_SIZE})
    add_note(figure, "upper row: shifts of |A| · lower row: of A · estimates as they are, in probability per unit")
    return figure


def groups_figure(effects: Sequence[GroupEffects]) -> go.Figure:
    """Correlation of prediction and effect against the number of neurons shifted together, a line to a result.

    Raises:
        ValueError: there are none.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task = la.tasks.facts(model, n=4)
        >>> found = la.neuron_gradients(model, task, progress=False)
        >>> effects = la.group_effects(model, task, found, sizes=[1, 64], n_groups=4, progress=False)
        >>> figure = la.plots.groups_figure([effects])
    """
    if not effects:
        raise ValueError("no effects were given; pass one or several")
    first = effects[0]
    figure = new_figure(
        "Groups of neurons: sum of gradients against the effect of shifting them together",
        setting_words(first.settings, first.measured.shape[2]),
        height=HEIGHT,
    )
    for i, found in enumerate(effects):
        low, high = found.interval()
        sizes = np.asarray(found.sizes)
        name = f"±{float(str(found.settings['amount'])):g}"
        figure.add_trace(band(sizes, low.numpy(), high.numpy(), i))
        figure.add_trace(
            line(
                sizes,
                found.correlation.numpy(),
                name,
                i,
                hovertemplate=f"<b>shifts of {name}</b><br>%{{x}} neurons: r %{{y:.3f}}<extra></extra>",
            )
        )
    figure.add_hline(y=0, line={"color": MUTED, "width": 1})
    figure.update_xaxes(title_text="neurons shifted together", type="log", dtick=float(np.log10(2)), tickformat=",d")
    figure.update_yaxes(title_text="correlation of prediction and effect", range=[-0.05, 1.05])
    figure.update_layout(
        showlegend=True, legend={"title": {"text": _UNITS[str(first.settings["shift"])], "font": {"size": FONT_SIZE}}}
    )
    add_note(figure, "Pearson over random groups, mean over examples · band: 95 % interval of that mean")
    return figure


def _shift_words(curves: ShiftCurves) -> str:
    """What is shifted, and in which unit."""
    named = curves.settings.get("estimator")
    way = named.get("settings") if isinstance(named, Mapping) else None
    in_deviations = isinstance(way, Mapping) and bool(way.get("in_deviations"))
    return f"{_UNITS[curves.shift]} ({'standard deviations' if in_deviations else 'units of the activation'})"


def _signed_r(value: object) -> str:
    return f"{float(str(value)):.3f}".replace("-", "−")
