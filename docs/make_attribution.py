"""Write tables, sentences and the figure on attribution: ``python docs/make_attribution.py``.

Reads what ``python -m docs.measure_attribution`` measured from ``docs/attribution.json``; what is not measured yet is
left as it is. A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. The figure needs Chromium.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import plotly.graph_objects as go
from make_images import IMAGES, draw
from pages import Measured, Tables, percent, short, table, write
from plotly.subplots import make_subplots

from lens_ablation.plots import style

DOCS = Path(__file__).parent
PAGES = [DOCS / "attribution.md", DOCS / "editing.md"]
MEASURED = DOCS / "attribution.json"

Row = Mapping[str, Any]

DRAWN = "0.1"
"""Ablated fraction that the figure and the sentences are about."""

LINES = ("expected gradient", "ridge")
"""Ways that were measured with several numbers of masks."""

TICKS = {10: "10", 100: "100", 1000: "1,000"}


def _values(rows: Iterable[Row], key: str) -> list[Any]:
    """Values of a key, each once, in the order of the rows."""
    return list(dict.fromkeys(row[key] for row in rows))


def _named(rows: Iterable[Row], **wanted: object) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def _correlations(rows: Iterable[Row], fraction: str) -> list[float]:
    return [row["correlation"][fraction] for row in rows]


def _way(name: str) -> str:
    return name.partition(", ")[0]


def estimators(measured: Measured) -> str:
    """Held-out correlation of every way, a table to each model."""
    text = []
    for setup in _values(measured["estimators"], "setup"):
        rows = _named(measured["estimators"], setup=setup)
        ways, fractions = _values(rows, "way"), list(rows[0]["correlation"])
        found = {(way, f): _correlations(_named(rows, way=way), f) for way in ways for f in fractions}
        best = {f: max(round(mean(found[way, f]), 2) for way in ways) for f in fractions}
        cells = []
        for way in ways:
            line = [way, f"{_named(rows, way=way)[0]['passes']:,}"]
            for f in fractions:
                at = short(mean(found[way, f]))
                at = f"**{at}**" if round(mean(found[way, f]), 2) == best[f] else at
                line.append(f"{at} ({short(min(found[way, f]))} to {short(max(found[way, f]))})")
            cells.append(line)
        header = [setup, "passes", *(f"{percent(float(f))} ablated" for f in fractions)]
        text.append(table(header, cells))
    return "\n".join(text)


def components(measured: Measured) -> str:
    """Kinds of components, replacements and fractions."""
    rows = measured["components"]
    ways, cells = _values(rows, "way"), []
    for setup, case, fraction in dict.fromkeys((row["setup"], row["case"], row["fraction"]) for row in rows):
        here = {row["way"]: row for row in _named(rows, setup=setup, case=case, fraction=fraction)}
        values = {way: round(here[way]["correlation"][str(fraction)], 2) for way in ways}
        shown = [f"**{short(v)}**" if v == max(values.values()) else short(v) for v in values.values()]
        cells.append([setup.partition(",")[0], case, percent(fraction), *shown])
    passes = [sorted({row["passes"] for row in _named(rows, way=way)}) for way in ways]
    names = [f"{way} ({' or '.join(f'{n:,}' for n in ns)})" for way, ns in zip(ways, passes, strict=True)]
    return table(["model", "components, replacement", "ablated", *names], cells)


def edits(measured: Measured) -> str:
    """What each edit did to held-out examples."""
    rows, cells = measured["edits"], []
    for task in _values(rows, "task"):
        found = _named(rows, task=task)
        first = found[0]
        if len(found) > 1:
            ablated = f"{median(row['k'] for row in found):g} (median) of {first['of']:,}"
            effects = _errors(found)
        else:
            ablated, effects = f"{first['k']} of {first['of']:,}", _effects(first["groups"])
        cells.append([task, ablated, first["method"].lower(), effects])
    return table(["task", "ablated", "replaced by", "held-out examples"], cells)


MOST_LEFT, MOST_LOST = 0.1, 0.02
"""Of what is to be forgotten at most this is to be left, and others are to lose this at most."""


def forgotten(measured: Measured) -> str:
    """Which edits forget enough and spare the others, and by how many examples those that do not miss it."""
    kept: list[str] = []
    costly, left = [], []
    for row in measured["edits"]:
        name = row["task"].removeprefix("forget ")
        if name == row["task"]:
            continue
        target = row["groups"]["class" if "class" in row["groups"] else "relation"]
        spared = {key: group for key, group in row["groups"].items() if key not in ("class", "relation")}
        lost = {key: group["before"] - group["after"] for key, group in spared.items()}
        if target["after"] > MOST_LEFT + ROUNDING:
            left.append(f"{name} ({round(target['after'] * target['n'])} of {target['n']} left)")
        elif max(lost.values()) > MOST_LOST + ROUNDING:
            missed = [
                f"{key} {100 * -lost[key]:+.1f} points, {round(lost[key] * group['n'])} of {group['n']}"
                for key, group in spared.items()
                if lost[key] > MOST_LOST + ROUNDING
            ]
            costly.append(f"{name} ({'; '.join(missed)})")
        else:
            kept.append(name)
    said = {"Reached": kept, "Forgotten, at a higher price": costly, "Not forgotten": left}
    return "".join(f"- {what}: {', '.join(names)}.\n" for what, names in said.items() if names)


ROUNDING = 1e-6


def why(measured: Measured) -> str:
    """What others lose where constants were fitted, where their number was chosen, and where they are judged."""
    lines = []
    for what, group in (("Digits", "class"), ("Relations", "relation")):
        rows = [row for row in measured["edits"] if group in row["groups"]]
        if not rows:
            continue
        fitted, chosen = (
            mean(100 * (row["seen"][name]["after"] - row["seen"][name]["before"]) for row in rows)
            for name in ("reference", "validation reference")
        )
        others = [row["groups"]["others"] for row in rows]
        judged = mean(100 * (one["after"] - one["before"]) for one in others)
        lost = [place for row in rows for place in row["lost"]]
        low = sum(place < LOW for place in lost)
        lines.append(
            f"- {what}: the others change by {fitted:+.1f} points on the examples that constants are fitted to "
            f"(mean of {len(rows)} edits), {chosen:+.1f} on those that choose their number, and {judged:+.1f} on "
            f"held-out ones. Of {len(lost)} held-out examples that are lost, the untouched model had less margin on "
            f"{low} than on three quarters of their group.\n"
        )
    return "".join(lines)


LOW = 0.25


def _errors(rows: Sequence[Row]) -> str:
    fixed = sum(row["groups"]["error"]["after"] == 1 for row in rows)
    others = [row["groups"]["others"] for row in rows]
    worst = 100 * min(group["after"] - group["before"] for group in others)
    return f"{fixed} of {len(rows)} errors fixed; the others change by {worst:+.1f} points at worst"


def _effects(groups: Mapping[str, Row]) -> str:
    return ", ".join(f"{name} {percent(g['before'])} → {percent(g['after'])}" for name, g in groups.items())


def passes(measured: Measured) -> str:
    """For each number of slopes, how many forward passes ridge needs to predict as well."""
    text = []
    for setup in _values(measured["estimators"], "setup"):
        rows = _named(measured["estimators"], setup=setup)
        reached = {way: mean(_correlations(_named(rows, way=way), DRAWN)) for way in _values(rows, "way")}
        cost = {row["way"]: row["passes"] for row in rows}
        ridge = [way for way in reached if _way(way) == "ridge"]
        for way in (way for way in reached if _way(way) == "expected gradient"):
            enough = next((other for other in ridge if reached[other] >= reached[way]), None)
            by_ridge = f"{cost[enough]:,}" if enough else f"more than {cost[ridge[-1]]:,}"
            text.append([setup.partition(",")[0], way, short(reached[way]), f"{cost[way]:,}", by_ridge])
    return table(["model", "way", "r", "passes", "passes of ridge, of those measured"], text)


def wins(measured: Measured) -> str:
    """Slopes against regression at equal passes, counted over cases."""
    rows, lines = measured["components"], []
    for kind in dict.fromkeys(row["case"].partition(",")[0] for row in rows):
        pairs = [
            (_at_own(row), _at_own(other))
            for row in _named(rows, way="slopes of 64 masks")
            if row["case"].startswith(kind)
            for other in _named(
                rows, way="ridge at equal passes", setup=row["setup"], case=row["case"], fraction=row["fraction"]
            )
        ]
        better = sum(slopes > ridge for slopes, ridge in pairs)
        gain = mean(slopes - ridge for slopes, ridge in pairs)
        lines.append(
            f"- {kind[0].upper()}{kind[1:]}: slopes predict better than ridge at equal passes in {better} of "
            f"{len(pairs)} cases; r differs by {gain:+.2f} on average."
        )
    return "\n".join(lines) + "\n"


def variants(measured: Measured) -> str:
    """Ways of averaging slopes, at both fractions and every number of masks."""
    rows = measured["variants"]
    masks, fractions = _values(rows, "masks"), _values(rows, "fraction")
    cells = []
    for setup, kind in dict.fromkeys((row["setup"], row["kind"]) for row in rows):
        here = _named(rows, setup=setup, kind=kind)
        ways = _values(here, "way")
        found = {
            (way, f, n): mean(row["correlation"] for row in _named(here, way=way, fraction=f, masks=n))
            for way in ways
            for f in fractions
            for n in masks
        }
        best = {(f, n): max(round(found[way, f, n], 2) for way in ways) for f in fractions for n in masks}
        for way in ways:
            line = [setup.partition(",")[0], kind, way]
            for f in fractions:
                for n in masks:
                    shown = short(found[way, f, n])
                    line.append(f"**{shown}**" if round(found[way, f, n], 2) == best[f, n] else shown)
            cells.append(line)
    header = [f"{percent(f)}, {n} masks" for f in fractions for n in masks]
    return table(["model", "components", "way", *header], cells)


def _at_own(row: Row) -> float:
    return row["correlation"][str(row["fraction"])]


TABLES: Tables = {
    "estimators": (["estimators"], estimators),
    "passes": (["estimators"], passes),
    "components": (["components"], components),
    "wins": (["components"], wins),
    "variants": (["variants"], variants),
    "edits": (["edits"], edits),
    "forgotten": (["edits"], forgotten),
    "forgotten-why": (["edits"], why),
}


def figure(measured: Measured) -> go.Figure:
    """Held-out correlation by forward passes, a panel to each model."""
    setups = _values(measured["estimators"], "setup")
    drawn = make_subplots(1, len(setups), subplot_titles=setups, shared_yaxes=True, horizontal_spacing=0.05)
    style.dress(
        drawn,
        "Slopes predict unseen ablations with a fraction of the passes",
        f"Correlation with fresh masks that ablate {percent(float(DRAWN))}; mean and range over seeds",
        height=490,
    )
    rows = [row for row in measured["estimators"] if row["way"] != "random"]
    ways = [*LINES, *(way for way in _values(rows, "way") if _way(way) not in LINES)]
    known: set[str] = set()
    for column, setup in enumerate(setups, 1):
        for i, way in enumerate(ways):
            found = [row for row in _named(rows, setup=setup) if way in (row["way"], _way(row["way"]))]
            points = [_correlations(_named(found, passes=n), DRAWN) for n in _values(found, "passes")]
            drawn.add_scatter(
                x=_values(found, "passes"),
                y=[mean(values) for values in points],
                error_y={
                    "array": [max(values) - mean(values) for values in points],
                    "arrayminus": [mean(values) - min(values) for values in points],
                    "thickness": 1,
                    "width": 3,
                },
                name=_way(way),
                legendgroup=way,
                mode="lines+markers" if way in LINES else "markers",
                line={"color": style.PALETTE[i], "dash": style.DASHES[i % 2]},
                marker={
                    "symbol": (*style.SYMBOLS, "star")[i],
                    "size": 8 if way in LINES else 11,
                    "color": style.PALETTE[i],
                },
                showlegend=bool(found) and way not in known,
                row=1,
                col=column,
            )
            known |= {way} if found else set()
    drawn.update_xaxes(title_text="forward passes", type="log", tickvals=list(TICKS), ticktext=list(TICKS.values()))
    drawn.update_xaxes(range=[0.2, 4])
    drawn.update_yaxes(range=[min(0.0, *_lowest(rows)) - 0.03, 1], dtick=0.2)
    drawn.update_yaxes(title_text="held-out r", col=1)
    drawn.update_layout(legend={"orientation": "h", "x": 0, "y": -0.21, "yanchor": "top"}, margin={"b": 110, "t": 120})
    return drawn


def _lowest(rows: Iterable[Row]) -> list[float]:
    return [row["correlation"][DRAWN] for row in rows]


if __name__ == "__main__":
    found = write(PAGES, MEASURED, TABLES)
    if "estimators" in found:
        draw(figure(found), IMAGES / "attribution.png")
