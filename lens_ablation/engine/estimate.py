"""What a run will cost: forward passes, operations, memory, and time."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from lens_ablation.ablation import Positions
from lens_ablation.data.as_task import as_task
from lens_ablation.data.metrics import Metric
from lens_ablation.data.task import Task
from lens_ablation.engine.clean import blocks_of
from lens_ablation.engine.linears import LinearOrder, attention_untouched, linear_order, position_wise, untouched
from lens_ablation.engine.options import Engine
from lens_ablation.engine.part import WORTH_KEEPING
from lens_ablation.engine.removals import Ablation, OneEach
from lens_ablation.engine.size import ALIVE, activation_bytes, tokens_of
from lens_ablation.engine.variants import VariantsJob, variants_job
from lens_ablation.methods.method import Method
from lens_ablation.models.anatomy import anatomy
from lens_ablation.models.protocol import LensModel
from lens_ablation.sites import HookPoint, Site, SiteSet, as_site_set, check_sites_exist


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The cost of a run.

    Attributes:
        passes: Forward passes, clean ones included; most run a part of the model's blocks only.
        rows: Examples times variants.
        work: Floating-point operations that cannot be avoided: matrix products of the blocks from the first ablated
            one on, and of the unembedding at the positions that are read.
        seconds: From the time of one of the passes on this machine.
        memory_bytes: Activations of a pass and clean activations, from above; weights are not counted.
    """

    passes: int
    rows: int
    work: float
    seconds: float
    memory_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.passes:,} passes over {self.rows:,} rows, {self.work:.2g} operations, about {self.seconds:.3g} s "
            f"and {self.memory_bytes / 2**20:,.0f} MiB"
        )


def estimate(
    model: LensModel,
    data: Task | Tensor | Iterable[object],
    sites: Site | SiteSet | Iterable[Site],
    method: Method,
    *,
    positions: Positions = "all",
    batch_size: int | None = None,
    engine: Engine | None = None,
) -> Estimate:
    """What ``sweep`` with the same arguments will cost, from running one of its passes.

    Raises:
        ValueError: model, data, sites and method do not fit together.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> cost = la.estimate(model, la.tasks.ioi(model, n=64), la.heads(model), la.Zero())
        >>> cost.rows
        2048
    """
    task, chosen = as_task(data, model), check_sites_exist(as_site_set(sites), model)
    ablations = [Ablation(chosen, OneEach(len(chosen)), method)]
    options = {"positions": positions, "batch_size": batch_size, "engine": engine or Engine()}
    return estimate_job(variants_job(model, task, ablations, **options))


