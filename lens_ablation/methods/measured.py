"""What methods that rest on measured activations have in common."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lens_ablation.errors import BadActivation, StatisticsMismatch
from lens_ablation.methods.method import Replacement, Request
from lens_ablation.models.protocol import LensModel
from lens_ablation.sites import HookPoint
from lens_ablation.statistics.activation_statistics import ActivationStatistics


def statistics_settings(statistics: ActivationStatistics) -> Mapping[str, object]:
    """Where the statistics come from, for the settings of a result."""
    provenance = statistics.provenance
    return {
        "statistics": provenance.digest,
        "data": list(provenance.data),
        "positions": provenance.positions,
        "measurement": dict(provenance.measurement),
    }


def measured(
    statistics: ActivationStatistics, model: LensModel, points: Sequence[HookPoint], name: str
) -> dict[HookPoint, Float[Tensor, "*coordinate"]]:
    """``statistics[point].<name>`` of each hook, once it is known that the statistics are of this model.

    Raises:
        StatisticsMismatch: they are of another model, of other hooks, or were collected without this part.
    """
    statistics.provenance.require_model(model)
    found = {point: getattr(statistics[point], name) for point in points}
    for point, value in found.items():
        if value is None:
            missing = {"peak": "histograms=True", "position_mean": "per_position=True"}[name]
            raise StatisticsMismatch(
                f"these statistics hold no {name} of {point}; collect again with collect_statistics(..., {missing})"
            )
    return found


def covering(values: Mapping[HookPoint, Float[Tensor, "*coordinate"]], what: str) -> Replacement:
    """A replacement by one value to a coordinate; of patterns, by the top left part that the text needs.

    The replacement raises ``BadActivation`` where it would have to give a value that was never measured.
    """

    def replacement(request: Request) -> Tensor:
        value = values[request.point]
        if request.point.activation == "pattern":
            value = _pattern_at(value, request, what)
        if not bool(torch.isfinite(value).all()):
            raise BadActivation(
                f"{what} of {request.point} was not measured for every coordinate that is asked for; collect "
                "statistics on data that reaches them"
            )
        return value

    return replacement


def _pattern_at(value: Float[Tensor, "head query key"], request: Request, what: str) -> Tensor:
    """Patterns of the rows at their own token positions ``[row or 1, head, query, key]``."""
    positions = request.positions.to(value.device)
    longest = int(positions.max()) + 1
    if longest > value.shape[-1]:
        raise ValueError(
            f"{what} of {request.point} covers {value.shape[-1]} positions and this text has {longest}. Measure on "
            "texts at least as long."
        )
    heads = torch.arange(len(value), device=value.device)
    return value[heads[None, :, None, None], positions[:, None, :, None], positions[:, None, None, :]]
