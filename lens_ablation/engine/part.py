"""Some examples of a task, run under any of the variants: each row of a forward pass carries its own ablation."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import Module

from lens_ablation.ablation import (
    Firings,
    Positions,
    first_rows,
    removal_masks,
    repeat_rows,
    replacing_hooks,
    rows_of_task,
)
from lens_ablation.data.metrics import Metric, answer_logits, widened
from lens_ablation.data.task import Task
from lens_ablation.engine.attention import first_rows_attend
from lens_ablation.engine.clean import CleanPass, Residual
from lens_ablation.engine.linears import (
    attention_untouched,
    first_rows_only,
    linear_order,
    position_wise,
    positions_only,
    untouched,
)
from lens_ablation.engine.path import Path
from lens_ablation.engine.removals import first_layers_of
from lens_ablation.engine.size import LOGITS
from lens_ablation.engine.tail import answer_logits_of
from lens_ablation.errors import BadActivation
from lens_ablation.methods.method import Method
from lens_ablation.models.anatomy import anatomy
from lens_ablation.models.forward import forward, hooks_installed
from lens_ablation.models.protocol import FwdHook, LensModel, input_device
from lens_ablation.sites import HookPoint, SiteSet

WORTH_KEEPING = 256
"""Width from which on the output of a linear map is quicker read from memory than computed."""

WORTH_KNOWING = 2**15
"""Entries of ``z`` in the joining rows from which on giving them is quicker than computing them."""

Flags = Sequence[Bool[np.ndarray, "variant _site"]]
"""What variants remove, one array to each set of sites."""


class Part:
    """Examples of a task with all that their variants share: clean activations, replacements, masks.

    Args:
        model: The model that runs; perhaps a copy in another dtype of that which ``prepared_on`` names.
        task: Where the examples come from.
        sets: What may be ablated, and the method of each set.
        positions: Which tokens are ablated.
        examples: The examples of this part.
        path: By which shortcuts the model may be run.
        clean_bytes: Memory for clean activations.
        gradients: Whether logits will be differentiated, with respect to replacements.
        prepared_on: The model that methods are prepared on.
        always: Whether shortcuts are taken where they save nothing too, to prove them.

    Attributes:
        batch: The examples, with clean logits where the metric needs them.
        baseline: The untouched model's metric, ``[example]``.

    Raises:
        BadActivation: the untouched model's metric is not finite.
    """

    def __init__(
        self,
        model: LensModel,
        task: Task,
        sets: Sequence[tuple[SiteSet, Method]],
        positions: Positions,
        examples: Int[Tensor, " example"],
        path: Path,
        *,
        clean_bytes: int,
        gradients: bool = False,
        prepared_on: LensModel | None = None,
        always: bool = False,
    ):
        self.model, self.sets, self.path = model, sets, path
        self.sizes, self.device = anatomy(model), input_device(model)
        self.hook_points = model.hook_dict  # read once, as the bridge builds it anew each time
        self.batch = task.select(examples)
        self.rows = rows_of_task(task, positions, examples)
        self.inputs = _for_model(self.batch.inputs, model)
        source = model if prepared_on is None else prepared_on
        self.replacements = [method.prepare(source, sites.hook_points, examples) for sites, method in sets]
        self.least_kept, self.least_attended = (0, 1) if always else (WORTH_KEEPING, WORTH_KNOWING)
        self._repeated: dict[tuple[int, int], Task] = {}
        self._on = torch.enable_grad if gradients else torch.inference_mode
        with torch.no_grad() if gradients else torch.inference_mode():
            logits = self._run_clean(clean_bytes)
            if "clean_logits" in _metric(task).needs:
                self.batch = replace(self.batch, clean_logits=answer_logits(logits, self.batch).clone())
            self.baseline = _metric(task)(logits, self.batch).float().cpu().clone()
        self._require_finite_baseline(int(examples[0]))

    @property
    def n_examples(self) -> int:
        """Examples in this part."""
        return self.batch.n_examples

    def scores(self, flags: Flags) -> Float[Tensor, "variant example"]:
        """The metric of these examples under each variant, in one forward pass."""
        n_variants = len(flags[0])
        if not self.path.prefix:
            return self._plain_scores(flags)
        with self._on():
            residual, order = self.residual(flags)
            values = torch.cat(list(self.tail_scores(residual)))
        unsorted = torch.empty_like(values).reshape(n_variants, self.n_examples)
        unsorted[order] = values.reshape(n_variants, self.n_examples)
        return unsorted

    def residual(self, flags: Flags) -> tuple[Residual, Int[Tensor, " variant"]]:
        """What leaves the last block, rows ``[variant, example]`` of the variants in the order also returned.

        Variants join the pass at the first block that they change, from the clean residual that enters it.
        """
        layers = [
            first_layers_of(sites, part, self.sizes.n_layers) for (sites, _), part in zip(self.sets, flags, strict=True)
        ]
        first = np.min(layers, axis=0)
        order = np.argsort(first, kind="stable")
        first, flags = first[order], [part[order] for part in flags]
        n_layers, n_present = self.sizes.n_layers, 0
        firings = Firings()
        # before any hook is in place, as what was not kept is computed again
        clean = {layer: self.clean.entering(layer) for layer in sorted(set(first.tolist()))}
        residual = self.clean.entering(0)[:0]
        with hooks_installed(self.hook_points, self._hooks(flags, first, firings)):
            for layer in range(int(first[0]), n_layers):
                n = int(np.searchsorted(first, layer, side="right"))
                residual = _joined(residual, clean.get(layer), n - n_present)
                with self.shortcuts(layer, n, n - n_present):
                    residual = self.clean.calls(n)[layer](self.clean.blocks[layer], residual)
                n_present = n
        firings.check(1)
        residual = _joined(residual, clean.get(n_layers), len(first) - n_present)
        return residual, torch.from_numpy(order)

    def answer_logits(self, residual: Residual, rows: slice) -> Float[Tensor, "chosen target d_vocab"]:
        """Logits where the metric reads them (all, if it reads all), for some rows of a residual."""
        batch = self.repeated(rows)
        read = self._positions_of(batch)
        mask = None if batch.attention_mask is None else batch.attention_mask.to(self.device)
        inputs = _for_model(batch.inputs, self.model)
        return answer_logits_of(self.path.tail, self.model, self.clean, residual[rows], inputs, read, mask)

    def repeated(self, rows: slice) -> Task:
        """The examples in some rows ``[variant, example]`` of a pass."""
        key = (rows.start % self.n_examples, rows.stop - rows.start)
        if key not in self._repeated:
            self._repeated[key] = self.batch.select(torch.arange(key[0], key[0] + key[1]) % self.n_examples)
        return self._repeated[key]

    def _run_clean(self, clean_bytes: int) -> Tensor:
        """Logits of the untouched model, from the pass in which its activations are kept."""
        if not self.path.prefix:
            mask = None if self.batch.attention_mask is None else self.batch.attention_mask.to(self.device)
            return forward(self.model, self.inputs, attention_mask=mask)
        self.untouched: dict[int, tuple[Module, ...]] = {}
        self.position_wise: tuple[Module, ...] = ()
        self.attended: dict[int, Module] = {}
        points = [point for sites, _ in self.sets for point in sites.hook_points]
        if self.path.attention:
            # where a pattern or its inputs are written, the values of all rows are needed
            layers = sorted(attention_untouched(points))
            self.attended = {layer: self.hook_points[HookPoint("z", layer).name] for layer in layers}
        if self.path.linears:
            order = linear_order(self.model)
            self.untouched = untouched(order, points) if self.sizes.d_model >= self.least_kept else {}
            for layer in self.attended.keys() & self.untouched.keys():
                inside = order.before.get(HookPoint("z", layer), ())
                self.untouched[layer] = tuple(linear for linear in self.untouched[layer] if linear not in inside)
            last = self.sizes.n_layers - 1
            self.position_wise = position_wise(order, points, last, self.untouched.get(last, ()))
        mask = self.batch.attention_mask
        self.clean = CleanPass(
            self.model,
            self.inputs,
            mask,
            linears=self.untouched,
            hooks=list(self.attended.values()),
            budget=clean_bytes,
        )
        return self.clean.logits

    def _require_finite_baseline(self, first: int) -> None:
        bad = (~torch.isfinite(self.baseline)).nonzero()
        if len(bad):
            raise BadActivation(
                f"the untouched model scores {self.baseline[bad[0, 0]].item()} on example {first + int(bad[0, 0])} "
                f"under {_metric(self.batch).name}; nothing can be measured against that. Look for NaN in its "
                "weights or inputs, or for masked answers."
            )

    def _hooks(self, flags: Flags, first: Int[np.ndarray, " variant"], firings: Firings) -> list[FwdHook]:
        """Hooks of each block that some variant changes, for the rows that have joined by then."""
        rows = repeat_rows(self.rows, len(first), self.n_examples)
        pairs: list[FwdHook] = []
        parts = zip(self.sets, self.replacements, flags, strict=True)
        # values first: a pattern is realised with those that its head then has
        for (sites, method), replacement, part in sorted(parts, key=lambda entry: entry[0][0].kind != "v"):
            for point, mask in removal_masks(sites, part, self.sizes).items():
                n = int(np.searchsorted(first, point.layer, side="right"))
                here = mask[:n].repeat_interleave(self.n_examples, dim=0)
                present = first_rows(rows, n * self.n_examples)
                pairs += replacing_hooks({point: here}, replacement, present, firings, positional=method.positional)
        return pairs

    @contextmanager
    def shortcuts(self, layer: int, n_variants: int, n_joining: int) -> Iterator[None]:
        """Attention and linear maps answer from memory where they can, and run where they are needed."""
        n_rows, n_known = n_variants * self.n_examples, n_joining * self.n_examples
        with ExitStack() as inside:
            z = None if layer not in self.attended else self.clean.kept(self.attended[layer])
            if z is not None and n_known * z[0].numel() >= self.least_attended:
                attention = self.clean.attention(layer)
                joined = first_rows_attend(attention, self.attended[layer], z, n_rows, n_known, n_joining)
                inside.enter_context(joined)
            if n_joining and self.untouched.get(layer):
                kept = {linear: self.clean.kept(linear) for linear in self.untouched[layer]}
                outputs = {linear: output for linear, output in kept.items() if output is not None}
                inside.enter_context(first_rows_only(outputs, n_rows, n_known, n_joining))
            if layer == self.sizes.n_layers - 1 and self.position_wise:
                read = self._positions_of(self.repeated(slice(0, n_variants * self.n_examples)))
                if read is not None and 2 * read.shape[1] <= self.clean.n_pos:
                    inside.enter_context(positions_only(self.position_wise, read, self.clean.n_pos))
            yield

    def _positions_of(self, batch: Task) -> Int[Tensor, "row target"] | None:
        """Where logits are read; ``None`` for everywhere."""
        if _metric(batch).reads == "logits" and batch.n_pos is not None:
            return None
        positions = batch.answer_positions
        if positions is not None:
            return positions.clamp(min=0).to(self.device)
        if self.path.class_position is None:
            return None
        return torch.full((batch.n_examples, 1), self.path.class_position, device=self.device)

    def tail_scores(self, residual: Residual) -> Iterator[Float[Tensor, " row"]]:
        """The metric of all rows, in runs of as many as keep the logits small."""
        for logits, batch in self.tail_logits(residual):
            metric = _metric(batch)
            if metric.reads == "answers":
                yield metric.of_answers(widened(logits), batch)
            else:
                yield metric(logits if batch.n_pos is not None else logits[:, 0], batch)

    def tail_logits(self, residual: Residual) -> Iterator[tuple[Float[Tensor, "row target d_vocab"], Task]]:
        """Logits where the metric reads them (all, if it reads all), and the examples, in runs of rows."""
        read = self._positions_of(self.batch)
        n_read = self.clean.n_pos if read is None else read.shape[1]
        width = int(self.clean.logits.shape[-1])
        budget = LOGITS.get(self.device.type, LOGITS["cuda"])
        step = max(1, budget // (n_read * width * residual.element_size()))
        if step >= self.n_examples:
            step -= step % self.n_examples
        for start in range(0, len(residual), step):
            rows = slice(start, min(start + step, len(residual)))
            yield self.answer_logits(residual, rows), self.repeated(rows)

    def plain_logits(self, flags: Flags) -> Float[Tensor, "row ... width"]:
        """All logits of the variants by a plain forward pass, rows ``[variant, example]``."""
        n = len(flags[0])
        firings = Firings()
        pairs = self._hooks(flags, np.zeros(n, dtype=np.int64), firings)
        inputs = self.inputs.repeat(n, *([1] * (self.inputs.ndim - 1)))
        mask = None if self.batch.attention_mask is None else self.batch.attention_mask.repeat(n, 1).to(self.device)
        with self._on():
            logits = forward(self.model, inputs, attention_mask=mask, fwd_hooks=pairs)
        firings.check(1)
        return logits

    def _plain_scores(self, flags: Flags) -> Float[Tensor, "variant example"]:
        n = len(flags[0])
        batch = self.repeated(slice(0, n * self.n_examples))
        with self._on():
            return _metric(batch)(self.plain_logits(flags), batch).reshape(n, self.n_examples)


def _joined(
    residual: Residual, clean: Float[Tensor, "example pos d_model"] | None, n_variants: int
) -> Float[Tensor, "joined pos d_model"]:
    """The residual with the clean one, once for each joining variant, behind it."""
    if n_variants == 0:
        return residual
    assert clean is not None
    joining = clean.repeat(n_variants, 1, 1)
    return torch.cat([residual, joining]) if len(residual) else joining


def _for_model(inputs: Tensor, model: LensModel) -> Tensor:
    """Inputs on the model's device; pixels in its dtype."""
    weight = next(iter(model.parameters()))
    return inputs.to(weight.device, weight.dtype) if inputs.ndim == 4 else inputs.to(weight.device)


def _metric(task: Task) -> Metric:
    assert isinstance(task.metric, Metric)
    return task.metric
