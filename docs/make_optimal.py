"""Write tables and figures on optimal ablation: ``python docs/make_optimal.py``.

Reads what ``python -m docs.measure_optimal`` measured from ``docs/optimal.json``; what is not measured yet is left as
it is. A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. The figures need Chromium.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
from make_images import IMAGES, draw
from pages import Measured, Tables, short, table, write

import lens_ablation as la
from lens_ablation.plots.lens import lenses_figure
from lens_ablation.statistics.provenance import Provenance

DOCS = Path(__file__).parent
PAGES = [DOCS / name for name in ("optimal.md", "tracing.md", "lenses.md")]
MEASURED = DOCS / "optimal.json"

Row = Mapping[str, Any]

SAME_CONDITIONING = {
    "Optimal (per position)": (
        "Zero",
        "Mean (per position)",
        "Counterfactual mean (per position)",
        "Resample (per position)",
    ),
    "Optimal": ("Zero", "Mean", "Resample (shuffled positions)"),
}
"""Methods that a kind of optimal constant is held against: those that may depend on as much as it."""


def gaps(measured: Measured) -> str:
    """Mean gap, ratios and correlations of every method, a table to each case."""
    return "\n".join(_gaps(row) for row in measured["compare"])


def _gaps(row: Row) -> str:
    ratios = {name: {one["method"]: one for one in found} for name, found in row["ratios"].items()}
    correlations = {one["method"]: one for one in row["correlations"]}
    header = [f"{row['setup']}, {row['judged']}", "by position", "mean gap (nats)"]
    header += [f"{name} / this: median, clamped mean" for name in ratios]
    header += ["rank r with counterfactual", "log r"] if correlations else []
    cells = []
    for place, name in enumerate(row["methods"]):
        line = [name, "yes" if row["by_position"][place] else "no", f"{_mean(row['gap'][place]):.4f}"]
        for own in ratios:
            one = ratios[own].get(name)
            line.append(f"{short(one['median'])}, {short(one['clamped mean'])}" if one else "")
        if correlations:
            one = correlations.get(name)
            line += [_interval(one, "rank"), _interval(one, "log")] if one else ["", ""]
        cells.append(line)
    return table(header, cells)


def _interval(one: Row, key: str) -> str:
    return f"{short(one[key])} ({short(one[f'{key} low'])} to {short(one[f'{key} high'])})"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def above(measured: Measured) -> str:
    """At how many sites optimal constants are no worse than what they contain, and where they are."""
    cells = []
    for row in measured["compare"]:
        for optimal, others in SAME_CONDITIONING.items():
            for name in others:
                if not {optimal, name} <= set(row["methods"]):
                    continue
                failing = row["above"][optimal][name]
                n = len(row["sites"])
                cells.append(
                    [f"{row['setup']}, {row['judged']}", optimal, name, f"{n - len(failing)} of {n}", _listed(failing)]
                )
    return table(["case", "constant", "held against", "no worse", "worse at"], cells)


def _listed(sites: Sequence[str], most: int = 8) -> str:
    more = f" and {len(sites) - most} more" if len(sites) > most else ""
    return ", ".join(sites[:most]) + more


def fits(measured: Measured) -> str:
    """How the descents ended."""
    cells = []
    for row in {row["setup"]: row for row in measured["compare"]}.values():
        n = len(row["sites"])
        left = row["out_of_steps"]
        ended = [f"{n - left[name]} of {n}" if name in left else "not fitted" for name in SAME_CONDITIONING]
        cells.append([row["setup"], f"{row['fitted']}", *ended])
    return table(["case", "examples", *(f"{name}: converged" for name in SAME_CONDITIONING)], cells)


PUBLISHED = {
    "rank": {"Zero": 0.590, "Mean": 0.825, "Resample": 0.828, "Counterfactual mean": 0.833, "Optimal": 0.907},
    "log": {"Zero": 0.626, "Mean": 0.831, "Resample": 0.826, "Counterfactual mean": 0.847, "Optimal": 0.908},
}
"""Correlations with counterfactual ablation over 156 components of GPT-2 small, labels of the authors' figure."""


def published(measured: Measured) -> str:
    """The authors' correlations with counterfactual ablation beside ours."""
    rows = [row for row in measured["compare"] if row["correlations"]]
    found = [{one["method"]: one for one in row["correlations"]} for row in rows]
    cells = []
    for name in PUBLISHED["rank"]:
        own = name if name == "Zero" else f"{name} (per position)"
        for kind in ("rank", "log"):
            cells.append(
                [f"{name}, {kind}", f"{PUBLISHED[kind][name]:.3f}"[1:], *(_interval(one[own], kind) for one in found)]
            )
    return table(["by position", "GPT-2 small", *(f"{row['setup']}, {row['judged']}" for row in rows)], cells)


