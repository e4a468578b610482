"""Workers that are processes of this machine."""

import warnings
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from typing import Any, cast

import joblib
import numpy as np
from jaxtyping import UInt8

from lens_ablation.engine.executors.worker import Outcome, Work, WorkerKilled, collect, compute, end_with_parent
from lens_ablation.engine.job import Tensors
from lens_ablation.engine.options import Engine


@contextmanager
def workers(
    payload: bytes, work: Work, engine: Engine
) -> Iterator[Callable[[list[int]], Iterator[tuple[int, Tensors]]]]:
    """Rounds of processes, which stay for the next run unless a round is broken off."""
    shared = np.frombuffer(payload, dtype=np.uint8)  # joblib maps a large array into every process

    def run_round(shards: list[int]) -> Iterator[tuple[int, Tensors]]:
        count = min(engine.workers or joblib.cpu_count(), len(shards))
        # with one job joblib computes in this process, where a shard that gets its worker killed would end the run
        options: dict[str, Any] = {
            "n_jobs": max(2, count),
            "pre_dispatch": 2 * count if count > 1 else 1,
            "backend": "loky",
            "batch_size": 1,
            "return_as": "generator_unordered",
        }
        calls = (joblib.delayed(_compute)(work, shared, shard) for shard in shards)
        finished = cast("Generator[tuple[int, Outcome], None, None]", joblib.Parallel(**options)(calls))
        try:
            for shard, outcome in finished:
                yield shard, collect(work, shard, outcome)
        except BrokenExecutor as error:
            raise WorkerKilled("a worker process was killed") from error
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # joblib tells of results that nobody will read
                finished.close()

    yield run_round


def _compute(work: Work, shared: UInt8[np.ndarray, " byte"], shard: int) -> tuple[int, Outcome]:
    end_with_parent(work.driver)
    return shard, compute(work, shared.data, shard)
