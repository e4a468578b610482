"""Jobs whose runs can be counted, slowed and broken, for the tests of stores and executors."""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor

import lens_ablation as la
from lens_ablation.engine.executors import run_job
from lens_ablation.engine.job import Job
from lens_ablation.engine.options import Engine, Executor
from lens_ablation.engine.removals import Ablation, OneEach
from lens_ablation.engine.variants import VariantsJob, variants_job


class Stubborn(ValueError):
    """An exception that its own pickle cannot make again."""

    def __init__(self, shard: int, reason: str):
        self.shard = shard
        super().__init__(f"shard {shard}: {reason}")


@dataclass(frozen=True)
class ToyJob(Job):
    """Numbers from a seed, one shard after another.

    Attributes:
        rows: Rows of each shard.
        seed: Determines the numbers.
        marks: Folder with one file for each run of each shard.
        seconds: How long a shard takes.
        fails: Shards that raise.
        deadly: Shards that kill their worker on their first run.
        fatal: Shards that kill their worker on every run.
        ballast: Part of the payload, not of the numbers.
    """

    rows: tuple[int, ...]
    marks: Path
    seed: int = 0
    seconds: float = 0.0
    fails: tuple[int, ...] = ()
    deadly: tuple[int, ...] = ()
    fatal: tuple[int, ...] = ()
    ballast: Tensor | None = field(default=None, compare=False)

    @property
    def identity(self) -> Mapping[str, object]:
        return {"study": "toy", "seed": self.seed, "method": {"name": "zero"}}

    @property
    def shards(self) -> Sequence[int]:
        return self.rows

    def run(self, shard: int, advance: Callable[[int], None] | None = None) -> dict[str, Tensor]:
        first = not self.runs(shard)
        (self.marks / f"{shard}-{os.getpid()}-{time.monotonic_ns()}").touch()
        if shard in self.fatal or (shard in self.deadly and first):
            os.kill(os.getpid(), signal.SIGKILL)
        if shard in self.fails:
            raise Stubborn(shard, "no such luck")
        time.sleep(self.seconds)
        generator = torch.Generator().manual_seed(self.seed * 1000 + shard)
        values = torch.rand(self.rows[shard], 300, generator=generator)
        if advance is not None:
            for _ in range(self.rows[shard]):
                advance(1)
        threads = torch.tensor(torch.get_num_threads())
        return {"values": values.softmax(1) @ values.T, "half": values[:, ::2].bfloat16(), "threads": threads}

    def runs(self, shard: int) -> int:
        """How often a shard was started."""
        return len(list(self.marks.glob(f"{shard}-*")))

    @property
    def all_runs(self) -> int:
        """How often any shard was started."""
        return len(list(self.marks.iterdir()))


@dataclass(eq=False, kw_only=True)
class MarkedSweep(VariantsJob):
    """A real sweep that leaves a file at every start of a shard."""

    marks: Path

    def run(self, shard: int, advance: Callable[[int], None] | None = None) -> dict[str, Tensor]:
        (self.marks / f"{shard}-{os.getpid()}-{time.monotonic_ns()}").touch()
        return super().run(shard, advance)

    @property
    def all_runs(self) -> int:
        """How often any shard was started."""
        return len(list(self.marks.iterdir()))


def marked_sweep(marks: Path, shards: int, examples_in_shard: int = 120) -> MarkedSweep:
    """Every head of tiny-lm ablated to zero alone, on as many prompts as fill ``shards`` shards."""
    model = la.load_model("tiny-lm")
    task = la.tasks.ioi(model, n=shards * examples_in_shard)
    heads = la.heads(model)
    ablations = [Ablation(heads, OneEach(len(heads)), la.Zero())]
    job = variants_job(model, task, ablations, positions="all", batch_size=examples_in_shard, engine=la.Engine())
    given = {f.name: getattr(job, f.name) for f in fields(job) if f.init}
    return MarkedSweep(**given, marks=marks)


def same(a: Mapping[int, Mapping[str, Tensor]], b: Mapping[int, Mapping[str, Tensor]]) -> bool:
    """Whether two sets of shards are the same bit for bit, the number of threads apart."""
    return a.keys() == b.keys() and all(
        a[shard].keys() == b[shard].keys()
        and all(
            a[shard][name].dtype == b[shard][name].dtype and torch.equal(a[shard][name], b[shard][name])
            for name in a[shard]
            if name != "threads"
        )
        for shard in a
    )


def drive(rows: Sequence[int], marks: str, store: str, executor: Executor, workers: int | None, seconds: float) -> None:
    """Run a slow job from a process of its own, to be killed."""
    # a test run that was started in the background of a shell hands down that Ctrl-C is ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    job = ToyJob(rows=tuple(rows), marks=Path(marks), seconds=seconds)
    engine = Engine(executor=executor, workers=workers, store=store)
    done = [shard for shard, _ in run_job(job, engine, lambda rows: None)]
    assert sorted(done) == list(range(len(rows)))
