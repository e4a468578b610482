"""Workers that are jobs of a Slurm cluster, or of this machine where there is none."""

import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import joblib
from submitit import AutoExecutor
from submitit import Job as SubmittedJob

from lens_ablation.engine.executors.worker import Failure, Outcome, Work, WorkerKilled, collect, compute
from lens_ablation.engine.job import Tensors
from lens_ablation.engine.options import Engine

FOLDER = "submitit"
PAYLOAD = "job"

_POLL_SECONDS = 0.25
_CANCEL_SECONDS = 10.0
_LOCAL_TIMEOUT_MINUTES = 30 * 24 * 60


@contextmanager
def workers(
    payload: bytes, work: Work, engine: Engine
) -> Iterator[Callable[[list[int]], Iterator[tuple[int, Tensors]]]]:
    """Rounds of jobs, each of which takes its stride of the shards."""
    if work.store is None:
        raise ValueError("executor='submitit' needs a store; give Engine(store='FOLDER')")
    root = work.store.path / FOLDER
    for earlier in root.glob("*"):  # jobs of a driver that was killed stop when their folder goes
        shutil.rmtree(earlier, ignore_errors=True)
    folder = root / uuid.uuid4().hex
    folder.mkdir(parents=True)
    (folder / PAYLOAD).write_bytes(payload)
    executor = _executor(folder, engine)

    def run_round(shards: list[int]) -> Iterator[tuple[int, Tensors]]:
        count = min(engine.workers or joblib.cpu_count(), len(shards))
        jobs = []
        try:
            for start in range(count):
                jobs.append(executor.submit(_compute_all, work, folder, shards[start::count]))
            yield from _results(work, folder, shards, jobs)
        finally:
            _cancel(jobs, wait=executor.cluster == "local")

    try:
        yield run_round
    except Exception:
        (folder / PAYLOAD).unlink(missing_ok=True)  # the logs stay for a look
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _executor(folder: Path, engine: Engine) -> AutoExecutor:
    options: dict[str, Any] = dict(engine.cluster)
    executor = AutoExecutor(folder=folder, cluster=options.pop("cluster", None))
    defaults: dict[str, Any] = {"name": "lens-ablation", "cpus_per_task": engine.threads or 1}
    if executor.cluster == "local":  # five minutes otherwise
        defaults["timeout_min"] = _LOCAL_TIMEOUT_MINUTES
    executor.update_parameters(**(defaults | options))
    return executor


def _compute_all(work: Work, folder: Path, shards: list[int]) -> Outcome:
    """What one job does: its shards, until one fails or another run has taken over."""
    payload = b""
    for shard in shards:
        with suppress(FileNotFoundError):
            payload = payload or (folder / PAYLOAD).read_bytes()
        if not folder.exists():
            return None
        outcome = compute(work, payload, shard)
        if isinstance(outcome, Failure):
            return outcome
    return None


def _results(work: Work, folder: Path, shards: list[int], jobs: list[SubmittedJob]) -> Iterator[tuple[int, Tensors]]:
    """Shards as they come into the store, until the jobs have ended."""
    assert work.store is not None
    missing = set(shards)
    while missing:
        ended = all(job.done() for job in jobs)  # asked before the store is looked at, so that nothing is missed
        for shard in sorted(missing & work.store.listed()):
            tensors = work.store.find(shard)
            if tensors is not None:
                missing.remove(shard)
                yield shard, tensors
        for job in jobs:
            _raise_failure(work, job)
        if ended:
            break
        time.sleep(_POLL_SECONDS)
    if missing and not folder.exists():
        raise RuntimeError(
            f"another run has taken over {work.store.path}, so the jobs of this one stopped; what they finished is "
            "kept. Let one run at a time use executor='submitit' on a store"
        )
    if missing:
        raise WorkerKilled(f"jobs ended before their shards were finished (logs in {folder})")


def _raise_failure(work: Work, job: SubmittedJob) -> None:
    """Raise what a job handed back as its failure; a job that was killed hands nothing back."""
    if not job.paths.result_pickle.exists():
        return
    error = job.exception()
    if error is not None:
        raise error
    outcome = job.result()
    if isinstance(outcome, Failure):
        collect(work, 0, outcome)


def _cancel(jobs: list[SubmittedJob], *, wait: bool) -> None:
    running = [job for job in jobs if not job.done()]
    for job in running:
        job.cancel(check=False)
    latest = time.monotonic() + _CANCEL_SECONDS
    while wait and time.monotonic() < latest and not all(job.done() for job in running):
        time.sleep(_POLL_SECONDS)
