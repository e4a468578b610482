"""Measure optimal ablation on the embedded models: ``python -m docs.measure_optimal [PART ...]``.

Writes ``docs/optimal.json``; ``python docs/make_optimal.py`` makes tables and figures of it. Parts: ``compare`` (every
method on heads and MLPs), ``trace`` (where facts come back), ``lenses``. All take some twenty minutes on two cores.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import lens_ablation as la
from docs.measured import measure
from lens_ablation.data.task import Task
from lens_ablation.methods.method import Method
from lens_ablation.models.protocol import LensModel
from lens_ablation.optimal.corruption import Corruption
from lens_ablation.sites import SiteSet

MEASURED = Path(__file__).parent / "optimal.json"
N_FITTED, N_JUDGED = 384, 200
N_FACTS = 200
VECTOR_STEPS = 80
ONE_LENGTH = 17
GROUPS = ("last", "last_subject", "subject")
OPTIMAL = ("Optimal (per position)", "Optimal")
SHOWN = ("model", "task", "metric", "unit", "positions", "weight_processing")
"""Settings that the figure names."""

Row = dict[str, object]


@dataclass(frozen=True, eq=False)
class Case:
    """A model with examples to fit on, and others to judge on by name."""

    name: str
    model: LensModel
    fitted: Task
    judged: dict[str, Task]
    constants: tuple[str, ...] = OPTIMAL

    @property
    def sites(self) -> list[SiteSet]:
        """Heads and whole MLPs."""
        return [la.heads(self.model), la.mlps(self.model)]


def cases() -> Iterator[Case]:
    """Indirect objects, years, digits."""
    lm = la.load_model("tiny-lm")
    for make in (la.tasks.ioi, la.tasks.greater_than):
        seen = make(lm, N_FITTED + N_JUDGED, split="train")
        fitted, same = seen.select(torch.arange(N_FITTED)), seen.select(torch.arange(N_FITTED, seen.n_examples))
        other = no_longer_than(fitted, make(lm, 2 * N_JUDGED), N_JUDGED)
        yield Case(f"tiny-lm, {seen.name}", lm, fitted, {"same templates": same, "other templates": other})
    # of one length, so that nothing a donor brings depends on the prompt
    seen = la.tasks.ioi(lm, 3000, split="train")
    assert seen.attention_mask is not None
    seen = seen.select((seen.attention_mask.sum(dim=1) == ONE_LENGTH).nonzero()[: N_FITTED + N_JUDGED, 0])
    parts = [seen.select(rows) for rows in torch.arange(seen.n_examples).split([N_FITTED, N_JUDGED])]
    yield Case(f"tiny-lm, ioi of {ONE_LENGTH} tokens", lm, parts[0], {"same templates": parts[1]}, OPTIMAL[:1])
    vit = la.load_model("tiny-vit")
    fitted = la.tasks.digits(vit, N_FITTED, split="train")
    yield Case("tiny-vit, digits", vit, fitted, {"other images": la.tasks.digits(vit, N_JUDGED)})


def no_longer_than(fitted: Task, task: Task, n: int) -> Task:
    """The first examples whose texts are no longer than those that were fitted on."""
    assert task.attention_mask is not None
    longest = fitted.inputs.shape[1]
    return task.select((task.attention_mask.sum(dim=1) <= longest).nonzero()[:n, 0])


def methods_of(case: Case, optimal: dict[str, la.OptimalConstants], judged: Task) -> dict[str, Method]:
    """Every type that the examples allow, with the names that ``compare_methods`` gives."""
    first_left_alone = "all" if judged.inputs.ndim == 4 else "all_but_first"

    def mean(task: Task, *, per_position: bool) -> la.Mean:
        found = la.collect_statistics(
            case.model,
            task,
            case.sites,
            positions="all" if per_position else first_left_alone,
            per_position=per_position,
            histograms=False,
            allow_small=True,
            progress=False,
        )
        return la.Mean(found, per_position=per_position)

    methods: dict[str, Method] = {
        "Zero": la.Zero(),
        "Mean (per position)": mean(case.fitted, per_position=True),
        "Mean": mean(case.fitted, per_position=False),
    }
    if case.fitted.counterfactuals is not None:
        changed = case.fitted.counterfactuals
        of_changed = Task(inputs=changed, answers=case.fitted.answers, attention_mask=case.fitted.attention_mask)
        methods["Counterfactual mean (per position)"] = mean(of_changed, per_position=True)
    methods["Resample (per position)"] = la.Resample(judged, match="batch")
    methods["Resample (shuffled positions)"] = la.Resample(judged, match="batch", shuffled=True)
    methods |= {name: la.Optimal(constants) for name, constants in optimal.items()}
    if judged.counterfactuals is not None:
        methods["Counterfactual"] = la.Counterfactual(judged)
    return methods


def measure_compare() -> list[Row]:
    """Gaps of every method, constants fitted on training prompts and judged on others."""
    rows: list[Row] = []
    for case in cases():
        begun = time.perf_counter()
        optimal = {
            name: la.fit_optimal(
                case.model,
                case.fitted,
                case.sites,
                per_position="per position" in name,
                progress=False,
            )
            for name in case.constants
        }
        seconds = time.perf_counter() - begun
        for judged, task in case.judged.items():
            methods = methods_of(case, optimal, task)
            found = la.compare_methods(case.model, task, case.sites, methods, progress=False)
            rows.append(
                {
                    "setup": case.name,
                    "judged": judged,
                    "fitted": N_FITTED,
                    "examples": task.n_examples,
                    "seconds": seconds,
                    "out_of_steps": {name: found.outcome.count("out of steps") for name, found in optimal.items()},
                    "sites": list(found.sites),
                    "methods": list(found.methods),
                    "by_position": list(found.by_position),
                    "gap": rounded(found.gap),
                    "error": rounded(found.error),
                    "settings": {key: found.settings[key] for key in SHOWN},
                    "ratios": {name: found.ratios(name).to_dict("records") for name in case.constants},
                    "correlations": found.correlations("Counterfactual").to_dict("records")
                    if "Counterfactual" in found.methods
                    else [],
                    "above": above(found),
                }
            )
            print(case.name, judged, f"{seconds:.0f} s", rows[-1]["above"], sep="\n  ", flush=True)
            print(found.ratios(OPTIMAL[0]).round(3), rows[-1]["correlations"], sep="\n", flush=True)
    return rows


def above(found: la.MethodComparison) -> dict[str, dict[str, list[str]]]:
    """Sites where an optimal constant does more harm than a method, by over two standard errors of the difference."""
    failing: dict[str, dict[str, list[str]]] = {}
    for optimal in (name for name in OPTIMAL if name in found.methods):
        failing[optimal] = {}
        for name in found.methods:
            if name == optimal:
                continue
            difference = (found.of(optimal) - found.of(name)).double()
            error = difference.std(dim=1) / difference.shape[1] ** 0.5
            worse = difference.mean(dim=1) > 2 * error
            failing[optimal][name] = [site for site, flag in zip(found.sites, worse.tolist(), strict=True) if flag]
    return failing


def measure_trace() -> Row:
    """Where clean activations bring facts back, by both corruptions, and what ablations say of the same prompts."""
    model = la.load_model("tiny-lm")
    rows: list[Row] = []
    peaks: dict[str, Row] = {}
    for split in ("train", "held_out"):
        task = la.tasks.facts(model, N_FACTS, split=split)
        layers = (
            [("attention", 1), ("attention", 3), ("mlp", 1), ("mlp", 3)]
            if split == "train"
            else [("attention", 1), ("mlp", 1)]
        )
        noise, vector = la.GaussianNoise(), la.OptimalVector(steps=VECTOR_STEPS)
        ways: list[tuple[Corruption, str, int, tuple[str, ...]]] = [
            (corruption, restore, window, GROUPS) for corruption in (noise, vector) for restore, window in layers
        ]
        if split == "train":
            # a vector would have to be learned for each head
            ways.append((noise, "head", 1, GROUPS[:1]))
        for corruption, restore, window, groups in ways:
            begun = time.perf_counter()
            found = la.trace(model, task, corruption, restore, window=window, positions=groups, progress=False)
            low, high = found.interval()
            rows.append(
                {
                    "split": split,
                    "corruption": corruption.name,
                    "restore": restore,
                    "window": window,
                    "prompts": len(found.clean),
                    "seconds": time.perf_counter() - begun,
                    "clean": float(found.clean.mean()),
                    "lost": found.lost,
                    "groups": list(found.groups),
                    "sites": [str(site) for site in found.sites],
                    "effect": rounded(found.effect),
                    "low": rounded(low),
                    "high": rounded(high),
                    "peak": {group: found.peak(group) for group in found.groups},
                    "values": {name: rounded(getattr(found, name)) for name in ("restored", "corrupted", "clean")},
                    "settings": plain(found.settings),
                }
            )
            print(split, corruption.name, restore, window, rows[-1]["peak"], rows[-1]["lost"], flush=True)
        peaks[split] = ablations(model, task)
        print(split, peaks[split], flush=True)
    return {"rows": rows, "ablations": peaks}


def ablations(model: LensModel, task: Task) -> Row:
    """What mean ablation of each layer alone, and COAR, say of the prompts that the model answers rightly."""
    right = task.with_metric(la.metrics.top1)
    with torch.inference_mode():
        scores = right.score(model(task.inputs, attention_mask=task.attention_mask))
    task = task.select((scores > 0.5).nonzero()[:, 0])
    sets = [la.attentions(model), la.mlps(model)]
    stats = la.collect_statistics(
        model, la.tasks.facts(model, 800, seed=1, split="train"), sets, histograms=False, progress=False
    )
    coar = la.Coar(n_masks=128, ablated_fraction=0.25)
    attributed = la.attribute(model, task, sets, coar, method=[la.Mean(stats)] * 2, progress=False)
    found: Row = {"prompts": task.n_examples}
    for place, sites in enumerate(sets):
        swept = la.sweep(model, task, sites, la.Mean(stats), metric=la.metrics.logit_difference, progress=False)
        low, high = swept.interval()
        own = slice(len(sets[0]) * place, len(sets[0]) * (place + 1))
        weights = attributed.mean[own]
        found["attention" if place == 0 else "mlp"] = {
            "sites": [str(site) for site in sites],
            "sweep": rounded(swept.mean),
            "sweep low": rounded(low),
            "sweep high": rounded(high),
            "coar": rounded(weights),
            "coar held out": float(attributed.held_out_correlation.nanmean()),
        }
    return found


def measure_lenses() -> list[Row]:
    """KL of every lens by layer, before and after fitting."""
    rows: list[Row] = []
    lm, vit = la.load_model("tiny-lm"), la.load_model("tiny-vit")
    kinds = (la.LogitLens(), la.MeanAttention(), la.TunedLens(), la.OptimalConstantAttention())
    tasks = {
        "tiny-lm, prose": (lm, la.tasks.domain(lm, n=300, name="prose")),
        "tiny-vit, digits": (vit, la.tasks.digits(vit, n=400, split="train")),
    }
    for setup, (model, task) in tasks.items():
        for kind in kinds:
            begun = time.perf_counter()
            found = la.fit_lens(model, task, kind, progress=False)
            rows.append(
                {
                    "setup": setup,
                    "lens": kind.name,
                    "class": type(kind).__name__,
                    "settings": dict(kind.settings),
                    "examples": task.n_examples,
                    "held_out": found.divergence.shape[1],
                    "seconds": time.perf_counter() - begun,
                    "parameters": sum(value.numel() for value in found.parameters.values()),
                    "kl": rounded(found.kl),
                    "error": rounded(found.error),
                    "before": rounded(found.start.mean(dim=1)),
                }
            )
            print(setup, kind.name, f"{rows[-1]['seconds']:.0f} s", rows[-1]["before"], rows[-1]["kl"], flush=True)
    return rows


def rounded(values: Tensor) -> list:
    """Numbers to five digits, to keep the file small."""
    nested = values.double().tolist()

    def of(value: list | float) -> list | float:
        return [of(one) for one in value] if isinstance(value, list) else float(f"{value:.5g}")

    return [of(one) for one in nested]


def plain(settings: object) -> object:
    """Settings as they come back from JSON."""
    return json.loads(json.dumps(settings, default=str))


PARTS = {"compare": measure_compare, "trace": measure_trace, "lenses": measure_lenses}


def main(parts: list[str]) -> None:
    """Measure these parts, and keep what was measured of the others."""
    measure(MEASURED, PARTS, parts, {"facts": N_FACTS})


if __name__ == "__main__":
    main(sys.argv[1:])
