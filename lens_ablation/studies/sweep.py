"""Each site of a set ablated on its own."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_ablation.ablation import Positions
from lens_ablation.data.as_task import as_task
from lens_ablation.data.metrics import Metric, MetricFn
from lens_ablation.data.task import Task
from lens_ablation.engine.options import Engine
from lens_ablation.engine.removals import Ablation, OneEach
from lens_ablation.engine.variants import run_variants
from lens_ablation.files import read_folder, reading, require_shape, write_folder
from lens_ablation.methods.method import Method
from lens_ablation.models.protocol import LensModel
from lens_ablation.progress import Progress, progress_bar
from lens_ablation.sites import Site, SiteSet, as_site_set, check_sites_exist
from lens_ablation.studies.intervals import Interval, bootstrap_interval, weighted_mean
from lens_ablation.studies.settings import method_settings, study_settings

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_FILE_KIND = "sweep"


@dataclass(frozen=True, eq=False, kw_only=True)
class SweepResult:
    """The metric with each site ablated alone.

    Attributes:
        values: The metric under each ablation, ``[site, example]``, in the metric's unit.
        baseline: The metric of the untouched model, ``[example]``.
        weights: How many targets each example asks, ``[example]``; means over examples are weighted by it.
        sites: The sites, in the order of ``values``.
        settings: Model, task, metric, method, positions and versions behind the numbers.
    """

    values: Float[Tensor, "site example"]
    baseline: Float[Tensor, " example"]
    weights: Int[Tensor, " example"]
    sites: SiteSet
    settings: Mapping[str, object]

    @property
    def effect(self) -> Float[Tensor, "site example"]:
        """``values - baseline``: positive means that ablating raised the metric."""
        return self.values - self.baseline

    @property
    def mean(self) -> Float[Tensor, " site"]:
        """Mean effect of each site over examples."""
        return weighted_mean(self.effect, self.weights)

    def interval(self, confidence: float = 0.95) -> Interval:
        """Bootstrap interval of each site's mean effect."""
        return bootstrap_interval(self.effect, self.weights, confidence=confidence)

    @property
    def ranking(self) -> Int[Tensor, " site"]:
        """Places of the sites by the size of their mean effect, largest first, whatever its sign."""
        return self.mean.abs().nan_to_num(nan=-1.0).argsort(descending=True, stable=True)

    def strongest(self, n: int = 5) -> SiteSet:
        """The ``n`` sites with the largest mean effects, whatever their sign, largest first."""
        return self.sites.take(self.ranking[:n].numpy())

    @property
    def method_name(self) -> str:
        """What stood in the place of the ablated activations."""
        method = self.settings["method"]
        return str(method["name"]) if isinstance(method, Mapping) else str(method)

    def to_dataframe(self) -> pd.DataFrame:
        """One row to a site: address, baseline, value, effect and its 95 % interval."""
        low, high = self.interval()
        table = pd.DataFrame(self.sites.addresses, columns=list(self.sites.axes))
        table.insert(0, "site", [str(site) for site in self.sites])
        table["baseline"] = float(weighted_mean(self.baseline, self.weights))
        table["value"] = weighted_mean(self.values, self.weights).tolist()
        table["effect"] = self.mean.tolist()
        table["effect_low"], table["effect_high"] = low.tolist(), high.tolist()
        return table

    def plot(self) -> "Figure":
        """Layer x head heatmap (or layer x unit, or bars by layer) of the mean effect."""
        from lens_ablation.plots.heatmap import sweep_heatmap

        return sweep_heatmap(self)

    def save(self, folder: str | Path) -> Path:
        """Write the result to a new folder: tensors as safetensors, settings as JSON."""
        tensors = {
            "values": self.values,
            "baseline": self.baseline,
            "weights": self.weights,
            "addresses": torch.from_numpy(self.sites.addresses),
        }
        settings = {"settings": self.settings, "kind": self.sites.kind, "shape": list(self.sites.shape)}
        return write_folder(folder, _FILE_KIND, tensors, settings)

    @classmethod
    def load(cls, folder: str | Path) -> "SweepResult":
        """Read a result that ``save`` wrote; needs no model.

        Raises:
            DamagedFile: the folder holds something else, or was changed.
        """
        tensors, stored = read_folder(folder, _FILE_KIND)
        with reading(folder):
            sites = SiteSet.from_stored(stored["kind"], tensors["addresses"].numpy(), stored["shape"])
            n_examples = len(tensors["baseline"])
            require_shape("values", tensors["values"], (len(sites), n_examples))
            require_shape("weights", tensors["weights"], (n_examples,))
            return cls(
                values=tensors["values"],
                baseline=tensors["baseline"],
                weights=tensors["weights"],
                sites=sites,
                settings=dict(stored["settings"]),
            )


def sweep(
    model: LensModel,
    data: Task | Tensor | Iterable[object],
    sites: Site | SiteSet | Iterable[Site],
    method: Method,
    *,
    metric: Metric | MetricFn | None = None,
    positions: Positions = "all",
    batch_size: int | None = None,
    engine: Engine | None = None,
    progress: Progress = True,
) -> SweepResult:
    """Metric of the model with each site ablated alone.

    ``effect[site, example] = values - baseline``; positive means that ablating raised the metric.

    Args:
        model: A TransformerLens model in evaluation mode; left exactly as it was.
        data: A ``Task``, or anything that makes one: tokens ``[example, pos]``, batches, a ``datasets.Dataset``.
        sites: Sites to ablate, one ablation each, several to a forward pass.
        method: What stands in the place of the activation, e.g. ``Mean(stats)``.
        metric: Instead of the task's own.
        positions: Which tokens are ablated: ``all``, ``all_but_first``, ``answer``, or indices ``[example, target]``.
        batch_size: Rows (examples x ablations) in a forward pass; chosen when ``None``.
        engine: Where finished parts are kept, who computes them, in which dtype; see ``Engine``.
        progress: ``True`` for a bar, ``False`` for silence, or a callable given ``(done, total)``.

    Returns:
        Values ``[site, example]`` and baseline ``[example]``, in the unit of the metric.

    Raises:
        HookDidNotFire: a site's hook ran a wrong number of times in a forward pass.
        StatisticsMismatch: ``method`` holds statistics of another model, weight processing or tokenizer.
        ValueError: model, data, sites and method do not fit together.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> result = la.sweep(model, la.tasks.ioi(model, n=16), la.heads(model), la.Zero(), progress=False)
        >>> result.values.shape
        torch.Size([32, 16])
    """
    task = as_task(data, model)
    task = task if metric is None else task.with_metric(metric)
    chosen = check_sites_exist(as_site_set(sites), model)
    with progress_bar(progress, len(chosen) * task.n_examples, f"sweep: {method.name}", "row") as advance:
        scores = run_variants(
            model,
            task,
            [Ablation(chosen, OneEach(len(chosen)), method)],
            positions=positions,
            batch_size=batch_size,
            engine=engine,
            advance=advance,
        )
    return SweepResult(
        values=scores.values,
        baseline=scores.baseline,
        weights=task.n_targets,
        sites=chosen,
        settings={**study_settings(model, task, positions), "method": method_settings(method), "engine": scores.how},
    )
