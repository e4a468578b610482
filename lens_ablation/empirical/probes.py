"""Skills read from neurons: fitting a probe, and what a fitted one predicts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_ablation.empirical.activation_probe import ActivationProbe
from lens_ablation.empirical.forest_probe import ForestProbe
from lens_ablation.empirical.gradients import NeuronGradients
from lens_ablation.empirical.log_prob_probe import LogProbProbe
from lens_ablation.empirical.probe import Probe, State, together
from lens_ablation.empirical.sign_probes import MagnitudeProbe, PolarityProbe
from lens_ablation.files import read_folder, reading, require_shape, write_folder
from lens_ablation.sites import SiteSet

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_FILE_KIND = "skill-probe"
_SETTINGS = ("model", "model_fingerprint", "task", "estimator", "shift", "hook", "weight_processing", "versions")
"""What a probe says of the gradients that it was fitted on."""

PROBES: Mapping[str, type[Probe]] = {
    kind.__name__: kind for kind in (PolarityProbe, MagnitudeProbe, ForestProbe, ActivationProbe, LogProbProbe)
}
"""The probes that can be read from files, by name."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class SkillProbe:
    """A fitted probe.

    Attributes:
        probe: What was fitted.
        state: What it knows, by name; ``scores [neuron]`` among it.
        sites: The neurons that it was given, in their order.
        n_candidates: Candidates of a question.
        n_examples: Examples that it was fitted on.
        settings: Model, task, estimator and convention of the gradients that it was fitted on.
    """

    probe: Probe
    state: State
    sites: SiteSet
    n_candidates: int
    n_examples: int
    settings: Mapping[str, object]

    @property
    def neurons(self) -> SiteSet:
        """The neurons that it uses, most important first, each once."""
        return self.sites.take(self.probe.places(self.state).numpy())

    @property
    def polarities(self) -> Int[Tensor, " chosen"]:
        """Of each of ``neurons``: 1 where more of it speaks for the right candidate, -1 where less does, 0 unsaid."""
        return self.probe.polarities(self.state)

    @property
    def scores(self) -> Float[Tensor, " neuron"]:
        """Of every neuron it was given, in the order of ``sites``; what a score is, the probe says."""
        return self.state["scores"].double()

    def predict(self, gradients: NeuronGradients) -> Int[Tensor, " example"]:
        """The place of the candidate that is taken for the right one.

        Raises:
            ValueError: the gradients are of other neurons, in another convention, or of another number of candidates
                than those it was fitted on.
        """
        gradients.require_same_sites(self.sites)
        _require_finite(gradients)
        if gradients.values.shape[1] != self.n_candidates:
            raise ValueError(
                f"the probe was fitted on questions of {self.n_candidates} candidates and these have "
                f"{gradients.values.shape[1]}; fit one on such questions"
            )
        if gradients.shift != self.settings["shift"]:
            raise ValueError(
                f"the probe was fitted on {self.settings['shift']} gradients and these are {gradients.shift}; take "
                f"gradients.{self.settings['shift']}"
            )
        if _model_of(gradients.settings) != _model_of(self.settings):
            raise ValueError(
                f"the probe was fitted on {self.settings['model']} and these are gradients of another model, or of "
                "other weights; fit one on this model"
            )
        return self.probe.predict(self.state, gradients, self.n_candidates)

    def correct(self, gradients: NeuronGradients, labels: Int[Tensor, " example"]) -> Bool[Tensor, " example"]:
        """Whether each prediction is right. Errors as in ``predict``."""
        require_labels(gradients, labels)
        return self.predict(gradients) == labels

    def accuracy(self, gradients: NeuronGradients, labels: Int[Tensor, " example"]) -> float:
        """Share of predictions that are right. Errors as in ``predict``."""
        return float(self.correct(gradients, labels).double().mean())

    def to_dataframe(self) -> pd.DataFrame:
        """One row to a neuron that it uses: site, address, score, polarity."""
        chosen = self.neurons
        table = pd.DataFrame(chosen.addresses, columns=list(chosen.axes))
        table.insert(0, "site", [str(site) for site in chosen])
        table["score"] = self.scores[self.probe.places(self.state)].tolist()
        table["polarity"] = self.polarities.tolist()
        return table

    def plot(self) -> "Figure":
        """How many of its neurons lie in each layer, by polarity."""
        from lens_ablation.plots.probes import layers_figure

        return layers_figure(self)

    def save(self, folder: str | Path) -> Path:
        """Write the probe to a new folder: tensors as safetensors, settings as JSON; never a pickle."""
        tensors = {**self.state, "addresses": torch.from_numpy(self.sites.addresses)}
        settings = {
            "probe": type(self.probe).__name__,
            "probe_settings": dict(self.probe.settings),
            "n_candidates": self.n_candidates,
            "n_examples": self.n_examples,
            "settings": self.settings,
            "kind": self.sites.kind,
            "shape": list(self.sites.shape),
        }
        return write_folder(folder, _FILE_KIND, tensors, settings)

    @classmethod
    def load(cls, folder: str | Path) -> "SkillProbe":
        """Read a probe that ``save`` wrote; needs neither model nor scikit-learn.

        Raises:
            DamagedFile: the folder holds something else, or was changed.
        """
        tensors, stored = read_folder(folder, _FILE_KIND)
        with reading(folder):
            name = stored["probe"]
            if name not in PROBES:
                raise ValueError(f"there is no probe {name!r}")
            sites = SiteSet.from_stored(stored["kind"], tensors["addresses"].numpy(), stored["shape"])
            require_shape("scores", tensors["scores"], (len(sites),))
            state = {key: value for key, value in tensors.items() if key != "addresses"}
            found = cls(
                probe=PROBES[name](**stored["probe_settings"]),
                state=state,
                sites=sites,
                n_candidates=int(stored["n_candidates"]),
                n_examples=int(stored["n_examples"]),
                settings=dict(stored["settings"]),
            )
            places = found.probe.places(state)
            if len(places) and (int(places.min()) < 0 or int(places.max()) >= len(sites)):
                raise ValueError("it uses neurons outside its own set")
            return found

    def __repr__(self) -> str:
        return (
            f"SkillProbe({self.probe.name}: {len(self.neurons)} of {len(self.sites)} neurons, {self.n_candidates} "
            f"candidates, fitted on {self.n_examples} examples)"
        )


