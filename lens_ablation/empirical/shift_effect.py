"""What shifting chosen neurons does to the answer, against random neurons of the same layers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_ablation.ablation import Positions
from lens_ablation.data.metrics import Metric, MetricFn
from lens_ablation.data.task import Task
from lens_ablation.empirical.gradients import Shift
from lens_ablation.empirical.shift import Shifted
from lens_ablation.engine.options import Engine
from lens_ablation.engine.removals import Ablation, Packed
from lens_ablation.engine.variants import run_variants
from lens_ablation.models.protocol import LensModel
from lens_ablation.progress import Progress, progress_bar
from lens_ablation.selectors import neurons
from lens_ablation.sites import Site, SiteSet, as_site_set, check_sites_exist
from lens_ablation.studies.intervals import Interval, bootstrap_interval
from lens_ablation.studies.settings import study_settings

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ShiftEffect:
    """The metric while chosen neurons are shifted, and while random neurons of the same layers are.

    Attributes:
        values: With the chosen neurons shifted, ``[amount, example]``, in the metric's unit.
        random_values: With random ones shifted, ``[random, amount, example]``.
        baseline: Of the untouched model, ``[example]``.
        amounts: What is added, in each neuron's direction.
        sites: The chosen neurons.
        settings: Model, task, metric, convention and versions behind the numbers.
    """

    values: Float[Tensor, "amount example"]
    random_values: Float[Tensor, "random amount example"]
    baseline: Float[Tensor, " example"]
    amounts: tuple[float, ...]
    sites: SiteSet
    settings: Mapping[str, object]

    @property
    def n_neurons(self) -> int:
        """How many neurons are shifted at once."""
        return len(self.sites)

    @property
    def n_random(self) -> int:
        """How many sets of random neurons were shifted."""
        return len(self.random_values)

    @property
    def effect(self) -> Float[Tensor, "amount example"]:
        """``values - baseline``."""
        return self.values - self.baseline

    @property
    def mean(self) -> Float[Tensor, " amount"]:
        """Mean effect of the chosen neurons over examples."""
        return self.effect.double().mean(dim=1)

    @property
    def random_mean(self) -> Float[Tensor, "random amount"]:
        """Mean effect of each set of random neurons over examples."""
        return (self.random_values - self.baseline).double().mean(dim=2)

    def interval(self, confidence: float = 0.95) -> Interval:
        """Bootstrap interval of the mean effect of the chosen neurons over examples."""
        return bootstrap_interval(self.effect.double(), torch.ones(len(self.baseline)), confidence=confidence)

    @property
    def beyond_random(self) -> Float[Tensor, " amount"]:
        """Share of random sets whose mean effect is at least as large, whatever its sign, the chosen set counted in.

        The permutation p-value of the chosen neurons; at least ``1 / (n_random + 1)``.
        """
        as_large = (self.random_mean.abs() >= self.mean.abs()).sum(dim=0)
        return (as_large + 1).double() / (self.n_random + 1)

    def to_dataframe(self) -> pd.DataFrame:
        """One row to an amount: baseline, effect with 95 % interval, mean and range of random sets, p-value."""
        low, high = self.interval()
        return pd.DataFrame(
            {
                "amount": self.amounts,
                "baseline": float(self.baseline.double().mean()),
                "effect": self.mean.tolist(),
                "effect_low": low.tolist(),
                "effect_high": high.tolist(),
                "random": self.random_mean.mean(dim=0).tolist(),
                "random_low": self.random_mean.amin(dim=0).tolist(),
                "random_high": self.random_mean.amax(dim=0).tolist(),
                "p_value": self.beyond_random.tolist(),
            }
        )

    def plot(self) -> "Figure":
        """The metric against the amount, with the range of random neurons."""
        from lens_ablation.plots.probes import shift_effect_figure

        return shift_effect_figure(self)

    def __repr__(self) -> str:
        return f"ShiftEffect({self.n_neurons} neurons by {list(self.amounts)}, {self.n_random} random sets)"


def shift_effect(
    model: LensModel,
    task: Task,
    sites: Site | SiteSet | Iterable[Site],
    polarities: Sequence[int] | Tensor | None = None,
    *,
    amounts: Sequence[float] = (-2.0, -1.0, 1.0, 2.0),
    shift: Shift = "signed",
    among: SiteSet | None = None,
    among_polarities: Sequence[int] | Tensor | None = None,
    n_random: int = 20,
    seed: int = 0,
    metric: Metric | MetricFn | None = None,
    positions: Positions = "answer",
    batch_size: int | None = None,
    engine: Engine | None = None,
    progress: Progress = True,
) -> ShiftEffect:
    """The metric with all chosen neurons shifted at once, each in its own direction, against random neurons.

    A positive amount enhances: every neuron moves by ``amount`` times its polarity, ``signed`` (``A + d sign(A)``) as
    the gradients of NeurGrad mean it. Random sets have as many neurons in every layer; the chosen ones are not among
    them. With ``among_polarities`` random neurons move in their own direction too, so that what is compared is the
    choice of neurons alone; without, each has one of the polarities of the chosen ones, drawn at random.

    Args:
        model: A TransformerLens model in evaluation mode.
        task: Examples and the metric, such as ``choices.task``.
        sites: The neurons, such as ``probe.neurons``.
        polarities: 1 or -1 to each, such as ``probe.polarities``; all 1 by default.
        amounts: What is added, in units of the activation.
        shift: ``signed``, or ``additive`` for ``A + d``.
        among: Neurons that random ones are drawn from, such as ``probe.sites``; all of the kind by default.
        among_polarities: 1 or -1 to each of them, such as ``probe.scores.sign()``; 0 leaves a neuron out.
        n_random: Sets of random neurons.
        seed: Another seed draws others.
        metric: Instead of the task's own.
        positions: Which tokens are shifted.
        batch_size: Rows in a forward pass; chosen when ``None``.
        engine: Where and how it is run.
        progress: ``True`` for a bar, ``False`` for silence, or a callable given ``(done, total)``.

    Raises:
        HookDidNotFire: a shift fired a wrong number of times.
        ValueError: arguments do not fit together, or a layer has too few other neurons to draw from.

    Reference:
        Zhao, Jiang, Yoshinaga, *Neuron Empirical Gradient*, 2025, arXiv:2412.18053

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> asked = la.skills.comparison(model, n=8)
        >>> la.shift_effect(model, asked.task, la.neurons(model)[3, :8], n_random=2, progress=False)
        ShiftEffect(8 neurons by [-2.0, -1.0, 1.0, 2.0], 2 random sets)
    """
    chosen = check_sites_exist(as_site_set(sites), model)
    pool = neurons(model, at="pre_linear" if chosen.kind == "pre_linear" else "post") if among is None else among
    pool = check_sites_exist(pool, model)
    if not amounts or not all(np.isfinite(amounts)) or n_random < 1:
        raise ValueError(f"give finite amounts and n_random of 1 or more, got {list(amounts)} and {n_random}")
    asked = task if metric is None else task.with_metric(metric)
    plan = ShiftPlan.of(chosen, polarities, pool, among_polarities, n_random, seed)
    found: list[Tensor] = []
    baseline = torch.zeros(asked.n_examples)
    total = len(plan.flags) * len(amounts) * asked.n_examples
    with progress_bar(progress, total, "shift effect", "row") as advance:
        for amount in amounts:
            scores = run_variants(
                model,
                asked,
                [Ablation(plan.sites, Packed.of(plan.flags), Shifted.of(plan.sites, amount * plan.directions, shift))],
                positions=positions,
                batch_size=batch_size,
                engine=None if engine is None else engine.part(f"shift-{amount:g}"),
                advance=advance,
            )
            found.append(scores.values)
            baseline = scores.baseline
    values = torch.stack(found, dim=1)
    return ShiftEffect(
        values=values[0],
        random_values=values[1:],
        baseline=baseline,
        amounts=tuple(float(amount) for amount in amounts),
        sites=chosen,
        settings={
            **study_settings(model, asked, positions),
            "shift": shift,
            "seed": seed,
            "random_polarities": "drawn from the chosen" if among_polarities is None else "their own",
        },
    )


def _signs(given: Sequence[int] | Tensor | None, n: int, name: str) -> Float[Tensor, " site"]:
    signs = torch.ones(n) if given is None else torch.as_tensor(given).float()
    if signs.shape != (n,) or not bool(((signs.abs() == 1) | (signs == 0)).all()):
        raise ValueError(f"{name} are 1, -1 or 0, one to each of {n} neurons; got {tuple(signs.shape)}")
    return signs


@dataclass(frozen=True, eq=False)
class ShiftPlan:
    """Which neurons each variant shifts, the chosen ones first, and the direction of every neuron.

    Attributes:
        sites: The chosen neurons and those that random ones are drawn from.
        directions: 1 or -1 to each.
        flags: Which of them each variant shifts, ``[variant, site]``.
    """

    sites: SiteSet
    directions: Float[Tensor, " site"]
    flags: Bool[np.ndarray, "variant site"]

    @classmethod
    def of(
        cls,
        chosen: SiteSet,
        polarities: Sequence[int] | Tensor | None,
        pool: SiteSet,
        pool_polarities: Sequence[int] | Tensor | None,
        n_random: int,
        seed: int,
    ) -> "ShiftPlan":
        """Random sets with as many neurons in each layer as the chosen one, without those.

        Raises:
            ValueError: polarities do not fit, or a layer has too few other neurons.
        """
        if pool.kind != chosen.kind:
            raise ValueError(
                f"random neurons are {pool.kind} sites and the chosen ones {chosen.kind}; draw from one kind"
            )
        rng = np.random.default_rng(seed)
        own = _signs(polarities, len(chosen), "polarities")
        others = pool - chosen
        if pool_polarities is None:
            directions = torch.from_numpy(rng.choice(own.numpy(), size=len(others)))
        else:
            kept = torch.tensor([site not in chosen for site in pool])
            directions = _signs(pool_polarities, len(pool), "among_polarities")[kept]
        flags = np.zeros((1 + n_random, len(chosen) + len(others)), dtype=bool)
        flags[0, : len(chosen)] = True
        for layer in chosen.layers:
            wanted = int((chosen.addresses[:, 0] == layer).sum())
            there = np.flatnonzero((others.addresses[:, 0] == layer) & (directions.numpy() != 0))
            if len(there) < wanted:
                raise ValueError(
                    f"layer {layer} has {wanted} chosen neurons and {len(there)} others to draw from; choose fewer "
                    "neurons, or draw from more"
                )
            for row in flags[1:]:
                row[len(chosen) + rng.choice(there, size=wanted, replace=False)] = True
        return cls(chosen | others, torch.cat([own, directions]).double(), flags)
