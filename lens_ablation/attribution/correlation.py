"""How well attributions predict ablations that they did not see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_ablation.ablation import Positions
from lens_ablation.attribution.attribute import methods_of
from lens_ablation.attribution.attribution import Attribution
from lens_ablation.attribution.outputs import Setting, mask_outputs
from lens_ablation.components import Sampling, draw_removals
from lens_ablation.data.task import Task
from lens_ablation.engine.options import Engine
from lens_ablation.files import read_folder, reading, require_shape, write_folder
from lens_ablation.methods.method import Method
from lens_ablation.models.protocol import LensModel
from lens_ablation.progress import Progress, progress_bar
from lens_ablation.studies.correlations import pearson
from lens_ablation.studies.intervals import Interval, bootstrap_interval
from lens_ablation.studies.settings import method_settings

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_FILE_KIND = "counterfactual-correlation"
_FRESH = 2**31
"""Added to the seed, so that masks are never those of an attribution with the same seed."""


@dataclass(frozen=True, eq=False, kw_only=True)
class CounterfactualCorrelation:
    """Pearson correlation, over fresh masks, of outputs with what attributions predict.

    Attributes:
        values: ``[attribution, fraction, example]``; NaN where an output or a prediction never changed.
        attributions: Their names.
        fractions: Ablated fractions of the fresh masks.
        n_passes: What each attribution cost.
        settings: Model, task, method and masks behind the numbers.
    """

    values: Float[Tensor, "attribution fraction example"]
    attributions: tuple[str, ...]
    fractions: tuple[float, ...]
    n_passes: tuple[int, ...]
    settings: Mapping[str, object]

    @property
    def mean(self) -> Float[Tensor, "attribution fraction"]:
        """Mean over the examples whose outputs change."""
        return self.values.nanmean(dim=2)

    def interval(self, confidence: float = 0.95, seed: int = 0) -> Interval:
        """Bootstrap interval of the mean over examples, ``[attribution, fraction]`` each end."""
        defined = torch.isfinite(self.values)
        filled = torch.where(defined, self.values, self.mean[:, :, None])
        return bootstrap_interval(filled, torch.ones(self.values.shape[2]), confidence=confidence, seed=seed)

    def to_dataframe(self) -> pd.DataFrame:
        """One row to an attribution and fraction."""
        low, high = self.interval()
        return pd.DataFrame(
            [
                {
                    "attribution": name,
                    "fraction": fraction,
                    "n_passes": self.n_passes[a],
                    "correlation": float(self.mean[a, f]),
                    "low": float(low[a, f]),
                    "high": float(high[a, f]),
                }
                for a, name in enumerate(self.attributions)
                for f, fraction in enumerate(self.fractions)
            ]
        )

    def plot(self) -> "Figure":
        """Mean correlation against the ablated fraction, a line and a band for each attribution."""
        from lens_ablation.plots.attribution import correlation_figure

        return correlation_figure(self)

    def save(self, folder: str | Path) -> Path:
        """Write the result to a new folder: tensors as safetensors, settings as JSON."""
        plain = {
            "attributions": list(self.attributions),
            "fractions": list(self.fractions),
            "n_passes": list(self.n_passes),
            "settings": self.settings,
        }
        return write_folder(folder, _FILE_KIND, {"values": self.values}, plain)

    @classmethod
    def load(cls, folder: str | Path) -> "CounterfactualCorrelation":
        """Read a result that ``save`` wrote; needs no model.

        Raises:
            DamagedFile: the folder holds something else, or was changed.
        """
        tensors, plain = read_folder(folder, _FILE_KIND)
        with reading(folder):
            found = cls(
                values=tensors["values"],
                attributions=tuple(str(name) for name in plain["attributions"]),
                fractions=tuple(float(fraction) for fraction in plain["fractions"]),
                n_passes=tuple(int(n) for n in plain["n_passes"]),
                settings=dict(plain["settings"]),
            )
            n_examples = found.values.shape[-1]
            require_shape("values", found.values, (len(found.attributions), len(found.fractions), n_examples))
            return found


def counterfactual_correlation(
    attributions: Attribution | Mapping[str, Attribution],
    model: LensModel,
    task: Task,
    ablated_fraction: float | Sequence[float] = 0.1,
    n_masks: int = 100,
    *,
    method: Method | Sequence[Method] | None = None,
    sampling: Sampling = "bernoulli",
    seed: int = 0,
    positions: Positions = "all",
    batch_size: int | None = None,
    engine: Engine | None = None,
    progress: Progress = True,
) -> CounterfactualCorrelation:
    """How well attributions predict outputs under fresh random ablations.

    Several attributions of the same components are judged on the same masks.

    Args:
        attributions: One, or several by name.
        model: The model that was attributed.
        task: The examples that were attributed, in their order, with the same metric.
        ablated_fraction: Share of components that a fresh mask ablates; several are tried.
        n_masks: Fresh masks for each fraction.
        method: What stands in the place of an ablated activation; as in ``attribute``.
        sampling: As in ``Coar``.
        seed: Draws the masks, never the same as those of an attribution.
        positions: Which tokens are ablated.
        batch_size: Rows in a forward pass; chosen when ``None``.
        engine: Where finished parts are kept, who computes them; see ``Engine``.
        progress: ``True`` for a bar, ``False`` for silence, or a callable given ``(done, total)``.

    Raises:
        StatisticsMismatch: an attribution is of another model.
        ValueError: attributions are of other examples, components or metrics, or there are too few masks.

    Reference:
        Shah, Ilyas, Madry, 2024, arXiv:2404.11534, section 4.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-vit")
        >>> task = la.tasks.digits(model, n=8).with_metric(la.metrics.correct_margin)
        >>> found = la.attribute(model, task, la.heads(model), la.Coar(n_masks=16), progress=False)
        >>> la.counterfactual_correlation(found, model, task, n_masks=20, progress=False).mean.shape
        torch.Size([1, 1])
    """
    compared = {"attribution": attributions} if isinstance(attributions, Attribution) else dict(attributions)
    _require_comparable(compared, model, task, positions)
    if n_masks < 3:
        raise ValueError(f"{n_masks} masks give no correlation; take at least 3")
    fractions = tuple(ablated_fraction) if isinstance(ablated_fraction, Sequence) else (ablated_fraction,)
    components = next(iter(compared.values())).components
    setting = Setting(
        model=model,
        task=task,
        components=components,
        methods=methods_of(method, components),
        positions=positions,
        batch_size=batch_size,
        engine=engine or Engine(),
    )
    values = torch.empty(len(compared), len(fractions), task.n_examples)
    with progress_bar(progress, len(fractions) * n_masks * task.n_examples, "fresh ablations", "row") as advance:
        for f, fraction in enumerate(fractions):
            removed = draw_removals(n_masks, len(components), fraction, sampling, seed + _FRESH)
            part = replace(setting, engine=setting.engine.part(f"fraction-{fraction:g}"))
            found = mask_outputs(part, removed, 0, advance).values
            for a, attribution in enumerate(compared.values()):
                values[a, f] = pearson(attribution.predict(removed), found, dim=0)
    return CounterfactualCorrelation(
        values=values,
        attributions=tuple(compared),
        fractions=tuple(float(fraction) for fraction in fractions),
        n_passes=tuple(attribution.n_passes for attribution in compared.values()),
        settings={
            "model_fingerprint": next(iter(compared.values())).settings["model_fingerprint"],
            "task_fingerprint": task.fingerprint,
            "metric": next(iter(compared.values())).settings["metric"],
            "methods": [method_settings(one) for one in setting.methods],
            "n_masks": n_masks,
            "sampling": sampling,
            "seed": seed,
        },
    )


def _require_comparable(
    compared: Mapping[str, Attribution], model: LensModel, task: Task, positions: Positions
) -> None:
    if not compared:
        raise ValueError("no attributions were given; pass one, or several by name")
    first = next(iter(compared.values()))
    for name, attribution in compared.items():
        attribution.require_model(model)
        if attribution.settings["task_fingerprint"] != task.fingerprint:
            raise ValueError(f"attribution {name!r} is of other examples than this task; pass the same task")
        if attribution.settings["metric"] != getattr(task.metric, "name", None):
            raise ValueError(
                f"attribution {name!r} is of {attribution.settings['metric']} and this task is scored by "
                f"{getattr(task.metric, 'name', None)}; use task.with_metric(...)"
            )
        ablated = positions if isinstance(positions, str) else positions.tolist()
        if attribution.settings["positions"] != ablated:
            raise ValueError(
                f"attribution {name!r} ablated the positions {attribution.settings['positions']!r}, not {ablated!r}; "
                "pass the same positions="
            )
        if attribution.components.digest != first.components.digest:
            raise ValueError(f"attribution {name!r} has other components than {next(iter(compared))!r}")
