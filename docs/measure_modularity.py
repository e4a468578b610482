"""Measure modularity on the embedded models: ``python -m docs.measure_modularity [PART ...]``.

Writes ``docs/modularity.json``; ``python docs/make_modularity.py`` makes tables and figures of it. Parts: ``domains``
and ``digits`` (forgetting by every score), ``cross`` (cross-pruning, trained and fresh weights), ``experts``
(enrichment, routing), ``size`` (seconds and memory of splitting a wide layer; needs the extra ``experts``). All take
some ten minutes on one core.
"""

import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

import lens_ablation as la
from docs.measured import measure
from lens_ablation.data.task import joined
from lens_ablation.models.protocol import LensModel
from lens_ablation.modularity.balanced import CONSTRAINED, LLOYD, constrained_clusters, descend, first_centres
from lens_ablation.modularity.importance import ImportanceKind
from lens_ablation.studies.correlations import pearson

MEASURED = Path(__file__).parent / "modularity.json"
DOMAINS = ("prose", "code", "arithmetic")
SKILLS = ("ioi", "greater_than", "facts", "pronouns", "agreement")
DIGITS = tuple(range(10))
KINDS: tuple[ImportanceKind, ...] = (
    "abs", "freq", "rms", "std", "sqrt", "std_taker", "rms_taker", "mean_difference", "random",
)  # fmt: skip
STEPS = {"tiny-lm": (0.05, 5), "tiny-vit": (0.05, 9)}
N_SCORED, N_TESTED, N_RANDOM = 24, 24, 3
N_PROMPTS = 100
FRACTION, N_SEEDS, N_EXPERTS = 0.1, 5, {"tiny-lm": 16, "tiny-vit": 8}
FORGOTTEN_DIGITS = (0, 3, 6)
WIDE, N_PLANTED = (14336, 4096, 128), 60

Row = dict[str, Any]


def tasks(name: str, model: LensModel, end: str) -> dict[str, la.Task]:
    """Domains of tiny-lm or digits of tiny-vit by name: training examples to score on, held-out ones to test on."""
    split = "train" if end == "score" else "held_out"
    if name == "tiny-lm":
        n = N_SCORED if end == "score" else N_TESTED
        made = {domain: la.tasks.domain(model, n=n, name=domain, split=split, seed=5) for domain in DOMAINS}
        return {domain: unlike(task) for domain, task in made.items()}
    every = la.tasks.digits(model, n=1200 if end == "score" else 450, split=split)
    return {str(digit): every.select((every.answers == digit).nonzero()[:, 0]) for digit in DIGITS}


def skills(model: LensModel, end: str) -> dict[str, la.Task]:
    """Skills of tiny-lm by name: training prompts to score on, held-out ones to test on."""
    split = "train" if end == "score" else "held_out"
    return {skill: unlike(la.tasks.get(skill)(model, N_PROMPTS, split=split)) for skill in SKILLS}


def unlike(task: la.Task) -> la.Task:
    """The task without examples that it has twice."""
    seen: dict[tuple[int, ...], int] = {}
    for i, row in enumerate(task.inputs.tolist()):
        seen.setdefault(tuple(row), i)
    return task.select(torch.tensor(list(seen.values())))


def forgetting(name: str, model: LensModel, target: str) -> dict[str, la.Task]:
    """The four tasks of selective pruning."""
    found: dict[str, la.Task] = {}
    for end, words in (("score", ""), ("test", "_test")):
        parts = tasks(name, model, end)
        found[f"forget{words}"] = parts[target]
        found[f"retain{words}"] = joined([part for other, part in parts.items() if other != target])
    return found