def traces(measured: Measured) -> str:
    """Effect by layer, a row to a corruption, window and group of tokens."""
    cells, rows = [], [row for row in measured["trace"]["rows"] if row["restore"] != "head"]
    for row in rows:
        for group, effect, low, high in zip(row["groups"], row["effect"], row["low"], row["high"], strict=True):
            best = max(range(len(effect)), key=effect.__getitem__)
            shown = [
                f"**{short(e)}** ({short(a)} to {short(b)})" if i == best else short(e)
                for i, (e, a, b) in enumerate(zip(effect, low, high, strict=True))
            ]
            way = "noise" if row["corruption"] == "GaussianNoise" else "vector"
            cells.append([row["split"].replace("_", "-"), row["restore"], str(row["window"]), group, way, *shown])
    layers = [f"layer {i}" for i in range(len(rows[0]["effect"][0]))]
    return table(["facts", "restored", "window", "tokens", "corruption", *layers], cells)


def peaks(measured: Measured) -> str:
    """The layer that each way finds most important, at the same prompts."""
    cells = []
    for split, found in measured["trace"]["ablations"].items():
        for restore in ("attention", "mlp"):
            own = found[restore]
            swept = [-value for value in own["sweep"]]
            here = [split.replace("_", "-"), restore, _top(swept, own["sites"]), _top(own["coar"], own["sites"])]
            for corruption in ("GaussianNoise", "OptimalVector"):
                row = next(
                    row
                    for row in measured["trace"]["rows"]
                    if (row["split"], row["restore"], row["window"], row["corruption"])
                    == (split, restore, 1, corruption)
                )
                here.append(
                    ", ".join(
                        f"{group}: {_top(effect, row['sites'])}"
                        for group, effect in zip(row["groups"], row["effect"], strict=True)
                    )
                )
            cells.append(here)
    header = ["facts", "layers", "mean ablation (logits lost)", "COAR (logits)"]
    return table([*header, "tracing, noise (effect)", "tracing, learned vector (effect)"], cells)


def _top(values: Sequence[float], sites: Sequence[str]) -> str:
    best = max(range(len(values)), key=values.__getitem__)
    return f"{sites[best]} {values[best]:.2f}"


def layers(measured: Measured) -> str:
    """What mean ablation and COAR say of every layer."""
    cells = []
    for split, found in measured["trace"]["ablations"].items():
        for restore in ("attention", "mlp"):
            own = found[restore]
            for key, name in (("sweep", "mean ablation"), ("coar", "COAR")):
                signed = [-value if key == "sweep" else value for value in own[key]]
                cells.append([split.replace("_", "-"), restore, name, *(f"{value:.2f}" for value in signed)])
    names = [f"layer {i}" for i in range(len(cells[0]) - 3)]
    return table(["facts", "layers", "way (logits)", *names], cells)


def lens_table(measured: Measured) -> str:
    """KL by layer before and after fitting, a table to each model."""
    text, rows = [], measured["lenses"]
    for setup in dict.fromkeys(row["setup"] for row in rows):
        own = [row for row in rows if row["setup"] == setup]
        n_layers = len(own[0]["kl"])
        best = [min(row["kl"][layer] for row in own) for layer in range(n_layers)]
        cells = []
        for row in own:
            line = [row["lens"], f"{row['parameters']:,}"]
            for layer in range(n_layers):
                value, error = row["kl"][layer], row["error"][layer]
                shown = f"**{value:.3f}**" if value == best[layer] else f"{value:.3f}"
                before = f"{row['before'][layer]:.3f} → " if row["settings"] else ""
                line.append(f"{before}{shown} ± {1.96 * error:.3f}")
            cells.append(line)
        text.append(table([setup, "numbers kept", *(f"before block {i}" for i in range(n_layers))], cells))
    return "\n".join(text)


def lens_readings(measured: Measured) -> str:
    """How often one lens is closer than another, over layers of both models."""
    rows = measured["lenses"]
    pairs = [
        ("Optimal constant attention", "Mean attention"),
        ("Optimal constant attention", "Logit lens"),
        ("Optimal constant attention", "Tuned lens"),
        ("Mean attention", "Logit lens"),
    ]
    lines = []
    for one, other in pairs:
        counts = []
        for setup in dict.fromkeys(row["setup"] for row in rows):
            own = {row["lens"]: row["kl"] for row in rows if row["setup"] == setup}
            closer = sum(a < b for a, b in zip(own[one], own[other], strict=True))
            counts.append(f"{closer} of {len(own[one])} layers of {setup.partition(',')[0]}")
        lines.append(f"- {one} is closer to the model than {other.lower()} at {' and '.join(counts)}.\n")
    return "".join(lines)


def gap_readings(measured: Measured) -> str:
    """Which methods agree most and least with counterfactual ablation."""
    lines = []
    for row in measured["compare"]:
        found = {one["method"]: one["rank"] for one in row["correlations"]}
        order = sorted(found, key=found.__getitem__, reverse=True)
        place = order.index("Optimal (per position)") + 1
        lines.append(
            f"- {row['setup']}, {row['judged']}: by rank, {order[0]} agrees most with counterfactual ablation "
            f"({short(found[order[0]])}) and {order[-1]} least ({short(found[order[-1]])}); the optimal constant by "
            f"position is number {place} of {len(order)} ({short(found[order[place - 1]])}).\n"
        )
    return "".join(lines)


