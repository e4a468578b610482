"""Probes of skills: accuracy against the number of neurons, where neurons lie, and what shifting them does."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

from lens_ablation.empirical.probe_studies import ProbeCurve
from lens_ablation.empirical.probes import SkillProbe
from lens_ablation.empirical.shift_effect import ShiftEffect
from lens_ablation.plots.style import (
    FONT_SIZE,
    MUTED,
    PALETTE,
    add_note,
    band,
    line,
    literal,
    metric_name,
    metric_with_unit,
    new_figure,
    number,
    plain,
)

HEIGHT = 460
_SIDES = ((1, "positive"), (-1, "negative"), (0, "none"))


def probe_curve_figure(curve: ProbeCurve) -> go.Figure:
    """Test accuracy against the number of neurons: a line to a probe, with its 95 % interval.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> asked = [la.skills.comparison(model, n=20, split=s, wordings="new") for s in ("train", "test")]
        >>> found = [la.neuron_gradients(model, a.task, candidates=a.candidates, progress=False) for a in asked]
        >>> curve = la.probe_curve(found[0], asked[0].labels, found[1], asked[1].labels, ks=(1, 16))
        >>> figure = la.plots.probe_curve_figure(curve)
    """
    n_test = curve.correct.shape[2]
    figure = new_figure(
        "Accuracy of probes by number of neurons", f"{_where(curve.settings)} · {n_test} test questions", height=HEIGHT
    )
    ks = np.asarray(curve.ks)
    accuracy = 100 * curve.accuracy.numpy()
    low, high = (100 * end.numpy() for end in curve.interval())
    for i, name in enumerate(curve.probes):
        figure.add_trace(band(ks, low[i], high[i], i))
        figure.add_trace(
            line(
                ks,
                accuracy[i],
                plain(name),
                i,
                hovertemplate=f"<b>{plain(name)}</b><br>%{{x}} neurons<br>accuracy <b>%{{y:.1f}} %</b><extra></extra>",
            )
        )
    figure.add_hline(
        y=100 * float(curve.model_correct.double().mean()),
        line={"color": MUTED, "dash": "dash", "width": 1.5},
        annotation={"text": "the model's own answer", "font": {"color": MUTED, "size": 12}},
        annotation_position="bottom right",
    )
    figure.update_xaxes(title_text="neurons used", type="log", tickvals=list(curve.ks))
    figure.update_yaxes(title_text="right answers (%)", zeroline=False)
    figure.update_layout(legend={"title": {"text": "probe", "font": {"size": FONT_SIZE}}})
    add_note(figure, f"fitted on {curve.n_train} other questions · band: 95 % bootstrap interval over test questions")
    return figure


def layers_figure(probe: SkillProbe) -> go.Figure:
    """How many neurons of a probe lie in each layer, by polarity.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> asked = la.skills.comparison(model, n=20, split="train", wordings="new")
        >>> found = la.neuron_gradients(model, asked.task, candidates=asked.candidates, progress=False)
        >>> figure = la.plots.layers_figure(la.fit_skill_probe(found, asked.labels, la.PolarityProbe(k=16)))
    """
    chosen, signs = probe.neurons, probe.polarities.numpy()
    figure = new_figure(
        f"Layers of the {len(chosen)} neurons of {plain(probe.probe.name)}", _where(probe.settings), height=HEIGHT
    )
    layers = np.arange(probe.sites.shape[0])
    for i, (sign, words) in enumerate(_SIDES):
        own = chosen.addresses[signs == sign, 0]
        if not len(own):
            continue
        counts = np.bincount(own, minlength=len(layers))
        figure.add_trace(
            go.Bar(
                x=layers,
                y=counts,
                name=words,
                showlegend=True,
                marker={"color": PALETTE[i]},
                hovertemplate="layer %{x}<br><b>%{y}</b> neurons<extra>" + words + "</extra>",
            )
        )
    figure.update_xaxes(title_text="layer", tickvals=layers.tolist())
    figure.update_yaxes(title_text="neurons", rangemode="tozero")
    figure.update_layout(barmode="stack", legend={"title": {"text": "polarity", "font": {"size": FONT_SIZE}}})
    add_note(
        figure,
        f"of {len(probe.sites)} neurons in {len(probe.sites.layers)} layers · positive: more of it speaks for the "
        "right candidate",
    )
    return figure


def shift_effect_figure(effect: ShiftEffect) -> go.Figure:
    """The change of the metric against the amount of the shift: chosen neurons, and the range of random ones.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> asked = la.skills.comparison(model, n=20, wordings="new")
        >>> found = la.shift_effect(
        ...     model, asked.task, la.neurons(model)[3, :8], amounts=(-1.0, 1.0), n_random=3, progress=False
        ... )
        >>> figure = la.plots.shift_effect_figure(found)
    """
    baseline = float(effect.baseline.double().mean())
    figure = new_figure(
        f"Change of {metric_name(effect.settings)} while {effect.n_neurons} neurons are shifted",
        f"{_where(effect.settings)} · {effect.values.shape[1]} examples · untouched model: {number(baseline)}",
        height=HEIGHT,
    )
    x = np.asarray([0.0, *effect.amounts])
    order = np.argsort(x, kind="stable")
    low, high = effect.interval()
    others = effect.random_mean.numpy()
    series = (
        ("chosen neurons", effect.mean.numpy(), low.numpy(), high.numpy(), "95 % interval over examples"),
        ("random neurons", others.mean(axis=0), others.min(axis=0), others.max(axis=0), "lowest to highest set"),
    )
    for i, (name, mean, least, most, what) in enumerate(series):
        ends = [np.asarray([0.0, *values])[order] for values in (mean, least, most)]
        figure.add_trace(band(x[order], ends[1], ends[2], i))
        figure.add_trace(
            line(
                x[order],
                ends[0],
                name,
                i,
                customdata=np.stack(ends[1:], axis=1),
                hovertemplate=(
                    f"<b>{name}</b><br>shift %{{x:+.3g}}<br><b>%{{y:+.4g}}</b><br>{what} %{{customdata[0]:+.4g}} to "
                    "%{customdata[1]:+.4g}<extra></extra>"
                ),
            )
        )
    moved = "|activation|" if effect.settings.get("shift") == "signed" else "activation"
    figure.update_xaxes(title_text=f"shift of the {moved}, in each neuron's direction")
    figure.update_yaxes(title_text=f"change of {metric_with_unit(effect.settings)}")
    add_note(
        figure,
        f"bands: chosen neurons, 95 % interval over examples; {effect.n_random} sets of random neurons of the same "
        "layers, lowest to highest",
    )
    return figure


def _where(settings: Mapping[str, object]) -> str:
    return f"{literal(settings['model'])} · {plain(settings['task'])}"
