"""Prune for one task, measure on every other: does what tasks share in neurons show in what they lose?"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_ablation.data.metrics import Metric, MetricFn, top1
from lens_ablation.data.task import Task, joined
from lens_ablation.engine.options import Engine
from lens_ablation.engine.removals import Ablation, Packed
from lens_ablation.engine.variants import run_variants
from lens_ablation.files import read_folder, reading, require_shape, write_folder
from lens_ablation.methods.method import Method
from lens_ablation.methods.zero import Zero
from lens_ablation.models.protocol import LensModel
from lens_ablation.modularity.importance import EPSILONS, ImportanceKind, importance
from lens_ablation.modularity.overlap import Overlap, overlap
from lens_ablation.modularity.parts import kept_parts
from lens_ablation.modularity.prune import require_separate
from lens_ablation.modularity.use import NeuronUse, neuron_sites, neuron_use
from lens_ablation.progress import Progress, progress_bar
from lens_ablation.sites import Site, SiteSet
from lens_ablation.studies.correlations import spearman
from lens_ablation.studies.intervals import weighted_mean
from lens_ablation.studies.settings import method_settings, study_settings

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_FILE_KIND = "cross-pruning"
_SET_KIND = "selective-neurons"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class CrossPruning:
    """The metric on every task while the neurons of each task are pruned.

    Attributes:
        values: By test, ``[pruned task, example]``, in the metric's unit.
        baseline: By test, of the untouched model, ``[example]``.
        weights: By test, targets of each example.
        sets: The neurons of each task.
        overlap: How far they overlap.
        settings: Model, score, fraction, method, metric and versions behind the numbers.
    """

    values: Mapping[str, Float[Tensor, "pruned example"]]
    baseline: Mapping[str, Float[Tensor, " example"]]
    weights: Mapping[str, Tensor]
    sets: Mapping[str, SiteSet]
    overlap: Overlap
    settings: Mapping[str, object]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self.sets)

    @property
    def baseline_mean(self) -> Float[np.ndarray, " test"]:
        """Mean metric of the untouched model on each task."""
        return np.array([float(weighted_mean(self.baseline[b].double(), self.weights[b])) for b in self.names])

    @property
    def mean(self) -> Float[np.ndarray, "pruned test"]:
        """Mean metric on each task (column) while the neurons of each (row) are pruned."""
        columns = [weighted_mean(self.values[b].double(), self.weights[b]).numpy() for b in self.names]
        return np.stack(columns, axis=1)

    @property
    def change(self) -> Float[np.ndarray, "pruned test"]:
        """``mean - baseline_mean``."""
        return self.mean - self.baseline_mean

    @property
    def damage(self) -> Float[np.ndarray, "pruned test"]:
        """How much worse the metric is than that of the untouched model."""
        return -self.change if self.settings["higher_is_better"] else self.change

    def correlation(self, n_permutations: int = 1000, seed: int = 0) -> tuple[float, float]:
        """Spearman's correlation over pairs of different tasks of damage and overlap, and its permutation p-value.

        Overlap is that beyond random sets with as many neurons in every layer. Permutations rename the tasks of one
        matrix, since pairs that share a task are not independent.

        Raises:
            ValueError: fewer than three tasks.
        """
        n = len(self.names)
        if n < 3:
            raise ValueError(f"{n} tasks give one pair alone; correlate three tasks or more")
        apart = ~np.eye(n, dtype=bool)
        excess, damage = self.overlap.excess, self.damage
        found = spearman(excess[apart], damage[apart])
        rng = np.random.default_rng(seed)
        as_large = 1
        for _ in range(n_permutations):
            order = rng.permutation(n)
            as_large += abs(spearman(excess[np.ix_(order, order)][apart], damage[apart])) >= abs(found) - 1e-12
        return found, as_large / (n_permutations + 1)

    def to_dataframe(self) -> pd.DataFrame:
        """One row to a pruned task and a test: metric, its change, overlap of the two sets of neurons."""
        return pd.DataFrame(
            [
                {
                    "pruned": a,
                    "test": b,
                    "baseline": self.baseline_mean[j],
                    "value": self.mean[i, j],
                    "change": self.change[i, j],
                    "overlap": self.overlap.overlap[i, j],
                    "excess": self.overlap.excess[i, j],
                }
                for i, a in enumerate(self.names)
                for j, b in enumerate(self.names)
            ]
        )

    def plot(self) -> "Figure":
        """Change of the metric on every task, a row to each pruned task."""
        from lens_ablation.plots.modularity import cross_pruning_figure

        return cross_pruning_figure(self)

    def save(self, folder: str | Path) -> Path:
        """Write the result to a new folder: tensors as safetensors, settings as JSON."""
        tensors: dict[str, Tensor] = {}
        for i, name in enumerate(self.names):
            tensors |= {f"values/{i}": self.values[name], f"baseline/{i}": self.baseline[name]}
            tensors |= {f"weights/{i}": self.weights[name], f"set/{i}": torch.from_numpy(self.sets[name].addresses)}
        own = next(iter(self.sets.values()))
        root = Path(folder)
        plain = {"names": list(self.names), "kind": own.kind, "shape": list(own.shape), "settings": self.settings}
        self.overlap.save(root / "overlap")
        write_folder(root / "result", _FILE_KIND, tensors, plain)
        return root

    @classmethod
    def load(cls, folder: str | Path) -> "CrossPruning":
        """Read a result that ``save`` wrote; needs no model.

        Raises:
            DamagedFile: the folder holds something else, or was changed.
        """
        tensors, plain = read_folder(Path(folder) / "result", _FILE_KIND)
        with reading(folder):
            names = [str(name) for name in plain["names"]]

            def by_name(what: str) -> dict[str, Tensor]:
                return {name: tensors[f"{what}/{i}"] for i, name in enumerate(names)}

            found = cls(
                values=by_name("values"),
                baseline=by_name("baseline"),
                weights=by_name("weights"),
                sets={
                    name: SiteSet.from_stored(plain["kind"], addresses.numpy(), plain["shape"])
                    for name, addresses in by_name("set").items()
                },
                overlap=Overlap.load(Path(folder) / "overlap"),
                settings=dict(plain["settings"]),
            )
            for name in names:
                require_shape(name, found.values[name], (len(names), len(found.baseline[name])))
            return found

    def __repr__(self) -> str:
        own = next(iter(self.sets.values()))
        return f"CrossPruning({', '.join(self.names)}: {len(own)} neurons each)"


def selective_neurons(
    model: LensModel,
    tasks: Mapping[str, Task],
    *,
    retain: Task | None = None,
    fraction: float = 0.02,
    kind: ImportanceKind = "abs",
    epsilon: float | None = None,
    sites: SiteSet | Iterable[Site] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    engine: Engine | None = None,
    progress: Progress = True,
) -> dict[str, SiteSet]:
    """The neurons that each task uses most beyond what all data use, as many for each task, over all layers.

    Args:
        model: A TransformerLens model in evaluation mode.
        tasks: Data by name.
        retain: What each is compared with; all tasks together by default, as in the paper.
        fraction: Share of the neurons that are chosen.
        kind: The score, see ``importance``.
        epsilon: By default 1e-3 for MLP neurons and 1e-4 for attention neurons.
        sites: ``neurons(model)`` (the default), ``attention_neurons(model)``, or some of them.
        seed: Of ``kind="random"``; each task has another order.
        batch_size: Rows in a forward pass; chosen when ``None``.
        engine: Where the neurons of a finished task are kept; see ``Engine``.
        progress: ``True`` for a bar, ``False`` for silence, or a callable given ``(done, total)`` tasks.

    Raises:
        StoreMismatch: the engine's store holds another run.
        ValueError: there are fewer than two tasks, or arguments do not fit together.

    Reference:
        Pochinkov et al., *Modularity in Transformers: Investigating Neuron Separability & Specialization*, 2024,
        arXiv:2408.17324; scores and selection of Pochinkov, Schoots, 2024, arXiv:2403.01267

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> tasks = {name: la.tasks.domain(model, n=8, name=name, split="train") for name in ("prose", "code")}
        >>> found = la.selective_neurons(model, tasks, fraction=0.05, progress=False)
        >>> [len(one) for one in found.values()]
        [102, 102]
    """
    if len(tasks) < 2:
        raise ValueError(f"give two tasks or more by name, got {', '.join(tasks) or 'none'}")
    chosen = neuron_sites(model, sites)
    kept = joined(list(tasks.values())) if retain is None else retain
    settings = {"retain": kept.fingerprint, "sites": chosen.digest, "score": [kind, epsilon], "fraction": fraction}
    parts = kept_parts(model, engine, "neurons", _SET_KIND, settings)
    common: list[NeuronUse] = []

    def use_of(task: Task) -> NeuronUse:
        return neuron_use(model, task, chosen, batch_size=batch_size, progress=False)

    def neurons_of(task: Task, seed: int) -> SiteSet:
        if not common:
            common.append(use_of(kept))
        return importance(use_of(task), kind, retain=common[0], epsilon=epsilon, seed=seed).top(fraction)

    found: dict[str, SiteSet] = {}
    with progress_bar(progress, len(tasks), "selective neurons", "task") as advance:
        for i, (name, task) in enumerate(tasks.items()):
            part, of = f"task-{i}", {"task": task.fingerprint, "seed": seed + i}
            if (stored := parts.read(part, of)) is not None:
                found[name] = SiteSet.from_stored(chosen.kind, stored[0]["addresses"].numpy(), chosen.shape)
            else:
                found[name] = neurons_of(task, seed + i)
                parts.write(part, of, {"addresses": torch.from_numpy(found[name].addresses)}, {})
            advance(1)
    return found


def cross_pruning(
    model: LensModel,
    tasks: Mapping[str, Task],
    tests: Mapping[str, Task],
    *,
    retain: Task | None = None,
    fraction: float = 0.02,
    kind: ImportanceKind = "abs",
    epsilon: float | None = None,
    method: Method | None = None,
    sites: SiteSet | Iterable[Site] | None = None,
    metric: Metric | MetricFn = top1,
    seed: int = 0,
    allow_shared: bool = False,
    batch_size: int | None = None,
    engine: Engine | None = None,
    progress: Progress = True,
) -> CrossPruning:
    """Prune the neurons of each task, and measure on every task; beside it, how far the sets of neurons overlap.

    Args:
        model: A TransformerLens model in evaluation mode; left exactly as it was.
        tasks: Data by name on which neurons are chosen.
        tests: Other examples of the same tasks, by the same names.
        retain: What each task is compared with; all tasks together by default.
        fraction: Share of the neurons that are pruned.
        kind: The score, see ``importance``.
        epsilon: By default 1e-3 for MLP neurons and 1e-4 for attention neurons.
        method: What stands in the place of pruned neurons; ``Zero()`` by default.
        sites: ``neurons(model)`` (the default), ``attention_neurons(model)``, or some of them.
        metric: Accuracy by default.
        seed: Of ``kind="random"``.
        allow_shared: Accept examples that are scored and tested on; the result's settings say how many.
        batch_size: Rows in a forward pass; chosen when ``None``.
        engine: Where finished parts are kept, who computes them; see ``Engine``.
        progress: ``True`` for a bar, ``False`` for silence, or a callable given ``(done, total)``.

    Raises:
        LeakingSplits: importance and metric would be measured on the same examples.
        ValueError: tests have other names than tasks, or arguments do not fit together.

    Reference:
        Pochinkov et al., *Modularity in Transformers: Investigating Neuron Separability & Specialization*, 2024,
        arXiv:2408.17324

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> names = ("prose", "code", "arithmetic")
        >>> tasks, tests = (
        ...     {name: la.tasks.domain(model, n=8, name=name, split=split) for name in names}
        ...     for split in ("train", "held_out")
        ... )
        >>> found = la.cross_pruning(model, tasks, tests, fraction=0.2, progress=False)
        >>> found.mean.shape, bool(found.damage[2, 2] > found.damage[2, 0])
        ((3, 3), True)
    """
    if list(tests) != list(tasks):
        raise ValueError(f"tests have the names of tasks, in their order: {', '.join(tasks)}; got {', '.join(tests)}")
    put = Zero() if method is None else method
    asked = {name: task.with_metric(metric) for name, task in tests.items()}
    scored = dict(tasks) if retain is None else {**tasks, "retain": retain}
    shared = require_separate(scored, asked.values(), allow_shared)
    sets = selective_neurons(
        model,
        tasks,
        retain=retain,
        fraction=fraction,
        kind=kind,
        epsilon=epsilon,
        sites=sites,
        seed=seed,
        batch_size=batch_size,
        engine=engine,
        progress=False,
    )
    chosen = neuron_sites(model, sites)
    flags = np.zeros((len(sets), len(chosen)), dtype=bool)
    for row, one in zip(flags, sets.values(), strict=True):
        row[chosen.places(one)] = True
    total = len(tasks) * sum(task.n_examples for task in asked.values())
    with progress_bar(progress, total, "cross-pruning", "row") as advance:
        scores = {
            name: run_variants(
                model,
                task,
                [Ablation(chosen, Packed.of(flags), put)],
                batch_size=batch_size,
                engine=None if engine is None else engine.part(f"test-{place}"),
                advance=advance,
            )
            for place, (name, task) in enumerate(asked.items())
        }
    first = next(iter(asked.values()))
    return CrossPruning(
        values={name: found.values for name, found in scores.items()},
        baseline={name: found.baseline for name, found in scores.items()},
        weights={name: task.n_targets for name, task in asked.items()},
        sets=sets,
        overlap=overlap(sets, chosen),
        settings={
            **study_settings(model, first, "all"),
            "task": ", ".join(tests),
            "task_fingerprint": {name: task.fingerprint for name, task in asked.items()},
            "scored_on": {name: task.fingerprint for name, task in scored.items()},
            "shared_examples": shared,
            "fraction": fraction,
            "kind": kind,
            "epsilon": EPSILONS[chosen.kind] if epsilon is None else epsilon,
            "method": method_settings(put),
            "seed": seed,
            "engine": [found.how for found in scores.values()],
        },
    )
