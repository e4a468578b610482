"""Studies whose shards run parts of a task's examples."""

import copy
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lens_ablation.data.task import Task
from lens_ablation.engine.job import Job
from lens_ablation.engine.part import Part
from lens_ablation.engine.path import Path
from lens_ablation.models.protocol import LensModel


@dataclass(eq=False, kw_only=True)
class PartsJob(Job):
    """A job that readies examples once for all shards in a row that run them, and stays light where it travels.

    Attributes:
        model: The model.
        task: Where the examples come from.
        path: By which shortcuts the model may be run.
        clean_bytes: Memory for clean activations.
        dtype: In which it runs; ``None`` for the model's own.
    """

    model: LensModel
    task: Task
    path: Path
    clean_bytes: int
    dtype: torch.dtype | None
    _part: tuple[slice, Part] | None = field(init=False, default=None)
    _running: LensModel | None = field(init=False, default=None)

    @abstractmethod
    def make_part(self, running: LensModel, examples: Int[Tensor, " example"]) -> Part:
        """Examples ready to be run on the model, or on its copy in the job's dtype."""

    def part_of(self, examples: slice) -> Part:
        """The examples ready to be run; those of the last shard are often the same."""
        if self._part is None or self._part[0] != examples:
            self._part = None  # its memory is free before the next is made
            if self._running is None:
                self._running = in_dtype(self.model, self.dtype)
            self._part = (examples, self.make_part(self._running, torch.arange(examples.start, examples.stop)))
        return self._part[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_part": None, "_running": None}


def in_dtype(model: LensModel, wanted: torch.dtype | None) -> LensModel:
    """The model, or a copy of it in another dtype."""
    if wanted is None or next(iter(model.parameters())).dtype == wanted:
        return model
    copied: Any = copy.deepcopy(model)
    return copied.to(wanted)
