"""Workers that are tasks of a Ray cluster, one that runs already or one of this machine."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import joblib
import numpy as np
import ray
import torch
from jaxtyping import UInt8
from ray.exceptions import RayError, RayTaskError

from lens_ablation.engine.executors.worker import Outcome, Work, WorkerKilled, collect, compute
from lens_ablation.engine.job import Tensors
from lens_ablation.engine.options import Engine

_REPORTING = "RAY_USAGE_STATS_ENABLED"


@contextmanager
def workers(
    payload: bytes, work: Work, engine: Engine
) -> Iterator[Callable[[list[int]], Iterator[tuple[int, Tensors]]]]:
    """Rounds of tasks; a cluster that was started for them ends with them."""
    with _cluster(engine) as own:
        count = engine.workers or int(ray.cluster_resources().get("CPU", 1))
        task = ray.remote(_compute).options(max_retries=0, num_cpus=1, num_gpus=_gpus(count))
        shared = ray.put(np.frombuffer(payload, dtype=np.uint8))

        def run_round(shards: list[int]) -> Iterator[tuple[int, Tensors]]:
            waiting, running, killed = shards[::-1], {}, None
            try:
                while waiting or running:
                    # where the cluster is larger than asked for, only the number of tasks holds it back
                    while waiting and len(running) < (2 * count if own else count):
                        shard = waiting.pop()
                        running[task.remote(work, shared, shard)] = shard
                    reference = ray.wait(list(running), num_returns=1)[0][0]
                    shard = running.pop(reference)
                    try:
                        outcome = ray.get(reference)
                    except RayTaskError:
                        raise
                    except RayError as error:
                        killed = error
                        continue
                    yield shard, collect(work, shard, outcome)
            finally:
                for reference in () if own else running:  # its own cluster ends with all its tasks
                    ray.cancel(reference)
            if killed is not None:
                raise WorkerKilled(f"a Ray worker was killed ({type(killed).__name__})") from killed

        yield run_round


def _compute(work: Work, shared: UInt8[np.ndarray, " byte"], shard: int) -> Outcome:
    return compute(work, shared.data, shard)


@contextmanager
def _cluster(engine: Engine) -> Iterator[bool]:
    """A Ray cluster for the duration, and whether it was started for this run."""
    if ray.is_initialized():
        if engine.cluster:
            raise ValueError(
                f"Ray runs already, and cluster={dict(engine.cluster)} would not be heard. Leave cluster out, or call "
                "ray.shutdown() first"
            )
        yield False
        return
    address = engine.cluster.get("address", os.environ.get("RAY_ADDRESS"))
    own = address in (None, "local")
    options: dict[str, Any] = {"include_dashboard": False, "logging_level": logging.ERROR, "log_to_driver": False}
    if own:  # a cluster that runs already has the cores that it has
        options["num_cpus"] = engine.workers or joblib.cpu_count()
    options.update(engine.cluster)
    try:
        with _no_reporting():
            ray.init(**options)
        yield own
    finally:
        ray.shutdown()


@contextmanager
def _no_reporting() -> Iterator[None]:
    """Ray reports its use over the network unless it is told not to; what the user chose stands."""
    chosen = os.environ.get(_REPORTING)
    os.environ.setdefault(_REPORTING, "0")
    try:
        yield
    finally:
        if chosen is None:
            del os.environ[_REPORTING]


def _gpus(count: int) -> float:
    """Share of the cluster's GPUs that each task gets; Ray hides GPUs from tasks that ask for none."""
    share = ray.cluster_resources().get("GPU", 0) / count if torch.cuda.is_available() else 0.0
    return share if share < 1 else float(int(share))