@dataclass(frozen=True, eq=False)
class SeenGradients:
    """What probes need of some examples, so that they can be fitted without holding all gradients.

    Attributes:
        seen: What the probe needs.
        sites: The neurons.
        n_candidates: Candidates of a question.
        n_examples: Examples that were seen.
        settings: Where the gradients come from.
    """

    seen: State
    sites: SiteSet
    n_candidates: int
    n_examples: int
    settings: Mapping[str, object]

    @classmethod
    def of(
        cls, gradients: NeuronGradients | Iterable[NeuronGradients], labels: Int[Tensor, " example"], probe: Probe
    ) -> "SeenGradients":
        """Gradients in one piece or in parts, each dropped once what is needed of it was taken.

        Raises:
            ValueError: parts are of different neurons, conventions or numbers of candidates, or labels do not fit.
        """
        parts = [gradients] if isinstance(gradients, NeuronGradients) else gradients
        kept: list[State] = []
        first: NeuronGradients | None = None
        n_seen = 0
        for part in parts:
            if first is None:
                first = part.select(slice(0, 1))
            _require_same_kind(first, part)
            own = labels[n_seen : n_seen + len(part.values)]
            require_labels(part, own)
            _require_finite(part)
            kept.append(probe.needs(part, own))
            if probe.adds_up:
                kept = [together(kept, adds_up=True)]
            n_seen += len(part.values)
        if first is None:
            raise ValueError("there are no gradients to fit on; give at least one example")
        if n_seen != len(labels):
            raise ValueError(f"there are {len(labels)} labels for gradients of {n_seen} examples; give each one label")
        settings = {name: first.settings[name] for name in _SETTINGS if name in first.settings}
        return cls(
            seen=together(kept, adds_up=probe.adds_up),
            sites=first.sites,
            n_candidates=first.values.shape[1],
            n_examples=n_seen,
            settings=settings,
        )

    def fit(self, probe: Probe) -> SkillProbe:
        """A probe that needs the same, fitted.

        Raises:
            ValueError: no neuron can be chosen.
        """
        return SkillProbe(
            probe=probe,
            state=probe.fit(self.seen, self.n_candidates),
            sites=self.sites,
            n_candidates=self.n_candidates,
            n_examples=self.n_examples,
            settings=self.settings,
        )


