"""Write tables and figures on gradients of neurons: ``python docs/make_neurons.py``.

Reads what ``python -m docs.measure_neurons`` measured from ``docs/neurons.json``; what is not measured yet is left as
it is. A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. The figures need Chromium.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from make_images import IMAGES, draw
from pages import Measured, Tables, percent, table, write
from plotly.subplots import make_subplots

from lens_ablation.plots import style

DOCS = Path(__file__).parent
PAGES = [DOCS / "neurons.md"]
MEASURED = DOCS / "neurons.json"


PAPER = {
    "Gradient": ("−.891", ".302", "6.1e-3", "0.149 s"),
    "Integrated gradients": (".736", ".538", "3.0e-3", "19.349 s"),
    "Log-probability increase": ("", ".647", "", "6.086 s"),
    "NeurGrad": (".9998", ".814", "2.6e-5", "0.161 s"),
}
"""Zhao et al.: r of BERT-base and of Llama2-7B, mean absolute error of BERT-base, time to a prompt."""

TWO_SHIFTS = (0.05, 0.2)
"""Ranges with one shift to each side, over which every neuron is linear."""

RANGES = {"raw": (0.05, 0.1, 0.2, 0.6, 1.0, 1.4, 2.0), "deviations": (0.05, 0.1, 0.2, 0.6, 1.0, 1.4, 2.0)}


def _r(value: float | None) -> str:
    if value is None:
        return ""
    shown = f"{value:.4f}" if abs(value) >= 0.99995 or abs(value) >= 0.999 else f"{value:.3f}"
    return shown.replace("0.", ".", 1).replace("-", "−")


def _error(value: float) -> str:
    mantissa, _, power = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(power)}"


def _time(value: float) -> str:
    return f"{1e3 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


def estimators(measured: Measured) -> str:
    """A row to an estimator, the two conventions beside each other, and the paper's numbers."""
    rows = measured["estimators"]
    text = []
    for setup in dict.fromkeys(row["setup"] for row in rows):
        here = {(row["estimator"], row["measured"], row["probabilities"]): row for row in rows if row["setup"] == setup}
        cells = []
        for name in dict.fromkeys(key[0] for key in here):
            cell = [name]
            for shift in ("signed", "additive"):
                row = here[name, shift, "all"]
                parts = [_r(here[name, shift, group]["r"]) for group in ("live", "saturated")]
                cell += [_r(row["r"]), " / ".join(part or "none" for part in parts), _error(row["mae"])]
            first = here[name, "signed", "all"]
            cells.append([*cell, _r(first["r_converted"]), _time(first["seconds_per_prompt"]), *PAPER[name][:2]])
        header = [
            setup,
            "r, signed",
            "live / saturated",
            "mean absolute error",
            "r, additive",
            "live / saturated",
            "mean absolute error",
            "r, signed, converted",
            "time a prompt",
            "paper: r, BERT-base",
            "paper: r, Llama2-7B",
        ]
        text.append(table(header, cells))
    return "\n".join(text)


def setups(measured: Measured) -> str:
    """What was measured on."""
    cells = []
    seen: set[str] = set()
    for row in measured["estimators"]:
        if row["setup"] in seen:
            continue
        seen.add(row["setup"])
        cells.append(
            [
                row["setup"],
                row["hook"],
                str(row["neurons"]),
                str(row["examples"]),
                percent(row["negative"]),
                percent(row["zeros"]),
                _r(row["r_with_zeros"]),
                percent(row["saturated"]),
                _time(row["seconds_measured"]),
            ]
        )
    header = [
        "setup",
        "neuron",
        "neurons",
        "prompts",
        "activations below 0",
        "exactly 0",
        "r of NeurGrad, those at 0 counted",
        "probabilities saturated",
        "time a prompt, measured",
    ]
    return table(header, cells)


def ranges(measured: Measured) -> str:
    """r of NeurGrad and share of linear neurons, a column to a range."""
    rows = measured["ranges"]
    text = []
    for unit, sizes in RANGES.items():
        cells = []
        for setup in dict.fromkeys(row["setup"] for row in rows):
            here = {row["range"]: row for row in rows if row["setup"] == setup and row["unit"] == unit}
            size = next(iter(here.values()))["median_deviation"]
            what = {
                "r with NeurGrad": "r",
                "live probabilities": "r_live",
                "saturated": "r_saturated",
            }
            for label, key in what.items():
                name = f"{setup} (median deviation {size:.2g})" if label == "r with NeurGrad" else ""
                cells.append([name, label, *(_r(here[s][key]) for s in sizes)])
            for label, key in {"linear, of those moved": "linear_moved", "positive slopes": "positive"}.items():
                shown = ["" if s in TWO_SHIFTS and key == "linear_moved" else percent(here[s][key]) for s in sizes]
                cells.append(["", label, *shown])
        word = "units of the activation" if unit == "raw" else "standard deviations"
        text.append(table([f"shifts in {word}", "", *(f"±{s:g}" for s in sizes)], cells))
    return "\n".join(text)


