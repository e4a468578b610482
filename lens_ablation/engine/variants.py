"""The one primitive of every study: forward passes in which each row carries its own ablation."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from lens_ablation.ablation import Positions
from lens_ablation.data.metrics import Metric
from lens_ablation.data.task import Task, bytes_of
from lens_ablation.engine.executors import run_job
from lens_ablation.engine.memory import keep_freed_memory, run_in_chunks
from lens_ablation.engine.options import Engine
from lens_ablation.engine.part import Part
from lens_ablation.engine.parts_job import PartsJob
from lens_ablation.engine.path import plain
from lens_ablation.engine.proof import path_of, refuse_store_under_hooks
from lens_ablation.engine.removals import Ablation
from lens_ablation.engine.size import floating_point_work, rows_in_pass
from lens_ablation.models.anatomy import anatomy
from lens_ablation.models.checks import require_meaning
from lens_ablation.models.fingerprint import fingerprint, versions
from lens_ablation.models.protocol import LensModel, require_evaluation_mode
from lens_ablation.sites import check_sites_exist

log = logging.getLogger(__name__)

SHARD_WORK = 2e12
"""Floating-point operations in a shard: some ten seconds on two cores."""

SHARD_ROWS = 2**15
"""Most rows in a shard."""

ROUNDING_SAMPLE = 16
"""Variants, and examples, that are run again in the model's own dtype when another was asked for."""

LEAST_VARIANTS = 16
"""Variants in a shard, at least, so that its clean pass costs little beside them."""


class Scores(NamedTuple):
    """The metric under every variant and of the untouched model, and how they were computed."""

    values: Float[Tensor, "variant example"]
    baseline: Float[Tensor, " example"]
    how: Mapping[str, object]


def run_variants(
    model: LensModel,
    task: Task,
    ablations: Sequence[Ablation],
    *,
    positions: Positions = "all",
    batch_size: int | None = None,
    engine: Engine | None = None,
    advance: Callable[[int], None] | None = None,
) -> Scores:
    """The metric of every example under every variant, where a variant removes the sites flagged in its row.

    Several variants share a forward pass; each row of the batch carries its own mask. A variant starts from the
    clean residual that enters the first block it changes.

    Args:
        model: A TransformerLens model in evaluation mode.
        task: Examples and the metric.
        ablations: Sites, flags and method; several act together, with as many variants each.
        positions: Which tokens are ablated.
        batch_size: Rows (examples x variants) in a forward pass; ``None`` chooses, and halves it on running out of
            memory.
        engine: Where and how it is run, and where finished parts are kept.
        advance: Told the number of rows done.

    Raises:
        BadActivation: the untouched model's metric is not finite.
        HookDidNotFire: an ablation fired a wrong number of times.
        StoreMismatch: the engine's store holds another run.
        ValueError: sites, method and model do not fit together, or a store is asked for while others' hooks are on.
    """
    engine = engine or Engine()
    job = variants_job(model, task, ablations, positions=positions, batch_size=batch_size, engine=engine)
    log.info(
        "%d variants of %d examples in %d shards, %d rows in a pass, %s",
        *(job.n_variants, task.n_examples, len(job.plan), job.capacity, dict(job.path.settings)),
    )
    values, baseline = torch.empty(job.n_variants, task.n_examples), torch.empty(task.n_examples)
    for shard, found in run_job(job, engine, advance or _ignore):
        variants, examples = job.plan[shard]
        values[torch.from_numpy(variants), examples] = found["values"]
        baseline[examples] = found["baseline"]
    how = {**job.path.settings, "rows in a pass": job.capacity, "dtype": str(engine.dtype or "the model's")}
    if engine.dtype is not None:
        how["rounding"] = rounding(job, values)
    return Scores(values, baseline, how)


def variants_job(
    model: LensModel,
    task: Task,
    ablations: Sequence[Ablation],
    *,
    positions: Positions,
    batch_size: int | None,
    engine: Engine,
    about: Mapping[str, object] | None = None,
) -> "VariantsJob":
    """The work of ``run_variants`` in shards, checked and planned."""
    require_evaluation_mode(model)
    checked = [replace(part, sites=check_sites_exist(part.sites, model)) for part in ablations]
    if not checked:
        raise ValueError("no ablations were given; pass at least one Ablation(sites, removed, method)")
    counts = sorted({part.removed.shape[0] for part in checked})
    if len(counts) > 1:
        raise ValueError(f"ablations that act together have as many variants each, got {counts}")
    if counts == [0]:
        raise ValueError("there are no variants to run; give removed at least one row")
    for part in checked:
        require_meaning(model, part.sites.kind)
        part.method.require_sites(part.sites)
        part.method.prepare(model, part.sites.hook_points, torch.arange(min(1, task.n_examples)))
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    refuse_store_under_hooks(model, engine)
    path = path_of(model) if engine.reuse else plain("Engine(reuse=False)")
    capacity = batch_size or rows_in_pass(model, task.inputs)
    return VariantsJob(
        model=model,
        task=task,
        ablations=tuple(checked),
        positions=positions,
        path=path,
        capacity=capacity,
        is_fixed=batch_size is not None,
        clean_bytes=engine.clean_bytes,
        dtype=engine.dtype,
        about=about or {},
    )


