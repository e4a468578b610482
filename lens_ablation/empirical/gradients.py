"""What the answer's probability gains per unit of each neuron's activation, and the convention of what a unit is."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_ablation.files import read_folder, reading, require_shape, write_folder
from lens_ablation.sites import SiteSet

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from lens_ablation.empirical.curves import ShiftCurves

Shift = Literal["signed", "additive"]
"""What a shift of ``d`` does to an activation ``A``: ``A + d sign(A)`` (it moves ``|A|``), or ``A + d``."""

SHIFTS: tuple[Shift, ...] = ("signed", "additive")

SATURATED = 0.01
"""Probabilities below this, or above one minus it, are called saturated: shifts hardly move them."""

ZHAO_2025 = """@inproceedings{zhao2025neuron,
  title     = {Neuron Empirical Gradient: Discovering and Quantifying Neurons' Global Linear Controllability},
  author    = {Zhao, Xin and Jiang, Zehui and Yoshinaga, Naoki},
  booktitle = {Annual Meeting of the Association for Computational Linguistics},
  year      = {2025},
  note      = {arXiv:2412.18053}
}"""
"""BibTeX of empirical gradients of neurons."""

_FILE_KIND = "neuron-gradients"


def sign_of(activations: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``s(A)``: 1 where an activation is positive, -1 elsewhere, at 0 too.

    Reference:
        Zhao, Jiang, Yoshinaga, 2025, arXiv:2412.18053 (its source counts 0 as negative).
    """
    return torch.where(activations > 0, 1.0, -1.0).to(activations)


def is_saturated(probabilities: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
    """Where a probability lies within ``SATURATED`` of 0 or 1, so that no shift moves it much."""
    return (probabilities < SATURATED) | (probabilities > 1 - SATURATED)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class NeuronGradients:
    """How the probability of each candidate answer changes with each neuron, on each example.

    Attributes:
        values: Change of probability per unit of shift, ``[example, candidate, neuron]``; what a shift is,
            ``shift`` says.
        activations: The neurons where the answer is read, ``[example, neuron]``.
        probabilities: Of the untouched model, ``[example, candidate]``.
        candidates: Token (or class) ids, ``[example, candidate]``.
        sites: The neurons, in the order of ``values``.
        settings: Model, task, estimator, shift convention, hook and weight processing behind the numbers.
        shifts: Shifts that were tried, ``[shift]``; ``None`` where nothing was shifted.
        outputs: Probabilities under them, ``[example, candidate, neuron, shift]``.

    Raises:
        ValueError: shapes disagree, or ``settings`` name no shift convention.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> found = la.neuron_gradients(model, la.tasks.facts(model, n=4), progress=False)
        >>> found.values.shape, found.shift
        (torch.Size([4, 2, 2048]), 'signed')
    """

    values: Float[Tensor, "example candidate neuron"]
    activations: Float[Tensor, "example neuron"]
    probabilities: Float[Tensor, "example candidate"]
    candidates: Int[Tensor, "example candidate"]
    sites: SiteSet
    settings: Mapping[str, object]
    shifts: Float[Tensor, " shift"] | None = None
    outputs: Float[Tensor, "example candidate neuron shift"] | None = None

    def __post_init__(self) -> None:
        n_examples, n_candidates = self.candidates.shape
        require_shape("values", self.values, (n_examples, n_candidates, len(self.sites)))
        require_shape("activations", self.activations, (n_examples, len(self.sites)))
        require_shape("probabilities", self.probabilities, (n_examples, n_candidates))
        if (self.shifts is None) != (self.outputs is None):
            raise ValueError("shifts and outputs belong together; give both or neither")
        if self.shifts is not None and self.outputs is not None:
            require_shape("outputs", self.outputs, (*self.values.shape, len(self.shifts)))
        if self.settings.get("shift") not in SHIFTS:
            raise ValueError(f"settings['shift'] must be 'signed' or 'additive', got {self.settings.get('shift')!r}")

    @property
    def shift(self) -> Shift:
        """The convention of ``values``: ``signed`` moves ``|A|``, ``additive`` moves ``A``."""
        return "signed" if self.settings["shift"] == "signed" else "additive"

    @property
    def estimator(self) -> str:
        """Name of the estimator."""
        named = self.settings.get("estimator")
        return str(named["name"]) if isinstance(named, Mapping) else str(named)

    @property
    def is_measured(self) -> bool:
        """Whether neurons were shifted, rather than slopes taken at the activation."""
        return self.shifts is not None

    @property
    def saturated(self) -> Bool[Tensor, "example candidate"]:
        """Where the probability lies within ``SATURATED`` of 0 or 1, so that no shift moves it much."""
        return is_saturated(self.probabilities)

    @property
    def signed(self) -> "NeuronGradients":
        """The same per unit of ``|A|``.

        Slopes are multiplied by ``s(A)``, which counts 0 as negative. Of measured ones a neuron at exactly 0 has 0:
        a shift of ``|A|`` has no direction there and moves nothing.
        """
        return self._converted("signed")

    @property
    def additive(self) -> "NeuronGradients":
        """The same per unit of ``A``.

        Slopes are multiplied by ``s(A)``. Of ones measured with signed shifts a neuron at exactly 0 has NaN: it was
        never moved.
        """
        return self._converted("additive")

    @property
    def curves(self) -> "ShiftCurves":
        """Probabilities under each shift.

        Raises:
            ValueError: nothing was shifted.
        """
        from lens_ablation.empirical.curves import ShiftCurves

        if self.shifts is None or self.outputs is None:
            raise ValueError(f"{self.estimator} shifts nothing; curves come of EmpiricalGradient()")
        return ShiftCurves(
            shifts=self.shifts,
            outputs=self.outputs,
            activations=self.activations,
            baseline=self.probabilities,
            candidates=self.candidates,
            sites=self.sites,
            settings=self.settings,
        )

    def select(self, rows: Int[Tensor, " row"] | slice) -> "NeuronGradients":
        """The same of these examples only, in this order."""
        return replace(
            self,
            values=self.values[rows],
            activations=self.activations[rows],
            probabilities=self.probabilities[rows],
            candidates=self.candidates[rows],
            outputs=None if self.outputs is None else self.outputs[rows],
        )

    def require_same_sites(self, sites: SiteSet) -> None:
        """Refuse to be read as the gradients of other neurons.

        Raises:
            ValueError: these are of other neurons, or of the same in another order.
        """
        if self.sites == sites:
            return
        different = f"{len(self.sites)} {self.sites.kind} sites and {len(sites)} {sites.kind} sites"
        if self.sites.kind == sites.kind and len(self.sites) == len(sites):
            first = int(np.flatnonzero((self.sites.addresses != sites.addresses).any(axis=1))[0])
            different = f"{self.sites.take([first])} and {sites.take([first])} in place {first}"
        raise ValueError(
            f"these are gradients of other neurons than those asked for ({different}); take both of one set of sites, "
            "in one order"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row to a neuron: its address, and means over examples of its activation and of each candidate's value."""
        table = pd.DataFrame(self.sites.addresses, columns=list(self.sites.axes))
        table.insert(0, "site", [str(site) for site in self.sites])
        table["activation"] = self.activations.double().mean(dim=0).tolist()
        for i, mean in enumerate(self.values.double().mean(dim=0)):
            table[f"value_{i}"] = mean.tolist()
        return table

    def plot(self) -> "Figure":
        """The mean gradient of every neuron by layer, for the first candidate."""
        from lens_ablation.plots.neurons import gradients_figure

        return gradients_figure(self)

    def save(self, folder: str | Path) -> Path:
        """Write the result to a new folder: tensors as safetensors, settings as JSON."""
        tensors = {
            "values": self.values,
            "activations": self.activations,
            "probabilities": self.probabilities,
            "candidates": self.candidates,
            "addresses": torch.from_numpy(self.sites.addresses),
        }
        if self.shifts is not None and self.outputs is not None:
            tensors |= {"shifts": self.shifts, "outputs": self.outputs}
        settings = {"settings": self.settings, "kind": self.sites.kind, "shape": list(self.sites.shape)}
        return write_folder(folder, _FILE_KIND, tensors, settings)

    @classmethod
    def load(cls, folder: str | Path) -> "NeuronGradients":
        """Read a result that ``save`` wrote; needs no model.

        Raises:
            DamagedFile: the folder holds something else, or was changed.
        """
        tensors, stored = read_folder(folder, _FILE_KIND)
        with reading(folder):
            return cls(
                values=tensors["values"],
                activations=tensors["activations"],
                probabilities=tensors["probabilities"],
                candidates=tensors["candidates"],
                sites=SiteSet.from_stored(stored["kind"], tensors["addresses"].numpy(), stored["shape"]),
                settings=dict(stored["settings"]),
                shifts=tensors.get("shifts"),
                outputs=tensors.get("outputs"),
            )

    def _converted(self, wanted: Shift) -> "NeuronGradients":
        if self.shift == wanted:
            return self
        factor = sign_of(self.activations)
        if self.is_measured:
            unmoved = 0.0 if wanted == "signed" else torch.nan
            factor = factor.masked_fill(self.activations == 0, unmoved)
        values = self.values * factor[:, None].to(self.values)
        settings = {**self.settings, "shift": wanted, "converted_from": self.shift}
        return replace(self, values=values, settings=settings, shifts=None, outputs=None)

    def __repr__(self) -> str:
        n_examples, n_candidates, n_neurons = self.values.shape
        return (
            f"NeuronGradients({self.estimator}, {self.shift}: {n_examples} examples, {n_candidates} candidates, "
            f"{n_neurons} neurons)"
        )