def estimate_job(job: VariantsJob) -> Estimate:
    """What a run will cost, from running one of its passes.

    The pass in the middle of the plan is run, twice, as the first run of anything is slower.
    """
    n_layers = anatomy(job.model).n_layers
    work, passes, rows = 0.0, 0, 0
    first = np.min([part.removed.first_layers(part.sites, n_layers) for part in job.ablations], axis=0)
    per_layer = [work_of_row(job, layer) for layer in range(n_layers + 1)]
    prepared: slice | None = None
    for variants, examples in job.plan:
        n_examples = examples.stop - examples.start
        if examples != prepared:  # shards of the same examples share their clean pass
            prepared = examples
            work += n_examples * clean_work(job)
            passes += 1
        work += n_examples * sum(per_layer[layer] for layer in first[variants])
        passes += -(-len(variants) // max(1, job.capacity // n_examples))
        rows += n_examples * len(variants)
    seconds, sampled = _timed_pass(job, first, per_layer)
    clean = min(job.clean_bytes, _clean_bytes(job))
    return Estimate(
        passes=passes,
        rows=rows,
        work=work,
        seconds=work * seconds / max(sampled, 1.0),
        memory_bytes=int(job.capacity * activation_bytes(job.model, job.task.inputs) * ALIVE + clean),
    )


def clean_work(job: VariantsJob) -> float:
    """Operations of an untouched pass over one row."""
    return _blocks_work(job, 0, trimmed=False) + _head_work(job, tokens_of(job.model, job.task.inputs))


def work_of_row(job: VariantsJob, first_layer: int) -> float:
    """Operations of one example under a variant that changes ``first_layer`` first."""
    read = _positions_read(job)
    if not job.path.prefix:
        return clean_work(job)
    blocks = _blocks_work(job, first_layer, trimmed=job.path.linears and read is not None)
    n_pos = tokens_of(job.model, job.task.inputs)
    return blocks + _head_work(job, n_pos if read is None or job.path.tail == "model" else read)


def _blocks_work(job: VariantsJob, first_layer: int, *, trimmed: bool) -> float:
    sizes, n_pos, read = anatomy(job.model), tokens_of(job.model, job.task.inputs), _positions_read(job)
    order, last = linear_order(job.model), anatomy(job.model).n_layers - 1
    points = [point for part in job.ablations for point in part.sites.hook_points]
    saved = untouched(order, points) if trimmed and sizes.d_model >= WORTH_KEEPING else {}
    late: set[Module] = set()
    if trimmed:
        modules = position_wise(order, points, last, saved.get(last, ()))
        late = {inner for module in modules for inner in module.modules()}
    total = 0.0
    for layer in range(first_layer, sizes.n_layers):
        known = set(saved.get(layer, ())) if layer == first_layer else set()
        if trimmed and job.path.attention and layer == first_layer and layer in attention_untouched(points):
            known |= set(order.before.get(HookPoint("z", layer), ()))
        else:
            total += 4.0 * n_pos * n_pos * sizes.n_heads * sizes.d_head
        for module in _weighted(order, blocks_of(job.model)[layer], layer):
            if module not in known:
                total += 2.0 * (read or n_pos if module in late else n_pos) * _matrix_weights(module)
    return total


def _weighted(order: LinearOrder, block: Module, layer: int) -> tuple[Module, ...]:
    """The linear maps that run in a block; where it has none, the modules that hold matrices."""
    point = HookPoint("z", layer)
    linears = (*order.before.get(point, ()), *order.after.get(point, ()))
    return linears or tuple(module for module in block.modules() if _matrix_weights(module))


def _matrix_weights(module: Module) -> int:
    return sum(weight.numel() for weight in module._parameters.values() if weight is not None and weight.ndim >= 2)


def _head_work(job: VariantsJob, n_pos: int) -> float:
    sizes = anatomy(job.model)
    return 2.0 * n_pos * sizes.d_model * _classes(job)


def _classes(job: VariantsJob) -> int:
    d_vocab = int(getattr(job.model.cfg, "d_vocab", -1) or -1)
    if d_vocab > 0:
        return d_vocab
    return int(getattr(getattr(getattr(job.model, "original_model", None), "config", None), "num_labels", 0))


def _positions_read(job: VariantsJob) -> int | None:
    assert isinstance(job.task.metric, Metric)
    answered = job.task.answer_positions
    if answered is None:
        return None if job.path.class_position is None else 1
    return None if job.task.metric.reads == "logits" else answered.shape[1]


def _clean_bytes(job: VariantsJob) -> int:
    sizes = anatomy(job.model)
    size = next(iter(job.model.parameters())).element_size()
    n_examples = job.plan[0][1].stop - job.plan[0][1].start
    per_token = (sizes.n_layers + 1) * sizes.d_model + sizes.n_layers * (4 * sizes.d_model + sizes.d_mlp)
    return n_examples * tokens_of(job.model, job.task.inputs) * per_token * size


def _timed_pass(job: VariantsJob, first: np.ndarray, per_layer: list[float]) -> tuple[float, float]:
    """Seconds and operations of a pass from the middle of the plan."""
    variants, examples = job.plan[len(job.plan) // 2]
    part = job.part_of(examples)
    n = min(len(variants), max(1, job.capacity // part.n_examples))
    middle = (len(variants) - n) // 2
    chosen = variants[middle : middle + n]
    flags = [ablation.removed.flags(chosen) for ablation in job.ablations]
    part.scores(flags)
    start = time.perf_counter()
    part.scores(flags)
    if part.device.type == "cuda":
        torch.cuda.synchronize(part.device)
    return time.perf_counter() - start, part.n_examples * sum(per_layer[layer] for layer in first[chosen])
