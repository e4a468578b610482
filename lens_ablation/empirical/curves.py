"""Probabilities under a range of shifts: slope, linearity, polarity, and the share of linear neurons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_ablation.empirical.gradients import Shift, is_saturated, sign_of
from lens_ablation.sites import SiteSet
from lens_ablation.studies.correlations import pearson

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LINEAR = 0.95
"""Least Pearson correlation of shift and change at which a neuron counts as linear, whatever its sign."""

LEAST_SHIFTS = 4
"""Shifts from which on linearity says something: over one to each side it is nearly always 1 or -1."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ShiftCurves:
    """The probability of each candidate under each shift of each neuron.

    Attributes:
        shifts: Shifts, ascending, 0 not among them.
        outputs: Probabilities, ``[example, candidate, neuron, shift]``.
        baseline: Of the untouched model, ``[example, candidate]``.
        activations: The neurons where the answer is read, ``[example, neuron]``.
        candidates: Token or class ids.
        sites: The neurons.
        settings: What the numbers come from.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task, few = la.tasks.facts(model, n=4), la.neurons(model)[1, :3]
        >>> curves = la.neuron_gradients(model, task, few, la.EmpiricalGradient(), progress=False).curves
        >>> curves.linearity.shape
        torch.Size([4, 2, 3])
    """

    shifts: Float[Tensor, " shift"]
    outputs: Float[Tensor, "example candidate neuron shift"]
    baseline: Float[Tensor, "example candidate"]
    activations: Float[Tensor, "example neuron"]
    candidates: Int[Tensor, "example candidate"]
    sites: SiteSet
    settings: Mapping[str, object]

    @property
    def shift(self) -> Shift:
        """Whether shifts are of ``|A|`` (``signed``) or of ``A`` (``additive``)."""
        return "signed" if self.settings["shift"] == "signed" else "additive"

    @property
    def changes(self) -> Float[Tensor, "example candidate neuron shift"]:
        """Change of the probability under each shift, in float64."""
        return self.outputs.double() - self.baseline.double()[:, :, None, None]

    @property
    def slope(self) -> Float[Tensor, "example candidate neuron"]:
        """Least squares through the origin, in probability per unit of shift, in float64."""
        return slope(self.shifts, self.outputs, self.baseline)

    @property
    def linearity(self) -> Float[Tensor, "example candidate neuron"]:
        """Pearson correlation of shift and change; 0 where nothing changed."""
        return pearson(self.shifts.expand(self.outputs.shape), self.changes, constant=0.0)

    @property
    def polarity(self) -> Int[Tensor, "example candidate neuron"]:
        """Sign of the slope: 1 where more of the neuron raises the probability, -1 where it lowers it."""
        return self.slope.sign().long()

    def within(self, shift_range: float) -> "ShiftCurves":
        """The same with the shifts up to this size only.

        Raises:
            ValueError: fewer than two shifts are left.
        """
        near = self.shifts.abs() <= shift_range * (1 + 1e-9)
        if int(near.sum()) < 2:
            raise ValueError(
                f"{int(near.sum())} shifts lie within {shift_range}; the least is {float(self.shifts.abs().min()):.3g}"
            )
        return replace(self, shifts=self.shifts[near], outputs=self.outputs[..., near])

    def ranges(self) -> list[float]:
        """Every range of shifts that was measured, ascending."""
        return sorted({round(size, 9) for size in self.shifts.abs().tolist()})

    def ranges_of_linearity(self) -> list[float]:
        """Those within which lie enough shifts to tell a line from a curve."""
        return [size for size in self.ranges() if len(self.within(size).shifts) >= LEAST_SHIFTS]

    def linear_share(self, threshold: float = LINEAR, ranges: Sequence[float] | None = None) -> pd.DataFrame:
        """Share of linear neurons over growing ranges of shift.

        A neuron is linear on an example and candidate where ``|linearity|`` reaches the threshold. One row to a range:
        ``range``, ``linear`` (of all), ``linear_moved`` (of those that moved the probability at all), ``linear_live``
        (of those on probabilities that are not saturated), ``positive`` (share with a positive slope of those that
        have one), ``n``. By default ranges with four shifts or more, as over two every neuron is linear.
        """
        rows = []
        live = ~is_saturated(self.baseline)[:, :, None].expand(self.outputs.shape[:-1])
        for size in self.ranges_of_linearity() if ranges is None else ranges:
            part = self.within(size)
            found = part.linearity.abs() >= threshold
            moved = (part.changes != 0).any(dim=-1)
            signs = part.polarity[part.polarity != 0]
            rows.append(
                {
                    "range": size,
                    "linear": float(found.double().mean()),
                    "linear_moved": _share(found, moved),
                    "linear_live": _share(found, live),
                    "positive": float((signs > 0).double().mean()) if len(signs) else float("nan"),
                    "n": found.numel(),
                }
            )
        return pd.DataFrame(rows)

    def by_layer(self, threshold: float = LINEAR) -> pd.DataFrame:
        """One row to a layer: neurons, mean ``|linearity|``, share of linear ones, share of positive slopes."""
        layers = torch.from_numpy(self.sites.addresses[:, 0])
        linearity, polarity = self.linearity.abs(), self.polarity
        rows = []
        for layer in self.sites.layers:
            here = layers == layer
            signs = polarity[..., here]
            rows.append(
                {
                    "layer": layer,
                    "neurons": int(here.sum()),
                    "linearity": float(linearity[..., here].mean()),
                    "linear": float((linearity[..., here] >= threshold).double().mean()),
                    "positive": _share(signs > 0, signs != 0),
                }
            )
        return pd.DataFrame(rows)

    @property
    def signed(self) -> "ShiftCurves":
        """The same over shifts of ``|A|``; a neuron at exactly 0 is not moved."""
        return self._converted("signed")

    @property
    def additive(self) -> "ShiftCurves":
        """The same over shifts of ``A``; NaN where a neuron at exactly 0 was never moved."""
        return self._converted("additive")

    def _converted(self, wanted: Shift) -> "ShiftCurves":
        if self.shift == wanted:
            return self
        turned = self.outputs.flip(-1)
        # shifts are symmetric: what x does to |A| of a negative A is what -x does to A
        outputs = torch.where((sign_of(self.activations) < 0)[:, None, :, None], turned, self.outputs)
        unmoved = self.baseline[:, :, None, None] if wanted == "signed" else torch.full((), torch.nan)
        outputs = torch.where((self.activations == 0)[:, None, :, None], unmoved.to(outputs), outputs)
        settings = {**self.settings, "shift": wanted, "converted_from": self.shift}
        return replace(self, outputs=outputs, settings=settings)

    def plot(self, neurons: Sequence[int] | None = None, *, candidate: int = 0) -> "Figure":
        """Curves of chosen neurons (places in ``sites``; by default the steepest), mean and range over examples."""
        from lens_ablation.plots.neurons import curves_figure

        return curves_figure(self, neurons, candidate=candidate)

    def plot_linearity(self) -> "Figure":
        """How linear neurons are, layer by layer."""
        from lens_ablation.plots.neurons import linearity_figure

        return linearity_figure(self)

    def __repr__(self) -> str:
        n_examples, n_candidates, n_neurons, n_shifts = self.outputs.shape
        return (
            f"ShiftCurves({self.shift}: {n_examples} examples, {n_candidates} candidates, {n_neurons} neurons, "
            f"{n_shifts} shifts)"
        )


def slope(
    shifts: Float[Tensor, " shift"],
    outputs: Float[Tensor, "example candidate neuron shift"],
    baseline: Float[Tensor, "example candidate"],
) -> Float[Tensor, "example candidate neuron"]:
    """``sum(x y) / sum(x^2)`` of shifts and changes, in float64."""
    x = shifts.double()
    return ((outputs.double() - baseline.double()[:, :, None, None]) @ x) / (x @ x)


def _share(found: Bool[Tensor, "..."], among: Bool[Tensor, "..."]) -> float:
    return float(found[among].double().mean()) if bool(among.any()) else float("nan")
