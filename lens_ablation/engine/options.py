"""How studies are run: where shards are kept, who computes them, in which dtype."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import torch

Executor = Literal["serial", "processes", "ray", "submitit"]
"""Who computes the shards: this process, processes of this machine, Ray, or jobs of a Slurm cluster."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How studies are run; never changes what they measure.

    Attributes:
        store: Folder that keeps finished shards, so that a run which was killed continues; ``None`` keeps nothing.
        executor: ``serial``, ``processes``, ``ray`` or ``submitit``.
        workers: Shards computed at once; ``None`` for the cores that this process may use. ``serial`` has one.
        threads: Torch threads of each worker. ``None`` leaves ``serial`` without a store as it is, and is 1 otherwise,
            so that numbers do not depend on the number of workers.
        dtype: Dtype of the forward passes; ``None`` for the model's own.
        clean_bytes: Most bytes of clean activations that are kept at once.
        reuse: Whether an ablated pass starts from the clean activations before its first ablated layer.
        cluster: Options for ``ray.init``, or for ``update_parameters`` of submitit's executor (and ``cluster``, such as
            ``slurm`` or ``local``).

    Raises:
        ValueError: an option that does not exist, or that does not go with another.
    """

    store: str | Path | None = None
    executor: Executor = "serial"
    workers: int | None = None
    threads: int | None = None
    dtype: torch.dtype | None = None
    clean_bytes: int = 2**30
    reuse: bool = True
    cluster: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = get_args(Executor)
        if self.executor not in known:
            raise ValueError(f"executor={self.executor!r} does not exist; choose one of {', '.join(known)}")
        for name in ("workers", "threads"):
            _require_count(name, getattr(self, name))
        if self.executor == "serial" and self.workers not in (None, 1):
            raise ValueError(f"executor='serial' has one worker, not {self.workers}; take executor='processes'")
        if self.executor == "submitit" and self.store is None:
            raise ValueError(
                "executor='submitit' hands shards over in a folder that all machines see; give it: "
                "Engine(executor='submitit', store='FOLDER')"
            )
        if self.cluster and self.executor not in ("ray", "submitit"):
            raise ValueError(
                f"cluster holds options of ray and submitit, and executor is {self.executor!r}; leave it out, or "
                "choose executor='ray' or 'submitit'"
            )
        if self.dtype is not None and not self.dtype.is_floating_point:
            raise ValueError(f"dtype={self.dtype} cannot hold activations; take torch.float32 or torch.bfloat16")
        if not isinstance(self.clean_bytes, int) or isinstance(self.clean_bytes, bool) or self.clean_bytes < 0:
            raise ValueError(f"clean_bytes is {self.clean_bytes!r}; give a number of bytes, 0 to keep nothing")

    def part(self, name: str) -> "Engine":
        """The engine with a store of its own, inside this one's, for a part of the work; without a store, itself."""
        return self if self.store is None else replace(self, store=Path(self.store) / name)


def _require_count(name: str, value: int | None) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"{name} is {value!r}; give 1 or more, or None to have it chosen")
