"""Outputs of a model under random masks, and the slopes in what is kept: all that attributions are fitted to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_ablation.ablation import Positions
from lens_ablation.components import Components
from lens_ablation.data.task import Task
from lens_ablation.engine.executors import run_job
from lens_ablation.engine.gates import gate_gradients
from lens_ablation.engine.options import Engine
from lens_ablation.engine.part import Part
from lens_ablation.engine.removals import Ablation, Packed
from lens_ablation.engine.variants import VariantsJob, run_variants, variants_job
from lens_ablation.methods.method import Method
from lens_ablation.models.protocol import LensModel

FORWARD_BLOCK = 1024
"""Masks that are run, and kept in a store, together."""

GRADIENT_BLOCK = 64
"""The same where slopes are taken."""

BACKWARD_COST = 3
"""Forward passes that a forward and a backward pass count for."""

ROWS_OF_GRADIENTS = 4
"""How many times fewer rows fit in a pass whose activations are kept for the way back."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Setting:
    """What is asked of a model: data, components, what replaces them, and how it is run."""

    model: LensModel
    task: Task
    components: Components
    methods: tuple[Method, ...]
    positions: Positions = "all"
    batch_size: int | None = None
    engine: Engine = field(default_factory=Engine)

    def ablations(self, removed: np.ndarray) -> list[Ablation]:
        """The ablations whose variants are the rows of ``removed [mask, component]``."""
        split = self.components.split(removed)
        return [
            Ablation(sites, Packed.of(flags), method)
            for sites, flags, method in zip(self.components.sets, split, self.methods, strict=True)
        ]


@dataclass(frozen=True, eq=False, kw_only=True)
class Slopes:
    """Slopes of the output in the keep gates of the components, averaged over masks.

    Gates of components that a mask keeps and of those that it ablates are averaged apart: for an output that is
    quadratic in a gate the mean of both is what the component adds.

    Attributes:
        kept: Mean slope where the component is kept, ``[example, component]``.
        ablated: Mean slope where it is ablated; where no mask ablates it, ``kept``.
        errors: Standard error of the mean of both.
    """

    kept: Float[Tensor, "example component"]
    ablated: Float[Tensor, "example component"]
    errors: Float[Tensor, "example component"]

    @property
    def both(self) -> Float[Tensor, "example component"]:
        """What each component adds, by the trapezoid rule."""
        return (self.kept + self.ablated) / 2


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskOutputs:
    """The metric of every example under every mask.

    Attributes:
        removed: What each mask ablates, ``[mask, component]``.
        values: ``[mask, example]``.
        baseline: The untouched model, ``[example]``.
        slopes: From the first ``n_gradient`` masks; ``None`` if there are none.
        n_gradient: Masks of which slopes were taken.
    """

    removed: Packed
    values: Float[Tensor, "mask example"]
    baseline: Float[Tensor, " example"]
    slopes: Slopes | None
    n_gradient: int

    @property
    def n_passes(self) -> int:
        """Forward passes over the examples, those with slopes counted three times."""
        return len(self.values) + (BACKWARD_COST - 1) * self.n_gradient


def mask_outputs(
    setting: Setting,
    removed: Bool[np.ndarray, "mask component"],
    n_gradient: int,
    advance: Callable[[int], None],
) -> MaskOutputs:
    """Run the model under masks; the first ``n_gradient`` of them with slopes.

    In a store, blocks of masks are kept apart, so that a run with more masks finds those that were run before.

    Raises:
        ValueError: the setting does not fit together.
    """
    n_masks = len(removed)
    values = torch.empty(n_masks, setting.task.n_examples)
    baseline = torch.empty(setting.task.n_examples)
    sums = _SlopeSums.zeros(setting.task.n_examples, len(setting.components)) if n_gradient else None
    for start, stop in _blocks(0, n_gradient, GRADIENT_BLOCK):
        assert sums is not None
        values[start:stop], baseline = _gradient_block(setting, removed[start:stop], start, sums, advance)
    for start, stop in _blocks(n_gradient, n_masks, FORWARD_BLOCK):
        scores = run_variants(
            setting.model,
            setting.task,
            setting.ablations(removed[start:stop]),
            positions=setting.positions,
            batch_size=setting.batch_size,
            engine=setting.engine.part(f"masks-{start}-{stop}"),
            advance=advance,
        )
        values[start:stop], baseline = scores.values, scores.baseline
    return MaskOutputs(
        removed=Packed.of(removed),
        values=values,
        baseline=baseline,
        slopes=None if sums is None else sums.slopes(),
        n_gradient=n_gradient,
    )


