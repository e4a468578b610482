"""Scores of neurons: how much each is used, and how much more on one set of data than on another."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from lens_ablation.errors import StatisticsMismatch, unknown_name
from lens_ablation.modularity.use import NeuronUse, of_statistics
from lens_ablation.sites import SiteSet
from lens_ablation.statistics.activation_statistics import ActivationStatistics
from lens_ablation.statistics.provenance import MODEL_FIELDS, Provenance, described

ImportanceKind = Literal["abs", "freq", "rms", "std", "sqrt", "std_taker", "rms_taker", "mean_difference", "random"]
"""What a score is made of; see ``importance``."""

EPSILONS: Mapping[str, float] = {"neuron": 1e-3, "pre_linear": 1e-3, "z": 1e-4}
"""What is added to the importance on the retained data, by kind of site, as in the paper's code."""

Measured = NeuronUse | ActivationStatistics


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Importance:
    """A score for each neuron.

    Attributes:
        values: The scores, ``[neuron]``; higher is more important, or more selective for the data to forget.
        sites: The neurons.
        kind: What the score is made of.
        epsilon: What was added to the importance on the retained data; ``None`` where nothing was divided.
        dominated: Where the importance on the retained data is below epsilon, which then decides the ratio.
        dead: Neurons that were 0 at every token of all data.
        provenance: Model and data behind the numbers.
    """

    values: Float64[Tensor, " neuron"]
    sites: SiteSet
    kind: str
    epsilon: float | None
    dominated: Bool[Tensor, " neuron"]
    dead: Bool[Tensor, " neuron"]
    provenance: Provenance

    @property
    def dominated_share(self) -> float:
        """Share of neurons whose ratio epsilon decides."""
        return float(self.dominated.double().mean())

    @property
    def ranking(self) -> np.ndarray:
        """Places of the neurons, highest score first, of equal ones the first; dead ones last."""
        return np.lexsort((np.arange(len(self.sites)), -self.values.numpy(), self.dead.numpy()))

    def top(self, fraction: float, without: SiteSet | None = None) -> SiteSet:
        """The ``int(fraction * n_neurons)`` highest neurons over all layers, highest first.

        Args:
            fraction: Share of all neurons.
            without: Neurons that are not chosen, such as those pruned before.

        Raises:
            ValueError: ``fraction`` lies outside 0..1, or no neuron or too few are left.
        """
        n = count_of(fraction, len(self.sites))
        ranked = self.sites.take(self.ranking)
        left = ranked if without is None else ranked - without
        if n > len(left):
            raise ValueError(f"{n} neurons are asked for and {len(left)} are left; take a smaller fraction")
        return left.take(range(n))

    def to_dataframe(self) -> pd.DataFrame:
        """One row to a neuron: site, address, score, and whether it is dominated by epsilon or dead."""
        table = pd.DataFrame(self.sites.addresses, columns=list(self.sites.axes))
        table.insert(0, "site", [str(site) for site in self.sites])
        table["score"], table["dominated"], table["dead"] = self.values, self.dominated, self.dead
        return table

    def __repr__(self) -> str:
        ratio = "" if self.epsilon is None else f", epsilon {self.epsilon:g} decides {100 * self.dominated_share:.1f} %"
        return f"Importance({self.kind} of {len(self.sites)} {self.sites.kind} sites{ratio})"


