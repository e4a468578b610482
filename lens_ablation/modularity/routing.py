"""Only some experts of each layer at each token: how much of them does a task need?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_ablation.data.metrics import Metric, MetricFn
from lens_ablation.data.task import Task
from lens_ablation.engine.options import Engine
from lens_ablation.engine.removals import Ablation, Packed
from lens_ablation.engine.variants import run_variants
from lens_ablation.files import read_folder, reading, require_shape, write_folder
from lens_ablation.methods.method import Method, Replacement, Request
from lens_ablation.models.protocol import LensModel
from lens_ablation.modularity.experts import Experts
from lens_ablation.progress import Progress, progress_bar
from lens_ablation.sites import HookPoint
from lens_ablation.studies.intervals import weighted_mean
from lens_ablation.studies.settings import study_settings

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_FILE_KIND = "routed-quality"

ScoreBy = Literal["positive", "abs"]
"""An expert's score at a token: the sum of ``relu(z)`` over its neurons, as in the paper, or of ``|z|``."""


@dataclass(frozen=True, eq=False)
class Routed(Method):
    """The activation itself in the experts with the highest scores at a token, zero in all others.

    Attributes:
        experts: The experts.
        kept: How many of a layer are kept.
        by: Their score.
    """

    experts: Experts
    kept: int
    by: ScoreBy = "positive"

    @property
    def settings(self) -> Mapping[str, object]:
        return {"experts": self.experts.digest, "kept": self.kept, "by": self.by}

    def prepare(
        self, model: LensModel, points: Sequence[HookPoint], examples: Int[Tensor, " example"] | None = None
    ) -> Replacement:
        self.experts.require_model(model)
        labels = {point: torch.from_numpy(self.experts.of_layer(point.layer)) for point in points}

        def replacement(request: Request) -> Tensor:
            z = request.activation
            assert z is not None
            own = labels[request.point].to(z.device)
            used = z.clamp(min=0) if self.by == "positive" else z.abs()
            sums = torch.zeros(*z.shape[:-1], self.experts.n_experts, dtype=z.dtype, device=z.device)
            best = sums.index_add(-1, own, used).topk(self.kept, dim=-1).indices
            kept = torch.zeros_like(sums, dtype=torch.bool).scatter(-1, best, True)
            return torch.where(kept[..., own], z, torch.zeros_like(z))

        return replacement


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class RoutedQuality:
    """The metric with some experts at each token.

    Attributes:
        values: ``[split, kept, example]``, in the metric's unit.
        baseline: Of the untouched model, ``[example]``.
        weights: Targets of each example.
        splits: Names of the ways of splitting.
        kept: Experts kept in each layer.
        n_experts: Of how many.
        settings: Model, task, metric and versions behind the numbers.
    """

    values: Float[Tensor, "split kept example"]
    baseline: Float[Tensor, " example"]
    weights: Int[Tensor, " example"]
    splits: tuple[str, ...]
    kept: tuple[int, ...]
    n_experts: int
    settings: Mapping[str, object]

    @property
    def mean(self) -> Float[Tensor, "split kept"]:
        """Mean metric over examples."""
        return weighted_mean(self.values.double(), self.weights)

    @property
    def share_of_baseline(self) -> Float[Tensor, "split kept"]:
        """``mean`` over that of the untouched model."""
        return self.mean / weighted_mean(self.baseline.double(), self.weights)

    def to_dataframe(self) -> pd.DataFrame:
        """One row to a way of splitting and a number of experts."""
        return pd.DataFrame(
            [
                {
                    "split": split,
                    "kept": kept,
                    "share": kept / self.n_experts,
                    "value": float(self.mean[s, k]),
                    "of baseline": float(self.share_of_baseline[s, k]),
                }
                for s, split in enumerate(self.splits)
                for k, kept in enumerate(self.kept)
            ]
        )

    def plot(self) -> "Figure":
        """The metric against the share of experts used, a line to a way of splitting."""
        from lens_ablation.plots.modularity import routing_figure

        return routing_figure(self)

    def save(self, folder: str | Path) -> Path:
        """Write the result to a new folder: tensors as safetensors, settings as JSON."""
        tensors = {"values": self.values, "baseline": self.baseline, "weights": self.weights}
        plain = {"splits": list(self.splits), "kept": list(self.kept), "n_experts": self.n_experts}
        return write_folder(folder, _FILE_KIND, tensors, {**plain, "settings": self.settings})

    @classmethod
    def load(cls, folder: str | Path) -> "RoutedQuality":
        """Read a result that ``save`` wrote; needs no model.

        Raises:
            DamagedFile: the folder holds something else, or was changed.
        """
        tensors, plain = read_folder(folder, _FILE_KIND)
        with reading(folder):
            found = cls(
                values=tensors["values"],
                baseline=tensors["baseline"],
                weights=tensors["weights"],
                splits=tuple(str(split) for split in plain["splits"]),
                kept=tuple(int(n) for n in plain["kept"]),
                n_experts=int(plain["n_experts"]),
                settings=dict(plain["settings"]),
            )
            n_examples = len(found.baseline)
            require_shape("values", found.values, (len(found.splits), len(found.kept), n_examples))
            require_shape("weights", found.weights, (n_examples,))
            return found

    def __repr__(self) -> str:
        kept = ", ".join(map(str, self.kept))
        return f"RoutedQuality({', '.join(self.splits)}: {kept} of {self.n_experts} experts)"


