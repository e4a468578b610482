"""Which tokens of a forward pass statistics count."""

from typing import Literal, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from lens_ablation.data.inputs import InputBatch

StatisticsPositions = Literal["all", "all_but_first", "answer"]
"""Which tokens are counted; masked ones never are."""


def require_positions(positions: object) -> None:
    """Refuse positions that do not exist.

    Raises:
        ValueError: they are not among ``StatisticsPositions``.
    """
    if positions not in get_args(StatisticsPositions):
        raise ValueError(f"positions must be {', '.join(get_args(StatisticsPositions))}; got {positions!r}")


class CountedRows:
    """The rows of one forward pass, and which of their tokens count.

    Attributes:
        mask: True at real tokens; ``None`` where all are.
    """

    def __init__(self, batch: InputBatch, positions: StatisticsPositions):
        self._batch = batch
        self._positions: StatisticsPositions = positions
        mask = batch.attention_mask
        self.mask = None if mask is None or bool(mask.all()) else mask
        self._counted: Bool[Tensor, "row pos"] | None = None

    def counted(self, n_pos: int) -> Bool[Tensor, "row pos"] | None:
        """True at the tokens that count; ``None`` for all.

        Raises:
            ValueError: answers are asked for and the data does not say where they are.
        """
        if self._positions == "all":
            return self.mask
        if self._counted is None:
            n_rows, device = self._batch.inputs.shape[0], self._batch.inputs.device
            places = self._batch.position_ids
            places = torch.arange(n_pos, device=device).expand(n_rows, -1) if places is None else places
            counted = places > 0 if self._positions == "all_but_first" else self._answers(places)
            self._counted = counted if self.mask is None else counted & self.mask
        return self._counted

    def _answers(self, places: Tensor) -> Bool[Tensor, "row pos"]:
        asked = self._batch.answer_positions
        if self._batch.attention_mask is None:
            # an image is answered at its class token
            return places == 0
        if asked is None:
            raise ValueError("positions='answer' needs data that says where its answers are: pass a Task")
        n_rows, n_pos = places.shape
        chosen = torch.zeros(n_rows, n_pos + 1, dtype=torch.bool, device=places.device)
        return chosen.scatter_(1, asked.where(asked >= 0, n_pos), True)[:, :n_pos]
