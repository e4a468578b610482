"""What all figures share: template, colours, sizes and the words of their titles."""

import html
from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6A3D9A", "#000000")
"""Okabe and Ito's colours, which stay apart under the common kinds of colour blindness."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross")

TEXT, MUTED, GRID_LINE = "#1f2430", "#5b6472", "#e4e7ec"
NOT_MEASURED = "#c3c7ce"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
FONT_SIZE, TITLE_SIZE, SUBTITLE_SIZE, NOTE_SIZE, CELL_TEXT_SIZE = 13, 17, 13, 12, 11

TITLE_HEIGHT, BOTTOM_MARGIN, LEFT_MARGIN, RIGHT_MARGIN = 92, 76, 64, 24
NOTE_SHIFT = -52
COLOUR_BAR_MARGIN = 110

_AXIS = {
    "gridcolor": GRID_LINE,
    "linecolor": MUTED,
    "ticks": "outside",
    "tickcolor": MUTED,
    "ticklen": 4,
    "zerolinecolor": MUTED,
    "zerolinewidth": 1,
    "automargin": True,
    "title": {"standoff": 8},
}

BAND_OPACITY = 0.15

TEMPLATE = go.layout.Template(
    layout=go.Layout(
        font={"family": FONT, "size": FONT_SIZE, "color": TEXT},
        title={
            "font": {"size": TITLE_SIZE},
            "subtitle": {"font": {"size": SUBTITLE_SIZE, "color": MUTED}},
            "x": 0,
            "xanchor": "left",
            "xref": "paper",
            "y": 1,
            "yanchor": "top",
            "yref": "container",
            "pad": {"t": 16},
        },
        colorway=PALETTE,
        paper_bgcolor="white",
        plot_bgcolor="white",
        margin={"t": TITLE_HEIGHT, "b": BOTTOM_MARGIN, "l": LEFT_MARGIN, "r": RIGHT_MARGIN},
        modebar={"remove": ["sendChartToCloud", "select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"]},
        hoverlabel={"bgcolor": "white", "font": {"size": FONT_SIZE, "color": TEXT}, "align": "left"},
        xaxis=_AXIS,
        yaxis=_AXIS,
    )
)
"""Given to each figure itself; plotly's own default template is neither read nor changed."""


def new_figure(title: str, subtitle: str, *, height: int) -> go.Figure:
    """An empty figure in the house style."""
    figure = go.Figure()
    dress(figure, title, subtitle, height=height)
    return figure


def dress(figure: go.Figure, title: str, subtitle: str, *, height: int) -> None:
    """Give a figure the house style, its title and its height in pixels."""
    figure.update_layout(template=TEMPLATE, title={"text": title, "subtitle": {"text": subtitle}}, height=height)


def line(x: np.ndarray, y: np.ndarray, name: str, i: int, **more: object) -> go.Scatter:
    """Line ``i`` of a figure, told from the others by colour, dash and symbol.

    Args:
        x: Where its points are.
        y: How high.
        name: What the legend calls it, as plotly takes it.
        i: Its number.
        more: Anything else of plotly's ``Scatter``.
    """
    return go.Scatter(
        x=x,
        y=y,
        name=name,
        mode="lines+markers",
        legendgroup=str(i),
        line={"color": PALETTE[i % len(PALETTE)], "dash": DASHES[i % len(DASHES)], "width": 2.5},
        **{"marker": {"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 8}, **more},
    )


def band(x: np.ndarray, low: np.ndarray, high: np.ndarray, i: int) -> go.Scatter:
    """The area between two lines, in the colour of line ``i`` and shown and hidden with it."""
    red, green, blue = (int(PALETTE[i % len(PALETTE)][at : at + 2], 16) for at in (1, 3, 5))
    return go.Scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},{BAND_OPACITY})",
        line={"width": 0},
        mode="lines",
        legendgroup=str(i),
        showlegend=False,
        hoverinfo="skip",
    )


def add_note(figure: go.Figure, text: str) -> None:
    """A muted line under the axis titles that says how to read the figure."""
    figure.add_annotation(
        text=text,
        x=0,
        y=0,
        xref="paper",
        yref="paper",
        xanchor="left",
        yanchor="top",
        yshift=NOTE_SHIFT,
        showarrow=False,
        font={"size": NOTE_SIZE, "color": MUTED},
    )


def plain(text: object) -> str:
    """Text of foreign origin as a label in which plotly sees no markup; underscores become spaces."""
    return html.escape(str(text).replace("_", " "), quote=False)


def literal(text: object) -> str:
    """A name as it is spelt, as a label in which plotly sees no markup."""
    return html.escape(str(text), quote=False)


def metric_name(settings: Mapping[str, object]) -> str:
    """The metric in words, as a label: ``logit difference``."""
    return plain(settings["metric"])


def unit_suffix(settings: Mapping[str, object]) -> str:
    """The metric's unit after a number, with a space; empty where the metric's name says it."""
    unit = plain(settings["unit"])
    return "" if unit in metric_name(settings) else f" {unit}"


def metric_with_unit(settings: Mapping[str, object]) -> str:
    """The metric as the title of an axis: ``logit difference (logits)``."""
    unit = unit_suffix(settings).strip()
    return metric_name(settings) + (f" ({unit})" if unit else "")


def number(value: float) -> str:
    """A number for a label, three significant digits, with a true minus sign."""
    shown = f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"
    return "0" if float(shown) == 0 else shown.replace("-", "−")


def signed(value: float) -> str:
    """A change for a label, with its sign."""
    shown = number(value)
    return f"+{shown}" if value > 0 and shown != "0" else shown


def same_decimals(value: float, limit: float) -> str:
    """A number for a cell, with as many decimals as show three digits of ``limit``."""
    decimals = max(0, 2 - int(np.floor(np.log10(limit))))
    shown = f"{value:.{decimals}f}"
    return (shown.lstrip("-") if float(shown) == 0 else shown).replace("-", "−")


def setting_words(settings: Mapping[str, object], n_examples: int) -> str:
    """Where numbers come from, for a subtitle: model, task, examples, and what is not as usual."""
    words = [literal(settings["model"]), f"{plain(settings['task'])}, {n_examples} examples"]
    if settings.get("positions", "all") != "all":
        positions = settings["positions"]
        words.append(f"positions: {plain(positions) if isinstance(positions, str) else 'chosen by index'}")
    if settings.get("weight_processing", "raw") != "raw":
        words.append(f"weights: {plain(settings['weight_processing'])}")
    return " · ".join(words)
