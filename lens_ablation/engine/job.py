"""A study cut into shards: what the executors run and the store keeps."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

from jaxtyping import Shaped
from torch import Tensor

Tensors = dict[str, Shaped[Tensor, "..."]]
"""Tensors of a shard by name."""


class Job(ABC):
    """Work cut into shards, each a function of the job alone.

    Instances travel to other processes by cloudpickle, so they hold data and no open files, locks or callbacks.
    """

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, object]:
        """Everything that determines the numbers, in plain JSON values; a store belongs to one identity."""

    @property
    @abstractmethod
    def shards(self) -> Sequence[int]:
        """Rows of work in each shard; as many numbers as there are shards."""

    @abstractmethod
    def run(self, shard: int, advance: Callable[[int], None] | None = None) -> Tensors:
        """Tensors of one shard, the same on every call and in every process.

        Args:
            shard: Its number, from 0.
            advance: Told how many rows were done since it was last called; over the whole shard that is
                ``shards[shard]``. ``None`` where nobody listens.
        """
