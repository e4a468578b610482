"""Activations changed at one position only, of causal models: a variant is one more token, not one more row.

What changes at position ``p`` of a causal model is seen by ``p`` and by later positions alone. Where the answer is read
at ``p``, a variant therefore needs no row of its own: it stands as one more token behind the row, with the position
of ``p``, and attends to what ``p`` attends to and to itself. The other tokens are computed once for all variants.
"""

import logging
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from lens_ablation.ablation import Firings
from lens_ablation.data.metrics import answer_logits, probability
from lens_ablation.data.task import Task
from lens_ablation.engine.clean import BlockCall, mapped
from lens_ablation.engine.part import Part
from lens_ablation.engine.proof import TOLERANCE
from lens_ablation.engine.size import LOGITS
from lens_ablation.engine.tail import answer_logits_of
from lens_ablation.methods.zero import Zero
from lens_ablation.models.forward import forward, hooks_installed
from lens_ablation.models.protocol import HookFn, LensModel
from lens_ablation.selectors import neurons
from lens_ablation.sites import HookPoint

log = logging.getLogger(__name__)

_PROOF_BYTES = 2**28
_proved: WeakKeyDictionary[Any, tuple[object, bool]] = WeakKeyDictionary()


class Unextendable(Exception):
    """Blocks are called with something of which it is not known how more tokens would have it."""