def trace_readings(measured: Measured) -> str:
    """Whether tracing and ablations name the same layer, and what the learned vector changes."""
    lines, rows = [], [row for row in measured["trace"]["rows"] if row["window"] == 1 and row["restore"] != "head"]
    for row in (row for row in rows if row["corruption"] == "GaussianNoise"):
        vector = next(
            other
            for other in rows
            if other["corruption"] == "OptimalVector"
            and (other["split"], other["restore"]) == (row["split"], row["restore"])
        )
        own = measured["trace"]["ablations"][row["split"]][row["restore"]]
        named = {
            "mean ablation": min(zip(own["sweep"], own["sites"], strict=True))[1],
            "COAR": max(zip(own["coar"], own["sites"], strict=True))[1],
            "noise": row["peak"]["last"],
            "the learned vector": vector["peak"]["last"],
        }
        sites = dict.fromkeys(named.values())
        said = "; ".join(f"{site} by {', '.join(w for w, s in named.items() if s == site)}" for site in sites)
        word = "all four name the same layer" if len(sites) == 1 else "they do not agree"
        effects = f"{short(max(row['effect'][0]))} with noise, {short(max(vector['effect'][0]))} with the vector"
        lines.append(
            f"- {row['split'].replace('_', '-')} facts, {row['restore']} restored at the last token: {word} ({said}). "
            f"Largest effect: {effects}.\n"
        )
    return "".join(lines)


TABLES: Tables = {
    "optimal-gaps": (["compare"], gaps),
    "optimal-above": (["compare"], above),
    "optimal-fits": (["compare"], fits),
    "optimal-published": (["compare"], published),
    "trace-effects": (["trace"], traces),
    "trace-peaks": (["trace"], peaks),
    "trace-layers": (["trace"], layers),
    "lenses": (["lenses"], lens_table),
    "lens-readings": (["lenses"], lens_readings),
    "optimal-readings": (["compare"], gap_readings),
    "trace-readings": (["trace"], trace_readings),
}


def _examples(mean: Sequence[Any], error: Sequence[Any], n: int) -> torch.Tensor:
    """Values of ``n`` examples with this mean and standard error of the mean, along a new last axis."""
    signs = torch.tensor([1.0, -1.0]).repeat(n)[:n]
    signs = signs - signs.mean()
    signs = signs / signs.std() * n**0.5
    return torch.tensor(mean)[..., None] + torch.tensor(error)[..., None] * signs


def comparison(row: Row) -> la.MethodComparison:
    """A comparison with the means and standard errors that were measured."""
    return la.MethodComparison(
        gaps=_examples(row["gap"], row["error"], row["examples"]),
        methods=tuple(row["methods"]),
        by_position=tuple(row["by_position"]),
        sites=tuple(row["sites"]),
        settings=row["settings"],
    )


def trace(row: Row) -> la.TraceResult:
    """A result of tracing as it was measured."""
    model = la.load_model("tiny-lm")
    select = {"attention": la.attentions, "mlp": la.mlps, "head": la.heads}[row["restore"]]
    values = {name: torch.tensor(value) for name, value in row["values"].items()}
    return la.TraceResult(groups=tuple(row["groups"]), sites=select(model), settings=row["settings"], **values)


def lenses(rows: Iterable[Row]) -> go.Figure:
    """The figure of lenses with the means and standard errors that were measured."""
    made = []
    for row in rows:
        model = la.load_model(row["setup"].partition(",")[0])
        kind = getattr(la, row["class"])(**row["settings"])
        provenance = Provenance.of_model(model, data=[], positions="answer", hook_names=[], measurement={})
        divergence = _examples(row["kl"], row["error"], row["held_out"])
        made.append(la.Lens(kind=kind, parameters={}, divergence=divergence, start=divergence, provenance=provenance))
    return lenses_figure(made)


def figures(measured: Measured) -> dict[str, go.Figure]:
    """By file name."""
    found: dict[str, go.Figure] = {}
    if "compare" in measured:
        first = {row["setup"]: row for row in reversed(measured["compare"])}
        found["optimal-compare"] = comparison(first["tiny-lm, ioi"]).plot()
        found["optimal-compare-years"] = comparison(first["tiny-lm, greater_than"]).plot()
    for row in measured.get("trace", {}).get("rows", []):
        way = "noise" if row["corruption"] == "GaussianNoise" else "vector"
        if row["split"] == "train" and row["window"] == 1 and row["restore"] in ("attention", "head"):
            found[f"tracing-{row['restore']}-{way}"] = trace(row).plot()
    rows = measured.get("lenses", [])
    for setup in dict.fromkeys(row["setup"] for row in rows):
        found[f"lenses-{setup.partition(',')[0]}"] = lenses(row for row in rows if row["setup"] == setup)
    return found


if __name__ == "__main__":
    found = write(PAGES, MEASURED, TABLES)
    for file_name, figure in figures(found).items():
        draw(figure, IMAGES / f"{file_name}.png")
