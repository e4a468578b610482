"""Write tables and figures on modularity: ``python docs/make_modularity.py``.

Reads what ``python -m docs.measure_modularity`` measured from ``docs/modularity.json``; what is not measured yet is
left as it is. A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. The figures need Chromium.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from make_images import IMAGES, draw
from pages import Measured, Tables, short, table, write

import lens_ablation as la

DOCS = Path(__file__).parent
PAGES = [DOCS / "modularity.md"]
MEASURED = DOCS / "modularity.json"
GOAL = 5

Row = Mapping[str, Any]


def drops(row: Row, curve: int, step: int) -> tuple[float, float]:
    """What a step costs the data to forget and the data to retain."""
    forget, retain = row["forget"][curve], row["retain"][curve]
    return forget[0] - forget[step], retain[0] - retain[step]


def times(forgot: float, lost: float) -> str:
    """How many times as much the data to forget suffers."""
    if forgot <= 0:
        return "nothing forgotten"
    return f"{forgot / lost:.1f}×" if lost > 5e-4 else "only the forgotten"


def scores(part: str) -> Callable[[Measured], str]:
    """Every score on every target: ratio of drops at the best step, and area; the smallest area of MLP neurons bold."""

    def compared(measured: Measured) -> str:
        rows = measured[part]
        targets = list(dict.fromkeys(row["target"] for row in rows))
        best = {t: min(row["area"][0] for row in rows if row["target"] == t) for t in targets}
        cells = []
        for sites, score in dict.fromkeys((row["sites"], row["score"]) for row in rows):
            line = [sites, score]
            for target in targets:
                row = next(r for r in rows if (r["sites"], r["score"], r["target"]) == (sites, score, target))
                forgot, lost = drops(row, 0, row["best"][0])
                area = f"{row['area'][0]:.2f}"
                area = f"**{area}**" if row["area"][0] == best[target] else area
                line.append(f"{_drop(forgot)} / {_drop(lost)}; {area}")
            cells.append(line)
        return table(["neurons", "score", *[f"{target}: forgotten / retained; area" for target in targets]], cells)

    return compared


def _drop(lost: float) -> str:
    return ("−" if round(lost, 2) > 0 else "+" if round(lost, 2) < 0 else "") + short(abs(lost))


def goal(measured: Measured) -> str:
    """What forgetting costs at the best step of mean |z|, beside random neurons, and whether the goal is met."""
    cells, met = [], 0
    parts = [row for part in ("domains", "digits") for row in measured[part]]
    rows = [row for row in parts if (row["score"], row["sites"]) == ("abs", "MLP")]
    for row in rows:
        step = row["best"][0]
        own = drops(row, 0, step)
        met += own[0] > 0 and own[0] >= GOAL * own[1]
        others = [
            [drops(row, c, step) for c, name in enumerate(row["curves"]) if name == wanted]
            for wanted in ("random", "random, same layers")
        ]
        means = [tuple(sum(pair[i] for pair in group) / len(group) for i in (0, 1)) for group in others]
        pruned = f"{100 * row['n_removed'][step] / row['n_sites']:.0f} %"
        shown = [_drop(own[0]), _drop(own[1]), f"**{times(*own)}**"]
        shown += [f"{_drop(f)} / {_drop(r)} ({times(f, r)})" for f, r in means]
        cells.append([row["model"], row["target"], pruned, *shown])
    header = ["model", "forgotten", "pruned", "costs it", "costs the others", "ratio"]
    said = f"At least {GOAL} times as much in {met} of {len(rows)} cases.\n\n"
    return said + table([*header, "random neurons", "random neurons, same layers"], cells)


def reading(measured: Measured) -> str:
    """Which scores come first, by their mean place over targets."""
    rows = [row for part in ("domains", "digits") for row in measured[part]]
    targets = list(dict.fromkeys((row["model"], row["target"]) for row in rows))
    places: dict[str, list[int]] = {}
    for target in targets:
        here = [row for row in rows if (row["model"], row["target"]) == target and row["sites"] == "MLP"]
        for place, row in enumerate(sorted(here, key=lambda row: row["area"][0])):
            places.setdefault(row["score"], []).append(place + 1)
    order = sorted(places, key=lambda score: sum(places[score]))
    said = [f"{score} ({sum(places[score]) / len(targets):.1f})" for score in order]
    n, most = len(order), max(rows, key=lambda row: row["dominated"])
    where = f"{most['score']} of {most['sites']} neurons in {most['model']}"
    return (
        f"Mean place among the {n} by area, over the {len(targets)} columns: {', '.join(said)}. Epsilon decided "
        f"most scores, {100 * most['dominated']:.0f} %, with {where}.\n"
    )


def overlaps(measured: Measured) -> str:
    """Overlap of the sets of two tasks, trained and fresh weights."""
    cells = []
    for row in measured["cross"]:
        for weights, found in (("trained", [row["trained"]]), ("fresh", row["fresh"])):
            mean = [sum(one[key] for one in found) / len(found) for key in ("overlap", "chance", "chance_in_layers")]
            low, high = min(one["low"] for one in found), max(one["high"] for one in found)
            alike = [one["alike"] for one in found if one.get("alike") is not None]
            pattern = f"{short(min(alike))} to {short(max(alike))}" if alike else ""
            seeds = f"{weights}, {len(found)} seeds" if weights == "fresh" else weights
            cells.append(
                [
                    f"{row['model']}, {row['tasks']}",
                    row["kind"],
                    seeds,
                    short(mean[0]),
                    f"{short(low)} to {short(high)}",
                    short(mean[1]),
                    short(mean[2]),
                    pattern,
                ]
            )
    header = ["tasks", "score", "weights", "overlap", "pairs", "chance", "chance by layer", "like the trained one"]
    return table(header, cells)


def correlations(measured: Measured) -> str:
    """Whether what a task loses follows what it shares."""
    lines = []
    for row in measured["cross"]:
        change = row["change"]
        n = len(change)
        own = sum(change[i][i] for i in range(n)) / n
        other = sum(change[i][j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
        told = (
            f"- {row['model']}, {row['tasks']}, {row['kind']}: pruned for a task, accuracy on it changes by {own:+.3f}"
        )
        told += f", on others by {other:+.3f}"
        if row["rank"] is not None:
            told += f"; damage to others follows overlap with rank correlation {row['rank']:.2f} (p = {row['p']:.3f})"
        lines.append(told.replace("-0.", "−0.") + ".")
    return "\n".join(lines) + "\n"


def matrix(what: str) -> Callable[[Measured], str]:
    """The cross-pruning matrix of these tasks, by mean ``|z|``."""

    def made(measured: Measured) -> str:
        row = next(row for row in measured["cross"] if (row["tasks"], row["kind"]) == (what, "abs"))
        cells = [
            [name, *[f"{value:+.3f}".replace("-", "−") for value in line]]
            for name, line in zip(row["names"], row["change"], strict=True)
        ]
        cells.append(["nothing (accuracy)", *[f"{value:.3f}" for value in row["baseline"]]])
        return table(["pruned for", *row["names"]], cells)

    return made


def enriched(measured: Measured) -> str:
    """z of all layers together: median and range over tasks."""
    cells = []
    for row in measured["experts"]:
        z = sorted(row["z_overall"])
        middle = z[len(z) // 2]
        by_layer = [sorted(task[layer] for task in row["z"])[len(z) // 2] for layer in range(len(row["z"][0]))]
        again = "" if row["seed_to_seed"] is None else ", ".join(short(value) for value in row["seed_to_seed"])
        cells.append(
            [
                row["model"],
                row["weights"],
                row["split"],
                f"{middle:.1f} ({z[0]:.1f} to {z[-1]:.1f})".replace("-", "−"),
                ", ".join(f"{round(value, 1) + 0:.1f}" for value in by_layer).replace("-", "−"),
                again,
            ]
        )
    header = ["model", "weights", "experts by", "z over all layers (range over tasks)", "by layer", "seed to seed"]
    by = next(row["computed_by"] for row in measured["experts"] if row["split"] == "weights")
    return table(header, cells) + f"\nClusters computed by {by}.\n"


def routed(measured: Measured) -> str:
    """Accuracy kept with some experts at each token."""
    cells = []
    for row in measured["experts"]:
        if row["kept"]:
            of = measured["settings"]["experts"][row["model"]]
            shown = [f"{n} of {of}: {100 * share:.0f} %" for n, share in row["kept"]]
            cells.append([row["model"], row["split"], "; ".join(shown)])
    return table(["model", "experts by", "experts used: share of the accuracy kept"], cells)


def size(measured: Measured) -> str:
    """Seconds and memory of splitting a wide layer."""
    names = {"random": "directions by chance", "clusters": "60 unequal clusters"}
    cells = [
        [
            f"{row['shape'][0]:,} × {row['shape'][1]:,}, {names[row['rows']]}",
            f"{row['experts']} of {' or '.join(map(str, row['sizes']))}",
            row["by"],
            f"{row['seconds']:.0f} s",
            str(row["iterations"]),
            f"{row['inertia']:,.0f}",
            f"{row['peak_gib']:.2f} GiB",
        ]
        for row in measured["size"]
    ]
    return table(
        ["rows", "experts", "computed by", "time", "iterations", "squared distances", "peak memory"], cells
    ) + ("\nOne core, single precision; memory is that above the libraries', the rows themselves included.\n")


TABLES: Tables = {
    "modularity-goal": (["domains", "digits"], goal),
    "modularity-reading": (["domains", "digits"], reading),
    "modularity-domains": (["domains"], scores("domains")),
    "modularity-digits": (["digits"], scores("digits")),
    "modularity-cross": (["cross"], matrix("domains")),
    "modularity-cross-skills": (["cross"], matrix("skills")),
    "modularity-correlations": (["cross"], correlations),
    "modularity-overlaps": (["cross"], overlaps),
    "modularity-experts": (["experts"], enriched),
    "modularity-routing": (["experts"], routed),
    "modularity-size": (["size"], size),
}


def digits(split: str, n: int) -> dict[str, la.Task]:
    """Images of each digit."""
    every = la.tasks.digits(la.load_model("tiny-vit"), n=n, split=split)
    return {str(digit): every.select((every.answers == digit).nonzero()[:, 0]) for digit in range(10)}


def figures() -> dict[str, Callable[[], go.Figure]]:
    """By file name; all measured anew."""
    model = la.load_model("tiny-vit")
    scored, tested = digits("train", 1200), digits("held_out", 450)

    def curves() -> go.Figure:
        from lens_ablation.data.task import joined

        data = {
            "forget": scored["3"],
            "forget_test": replace(tested["3"], name="the digit 3"),
            "retain": joined([task for name, task in scored.items() if name != "3"]),
            "retain_test": replace(
                joined([task for name, task in tested.items() if name != "3"]), name="the other digits"
            ),
        }
        return la.plots.selective_figure(
            {
                kind: la.prune_selectively(
                    model, **data, kind=kind, fraction_per_step=0.05, steps=12, rescore=False, progress=False
                )
                for kind in ("abs", "std", "freq")
            }
        )

    def experts() -> go.Figure:
        sets = la.selective_neurons(model, scored, fraction=0.1, progress=False)
        split = la.split_into_experts(model, None, 8, la.ParameterClustering(n_init=3), progress=False)
        return la.enrichment({name: sets[name] for name in ("0", "3", "6", "8")}, split).plot()

    found = la.cross_pruning(model, scored, tested, fraction=0.1, progress=False)
    return {
        "modularity-curves": curves,
        "modularity-cross": found.plot,
        "modularity-overlap": found.overlap.plot,
        "modularity-enrichment": experts,
    }


if __name__ == "__main__":
    results = write(PAGES, MEASURED, TABLES)
    for file_name, make in figures().items():
        draw(make(), IMAGES / f"{file_name}.png")
