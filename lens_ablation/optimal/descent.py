"""Gradient descent on constants, all problems in the same forward passes."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_ablation.ablation import Positions
from lens_ablation.data.metrics import Metric
from lens_ablation.data.task import Task
from lens_ablation.engine.gates import frozen_weights
from lens_ablation.engine.memory import keep_freed_memory, run_in_chunks
from lens_ablation.engine.options import Engine
from lens_ablation.engine.part import Part
from lens_ablation.engine.path import Path as Shortcuts
from lens_ablation.engine.path import plain
from lens_ablation.engine.proof import path_of
from lens_ablation.engine.size import ALIVE, activation_bytes, rows_in_pass
from lens_ablation.models.anatomy import anatomy
from lens_ablation.models.protocol import LensModel
from lens_ablation.optimal.batches import batch_of
from lens_ablation.optimal.problems import Problems, Tabled, Tables
from lens_ablation.sites import HookPoint

log = logging.getLogger(__name__)

IMPROVEMENT = 1e-3
"""Share of a problem's gap by which an evaluation must lower it to count against its patience."""

VARIANTS_IN_PASS = 4
"""Variants that share a pass where nothing is descended on; their parts hold as many examples as leaves room for."""

BLOWN_UP = 2.0
"""Times the gap of the means, past which a descent that never improved on them is called diverged."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast constants are optimised.

    Attributes:
        lr: Learning rate of AdamW (no weight decay), constant, in standard deviations of the activations.
        steps: Most steps.
        batch_size: Examples in a step.
        evaluate_every: Steps between validations.
        patience: Validations without improvement after which a problem stops.
    """

    lr: float
    steps: int
    batch_size: int
    evaluate_every: int
    patience: int

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluate_every", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give 1 or more")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}; give a positive learning rate")


