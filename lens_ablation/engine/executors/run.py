"""A job run to its end: shards of the store first, then rounds of workers until none is missing."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module

import joblib

from lens_ablation.engine.executors.worker import TorchState, Work, WorkerKilled, on_cpu, pack
from lens_ablation.engine.job import Job, Tensors
from lens_ablation.engine.options import Engine
from lens_ablation.engine.store import Store, open_store
from lens_ablation.errors import MissingExtra, WorkersDied

Finished = Iterator[tuple[int, Tensors]]
Workers = Callable[[bytes, Work, Engine], AbstractContextManager[Callable[[list[int]], Finished]]]
"""Gives, for its duration, a function that runs one round of workers over the given shards."""

MOST_IDLE_ROUNDS = 3
"""Rounds in a row in which workers were killed and no shard was finished, before the run is given up."""

log = logging.getLogger(__name__)


def run_job(job: Job, engine: Engine, advance: Callable[[int], None]) -> Finished:
    """Compute every shard of a job that the store does not hold yet.

    Args:
        job: What to compute.
        engine: Where shards are kept and who computes them.
        advance: Told how many rows were finished since it was last called, those of the store at once.

    Returns:
        Each shard once with its tensors, on the CPU, in any order.

    Raises:
        StoreMismatch: the store belongs to another job, or is no store.
        MissingExtra: the executor is not installed.
        WorkersDied: workers were killed again and again.
        OSError: the store cannot be written; what is in it stays.
    """
    workers = None if engine.executor == "serial" else _workers(engine.executor)
    store = None if engine.store is None else open_store(engine.store, job)
    return _run(job, engine, store, advance, workers)


def _workers(executor: str) -> Workers:
    if executor == "processes":
        from lens_ablation.engine.executors import processes

        return processes.workers
    _require(executor)
    if executor == "ray":
        from lens_ablation.engine.executors import ray_tasks

        return ray_tasks.workers
    from lens_ablation.engine.executors import submitit_jobs

    return submitit_jobs.workers


def _require(module: str) -> None:
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise MissingExtra(
            f"executor={module!r} needs the package {module}, which is not installed: "
            f"pip install 'lens-ablation[{module}]'",
            name=module,
        ) from error


def _run(
    job: Job, engine: Engine, store: Store | None, advance: Callable[[int], None], workers: Workers | None
) -> Finished:
    rows = list(job.shards)
    missing = set(range(len(rows)))
    if store is not None:
        for shard in sorted(missing & store.listed()):
            tensors = store.find(shard, warn=True)
            if tensors is not None:
                missing.remove(shard)
                advance(rows[shard])
                yield shard, tensors
    if workers is None:
        yield from _serially(job, engine, store, sorted(missing), advance)
    elif missing:
        for shard, tensors in _in_rounds(job, engine, store, sorted(missing), workers):
            advance(rows[shard])
            yield shard, tensors


def _serially(
    job: Job, engine: Engine, store: Store | None, missing: list[int], advance: Callable[[int], None]
) -> Finished:
    threads = engine.threads or (None if store is None else 1)
    for shard in missing:
        with nullcontext() if threads is None else TorchState(threads).applied():
            tensors = on_cpu(job.run(shard, advance))
        if store is not None:
            store.write(shard, tensors)
        yield shard, tensors


def _in_rounds(job: Job, engine: Engine, store: Store | None, missing: list[int], workers: Workers) -> Finished:
    payload, work = pack(job, store, engine.threads or 1)
    idle = 0
    with workers(payload, work, engine) as run_round:
        while missing:
            before = len(missing)
            try:
                for shard, tensors in run_round(missing.copy()):
                    missing.remove(shard)
                    yield shard, tensors
            except WorkerKilled as error:
                idle = 0 if len(missing) < before else idle + 1
                if idle == MOST_IDLE_ROUNDS:
                    raise WorkersDied(_advice(engine, store, len(missing), len(job.shards), error)) from error
                log.warning("%s; going on with the %d shards that are left", error, len(missing))
                first = engine.workers or joblib.cpu_count()
                missing = (
                    missing[first:] + missing[:first]
                )  # what was being computed comes last, in case it is to blame


def _advice(engine: Engine, store: Store | None, missing: int, total: int, error: WorkerKilled) -> str:
    kept = (
        "Nothing was kept; give Engine(store='FOLDER') to keep what is finished"
        if store is None
        else f"{total - missing} of {total} shards are kept in {store.path}; the same call goes on from there"
    )
    return (
        f"workers were killed {MOST_IDLE_ROUNDS} times in a row before any shard was finished ({error}), most often "
        f"because memory ran out. {kept}. Take fewer workers (executor={engine.executor!r}) or a machine with more "
        "memory."
    )
