"""Ways to estimate what a neuron's activation adds to the answer's probability; measured ones are in ``empirical``."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_ablation.empirical.gradients import ZHAO_2025, Shift, sign_of
from lens_ablation.empirical.question import Question, Slopes, at_sites
from lens_ablation.sites import HookPoint
from lens_ablation.strategy import Strategy

Advance = Callable[[int], None]


class GradientEstimator(Strategy):
    """A way to estimate gradients of neurons. Subclasses are frozen dataclasses."""

    bibtex: ClassVar[str] = ZHAO_2025

    @property
    def settings(self) -> Mapping[str, object]:
        return {}

    @property
    @abstractmethod
    def convention(self) -> Shift:
        """What its values are changes per unit of: of ``A`` (``additive``) or of ``|A|`` (``signed``)."""

    @property
    def shifts(self) -> Float[np.ndarray, " shift"] | None:
        """Every shift that it tries, ascending; ``None`` where neurons are not shifted."""
        return None

    def rows(self, question: Question) -> int:
        """Rows of work, for the progress bar."""
        return question.task.n_examples

    @abstractmethod
    def parts(self, question: Question, advance: Advance) -> Iterator[tuple[slice, Slopes]]:
        """Values of consecutive examples; those that shift neurons give ``outputs`` too.

        Args:
            question: Model, examples, neurons, candidates.
            advance: Told the number of rows done.
        """


@dataclass(frozen=True)
class Gradient(GradientEstimator):
    """The computed gradient: the derivative of the probability in the activation.

    One forward pass, and one backward pass to a candidate, for all neurons of all layers. Its convention is
    ``additive``: a unit more of ``A``.

    Reference:
        Zhao, Jiang, Yoshinaga, *Neuron Empirical Gradient*, 2025, arXiv:2412.18053, where it is called CG.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> la.neuron_gradients(model, la.tasks.facts(model, n=4), None, la.Gradient(), progress=False).shift
        'additive'
    """

    @property
    def convention(self) -> Shift:
        return "additive"

    def parts(self, question: Question, advance: Advance) -> Iterator[tuple[slice, Slopes]]:
        for rows in question.parts():
            yield rows, question.slopes(rows)
            advance(rows.stop - rows.start)


@dataclass(frozen=True)
class NeurGrad(Gradient):
    """The gradient times the sign of the activation, which counts 0 as negative.

    The derivative in ``|A|``, by construction: ``Gradient()`` in the other convention, and as quick.

    Reference:
        Zhao, Jiang, Yoshinaga, *Neuron Empirical Gradient*, 2025, arXiv:2412.18053.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> la.neuron_gradients(model, la.tasks.facts(model, n=4), None, la.NeurGrad(), progress=False).shift
        'signed'
    """

    @property
    def convention(self) -> Shift:
        return "signed"

    def parts(self, question: Question, advance: Advance) -> Iterator[tuple[slice, Slopes]]:
        for rows, found in super().parts(question, advance):
            signs = sign_of(found.activations)[:, None].to(found.values)
            yield rows, replace(found, values=found.values * signs)


@dataclass(frozen=True)
class IntegratedGradients(GradientEstimator):
    """The mean gradient while the layer's whole vector of activations grows from 0 to what it is.

    The vector at the position that is read is multiplied by ``steps`` numbers at equal distances from 0 to 1, both
    among them, layer by layer. The mean is **not** multiplied by the activation: whether the paper's is, its source
    leaves open, and a slope is what the others are. Its convention is ``additive``. Costs ``steps`` times the number
    of layers what ``Gradient`` costs.

    Attributes:
        steps: Numbers from 0 to 1.

    Raises:
        ValueError: ``steps`` is below 2.

    Reference:
        Sundararajan, Taly, Yan, *Axiomatic Attribution for Deep Networks*, 2017, arXiv:1703.01365; of neurons by
        Zhao, Jiang, Yoshinaga, 2025, arXiv:2412.18053.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task = la.tasks.facts(model, n=4)
        >>> la.neuron_gradients(model, task, None, la.IntegratedGradients(steps=3), progress=False).values.shape
        torch.Size([4, 2, 2048])
    """

    steps: int = 20

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"steps is {self.steps}; take at least 2, the two ends")

    @property
    def name(self) -> str:
        return "Integrated gradients"

    @property
    def settings(self) -> Mapping[str, object]:
        return {"steps": self.steps, "times_activation": False}

    @property
    def convention(self) -> Shift:
        return "additive"

    def rows(self, question: Question) -> int:
        return question.task.n_examples * self.steps * len(question.sites.layers)

    def parts(self, question: Question, advance: Advance) -> Iterator[tuple[slice, Slopes]]:
        for rows in question.parts():
            clean, probabilities = question.clean(rows)
            activations = at_sites(question.sites, clean)
            values = torch.zeros(*probabilities.shape, len(question.sites), dtype=torch.float64)
            for point in question.sites.hook_points:
                here = torch.from_numpy(np.flatnonzero(question.sites.addresses[:, 0] == point.layer))
                values[..., here] = self._mean(question, rows, point, advance)
            found = values.to(activations)
            yield rows, Slopes(values=found, activations=activations, probabilities=probabilities)

    def _mean(
        self, question: Question, rows: slice, point: HookPoint, advance: Advance
    ) -> Float[Tensor, "example candidate here"]:
        total: Tensor | float = 0.0
        for scale in torch.linspace(0, 1, self.steps, dtype=torch.float64).tolist():
            total = total + question.slopes(rows, (point, scale)).values.double() / self.steps
            advance(rows.stop - rows.start)
        assert isinstance(total, Tensor)
        return total
