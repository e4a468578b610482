"""Proof, once for each model, that its shortcuts give the numbers of plain forward passes."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_ablation.data.metrics import as_metric, at_positions
from lens_ablation.data.task import Task
from lens_ablation.engine.options import Engine
from lens_ablation.engine.part import Part
from lens_ablation.engine.path import Path, plain
from lens_ablation.engine.tail import Tail
from lens_ablation.errors import BadActivation, HookError, UnsupportedModel
from lens_ablation.methods.method import Method
from lens_ablation.methods.zero import Zero
from lens_ablation.models.anatomy import anatomy, probe_inputs
from lens_ablation.models.protocol import LensModel
from lens_ablation.selectors import attention_neurons, neurons
from lens_ablation.sites import SiteSet

log = logging.getLogger(__name__)

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}
"""Most that shortcuts may differ from a plain pass, over the largest logit, by the model's dtype."""

_CLEAN_BYTES = 2**28
_proved: WeakKeyDictionary[Any, tuple[tuple[object, ...], Path]] = WeakKeyDictionary()


def path_of(model: LensModel) -> Path:
    """The fastest path that was proved to give the numbers of a plain forward pass.

    Skipped blocks must leave the logits equal bit for bit; what changes the shapes of matrix products (linear maps
    on some rows or positions, unembedding at some positions) must agree within ``TOLERANCE``. The proof is made
    once for each model, and again when its dtype or its hooks of torch change. A model with other hooks of
    TransformerLens runs plainly: they may count passes, or act across blocks.
    """
    hooked = _hooked_points(model)
    if hooked:
        return plain(f"the model has other hooks, at {min(hooked)}")
    dtype = next(iter(model.parameters())).dtype
    known = _proved.get(model)
    if known is None or known[0] != (dtype, *_torch_hooks(model)):
        found = _prove(model, dtype)  # transformers installs hooks of its own in a model's first pass
        known = _proved[model] = ((dtype, *_torch_hooks(model)), found)
        if known[1].note:
            log.warning("%s: %s", type(model).__name__, known[1].note)
    return known[1]


def refuse_store_under_hooks(model: LensModel, engine: Engine) -> None:
    """Refuse a store while others' hooks are on the model: two runs under other hooks would have one identity.

    Raises:
        ValueError: there are such hooks, and the engine keeps finished parts.
    """
    if engine.store is not None and (hooked := _hooked_points(model)):
        raise ValueError(
            f"the model has other hooks, at {min(hooked)}, and a store cannot tell runs apart by them; leave out "
            "store=, or bake what is ablated into a model of its own (lens_ablation.bake)"
        )


def _hooked_points(model: LensModel) -> list[str]:
    """Names of the hook points that hold somebody's temporary hooks."""
    return [name for name, point in model.hook_dict.items() if any(not h.is_permanent for h in point.fwd_hooks)]


def _torch_hooks(model: LensModel) -> Iterator[int]:
    """Numbers of the hooks of torch on the model and on its blocks, which torch never gives twice."""
    modules = (model, getattr(model, "original_model", None), *(getattr(model, "blocks", None) or ()))
    for module in modules:
        if isinstance(module, torch.nn.Module):
            yield from module._forward_hooks
            yield from module._forward_pre_hooks


def _prove(model: LensModel, dtype: torch.dtype) -> Path:
    try:
        probe = _Probe(model)
        first = Path(prefix=True)
        for variant in range(len(probe.flags[0])):
            if not torch.equal(probe.replayed(first, variant), probe.plain_logits[variant]):
                return plain("replaying its blocks does not give the logits of a plain forward pass bit for bit")
        for path in _candidates(model):
            difference = probe.difference(path)
            if difference <= TOLERANCE.get(dtype, 1e-5):
                missing = [] if path.linears else ["linear maps could not be shortened"]
                missing += [] if path.tail != "model" else ["logits could not be made at some positions only"]
                return replace(path, difference=difference, note="; ".join(missing))
    except (UnsupportedModel, HookError, BadActivation, TypeError, RuntimeError, KeyError, IndexError) as error:
        return plain(f"its blocks cannot be run on their own ({type(error).__name__}: {str(error)[:200]})")
    return plain("no shortcut was proved")


