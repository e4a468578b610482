"""What is optimised: constants at hooks, and which of them stand in which row of a forward pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_ablation.components import Components, draw_removals
from lens_ablation.methods.method import Method, Replacement, Request, at_positions
from lens_ablation.models.anatomy import Anatomy
from lens_ablation.models.protocol import LensModel
from lens_ablation.sites import HookPoint
from lens_ablation.statistics.activation_statistics import ActivationStatistics

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
        def replacement(request: Request) -> Tensor:
            table = self.tables[request.point]
            return at_positions(table, request, what="the constants") if self.per_position else table

        return replacement


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

    def variants(
        self, active: Int[np.ndarray, " active"], step: int
    ) -> tuple[Bool[np.ndarray, "variant component"], Int[np.ndarray, " variant"]]:
        """What each variant of a training step removes, and whose problem it is; -1 as a step is for validation."""
        if self.ablated_fraction is None:
            return np.eye(len(self.components), dtype=bool)[active], active
        if self.ablated_fraction == 1:
            return np.ones((1, len(self.components)), dtype=bool), np.zeros(1, dtype=np.int64)
        n_masks = VALIDATION_MASKS if step < 0 else MASKS
        # validation masks are the same every time, and of another seed than any step's
        seed = [self.seed, step + 1]
        drawn = draw_removals(n_masks, len(self.components), self.ablated_fraction, "bernoulli", _one_seed(seed))
        return drawn, np.zeros(n_masks, dtype=np.int64)

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


def _one_seed(parts: Sequence[int]) -> int:
    return int(np.random.SeedSequence(list(parts)).generate_state(1)[0])


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
        pooled = measured.mean.float()
        if not per_position:
            found[point] = pooled
            continue
        assert measured.positions is not None
        count, total = measured.positions.count, measured.positions.total
        table = pooled.repeat(len(count), *([1] * pooled.ndim))
        whole = int((count == count.max()).nonzero()[-1])
        tail = total[whole:].sum(dim=0) / count[whole:].sum().clamp(min=1)
        known = count[:whole] > 0
        table[:whole][known] = measured.positions.mean[:whole][known].float()
        table[whole:] = tail.float()
        found[point] = table
    return found
