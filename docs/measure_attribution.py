"""Measure how well each way of attributing predicts ablations: ``python -m docs.measure_attribution [PART ...]``.

Writes ``docs/attribution.json``; ``python docs/make_attribution.py`` makes tables and the figure of it. Parts:
``estimators`` (three seeds, both embedded models), ``components`` (kinds of components, replacements and fractions, one
seed), ``variants`` (ways of averaging slopes that were tried, one seed), ``edits``. All take an hour and a quarter on
one core, the first three 45 minutes of it. ``edits=digit`` measures only the rows of a part whose label has that word,
and keeps the others.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import lens_ablation as la
from docs.measured import measure
from lens_ablation.attribution.editing import Effect
from lens_ablation.attribution.edits import Edited
from lens_ablation.attribution.outputs import Setting, mask_outputs
from lens_ablation.attribution.strategy import Attributor
from lens_ablation.components import Components, draw_removals
from lens_ablation.data.corpus import facts
from lens_ablation.data.task import Task
from lens_ablation.engine.gates import gate_gradients
from lens_ablation.engine.part import Part
from lens_ablation.engine.proof import path_of
from lens_ablation.methods.method import Method
from lens_ablation.models.protocol import LensModel
from lens_ablation.sites import SiteSet
from lens_ablation.studies.correlations import pearson

MEASURED = Path(__file__).parent / "attribution.json"
N_EXAMPLES = 24
SEEDS = (0, 1, 2)
FRACTIONS = (0.05, 0.1, 0.2, 0.3)
FRESH = 100


@dataclass(frozen=True, eq=False)
class Setup:
    """A model, what is attributed in it, and examples that optimal constants are fitted to."""

    name: str
    model: LensModel
    task: Task
    to_fit: Task

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
    images = la.tasks.digits(vit, 400, seed=seed, split="train")
    yield Setup("tiny-vit, digits", vit, la.tasks.digits(vit, N_EXAMPLES, seed=seed), images)
    lm = la.load_model("tiny-lm")
    task = la.tasks.ioi(lm, N_EXAMPLES, seed=seed, metric=la.metrics.correct_margin)
    yield Setup("tiny-lm, indirect objects", lm, task, la.tasks.ioi(lm, 400, seed=seed, split="train"))


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


def measure_estimators(word: str = "") -> list[dict[str, object]]:
    """Every estimator on many components, at three seeds."""
    rows: list[dict[str, object]] = []
    for seed in SEEDS:
        for setup in setups(seed):
            sites = setup.fine
            found = judged(setup, sites, estimators(seed, sum(len(part) for part in sites)), seed)
            print(setup.name, seed, *(f"{row['way']}: {row['correlation']}" for row in found), sep="\n  ", flush=True)
            rows += found
    return rows


def measure_components(word: str = "") -> list[dict[str, object]]:
    """The default and ridge at equal passes: kinds of components, fractions, and replacements."""
    rows: list[dict[str, object]] = []
    for setup in setups(0):
        stats = la.collect_statistics(setup.model, setup.task, [*setup.fine, *setup.coarse], progress=False)
        fitted = {
            label: la.fit_optimal(
                setup.model, setup.to_fit, sites, joint=0.1, positions="all", steps=150, batch_size=8, progress=False
            )
            for label, sites in (("fine", setup.fine), ("coarse", setup.coarse))
        }
        cases: list[tuple[str, list[SiteSet], Method, tuple[float, ...]]] = [
            ("z coordinates + neurons, zero", setup.fine, la.Zero(), (0.05, 0.1, 0.3, 0.5)),
            ("z coordinates + neurons, mean", setup.fine, la.Mean(stats), (0.1, 0.3)),
            ("z coordinates + neurons, peak", setup.fine, la.Peak(stats), (0.1, 0.3)),
            ("z coordinates + neurons, optimal", setup.fine, la.Optimal(fitted["fine"]), (0.1, 0.3)),
            ("heads + MLPs, zero", setup.coarse, la.Zero(), (0.1, 0.3)),
            ("heads + MLPs, mean", setup.coarse, la.Mean(stats), (0.1, 0.3)),
            ("heads + MLPs, optimal", setup.coarse, la.Optimal(fitted["coarse"]), (0.1, 0.3)),
        ]
        for label, sites, method, fractions in (case for case in cases if word in case[0]):
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


Shares = Float[np.ndarray, "mask component"]


def slopes_at(setup: Setup, sites: list[SiteSet], shares: Shares) -> tuple[Tensor, Tensor]:
    """Outputs ``[mask, example]`` and slopes ``[mask, example, component]`` with a share of each component removed."""
    components = Components(tuple(sites))
    sets: list[tuple[SiteSet, Method]] = [(part, la.Zero()) for part in sites]
    examples = torch.arange(setup.task.n_examples)
    path = path_of(setup.model)
    part = Part(setup.model, setup.task, sets, "all", examples, path, clean_bytes=2**30, gradients=True)
    found = [gate_gradients(part, components.split(few)) for few in np.array_split(shares, len(shares) // 2)]
    return torch.cat([one.values for one in found]), torch.cat([torch.cat(one.slopes, dim=2) for one in found])


def at_both_ends(slopes: Tensor, removed: Tensor) -> Tensor:
    """Mean slope where a component is kept and where it is removed, averaged; as kept where it is never removed."""
    gone = removed[:, None].float()
    kept = (slopes * (1 - gone)).sum(dim=0) / (1 - gone).sum(dim=0).clamp(min=1)
    ablated = (slopes * gone).sum(dim=0) / gone.sum(dim=0).clamp(min=1)
    return torch.where(gone.sum(dim=0) > 0, (kept + ablated) / 2, kept)


def scaled_by_layer(weights: Tensor, removed: Tensor, values: Tensor, layers: np.ndarray) -> Tensor:
    """Weights times a least-squares factor for each example and layer."""
    scaled = weights.clone()
    by_layer = [torch.from_numpy(layers == layer) for layer in np.unique(layers)]
    for e, own in enumerate(weights):
        columns = torch.stack([-(removed[:, here].float() @ own[here]) for here in by_layer], dim=1)
        centred, y = columns - columns.mean(dim=0), (values[:, e] - values[:, e].mean())[:, None]
        ridge = 1e-3 * (centred**2).sum() * torch.eye(len(by_layer))
        factors = torch.linalg.solve(centred.T @ centred + ridge, centred.T @ y + ridge.sum(dim=1, keepdim=True))
        for here, factor in zip(by_layer, factors[:, 0], strict=True):
            scaled[e, here] *= factor
    return scaled


def tried_ways(setup: Setup, sites: list[SiteSet], n: int, seed: int) -> dict[str, Tensor]:
    """Weights by each way of averaging slopes, from ``n`` masks with a tenth of the components removed."""
    components = Components(tuple(sites))
    drawn = np.random.default_rng([seed, n]).random((n, len(components)))
    masks = drawn < 0.1
    values, slopes = slopes_at(setup, sites, masks.astype(np.float32))
    removed = torch.from_numpy(masks)
    both = at_both_ends(slopes, removed)
    half = drawn[: n // 2]
    paired = np.concatenate([half, 1 - half]) < 0.1
    _, antithetic = slopes_at(setup, sites, paired.astype(np.float32))
    inside = masks * np.random.default_rng([seed, n, 1]).random(masks.shape)
    _, interior = slopes_at(setup, sites, inside.astype(np.float32))
    way = la.Coar(n_masks=n, gradient_masks=n, seed=seed)
    built = la.attribute(setup.model, setup.task, sites, way, progress=False)
    return {
        "as built: both ends, one scale, ridge on the rest": built.weights,
        "both ends alone": both,
        "where components are kept alone": (slopes * ~removed[:, None]).sum(dim=0) / (~removed).sum(dim=0).clamp(min=1),
        "antithetic masks, both ends": at_both_ends(antithetic, torch.from_numpy(paired)),
        "removed by a random share, both ends": at_both_ends(interior, removed),
        "both ends, a scale for each layer": scaled_by_layer(both, removed, values, components.layers),
    }


def measure_variants(word: str = "") -> list[dict[str, object]]:
    """Ways of averaging slopes that were tried, on fresh masks."""
    rows: list[dict[str, object]] = []
    seed = 0
    for setup in setups(seed):
        for kind, sites in (("z coordinates + neurons", setup.fine), ("heads + MLPs", setup.coarse)):
            setting = Setting(
                model=setup.model,
                task=setup.task,
                components=Components(tuple(sites)),
                methods=(la.Zero(),) * len(sites),
            )
            n_components = len(setting.components)
            fresh = {f: draw_removals(FRESH, n_components, f, "bernoulli", 2**31 + seed) for f in (0.1, 0.3)}
            outputs = {f: mask_outputs(setting, removed, 0, lambda n: None).values for f, removed in fresh.items()}
            for n in (8, 32, 128):
                for name, weights in tried_ways(setup, sites, n, seed).items():
                    for f, removed in fresh.items():
                        expected = -torch.from_numpy(removed).float() @ weights.float().T
                        r = float(pearson(expected, outputs[f], dim=0).nanmean())
                        row = {"setup": setup.name, "kind": kind, "seed": seed, "fraction": f}
                        rows.append({**row, "masks": n, "way": name, "correlation": r})
                print(setup.name, kind, n, rows[-1], flush=True)
    return rows


def shares(effects: Mapping[str, Effect]) -> dict[str, dict[str, float]]:
    """Right answers before and after, by group."""
    return {name: {"n": e.n_examples, "before": e.share_before, "after": e.share_after} for name, e in effects.items()}


def lost_margins(model: LensModel, edited: Edited) -> list[float]:
    """Of each held-out example that forgetting should spare and does not: the share of its group with less margin.

    Margins are those of the untouched model: logit of the answer less the largest other one.
    """
    found: list[float] = []
    for name, task in edited.tasks.items():
        if name in ("class", "relation"):
            continue
        with torch.inference_mode():
            before = la.metrics.correct_margin(model(task.inputs), task)
            with ExitStack() as stack:
                for sites, method in edited.edit.ablations:
                    stack.enter_context(la.ablate(model, sites, method, task=task))
                after = la.metrics.correct_margin(model(task.inputs), task)
        lost = before[(before > 0) & (after <= 0)]
        found += [float((before < margin).double().mean()) for margin in lost]
    return found


def measure_edits(word: str = "") -> list[dict[str, object]]:
    """The paper's edits on the embedded models, before and after, on held-out examples."""
    rows: list[dict[str, object]] = []

    def keep(model: LensModel, task: str, edited: Edited, seconds: float) -> None:
        found = edited.edit
        of = found.settings.get("chosen_from", len(found.components))
        row = {"task": task, "k": found.k, "of": of, "seconds": seconds, "groups": shares(edited.held_out)}
        if task.startswith("forget"):
            row |= {"seen": shares(found.effects), "lost": lost_margins(model, edited)}
        rows.append({**row, "method": found.methods[0].name})
        print(row, flush=True)

    def timed(model: LensModel, task: str, run: Callable[[], Edited | list[Edited]]) -> None:
        if word not in task:
            return
        begun = time.perf_counter()
        found = run()
        seconds = time.perf_counter() - begun
        for one in found if isinstance(found, list) else [found]:
            keep(model, task, one, seconds)

    vit, lm = la.load_model("tiny-vit"), la.load_model("tiny-lm")
    timed(vit, "fix one error", lambda: la.edits.fix_errors(vit, progress=False))
    for digit in range(10):
        timed(vit, f"forget the digit {digit}", lambda digit=digit: la.edits.forget_class(vit, digit, progress=False))
    for relation in facts.RELATIONS:
        timed(lm, f"forget {relation}", lambda name=relation: la.edits.forget_relation(lm, name, progress=False))
    for task, edit, name in (
        ("raise the worst group", la.edits.raise_worst_group, "tiny-vit-spurious"),
        ("remove the backdoor", la.edits.remove_backdoor, "tiny-vit-backdoor"),
        ("withstand printed labels", la.edits.withstand_labels, "tiny-vit-typographic"),
    ):
        flawed = la.load_model(name)
        timed(flawed, task, lambda edit=edit, flawed=flawed: edit(flawed, progress=False))
    return rows


PARTS = {
    "estimators": measure_estimators,
    "components": measure_components,
    "variants": measure_variants,
    "edits": measure_edits,
}


LABELS = {"components": "case", "edits": "task"}
"""The key of a row's label, of parts that can be measured in part."""


def main(parts: list[str]) -> None:
    """Measure these parts, and keep what was measured of the others."""
    settings = {"examples": N_EXAMPLES, "seeds": SEEDS, "fresh_masks": FRESH}
    measure(MEASURED, PARTS, parts, settings, labels=LABELS, indent=1)


if __name__ == "__main__":
    main(sys.argv[1:])