@dataclass(eq=False, kw_only=True)
class VariantsJob(PartsJob):
    """Every variant on every example, cut into shards of some variants on some examples."""

    ablations: Sequence[Ablation]
    positions: Positions
    capacity: int
    is_fixed: bool
    about: Mapping[str, object]
    gradients: bool = False
    plan: list[tuple[Int[np.ndarray, " variant"], slice]] = field(init=False)

    def __post_init__(self) -> None:
        n_layers = anatomy(self.model).n_layers
        first = np.min([part.removed.first_layers(part.sites, n_layers) for part in self.ablations], axis=0)
        order = np.argsort(first, kind="stable")
        n_examples = min(self.capacity, self.task.n_examples)
        work = floating_point_work(self.model, self.task.inputs)
        rows = min(SHARD_ROWS, int(SHARD_WORK / work))
        n_variants = max(LEAST_VARIANTS, self.capacity // n_examples, rows // n_examples)
        self.plan = [
            (order[start : start + n_variants], slice(at, min(at + n_examples, self.task.n_examples)))
            for at in range(0, self.task.n_examples, n_examples)
            for start in range(0, len(order), n_variants)
        ]

    @property
    def n_variants(self) -> int:
        """How many variants there are."""
        return self.ablations[0].removed.shape[0]

    @property
    def shards(self) -> Sequence[int]:
        return [len(variants) * (examples.stop - examples.start) for variants, examples in self.plan]

    @property
    def identity(self) -> Mapping[str, object]:
        positions = self.positions if isinstance(self.positions, str) else self.positions.tolist()
        return {
            "model": fingerprint(self.model),
            "task": self.task.fingerprint,
            "wrong answers": digest_of(self.task.wrong_answers),
            "metric": _metric(self.task).identity,
            "positions": positions,
            "ablations": [
                {
                    "sites": part.sites.digest,
                    "removed": part.removed.digest,
                    "method": {"name": part.method.name, **part.method.settings},
                }
                for part in self.ablations
            ],
            "rows in a pass": self.capacity,
            "dtype": str(self.dtype or "the model's"),
            "path": dict(self.path.settings),
            "versions": versions(),
            **self.about,
        }

    def run(self, shard: int, advance: Callable[[int], None] | None = None) -> dict[str, Tensor]:
        keep_freed_memory()
        variants, examples = self.plan[shard]
        part = self.part_of(examples)
        values = torch.empty(len(variants), part.n_examples)
        sums: dict[str, Tensor] = {}

        def run(chunk: slice) -> None:
            found = self.run_rows(part, variants[chunk])
            values[chunk] = found.pop("values")
            for name, total in found.items():
                sums[name] = sums[name] + total if name in sums else total
            if advance is not None:
                advance(part.n_examples * (chunk.stop - chunk.start))

        run_in_chunks(len(variants), max(1, self.capacity // part.n_examples), run, fixed=self.is_fixed)
        return {"values": values, "baseline": part.baseline, **sums}

    def run_rows(self, part: Part, variants: Int[np.ndarray, " chosen"]) -> dict[str, Tensor]:
        """``values [variant, example]`` of some variants in one pass; what else is returned is summed over passes."""
        flags = [ablation.removed.flags(variants) for ablation in self.ablations]
        return {"values": part.scores(flags).float().cpu()}

    def make_part(self, running: LensModel, examples: Int[Tensor, " example"]) -> Part:
        return Part(
            running,
            self.task,
            [(ablation.sites, ablation.method) for ablation in self.ablations],
            self.positions,
            examples,
            self.path,
            clean_bytes=self.clean_bytes,
            gradients=self.gradients,
            prepared_on=self.model,
        )


def rounding(job: VariantsJob, values: Float[Tensor, "variant example"]) -> dict[str, object]:
    """How far values in another dtype are from those in the model's own, on some variants of some examples."""
    variants = np.unique(np.linspace(0, job.n_variants - 1, min(ROUNDING_SAMPLE, job.n_variants)).astype(np.int64))
    examples = torch.arange(min(ROUNDING_SAMPLE, job.task.n_examples))
    sets = [(ablation.sites, ablation.method) for ablation in job.ablations]
    part = Part(job.model, job.task, sets, job.positions, examples, job.path, clean_bytes=job.clean_bytes)
    flags = [ablation.removed.flags(variants) for ablation in job.ablations]
    own = torch.cat([part.scores([rows[i : i + 1] for rows in flags]) for i in range(len(variants))])
    difference = (values[torch.from_numpy(variants)][:, examples] - own.float().cpu()).abs()
    return {
        "largest difference": float(difference.max()),
        "mean difference": float(difference.mean()),
        "variants": len(variants),
        "examples": len(examples),
        "unit": _metric(job.task).unit,
    }


def digest_of(tensor: Shaped[Tensor, "..."] | None) -> str:
    """SHA-256 of a tensor; ``none`` for none."""
    if tensor is None:
        return "none"
    named = f"{tuple(tensor.shape)} {tensor.dtype}".encode()
    return hashlib.sha256(named + bytes_of(tensor)).hexdigest()


def _ignore(rows: int) -> None:
    """Nobody is told."""


def _metric(task: Task) -> Metric:
    assert isinstance(task.metric, Metric)
    return task.metric
