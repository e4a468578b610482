"""Measure probes of skills on tiny-lm: ``python -m docs.measure_probes [PART ...]``.

Writes ``docs/probes.json``; ``python docs/make_probes.py`` makes tables and figures of it. Parts: ``accuracy`` (every
probe on every skill), ``curves`` (by number of neurons), ``robustness`` (other training questions, other wordings),
``shifts`` (found neurons enhanced and suppressed). All take some five minutes on one core.
"""

import sys
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

import lens_ablation as la
from docs.measured import measure
from lens_ablation.empirical.gradients import NeuronGradients
from lens_ablation.empirical.probe import Probe

MEASURED = Path(__file__).parent / "probes.json"
N_DRAWN = 400
"""Questions of each split of the skills that can be drawn without end; of the others all there are."""
K = 64
KS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
N_PARTS, N_DIVISIONS = 2, 5
AMOUNTS = (-1.0, -0.5, 0.5, 1.0)
N_RANDOM, N_SHIFTED = 19, 120
WORDINGS = ("trained", "new")

Row = dict[str, object]
Part = tuple[la.MultipleChoice, NeuronGradients]


def probes() -> dict[str, Probe]:
    """By the name that the table gives."""
    return {
        "LogProb": la.LogProbProbe(),
        "Activation": la.ActivationProbe(K),
        "Polarity": la.PolarityProbe(K),
        "Magnitude": la.MagnitudeProbe(K),
        "Forest": la.ForestProbe(),
    }


def questions(skill: str, split: str, wordings: object) -> la.MultipleChoice:
    """All questions of a split, or as many as are drawn."""
    options = {"n": N_DRAWN} if skill in ("domain", "comparison") else {}
    return la.skills.get(skill)(la.load_model("tiny-lm"), split=split, wordings=wordings, **options)


def part(skill: str, split: str, wordings: object) -> Part:
    """Questions, and the gradients of all neurons for all candidates."""
    asked = questions(skill, split, wordings)
    model = la.load_model("tiny-lm")
    return asked, la.neuron_gradients(model, asked.task, candidates=asked.candidates, progress=False)


def interval(correct: Tensor) -> list[float]:
    """Accuracy and the ends of its 95 % bootstrap interval over questions."""
    low, high = la.ProbeCurve(
        correct=correct[None, None],
        model_correct=correct,
        probes=("",),
        ks=(1,),
        n_train=0,
        settings={},
    ).interval()
    return [round(float(value), 4) for value in (correct.double().mean(), low[0, 0], high[0, 0])]


def measure_accuracy() -> list[Row]:
    """Every probe on every skill, on questions that share nothing with those it was fitted on; and with leaks."""
    rows: list[Row] = []
    for wordings in WORDINGS:
        for skill in la.skills.names():
            train, seen = part(skill, "train", wordings)
            test, found = part(skill, "test", wordings)
            own = la.fit_skill_probe(found, test.labels, la.LogProbProbe()).correct(found, test.labels)
            row: Row = {
                "skill": skill,
                "wordings": wordings,
                "train": train.n_examples,
                "test": test.n_examples,
                "candidates": test.n_candidates,
                "same_candidates": len(set(test.names)) == 1,
            }
            row["accuracy"], row["train_accuracy"], row["seconds"], row["above_model"] = {}, {}, {}, {}
            for name, probe in probes().items():
                begun = time.perf_counter()
                fitted = la.fit_skill_probe(seen, train.labels, probe)
                row["seconds"][name] = round(time.perf_counter() - begun, 3)
                right = fitted.correct(found, test.labels)
                row["accuracy"][name] = interval(right)
                row["train_accuracy"][name] = round(fitted.accuracy(seen, train.labels), 4)
                row["above_model"][name] = difference(right, own)
            both = [seen, found]
            leaking = la.fit_skill_probe(both, torch.cat([train.labels, test.labels]), la.ForestProbe())
            row["leaked_forest"] = round(leaking.accuracy(found, test.labels), 4)
            fitted = la.fit_skill_probe(seen, train.labels, la.MagnitudeProbe(K))
            row["layers"] = torch.from_numpy(fitted.neurons.addresses[:, 0]).bincount(minlength=4).tolist()
            rows.append(row)
            print(wordings, skill, row["accuracy"], row["leaked_forest"], flush=True)
    return rows


def difference(right: Tensor, own: Tensor) -> list[float]:
    """Accuracy minus the model's own, and the ends of its 95 % bootstrap interval over questions."""
    from lens_ablation.studies.intervals import bootstrap_interval

    change = right.double() - own.double()
    low, high = bootstrap_interval(change[None], torch.ones(len(change)))
    return [round(float(value), 4) for value in (change.mean(), low[0], high[0])]


def measure_curves() -> list[Row]:
    """Test accuracy against the number of neurons."""
    rows: list[Row] = []
    for wordings in WORDINGS:
        for skill in la.skills.names():
            train, seen = part(skill, "train", wordings)
            test, found = part(skill, "test", wordings)
            curve = la.probe_curve(seen, train.labels, found, test.labels, ks=KS)
            low, high = curve.interval()
            rows.append(
                {
                    "skill": skill,
                    "wordings": wordings,
                    "probes": list(curve.probes),
                    "ks": list(curve.ks),
                    "train": curve.n_train,
                    "correct": [[bits(line) for line in probe] for probe in curve.correct],
                    "model_correct": bits(curve.model_correct),
                    "low": [[round(value, 4) for value in line] for line in low.tolist()],
                    "high": [[round(value, 4) for value in line] for line in high.tolist()],
                    "settings": {key: curve.settings[key] for key in ("model", "task")},
                }
            )
            print(wordings, skill, curve.accuracy.round(decimals=3).tolist(), flush=True)
    return rows


