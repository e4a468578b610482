"""What is optimised: constants at hooks, and which of them stand in which row of a forward pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_ablation.components import Components, draw_removals
from lens_ablation.data.task import Task
from lens_ablation.methods.method import Method, Replacement
from lens_ablation.methods.optimal import from_tables
from lens_ablation.models.anatomy import Anatomy
from lens_ablation.models.protocol import LensModel
from lens_ablation.sites import HookPoint, SiteSet
from lens_ablation.statistics.activation_statistics import ActivationStatistics
from lens_ablation.statistics.collect import collect_statistics
from lens_ablation.statistics.counted import StatisticsPositions

MASKS = 8
"""Random masks in a step, where constants are found for random parts of a set."""

VALIDATION_MASKS = 32
"""Random masks on which such constants are judged."""

Tables = dict[HookPoint, Float[Tensor, "..."]]
"""Constants by hook, ``[*coordinate]`` or ``[pos, *coordinate]``."""


@dataclass(frozen=True, eq=False)
class Tabled(Method):
    """Constants that are being optimised; gradients reach the tables."""

    tables: Tables
    per_position: bool

    @property
    def positional(self) -> bool:
        return self.per_position

    @property
    def settings(self) -> Mapping[str, object]:
        return {"per_position": self.per_position}

    def prepare(
        self, model: LensModel, points: Sequence[HookPoint], examples: Int[Tensor, " example"] | None = None
    ) -> Replacement:
        return from_tables(self.tables, per_position=self.per_position)


@dataclass(frozen=True, eq=False)
class Problems:
    """Which variants of a forward pass belong to which problem.

    Attributes:
        components: The sites.
        ablated_fraction: ``None``: each site is a problem; 1: all together are one; else random parts of them.
        seed: Draws random parts.
    """

    components: Components
    ablated_fraction: float | None
    seed: int
    owners: dict[HookPoint, Int[Tensor, "*coordinate"]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """How many problems there are."""
        return len(self.components) if self.ablated_fraction is None else 1

    def variants(self, active: Int[np.ndarray, " active"], step: int | None) -> Bool[np.ndarray, "variant component"]:
        """What each variant of a step removes; of validation, which has no step, the same every time."""
        n = len(self.components)
        if self.ablated_fraction is None:
            return np.eye(n, dtype=bool)[active]
        if self.ablated_fraction == 1:
            return np.ones((1, n), dtype=bool)
        n_masks, place = (VALIDATION_MASKS, 0) if step is None else (MASKS, step + 1)
        seed = int(np.random.SeedSequence([self.seed, place]).generate_state(1)[0])
        return draw_removals(n_masks, n, self.ablated_fraction, "bernoulli", seed)

    def owner(self, point: HookPoint, sizes: Anatomy) -> Int[Tensor, "*coordinate"]:
        """The problem that each coordinate at a hook belongs to; -1 for none."""
        if point not in self.owners:
            shape = sizes.coordinates(point.activation)
            owner = torch.full(shape, -1)
            start = 0
            for sites in self.components.sets:
                if point in sites.hook_points:
                    here = np.flatnonzero(sites.addresses[:, 0] == point.layer)
                    places = start + here if self.ablated_fraction is None else np.zeros_like(here)
                    index = tuple(torch.from_numpy(axis) for axis in sites.addresses[here, 1:].T)
                    # a whole layer's output has no axes but its width
                    owner[index if index else ...] = torch.from_numpy(places).reshape(
                        [-1] + [1] * (owner.ndim - len(index)) if index else [1]
                    )
                start += len(sites)
            self.owners[point] = owner
        return self.owners[point]


def moments(
    model: LensModel, task: Task, sets: Sequence[SiteSet], positions: StatisticsPositions, *, per_position: bool
) -> ActivationStatistics:
    """Means and variances at the hooks of ``sets``, from however few examples there are."""
    return collect_statistics(
        model,
        task,
        list(sets),
        positions=positions,
        per_position=per_position,
        histograms=False,
        allow_small=True,
        progress=False,
    )


def spreads(statistics: ActivationStatistics) -> dict[HookPoint, float]:
    """Root mean square of the coordinates' standard deviations at each hook; 1 where nothing there ever changes."""
    found = {point: float(statistics[point].variance.mean().sqrt()) for point in statistics}
    return {point: spread if spread > 0 else 1.0 for point, spread in found.items()}


def means(statistics: ActivationStatistics, *, per_position: bool) -> Tables:
    """Means to begin at, as the statistics have them; by position up to where texts begin to end.

    The positions from the last one that all texts have share one mean, weighted by counts.

    Reference:
        Li and Janson, 2024, arXiv:2409.09951 (the rule is that of its source).
    """
    found: Tables = {}
    for point in statistics:
        measured = statistics[point]
        pooled = measured.mean
        if not per_position:
            found[point] = pooled
            continue
        assert measured.positions is not None
        count, total = measured.positions.count, measured.positions.total
        table = pooled.repeat(len(count), *([1] * pooled.ndim))
        whole = int((count == count.max()).nonzero()[-1])
        tail = total[whole:].sum(dim=0) / count[whole:].sum().clamp(min=1)
        known = count[:whole] > 0
        table[:whole][known] = measured.positions.mean[:whole][known]
        table[whole:] = tail
        found[point] = table
    return found