class Single:
    """Changes of single coordinates of one hook at the positions that are read, many in a pass.

    Args:
        part: Examples whose logits are read at one position each.
        as_tokens: Whether variants stand as tokens behind the row; otherwise as rows.
    """

    def __init__(self, part: Part, *, as_tokens: bool):
        self.part, self.as_tokens = part, as_tokens
        read = part.batch.answer_positions
        at = torch.zeros(part.n_examples, dtype=torch.int64) if read is None else read[:, 0]
        self.read = at.to(part.device)
        self._calls: dict[int, list[BlockCall]] = {}

    def logits(
        self, point: HookPoint, units: Int[Tensor, " variant"], amounts: Float[Tensor, " variant"], *, signed: bool
    ) -> Iterator[Float[Tensor, "example chosen d_vocab"]]:
        """Logits where the answer is read, in runs of variants, of which each adds its amount to its unit.

        Args:
            point: The hook, ``[row, pos, unit]``.
            units: The coordinate that each variant changes.
            amounts: What it adds.
            signed: Whether that is multiplied by the sign of the activation, 0 at 0.

        Raises:
            HookDidNotFire: the hook did not fire once.
        """
        firings = Firings()
        part, n, device = self.part, len(units), self.part.device
        units, amounts = units.to(device), amounts.to(device)
        examples = torch.arange(part.n_examples, device=device)
        if self.as_tokens:
            places = torch.arange(n, device=device) + part.clean.n_pos
            index = (examples[:, None].expand(-1, n), places.expand(part.n_examples, n))
        else:
            # rows [variant, example]
            rows = torch.arange(n * part.n_examples, device=device).reshape(n, -1).T
            index = (rows, self.read[:, None].expand(-1, n))
        write = _adding((*index, units.expand(part.n_examples, n)), amounts, signed, firings, point)
        if self.as_tokens:
            yield from self._behind(point, write, n)
        else:
            yield from self._in_rows(point, write, n)
        firings.check(1)

    def _behind(self, point: HookPoint, write: HookFn, n: int) -> Iterator[Float[Tensor, "example chosen d_vocab"]]:
        part = self.part
        clean = part.clean.entering(point.layer)
        copies = clean.gather(1, self.read[:, None, None].expand(-1, 1, clean.shape[2])).expand(-1, n, -1)
        residual = torch.cat([clean, copies], dim=1)
        with hooks_installed(part.hook_points, [(point.name, write)]):
            for layer in range(point.layer, part.sizes.n_layers):
                residual = self._called(layer, n)(part.clean.blocks[layer], residual)
        residual = residual[:, clean.shape[1] :]
        for chosen in torch.arange(n, device=part.device).split(self._step):
            positions = torch.arange(len(chosen), device=part.device).expand(part.n_examples, -1)
            yield answer_logits_of(
                part.path.tail, part.model, part.clean, residual[:, chosen], part.inputs, positions, self._mask
            )

    def _in_rows(self, point: HookPoint, write: HookFn, n: int) -> Iterator[Float[Tensor, "example chosen d_vocab"]]:
        part = self.part
        if not part.path.prefix:
            batch = part.repeated(slice(0, n * part.n_examples))
            inputs = part.inputs.repeat(n, *([1] * (part.inputs.ndim - 1)))
            mask = None if batch.attention_mask is None else batch.attention_mask.to(part.device)
            found = forward(part.model, inputs, attention_mask=mask, fwd_hooks=[(point.name, write)])
            yield answer_logits(found, batch)[:, 0].reshape(n, part.n_examples, -1).transpose(0, 1)
            return
        residual = part.clean.entering(point.layer).repeat(n, 1, 1)
        with hooks_installed(part.hook_points, [(point.name, write)]):
            for layer in range(point.layer, part.sizes.n_layers):
                with part.shortcuts(layer, n, n if layer == point.layer else 0):
                    residual = part.clean.calls(n)[layer](part.clean.blocks[layer], residual)
        found = torch.cat([logits[:, 0] for logits, _ in part.tail_logits(residual)])
        yield found.reshape(n, part.n_examples, -1).transpose(0, 1)

    @property
    def _mask(self) -> Tensor | None:
        mask = self.part.batch.attention_mask
        return None if mask is None else mask.to(self.part.device)

    @property
    def _step(self) -> int:
        """Variants whose logits are held at once."""
        part = self.part
        width = int(part.clean.logits.shape[-1]) * next(iter(part.model.parameters())).element_size()
        return max(1, LOGITS.get(part.device.type, LOGITS["cuda"]) // (part.n_examples * width))

    def _called(self, layer: int, n: int) -> BlockCall:
        """How a block is called for the row with ``n`` more tokens."""
        if n not in self._calls:
            self._calls = {n: [self._extended(call, n) for call in self.part.clean.calls(1)]}
        return self._calls[n][layer]

    def _extended(self, call: BlockCall, n: int) -> BlockCall:
        masks = 0

        def extend(tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
            nonlocal masks
            n_rows, n_pos = self.part.n_examples, self.part.clean.n_pos
            if tensor.ndim == 4 and tensor.shape[1:] == (1, n_pos, n_pos) and tensor.shape[0] in (1, n_rows):
                masks += 1
                return self._mask_with(tensor.expand(n_rows, -1, -1, -1), n)
            if tensor.ndim in (2, 3) and tensor.shape[0] in (1, n_rows) and tensor.shape[1] == n_pos:
                places = torch.arange(n_pos, device=tensor.device).expand(n_rows, -1)
                index = torch.cat([places, self.read[:, None].expand(-1, n)], dim=1)
                rows = torch.arange(n_rows, device=tensor.device)[:, None]
                return tensor.expand(n_rows, *tensor.shape[1:])[rows, index.to(tensor.device)]
            raise Unextendable(f"a tensor of shape {tuple(tensor.shape)}")

        args, kwargs = mapped(call.args, extend), mapped(dict(call.kwargs), extend)
        if masks != 1:
            raise Unextendable(f"{masks} masks of attention")
        return BlockCall(args, kwargs, call.by_keyword, call.rest)

    def _mask_with(self, mask: Shaped[Tensor, "example 1 pos pos"], n: int) -> Shaped[Tensor, "example 1 key key"]:
        """Each new token attends to what the position that is read attends to, with itself in its place."""
        n_rows, n_pos = mask.shape[0], mask.shape[2]
        is_open, shut = (True, False) if mask.dtype == torch.bool else (0.0, torch.finfo(mask.dtype).min)
        whole = mask.new_full((n_rows, 1, n_pos + n, n_pos + n), shut)
        whole[:, :, :n_pos, :n_pos] = mask
        rows = torch.arange(n_rows, device=mask.device)
        seen = mask[rows, 0, self.read].clone()
        seen[rows, self.read] = shut
        whole[:, 0, n_pos:, :n_pos] = seen[:, None]
        new = torch.arange(n_pos, n_pos + n, device=mask.device)
        whole[:, 0, new, new] = is_open
        return whole


def _adding(
    index: tuple[Tensor, Tensor, Tensor],
    amounts: Float[Tensor, " variant"],
    signed: bool,
    firings: Firings,
    at: HookPoint,
) -> HookFn:
    place = firings.watch(at.name)

    def add(activation: Float[Tensor, "row pos unit"], hook: object) -> Float[Tensor, "row pos unit"]:
        firings.counts[place] += 1
        added = amounts.to(activation).expand(index[0].shape)
        if signed:
            added = added * activation[index].sign()
        return activation.index_put(index, added, accumulate=True)

    return add


def can_stand_as_tokens(model: LensModel, part: Part) -> bool:
    """Whether variants may stand as tokens behind the row, proved once for each model on rows with padding."""
    if not part.path.prefix or part.path.tail == "model" or part.sizes.bidirectional:
        return False
    key = (next(iter(model.parameters())).dtype, part.path)
    known = _proved.get(model)
    if known is None or known[0] != key:
        known = _proved[model] = (key, _prove(model, part))
    return known[1]


def _prove(model: LensModel, part: Part) -> bool:
    read = torch.tensor([5, 3, 4])
    places = torch.arange(6)
    masks = [None, places <= read[:, None]]
    if next(iter(model.parameters())).dtype != torch.float64:
        # in float64 padding on the left gives NaN inside eager attention
        masks.append(places >= torch.tensor([0, 2, 1])[:, None])
    inputs = torch.randint(0, int(model.cfg.d_vocab), (3, 6), generator=torch.Generator().manual_seed(0))
    answers = torch.zeros(3, dtype=torch.int64)
    try:
        with torch.inference_mode():
            for mask in masks:
                task = Task(inputs=inputs, answers=answers, attention_mask=mask, positions=read, metric=probability)
                sets = [(neurons(model), Zero())]
                small = Part(model, task, sets, "answer", torch.arange(3), part.path, clean_bytes=_PROOF_BYTES)
                if not all(_agrees(small, layer) for layer in {0, small.sizes.n_layers - 1}):
                    return False
    except (Unextendable, RuntimeError, ValueError) as error:
        log.info("%s: variants stand as rows (%s)", type(model).__name__, error)
        return False
    return True


def _agrees(part: Part, layer: int) -> bool:
    """Whether both ways give the same logits."""
    units = torch.arange(min(4, part.sizes.d_mlp))
    amounts = torch.linspace(-2, 2, len(units))
    found, expected = (
        torch.cat(list(Single(part, as_tokens=way).logits(HookPoint("post", layer), units, amounts, signed=False)), 1)
        for way in (True, False)
    )
    limit = TOLERANCE[expected.dtype] * float(expected.abs().max())
    return found.shape == expected.shape and float((found - expected).abs().max()) <= limit