def importance(
    measured: Measured,
    kind: ImportanceKind = "abs",
    *,
    retain: Measured | None = None,
    epsilon: float | None = None,
    sites: SiteSet | None = None,
    seed: int = 0,
) -> Importance:
    """How important each neuron is on some data; with ``retain``, how much more so than on the data to keep.

    With activation ``z`` at tokens ``d``, and means over all of them:

    | kind | importance |
    |---|---|
    | ``abs`` | mean of ``|z|`` |
    | ``freq`` | share of tokens with ``z > 0`` |
    | ``rms`` | square root of the mean of ``z^2`` |
    | ``std`` | square root of the mean of ``(z - mean)^2`` |
    | ``sqrt`` | mean of ``sqrt(|z|)`` |
    | ``std_taker`` | sample variance, which the paper's code calls std |
    | ``rms_taker`` | ``sqrt(std_taker^2 + mean^2)``, which it calls rms |
    | ``mean_difference`` | ``|mean - mean on retain|``: needs ``retain``, and is no ratio |
    | ``random`` | a random order |

    The ratio is ``importance / (importance on retain + epsilon)``. Where the latter is below epsilon, epsilon ranks the
    neurons: ``dominated_share`` says of how many.

    Args:
        measured: What ``neuron_use`` measured; or ``collect_statistics``, which serve ``rms``, ``std``, ``std_taker``,
            ``rms_taker``, ``mean_difference`` and ``random``.
        kind: One of the table.
        retain: The same, measured on the data to keep; ``measured`` is then that on the data to forget.
        epsilon: By default 1e-3 for MLP neurons and 1e-4 for attention neurons.
        sites: Which neurons of collected statistics.
        seed: Of ``random``.

    Raises:
        StatisticsMismatch: the two were measured on other models, neurons or positions.
        UnknownName: no such kind.
        ValueError: the kind needs what was not measured, or epsilon is not positive.

    Reference:
        Pochinkov, Schoots, 2024, arXiv:2403.01267, section 2; ``*_taker`` after the release of its code.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> code, prose = (
        ...     la.neuron_use(model, la.tasks.domain(model, n=8, name=name, split="train"), progress=False)
        ...     for name in ("code", "prose")
        ... )
        >>> la.importance(code, "abs", retain=prose).top(0.01)
        SiteSet(20 neuron sites: L3N416, L3N217, L3N453, ...)
    """
    if kind not in get_args(ImportanceKind):
        raise unknown_name("importance", kind, get_args(ImportanceKind), "the table in help(lens_ablation.importance)")
    own, other = _use(measured, sites), None if retain is None else _use(retain, sites)
    if other is not None:
        _require_same(own, other)
    used = epsilon
    if epsilon is None:
        used = EPSILONS[own.sites.kind]
    elif not 0 < epsilon < float("inf"):
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    nothing = torch.zeros(len(own.sites), dtype=torch.bool)
    dominated, divided = nothing, None
    if kind == "random":
        order = np.random.default_rng(seed).permutation(len(own.sites))
        values = torch.from_numpy(order).double()
    elif kind == "mean_difference":
        if other is None:
            raise ValueError("mean_difference compares two sets of data; give retain=, measured on the data to keep")
        values = (own.mean - other.mean).abs()
    else:
        values = _of(own, kind)
        if other is not None:
            assert used is not None
            kept = _of(other, kind)
            values, dominated, divided = values / (kept + used), kept < used, used
    return Importance(
        values=values,
        sites=own.sites,
        kind=kind,
        epsilon=divided,
        dominated=dominated,
        dead=own.dead if other is None else own.dead & other.dead,
        provenance=own.provenance,
    )


def count_of(fraction: float, n: int) -> int:
    """``int(fraction * n)``, of which rounding of the fraction loses none.

    Raises:
        ValueError: ``fraction`` lies outside 0..1, or is too small for one neuron.
    """
    found = int(fraction * n + 1e-9) if 0 < fraction <= 1 else 0
    if found < 1:
        raise ValueError(f"fraction must lie in 0..1 and give one neuron or more of {n}, got {fraction}")
    return found


def _use(measured: Measured, sites: SiteSet | None) -> NeuronUse:
    if isinstance(measured, ActivationStatistics):
        return of_statistics(measured, sites)
    if sites is not None and sites != measured.sites:
        raise ValueError("sites chooses among collected statistics; measure these neurons with neuron_use instead")
    return measured


def _require_same(own: NeuronUse, other: NeuronUse) -> None:
    found = own.provenance.differences(other.provenance)
    wrong = {name: pair for name, pair in found.items() if name in (*MODEL_FIELDS, "positions")}
    if wrong:
        raise StatisticsMismatch(
            f"the two were not measured alike: {described(wrong)}. Measure both on one model, at the same positions."
        )
    if own.sites != other.sites:
        raise StatisticsMismatch(f"the two are of other neurons, {own.sites} and {other.sites}. Measure the same ones.")


_MOMENTS: Mapping[str, Callable[[NeuronUse], Tensor]] = {
    "rms": lambda use: (use.variance + use.mean**2).sqrt(),
    "std": lambda use: use.variance.sqrt(),
    "std_taker": lambda use: _sample_variance(use),
    "rms_taker": lambda use: (_sample_variance(use) ** 2 + use.mean**2).sqrt(),
}
_SUMS = {"abs": "mean_abs", "freq": "positive", "sqrt": "mean_sqrt"}


def _of(use: NeuronUse, kind: str) -> Float64[Tensor, " neuron"]:
    if kind in _MOMENTS:
        return _MOMENTS[kind](use)
    found = getattr(use, _SUMS[kind])
    if found is None:
        raise ValueError(f"{kind} needs more than the moments that collect_statistics keeps; measure with neuron_use")
    return found


def _sample_variance(use: NeuronUse) -> Float[Tensor, " neuron"]:
    if use.count < 2:
        raise ValueError("a sample variance needs two tokens or more; give more data")
    return use.variance * (use.count / (use.count - 1))
