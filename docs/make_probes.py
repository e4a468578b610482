"""Write tables and figures on probes of skills: ``python docs/make_probes.py``.

Reads what ``python -m docs.measure_probes`` measured from ``docs/probes.json``; what is not measured yet is left as it
is. A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. The figures need Chromium.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
from make_images import IMAGES, draw
from pages import Measured, Tables, short, table, write

import lens_ablation as la

DOCS = Path(__file__).parent
PAGES = [DOCS / "probes.md"]
MEASURED = DOCS / "probes.json"

Row = Mapping[str, Any]

PROBES = ("Activation", "Polarity", "Magnitude", "Forest")
WORDS = {"trained": "sentences as in training", "new": "new wordings"}


def accuracy(measured: Measured) -> str:
    """Test accuracy of every probe on every skill, the best one bold."""
    cells = []
    for row in measured["accuracy"]:
        found = row["accuracy"]
        best = max(found[name][0] for name in PROBES)
        shown = [_interval(found["LogProb"])]
        shown += [
            f"**{_interval(found[name])}**" if found[name][0] == best else _interval(found[name]) for name in PROBES
        ]
        cells.append(
            [row["skill"], row["wordings"], f"{row['train']} / {row['test']}", f"{1 / row['candidates']:.2f}", *shown]
        )
    return table(["skill", "wordings", "questions: train / test", "chance", "the model's answer", *PROBES], cells)


def _interval(values: Sequence[float]) -> str:
    return f"{_three(values[0])} ({short(values[1])} to {short(values[2])})"


def _three(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1)


def goal(measured: Measured) -> str:
    """Where the best probe reaches the model's own answer and the activation probe."""
    lines = []
    for row in measured["accuracy"]:
        found = {name: values[0] for name, values in row["accuracy"].items()}
        name = max(("Polarity", "Magnitude", "Forest"), key=found.__getitem__)
        change, low, high = row["above_model"][name]
        sure = "which leaves out 0" if low > 0 or high < 0 else "which holds 0"
        own = "reaches" if found[name] >= found["LogProb"] else "does not reach"
        other = "reaches" if found[name] >= found["Activation"] else "does not reach"
        where = f"{row['skill']}, {WORDS[row['wordings']]}"
        if own == "reaches" and change == 0:
            difference = "equal to it"
        else:
            difference = f"{100 * change:+.1f} points; 95 % interval {100 * low:+.1f} to {100 * high:+.1f}, {sure}"
        lines.append(
            f"- {where}: the best probe of gradients is {name} ({_three(found[name])}); it {own} the model's answer "
            f"({difference}), and {other} the activation probe ({_three(found['Activation'])}).\n"
        )
    met = sum(_met(row) for row in measured["accuracy"])
    by = {w: [_met(row) for row in measured["accuracy"] if row["wordings"] == w] for w in WORDS}
    counts = ", ".join(f"{sum(flags)} of {len(flags)} in {WORDS[w]}" for w, flags in by.items())
    return f"Both goals are met on {met} of {len(measured['accuracy'])} ({counts}):\n\n" + "".join(lines)


def _met(row: Row) -> bool:
    found = {name: values[0] for name, values in row["accuracy"].items()}
    best = max(found[name] for name in ("Polarity", "Magnitude", "Forest"))
    return best >= found["LogProb"] and best >= found["Activation"]


def leaks(measured: Measured) -> str:
    """The forest on clean splits, and with the test questions among its training questions."""
    cells = [
        [row["skill"], row["wordings"], _three(row["accuracy"]["Forest"][0]), _three(row["leaked_forest"])]
        for row in measured["accuracy"]
    ]
    return table(["skill", "wordings", "forest, disjoint splits", "test questions in training"], cells)


def halves(measured: Measured) -> str:
    """Agreement of probes fitted on disjoint halves of the training questions."""
    cells = [
        [
            row["skill"],
            row["wordings"],
            row["probe"],
            str(row["train"]),
            short(row["rank"]),
            f"{short(row['shared'])} ({short(row['by_chance'])})",
            f"{short(row['accuracy'][0])} to {short(row['accuracy'][1])}",
        ]
        for row in measured["robustness"]["halves"]
    ]
    header = ["skill", "wordings", "probe", "questions in a half", "rank r", "shared (by chance)", "test accuracy"]
    return table(header, cells)


def moved(measured: Measured) -> str:
    """Accuracy of probes on other wordings than they were fitted on."""
    rows = measured["robustness"]["moved"]
    cells = []
    for skill in dict.fromkeys(row["skill"] for row in rows):
        for fitted, judged in (("trained", "new"), ("new", "trained")):
            own = {r["probe"]: r for r in rows if (r["skill"], r["fitted"], r["judged"]) == (skill, fitted, judged)}
            home = {r["probe"]: r for r in rows if (r["skill"], r["fitted"], r["judged"]) == (skill, judged, judged)}
            shown = [f"{short(own[name]['accuracy'][0])} ({short(home[name]['accuracy'][0])})" for name in PROBES]
            cells.append([skill, f"{fitted} → {judged}", short(own["LogProb"]["accuracy"][0]), *shown])
    return table(["skill", "fitted → judged", "the model's answer", *PROBES], cells)


def wordings(measured: Measured) -> str:
    """Agreement of magnitude probes that were each fitted on one wording."""
    cells = []
    for row in measured["robustness"]["wordings"]:
        for pair, (rank, shared, chance) in row["agreement"].items():
            kinds = f"both {pair.split(', ')[0]}" if len(set(pair.split(", "))) == 1 else pair.replace(", ", " and ")
            cells.append(
                [
                    row["skill"],
                    kinds,
                    str(row["pairs"][pair]),
                    short(rank),
                    f"{short(shared)} ({short(chance)})",
                ]
            )
    return table(["skill", "wordings of the two", "pairs", "rank r", "shared (by chance)"], cells)


