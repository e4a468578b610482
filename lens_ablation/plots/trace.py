"""Causal tracing: the share of a lost answer that each restoration brings back."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_ablation.optimal.trace import TraceResult
from lens_ablation.plots.style import (
    BOTTOM_MARGIN,
    FONT_SIZE,
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

_WHAT = {"attention": "attention outputs", "mlp": "MLP outputs", "head": "heads"}


def trace_figure(result: TraceResult) -> go.Figure:
    """Average indirect effect by layer with its interval, a line to a group of tokens; of heads, heatmaps.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task = la.tasks.facts(model, n=40, split="train")
        >>> figure = la.plots.trace_figure(la.trace(model, task, la.GaussianNoise(draws=1), progress=False))
    """
    if result.sites.kind == "head":
        return _heads(result)
    figure = new_figure(_title(result), _subtitle(result), height=460)
    layers, (low, high) = result.sites.addresses[:, 0], result.interval()
    for i, group in enumerate(result.groups):
        figure.add_trace(band(layers, low[i].numpy(), high[i].numpy(), i))
        figure.add_trace(
            line(
                layers,
                result.effect[i].numpy(),
                plain(group),
                i,
                hovertemplate=f"<b>{plain(group)}</b><br>layer %{{x}}: %{{y:.3f}}<extra></extra>",
            )
        )
    window = int(str(result.settings["window"]))
    figure.update_xaxes(title_text="layer" if window == 1 else "layer (middle of the window)", dtick=1)
    figure.update_yaxes(title_text="average indirect effect", range=[-0.03, max(1.03, 1.05 * float(high.max()))])
    figure.update_layout(legend={"title": {"text": "restored at", "font": {"size": FONT_SIZE}}})
    add_note(figure, "1: the lost probability comes back whole, 0: nothing does · band: 95 % interval over prompts")
    return figure


def _title(result: TraceResult) -> str:
    window = int(str(result.settings["window"]))
    around = "" if window == 1 else f", {window} layers at a time"
    return f"What restoring clean {_WHAT[str(result.settings['restore'])]} brings back{around}"


def _subtitle(result: TraceResult) -> str:
    corruption = result.settings["corruption"]
    name = corruption["name"] if isinstance(corruption, dict) else corruption
    words = {"GaussianNoise": "noise on the subject", "OptimalVector": "learned vector for the subject"}
    return (
        f"{setting_words(result.settings, len(result.clean))} · {words.get(str(name), plain(name))}, "
        f"which takes {100 * result.lost:.0f} points of probability"
    )


def _heads(result: TraceResult) -> go.Figure:
    """A heatmap, layer by head, to each group of tokens."""
    n_layers, n_heads = result.sites.shape[:2]
    height = TITLE_HEIGHT + 24 + BOTTOM_MARGIN + 44 * n_layers
    figure = make_subplots(
        cols=len(result.groups),
        subplot_titles=[f"<b>{plain(group)}</b>" for group in result.groups],
        shared_yaxes=True,
        horizontal_spacing=0.04,
    )
    low, high = result.interval()
    for i in range(len(result.groups)):
        cells = np.full((3, n_layers, n_heads), np.nan)
        for values, grid in zip((result.effect[i], low[i], high[i]), cells, strict=True):
            grid[tuple(result.sites.addresses.T)] = values.numpy()
        figure.add_trace(
            go.Heatmap(
                z=cells[0],
                customdata=np.stack([cells[1], cells[2]], axis=-1),
                text=np.vectorize("{:.2f}".format, otypes=[object])(cells[0]),
                texttemplate="%{text}" if n_heads <= 12 else None,
                coloraxis="coloraxis",
                hovertemplate=(
                    "<b>L%{y}H%{x}</b><br>%{z:.3f}, %{customdata[0]:.3f} to %{customdata[1]:.3f}<extra></extra>"
                ),
            ),
            row=1,
            col=i + 1,
        )
    dress(figure, _title(result), _subtitle(result), height=height)
    end = float(max(result.effect.max(), 1e-6))
    figure.update_layout(
        coloraxis={
            "colorscale": "Blues",  # an effect is never below 0
            "cmin": 0,
            "cmax": end,
            "colorbar": {"title": {"text": "effect"}, "outlinewidth": 0},
        },
        margin={"t": TITLE_HEIGHT + 24},
    )
    figure.update_xaxes(title_text="head", dtick=1, showgrid=False)
    figure.update_yaxes(autorange="reversed", dtick=1, showgrid=False)
    figure.update_yaxes(title_text="layer", row=1, col=1)
    figure.update_annotations(font={"size": SUBTITLE_SIZE})
    add_note(figure, "average indirect effect · 1: the lost probability comes back whole")
    return figure
