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
from lens_ablation.models.anatomy import anatomy
from lens_ablation.models.protocol import LensModel
from lens_ablation.sites import HookPoint


@dataclass(frozen=True, eq=False)
class Resample(Method):
    """Activations of other inputs in the place of the activation; two named ways.

    ``match="position"``: one fixed input is run once; the t-th token of every text gets the fixed input's activation
    at position t, and zero past its end (the paper's resampling; of several inputs one is drawn by ``seed``).
    ``match="batch"``: each example gets the activations of another example of ``source`` at the same position, by a
    random pairing without fixed points. ``source`` is then the data being evaluated, in its order. ``shuffled`` takes
    them from random positions of the donor instead; its last real token stays the last.

    Attributes:
        source: A ``Task``, tokens ``[example, pos]`` or pixels ``[example, channel, height, width]``.
        match: ``position`` or ``batch``.
        seed: Draws the fixed input, or the pairing and the shuffling.
        shuffled: With ``match="batch"``, whether a donor's tokens before its last are shuffled.

    Raises:
        ValueError: no such ``match``, or ``shuffled`` with one fixed input or with patterns.

    Reference:
        Pochinkov et al., *Investigating Neuron Ablation in Attention Heads*, 2024, arXiv:2408.17322, section 3
        (``position``); Chan et al., *Causal Scrubbing*, 2022 (the idea of ``batch``); Li and Janson, 2024,
        arXiv:2409.09951 (``shuffled``).

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task = la.tasks.ioi(model, n=32)
        >>> result = la.sweep(model, task, la.heads(model)[3], la.Resample(task, match="batch"), progress=False)
    """

    source: Source
    match: Literal["position", "batch"] = "position"
    seed: int = 0
    shuffled: bool = False
    bibtex: ClassVar[str] = POCHINKOV_2024

    def __post_init__(self) -> None:
        if self.match not in ("position", "batch"):
            raise ValueError(
                f"match must be 'position' (one fixed input) or 'batch' (other examples), got {self.match!r}"
            )
        if self.shuffled and self.match != "batch":
            raise ValueError("shuffled goes with match='batch'; one fixed input keeps its positions")

    @property
    def name(self) -> str:
        if self.shuffled:
            return "Resample (shuffled positions)"
        return "Resample (fixed input)" if self.match == "position" else "Resample (other examples)"

    @property
    def by_position(self) -> bool:
        return not self.shuffled

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
        shuffled = {"shuffled": True} if self.shuffled else {}
        return {"match": self.match, "seed": self.seed, "source": source.fingerprint, **shuffled}

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
        if self.shuffled and any(point.activation == "pattern" for point in points):
            raise ValueError("a pattern with shuffled queries and keys attends to later tokens; take shuffled=False")
        donors = donors_of(model, points, inputs, mask, derangement(lengths, self.seed), examples)
        taken = _shuffled(lengths, max(anatomy(model).image_tokens, n_pos), self.seed) if self.shuffled else None

        def replacement(request: Request) -> Tensor:
            rows = rows_of(request, n)
            own = donors.place[rows]
            positions = request.positions.cpu().expand(len(rows), -1)
            if inputs.ndim == 2:
                positions = positions.minimum(lengths[donors.rows][own][:, None] - 1)
            if taken is not None:
                positions = taken[donors.rows][own].gather(1, positions)
            return pick(donors.stored[request.point], own, positions, is_pattern=request.point.activation == "pattern")

        return replacement


def _shuffled(lengths: Int[Tensor, " example"], width: int, seed: int) -> Int[Tensor, "example pos"]:
    """Where each position of an example is taken from: a random order of those before its last, which stays.

    Of images, whose rows have no last token, all but the class token are shuffled.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    drawn = torch.rand(len(lengths), width, generator=generator)
    places = torch.arange(width)
    ends = lengths[:, None] - 1
    if int(lengths.max()) == 1 and width > 1:
        return torch.cat([torch.zeros(len(lengths), 1, dtype=torch.int64), 1 + drawn[:, 1:].argsort(dim=1)], dim=1)
    order = drawn.where(places < ends, 2.0).argsort(dim=1)
    return torch.where(places < ends, order, places)