def groups(measured: Measured) -> str:
    """Correlation of summed prediction and effect, a column to a number of neurons."""
    cells = []
    wanted = (1, 4, 16, 64, 256, 1024)
    for row in measured["groups"]:
        found = {one["neurons"]: one for one in row["rows"]}
        shown = [_interval(found[n]) if n in found else "" for n in wanted]
        cells.append([row["setup"], f"±{row['amount']:g}", *shown, f"{_interval(found[row['of']])} of {row['of']:,}"])
    return table(["setup", "shift of each", *(f"{n:,}" for n in wanted), "all"], cells)


def _interval(row: Mapping[str, Any]) -> str:
    return f"{_r(row['correlation'])} ({_r(row['low'])} to {_r(row['high'])})"


def readings(measured: Measured) -> str:
    """What the numbers say, in words that follow them."""
    rows = measured["ranges"]
    lines = []
    tenth = {row["setup"]: row for row in rows if row["unit"] == "deviations" and row["range"] == 0.1}
    widest = {row["setup"]: row for row in rows if row["unit"] == "raw" and row["range"] == 2.0}
    for setup, row in tenth.items():
        holds = "holds" if row["r"] >= 0.99 else "does not hold"
        linear = percent(widest[setup]["linear_moved"])
        lines.append(
            f"- {setup}: up to a tenth of the standard deviation r is {_r(row['r'])} (.99 {holds}). Up to ±2 raw it is "
            f"{_r(widest[setup]['r'])}, and {linear} of the neurons that are moved are linear (the paper: over 90 %)."
        )
    return "\n".join(lines) + "\n"


TABLES: Tables = {
    "neuron-setups": (["estimators"], setups),
    "neuron-estimators": (["estimators"], estimators),
    "neuron-ranges": (["ranges"], ranges),
    "neuron-groups": (["groups"], groups),
    "neuron-readings": (["ranges"], readings),
}


def range_figure(measured: Measured) -> go.Figure:
    """r of NeurGrad and share of linear neurons over growing ranges, raw and in deviations."""
    rows = measured["ranges"]
    titles = ["shifts in units of the activation", "shifts in standard deviations"]
    figure = make_subplots(rows=2, cols=2, subplot_titles=titles, shared_xaxes=True, vertical_spacing=0.08)
    for i, setup in enumerate(dict.fromkeys(row["setup"] for row in rows)):
        for column, unit in enumerate(("raw", "deviations"), start=1):
            here = sorted(
                (row for row in rows if row["setup"] == setup and row["unit"] == unit), key=lambda row: row["range"]
            )
            for line, (key, factor) in enumerate((("r", 1), ("linear_moved", 100)), start=1):
                drawn = [row for row in here if line == 1 or row["range"] not in TWO_SHIFTS]
                figure.add_trace(
                    go.Scatter(
                        x=[row["range"] for row in drawn],
                        y=[factor * row[key] for row in drawn],
                        mode="lines+markers",
                        name=style.plain(setup),
                        legendgroup=setup,
                        showlegend=line == 1 and column == 1,
                        line={"color": style.PALETTE[i], "dash": style.DASHES[i], "width": 2.5},
                        marker={"symbol": style.SYMBOLS[i], "size": 6},
                    ),
                    row=line,
                    col=column,
                )
    style.dress(
        figure,
        "NeurGrad against signed shifts, over growing ranges",
        f"{measured['settings']['examples']} prompts · neurons that shifts moved",
        height=620,
    )
    figure.update_layout(margin={"t": style.TITLE_HEIGHT + 30})
    figure.update_annotations(font={"size": style.SUBTITLE_SIZE})
    figure.update_yaxes(title_text="r with NeurGrad", col=1, row=1)
    figure.update_yaxes(title_text="linear (% of those moved)", col=1, row=2)
    figure.update_yaxes(range=[0, 104], row=2)
    figure.update_xaxes(title_text="largest shift", row=2)
    return figure


def examples() -> dict[str, go.Figure]:
    """Figures of results that are quick to make."""
    import lens_ablation as la

    model = la.load_model("tiny-lm")
    task = la.tasks.facts(model, 40, split="train")
    some = la.neurons(model)[:, ::32]
    found = la.neuron_gradients(model, task, some, la.EmpiricalGradient(), progress=False)
    compared = la.compare_gradients(model, task, some, progress=False)
    few = task.select(slice(20))
    every = la.neuron_gradients(model, few, progress=False)
    effects = [
        la.group_effects(model, few, every, amount=amount, n_groups=24, progress=False) for amount in (0.05, 0.2, 1.0)
    ]
    return {
        "neuron-curves": found.curves.plot(),
        "neuron-linearity": found.curves.plot_linearity(),
        "neuron-estimators": compared.plot(),
        "neuron-groups": la.plots.groups_figure(effects),
    }


if __name__ == "__main__":
    numbers = write(PAGES, MEASURED, TABLES)
    figures = examples()
    if "ranges" in numbers:
        figures["neuron-ranges"] = range_figure(numbers)
    for file_name, figure in figures.items():
        draw(figure, IMAGES / f"{file_name}.png")
