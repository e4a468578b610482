"""Empirical gradients: neurons shifted by a range of amounts, and the slope of what the answer's probability does."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_ablation.empirical.curves import slope
from lens_ablation.empirical.estimators import Advance, GradientEstimator
from lens_ablation.empirical.gradients import SHIFTS, Shift
from lens_ablation.empirical.question import Question, Slopes, at_sites, probabilities_of
from lens_ablation.engine.executors import run_job
from lens_ablation.engine.memory import keep_freed_memory, run_in_chunks
from lens_ablation.engine.one_position import Single, can_stand_as_tokens
from lens_ablation.engine.part import Part
from lens_ablation.engine.parts_job import PartsJob
from lens_ablation.engine.path import plain
from lens_ablation.engine.proof import path_of, refuse_store_under_hooks
from lens_ablation.engine.size import rows_in_pass, tokens_of
from lens_ablation.engine.variants import digest_of
from lens_ablation.methods.zero import Zero
from lens_ablation.models.fingerprint import fingerprint, versions
from lens_ablation.models.protocol import LensModel
from lens_ablation.sites import HookPoint, SiteSet

NEURONS_IN_SHARD = 64
"""Most neurons of a shard."""

LEAST_TOKENS = 64
"""Variants that stand behind a row, at least, where there are as many: the row itself is computed beside them."""


@dataclass(frozen=True)
class EmpiricalGradient(GradientEstimator):
    """The slope of the probability over measured shifts of the activation, by least squares through the origin.

    Each neuron is shifted alone, at the position that is read alone, by ``step``, ``2 step``, ... up to
    ``shift_range`` to both sides. The slope is ``sum(x y) / sum(x^2)`` of shifts ``x`` and changes ``y``, in float64.

    Attributes:
        shift_range: The largest shift.
        step: Distance of neighbouring shifts.
        shift: ``signed``: ``A + x sign(A)``, so that ``|A|`` is moved, and not at all where it is 0; ``additive``:
            ``A + x``.
        in_deviations: Whether range and step are in standard deviations of each neuron, over the examples where the
            answer is read. Gradients are to a unit of the activation in either case; the shifts of the curves, and
            their slopes, are in deviations. A neuron that never differs is not moved, and has 0.

    Raises:
        ValueError: ``step`` is not positive, is larger than the range, or ``shift`` is unknown.

    Reference:
        Zhao, Jiang, Yoshinaga, *Neuron Empirical Gradient*, 2025, arXiv:2412.18053; its source shifts signed.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task, few = la.tasks.facts(model, n=4), la.neurons(model)[1, :3]
        >>> found = la.neuron_gradients(model, task, few, la.EmpiricalGradient(1.0, 0.5), progress=False)
        >>> found.shifts.tolist(), found.outputs.shape
        ([-1.0, -0.5, 0.5, 1.0], torch.Size([4, 2, 3, 4]))
    """

    shift_range: float = 2.0
    step: float = 0.2
    shift: Shift = "signed"
    in_deviations: bool = False

    def __post_init__(self) -> None:
        if not (0 < self.step <= self.shift_range):
            raise ValueError(
                f"step {self.step} and shift_range {self.shift_range} give no shifts; give 0 < step <= shift_range"
            )
        if self.shift not in SHIFTS:
            raise ValueError(f"shift must be 'signed' or 'additive', got {self.shift!r}")

    @property
    def name(self) -> str:
        return "Empirical gradient"

    @property
    def settings(self) -> Mapping[str, object]:
        return {
            "shift_range": self.shift_range,
            "step": self.step,
            "shift": self.shift,
            "in_deviations": self.in_deviations,
        }

    @property
    def convention(self) -> Shift:
        return self.shift

    @property
    def shifts(self) -> Float[np.ndarray, " shift"]:
        """Every shift, ascending; 0 is not among them."""
        n = int(np.floor(self.shift_range / self.step + 1e-9))
        one_side = self.step * np.arange(1, n + 1)
        return np.concatenate([-one_side[::-1], one_side])

    def rows(self, question: Question) -> int:
        return question.task.n_examples * len(question.sites) * len(self.shifts)

    def parts(self, question: Question, advance: Advance) -> Iterator[tuple[slice, Slopes]]:
        n_examples, n_candidates, n_neurons = question.shape
        question.require_room(torch.float32, len(self.shifts))
        if self.in_deviations and n_examples < 2:
            raise ValueError("one example has no standard deviation; give several, or in_deviations=False")
        activations, baseline = _clean(question)
        scales = activations.double().std(dim=0, correction=0) if self.in_deviations else torch.ones(n_neurons).double()
        job = ShiftJob.of(question, self, scales)
        outputs = torch.empty(n_examples, n_candidates, n_neurons, len(self.shifts), dtype=baseline.dtype)
        for shard, part in run_job(job, question.engine, advance):
            places, examples = job.plan[shard]
            outputs[examples, :, torch.from_numpy(places)] = part["outputs"].to(outputs)
        if self.shift == "signed":
            # nothing was moved: exactly what it was, not what another shape of matrix product rounds it to
            still = (activations == 0)[:, None, :, None] | (scales == 0)[None, None, :, None]
            outputs = torch.where(still, baseline[:, :, None, None], outputs)
        shifts = torch.from_numpy(self.shifts)
        values = (slope(shifts, outputs, baseline) / scales.where(scales > 0, torch.inf)).to(baseline)
        yield (
            slice(0, n_examples),
            Slopes(values=values, activations=activations, probabilities=baseline, outputs=outputs),
        )


def _clean(question: Question) -> tuple[Float[Tensor, "example neuron"], Float[Tensor, "example candidate"]]:
    """Activations and probabilities of the untouched model."""
    seen, baseline = [], []
    for rows in question.parts(gradients=False):
        kept, found = question.clean(rows)
        seen.append(at_sites(question.sites, kept))
        baseline.append(found)
    return torch.cat(seen), torch.cat(baseline)


@dataclass(eq=False, kw_only=True)
class ShiftJob(PartsJob):
    """Every neuron under every shift on every example, in shards of some neurons of a layer on some examples."""

    sites: SiteSet
    candidates: Int[Tensor, "example candidate"]
    shifts: Float[np.ndarray, " shift"]
    scales: Float[Tensor, " neuron"]
    signed: bool
    batch_size: int | None
    plan: list[tuple[Int[np.ndarray, " place"], slice]] = field(init=False)

    @classmethod
    def of(cls, question: Question, way: EmpiricalGradient, scales: Float[Tensor, " neuron"]) -> "ShiftJob":
        """The work, checked and planned; ``scales`` are what shifts are multiplied by, neuron by neuron.

        Raises:
            ValueError: a store is asked for while others' hooks are on the model.
        """
        engine = question.engine
        refuse_store_under_hooks(question.model, engine)
        return cls(
            model=question.model,
            task=question.task,
            sites=question.sites,
            candidates=question.candidates,
            shifts=way.shifts,
            scales=scales,
            signed=way.shift == "signed",
            path=path_of(question.model) if engine.reuse else plain("Engine(reuse=False)"),
            batch_size=question.batch_size,
            clean_bytes=engine.clean_bytes,
            dtype=engine.dtype,
        )

    def __post_init__(self) -> None:
        total = self.task.n_examples
        n_pos = tokens_of(self.model, self.task.inputs)
        tokens = rows_in_pass(self.model, self.task.inputs) * n_pos
        step = self.batch_size or max(1, tokens // (n_pos + max(n_pos, LEAST_TOKENS)))
        layers = self.sites.addresses[:, 0]
        groups = [
            group
            for layer in self.sites.layers
            for group in np.array_split(
                np.flatnonzero(layers == layer), -(-int((layers == layer).sum()) // NEURONS_IN_SHARD)
            )
        ]
        self.plan = [
            (group, slice(start, min(start + step, total))) for start in range(0, total, step) for group in groups
        ]

    @property
    def shards(self) -> Sequence[int]:
        return [len(group) * len(self.shifts) * (examples.stop - examples.start) for group, examples in self.plan]

    @property
    def identity(self) -> Mapping[str, object]:
        return {
            "model": fingerprint(self.model),
            "task": self.task.fingerprint,
            "candidates": digest_of(self.candidates),
            "neurons": self.sites.digest,
            "shifts": hashlib.sha256(np.ascontiguousarray(self.shifts, dtype="<f8").tobytes()).hexdigest(),
            "scales": digest_of(self.scales),
            "signed": self.signed,
            "rows in a pass": self.batch_size or rows_in_pass(self.model, self.task.inputs),
            "dtype": str(self.dtype or "the model's"),
            "path": dict(self.path.settings),
            "versions": versions(),
        }

    def run(self, shard: int, advance: Callable[[int], None] | None = None) -> dict[str, Tensor]:
        """``outputs [example, candidate, neuron, shift]`` of a shard."""
        keep_freed_memory()
        places, examples = self.plan[shard]
        addresses = self.sites.addresses[places]
        point = HookPoint(self.sites.hook_points[0].activation, int(addresses[0, 0]))
        units = torch.from_numpy(addresses[:, 1]).repeat_interleave(len(self.shifts))
        amounts = (self.scales[places, None] * torch.from_numpy(self.shifts)).flatten()
        found: list[Tensor] = []
        with torch.inference_mode():
            part = self.part_of(examples)
            single = Single(part, as_tokens=can_stand_as_tokens(part.model, part))
            ids = self.candidates[examples][:, None].to(part.device)

            def run(chunk: slice) -> None:
                runs = single.logits(point, units[chunk], amounts[chunk], signed=self.signed)
                found.append(
                    torch.cat(
                        [probabilities_of(logits, ids.expand(-1, logits.shape[1], -1)).cpu() for logits in runs], dim=1
                    )
                )
                if advance is not None:
                    advance(part.n_examples * (chunk.stop - chunk.start))

            run_in_chunks(len(units), self._variants(single), run, fixed=self.batch_size is not None)
        shape = (part.n_examples, len(places), len(self.shifts), -1)
        return {"outputs": torch.cat(found, dim=1).reshape(shape).permute(0, 3, 1, 2).contiguous()}

    def _variants(self, single: Single) -> int:
        """Variants in a pass."""
        n_examples, n_pos = single.part.n_examples, tokens_of(self.model, self.task.inputs)
        rows = self.batch_size or rows_in_pass(self.model, self.task.inputs)
        if self.batch_size is not None or not single.as_tokens:
            return max(1, rows // n_examples)
        return max(1, rows * n_pos // n_examples - n_pos)

    def make_part(self, running: LensModel, examples: Int[Tensor, " example"]) -> Part:
        return Part(
            running, self.task, [(self.sites, Zero())], "answer", examples, self.path, clean_bytes=self.clean_bytes
        )