def bits(flags: Tensor) -> str:
    """Flags as a text of noughts and ones."""
    return "".join(map(str, flags.long().tolist()))


def measure_robustness() -> Row:
    """Agreement of probes fitted on other training questions, and on other wordings; accuracy across wordings."""
    divided: list[Row] = []
    worded: list[Row] = []
    moved: list[Row] = []
    for skill in la.skills.names():
        by_wording = {
            wordings: (part(skill, "train", wordings), part(skill, "test", wordings)) for wordings in WORDINGS
        }
        for wordings, ((train, seen), (test, found)) in by_wording.items():
            for name in ("Polarity", "Magnitude", "Activation"):
                divided.append(
                    {"skill": skill, "wordings": wordings, "probe": name} | halves(train, seen, test, found, name)
                )
        for name, probe in probes().items():
            for source in WORDINGS:
                train, seen = by_wording[source][0]
                fitted = la.fit_skill_probe(seen, train.labels, probe)
                for target in WORDINGS:
                    test, found = by_wording[target][1]
                    right = fitted.correct(found, test.labels)
                    moved.append(
                        {"skill": skill, "probe": name, "fitted": source, "judged": target, "accuracy": interval(right)}
                    )
        worded.append({"skill": skill} | single_wordings(skill))
        print(skill, divided[-6:], worded[-1], flush=True)
    return {"halves": divided, "wordings": worded, "moved": moved}


def halves(
    train: la.MultipleChoice, seen: NeuronGradients, test: la.MultipleChoice, found: NeuronGradients, name: str
) -> Row:
    """Agreement of probes of disjoint halves of the training questions, mean over divisions."""
    tables, accuracies = [], []
    for seed in range(N_DIVISIONS):
        fitted = la.probes_of_parts(seen, train.labels, probes()[name], n_parts=N_PARTS, seed=seed)
        tables.append(la.probe_agreement(fitted).iloc[0])
        accuracies += [one.accuracy(found, test.labels) for one in fitted.values()]
    means = {
        key: round(sum(float(table[key]) for table in tables) / len(tables), 4)
        for key in ("rank", "shared", "by_chance", "same_sign")
    }
    return means | {
        "accuracy": [round(value, 4) for value in (min(accuracies), max(accuracies))],
        "train": train.n_examples // 2,
    }


def single_wordings(skill: str) -> Row:
    """Agreement of magnitude probes that were each fitted on one wording, by kind of the two wordings."""
    fitted: dict[str, tuple[str, la.SkillProbe]] = {}
    for kind in WORDINGS:
        for wording in dict.fromkeys(questions(skill, "train", kind).wordings):
            train, seen = part(skill, "train", [wording])
            if int(train.labels.bincount(minlength=train.n_candidates).min()) > 0:
                fitted[wording] = kind, la.fit_skill_probe(seen, train.labels, la.MagnitudeProbe(K))
    found: dict[str, list[list[float]]] = {}
    for (first, (kind, one)), (second, (other, two)) in combinations(fitted.items(), 2):
        table = la.probe_agreement({first: one, second: two}).iloc[0]
        found.setdefault(f"{kind}, {other}", []).append([float(table[key]) for key in ("rank", "shared", "by_chance")])
    means = {
        pair: [round(sum(column) / len(column), 4) for column in zip(*rows, strict=True)]
        for pair, rows in found.items()
    }
    return {"wordings": len(fitted), "pairs": {pair: len(rows) for pair, rows in found.items()}, "agreement": means}


def measure_shifts() -> list[Row]:
    """The answer on test questions while the neurons of polarity probes are enhanced and suppressed."""
    model = la.load_model("tiny-lm")
    rows: list[Row] = []
    for wordings in WORDINGS:
        for skill in la.skills.names():
            train, seen = part(skill, "train", wordings)
            test = questions(skill, "test", wordings)
            test = test.select(slice(0, N_SHIFTED))
            probe = la.fit_skill_probe(seen, train.labels, la.PolarityProbe(K))
            for metric in (test.task.metric, la.metrics.probability):
                effect = la.shift_effect(
                    model,
                    test.task,
                    probe.neurons,
                    probe.polarities,
                    amounts=AMOUNTS,
                    among=probe.sites,
                    among_polarities=probe.scores.sign(),
                    n_random=N_RANDOM,
                    metric=metric,
                    progress=False,
                )
                table = effect.to_dataframe()
                rows.append(
                    {
                        "skill": skill,
                        "wordings": wordings,
                        "metric": effect.settings["metric"],
                        "test": test.n_examples,
                        "table": {name: [round(float(value), 5) for value in table[name]] for name in table},
                        "settings": {key: effect.settings[key] for key in ("model", "task", "metric", "unit", "shift")},
                    }
                )
                print(wordings, skill, effect.settings["metric"], table.round(3).to_string(), sep="\n", flush=True)
    return rows


PARTS: dict[str, Callable[[], object]] = {
    "accuracy": measure_accuracy,
    "curves": measure_curves,
    "robustness": measure_robustness,
    "shifts": measure_shifts,
}


def main(parts: list[str]) -> None:
    """Measure these parts, and keep what was measured of the others."""
    measure(MEASURED, PARTS, parts, {"k": K, "n_random": N_RANDOM, "divisions": N_DIVISIONS})


if __name__ == "__main__":
    main(sys.argv[1:])
