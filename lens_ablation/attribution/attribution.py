"""Attributions: for each example a linear model of its output in what is kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_ablation.attribution.outputs import MaskOutputs, Slopes
from lens_ablation.attribution.regression import predicted
from lens_ablation.components import Components
from lens_ablation.engine.removals import Packed
from lens_ablation.errors import StatisticsMismatch
from lens_ablation.files import read_folder, reading, require_shape, write_folder
from lens_ablation.models.fingerprint import fingerprint
from lens_ablation.models.protocol import LensModel
from lens_ablation.studies.intervals import Interval, bootstrap_interval

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_FILE_KIND = "attribution"


@dataclass(frozen=True, eq=False, kw_only=True)
class Attribution:
    """What each component adds to each example's output: ``output = intercept + sum of weights of what is kept``.

    A positive weight means that keeping the component raises the metric.

    Attributes:
        weights: ``[example, component]``, in the metric's unit.
        intercept: ``[example]``.
        errors: Standard errors of the weights; ``None`` where the method has none.
        held_out_correlation: Pearson r over masks of outputs and predictions that did not see them, ``[example]``;
            NaN where the method saw no masks, or where an output never changed.
        penalties: Penalty of each example's regression; infinite where it added nothing, NaN where there was none.
        baseline: The untouched model, ``[example]``.
        components: Which components, in the order of the weights.
        outputs: The masks and outputs behind a fit, to be fitted again; ``None`` for methods without masks.
        n_passes: Forward passes over the examples, a forward and a backward pass counting three.
        settings: Model, task, method, masks, estimator and versions behind the numbers.
    """

    weights: Float[Tensor, "example component"]
    intercept: Float[Tensor, " example"]
    errors: Float[Tensor, "example component"] | None
    held_out_correlation: Float[Tensor, " example"]
    penalties: Float[Tensor, " example"]
    baseline: Float[Tensor, " example"]
    components: Components
    outputs: MaskOutputs | None
    n_passes: int
    settings: Mapping[str, object]

    @property
    def mean(self) -> Float[Tensor, " component"]:
        """Mean weight over examples."""
        return self.weights.mean(dim=0)

    def interval(self, confidence: float = 0.95, seed: int = 0) -> Interval:
        """Bootstrap interval of the mean weight over examples, ``[component]`` each end."""
        return bootstrap_interval(self.weights.T, torch.ones(len(self.weights)), confidence=confidence, seed=seed)

    def predict(self, removed: Bool[np.ndarray, "mask component"]) -> Float[Tensor, "mask example"]:
        """Outputs that the linear models expect when ``removed`` is ablated.

        Raises:
            ValueError: there are not as many columns as components.
        """
        if removed.shape[1] != len(self.components):
            raise ValueError(f"removed has {removed.shape[1]} columns for {len(self.components)} components")
        return predicted(Packed.of(removed), self.weights, self.intercept)

    def strongest(self, k: int = 10) -> pd.DataFrame:
        """The ``k`` components with the largest mean weight in size."""
        order = np.argsort(-np.abs(self.mean.numpy()), kind="stable")
        return self.to_dataframe().take(order[:k].tolist())

    def to_dataframe(self) -> pd.DataFrame:
        """One row to a component: mean weight over examples, its interval, its layer."""
        low, high = self.interval()
        return pd.DataFrame(
            {
                "component": self.components.names,
                "layer": self.components.layers,
                "weight": self.mean.numpy(),
                "low": low.numpy(),
                "high": high.numpy(),
            }
        )

    def plot(self) -> "Figure":
        """The components with the largest mean weights, as bars with the interval of the mean over examples."""
        from lens_ablation.plots.attribution import attribution_figure

        return attribution_figure(self)

    def require_model(self, model: LensModel) -> None:
        """Refuse another model than the one attributed.

        Raises:
            StatisticsMismatch: its weights differ.
        """
        if fingerprint(model) != self.settings["model_fingerprint"]:
            raise StatisticsMismatch(
                f"this attribution is of {self.settings['model']} with other weights; attribute this model, or pass "
                "the one that was attributed"
            )

    def save(self, folder: str | Path) -> Path:
        """Write the attribution to a new folder: tensors as safetensors, settings as JSON."""
        return write_folder(folder, _FILE_KIND, _tensors(self), _plain(self))

    @classmethod
    def load(cls, folder: str | Path) -> "Attribution":
        """Read an attribution that ``save`` wrote; needs no model.

        Raises:
            DamagedFile: the folder holds something else, or was changed.
        """
        tensors, plain = read_folder(folder, _FILE_KIND)
        with reading(folder):
            found = cls(
                weights=tensors["weights"],
                intercept=tensors["intercept"],
                errors=tensors.get("errors"),
                held_out_correlation=tensors["held_out_correlation"],
                penalties=tensors["penalties"],
                baseline=tensors["baseline"],
                components=Components.from_stored(tensors, plain["sets"]),
                outputs=_outputs(tensors, plain),
                n_passes=int(plain["n_passes"]),
                settings=dict(plain["settings"]),
            )
            n_examples = len(found.baseline)
            require_shape("weights", found.weights, (n_examples, len(found.components)))
            for name in ("intercept", "held_out_correlation", "penalties"):
                require_shape(name, getattr(found, name), (n_examples,))
            return found


def _tensors(found: Attribution) -> dict[str, Tensor]:
    tensors = {
        "weights": found.weights,
        "intercept": found.intercept,
        "held_out_correlation": found.held_out_correlation,
        "penalties": found.penalties,
        "baseline": found.baseline,
    }
    if found.errors is not None:
        tensors["errors"] = found.errors
    tensors |= found.components.addresses
    if found.outputs is not None:
        tensors["masks"] = torch.from_numpy(found.outputs.removed.bits)
        tensors["values"] = found.outputs.values
        if found.outputs.slopes is not None:
            slopes = found.outputs.slopes
            tensors |= {"kept": slopes.kept, "ablated": slopes.ablated, "slope_errors": slopes.errors}
    return tensors


def _plain(found: Attribution) -> dict[str, object]:
    return {
        "sets": found.components.described,
        "n_passes": found.n_passes,
        "n_gradient": 0 if found.outputs is None else found.outputs.n_gradient,
        "settings": found.settings,
    }


def _outputs(tensors: Mapping[str, Tensor], plain: Mapping[str, object]) -> MaskOutputs | None:
    if "masks" not in tensors:
        return None
    slopes = None
    if "kept" in tensors:
        slopes = Slopes(kept=tensors["kept"], ablated=tensors["ablated"], errors=tensors["slope_errors"])
    return MaskOutputs(
        removed=Packed(tensors["masks"].numpy(), tensors["weights"].shape[1]),
        values=tensors["values"],
        baseline=tensors["baseline"],
        slopes=slopes,
        n_gradient=int(str(plain["n_gradient"])),
    )
