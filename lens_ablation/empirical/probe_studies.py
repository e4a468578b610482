"""How good probes are with few neurons, and how far two of them agree on which neurons matter."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_ablation.empirical.activation_probe import ActivationProbe
from lens_ablation.empirical.gradients import NeuronGradients
from lens_ablation.empirical.log_prob_probe import LogProbProbe
from lens_ablation.empirical.probe import Probe
from lens_ablation.empirical.probes import SeenGradients, SkillProbe, fit_skill_probe, require_labels
from lens_ablation.empirical.sign_probes import MagnitudeProbe, PolarityProbe
from lens_ablation.studies.correlations import spearman
from lens_ablation.studies.intervals import Interval, bootstrap_interval

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_WITH_K = (PolarityProbe, MagnitudeProbe, ActivationProbe)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ProbeCurve:
    """Test accuracy of probes against the number of neurons they use.

    Attributes:
        correct: Whether each test question is answered rightly, ``[probe, k, example]``.
        model_correct: The same by the model's own answer, ``[example]``.
        probes: Names of the probes.
        ks: Numbers of neurons; of an ``ActivationProbe``, to a node.
        n_train: Examples that the probes were fitted on.
        settings: Model, task and estimator behind the numbers.
    """

    correct: Bool[Tensor, "probe k example"]
    model_correct: Bool[Tensor, " example"]
    probes: tuple[str, ...]
    ks: tuple[int, ...]
    n_train: int
    settings: Mapping[str, object]

    @property
    def accuracy(self) -> Float[Tensor, "probe k"]:
        """Share of test questions that are answered rightly."""
        return self.correct.double().mean(dim=2)

    def interval(self, confidence: float = 0.95) -> Interval:
        """Bootstrap interval of each accuracy over test questions."""
        ones = torch.ones(self.correct.shape[2])
        return bootstrap_interval(self.correct.double(), ones, confidence=confidence)

    def to_dataframe(self) -> pd.DataFrame:
        """One row to a probe and a number of neurons: accuracy and its 95 % interval, beside the model's own."""
        low, high = self.interval()
        rows = [
            (name, k, float(self.accuracy[i, j]), float(low[i, j]), float(high[i, j]))
            for i, name in enumerate(self.probes)
            for j, k in enumerate(self.ks)
        ]
        table = pd.DataFrame(rows, columns=["probe", "k", "accuracy", "low", "high"])
        table["model"] = float(self.model_correct.double().mean())
        return table

    def plot(self) -> "Figure":
        """Accuracy against the number of neurons, a line to a probe, with the model's own accuracy."""
        from lens_ablation.plots.probes import probe_curve_figure

        return probe_curve_figure(self)

    def __repr__(self) -> str:
        return f"ProbeCurve({', '.join(self.probes)} with {', '.join(map(str, self.ks))} neurons)"


def probe_curve(
    train: NeuronGradients | Iterable[NeuronGradients],
    train_labels: Int[Tensor, " train"],
    test: NeuronGradients,
    test_labels: Int[Tensor, " test"],
    probes: Probe | Sequence[Probe] | None = None,
    *,
    ks: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256),
) -> ProbeCurve:
    """Fit probes with growing numbers of neurons, and judge each on test questions.

    Neurons are scored once; the numbers of neurons differ only in how many of the best are used.

    Args:
        train: Gradients to fit on; parts are read again for each probe, so give a list of them.
        train_labels: Place of the right candidate, ``[train]``.
        test: Gradients of questions that are not among those of ``train``.
        test_labels: Place of the right candidate, ``[test]``.
        probes: Probes that have a ``k``; by default ``PolarityProbe``, ``MagnitudeProbe`` and ``ActivationProbe``.
        ks: Numbers of neurons, growing.

    Raises:
        ValueError: a probe has no ``k``, or as in ``fit_skill_probe``.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> asked = [la.skills.comparison(model, n=40, split=s, wordings="new") for s in ("train", "test")]
        >>> found = [la.neuron_gradients(model, a.task, candidates=a.candidates, progress=False) for a in asked]
        >>> curve = la.probe_curve(found[0], asked[0].labels, found[1], asked[1].labels, ks=(1, 16))
        >>> curve.accuracy.shape
        torch.Size([3, 2])
    """
    chosen = (PolarityProbe(), MagnitudeProbe(), ActivationProbe()) if probes is None else probes
    listed = [chosen] if isinstance(chosen, Probe) else list(chosen)
    names = [probe.name for probe in listed]
    if not listed or not ks or list(ks) != sorted(set(ks)):
        raise ValueError(f"give probes, and growing numbers of neurons; got {names} and ks={list(ks)}")
    if not isinstance(train, NeuronGradients):
        train = list(train)
    require_labels(test, test_labels)
    correct: list[Tensor] = []
    seen: SeenGradients | None = None
    for probe in listed:
        if not isinstance(probe, _WITH_K):
            raise ValueError(f"{probe.name} has no number of neurons; fit it with fit_skill_probe")
        seen = SeenGradients.of(train, train_labels, probe)
        fitted = [seen.fit(replace(probe, k=k)) for k in ks]
        correct.append(torch.stack([one.correct(test, test_labels) for one in fitted]))
    assert seen is not None
    return ProbeCurve(
        correct=torch.stack(correct),
        model_correct=test.probabilities.argmax(dim=1) == test_labels,
        probes=tuple(names),
        ks=tuple(ks),
        n_train=seen.n_examples,
        settings=seen.settings,
    )


