"""Growing fractions of a set of sites ablated, under several methods on identical masks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_ablation.ablation import Positions
from lens_ablation.data.as_task import as_task
from lens_ablation.data.metrics import Metric, MetricFn
from lens_ablation.data.task import Task
from lens_ablation.engine.options import Engine
from lens_ablation.engine.removals import Ablation, Packed
from lens_ablation.engine.variants import run_variants
from lens_ablation.files import read_folder, reading, require_shape, write_folder
from lens_ablation.methods.method import Method
from lens_ablation.models.protocol import LensModel
from lens_ablation.progress import Progress, progress_bar
from lens_ablation.sites import Site, SiteSet, as_site_set, check_sites_exist
from lens_ablation.studies.intervals import weighted_mean
from lens_ablation.studies.masks import Order, Rounding, nested_removals
from lens_ablation.studies.settings import method_settings, named_methods, study_settings

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

TENTHS = tuple(i / 10 for i in range(11))
"""0 %, 10 %, ..., 100 %."""

_FILE_KIND = "pruning-curve"


@dataclass(frozen=True, eq=False, kw_only=True)
class PruningCurve:
    """The metric as growing parts of a site set are ablated.

    Attributes:
        values: ``[method, seed, fraction, example]``, in the metric's unit.
        baseline: The untouched model, ``[example]``.
        weights: Targets of each example, ``[example]``; means over examples are weighted by it.
        fractions: Nominal fractions.
        n_removed: Sites really removed at each fraction, of ``n_sites``.
        methods: Names of the methods.
        seeds: Seeds of the removal orders.
        settings: Model, task, metric, methods, order, positions and versions behind the numbers.
    """

    values: Float[Tensor, "method seed fraction example"]
    baseline: Float[Tensor, " example"]
    weights: Int[Tensor, " example"]
    fractions: tuple[float, ...]
    n_removed: tuple[int, ...]
    n_sites: int
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, object]

    @property
    def mean(self) -> Float[Tensor, "method seed fraction"]:
        """Mean metric over examples."""
        return weighted_mean(self.values, self.weights)

    def to_dataframe(self) -> pd.DataFrame:
        """One row to a method, seed and fraction."""
        mean = self.mean
        return pd.DataFrame(
            [
                {
                    "method": method,
                    "seed": seed,
                    "fraction": fraction,
                    "n_removed": removed,
                    str(self.settings["metric"]): float(mean[m, s, f]),
                }
                for m, method in enumerate(self.methods)
                for s, seed in enumerate(self.seeds)
                for f, (fraction, removed) in enumerate(zip(self.fractions, self.n_removed, strict=True))
            ]
        )

    def plot(self) -> "Figure":
        """Metric against fraction, a line and a band over seeds for each method."""
        from lens_ablation.plots.curves import pruning_figure

        return pruning_figure(self)

    def save(self, folder: str | Path) -> Path:
        """Write the result to a new folder: tensors as safetensors, settings as JSON."""
        tensors = {"values": self.values, "baseline": self.baseline, "weights": self.weights}
        plain = {
            "fractions": list(self.fractions),
            "n_removed": list(self.n_removed),
            "n_sites": self.n_sites,
            "methods": list(self.methods),
            "seeds": list(self.seeds),
            "settings": self.settings,
        }
        return write_folder(folder, _FILE_KIND, tensors, plain)

    @classmethod
    def load(cls, folder: str | Path) -> "PruningCurve":
        """Read a result that ``save`` wrote; needs no model.

        Raises:
            DamagedFile: the folder holds something else, or was changed.
        """
        tensors, plain = read_folder(folder, _FILE_KIND)
        with reading(folder):
            curve = cls(
                values=tensors["values"],
                baseline=tensors["baseline"],
                weights=tensors["weights"],
                fractions=tuple(float(fraction) for fraction in plain["fractions"]),
                n_removed=tuple(int(n) for n in plain["n_removed"]),
                n_sites=int(plain["n_sites"]),
                methods=tuple(str(method) for method in plain["methods"]),
                seeds=tuple(int(seed) for seed in plain["seeds"]),
                settings=dict(plain["settings"]),
            )
            sizes = len(curve.methods), len(curve.seeds), len(curve.fractions), len(curve.baseline)
            require_shape("values", curve.values, sizes)
            require_shape("weights", curve.weights, sizes[3:])
            require_shape("n_removed", torch.tensor(curve.n_removed), sizes[2:3])
            return curve


def pruning_curve(
    model: LensModel,
    data: Task | Tensor | Iterable[object],
    sites: SiteSet | Iterable[Site],
    methods: Method | Sequence[Method] | Mapping[str, Method],
    *,
    fractions: Sequence[float] = TENTHS,
    seeds: Sequence[int] = (42, 123, 456),
    order: Order = "random_per_layer",
    rounding: Rounding = "total",
    metric: Metric | MetricFn | None = None,
    positions: Positions = "all",
    batch_size: int | None = None,
    engine: Engine | None = None,
    progress: Progress = True,
) -> PruningCurve:
    """Metric of the model as growing fractions of ``sites`` are ablated together.

    Every method sees the same nested masks; each seed draws its own.

    Args:
        model: A TransformerLens model in evaluation mode; left exactly as it was.
        data: A ``Task``, or anything that makes one.
        sites: Sites to remove from.
        methods: What stands in the place of the activations; several are compared, by their own names or by
            names of yours: ``{"zero": Zero(), ...}``.
        fractions: Shares of the sites removed, rising.
        seeds: One removal order to a seed; with scores as ``order`` only the first is used.
        order: ``random_per_layer``, ``random``, or scores ``[site]``, of which the highest go first.
        rounding: ``total``, or ``step`` for the paper's count.
        metric: Instead of the task's own.
        positions: Which tokens are ablated.
        batch_size: Rows in a forward pass; chosen when ``None``.
        engine: Where finished parts are kept, who computes them, in which dtype; see ``Engine``.
        progress: ``True`` for a bar, ``False`` for silence, or a callable given ``(done, total)``.

    Raises:
        HookDidNotFire: an ablation fired a wrong number of times.
        ValueError: model, data, sites and methods do not fit together.

    Reference:
        Pochinkov et al., *Investigating Neuron Ablation in Attention Heads*, 2024, arXiv:2408.17322, section 4.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> curve = la.pruning_curve(
        ...     model, la.tasks.ioi(model, n=8), la.heads(model), [la.Zero()], seeds=(0,), progress=False
        ... )
        >>> curve.values.shape
        torch.Size([1, 1, 11, 8])
    """
    task = as_task(data, model)
    task = task if metric is None else task.with_metric(metric)
    chosen = check_sites_exist(as_site_set(sites), model)
    compared = named_methods(methods)
    used_seeds = tuple(seeds[:1]) if isinstance(order, Tensor) else tuple(seeds)
    if not used_seeds:
        raise ValueError("no seeds were given; pass at least one")
    masks = np.stack([nested_removals(chosen, fractions, order, seed, rounding) for seed in used_seeds])
    for method in compared.values():
        method.prepare(model, chosen.hook_points, torch.arange(min(1, task.n_examples)))
    removed = Packed.of(masks.reshape(-1, len(chosen)))
    total = len(compared) * masks.shape[0] * masks.shape[1] * task.n_examples
    with progress_bar(progress, total, "pruning curve", "row") as advance:
        scores = [
            run_variants(
                model,
                task,
                [Ablation(chosen, removed, method)],
                positions=positions,
                batch_size=batch_size,
                engine=None if engine is None else engine.part(f"method-{place}"),
                advance=advance,
            )
            for place, method in enumerate(compared.values())
        ]
    return PruningCurve(
        values=torch.stack([part.values for part in scores]).reshape(len(compared), *masks.shape[:2], task.n_examples),
        baseline=scores[0].baseline,
        weights=task.n_targets,
        fractions=tuple(float(f) for f in fractions),
        n_removed=tuple(int(n) for n in masks[0].sum(axis=1)),
        n_sites=len(chosen),
        methods=tuple(compared),
        seeds=used_seeds,
        settings={
            **study_settings(model, task, positions),
            "methods": [method_settings(method) for method in compared.values()],
            "kind": chosen.kind,
            "order": order if isinstance(order, str) else "scores",
            "rounding": rounding,
            "sites": repr(chosen),
            "engine": [part.how for part in scores],
        },
    )