def measure_scores(name: str, targets: Sequence[str]) -> list[Row]:
    """Forgetting each of these by every score; and with other values in the place of the neurons."""
    rows: list[Row] = []
    model = la.load_model(name)
    fraction, steps = STEPS[name]
    for target in targets:
        data = forgetting(name, model, target)
        stats = la.collect_statistics(model, data["retain"], la.neurons(model), progress=False)
        plans: list[tuple[str, str, la.Method, Mapping[str, Any]]] = [
            (kind, "MLP", la.Zero(), {"kind": kind}) for kind in KINDS
        ]
        plans += [
            ("abs, scored anew each step", "MLP", la.Zero(), {"rescore": True}),
            ("abs, mean of the retained", "MLP", la.Mean(stats), {}),
            ("abs, peak of the retained", "MLP", la.Peak(stats), {}),
            ("abs", "attention", la.Zero(), {"sites": la.attention_neurons(model)}),
            ("std", "attention", la.Zero(), {"sites": la.attention_neurons(model), "kind": "std"}),
        ]
        for label, sites, method, options in plans:
            found = la.prune_selectively(
                model,
                **data,
                **{"rescore": False, **options},
                method=method,
                fraction_per_step=fraction,
                steps=steps,
                n_random=N_RANDOM if label == "abs" else 0,
                progress=False,
            )
            rows.append({"model": name, "target": target, "score": label, "sites": sites} | described(found))
            print(name, target, label, sites, found, found.area.round(decimals=2).tolist(), flush=True)
    return rows


def described(found: la.SelectivePruning) -> Row:
    """What the tables and curves need of a result."""
    best = list(found.best_steps)
    return {
        "curves": list(found.curves),
        "n_removed": list(found.n_removed),
        "n_sites": found.n_sites,
        "retain": [[round(v, 4) for v in line] for line in found.retain_mean.tolist()],
        "forget": [[round(v, 4) for v in line] for line in found.forget_mean.tolist()],
        "best": best,
        "area": [round(v, 3) for v in found.area.tolist()],
        "dominated": round(max(found.dominated), 4),
        "by_layer": found.by_layer[best[0]].tolist(),
        "examples": [found.forget.shape[2], found.retain.shape[2]],
    }


def measure_cross() -> list[Row]:
    """Cross-pruning of the trained models, and overlap with fresh weights of several seeds."""
    rows: list[Row] = []
    asked = (
        ("tiny-lm", "domains", partial(tasks, "tiny-lm")),
        ("tiny-lm", "skills", skills),
        ("tiny-vit", "digits", partial(tasks, "tiny-vit")),
    )
    for name, what, make in asked:
        model = la.load_model(name)
        scored, tested = (make(model, end) for end in ("score", "test"))
        for kind in ("abs", "std"):
            found = la.cross_pruning(model, scored, tested, fraction=FRACTION, kind=kind, progress=False)
            rank, p = found.correlation() if len(scored) > 3 else (None, None)
            row: Row = {
                "model": name,
                "tasks": what,
                "kind": kind,
                "names": list(found.names),
                "baseline": found.baseline_mean.round(4).tolist(),
                "change": found.change.round(4).tolist(),
                "rank": rank,
                "p": p,
                "overlap": found.overlap.overlap.round(4).tolist(),
                "trained": overlap_row(found.overlap),
                "fresh": [],
            }
            for seed in range(N_SEEDS):
                drawn = la.random_weights(model, seed)
                sets = la.selective_neurons(drawn, scored, fraction=FRACTION, kind=kind, progress=False)
                control = la.overlap(sets)
                apart = ~np.eye(len(sets), dtype=bool)
                alike = float(pearson(*(torch.from_numpy(of.overlap[apart]) for of in (control, found.overlap))))
                row["fresh"].append(overlap_row(control) | {"alike": None if np.isnan(alike) else round(alike, 3)})
            rows.append(row)
            print(name, what, kind, rank, p, row["trained"], row["fresh"], flush=True)
    return rows


def overlap_row(found: la.Overlap) -> Row:
    """Means over pairs of different tasks, and their range."""
    apart = ~np.eye(len(found.names), dtype=bool)
    values = found.overlap[apart]
    return {
        "overlap": round(float(values.mean()), 4),
        "low": round(float(values.min()), 4),
        "high": round(float(values.max()), 4),
        "chance": round(float(found.chance[apart].mean()), 4),
        "chance_in_layers": round(float(found.chance_in_layers[apart].mean()), 4),
    }