def layers(measured: Measured) -> str:
    """How many neurons of the magnitude probe lie in each layer."""
    cells = [[row["skill"], row["wordings"], *map(str, row["layers"])] for row in measured["accuracy"]]
    return table(["skill", "wordings", *(f"layer {i}" for i in range(4))], cells)


def shifts(measured: Measured) -> str:
    """Change of the answer under shifts by one, chosen and random neurons."""
    cells = []
    for row in measured["shifts"]:
        if row["metric"] != "right_choice":
            continue
        probability = next(
            other
            for other in measured["shifts"]
            if (other["skill"], other["wordings"], other["metric"]) == (row["skill"], row["wordings"], "probability")
        )
        line = [row["skill"], row["wordings"], short(row["table"]["baseline"][0])]
        for found in (row, probability):
            for amount in (-0.5, 0.5):
                i = found["table"]["amount"].index(amount)
                line.append(_effect(found["table"], i))
        cells.append(line)
    header = [
        "skill",
        "wordings",
        "right answers",
        "share right, −0.5",
        "share right, +0.5",
        "probability, −0.5",
        "probability, +0.5",
    ]
    return table(header, cells)


def shift_readings(measured: Measured) -> str:
    """How often the found neurons move the probability as their direction says, and further than random ones."""
    tables = [row["table"] for row in measured["shifts"] if row["metric"] == "probability"]
    lines = []
    for word, amount in (("Suppressed", -0.5), ("Enhanced", 0.5)):
        found = [[table[name][table["amount"].index(amount)] for name in _COLUMNS] for table in tables]
        right = [row for row in found if row[0] * amount > 0]
        beyond = [row for row in right if (row[0] > row[2] if amount > 0 else row[0] < row[1])]
        wrong = [row for row in found if row[0] * amount < 0 and (row[0] < row[1] if amount > 0 else row[0] > row[2])]
        way = "falls" if amount < 0 else "rises"
        lines.append(
            f"- {word} by 0.5, the probability of the right answer {way} in {len(right)} of {len(found)} cases, in "
            f"{len(beyond)} of them further than with any random set; in {len(wrong)} cases it goes the wrong way, "
            "further than with any random set.\n"
        )
    return "".join(lines)


_COLUMNS = ("effect", "random_low", "random_high")


def _effect(table: Mapping[str, Sequence[float]], i: int) -> str:
    ends = (table["effect_low"][i], table["effect_high"][i])
    # a star: no random set moves it as far
    star = "*" if table["effect"][i] > table["random_high"][i] or table["effect"][i] < table["random_low"][i] else ""
    interval = f"{_signed(ends[0])} to {_signed(ends[1])}"
    return f"{_signed(table['effect'][i])}{star} ({interval}); random {_signed(table['random'][i])}"


def _signed(value: float) -> str:
    shown = f"{value:+.3f}".replace("0.", ".", 1)
    return shown.replace("-", "−") if float(value) else "0"


TABLES: Tables = {
    "accuracy": (["accuracy"], accuracy),
    "goal": (["accuracy"], goal),
    "leaks": (["accuracy"], leaks),
    "layers": (["accuracy"], layers),
    "halves": (["robustness"], halves),
    "moved": (["robustness"], moved),
    "wordings": (["robustness"], wordings),
    "shifts": (["shifts"], shifts),
    "shift-readings": (["shifts"], shift_readings),
}


def curve(row: Row) -> la.ProbeCurve:
    """A curve as it was measured."""
    flags = [[[bit == "1" for bit in line] for line in probe] for probe in row["correct"]]
    return la.ProbeCurve(
        correct=torch.tensor(flags),
        model_correct=torch.tensor([bit == "1" for bit in row["model_correct"]]),
        probes=tuple(row["probes"]),
        ks=tuple(row["ks"]),
        n_train=row["train"],
        settings=row["settings"],
    )


def layered() -> go.Figure:
    """Where the neurons of a probe of comparisons lie, fitted anew."""
    model = la.load_model("tiny-lm")
    asked = la.skills.comparison(model, n=400, split="train", wordings="new")
    found = la.neuron_gradients(model, asked.task, candidates=asked.candidates, progress=False)
    return la.fit_skill_probe(found, asked.labels, la.MagnitudeProbe(64)).plot()


def shifted() -> go.Figure:
    """Found neurons of the capital skill shifted, measured anew."""
    model = la.load_model("tiny-lm")
    train, test = (la.skills.capital(model, split=split, wordings="new") for split in ("train", "test"))
    found = la.neuron_gradients(model, train.task, candidates=train.candidates, progress=False)
    probe = la.fit_skill_probe(found, train.labels, la.PolarityProbe(64))
    return la.shift_effect(
        model,
        test.task,
        probe.neurons,
        probe.polarities,
        amounts=(-2.0, -1.0, -0.5, -0.25, 0.25, 0.5, 1.0, 2.0),
        among=probe.sites,
        among_polarities=probe.scores.sign(),
        n_random=19,
        metric=la.metrics.probability,
        progress=False,
    ).plot()


def figures(measured: Measured) -> dict[str, Callable[[], go.Figure]]:
    """By file name."""
    made: dict[str, Callable[[], go.Figure]] = {"probes-layers": layered, "probes-shift": shifted}
    for row in measured.get("curves", []):
        if (row["skill"], row["wordings"]) in (("comparison", "new"), ("domain", "new"), ("capital", "new")):
            made[f"probes-curve-{row['skill']}"] = curve(row).plot
    return made


if __name__ == "__main__":
    found = write(PAGES, MEASURED, TABLES)
    for file_name, make in figures(found).items():
        draw(make(), IMAGES / f"{file_name}.png")
