"""The one primitive of every study: forward passes in which each row carries its own ablation."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_ablation.ablation import Positions, ablation_hooks, removal_masks, repeat_rows, rows_of_task
from lens_ablation.data.inputs import rows_that_fit
from lens_ablation.data.metrics import Metric, answer_logits
from lens_ablation.data.task import Task
from lens_ablation.engine.memory import run_in_chunks
from lens_ablation.errors import BadActivation
from lens_ablation.methods.method import Method
from lens_ablation.models.anatomy import anatomy
from lens_ablation.models.checks import require_meaning
from lens_ablation.models.forward import forward
from lens_ablation.models.protocol import LensModel, input_device, require_evaluation_mode
from lens_ablation.sites import SiteSet, check_sites_exist


def evaluate(model: LensModel, task: Task, *, batch_size: int | None = None) -> tuple[Task, Float[Tensor, " example"]]:
    """The untouched model's metric on each example, and the task with clean logits if its metric needs them.

    Raises:
        BadActivation: a value is not finite.
        ValueError: the model is in training mode, or the task lacks what its metric needs.
    """
    require_evaluation_mode(model)
    metric = _metric(task)
    wants_clean = "clean_logits" in metric.needs
    values: list[Tensor] = []
    clean: list[Tensor] = []
    with torch.inference_mode():
        for batch in task.batches(batch_size or rows_that_fit(task.inputs)):
            logits = forward(model, batch.inputs.to(input_device(model)), attention_mask=batch.attention_mask)
            if wants_clean:
                kept = answer_logits(logits, batch).float().cpu().clone()
                clean.append(kept)
                batch = replace(batch, clean_logits=kept)
            values.append(metric(logits, batch).float().cpu().clone())
    baseline = torch.cat(values)
    if not bool(torch.isfinite(baseline).all()):
        bad = int((~torch.isfinite(baseline)).nonzero()[0])
        raise BadActivation(
            f"the untouched model scores {baseline[bad].item()} on example {bad} under {metric.name}; "
            "nothing can be measured against that. Look for NaN in its weights or inputs, or for masked answers."
        )
    return (replace(task, clean_logits=torch.cat(clean)) if wants_clean else task), baseline


def run_variants(
    model: LensModel,
    task: Task,
    sites: SiteSet,
    removed: Bool[np.ndarray, "variant site"],
    method: Method,
    *,
    positions: Positions = "all",
    batch_size: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> Float[Tensor, "variant example"]:
    """The metric of every example under every variant, where a variant removes the sites flagged in its row.

    Several variants share a forward pass; each row of the batch carries its own mask.

    Args:
        model: A TransformerLens model in evaluation mode.
        task: From ``evaluate``, so that it holds clean logits where its metric needs them.
        sites: Sites of one kind.
        removed: True where a variant removes a site.
        method: What stands in the place of removed activations.
        positions: Which tokens are ablated.
        batch_size: Rows (examples x variants) in a forward pass; ``None`` chooses, and halves it on running out of
            memory.
        advance: Told the number of rows done.

    Raises:
        HookDidNotFire: an ablation fired a wrong number of times.
        ValueError: sites, method and model do not fit together.
    """
    require_evaluation_mode(model)
    sites = check_sites_exist(sites, model)
    if removed.shape[1] != len(sites):
        raise ValueError(f"removed has {removed.shape[1]} columns for {len(sites)} sites")
    require_meaning(model, sites.kind)
    values = torch.empty(len(removed), task.n_examples)
    capacity = batch_size or rows_that_fit(task.inputs)
    with torch.inference_mode():
        for start in range(0, task.n_examples, capacity):
            examples = torch.arange(start, min(start + capacity, task.n_examples))
            part = _Part(model, task, sites, removed, method, positions, examples)
            _fill(values[:, examples[0] : examples[-1] + 1], part, capacity, batch_size is not None, advance)
    return values


class _Part:
    """Some examples of a task, ready to be run under any of the variants."""

    def __init__(
        self,
        model: LensModel,
        task: Task,
        sites: SiteSet,
        removed: Bool[np.ndarray, "variant site"],
        method: Method,
        positions: Positions,
        examples: Int[Tensor, " example"],
    ):
        self.model, self.sites, self.removed, self.method = model, sites, removed, method
        self.batch = task.select(examples)
        self.rows = rows_of_task(task, positions, examples)
        self.replacement = method.prepare(model, sites.hook_points, examples)
        self.inputs = self.batch.inputs.to(input_device(model))

    def run(self, chunk: slice) -> Float[Tensor, "variant example"]:
        """The metric of these examples under a run of variants, in one forward pass."""
        n, n_examples = chunk.stop - chunk.start, self.batch.n_examples
        per_row = np.repeat(self.removed[chunk], n_examples, axis=0)
        masks = removal_masks(self.sites, per_row, anatomy(self.model))
        rows = repeat_rows(self.rows, n, n_examples)
        installed = ablation_hooks(self.model, masks, self.replacement, rows, positional=self.method.positional)
        inputs = self.inputs.repeat(n, *([1] * (self.inputs.ndim - 1)))
        logits = forward(self.model, inputs, attention_mask=rows.attention_mask, fwd_hooks=installed.pairs)
        batch = self.batch.select(torch.arange(n_examples).repeat(n))
        return _metric(batch)(logits, batch).float().cpu().reshape(n, n_examples)


def _fill(
    values: Float[Tensor, "variant example"],
    part: _Part,
    capacity: int,
    fixed: bool,
    advance: Callable[[int], None] | None,
) -> None:
    """Write the metric of a part's examples under every variant into ``values``."""
    n_variants, n_examples = values.shape

    def run(chunk: slice) -> None:
        values[chunk] = part.run(chunk)
        if advance is not None:
            advance(n_examples * (chunk.stop - chunk.start))

    run_in_chunks(n_variants, max(1, capacity // n_examples), run, fixed=fixed)


def _metric(task: Task) -> Metric:
    assert isinstance(task.metric, Metric)
    return task.metric
