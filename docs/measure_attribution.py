"""Measure how well each way of attributing predicts ablations: ``python -m docs.measure_attribution [PART ...]``.

Writes ``docs/attribution.json``; ``python docs/make_attribution.py`` makes tables and the figure of it. Parts:
``estimators`` (three seeds, both embedded models, 15 minutes on two cores), ``components`` (kinds of components,
replacements and fractions, one seed, 10 minutes), ``edits`` (10 minutes).
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

import lens_ablation as la
from lens_ablation.attribution.edits import Edited
from lens_ablation.attribution.strategy import Attributor
from lens_ablation.data.corpus import facts
from lens_ablation.data.task import Task
from lens_ablation.methods.method import Method
from lens_ablation.models.protocol import LensModel
from lens_ablation.sites import SiteSet

MEASURED = Path(__file__).parent / "attribution.json"
N_EXAMPLES = 24
SEEDS = (0, 1, 2)
FRACTIONS = (0.05, 0.1, 0.2, 0.3)
FRESH = 100


@dataclass(frozen=True, eq=False)
class Setup:
    """A model, and what is attributed in it."""

    name: str
    model: LensModel
    task: Task

    @property
    def fine(self) -> list[SiteSet]:
        """z coordinates and neurons."""
        return [la.attention_neurons(self.model), la.neurons(self.model)]

    @property
    def coarse(self) -> list[SiteSet]:
        """Heads and whole MLPs."""
        return [la.heads(self.model), la.mlps(self.model)]


def setups(seed: int) -> Iterator[Setup]:
    """Both models with examples of this seed."""
    vit = la.load_model("tiny-vit")
    yield Setup("tiny-vit, digits", vit, la.tasks.digits(vit, N_EXAMPLES, seed=seed))
    lm = la.load_model("tiny-lm")
    task = la.tasks.ioi(lm, N_EXAMPLES, seed=seed, metric=la.metrics.correct_margin)
    yield Setup("tiny-lm, indirect objects", lm, task)


def estimators(seed: int, n_components: int) -> Mapping[str, Attributor]:
    """Ways of attributing many components, by name."""
    ways: dict[str, Attributor] = {
        f"expected gradient, {n} masks": la.Coar(n_masks=n, seed=seed) for n in (8, 32, 128, 512)
    }
    ways |= {f"ridge, {n:,} masks": la.Coar(n_masks=n, seed=seed, estimator="ridge") for n in (128, 500, 1500, 5000)}
    if n_components < 1000:
        ways["lasso, 500 masks"] = la.Coar(n_masks=500, seed=seed, estimator="lasso")
    return ways | {
        "leave one out": la.LeaveOneOut(),
        "gradient": la.GradientTimesMask(),
        "conductance": la.Conductance(n_steps=32),
        "internal influence": la.InternalInfluence(n_steps=32),
        "random": la.RandomAttribution(seed=seed),
    }


def judged(
    setup: Setup,
    sites: list[SiteSet],
    ways: Mapping[str, Attributor],
    seed: int,
    fractions: tuple[float, ...] = FRACTIONS,
    method: Method | list[Method] | None = None,
) -> list[dict[str, object]]:
    """Correlation of each way at each fraction, on the same fresh masks."""
    found, seconds = {}, {}
    for name, way in ways.items():
        begun = time.perf_counter()
        found[name] = la.attribute(setup.model, setup.task, sites, way, method=method, progress=False)
        seconds[name] = time.perf_counter() - begun
    correlation = la.counterfactual_correlation(
        found, setup.model, setup.task, fractions, FRESH, method=method, seed=seed, progress=False
    )
    return [
        {
            "setup": setup.name,
            "seed": seed,
            "components": sum(len(part) for part in sites),
            "way": name,
            "passes": found[name].n_passes,
            "seconds": seconds[name],
            "correlation": {str(f): float(correlation.mean[w, i]) for i, f in enumerate(fractions)},
            "held_out": float(found[name].held_out_correlation.nanmean()),
        }
        for w, name in enumerate(ways)
    ]


def measure_estimators() -> list[dict[str, object]]:
    """Every estimator on many components, at three seeds."""
    rows: list[dict[str, object]] = []
    for seed in SEEDS:
        for setup in setups(seed):
            sites = setup.fine
            found = judged(setup, sites, estimators(seed, sum(len(part) for part in sites)), seed)
            print(setup.name, seed, *(f"{row['way']}: {row['correlation']}" for row in found), sep="\n  ", flush=True)
            rows += found
    return rows


def measure_components() -> list[dict[str, object]]:
    """The default and ridge at equal passes: kinds of components, fractions, and replacements."""
    rows: list[dict[str, object]] = []
    for setup in setups(0):
        stats = la.collect_statistics(setup.model, setup.task, [*setup.fine, *setup.coarse], progress=False)
        cases: list[tuple[str, list[SiteSet], Method, tuple[float, ...]]] = [
            ("z coordinates + neurons, zero", setup.fine, la.Zero(), (0.05, 0.1, 0.3, 0.5)),
            ("z coordinates + neurons, mean", setup.fine, la.Mean(stats), (0.1, 0.3)),
            ("z coordinates + neurons, peak", setup.fine, la.Peak(stats), (0.1, 0.3)),
            ("heads + MLPs, zero", setup.coarse, la.Zero(), (0.1, 0.3)),
            ("heads + MLPs, mean", setup.coarse, la.Mean(stats), (0.1, 0.3)),
        ]
        for label, sites, method, fractions in cases:
            for fraction in fractions:
                ways: dict[str, Attributor] = {
                    "default": la.Coar(n_masks=64, ablated_fraction=fraction),
                    "slopes of 64 masks": la.Coar(n_masks=64, ablated_fraction=fraction, gradient_masks=64),
                    "ridge at equal passes": la.Coar(n_masks=192, ablated_fraction=fraction, estimator="ridge"),
                    "ridge, 3,000 masks": la.Coar(n_masks=3000, ablated_fraction=fraction, estimator="ridge"),
                    "gradient": la.GradientTimesMask(),
                }
                found = judged(setup, sites, ways, 0, (fraction,), [method] * len(sites))
                rows += [{**row, "case": label, "fraction": fraction} for row in found]
                print(setup.name, label, fraction, {r["way"]: r["correlation"] for r in found}, flush=True)
    return rows


def measure_edits() -> list[dict[str, object]]:
    """The paper's edits on the embedded models, before and after, on held-out examples."""
    rows: list[dict[str, object]] = []

    def keep(task: str, edited: Edited, seconds: float) -> None:
        groups = {
            name: {"n": e.n_examples, "before": e.share_before, "after": e.share_after}
            for name, e in edited.held_out.items()
        }
        found = edited.edit
        row = {"task": task, "k": found.k, "of": len(found.components), "seconds": seconds, "groups": groups}
        rows.append({**row, "method": found.methods[0].name})
        print(row, flush=True)

    def timed(task: str, run: Callable[[], Edited | list[Edited]]) -> None:
        begun = time.perf_counter()
        found = run()
        for one in found if isinstance(found, list) else [found]:
            keep(task, one, time.perf_counter() - begun)

    vit, lm = la.load_model("tiny-vit"), la.load_model("tiny-lm")
    timed("fix one error", lambda: la.edits.fix_errors(vit, progress=False))
    for digit in range(10):
        timed(f"forget the digit {digit}", lambda digit=digit: la.edits.forget_class(vit, digit, progress=False))
    for relation in facts.RELATIONS:
        timed(f"forget {relation}", lambda name=relation: la.edits.forget_relation(lm, name, progress=False))
    for task, edit, name in (
        ("raise the worst group", la.edits.raise_worst_group, "tiny-vit-spurious"),
        ("remove the backdoor", la.edits.remove_backdoor, "tiny-vit-backdoor"),
        ("withstand printed labels", la.edits.withstand_labels, "tiny-vit-typographic"),
    ):
        timed(task, lambda edit=edit, name=name: edit(la.load_model(name), progress=False))
    return rows


PARTS = {"estimators": measure_estimators, "components": measure_components, "edits": measure_edits}


def main(parts: list[str]) -> None:
    """Measure these parts, and keep what was measured of the others."""
    measured = json.loads(MEASURED.read_text()) if MEASURED.is_file() else {}
    for part in parts or list(PARTS):
        measured[part] = PARTS[part]()
        measured["settings"] = {
            "examples": N_EXAMPLES,
            "seeds": SEEDS,
            "fresh_masks": FRESH,
            "torch": torch.__version__,
        }
        MEASURED.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
