"""Mean ablation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from lens_ablation.errors import BadActivation
from lens_ablation.methods.measured import covering, measured, statistics_settings
from lens_ablation.methods.method import WANG_2023, Method, Replacement, Request, at_positions
from lens_ablation.models.protocol import LensModel
from lens_ablation.sites import HookPoint
from lens_ablation.statistics.activation_statistics import ActivationStatistics


@dataclass(frozen=True, eq=False)
class Mean(Method):
    """The mean of each coordinate over measured activations.

    Patterns are averaged by query and key. With ``per_position`` the other sites get the mean at the token's own
    position, counted from the row's first real token.

    Attributes:
        statistics: From ``collect_statistics`` on this model.
        per_position: Mean at each position; needs statistics collected with ``per_position=True``.

    Reference:
        Wang et al., *Interpretability in the Wild*, 2022, arXiv:2211.00593, section 2 (mean ablation).

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task = la.tasks.ioi(model, n=64)
        >>> stats = la.collect_statistics(model, task, la.heads(model), progress=False)
        >>> result = la.sweep(model, task, la.heads(model), la.Mean(stats), progress=False)
    """

    statistics: ActivationStatistics
    per_position: bool = False
    bibtex: ClassVar[str] = WANG_2023

    @property
    def positional(self) -> bool:
        return self.per_position

    @property
    def name(self) -> str:
        return "Mean (per position)" if self.per_position else "Mean"

    @property
    def settings(self) -> Mapping[str, object]:
        return {"per_position": self.per_position, **statistics_settings(self.statistics)}

    def prepare(
        self, model: LensModel, points: Sequence[HookPoint], examples: Int[Tensor, " example"] | None = None
    ) -> Replacement:
        pooled = covering(measured(self.statistics, model, points, "mean"), "the mean")
        if not self.per_position:
            return pooled
        tokens = [point for point in points if point.activation != "pattern"]
        tables = measured(self.statistics, model, tokens, "position_mean")

        def replacement(request: Request) -> Tensor:
            if request.point.activation == "pattern":
                return pooled(request)
            value = at_positions(tables[request.point], request, what="the mean per position")
            if not bool(torch.isfinite(value).all()):
                raise BadActivation(f"the mean of {request.point} was not measured at every position of this text")
            return value

        return replacement
