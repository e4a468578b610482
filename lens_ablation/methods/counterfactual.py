"""Counterfactual ablation: each example's own changed prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from lens_ablation.data.task import Task
from lens_ablation.methods.donors import (
    Source,
    donors_of,
    mask_of,
    pick,
    rows_of,
)
from lens_ablation.methods.method import WANG_2023, Method, Replacement, Request
from lens_ablation.models.protocol import LensModel
from lens_ablation.sites import HookPoint


@dataclass(frozen=True, eq=False)
class Counterfactual(Method):
    """The activation that the example's counterfactual prompt has at the same position.

    Attributes:
        inputs: A ``Task`` with counterfactuals, or the counterfactual inputs, one row to an example.

    Raises:
        ValueError: the task has no counterfactuals.

    Reference:
        Wang et al., *Interpretability in the Wild*, 2022, arXiv:2211.00593 (the idea, at the paths of a circuit).

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task = la.tasks.ioi(model, n=32)
        >>> result = la.sweep(model, task, la.heads(model)[3], la.Counterfactual(task), progress=False)
    """

    inputs: Source
    bibtex: ClassVar[str] = WANG_2023

    def __post_init__(self) -> None:
        if isinstance(self.inputs, Task) and self.inputs.counterfactuals is None:
            raise ValueError(
                f"task {self.inputs.name!r} has no counterfactuals; build it with Task(counterfactuals=...), or use "
                "Resample(task, match='batch')"
            )

    @property
    def changed(self) -> Tensor:
        """The counterfactual inputs, one row to an example."""
        if isinstance(self.inputs, Task):
            assert self.inputs.counterfactuals is not None
            return self.inputs.counterfactuals
        return self.inputs

    @property
    def positional(self) -> bool:
        return True

    @property
    def settings(self) -> Mapping[str, object]:
        inputs = self.changed
        return {"inputs": Task(inputs=inputs, answers=torch.zeros(len(inputs), dtype=torch.int64)).fingerprint}

    def prepare(
        self, model: LensModel, points: Sequence[HookPoint], examples: Int[Tensor, " example"] | None = None
    ) -> Replacement:
        inputs, mask = self.changed, mask_of(self.inputs)
        n = len(inputs)
        donors = donors_of(model, points, inputs, mask, torch.arange(n), examples)

        def replacement(request: Request) -> Tensor:
            own = donors.place[rows_of(request, n)]
            is_pattern = request.point.activation == "pattern"
            return pick(donors.stored[request.point], own, request.positions, is_pattern=is_pattern)

        return replacement
