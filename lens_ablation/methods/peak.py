"""Peak ablation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from lens_ablation.methods.measured import covering, measured, statistics_settings
from lens_ablation.methods.method import POCHINKOV_2024, Method, Replacement
from lens_ablation.models.protocol import LensModel
from lens_ablation.sites import HookPoint
from lens_ablation.statistics.activation_statistics import ActivationStatistics


@dataclass(frozen=True, eq=False)
class Peak(Method):
    """The value where each coordinate's activations are densest: the centre of its fullest histogram bin.

    Which estimator of the peak was used is stored in the statistics; the default is the paper's (100 bins between
    the coordinate's own smallest and largest value).

    Attributes:
        statistics: From ``collect_statistics`` on this model, with histograms.

    Reference:
        Pochinkov et al., *Investigating Neuron Ablation in Attention Heads: The Case for Peak Activation Centering*,
        2024, arXiv:2408.17322, section 3.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task = la.tasks.ioi(model, n=64)
        >>> stats = la.collect_statistics(model, task, la.heads(model), progress=False)
        >>> result = la.sweep(model, task, la.heads(model), la.Peak(stats), progress=False)
    """

    statistics: ActivationStatistics
    bibtex: ClassVar[str] = POCHINKOV_2024

    @property
    def settings(self) -> Mapping[str, object]:
        return statistics_settings(self.statistics)

    def prepare(
        self, model: LensModel, points: Sequence[HookPoint], examples: Int[Tensor, " example"] | None = None
    ) -> Replacement:
        return covering(measured(self.statistics, model, points, "peak"), "the peak")
