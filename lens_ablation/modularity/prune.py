"""Selective pruning: ablate the neurons that are used more on data to forget than on data to retain."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool

from lens_ablation.data.metrics import Metric, MetricFn, top1
from lens_ablation.data.task import Task, bytes_of
from lens_ablation.engine.options import Engine
from lens_ablation.engine.removals import Ablation, Packed
from lens_ablation.engine.variants import run_variants
from lens_ablation.errors import LeakingSplits
from lens_ablation.methods.counterfactual import Counterfactual
from lens_ablation.methods.method import Method
from lens_ablation.methods.noise import Noise
from lens_ablation.methods.resample import Resample
from lens_ablation.methods.zero import Zero
from lens_ablation.models.protocol import LensModel
from lens_ablation.modularity.importance import EPSILONS, ImportanceKind, count_of, importance
from lens_ablation.modularity.parts import KeptParts, kept_parts
from lens_ablation.modularity.pruned import MATCHED, RANDOM, SELECTED, SelectivePruning
from lens_ablation.modularity.use import neuron_sites, neuron_use
from lens_ablation.progress import Progress, progress_bar
from lens_ablation.sites import Site, SiteSet
from lens_ablation.studies.settings import method_settings, study_settings

_FILE_KIND = "selected-neurons"
_BY_EXAMPLE = (Resample, Counterfactual, Noise)

log = logging.getLogger(__name__)


def prune_selectively(
    model: LensModel,
    *,
    retain: Task,
    forget: Task,
    retain_test: Task,
    forget_test: Task,
    sites: SiteSet | Iterable[Site] | None = None,
    kind: ImportanceKind = "abs",
    epsilon: float | None = None,
    method: Method | None = None,
    fraction_per_step: float = 0.02,
    steps: int = 10,
    rescore: bool = True,
    metric: Metric | MetricFn = top1,
    n_random: int = 3,
    seed: int = 0,
    allow_shared: bool = False,
    batch_size: int | None = None,
    engine: Engine | None = None,
    progress: Progress = True,
) -> SelectivePruning:
    """Prune the neurons that ``forget`` uses more than ``retain``, step by step, and measure on other examples.

    Each step prunes the highest scores over all layers. Random neurons are pruned beside them, as many over all
    layers and as many in every layer.

    Args:
        model: A TransformerLens model in evaluation mode; left exactly as it was.
        retain: Data to keep, on which importance is measured.
        forget: Data to forget, on which importance is measured.
        retain_test: Other examples of the data to keep, on which the metric is measured.
        forget_test: Other examples of the data to forget.
        sites: ``neurons(model)`` (the default), ``attention_neurons(model)``, or some of them.
        kind: The score, see ``importance``.
        epsilon: By default 1e-3 for MLP neurons and 1e-4 for attention neurons.
        method: What stands in the place of pruned neurons; ``Zero()`` by default.
        fraction_per_step: Share of all sites that a step prunes.
        steps: How many steps.
        rescore: Measure importance anew on the pruned model before each step, as the paper does with language models;
            ``False`` scores once, as it does with vision transformers.
        metric: Of which more should be better: accuracy by default.
        n_random: Random choices of each sort.
        seed: Of random neurons, and of ``kind="random"``.
        allow_shared: Accept examples that are scored and tested on; the result's settings say how many.
        batch_size: Rows in a forward pass; chosen when ``None``.
        engine: Where finished parts are kept, who computes them; see ``Engine``.
        progress: ``True`` for a bar, ``False`` for silence, or a callable given ``(done, total)``.

    Raises:
        LeakingSplits: importance and metric would be measured on the same examples.
        StoreMismatch: the engine's store holds another run.
        ValueError: the steps would prune more neurons than there are, or arguments do not fit together.

    Reference:
        Pochinkov, Schoots, *Dissecting Language Models: Machine Unlearning via Selective Pruning*, 2024,
        arXiv:2403.01267

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> sets = {
        ...     f"{use}{end}": la.tasks.domain(model, n=8, name=name, split=split)
        ...     for use, name in (("retain", "prose"), ("forget", "arithmetic"))
        ...     for end, split in (("", "train"), ("_test", "held_out"))
        ... }
        >>> found = la.prune_selectively(
        ...     model, **sets, fraction_per_step=0.1, steps=2, rescore=False, n_random=1, progress=False
        ... )
        >>> found.n_removed, found.curves
        ((0, 204, 409), ('selected', 'random', 'random, same layers'))
    """
    chosen = neuron_sites(model, sites)
    count_of(fraction_per_step, len(chosen))
    if steps < 1 or fraction_per_step * steps > 1 + 1e-9 or n_random < 0:
        raise ValueError(
            f"{steps} steps of {fraction_per_step} prune {fraction_per_step * steps:.3g} of the neurons; take one step "
            "or more, at most all neurons, and n_random of 0 or more"
        )
    put = Zero() if method is None else method
    if rescore and isinstance(put, _BY_EXAMPLE):
        raise ValueError(f"{put.name} depends on the example, so importance cannot be measured under it; rescore=False")
    shared = require_separate({"retain": retain, "forget": forget}, [retain_test, forget_test], allow_shared)
    tests = [task.with_metric(metric) for task in (retain_test, forget_test)]
    plan = _Plan(
        model=model,
        sites=chosen,
        retain=retain,
        forget=forget,
        kind=kind,
        epsilon=epsilon,
        method=put,
        counts=tuple(count_of(fraction_per_step * (i + 1), len(chosen)) for i in range(steps)),
        rescore=rescore,
        seed=seed,
        batch_size=batch_size,
        parts=kept_parts(model, engine, "scores", _FILE_KIND, {}),
    )
    n_curves = 1 + 2 * n_random
    scored = (retain.n_examples + forget.n_examples) * (steps if rescore else 1)
    total = scored + n_curves * (steps + 1) * sum(task.n_examples for task in tests)
    with progress_bar(progress, total, f"selective pruning: {kind}", "row") as advance:
        order, dominated = plan.selected(advance)
        flags = nested_variants(chosen, order, (0, *plan.counts), n_random, seed)
        found = [
            run_variants(
                model,
                task,
                [Ablation(chosen, Packed.of(flags.reshape(-1, len(chosen))), put)],
                batch_size=batch_size,
                engine=None if engine is None else engine.part(name),
                advance=advance,
            )
            for name, task in zip(("retain", "forget"), tests, strict=True)
        ]
    values = [scores.values.reshape(*flags.shape[:2], -1) for scores in found]
    result = SelectivePruning(
        retain=values[0],
        forget=values[1],
        retain_weights=tests[0].n_targets,
        forget_weights=tests[1].n_targets,
        curves=(SELECTED, *[RANDOM] * n_random, *[MATCHED] * n_random),
        order=order,
        n_removed=(0, *plan.counts),
        n_sites=len(chosen),
        dominated=tuple(dominated),
        settings={
            **study_settings(model, tests[1], "all"),
            "retain": tests[0].name,
            "retain_fingerprint": tests[0].fingerprint,
            "scored_on": {"retain": retain.fingerprint, "forget": forget.fingerprint},
            "shared_examples": shared,
            "kind": kind,
            "epsilon": EPSILONS[chosen.kind] if epsilon is None else epsilon,
            "method": method_settings(put),
            "fraction_per_step": fraction_per_step,
            "rescore": rescore,
            "seed": seed,
            "engine": [scores.how for scores in found],
        },
    )
    _warn_of_emptied_layers(result, chosen)
    return result


def require_separate(scored: Mapping[str, Task], tests: Iterable[Task], allow_shared: bool) -> int:
    """How many examples of the tests are scored on too, which is 0 unless that is allowed.

    Raises:
        LeakingSplits: there are such examples.
    """
    seen = {row for task in scored.values() for row in _rows_of(task)}
    shared = sum(row in seen for task in tests for row in _rows_of(task))
    if shared and not allow_shared:
        raise LeakingSplits(
            f"{shared} examples of the tests are among those that importance is measured on, which flatters pruning. "
            "Take other examples (split='train' and split='held_out' of the tasks here), or say allow_shared=True"
        )
    return shared


def _rows_of(task: Task) -> list[bytes]:
    """The content of each example: its real tokens, or its pixels."""
    mask = task.attention_mask
    rows = [row if mask is None else row[mask[i].bool()] for i, row in enumerate(task.inputs)]
    return [hashlib.sha256(f"{tuple(row.shape)}".encode() + bytes_of(row)).digest() for row in rows]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Plan:
    """Which neurons are pruned at each step, and what they are chosen by."""

    model: LensModel
    sites: SiteSet
    retain: Task
    forget: Task
    kind: ImportanceKind
    epsilon: float | None
    method: Method
    counts: tuple[int, ...]
    rescore: bool
    seed: int
    batch_size: int | None
    parts: KeptParts

    def selected(self, advance: Callable[[int], None]) -> tuple[SiteSet, list[float]]:
        """The neurons in the order of their pruning, and the share of scores that epsilon decided at each step."""
        order = self.sites.take([])
        dominated: list[float] = []
        rounds = self.counts if self.rescore else self.counts[-1:]
        for step, count in enumerate(rounds):
            added, share = self._kept(step, order, count - len(order))
            order, dominated = order | added, [*dominated, share]
            advance(self.retain.n_examples + self.forget.n_examples)
        return order, dominated * (len(self.counts) // len(rounds))

    def _kept(self, step: int, before: SiteSet, n: int) -> tuple[SiteSet, float]:
        """The next neurons, from the store if it holds them."""
        name, of = f"step-{step}", self._depends_on(before, n)
        if (found := self.parts.read(name, of)) is not None:
            tensors, plain = found
            return self.sites.take(tensors["places"].numpy()), float(plain["dominated"])
        added, share = self._next(before, n)
        places = torch.from_numpy(self.sites.places(added))
        self.parts.write(name, of, {"places": places}, {"dominated": share})
        return added, share

    def _next(self, before: SiteSet, n: int) -> tuple[SiteSet, float]:
        without = (before, self.method) if len(before) else None
        forget, retain = (
            neuron_use(self.model, task, self.sites, without=without, batch_size=self.batch_size, progress=False)
            for task in (self.forget, self.retain)
        )
        score = importance(forget, self.kind, retain=retain, epsilon=self.epsilon, seed=self.seed)
        # those pruned before are 0 on all data, which says nothing about epsilon
        left = np.ones(len(self.sites), dtype=bool)
        left[self.sites.places(before)] = False
        share = float(score.dominated.numpy()[left].mean())
        return (self.sites.take(score.ranking) - before).take(range(n)), share

    def _depends_on(self, before: SiteSet, n: int) -> dict[str, object]:
        return {
            "data": [self.retain.fingerprint, self.forget.fingerprint],
            "sites": self.sites.digest,
            "score": [self.kind, self.epsilon, self.seed],
            "method": [self.method.name, dict(self.method.settings)],
            "before": before.digest,
            "n": n,
        }


def nested_variants(
    sites: SiteSet, order: SiteSet, counts: tuple[int, ...], n_random: int, seed: int
) -> Bool[np.ndarray, "curve step site"]:
    """What each curve prunes at each step; every step holds the one before it."""
    selected = sites.places(order)
    layers = sites.addresses[:, 0]
    flags = np.zeros((1 + 2 * n_random, len(counts), len(sites)), dtype=bool)
    rng = np.random.default_rng(seed)
    for step, n in enumerate(counts):
        flags[0, step, selected[:n]] = True
    for draw in range(n_random):
        queue = rng.permutation(len(sites))
        queues = {layer: rng.permutation(np.flatnonzero(layers == layer)) for layer in sites.layers}
        for step, n in enumerate(counts):
            flags[1 + draw, step, queue[:n]] = True
            for layer, within in queues.items():
                wanted = int((layers[selected[:n]] == layer).sum())
                flags[1 + n_random + draw, step, within[:wanted]] = True
    return flags


def _warn_of_emptied_layers(result: SelectivePruning, sites: SiteSet) -> None:
    width = np.bincount(sites.addresses[:, 0], minlength=result.order.shape[0])
    emptied = (result.by_layer == width) & (width > 0)
    for step in np.flatnonzero(emptied.any(axis=1))[:1]:
        log.warning(
            "from step %d on all neurons of layers %s are pruned: scores of these layers are no longer told apart",
            step,
            np.flatnonzero(emptied[step]).tolist(),
        )
