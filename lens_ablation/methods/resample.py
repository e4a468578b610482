"""Resampling: activations of the same model on other inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from lens_ablation.data.task import Task
from lens_ablation.methods.donors import (
    Source,
    derangement,
    donor_activations,
    donors_of,
    inputs_of,
    mask_of,
    pick,
    rows_of,
)
from lens_ablation.methods.method import POCHINKOV_2024, Method, Replacement, Request
from lens_ablation.models.protocol import LensModel
from lens_ablation.sites import HookPoint


@dataclass(frozen=True, eq=False)
class Resample(Method):
    """Activations of other inputs in the place of the activation; two named ways.

    ``match="position"``: one fixed input is run once; the t-th token of every text gets the fixed input's activation
    at position t, and zero past its end (the paper's resampling; of several inputs one is drawn by ``seed``).
    ``match="batch"``: each example gets the activations of another example of ``source`` at the same position, by a
    random pairing without fixed points. ``source`` is then the data being evaluated, in its order.

    Attributes:
        source: A ``Task``, tokens ``[example, pos]`` or pixels ``[example, channel, height, width]``.
        match: ``position`` or ``batch``.
        seed: Draws the fixed input, or the pairing.

    Reference:
        Pochinkov et al., *Investigating Neuron Ablation in Attention Heads*, 2024, arXiv:2408.17322, section 3
        (``position``); Chan et al., *Causal Scrubbing*, 2022 (the idea of ``batch``).

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task = la.tasks.ioi(model, n=32)
        >>> result = la.sweep(model, task, la.heads(model)[3], la.Resample(task, match="batch"), progress=False)
    """

    source: Source
    match: Literal["position", "batch"] = "position"
    seed: int = 0
    bibtex: ClassVar[str] = POCHINKOV_2024

    def __post_init__(self) -> None:
        if self.match not in ("position", "batch"):
            raise ValueError(
                f"match must be 'position' (one fixed input) or 'batch' (other examples), got {self.match!r}"
            )

    @property
    def name(self) -> str:
        return "Resample (fixed input)" if self.match == "position" else "Resample (other examples)"

    @property
    def positional(self) -> bool:
        return True

    @property
    def settings(self) -> Mapping[str, object]:
        source = (
            self.source
            if isinstance(self.source, Task)
            else Task(inputs=self.source, answers=torch.zeros(self.source.shape[0], dtype=torch.int64))
        )
        return {"match": self.match, "seed": self.seed, "source": source.fingerprint}

    def prepare(
        self, model: LensModel, points: Sequence[HookPoint], examples: Int[Tensor, " example"] | None = None
    ) -> Replacement:
        if self.match == "position":
            return self._from_fixed_input(model, points)
        return self._from_other_examples(model, points, examples)

    def _from_fixed_input(self, model: LensModel, points: Sequence[HookPoint]) -> Replacement:
        inputs, mask = inputs_of(self.source), mask_of(self.source)
        drawn = int(torch.randint(len(inputs), (), generator=torch.Generator().manual_seed(self.seed)))
        one = slice(drawn, drawn + 1)
        mask = None if mask is None else mask[one]
        stored = donor_activations(model, points, inputs[one], mask)

        def replacement(request: Request) -> Tensor:
            values, is_pattern = stored[request.point], request.point.activation == "pattern"
            length = values.shape[2 if is_pattern else 1] if mask is None else int(mask.sum())
            return pick(
                values,
                torch.zeros(len(request.positions), dtype=torch.int64),
                request.positions.clamp(max=length - 1),
                is_pattern=is_pattern,
                past_end=request.positions >= length,
            )

        return replacement

    def _from_other_examples(
        self, model: LensModel, points: Sequence[HookPoint], examples: Int[Tensor, " example"] | None
    ) -> Replacement:
        inputs, mask = inputs_of(self.source), mask_of(self.source)
        n = len(inputs)
        n_pos = inputs.shape[1] if inputs.ndim == 2 else 1
        lengths = torch.full((n,), n_pos) if mask is None else mask.sum(dim=1)
        donors = donors_of(model, points, inputs, mask, derangement(lengths, self.seed), examples)

        def replacement(request: Request) -> Tensor:
            rows = rows_of(request, n)
            own = donors.place[rows]
            positions = request.positions.cpu().expand(len(rows), -1)
            if inputs.ndim == 2:
                positions = positions.minimum(lengths[donors.rows][own][:, None] - 1)
            return pick(donors.stored[request.point], own, positions, is_pattern=request.point.activation == "pattern")

        return replacement