def _blocks(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    return [(at, min(at + size, stop)) for at in range(start, stop, size)]


def _gradient_block(
    setting: Setting, removed: np.ndarray, start: int, sums: "_SlopeSums", advance: Callable[[int], None]
) -> tuple[Tensor, Tensor]:
    engine = setting.engine.part(f"gradients-{start}-{start + len(removed)}")
    plain = variants_job(
        setting.model,
        setting.task,
        setting.ablations(removed),
        positions=setting.positions,
        batch_size=setting.batch_size,
        engine=engine,
        about={"slopes": "kept and ablated"},
    )
    job = GradientJob.of(plain)
    values, baseline = torch.empty(len(removed), setting.task.n_examples), torch.empty(setting.task.n_examples)
    for shard, found in run_job(job, engine, advance):
        variants, examples = job.plan[shard]
        values[torch.from_numpy(variants), examples] = found["values"]
        baseline[examples] = found["baseline"]
        sums.add(examples, found)
    return values, baseline


class GradientJob(VariantsJob):
    """The work of ``run_variants`` with slopes in all keep gates, summed over masks."""

    @classmethod
    def of(cls, job: VariantsJob) -> "GradientJob":
        """The same work, with slopes, in smaller passes."""
        capacity = job.capacity if job.is_fixed else max(1, job.capacity // ROWS_OF_GRADIENTS)
        return cls(
            model=job.model,
            task=job.task,
            ablations=job.ablations,
            positions=job.positions,
            path=job.path,
            capacity=capacity,
            is_fixed=job.is_fixed,
            clean_bytes=job.clean_bytes,
            dtype=job.dtype,
            about=job.about,
            gradients=True,
        )

    def run_rows(self, part: Part, variants: np.ndarray) -> dict[str, Tensor]:
        """Values of some variants, and sums of their slopes."""
        flags = [ablation.removed.flags(variants) for ablation in self.ablations]
        found = gate_gradients(part, [rows.astype(np.float32) for rows in flags])
        slopes = torch.cat(found.slopes, dim=2).double()
        removed = torch.from_numpy(np.concatenate(flags, axis=1))[:, None].double()
        kept = slopes * (1 - removed)
        return {
            "values": found.values.float().cpu(),
            "kept": kept.sum(dim=0),
            "kept_squared": (kept**2).sum(dim=0),
            "ablated": (slopes - kept).sum(dim=0),
            "ablated_squared": ((slopes - kept) ** 2).sum(dim=0),
            "n_ablated": removed.sum(dim=0).expand(part.n_examples, -1).clone(),
            "n": torch.full((part.n_examples,), float(len(variants)), dtype=torch.float64),
        }


@dataclass(frozen=True, eq=False)
class _SlopeSums:
    totals: Mapping[str, Tensor]

    @classmethod
    def zeros(cls, n_examples: int, n_components: int) -> "_SlopeSums":
        names: Sequence[str] = ("kept", "kept_squared", "ablated", "ablated_squared", "n_ablated")
        totals = {name: torch.zeros(n_examples, n_components, dtype=torch.float64) for name in names}
        return cls({**totals, "n": torch.zeros(n_examples, dtype=torch.float64)})

    def add(self, examples: slice, found: Mapping[str, Tensor]) -> None:
        for name, total in self.totals.items():
            total[examples] += found[name]

    def slopes(self) -> Slopes:
        sums, n_ablated = self.totals, self.totals["n_ablated"]
        n_kept = self.totals["n"][:, None] - n_ablated
        kept, kept_error = _mean_and_error(sums["kept"], sums["kept_squared"], n_kept)
        ablated, ablated_error = _mean_and_error(sums["ablated"], sums["ablated_squared"], n_ablated)
        never = n_ablated == 0
        ablated, ablated_error = ablated.where(~never, kept), ablated_error.where(~never, kept_error)
        errors = (kept_error**2 + ablated_error**2).sqrt() / 2
        return Slopes(kept=kept.float(), ablated=ablated.float(), errors=errors.float())


def _mean_and_error(total: Tensor, squared: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    mean = total / n.clamp(min=1)
    variance = (squared / n.clamp(min=1) - mean**2).clamp(min=0) * n / (n - 1).clamp(min=1)
    return mean, (variance / n.clamp(min=1)).sqrt()
