"""COAR: component attribution by regression on random ablations."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_ablation.attribution.attribution import Attribution
from lens_ablation.attribution.outputs import BACKWARD_COST, MaskOutputs, Setting, Slopes, mask_outputs
from lens_ablation.attribution.regression import LinearFit, fit_lasso, fit_ridge, predicted
from lens_ablation.attribution.strategy import Attributor, finished, require_slopes
from lens_ablation.components import Sampling, draw_removals
from lens_ablation.errors import BadActivation
from lens_ablation.methods.method import SHAH_2024
from lens_ablation.studies.correlations import pearson

log = logging.getLogger(__name__)

Estimator = Literal["expected_gradient", "ridge", "lasso"]

ENOUGH_PASSES = 4
"""Forward passes to a component from which on plain regression predicts as well as slopes, measured on the embedded
models (heads and whole layers)."""

LEAST_MASKS = 4
"""Fewer masks have no held-out error worth the name."""


@dataclass(frozen=True)
class Coar(Attributor):
    """What each component adds, on average over random ablations of the others.

    ``ridge`` and ``lasso`` regress outputs on masks, as the paper does. ``expected_gradient`` averages, over the same
    kind of masks, the slope of the output in every component's keep gate, where it is kept and where it is ablated,
    and corrects the result by ridge regression of what it leaves unexplained. It needs many times fewer passes, and
    a metric that has a gradient. Where its passes are several to a component, they are better spent on forward passes
    alone: then it runs three masks for each of ``n_masks`` and regresses.

    Attributes:
        n_masks: Random masks.
        ablated_fraction: Share of the components that a mask ablates.
        sampling: ``bernoulli`` or ``fixed``, always the same number of components.
        estimator: ``expected_gradient``, ``ridge`` or ``lasso``.
        gradient_masks: Of how many masks slopes are taken, for ``expected_gradient``; ``None`` for all, or for none
            where there are few components.
        seed: Draws the masks.

    Raises:
        ValueError: an option that does not exist, or that does not go with another.

    Reference:
        Shah, Ilyas, Madry, *Decomposing and Editing Predictions by Modeling Model Computation*, 2024,
        arXiv:2404.11534, section 3. The gradient estimator is our own.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-vit")
        >>> task = la.tasks.digits(model, n=8).with_metric(la.metrics.correct_margin)
        >>> found = la.attribute(model, task, la.heads(model), la.Coar(n_masks=16), progress=False)
        >>> found.weights.shape
        torch.Size([8, 16])
    """

    n_masks: int = 128
    ablated_fraction: float = 0.1
    sampling: Sampling = "bernoulli"
    estimator: Estimator = "expected_gradient"
    gradient_masks: int | None = None
    seed: int = 0
    bibtex: ClassVar[str] = SHAH_2024

    def __post_init__(self) -> None:
        if self.estimator not in ("expected_gradient", "ridge", "lasso"):
            raise ValueError(f"estimator must be expected_gradient, ridge or lasso, got {self.estimator!r}")
        if self.n_masks < LEAST_MASKS:
            raise ValueError(f"n_masks is {self.n_masks}; take at least {LEAST_MASKS}")
        if self.gradient_masks is not None:
            if self.estimator != "expected_gradient":
                raise ValueError(f"gradient_masks goes with estimator='expected_gradient', not {self.estimator!r}")
            if not 1 <= self.gradient_masks <= self.n_masks:
                raise ValueError(f"gradient_masks must lie in 1..n_masks ({self.n_masks}), got {self.gradient_masks}")

    @property
    def name(self) -> str:
        return {"expected_gradient": "COAR (expected gradient)", "ridge": "COAR (ridge)", "lasso": "COAR (lasso)"}[
            self.estimator
        ]

    def _name_of(self, outputs: MaskOutputs) -> str:
        """What was done: without slopes, as with few components, it was ridge regression."""
        fell_back = self.estimator == "expected_gradient" and outputs.slopes is None
        return replace(self, estimator="ridge", gradient_masks=None).name if fell_back else self.name

    def plan(self, n_components: int) -> tuple[int, int]:
        """How many masks are run, and of how many of them slopes are taken."""
        if self.estimator != "expected_gradient":
            return self.n_masks, 0
        if self.gradient_masks is not None:
            return self.n_masks, self.gradient_masks
        passes = BACKWARD_COST * self.n_masks
        return (passes, 0) if passes >= ENOUGH_PASSES * n_components else (self.n_masks, self.n_masks)

    @property
    def settings(self) -> Mapping[str, object]:
        return {
            "n_masks": self.n_masks,
            "ablated_fraction": self.ablated_fraction,
            "sampling": self.sampling,
            "estimator": self.estimator,
            "gradient_masks": self.gradient_masks,
            "seed": self.seed,
        }

    def rows(self, setting: Setting) -> int:
        return self.plan(len(setting.components))[0] * setting.task.n_examples

    def attribute(self, setting: Setting, advance: Callable[[int], None]) -> Attribution:
        n_components = len(setting.components)
        n_masks, n_gradient = self.plan(n_components)
        if self.estimator == "expected_gradient":
            require_slopes(setting)
        removed = draw_removals(n_masks, n_components, self.ablated_fraction, self.sampling, self.seed)
        return self.fit(setting, mask_outputs(setting, removed, n_gradient, advance))

    def fit(self, setting: Setting, outputs: MaskOutputs) -> Attribution:
        """Weights from outputs that were collected before; slopes are used where there are some.

        Raises:
            BadActivation: an output is not finite.
            ValueError: no output changes.
        """
        _require_finite(outputs.values)
        constant = _constant_examples(outputs.values)
        if self.estimator == "expected_gradient" and outputs.slopes is not None:
            fit = _fit_gradients(outputs, outputs.slopes)
        elif self.estimator == "lasso":
            fit = fit_lasso(outputs.removed, outputs.values)
        else:
            fit = fit_ridge(outputs.removed, outputs.values)
        # of large fits some masks only
        left_out = torch.isfinite(fit.held_out).all(dim=1)
        correlation = pearson(fit.held_out[left_out], outputs.values[left_out], dim=0).float()
        correlation[constant] = float("nan")
        return finished(
            self,
            setting,
            weights=fit.weights,
            baseline=outputs.baseline,
            n_passes=outputs.n_passes,
            intercept=fit.intercept,
            errors=fit.errors,
            held_out_correlation=correlation,
            penalties=fit.penalties,
            outputs=outputs,
            more={
                "attributor": {"name": self._name_of(outputs), **self.settings},
                "ablated_fraction": self.ablated_fraction,
                "slopes_from": outputs.n_gradient,
                "masks": len(outputs.values),
                **_remarks(outputs, constant, setting),
            },
        )


def _fit_gradients(outputs: MaskOutputs, found: Slopes) -> LinearFit:
    """Mean slopes of both ends, and ridge on what they leave unexplained.

    The slopes are scaled by one number for each example, the least-squares slope of outputs on what they predict.
    """
    slopes = found.both
    expected = predicted(outputs.removed, slopes, torch.zeros(len(slopes)))
    scale = _least_squares_slope(expected, outputs.values)
    explained = expected * scale
    rest = fit_ridge(outputs.removed, outputs.values - explained)
    corrected = torch.isfinite(rest.penalties)[:, None]
    errors = None
    if rest.errors is not None:
        noise, more = (found.errors * scale[:, None]) ** 2, rest.errors.where(corrected, torch.zeros(()))
        errors = (noise + more**2).sqrt()
    return LinearFit(
        weights=slopes * scale[:, None] + rest.weights,
        intercept=rest.intercept,
        penalties=rest.penalties,
        errors=errors,
        held_out=rest.held_out + explained,
    )


def _least_squares_slope(
    x: Float[Tensor, "mask example"], y: Float[Tensor, "mask example"]
) -> Float[Tensor, " example"]:
    """Slope of ``y`` on ``x`` over masks; 1 where ``x`` does not vary, and never below 0."""
    a, b = x - x.mean(dim=0), y - y.mean(dim=0)
    square = (a**2).sum(dim=0)
    slope = (a * b).sum(dim=0) / square.clamp(min=1e-20)
    return slope.clamp(min=0).where(square > 1e-20, torch.ones(()))


def _require_finite(values: Float[Tensor, "mask example"]) -> None:
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        mask, example = bad[0].tolist()
        raise BadActivation(
            f"the metric of example {example} under mask {mask} is {values[mask, example].item()}; "
            f"{len(bad)} of {values.numel()} outputs are not finite. Ablate less, or by means instead of zeros."
        )


def _constant_examples(values: Float[Tensor, "mask example"]) -> list[int]:
    constant = (values == values[0]).all(dim=0).nonzero()[:, 0].tolist()
    if len(constant) == values.shape[1]:
        raise ValueError(
            "no output changes under any mask, so there is nothing to attribute; ablate a larger fraction, or take a "
            "metric that does not saturate, such as correct_margin"
        )
    if constant:
        log.warning("the outputs of examples %s never change; their weights say nothing", constant[:5])
    return constant


def _remarks(outputs: MaskOutputs, constant: list[int], setting: Setting) -> dict[str, object]:
    """What a reader of the weights must know: examples without change, components that nothing can be said of."""
    n_masks = len(outputs.values)
    removed = outputs.removed.flags(np.arange(n_masks)).sum(axis=0)
    unseen = np.flatnonzero((removed == 0) | (removed == n_masks))
    remarks: dict[str, object] = {"constant_examples": constant, "never_or_always_ablated": len(unseen)}
    if outputs.slopes is not None:
        inert = (outputs.slopes.both == 0).all(dim=0).nonzero()[:, 0].tolist()
        remarks["inert"] = [setting.components.names[place] for place in inert[:100]]
        if inert:
            log.warning("%d components change nothing: %s", len(inert), setting.components.names[inert[0]])
    elif len(unseen):
        log.warning(
            "%d components are ablated by no mask or by every one, so their weights are unknown and 0; the first is "
            "%s. Take more masks.",
            len(unseen),
            setting.components.names[int(unseen[0])],
        )
    return remarks
