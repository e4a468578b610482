"""Lenses: how far each layer's prediction is from the model's, by layer and by token."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from lens_ablation.models.protocol import LensModel
from lens_ablation.optimal.lens import Lens
from lens_ablation.plots.style import COLOUR_BAR_MARGIN, FONT_SIZE, add_note, band, line, literal, new_figure, plain

TOP = 5
"""Tokens shown on hover."""

MOST_TOKENS_WITH_TEXT = 24

DEEPEST = 0.75
"""Share of the cells that the colour scale tells apart; the others are as dark as it goes."""


def lenses_figure(lenses: Sequence[Lens]) -> go.Figure:
    """KL to the model's output by layer, a line to a lens.

    Args:
        lenses: Lenses of one model, judged on the same examples.

    Raises:
        ValueError: there are none, or they are of several models.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-vit")
        >>> lens = la.fit_lens(model, la.tasks.digits(model, n=100), la.LogitLens(), progress=False)
        >>> figure = la.plots.lenses_figure([lens])
    """
    if not lenses:
        raise ValueError("no lenses were given; pass one or several")
    if len({lens.provenance.model for lens in lenses}) > 1:
        raise ValueError("these lenses are of several models; draw those of one model together")
    figure = new_figure(
        "How far each layer's prediction is from the model's",
        f"{literal(lenses[0].provenance.model_name)} · {lenses[0].divergence.shape[1]} held-out examples",
        height=460,
    )
    for i, lens in enumerate(lenses):
        layers = np.arange(len(lens.kl))
        mean, half = lens.kl.numpy(), 1.96 * lens.error.numpy()
        figure.add_trace(band(layers, np.maximum(mean - half, mean / 10), mean + half, i))
        figure.add_trace(
            line(
                layers,
                mean,
                plain(lens.kind.name),
                i,
                hovertemplate=f"<b>{plain(lens.kind.name)}</b><br>before block %{{x}}: %{{y:.3f}} nats<extra></extra>",
            )
        )
    figure.update_xaxes(title_text="layer (the stream before this block is read)", dtick=1)
    # the first layers are often a hundred times as far away as the last ones
    figure.update_yaxes(title_text="KL from the model's output (nats)", type="log", dtick=1)
    figure.update_layout(legend={"title": {"text": "lens", "font": {"size": FONT_SIZE}}})
    add_note(figure, "lower: closer to what the model will say · band: 95 % interval of the mean over examples")
    return figure


def lens_tokens_figure(lens: Lens, model: LensModel, tokens: Tensor) -> go.Figure:
    """One text, layer by token: colour is KL to the model's output; hovering shows the likeliest next tokens.

    Args:
        lens: A lens of this model.
        model: A language model with its tokenizer.
        tokens: One row of tokens, ``[pos]`` or ``[1, pos]``.

    Raises:
        ValueError: there is more than one row, or the model has no tokenizer.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> tokens = la.tasks.domain(model, n=60, name="prose").inputs
        >>> lens = la.fit_lens(model, tokens, la.LogitLens(), progress=False)
        >>> figure = la.plots.lens_tokens_figure(lens, model, tokens[0])
    """
    tokenizer = getattr(model, "tokenizer", None)
    row = tokens.reshape(-1)
    if tokens.ndim > 1 and len(tokens) != 1:
        raise ValueError(f"one text is drawn at a time, and there are {len(tokens)} rows; pass tokens[0]")
    if tokenizer is None:
        raise ValueError("the model has no tokenizer to spell tokens with; draw lens.plot() instead")
    text = row[None]
    found = torch.cat([lens.logits(model, text)[:, 0], lens.output(model, text)[None, 0]]).log_softmax(dim=-1)
    kl = (found[-1].exp() * (found[-1] - found)).sum(dim=-1)
    best, which = found.exp().topk(TOP, dim=-1)
    shown_tokens = {*which.flatten().tolist(), *row.tolist()}
    spelt = {token: literal(repr(tokenizer.decode([token]))[1:-1]) for token in shown_tokens}
    hover = [
        [
            "<br>".join(f"{spelt[int(t)]} {100 * float(p):.1f} %" for p, t in zip(ps, ts, strict=True))
            for ps, ts in zip(layer_p, layer_t, strict=True)
        ]
        for layer_p, layer_t in zip(best, which, strict=True)
    ]
    names = [str(layer) for layer in range(len(found) - 1)] + ["output"]
    figure = new_figure(
        f"{plain(lens.kind.name)}: what each layer would say next",
        f"{literal(lens.provenance.model_name)} · likeliest next token in each cell",
        height=200 + 44 * len(names),
    )
    shown = len(row) <= MOST_TOKENS_WITH_TEXT
    figure.add_trace(
        go.Heatmap(
            z=kl.numpy(),
            x=list(range(len(row) - 1)),
            y=names,
            text=[[spelt[int(ts[0])] for ts in layer] for layer in which],
            texttemplate="%{text}" if shown else None,
            hovertext=hover,
            hovertemplate=(
                "<b>before block %{y}</b>, after token %{x}<br>KL %{z:.3f} nats<br>%{hovertext}<extra></extra>"
            ),
            colorscale="Blues",
            zmin=0,
            zmax=float(np.quantile(kl.numpy(), DEEPEST)),
            colorbar={"title": {"text": "KL (nats)"}, "outlinewidth": 0},
        )
    )
    figure.update_xaxes(
        title_text="token read",
        tickmode="array",
        tickvals=list(range(len(row) - 1)),
        ticktext=[spelt[int(token)] for token in row[:-1]],
        showgrid=False,
    )
    figure.update_yaxes(title_text="read before block", type="category", autorange="reversed", showgrid=False)
    figure.update_layout(margin={"r": COLOUR_BAR_MARGIN})
    add_note(figure, f"the {100 * (1 - DEEPEST):.0f} % of cells that are furthest away have one colour")
    return figure