def _candidates(model: LensModel) -> Iterator[Path]:
    class_positions = [0, None] if anatomy(model).modality == "pixels" else [None]
    tails: tuple[Tail, ...] = ("head", "model_at_positions", "model")
    for linears, attention in ((True, True), (True, False), (False, False)):
        for class_position in class_positions:
            for tail in tails:
                yield Path(prefix=True, linears=linears, attention=attention, tail=tail, class_position=class_position)


class _Probe:
    """Random variants of a small input, run plainly once, to compare shortcuts with."""

    def __init__(self, model: LensModel):
        sizes = anatomy(model)
        self.model = model
        self.sets: list[tuple[SiteSet, Method]] = [(attention_neurons(model), Zero())]
        if sizes.d_mlp:
            self.sets.append((neurons(model), Zero()))
        self.task = _probe_task(model)
        layers = sorted({0, sizes.n_layers // 2, sizes.n_layers - 1, sizes.n_layers})
        self.flags = [_random_flags(sites, layers) for sites, _ in self.sets]
        part = self._part(plain("proof"))
        self.plain_logits = [part.plain_logits(self._one(v)) for v in range(len(layers))]

    def replayed(self, path: Path, variant: int) -> Tensor:
        """All logits of one variant by a path."""
        part = self._part(path)
        with torch.inference_mode():
            residual, _ = part.residual(self._one(variant))
            logits = part.answer_logits(residual, slice(0, len(residual)))
        return logits if self.task.n_pos is not None else logits[:, 0]

    def difference(self, path: Path) -> float:
        """Largest difference at the answers, all variants in one pass, over the largest logit; infinite on failure."""
        part = self._part(path, reads_answers=True)
        read = self.task.answer_positions
        try:
            with torch.inference_mode():
                residual, order = part.residual(self.flags)
                found = part.answer_logits(residual, slice(0, len(residual)))
        except (TypeError, RuntimeError, ValueError, AttributeError, IndexError):
            return float("inf")
        plain_logits = [self.plain_logits[v] for v in order.tolist()]
        wanted = torch.cat([_at(logits, read) for logits in plain_logits])
        if found.shape != wanted.shape:
            return float("inf")
        return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-9))

    def _part(self, path: Path, *, reads_answers: bool = False) -> Part:
        task = self.task if reads_answers else self.task.with_metric(as_metric(_unread))
        examples = torch.arange(task.n_examples)
        return Part(self.model, task, self.sets, "all", examples, path, clean_bytes=_CLEAN_BYTES, always=True)

    def _one(self, variant: int) -> list[Bool[np.ndarray, "variant _site"]]:
        return [part[variant : variant + 1] for part in self.flags]


def _probe_task(model: LensModel) -> Task:
    """Three rows; of tokens, two are padded and answered at two positions."""
    inputs = probe_inputs(model, n_examples=3, n_pos=5).cpu()
    if inputs.ndim == 4:
        return Task(inputs=inputs, answers=torch.zeros(3, dtype=torch.int64))
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[0, -1] = mask[2, -2:] = False
    positions = torch.tensor([[1, 3], [0, 4], [2, 0]])
    return Task(inputs=inputs, answers=torch.zeros_like(positions), attention_mask=mask, positions=positions)


def _random_flags(sites: SiteSet, layers: list[int]) -> Bool[np.ndarray, "variant site"]:
    """A third of the sites of each layer from a variant's own on."""
    generator = np.random.default_rng(0)
    drawn = generator.random((len(layers), len(sites))) < 1 / 3
    return drawn & (sites.addresses[:, 0] >= np.asarray(layers)[:, None])


def _at(logits: Float[Tensor, "row *pos width"], positions: Tensor | None) -> Float[Tensor, "row target width"]:
    return logits[:, None] if positions is None else at_positions(logits, positions)


def _unread(logits: Tensor, batch: Task) -> Tensor:
    """The proof reads logits itself."""
    return torch.zeros(len(logits))
