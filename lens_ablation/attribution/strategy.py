"""What every way of attributing has in common."""

from abc import abstractmethod
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from lens_ablation.attribution.attribution import Attribution
from lens_ablation.attribution.outputs import MaskOutputs, Setting
from lens_ablation.data.metrics import Metric
from lens_ablation.strategy import Strategy
from lens_ablation.studies.settings import method_settings, study_settings


class Attributor(Strategy):
    """A way of finding what each component adds; settings beside model, task and method."""

    @abstractmethod
    def rows(self, setting: Setting) -> int:
        """How many rows (masks times examples) will be reported as done."""

    @abstractmethod
    def attribute(self, setting: Setting, advance: Callable[[int], None]) -> Attribution:
        """Find the weights.

        Raises:
            ValueError: the setting does not suit this way of attributing.
        """


def finished(
    attributor: Attributor,
    setting: Setting,
    *,
    weights: Float[Tensor, "example component"],
    baseline: Float[Tensor, " example"],
    n_passes: int,
    intercept: Float[Tensor, " example"] | None = None,
    errors: Float[Tensor, "example component"] | None = None,
    held_out_correlation: Float[Tensor, " example"] | None = None,
    penalties: Float[Tensor, " example"] | None = None,
    outputs: MaskOutputs | None = None,
    more: Mapping[str, object] | None = None,
) -> Attribution:
    """An attribution with all that says how it was made; without an intercept, its line passes the baseline."""
    nothing = torch.full_like(baseline, float("nan"))
    return Attribution(
        weights=weights,
        intercept=baseline - weights.sum(dim=1) if intercept is None else intercept,
        errors=errors,
        held_out_correlation=nothing if held_out_correlation is None else held_out_correlation,
        penalties=nothing if penalties is None else penalties,
        baseline=baseline,
        components=setting.components,
        outputs=outputs,
        n_passes=n_passes,
        settings={
            **study_settings(setting.model, setting.task, setting.positions),
            "attributor": {"name": attributor.name, **attributor.settings},
            "methods": [method_settings(method) for method in setting.methods],
            "components": [repr(sites) for sites in setting.components.sets],
            **(more or {}),
        },
    )


def require_slopes(setting: Setting) -> None:
    """Refuse metrics that have no useful gradient.

    Raises:
        ValueError: the metric counts, so that its gradient is zero everywhere.
    """
    metric = setting.task.metric
    assert isinstance(metric, Metric)
    if metric.unit == "fraction":
        raise ValueError(
            f"metric {metric.name!r} has no gradient; attribute correct_margin, logit_difference or loss, or take "
            "Coar(estimator='ridge')"
        )