class Descent:
    """The state of a descent: tables, the best of them so far, AdamW's moments, and the validation curve.

    Args:
        model: A TransformerLens model in evaluation mode.
        training: Examples of the steps, in batches that stay the same.
        validation: Examples on which the best constants are chosen.
        problems: What is optimised.
        start: Constants to begin at.
        spreads: Typical standard deviation of a coordinate at each hook, in which steps are measured.
        positions: Which tokens are ablated.
        per_position: Whether tables have an axis of positions.
        schedule: How long and how fast.
        seed: Draws the order of the batches.
        engine: Memory for clean activations, and whether shortcuts are taken.
    """

    def __init__(
        self,
        model: LensModel,
        training: Task,
        validation: Task,
        problems: Problems,
        start: Tables,
        spreads: Mapping[HookPoint, float],
        *,
        positions: Positions,
        per_position: bool,
        schedule: Schedule,
        seed: int,
        engine: Engine,
    ):
        self.model, self.problems, self.schedule, self.seed = model, problems, schedule, seed
        self.engine, self.positions = engine, positions
        self.sizes = anatomy(model)
        self.path: Shortcuts = path_of(model) if engine.reuse else plain("Engine(reuse=False)")
        weight = next(iter(model.parameters()))
        self.tables: Tables = {
            point: table.detach().to(weight).clone().requires_grad_(True) for point, table in start.items()
        }
        self.best: Tables = {point: table.detach().clone() for point, table in self.tables.items()}
        groups = [{"params": [table], "lr": schedule.lr * spreads[point]} for point, table in self.tables.items()]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        self.methods = [Tabled(self.tables, per_position) for _ in problems.components.sets]
        self.sign = -1.0 if _metric(training).higher_is_better else 1.0
        self.step = 0
        self.active = np.arange(problems.n)
        self.best_gap = torch.full((problems.n,), torch.inf)
        self.best_step = torch.zeros(problems.n, dtype=torch.int64)
        self.idle = torch.zeros(problems.n, dtype=torch.int64)
        self.outcome = ["out of steps"] * problems.n
        self.curve: list[Float[Tensor, " problem"]] = []
        self.steps: list[int] = []
        self.batches = list(torch.arange(training.n_examples).split(schedule.batch_size))
        self.training, self.validation = training, validation
        self._parts: dict[int, Part] = {}
        self._validated: list[Part] = []
        n_bytes = training.n_examples * activation_bytes(model, training.inputs) * ALIVE
        self._keeps = n_bytes <= engine.clean_bytes

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return self.step >= self.schedule.steps or len(self.active) == 0

    def run(self, advance: Callable[[int], None], keep: Callable[[], None]) -> None:
        """Descend to the end; ``keep`` is called after each validation, from where a killed run goes on."""
        keep_freed_memory()
        with frozen_weights(self.model):
            if not self.steps:
                self._validate()
                keep()
            while not self.is_over:
                self._descend()
                self.step += 1
                advance(1)
                if self.step % self.schedule.evaluate_every == 0 or self.step == self.schedule.steps:
                    self._validate()
                    keep()

    def _descend(self) -> None:
        part = self._part(batch_of(self.step, len(self.batches), self.seed))
        removed = self.problems.variants(self.active, self.step)
        tables = list(self.tables.values())
        for table in tables:
            table.grad = torch.zeros_like(table)

        def run(chunk: slice) -> None:
            scores = self.sign * part.scores(self.problems.components.split(removed[chunk]))
            total = scores.mean(dim=1).sum() / (1 if self.problems.ablated_fraction is None else len(removed))
            found = torch.autograd.grad(total, tables, materialize_grads=True, allow_unused=True)
            for table, gradient in zip(tables, found, strict=True):
                assert table.grad is not None
                table.grad += gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

        run_in_chunks(len(removed), max(1, self._capacity // part.n_examples), run, fixed=False)
        self.optimizer.step()

    def _validate(self) -> None:
        """Take the gap of every active problem, keep what is better, and stop what no longer improves."""
        gaps = torch.full((self.problems.n,), torch.nan)
        gaps[torch.from_numpy(self.active)] = self.gaps(self._validation_parts(), self.active).mean(dim=1)
        self.curve.append(gaps)
        self.steps.append(self.step)
        better = gaps < self.best_gap
        matters = gaps < self.best_gap - IMPROVEMENT * self.best_gap.abs()
        self.adopt(self.tables, better)
        self.best_gap = torch.where(better, gaps, self.best_gap)
        self.best_step = torch.where(better, self.step, self.best_step)
        self.idle = torch.where(matters, 0, self.idle + 1)
        running = torch.zeros(self.problems.n, dtype=torch.bool)
        running[torch.from_numpy(self.active)] = True
        broken = running & ~torch.isfinite(gaps)
        done = running & (broken | (self.idle >= self.schedule.patience))
        for problem in done.nonzero()[:, 0].tolist():
            risen = self.best_step[problem] == 0 and gaps[problem] > BLOWN_UP * self.curve[0][problem].abs() + 1e-6
            self.outcome[problem] = "diverged" if broken[problem] or risen else "converged"
        self._restore(done)
        self.active = (running & ~done).nonzero()[:, 0].numpy()

    def gaps(
        self, parts: list[Part], chosen: Int[np.ndarray, " chosen"], tables: Tables | None = None
    ) -> Float[Tensor, "chosen example"]:
        """What ablation to the tables adds to the loss of the examples of ``parts``, on validation masks."""
        removed = self.problems.variants(chosen, None)
        held = dict(self.tables)
        # without a wish for gradients, so that the passes keep nothing for the way back
        self.tables.update({point: table.detach() for point, table in (tables or held).items()})
        try:
            found = self.sign * torch.cat([self._scores(part, removed) - part.baseline for part in parts], dim=1)
        finally:
            self.tables.update(held)
        return found if self.problems.ablated_fraction is None else found.mean(dim=0, keepdim=True)

    def _scores(self, part: Part, removed: np.ndarray) -> Float[Tensor, "variant example"]:
        scores = torch.empty(len(removed), part.n_examples)

        def run(chunk: slice) -> None:
            scores[chunk] = part.scores(self.problems.components.split(removed[chunk])).detach().float().cpu()

        run_in_chunks(len(removed), max(1, self._capacity // part.n_examples), run, fixed=False)
        return scores

    def parts_of(self, task: Task) -> list[Part]:
        """Examples made ready in parts, several variants of which fit in a pass."""
        size = max(1, self._capacity // VARIANTS_IN_PASS)
        return [self._made(task, rows) for rows in torch.arange(task.n_examples).split(size)]

    @property
    def _capacity(self) -> int:
        return rows_in_pass(self.model, self.training.inputs)

    def _part(self, batch: int) -> Part:
        if batch in self._parts:
            return self._parts[batch]
        part = self._made(self.training, self.batches[batch])
        if self._keeps:
            self._parts[batch] = part
        return part

    def _validation_parts(self) -> list[Part]:
        if not self._validated:
            self._validated = self.parts_of(self.validation)
        return self._validated

    def _made(self, task: Task, rows: Int[Tensor, " row"]) -> Part:
        return Part(
            self.model,
            task,
            list(zip(self.problems.components.sets, self.methods, strict=True)),
            self.positions,
            rows,
            self.path,
            clean_bytes=self.engine.clean_bytes // max(1, len(self.batches) if self._keeps else 1),
            gradients=True,
        )

    def adopt(self, tables: Tables, chosen: Bool[Tensor, " problem"]) -> None:
        """Take the constants of some problems for their best."""
        for point, table in tables.items():
            self.best[point] = torch.where(self._is_of(chosen, point), table.detach(), self.best[point])

    def _restore(self, chosen: Tensor) -> None:
        """Put the best constants of stopped problems in the tables, so that none is left at infinity."""
        for point, table in self.tables.items():
            with torch.no_grad():
                table.copy_(torch.where(self._is_of(chosen, point), self.best[point], table))

    def _is_of(self, chosen: Tensor, point: HookPoint) -> Tensor:
        owner = self.problems.owner(point, self.sizes)
        return (chosen[owner.clamp(min=0)] & (owner >= 0)).to(self.best[point].device)


def _metric(task: Task) -> Metric:
    assert isinstance(task.metric, Metric)
    return task.metric
