"""What the engine is compared with: one plain forward pass to a variant."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lens_ablation as la
from lens_ablation.data.metrics import Metric, answer_logits
from lens_ablation.engine.part import Part
from lens_ablation.engine.path import Path
from lens_ablation.engine.proof import path_of
from lens_ablation.engine.removals import Ablation, OneEach, Packed
from tests.families import Family

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}

SELECT: dict[str, Callable[[Any], la.SiteSet]] = {
    "head": la.heads,
    "z": la.attention_neurons,
    "neuron": la.neurons,
    "pattern": la.patterns,
    "attention": la.attentions,
    "mlp": la.mlps,
}

METHODS: dict[str, Callable[[la.Task, Any], la.Method]] = {
    "zero": lambda task, stats: la.Zero(),
    "constant": lambda task, stats: la.Constant(0.3),
    "mean": lambda task, stats: la.Mean(stats),
    "mean per position": lambda task, stats: la.Mean(stats, per_position=True),
    "peak": lambda task, stats: la.Peak(stats),
    "noise": lambda task, stats: la.Noise(stats, scale=2.0),
    "noise around the mean": lambda task, stats: la.Noise(stats, around="mean"),
    "resample fixed input": lambda task, stats: la.Resample(task.inputs[:1].flip(-1)),
    "resample other examples": lambda task, stats: la.Resample(task, match="batch", seed=2),
    "counterfactual": lambda task, stats: la.Counterfactual(task.inputs.flip(0)),
}
"""Every method; noise around the activation cannot be had for patterns."""


def a_task(family: Family, n: int = 3, n_pos: int = 6, padding: str = "none") -> la.Task:
    """Examples of a family; with ``padding`` on one side, of three lengths."""
    inputs = family.inputs(n, n_pos)
    answers, wrong = torch.arange(n) % 5, (torch.arange(n) + 1) % 5
    if padding == "none":
        return la.Task(inputs=inputs, answers=answers, wrong_answers=wrong)
    mask = torch.ones(n, n_pos, dtype=torch.bool)
    for row in range(n):
        mask[row, n_pos - row % 3 :] = False
    mask = mask.flip(1) if padding == "left" else mask
    return la.Task(inputs=inputs.where(mask, 0), answers=answers, wrong_answers=wrong, attention_mask=mask)


def some(sites: la.SiteSet, n: int) -> la.SiteSet:
    """``n`` sites of all layers, in no order."""
    places = np.unique(np.linspace(0, len(sites) - 1, min(n, len(sites))).astype(int))
    return sites.take(np.random.default_rng(0).permutation(places))


def kinds_of(name: str) -> list[str]:
    """Kinds of sites that a family has; attention outputs of post-LN models cannot be had."""
    return [kind for kind in SELECT if (name, kind) != ("bert", "attention")]


def statistics(family: Family, task: la.Task) -> Any:
    """Statistics of all activations."""
    sites = [SELECT[kind](family.model) for kind in kinds_of(family.name)]
    options: dict[str, Any] = {"per_position": True, "allow_small": True, "progress": False}
    return la.collect_statistics(family.model, task, sites, **options)


def logits_of(family: Family, task: la.Task, hooks: Sequence[Any] = ()) -> Tensor:
    """All logits of a plain forward pass."""
    options: dict[str, Any] = {}
    if task.attention_mask is not None:
        options["attention_mask"] = task.attention_mask.long()
    with torch.no_grad():
        return family.model.run_with_hooks(task.inputs, fwd_hooks=list(hooks), **options)


def with_clean_logits(family: Family, task: la.Task) -> la.Task:
    assert isinstance(task.metric, Metric)
    if "clean_logits" not in task.metric.needs:
        return task
    return replace(task, clean_logits=answer_logits(logits_of(family, task), task))


def together(
    family: Family, task: la.Task, parts: Sequence[tuple[la.SiteSet, la.Method]], positions: Any = "all"
) -> Tensor:
    """The metric with all these sites ablated, by their hooks in one pass.

    Hooks are made before any is in place: methods that run the model would else run an ablated one.
    """
    given = [(sites, method) for sites, method in parts if len(sites)]
    hooks = [la.hooks(family.model, sites, method, positions=positions, task=task) for sites, method in given]
    return task.score(logits_of(family, task, [pair for pairs in hooks for pair in pairs]))


def each_alone(family: Family, task: la.Task, sites: la.SiteSet, method: la.Method, positions: Any = "all") -> Tensor:
    """The metric with each site ablated on its own, ``[site, example]``."""
    task = with_clean_logits(family, task)
    return torch.stack([together(family, task, [(sites.take([i]), method)], positions) for i in range(len(sites))])


def zeroed_by_hand(family: Family, task: la.Task, sites: la.SiteSet) -> Tensor:
    """The metric with each site zeroed by a hook as one would write it, ``[site, example]``."""
    rows = []
    for site in sites:

        def zero(activation: Tensor, hook: object, site: la.Site = site) -> Tensor:
            changed = activation.clone()
            where = [axis for axis in (site.head, site.unit) if axis is not None]
            changed[(slice(None), slice(None), *where)] = 0
            return changed

        at = f"blocks.{site.layer}.attn.hook_z" if site.kind == "pattern" else site.hook_name
        rows.append(task.score(logits_of(family, task, [(at, zero)])))
    return torch.stack(rows)


def by_the_engine(
    family: Family,
    task: la.Task,
    ablations: Sequence[Ablation],
    positions: Any = "all",
    *,
    path: Path | None = None,
    examples_at_once: int = 2,
    variants_at_once: int = 3,
    clean_bytes: int = 2**28,
) -> Tensor:
    """The metric of all variants in the model's own dtype (results are kept in float32), ``[variant, example]``."""
    if path is None:
        path = path_of(family.model)
        assert path.prefix, path.note
    sets = [(ablation.sites, ablation.method) for ablation in ablations]
    n_variants = ablations[0].removed.shape[0]
    columns = []
    for examples in torch.arange(task.n_examples).split(examples_at_once):
        part = Part(family.model, task, sets, positions, examples, path, clean_bytes=clean_bytes)
        runs = [np.arange(i, min(i + variants_at_once, n_variants)) for i in range(0, n_variants, variants_at_once)]
        columns.append(torch.cat([part.scores([a.removed.flags(run) for a in ablations]) for run in runs]))
    return torch.cat(columns, dim=1)