def routed_quality(
    model: LensModel,
    task: Task,
    experts: Experts | Mapping[str, Experts],
    kept: Sequence[int],
    *,
    by: ScoreBy = "positive",
    metric: Metric | MetricFn | None = None,
    batch_size: int | None = None,
    engine: Engine | None = None,
    progress: Progress = True,
) -> RoutedQuality:
    """The metric when only the best experts of each layer are used at each token, chosen by their true activations.

    Later layers choose by the activations that the earlier, cut ones give.

    Args:
        model: The model that was split.
        task: Examples and the metric.
        experts: One split, or several by name: a random one is what the others are to be compared with.
        kept: How many experts are used, for example ``(1, 2, 4, 8)``.
        by: ``positive`` (the sum of ``relu(z)``, as in the paper) or ``abs`` (of ``|z|``).
        metric: Instead of the task's own.
        batch_size: Rows in a forward pass; chosen when ``None``.
        engine: Where finished parts are kept, who computes them; see ``Engine``.
        progress: ``True`` for a bar, ``False`` for silence, or a callable given ``(done, total)``.

    Raises:
        StatisticsMismatch: the experts are those of another model.
        ValueError: splits have different numbers of experts or layers, or ``kept`` are not among them.

    Reference:
        Zhang et al., 2022, arXiv:2110.01786, the router called ground truth.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-vit")
        >>> experts = la.split_into_experts(model, None, 8, la.RandomSplit(), progress=False)
        >>> la.routed_quality(model, la.tasks.digits(model, n=8), experts, kept=(2, 8), progress=False)
        RoutedQuality(RandomSplit: 2, 8 of 8 experts)
    """
    splits = {experts.split_name: experts} if isinstance(experts, Experts) else dict(experts)
    if not splits or len({(one.n_experts, one.layers) for one in splits.values()}) > 1:
        raise ValueError("give splits of the same layers into as many experts, one or several by name")
    first = next(iter(splits.values()))
    if not kept or not all(1 <= n <= first.n_experts for n in kept) or by not in ("positive", "abs"):
        raise ValueError(f"kept lie in 1..{first.n_experts} and by is positive or abs; got {list(kept)} and {by!r}")
    asked = task if metric is None else task.with_metric(metric)
    everything = Packed.of(np.ones((1, len(first.sites)), dtype=bool))
    values: list[Tensor] = []
    baseline = torch.zeros(asked.n_examples)
    with progress_bar(progress, len(splits) * len(kept) * asked.n_examples, "routing", "row") as advance:
        for place, one in enumerate(splits.values()):
            for n in kept:
                scores = run_variants(
                    model,
                    asked,
                    [Ablation(one.sites, everything, Routed(one, n, by))],
                    batch_size=batch_size,
                    engine=None if engine is None else engine.part(f"split-{place}-kept-{n}"),
                    advance=advance,
                )
                values.append(scores.values[0])
                baseline = scores.baseline
    return RoutedQuality(
        values=torch.stack(values).reshape(len(splits), len(kept), -1),
        baseline=baseline,
        weights=asked.n_targets,
        splits=tuple(splits),
        kept=tuple(kept),
        n_experts=first.n_experts,
        settings={**study_settings(model, asked, "all"), "by": by, "layers": list(first.layers)},
    )