def probe_agreement(probes: Mapping[str, SkillProbe]) -> pd.DataFrame:
    """How far probes agree on which neurons matter: one row to a pair.

    ``rank`` is Spearman's correlation of the scores of all neurons; ``shared`` the share of the first probe's neurons
    that the second one uses too, ``by_chance`` what it would be for random neurons; ``same_sign`` the share of the
    shared ones that have one polarity.

    Args:
        probes: Fitted probes of one kind, by name: of parts of the training set, or of wordings.

    Raises:
        ValueError: fewer than two probes, of different kinds, or of different neurons.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> asked = la.skills.comparison(model, n=80, split="train", wordings="new")
        >>> found = la.neuron_gradients(model, asked.task, candidates=asked.candidates, progress=False)
        >>> la.probe_agreement(la.probes_of_parts(found, asked.labels, la.PolarityProbe(k=32))).shape
        (1, 6)
    """
    kinds = {type(probe.probe).__name__ for probe in probes.values()}
    if len(probes) < 2 or len(kinds) > 1 or isinstance(next(iter(probes.values())).probe, LogProbProbe):
        raise ValueError(f"give two or more probes of one kind that uses neurons, got {len(probes)} of {sorted(kinds)}")
    rows: list[tuple[object, ...]] = []
    for (name, first), (other, second) in combinations(probes.items(), 2):
        if first.sites != second.sites:
            raise ValueError(f"{name} and {other} were fitted on different neurons; fit them on one set of sites")
        signs = _signs(first), _signs(second)
        both = signs[0].keys() & signs[1].keys()
        same = sum(signs[0][place] == signs[1][place] for place in both) / len(both) if both else float("nan")
        shared, chance = len(both) / len(signs[0]), len(signs[1]) / len(first.sites)
        rows.append((name, other, spearman(first.scores.numpy(), second.scores.numpy()), shared, chance, same))
    return pd.DataFrame(rows, columns=["first", "second", "rank", "shared", "by_chance", "same_sign"])


def _signs(fitted: SkillProbe) -> dict[int, int]:
    """Polarity of each neuron that a probe uses, by place."""
    return dict(zip(fitted.probe.places(fitted.state).tolist(), fitted.polarities.tolist(), strict=True))


def probes_of_parts(
    gradients: NeuronGradients, labels: Int[Tensor, " example"], probe: Probe, *, n_parts: int = 2, seed: int = 0
) -> dict[str, SkillProbe]:
    """A probe fitted on each of several disjoint random parts of the examples, for ``probe_agreement``.

    Args:
        gradients: Gradients ``[example, candidate, neuron]``.
        labels: Place of the right candidate, ``[example]``; each part has its share of every label.
        probe: What is fitted.
        n_parts: Number of parts.
        seed: Another seed gives other parts.

    Raises:
        ValueError: a part would lack a label.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> asked = la.skills.comparison(model, n=80, split="train", wordings="new")
        >>> found = la.neuron_gradients(model, asked.task, candidates=asked.candidates, progress=False)
        >>> parts = la.probes_of_parts(found, asked.labels, la.PolarityProbe(k=32), n_parts=3)
        >>> list(parts), len(parts["part 1"].neurons)
        (['part 1', 'part 2', 'part 3'], 32)
    """
    require_labels(gradients, labels)
    fewest = int(labels.bincount(minlength=gradients.values.shape[1]).min())
    if not 2 <= n_parts <= fewest:
        raise ValueError(f"n_parts must lie in 2..{fewest}, the examples of the rarest label; got {n_parts}")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_label = order[labels[order].argsort(stable=True)]
    found: dict[str, SkillProbe] = {}
    for part in range(n_parts):
        rows = by_label[part::n_parts].sort().values
        found[f"part {part + 1}"] = fit_skill_probe(gradients.select(rows), labels[rows], probe)
    return found