def fit_skill_probe(
    gradients: NeuronGradients | Iterable[NeuronGradients], labels: Int[Tensor, " example"], probe: Probe
) -> SkillProbe:
    """Fit a probe that tells the right candidate of a question from neurons.

    Args:
        gradients: Gradients of all candidates ``[example, candidate, neuron]``, in one piece or as parts that are
            dropped one after the other: scores of neurons are sums over examples.
        labels: Place of the right candidate, ``[example]``, of all parts together.
        probe: ``PolarityProbe(k)``, ``MagnitudeProbe(k)``, ``ForestProbe()``, ``ActivationProbe(k)``, or
            ``LogProbProbe()``.

    Returns:
        A probe that predicts from gradients of the same neurons, in the same convention.

    Raises:
        ValueError: labels and gradients do not fit together, ``k`` exceeds the neurons, or no neuron can be chosen.

    Reference:
        Zhao, Jiang, Yoshinaga, *Neuron Empirical Gradient*, ACL 2025, arXiv:2412.18053

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> asked = la.skills.comparison(model, n=40, split="train", wordings="new")
        >>> found = la.neuron_gradients(model, asked.task, candidates=asked.candidates, progress=False)
        >>> la.fit_skill_probe(found, asked.labels, la.PolarityProbe(k=16))
        SkillProbe(PolarityProbe: 16 of 2048 neurons, 2 candidates, fitted on 40 examples)
    """
    return SeenGradients.of(gradients, labels, probe).fit(probe)


def require_labels(gradients: NeuronGradients, labels: Int[Tensor, " example"]) -> None:
    """Refuse labels that are no places of candidates, one to an example.

    Raises:
        ValueError: they are not.
    """
    n_examples, n_candidates = gradients.candidates.shape
    if n_candidates < 2:
        raise ValueError(
            "these are gradients of one candidate, and a probe chooses among several; pass the candidates of the "
            "questions, neuron_gradients(model, choices.task, candidates=choices.candidates)"
        )
    if len(labels) != n_examples:
        raise ValueError(f"there are {len(labels)} labels for gradients of {n_examples} examples; give each one label")
    if int(labels.min()) < 0 or int(labels.max()) >= n_candidates:
        raise ValueError(
            f"labels are places among {n_candidates} candidates, 0..{n_candidates - 1}, got "
            f"{int(labels.min())}..{int(labels.max())}"
        )


def _require_finite(gradients: NeuronGradients) -> None:
    if not bool(torch.isfinite(gradients.values).all()):
        raise ValueError(
            "gradients hold values that are not finite (additive ones of neurons that signed shifts never moved are "
            "NaN); fit on gradients.signed, or on other neurons"
        )


def _require_same_kind(first: NeuronGradients, part: NeuronGradients) -> None:
    part.require_same_sites(first.sites)
    if part.values.shape[1] != first.values.shape[1] or part.shift != first.shift:
        raise ValueError(
            f"parts have {first.values.shape[1]} and {part.values.shape[1]} candidates in conventions {first.shift} "
            f"and {part.shift}; give parts of one kind"
        )


def _model_of(settings: Mapping[str, object]) -> tuple[object, ...]:
    return settings.get("model_fingerprint"), settings.get("hook")
