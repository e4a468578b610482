"""What a study was asked for on the command line, checked and loaded.

Torch and TransformerLens are imported inside the functions, so that help and mistyped options answer at once.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

if TYPE_CHECKING:
    from lens_ablation.data.corpus import Split
    from lens_ablation.data.task import Task
    from lens_ablation.engine.options import Engine, Executor
    from lens_ablation.methods.method import Method
    from lens_ablation.models.protocol import LensModel
    from lens_ablation.sites import SiteSet
    from lens_ablation.statistics.activation_statistics import ActivationStatistics

SITES = ("heads", "attention_neurons", "neurons", "patterns", "attentions", "mlps")
POSITIONS = ("all", "all_but_first", "answer")
METHODS = {
    "zero": "Zero",
    "mean": "Mean",
    "peak": "Peak",
    "resample": "Resample",
    "counterfactual": "Counterfactual",
    "noise": "Noise",
}
EXECUTORS = ("serial", "processes", "ray", "submitit")
DTYPES = ("float64", "float32", "bfloat16")
NEED_STATISTICS = ("mean", "peak", "noise")


@dataclass(frozen=True)
class Ready:
    """What a study runs on."""

    model: "LensModel"
    task: "Task"
    sites: "SiteSet"
    methods: "list[Method]"


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study was asked for, as it was typed."""

    model: str
    task: str | None
    data: Path | None
    sites: str
    methods: list[str]
    n: int
    seed: int
    positions: str
    metric: str | None
    statistics: Path | None
    device: str
    store: Path | None
    executor: str
    workers: int | None
    dtype: str | None
    quiet: bool

    def check(self) -> None:
        """Refuse what can be refused before anything is imported or loaded."""
        require_known("executor", self.executor, EXECUTORS)
        if self.dtype is not None:
            require_known("dtype", self.dtype, DTYPES)
        check_data(self.task, self.data)
        require_known("kind of sites", self.sites, SITES)
        require_known("positions", self.positions, POSITIONS)
        for name in self.methods:
            require_known("method", name, METHODS)
        measured = [name for name in self.methods if name in NEED_STATISTICS]
        if measured and self.task is None and self.statistics is None:
            raise ValueError(
                f"{measured[0]} ablation of --data needs --statistics DIR, measured on other data: run "
                "`lens-ablation stats` first"
            )

    def prepare(self) -> Ready:
        """Load the model, make the task, and measure what the methods need."""
        from lens_ablation.data import metrics

        metric = None if self.metric is None else metrics.get(self.metric)
        model = load(self.model, self.device)
        task = task_of(model, self.task, self.data, self.n, self.seed, split="held_out")
        task = task if metric is None else task.with_metric(metric)
        sites = sites_of(model, self.sites)
        statistics = None
        if any(name in NEED_STATISTICS for name in self.methods):
            statistics = self._statistics(model, sites)
        methods = [method_named(name, task, statistics, self.seed) for name in self.methods]
        return Ready(model, task, sites, methods)

    def engine(self, part: str = "") -> "Engine":
        """How the study is run; ``part`` names its own folder in the store."""
        import torch

        from lens_ablation.engine.options import Engine

        return Engine(
            store=None if self.store is None else self.store / part,
            executor=cast("Executor", self.executor),
            workers=self.workers,
            dtype=None if self.dtype is None else getattr(torch, self.dtype),
        )

    def _statistics(self, model: "LensModel", sites: "SiteSet") -> "ActivationStatistics":
        from lens_ablation.report.sections import RESULTS, STATISTICS
        from lens_ablation.statistics.activation_statistics import ActivationStatistics
        from lens_ablation.statistics.collect import collect_statistics

        if self.statistics is not None:
            inside = self.statistics / RESULTS / STATISTICS
            return ActivationStatistics.load(inside if inside.is_dir() else self.statistics)
        measured_on = task_of(model, self.task, None, max(self.n, 256), self.seed, split="train")
        return collect_statistics(model, measured_on, sites, progress=not self.quiet)


def method_named(name: str, task: "Task", statistics: "ActivationStatistics | None", seed: int) -> "Method":
    """The method of this name, with what it needs."""

    import lens_ablation as la

    if name == "zero":
        return la.Zero()
    if name == "resample":
        return la.Resample(task, match="batch", seed=seed)
    if name == "counterfactual":
        return la.Counterfactual(task)
    assert statistics is not None
    if name == "noise":
        return la.Noise(statistics, seed=seed)
    return la.Mean(statistics) if name == "mean" else la.Peak(statistics)


def load(model: str, device: str) -> "LensModel":
    """The model on its device."""

    import torch

    from lens_ablation.models.loading import load_model

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return load_model(model, device=device)


def task_of(model: "LensModel", task: str | None, data: Path | None, n: int, seed: int, *, split: "Split") -> "Task":
    """A task by name, or made of a file."""
    from lens_ablation.data import tasks
    from lens_ablation.data.as_task import as_task

    if task is not None:
        return tasks.get(task)(model, n, seed=seed, split=split)
    return as_task(data, model).select(slice(n))


def sites_of(model: "LensModel", kind: str) -> "SiteSet":
    """All sites of a kind."""

    import lens_ablation as la

    return getattr(la, kind)(model)


def check_data(task: str | None, data: Path | None) -> None:
    """Refuse anything but one of the two, and files that do not exist."""
    if (task is None) == (data is None):
        raise typer.BadParameter("give either --task NAME or --data FILE")
    if data is not None and not data.exists():
        raise ValueError(f"there is no file or folder {str(data)!r}")


def require_known(kind: str, given: str, known: Iterable[str]) -> None:
    """Refuse a name that is not known, listing the nearest."""
    if given not in known:
        from lens_ablation.errors import unknown_name

        raise unknown_name(kind, given, known, "--help")