def alone(sites: la.SiteSet, method: la.Method) -> list[Ablation]:
    """Each site removed on its own."""
    return [Ablation(sites, OneEach(len(sites)), method)]


def random_flags(sites: la.SiteSet, n_variants: int, share: float = 0.3, seed: int = 0) -> Packed:
    """Random variants, of which the first removes nothing and others leave the first layers alone."""
    generator = np.random.default_rng(seed)
    flags = generator.random((n_variants, len(sites))) < share
    first = generator.integers(0, sites.shape[0], n_variants)
    flags &= sites.addresses[:, 0] >= first[:, None]
    flags[0] = False
    return Packed.of(flags)


def hooks_together(family: Family, task: la.Task, ablations: Sequence[Ablation], positions: Any = "all") -> Tensor:
    """The metric of each variant by its hooks in one pass, ``[variant, example]``."""
    task = with_clean_logits(family, task)
    rows = []
    for variant in range(ablations[0].removed.shape[0]):
        flags = [ablation.removed.flags(np.array([variant]))[0] for ablation in ablations]
        parts = [(a.sites.take(np.flatnonzero(here)), a.method) for a, here in zip(ablations, flags, strict=True)]
        rows.append(together(family, task, parts, positions))
    return torch.stack(rows)


def apart(found: Tensor, expected: Tensor) -> float:
    """Largest difference, over the largest expected value if that is above 1."""
    assert found.shape == expected.shape
    assert bool(torch.isfinite(expected).all())
    return float((found.double() - expected.double()).abs().max() / expected.abs().max().clamp(min=1))


def effect(family: Family, task: la.Task, values: Tensor) -> float:
    """How far the values are from those of the untouched model."""
    task = with_clean_logits(family, task)
    return float((values - task.score(logits_of(family, task))).abs().max())


def settings_of(model: Any, task: la.Task, sites: la.SiteSet, engine: la.Engine | None = None) -> Mapping[str, object]:
    """What a sweep says of how it was run."""
    found = la.sweep(model, task, sites, la.Zero(), engine=engine, progress=False).settings["engine"]
    assert isinstance(found, Mapping)
    return found