def measure_experts() -> list[Row]:
    """Enrichment of task neurons in experts, and accuracy with few of them; trained and fresh weights."""
    rows: list[Row] = []
    for name in STEPS:
        trained = la.load_model(name)
        tested = joined(list(tasks(name, trained, "test").values())).with_metric(la.metrics.top1)
        for weights, model in (("trained", trained), ("fresh", la.random_weights(trained, 0))):
            scored = tasks(name, model, "score")
            sets = la.selective_neurons(model, scored, fraction=FRACTION, progress=False)
            every = joined(list(scored.values()))
            splits = {
                "weights": la.ParameterClustering(n_init=3),
                "co-activation": la.CoActivation(every, n_init=3),
                "random": la.RandomSplit(),
            }
            for label, split in splits.items():
                begun = time.perf_counter()
                experts = la.split_into_experts(model, None, N_EXPERTS[name], split, progress=False)
                seconds = time.perf_counter() - begun
                found = la.enrichment(sets, experts, n_permutations=1000)
                again = None
                if label == "weights":
                    other = la.ParameterClustering(n_init=3, seed=100)
                    second = la.split_into_experts(model, None, N_EXPERTS[name], other, progress=False)
                    again = experts.adjusted_rand(second).round(3).tolist()
                row: Row = {
                    "model": name,
                    "weights": weights,
                    "split": label,
                    "computed_by": experts.settings["computed_by"],
                    "seconds": round(seconds / len(experts.layers), 2),
                    "names": list(found.names),
                    "z": found.z.round(2).tolist(),
                    "z_overall": found.z_overall.round(2).tolist(),
                    "seed_to_seed": again,
                    "kept": [],
                }
                if weights == "trained":
                    kept = tuple(n for n in (1, 2, 4, 8, 12) if n < N_EXPERTS[name])
                    routed = la.routed_quality(model, tested, experts, kept, progress=False)
                    row["kept"] = [
                        [n, round(float(v), 4)] for n, v in zip(kept, routed.share_of_baseline[0], strict=True)
                    ]
                rows.append(row)
                print(name, weights, label, row["z_overall"], again, row["kept"], row["seconds"], flush=True)
    return rows


def split_wide(by: str, kind: str) -> Row:
    """Seconds, iterations and peak memory of one restart on rows of a wide layer, in a process of its own.

    Memory is that above the libraries', and includes the rows. ``random``: directions by chance. ``clusters``: 60
    clusters of sizes that differ 1,000-fold, so that most rows must go elsewhere than they would.
    """
    torch.set_num_threads(1)
    libraries = psutil.Process().memory_info().rss
    n, d, n_experts = WIDE
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(n, d, generator=generator)
    if kind == "clusters":
        weights = torch.logspace(-3, 0, N_PLANTED)
        own = torch.multinomial(weights, n, replacement=True, generator=generator)
        rows += torch.randn(N_PLANTED, d, generator=generator)[own]
    rows /= rows.norm(dim=1, keepdim=True)
    begun = time.perf_counter()
    if by == CONSTRAINED:
        found = constrained_clusters(rows.numpy(), n_experts, seed=0, n_init=1, max_iter=300)
    else:
        found = descend(rows, first_centres(rows, n_experts, np.random.default_rng(0)), 300)
    return {
        "by": by,
        "rows": kind,
        "shape": [n, d],
        "experts": n_experts,
        "sizes": np.unique(np.bincount(found.labels, minlength=n_experts)).tolist(),
        "seconds": round(time.perf_counter() - begun, 1),
        "iterations": found.n_iter,
        "inertia": round(found.inertia, 2),
        "peak_gib": round((1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - libraries) / 2**30, 2),
    }


def measure_size() -> list[Row]:
    """Splitting a layer as wide as Mistral-7B's."""
    rows: list[Row] = []
    # the extra takes minutes on clusters
    for by, kind in ((LLOYD, "random"), (LLOYD, "clusters"), (CONSTRAINED, "random")):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            rows.append(pool.submit(split_wide, by, kind).result())
        print(rows[-1], flush=True)
    return rows


PARTS: dict[str, Callable[[], object]] = {
    "domains": partial(measure_scores, "tiny-lm", DOMAINS),
    "digits": partial(measure_scores, "tiny-vit", tuple(map(str, FORGOTTEN_DIGITS))),
    "cross": measure_cross,
    "experts": measure_experts,
    "size": measure_size,
}


def main(parts: list[str]) -> None:
    """Measure these parts, and keep what was measured of the others."""
    settings = {"fraction": FRACTION, "seeds": N_SEEDS, "experts": N_EXPERTS, "steps": STEPS, "n_random": N_RANDOM}
    measure(MEASURED, PARTS, parts, settings)


if __name__ == "__main__":
    main(sys.argv[1:])
