"""Optimal ablation: the constant that hurts least."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from lens_ablation.methods.method import LI_2024, Method, Replacement, Request, at_positions
from lens_ablation.methods.optimal_constants import OptimalConstants
from lens_ablation.models.protocol import LensModel
from lens_ablation.sites import HookPoint, SiteSet


@dataclass(frozen=True, eq=False)
class Optimal(Method):
    """The constant, independent of the input, at which ablation hurts the loss least.

    Attributes:
        constants: From ``fit_optimal`` on this model. Those found one site at a time are optimal for one site at a
            time, those found jointly for the whole set.

    Raises:
        StatisticsMismatch: on use, with constants of another model or weight processing.
        UnknownSite: on use, for a site that was not optimised.

    Reference:
        Li and Janson, *Optimal ablation for interpretability*, 2024, arXiv:2409.09951, section 2.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task = la.tasks.ioi(model, n=128, split="train")
        >>> constants = la.fit_optimal(model, task, la.heads(model)[3], steps=20, progress=False)
        >>> result = la.sweep(model, task, la.heads(model)[3], la.Optimal(constants), progress=False)
    """

    constants: OptimalConstants
    bibtex: ClassVar[str] = LI_2024

    @property
    def positional(self) -> bool:
        return self.constants.per_position

    @property
    def name(self) -> str:
        return "Optimal (per position)" if self.constants.per_position else "Optimal"

    @property
    def settings(self) -> Mapping[str, object]:
        found = self.constants
        return {
            "values": found.digest,
            "conditioned on": found.conditioning,
            "ablated_fraction": found.ablated_fraction,
            "data": list(found.provenance.data),
            "positions": found.provenance.positions,
            "measurement": dict(found.provenance.measurement),
        }

    def require_sites(self, sites: SiteSet) -> SiteSet:
        self.constants.require_sites(sites)
        return sites

    def prepare(
        self, model: LensModel, points: Sequence[HookPoint], examples: Int[Tensor, " example"] | None = None
    ) -> Replacement:
        self.constants.provenance.require_model(model, "these constants", "Fit them on this model with fit_optimal")
        values = {point: self.constants[point] for point in points}
        return from_tables(values, per_position=self.constants.per_position)


def from_tables(tables: Mapping[HookPoint, Float[Tensor, "..."]], *, per_position: bool) -> Replacement:
    """A replacement by constants ``[*coordinate]`` by hook, or by those of each position, ``[pos, *coordinate]``."""

    def replacement(request: Request) -> Tensor:
        table = tables[request.point]
        return at_positions(table, request, what="the constants") if per_position else table

    return replacement
