"""Estimators of neurons' gradients beside the measured ones."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_ablation.data.task import Task
from lens_ablation.empirical.estimate import neuron_gradients
from lens_ablation.empirical.estimators import Gradient, GradientEstimator, IntegratedGradients, NeurGrad
from lens_ablation.empirical.gradients import SATURATED, SHIFTS, NeuronGradients, Shift
from lens_ablation.empirical.log_probability import LogProbIncrease
from lens_ablation.empirical.measured import EmpiricalGradient
from lens_ablation.engine.options import Engine
from lens_ablation.files import read_folder, reading, write_folder
from lens_ablation.models.protocol import LensModel
from lens_ablation.progress import Progress, progress_bar
from lens_ablation.sites import Site, SiteSet
from lens_ablation.studies.correlations import pearson
from lens_ablation.studies.intervals import Interval, bootstrap_interval

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_FILE_KIND = "gradient-comparison"

GROUPS = ("all", "live", "saturated")
"""All probabilities, those between ``SATURATED`` and one minus it, and the others."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class GradientComparison:
    """Estimates of neurons' gradients, and the gradients measured by shifting them.

    Attributes:
        measured: Empirical gradients, shifted additively; ``measured.signed`` are those of ``|A|``.
        estimates: By name, what each estimator says, in its own convention.
        seconds: By name, time to an example; of the measured ones under ``Empirical gradient``.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task, few = la.tasks.facts(model, n=4), la.neurons(model)[:, ::128]
        >>> found = la.compare_gradients(model, task, few, [la.Gradient(), la.NeurGrad()], progress=False)
        >>> sorted(found.estimates)
        ['Gradient', 'NeurGrad']
    """

    measured: NeuronGradients
    estimates: Mapping[str, NeuronGradients]
    seconds: Mapping[str, float]

    def __post_init__(self) -> None:
        for found in self.estimates.values():
            found.require_same_sites(self.measured.sites)

    def of(self, name: str) -> NeuronGradients:
        """What an estimator says.

        Raises:
            ValueError: there is none of that name.
        """
        if name not in self.estimates:
            raise ValueError(f"there is no estimator {name!r} here; there are {', '.join(self.estimates)}")
        return self.estimates[name]

    def pairs(self, name: str, shift: Shift, *, group: str = "all", converted: bool = False) -> tuple[Tensor, Tensor]:
        """Measured and estimated values, flat, of neurons that the shifts moved.

        Args:
            name: The estimator.
            shift: The convention of the measured ones.
            group: ``all``, or on probabilities that are ``live`` or ``saturated``.
            converted: Whether estimates are converted to that convention, rather than taken as they are.
        """
        estimate = self.of(name)
        truth = self.measured.signed if shift == "signed" else self.measured.additive
        if converted:
            estimate = estimate.signed if shift == "signed" else estimate.additive
        chosen = _of_group(self.measured, group)[:, :, None].expand(truth.values.shape)
        if shift == "signed":
            # a neuron at exactly 0 is not moved, so that there is nothing to estimate
            chosen = chosen & (self.measured.activations != 0)[:, None]
        return truth.values.double()[chosen], estimate.values.double()[chosen]

    def correlations(self, name: str, shift: Shift) -> Float[Tensor, " example"]:
        """Pearson correlation over neurons with the measured ones, of each example, on the first candidate."""
        truth = self.measured.signed if shift == "signed" else self.measured.additive
        return pearson(self.of(name).values[:, 0], truth.values[:, 0], constant=0.0)

    def interval(self, name: str, shift: Shift, confidence: float = 0.95) -> Interval:
        """Bootstrap interval of the mean of those correlations over examples."""
        found = self.correlations(name, shift)
        return bootstrap_interval(found[None], torch.ones(len(found)), confidence=confidence)

    def to_dataframe(self) -> pd.DataFrame:
        """One row to an estimator, convention of the measured ones, and group of probabilities.

        ``r`` and ``mae`` (mean absolute error, probability per unit) take estimates as they are, as the paper does;
        ``r_converted`` and ``mae_converted`` convert them to the convention of the measured ones first.
        ``seconds_per_prompt`` is the time to an example.
        """
        rows = []
        for name in self.estimates:
            for shift in SHIFTS:
                for group in GROUPS:
                    x, y = self.pairs(name, shift, group=group)
                    _, z = self.pairs(name, shift, group=group, converted=True)
                    rows.append(
                        {
                            "estimator": name,
                            "own_convention": self.estimates[name].shift,
                            "measured": shift,
                            "probabilities": group,
                            "n": len(x),
                            "r": _correlation(x, y),
                            "mae": _error(x, y),
                            "r_converted": _correlation(x, z),
                            "mae_converted": _error(x, z),
                            "seconds_per_prompt": self.seconds[name],
                        }
                    )
        return pd.DataFrame(rows)

    def plot(self) -> "Figure":
        """Estimated against measured gradients, a panel to an estimator and convention."""
        from lens_ablation.plots.neurons import comparison_panels

        return comparison_panels(self)

    def save(self, folder: str | Path) -> Path:
        """Write the result to a new folder, a folder in it to each estimator."""
        root = Path(folder)
        self.measured.save(root / "measured")
        for i, found in enumerate(self.estimates.values()):
            found.save(root / f"estimate-{i}")
        settings = {"names": list(self.estimates), "seconds": dict(self.seconds)}
        write_folder(root / "comparison", _FILE_KIND, {}, settings)
        return root

    @classmethod
    def load(cls, folder: str | Path) -> "GradientComparison":
        """Read a result that ``save`` wrote; needs no model.

        Raises:
            DamagedFile: the folder holds something else, or was changed.
        """
        root = Path(folder)
        _, stored = read_folder(root / "comparison", _FILE_KIND)
        with reading(folder):
            return cls(
                measured=NeuronGradients.load(root / "measured"),
                estimates={
                    str(name): NeuronGradients.load(root / f"estimate-{i}") for i, name in enumerate(stored["names"])
                },
                seconds={str(name): float(value) for name, value in stored["seconds"].items()},
            )

    def __repr__(self) -> str:
        n_examples, _, n_neurons = self.measured.values.shape
        return f"GradientComparison({', '.join(self.estimates)}: {n_examples} examples, {n_neurons} neurons)"


