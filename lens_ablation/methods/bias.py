"""Ablation of the output rows of linear maps: what is left of an activation is the map's bias."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from lens_ablation.methods.method import SHAH_2024, Method, Replacement, Request
from lens_ablation.models.protocol import LensModel
from lens_ablation.models.rows import bias_of
from lens_ablation.sites import HookPoint


@dataclass(frozen=True)
class Bias(Method):
    """The bias of the linear map in the place of its output, 0 where it has none.

    It equals zeroing the row of weights that gives the activation: the constant that the row's bias adds stays. It
    serves the sites of ``writer_rows``, and whole ``attentions`` and ``mlps``. It needs raw weights: folding moves
    constants between biases.

    Raises:
        UnsupportedModel: on use, where a site is not the output of a linear map.

    Reference:
        Shah et al., *Decomposing and Editing Predictions by Modeling Model Computation*, 2024, arXiv:2404.11534

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> queries = la.writer_rows(model, kinds=["q"])[0]
        >>> pairs = la.hooks(model, queries[2, 1, 5], la.Bias())
    """

    bibtex: ClassVar[str] = SHAH_2024

    @property
    def settings(self) -> Mapping[str, object]:
        return {}

    def prepare(
        self, model: LensModel, points: Sequence[HookPoint], examples: Int[Tensor, " example"] | None = None
    ) -> Replacement:
        biases = {point: bias_of(model, point.activation, point.layer) for point in points}

        def replacement(request: Request) -> Float[Tensor, "*coordinate"]:
            return biases[request.point]

        return replacement
