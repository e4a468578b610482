"""Replacements that come from other forward passes of the same model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_ablation.data.task import Task
from lens_ablation.methods.method import Request
from lens_ablation.models.capture import align, align_pattern, capture
from lens_ablation.models.protocol import LensModel
from lens_ablation.sites import HookPoint

Source = Task | Int[Tensor, "example pos"] | Float[Tensor, "example channel height width"]


def inputs_of(source: Source) -> Tensor:
    """The inputs of a task, or the tensor itself."""
    return source.inputs if isinstance(source, Task) else source


def mask_of(source: Source) -> Bool[Tensor, "example pos"] | None:
    """The attention mask of a task; ``None`` for a tensor."""
    return source.attention_mask if isinstance(source, Task) else None


def donor_activations(
    model: LensModel,
    points: Sequence[HookPoint],
    inputs: Tensor,
    attention_mask: Bool[Tensor, "row pos"] | None,
) -> dict[HookPoint, Float[Tensor, "row ..."]]:
    """Untouched activations of ``inputs`` at ``points``, index ``t`` being the t-th real token."""
    kept = capture(model, inputs, [point.name for point in points], attention_mask=attention_mask)
    return {
        point: (align_pattern if point.activation == "pattern" else align)(kept[point.name], attention_mask)
        for point in points
    }


@dataclass(frozen=True, eq=False)
class Donors:
    """Activations that examples take over.

    Attributes:
        stored: Activations of the rows that serve as donors, by hook.
        rows: Which row of the source each of them is.
        place: Where among them an example's donor is; ``-1`` for examples that were not asked for.
    """

    stored: Mapping[HookPoint, Float[Tensor, "donor ..."]]
    rows: Int[Tensor, " donor"]
    place: Int[Tensor, " example"]


def donors_of(
    model: LensModel,
    points: Sequence[HookPoint],
    source: Tensor,
    attention_mask: Bool[Tensor, "row pos"] | None,
    donor: Int[Tensor, " example"],
    examples: Int[Tensor, " asked"] | None,
) -> Donors:
    """Run the rows ``donor[examples]`` of ``source`` (of all examples, if none are named), each once.

    Raises:
        ValueError: an example is asked for that has no row.
    """
    n = len(donor)
    asked = torch.arange(n) if examples is None else examples.cpu()
    if len(asked) and int(asked.max()) >= n:
        raise ValueError(
            f"the method holds {n} examples and example {int(asked.max())} was asked for; give it the data that is "
            "being evaluated"
        )
    rows, place = donor[asked].unique(return_inverse=True)
    mask = None if attention_mask is None else attention_mask[rows]
    stored = donor_activations(model, points, source[rows], mask)
    return Donors(stored, rows, torch.full((n,), -1).scatter(0, asked, place))


def derangement(lengths: Int[Tensor, " example"], seed: int) -> Int[Tensor, " example"]:
    """For each example another one to take activations from, of the same length wherever there is one.

    Examples of equal length are paired by a random cycle. One whose length no other has takes a longer example, or,
    if it is the longest, the next shorter one.

    Raises:
        ValueError: there are fewer than two examples.
    """
    n = len(lengths)
    if n < 2:
        raise ValueError(f"resampling from other examples needs at least 2 examples, got {n}")
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(n, generator=generator)
    donors = torch.empty(n, dtype=torch.int64)
    for length in lengths.unique().tolist():
        group = shuffled[lengths[shuffled] == length]
        donors[group] = group.roll(1) if len(group) > 1 else _stand_in(lengths, int(group[0]), shuffled)
    return donors


def _stand_in(lengths: Int[Tensor, " example"], example: int, shuffled: Int[Tensor, " example"]) -> int:
    others = shuffled[shuffled != example]
    longer = others[lengths[others] > lengths[example]]
    if len(longer):
        return int(longer[0])
    return int(others[lengths[others].argmax()])


def pick(
    stored: Float[Tensor, "example ..."],
    rows: Int[Tensor, " row"],
    positions: Int[Tensor, "#row pos"],
    *,
    is_pattern: bool,
    past_end: Bool[Tensor, "#row pos"] | None = None,
) -> Float[Tensor, "row ..."]:
    """``stored[rows]`` at ``positions`` (of patterns: queries and keys); zero where ``past_end``."""
    rows, positions = rows.to(stored.device), positions.to(stored.device).expand(len(rows), -1)
    gone = None if past_end is None else past_end.to(stored.device).expand(len(rows), -1)
    if is_pattern:
        picked = stored[
            rows[:, None, None, None],
            torch.arange(stored.shape[1], device=stored.device)[None, :, None, None],
            positions[:, None, :, None],
            positions[:, None, None, :],
        ]
        if gone is None:
            return picked
        return picked.masked_fill(gone[:, None, :, None] | gone[:, None, None, :], 0)
    picked = stored[rows[:, None], positions]
    if gone is None:
        return picked
    return picked.masked_fill(gone.reshape(*gone.shape, *([1] * (picked.ndim - 2))), 0)


def rows_of(request: Request, n: int) -> Int[Tensor, " row"]:
    """The example in each row.

    Raises:
        ValueError: rows were not numbered, and there are not as many as examples.
    """
    if request.examples is not None:
        return request.examples.cpu()
    if request.shape[0] != n:
        raise ValueError(
            f"the method holds {n} examples and the forward pass has {request.shape[0]} rows; run the whole of its "
            "data in one batch, or use a verb such as sweep, which keeps track of examples"
        )
    return torch.arange(n)