def default_estimators() -> list[GradientEstimator]:
    """Every estimator that shifts nothing."""
    return [Gradient(), IntegratedGradients(), LogProbIncrease(), NeurGrad()]


def compare_gradients(
    model: LensModel,
    task: Task,
    neurons: Site | SiteSet | Iterable[Site] | None = None,
    estimators: Sequence[GradientEstimator] | None = None,
    *,
    measured: EmpiricalGradient | NeuronGradients | None = None,
    candidates: Int[Tensor, " candidate"] | Int[Tensor, "example candidate"] | None = None,
    batch_size: int | None = None,
    engine: Engine | None = None,
    progress: Progress = True,
) -> GradientComparison:
    """How well estimates of neurons' gradients agree with the measured ones, and what they cost.

    The shifts are made once, additively; the same curves read from the other side are those of signed shifts.

    Args:
        model: A TransformerLens model in evaluation mode; left exactly as it was.
        task: Examples with answers, one to each.
        neurons: Which; a sample such as ``la.neurons(model).sample(0.1, seed=0)`` is enough.
        estimators: ``Gradient()``, ``IntegratedGradients()``, ``LogProbIncrease()`` and ``NeurGrad()`` by default.
        measured: Range and step of the shifts, or gradients measured before, additively.
        candidates: Ids ``[candidate]`` or ``[example, candidate]``; the answers by default.
        batch_size: Rows in a pass; chosen when ``None``.
        engine: Where and how it is run.
        progress: ``True`` for a bar, ``False`` for silence, or a callable given ``(done, total)`` estimators.

    Raises:
        ValueError: arguments do not fit together.

    Reference:
        Zhao, Jiang, Yoshinaga, *Neuron Empirical Gradient*, 2025, arXiv:2412.18053, table of estimators.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task, few = la.tasks.facts(model, n=4), la.neurons(model)[:, ::128]
        >>> la.compare_gradients(model, task, few, [la.Gradient()], progress=False)
        GradientComparison(Gradient: 4 examples, 16 neurons)
    """
    ways = default_estimators() if estimators is None else list(estimators)
    names = [way.name for way in ways]
    if not ways or len(set(names)) < len(names):
        raise ValueError(f"give estimators of different names, one or several; got {', '.join(names) or 'none'}")
    if any(isinstance(way, EmpiricalGradient) for way in ways):
        raise ValueError(
            "EmpiricalGradient is what estimates are compared with; give it as measured=EmpiricalGradient()"
        )
    seconds: dict[str, float] = {}
    n_examples = task.n_examples

    def timed(way: GradientEstimator, part: Engine | None) -> NeuronGradients:
        begun = time.perf_counter()
        found = neuron_gradients(
            model,
            task,
            neurons,
            way,
            candidates=candidates,
            dtype=torch.float64,
            batch_size=batch_size,
            engine=part,
            progress=False,
        )
        seconds[way.name] = (time.perf_counter() - begun) / n_examples
        return found

    with progress_bar(progress, len(ways) + 1, "comparing gradients", "estimator") as advance:
        if isinstance(measured, NeuronGradients):
            truth = measured
        else:
            truth = timed(replace(measured or EmpiricalGradient(), shift="additive"), engine)
        if not truth.is_measured or truth.shift != "additive":
            raise ValueError("measured gradients must come of EmpiricalGradient(shift='additive')")
        advance(1)
        estimates: dict[str, NeuronGradients] = {}
        for way in ways:
            estimates[way.name] = timed(way, engine)
            advance(1)
    return GradientComparison(measured=truth, estimates=estimates, seconds=seconds)


def _of_group(found: NeuronGradients, group: str) -> Bool[Tensor, "example candidate"]:
    if group not in GROUPS:
        raise ValueError(f"group must be one of {', '.join(GROUPS)}, got {group!r}; saturated is within {SATURATED}")
    if group == "all":
        return torch.ones_like(found.saturated)
    return found.saturated if group == "saturated" else ~found.saturated


def _correlation(x: Float[Tensor, " value"], y: Float[Tensor, " value"]) -> float:
    return float(pearson(x, y, constant=0.0)) if len(x) > 1 else float("nan")


def _error(x: Float[Tensor, " value"], y: Float[Tensor, " value"]) -> float:
    return float((x - y).abs().mean()) if len(x) else float("nan")
