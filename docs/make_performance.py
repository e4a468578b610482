"""Write tables and figures of the page on performance: ``python docs/make_performance.py``, after ``make bench``.

Reads what the benchmarks measured from ``docs/performance.json``. A table stands between ``<!-- table: NAME -->`` and
``<!-- end -->``. The figures need Chromium.
"""

import math
from pathlib import Path

import plotly.graph_objects as go
from make_images import IMAGES, draw
from pages import Measured, Tables, table, write
from plotly.subplots import make_subplots

from lens_ablation.plots import style

DOCS = Path(__file__).parent
PAGES, MEASURED = [DOCS / "performance.md"], DOCS / "performance.json"


TITLES = {"sites": "Sites", "prompts": "Prompts", "length": "Length", "layers": "Layers"}
"""Panels of the figure on growth."""

TICKS = {0.001: "1 ms", 0.01: "10 ms", 0.1: "100 ms", 1: "1 s", 10: "10 s", 100: "100 s"}


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def machine(measured: Measured) -> str:
    """What the numbers were measured on."""
    return table(["measured on", ""], [[name, value] for name, value in measured["machine"].items()])


def benchmarks(measured: Measured) -> str:
    """Every benchmark, one to a row."""
    rows = []
    for row in measured["rows"]:
        is_time = row["unit"] == "s"
        ours, theirs = (
            _seconds(row[key]) if is_time else f"{row[key]:.0f} {row['unit']}" for key in ("ours", "theirs")
        )
        sign = "≥" if row["bound"] == "at least" else "≤"
        limit = "" if row["limit"] is None else _seconds(row["limit"])
        work = row["work"] + ("" if row["device"] == "cpu" else ", on a GPU")
        rows.append([work, row["against"], ours, theirs, f"**{row['ratio']:.2f}**", f"{sign} {row['floor']:g}", limit])
    return table(["work", "against", "here", "there", "ratio", "required", "limit"], rows)


def steps(measured: Measured) -> str:
    """What each shortcut gains, one after the other."""
    works = list(dict.fromkeys(step["work"] for step in measured["steps"]))
    names = list(dict.fromkeys(step["step"] for step in measured["steps"]))
    seconds = {(step["work"], step["step"]): step["seconds"] for step in measured["steps"]}
    rows = []
    for name in names:
        cells = [
            f"{_seconds(seconds[work, name])} ({seconds[work, names[0]] / seconds[work, name]:.1f}x)" for work in works
        ]
        rows.append([name, *cells])
    return table(["with, from here on", *works], rows)


def dtypes(measured: Measured) -> str:
    """bfloat16 beside float32."""
    rows = [
        [
            row["work"],
            _seconds(row["float32"]),
            _seconds(row["bfloat16"]),
            f"{row['float32'] / row['bfloat16']:.2f}",
            f"{row['difference']:.2g} {row['unit']}",
        ]
        for row in measured["dtypes"]
    ]
    return table(["sweep", "float32", "bfloat16", "times as fast", "largest difference of a value"], rows)


TABLES: Tables = {
    "machine": (["machine"], machine),
    "benchmarks": (["rows"], benchmarks),
    "steps": (["steps"], steps),
    "dtypes": (["dtypes"], dtypes),
}


def growth(measured: Measured) -> go.Figure:
    """Seconds of a sweep and of the loop by sites, prompts, length and layers."""
    curves = [curve for curve in measured["curves"] if curve["name"] in TITLES]
    figure = make_subplots(2, 2, subplot_titles=[TITLES[curve["name"]] for curve in curves], vertical_spacing=0.2)
    style.dress(
        figure, "How the time of a sweep grows", "A loop of run_with_hooks and la.sweep, same numbers out", height=720
    )
    for i, curve in enumerate(curves):
        row, column = i // 2 + 1, i % 2 + 1
        x = [point["x"] for point in curve["points"]]
        for j, (key, name) in enumerate((("theirs", "loop of run_with_hooks"), ("ours", "la.sweep"))):
            figure.add_scatter(
                x=x,
                y=[point[key] for point in curve["points"]],
                name=name,
                mode="lines+markers",
                line={"color": style.PALETTE[1 - j], "dash": style.DASHES[1 - j]},
                marker={"symbol": style.SYMBOLS[1 - j], "size": 8},
                showlegend=i == 0,
                row=row,
                col=column,
            )
        figure.update_xaxes(title_text=curve["unit"], type="log", tickvals=x, row=row, col=column)
    least, most = (end(p[key] for c in curves for p in c["points"] for key in ("ours", "theirs")) for end in (min, max))
    span = [math.log10(least) - 0.2, math.log10(most) + 0.2]
    figure.update_yaxes(type="log", range=span, tickvals=list(TICKS), ticktext=list(TICKS.values()))
    figure.update_yaxes(title_text="time", col=1)
    _with_legend_below(figure)
    return figure


def rows_in_a_pass(measured: Measured) -> go.Figure:
    """Time of a row by the rows that share a pass."""
    curves = [curve for curve in measured["curves"] if curve["name"].startswith("rows, ")]
    names = [curve["name"].removeprefix("rows, ") for curve in curves]
    figure = make_subplots(1, len(curves), subplot_titles=names)
    title = "How many rows a forward pass should hold"
    style.dress(figure, title, "Time of a row by rows in a pass; the dashed line is what is chosen", height=440)
    figure.update_layout(margin={"t": 120})
    for i, curve in enumerate(curves):
        best = min(point["ours"] for point in curve["points"])
        x = [point["x"] for point in curve["points"]]
        figure.add_scatter(
            x=x,
            y=[point["ours"] / best for point in curve["points"]],
            mode="lines+markers",
            line={"color": style.PALETTE[0]},
            marker={"size": 8},
            showlegend=False,
            row=1,
            col=i + 1,
        )
        figure.add_vline(curve["chosen"], line={"color": style.PALETTE[1], "dash": "dash"}, row=1, col=i + 1)
        figure.update_xaxes(title_text=curve["unit"], type="log", tickvals=x, row=1, col=i + 1)
        label = "time of a row, fastest is 1" if i == 0 else None
        figure.update_yaxes(title_text=label, rangemode="tozero", row=1, col=i + 1)
    return figure


def _with_legend_below(figure: go.Figure) -> None:
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": -0.14, "yanchor": "top"}, margin={"b": 110, "t": 120})


if __name__ == "__main__":
    found = write(PAGES, MEASURED, TABLES)
    draw(growth(found), IMAGES / "performance-growth.png")
    draw(rows_in_a_pass(found), IMAGES / "performance-rows.png")
