"""What a worker does with a shard, under every executor."""

import hashlib
import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import cloudpickle
import safetensors.torch
import torch
from jaxtyping import Shaped
from torch import Tensor

from lens_ablation.engine.job import Job, Tensors
from lens_ablation.engine.payload import dumps
from lens_ablation.engine.store import Store

_PARENT_CHECK_SECONDS = 0.5
_WATCH = "end-with-parent"

_loaded: dict[str, Job] = {}
"""The job that this worker unpickled last, by the digest of its payload."""


class WorkerKilled(RuntimeError):
    """A round of workers ended before all its shards were finished, through no error of a shard."""


@dataclass(frozen=True)
class TorchState:
    """Settings of torch that change numbers and that a new process does not have.

    Attributes:
        threads: Torch threads.
    """

    threads: int
    default_dtype: torch.dtype = field(default_factory=torch.get_default_dtype)
    matmul_precision: str = field(default_factory=torch.get_float32_matmul_precision)
    deterministic: bool = field(default_factory=torch.are_deterministic_algorithms_enabled)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """These settings for the duration, those of before afterwards."""
        before = TorchState(torch.get_num_threads())
        self._apply()
        try:
            yield
        finally:
            before._apply()

    def _apply(self) -> None:
        torch.set_num_threads(self.threads)
        torch.set_default_dtype(self.default_dtype)
        if torch.get_float32_matmul_precision() != self.matmul_precision:
            torch.set_float32_matmul_precision(self.matmul_precision)
        if torch.are_deterministic_algorithms_enabled() != self.deterministic:
            torch.use_deterministic_algorithms(self.deterministic)


@dataclass(frozen=True)
class Work:
    """What a worker must know beside the job itself.

    Attributes:
        digest: SHA-256 of the payload, the pickled job.
        store: Where shards are kept; ``None`` where they are handed back.
        state: Settings of torch.
        module_paths: Where the driver finds modules, such as the one that defines a metric.
        driver: Process id of the driver.
    """

    digest: str
    store: Store | None
    state: TorchState
    module_paths: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))
    driver: int = field(default_factory=os.getpid)


def pack(job: Job, store: Store | None, threads: int) -> tuple[bytes, Work]:
    """A job as bytes for other processes, and what they must know beside it.

    Raises:
        TypeError: the job holds something that cannot be sent.
    """
    try:
        payload = dumps(job)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise TypeError(
            f"this study cannot be sent to other processes ({error}). Take executor='serial', or leave out what holds "
            "open files, locks or hooks"
        ) from error
    return payload, Work(hashlib.sha256(payload).hexdigest(), store, TorchState(threads))


@dataclass(frozen=True)
class Failure:
    """An exception of a shard, pickled so that it can be raised again in the driver."""

    pickled: bytes


Outcome = bytes | Failure | None
"""What a worker hands back: tensors as bytes where there is no store, or the exception of the shard."""


def compute(work: Work, payload: bytes | memoryview, shard: int) -> Outcome:
    """Compute a shard, unless it is in the store already."""
    try:
        if work.store is not None and work.store.find(shard) is not None:
            return None
        with work.state.applied():
            tensors = on_cpu(_job(work, payload).run(shard))
        if work.store is None:
            return safetensors.torch.save(tensors)
        work.store.write(shard, tensors)
        return None
    except Exception as error:
        error.add_note(f"raised by a worker in shard {shard}:\n{traceback.format_exc()}")
        return Failure(_pickled(error))


def _pickled(error: Exception) -> bytes:
    """An exception that is the same after unpickling, even where its ``__init__`` takes other arguments than a text."""
    with suppress(Exception):
        data = cloudpickle.dumps(error)
        cloudpickle.loads(data)
        return data
    with suppress(Exception):
        return cloudpickle.dumps(_Bare(type(error), error.args, error.__dict__))
    return cloudpickle.dumps(RuntimeError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))


class _Bare:
    """An exception in parts, put together again without its ``__init__``."""

    def __init__(self, kind: type[Exception], arguments: tuple[object, ...], state: dict[str, object]):
        self.parts = kind, arguments, state

    def __reduce__(self) -> tuple[object, ...]:
        return _put_together, self.parts


def _put_together(kind: type[Exception], arguments: tuple[object, ...], state: dict[str, object]) -> Exception:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(state)
    return error


def on_cpu(tensors: Mapping[str, Shaped[Tensor, "..."]]) -> Tensors:
    """Tensors as a store gives them back: on the CPU, contiguous, sharing memory with nothing."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }


def collect(work: Work, shard: int, outcome: Outcome) -> Tensors:
    """Tensors of a shard that a worker is done with, in the driver.

    Raises:
        Exception: whatever the shard raised.
        FileNotFoundError: the worker wrote to a folder that is another one here.
    """
    if isinstance(outcome, Failure):
        raise cloudpickle.loads(outcome.pickled)
    if outcome is not None:
        return safetensors.torch.load(outcome)
    assert work.store is not None
    try:
        return work.store.read(shard)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"a worker finished shard {shard} and {work.store.folder(shard)} is not there. Choose a store in a folder "
            "that all machines share"
        ) from error


def _job(work: Work, payload: bytes | memoryview) -> Job:
    """The job, unpickled once in each worker."""
    if work.digest not in _loaded:
        _loaded.clear()
        if hashlib.sha256(payload).hexdigest() != work.digest:
            raise ValueError("the job changed on its way to the worker; start the run again")
        sys.path.extend(path for path in work.module_paths if path not in sys.path)
        _loaded[work.digest] = cloudpickle.loads(payload)
    return _loaded[work.digest]


def end_with_parent(driver: int) -> None:
    """Have this worker end soon after the driver that started it was killed."""
    if os.getppid() == driver and _WATCH not in {thread.name for thread in threading.enumerate()}:
        threading.Thread(target=_watch, args=(driver,), name=_WATCH, daemon=True).start()


def _watch(driver: int) -> None:
    while os.getppid() == driver:
        time.sleep(_PARENT_CHECK_SECONDS)
    os._exit(1)
