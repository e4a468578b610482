"""What the untouched model does on some examples: the starting point of all their variants."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import Module
from transformers.cache_utils import Cache

from lens_ablation.errors import UnsupportedModel
from lens_ablation.models.forward import forward
from lens_ablation.models.protocol import LensModel, input_device

Residual = Float[Tensor, "row pos d_model"]


@dataclass(frozen=True, eq=False)
class BlockCall:
    """How the model called a block: everything but the residual stream, without key-value caches.

    Attributes:
        args: Positional arguments after the residual.
        kwargs: Keyword arguments; the residual is among them as ``hidden_states`` if ``by_keyword``.
        rest: What the block returned beside the residual; ``None`` if it returned the bare residual.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    by_keyword: bool
    rest: tuple[Any, ...] | None = None

    def __call__(self, block: Module, residual: Residual) -> Residual:
        """The residual that ``block`` makes of ``residual``."""
        if self.by_keyword:
            out = block(**{**self.kwargs, "hidden_states": residual})
        else:
            out = block(residual, *self.args, **self.kwargs)
        return out[0] if isinstance(out, tuple) else out

    def mapped(self, fn: Callable[[Tensor], Tensor]) -> "BlockCall":
        """The call with ``fn`` applied to every tensor."""
        args, kwargs = (mapped(value, fn) for value in (self.args, dict(self.kwargs)))
        return BlockCall(args, kwargs, self.by_keyword, self.rest)


def blocks_of(model: LensModel) -> list[Module]:
    """The transformer blocks of ``model``.

    Raises:
        UnsupportedModel: it has no list of as many blocks as its configuration says.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, torch.nn.ModuleList) or len(blocks) != int(model.cfg.n_layers):
        raise UnsupportedModel("the model has no list of blocks, one to a layer, that could be run on its own")
    return list(blocks)


class CleanPass:
    """One forward pass of the untouched model, kept as far as a budget of memory allows.

    What is not kept is computed again from the nearest layer that is.

    Args:
        model: A TransformerLens model in evaluation mode.
        inputs: Tokens or pixels of the examples.
        attention_mask: True where a token is real.
        linears: By layer, linear maps whose outputs are worth keeping.
        hooks: Modules of hook points whose activations are worth keeping, as the model gives them.
        budget: Bytes.

    Raises:
        UnsupportedModel: the blocks are not called one after the other, once each.
    """

    def __init__(
        self,
        model: LensModel,
        inputs: Tensor,
        attention_mask: Bool[Tensor, "row pos"] | None,
        *,
        linears: Mapping[int, Sequence[Module]],
        hooks: Sequence[Module] = (),
        budget: int,
    ):
        self.blocks = blocks_of(model)
        self.n_rows = len(inputs)
        self._calls: list[BlockCall] = []
        self._residuals: dict[int, Tensor] = {}
        self._outputs: dict[Module, Tensor] = {}
        self._repeated: dict[int, list[BlockCall]] = {}
        self._seen: dict[tuple[int, int], Tensor] = {}
        self._left, self._stride = budget, 1
        with ExitStack() as hooked:
            for point in hooks:
                hooked.callback(point.register_forward_pre_hook(self._keep_input).remove)
            for layer, block in enumerate(self.blocks):
                for linear in linears.get(layer, ()):
                    hooked.callback(linear.register_forward_hook(self._keep_output).remove)
                before = block.register_forward_pre_hook(partial(self._keep_call, layer), with_kwargs=True)
                hooked.callback(before.remove)
                hooked.callback(block.register_forward_hook(partial(self._keep_rest, layer)).remove)
            mask = None if attention_mask is None else attention_mask.to(input_device(model))
            self.logits = forward(model, inputs.to(input_device(model)), attention_mask=mask)
        if len(self._calls) != len(self.blocks):
            raise UnsupportedModel(f"{len(self._calls)} block calls were seen for {len(self.blocks)} blocks")

    @property
    def n_pos(self) -> int:
        """Tokens in a row, as the blocks see them."""
        return next(iter(self._residuals.values())).shape[1]

    def entering(self, layer: int) -> Residual:
        """The clean residual that enters block ``layer``; with the number of layers, that leaves the last.

        No ablation may be in place, as blocks run if it was not kept.
        """
        if layer in self._residuals:
            return self._residuals[layer]
        start = max(kept for kept in self._residuals if kept < layer)
        residual = self._residuals[start]
        with torch.no_grad():
            for i in range(start, layer):
                residual = self._calls[i](self.blocks[i], residual)
        return residual

    def kept(self, module: Module) -> Tensor | None:
        """The clean output of a linear map or the activation at a hook point, if it was kept."""
        return self._outputs.get(module)

    def attention(self, layer: int) -> Module:
        """The attention module of a block.

        Raises:
            UnsupportedModel: the block has none of that name.
        """
        found = getattr(self.blocks[layer], "attn", None)
        if not isinstance(found, Module):
            raise UnsupportedModel(f"block {layer} has no attention module")
        return found

    def calls(self, n_variants: int) -> list[BlockCall]:
        """How each block is called for the examples repeated ``n_variants`` times."""
        if n_variants not in self._repeated:
            self._repeated[n_variants] = [call.mapped(partial(self._repeat, n_variants)) for call in self._calls]
        return self._repeated[n_variants]

    def rest(self, layer: int) -> tuple[Any, ...] | None:
        """What block ``layer`` returned beside the residual; ``None`` if it returned the bare residual."""
        return self._calls[layer].rest

    def _repeat(self, n: int, tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """One row to an example becomes one to an example of each variant; what is shared by all rows stays.

        Tensors that several blocks are given are repeated once.
        """
        if n == 1 or self.n_rows == 1 or not is_by_row(tensor, self.n_rows):
            return tensor
        key = (id(tensor), n)
        if key not in self._seen:
            self._seen[key] = tensor.repeat(n, *([1] * (tensor.ndim - 1)))
        return self._seen[key]

    def _keep_call(self, layer: int, block: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(self._calls) != layer:
            raise UnsupportedModel(f"block {layer} ran when {len(self._calls)} blocks had run")
        by_keyword = not args
        residual = kwargs["hidden_states"] if by_keyword else args[0]
        if layer == 0:
            need = (len(self.blocks) + 1) * residual.nbytes
            self._stride = max(1, -(-need // max(1, self._left)))
            self._left -= need // self._stride
        if layer % self._stride == 0:
            self._residuals[layer] = residual
        kept = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        self._calls.append(BlockCall(_without_cache(args[1:]), _without_cache(kept), by_keyword))

    def _keep_rest(self, layer: int, block: Module, args: tuple[Any, ...], out: Any) -> None:
        call = self._calls[layer]
        residual, rest = (out[0], tuple(out[1:])) if isinstance(out, tuple) else (out, None)
        self._calls[layer] = BlockCall(call.args, call.kwargs, call.by_keyword, rest)
        if layer == len(self.blocks) - 1:
            self._residuals[layer + 1] = residual

    def _keep_input(self, point: Module, args: tuple[Any, ...]) -> None:
        self._keep_output(point, args, args[0])

    def _keep_output(self, linear: Module, args: tuple[Any, ...], out: Tensor) -> None:
        if out.nbytes <= self._left:
            self._left -= out.nbytes
            self._outputs[linear] = out


def _without_cache(value: Any) -> Any:
    if isinstance(value, Cache):
        return None
    if isinstance(value, tuple):
        return tuple(_without_cache(part) for part in value)
    if isinstance(value, dict):
        return {name: _without_cache(part) for name, part in value.items()}
    return value


def is_by_row(tensor: Shaped[Tensor, "..."], n_rows: int) -> bool:
    """Whether a tensor that a block is given has one entry to a row, rather than one for all rows.

    A table of floats without an axis of rows (rotary angles by position) is not mistaken for rows.
    """
    return tensor.shape[:1] == (n_rows,) and (tensor.ndim > 2 or (tensor.ndim == 2 and not tensor.is_floating_point()))


def mapped(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """A value with ``fn`` applied to every tensor in it."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, tuple):
        return tuple(mapped(part, fn) for part in value)
    if isinstance(value, dict):
        return {name: mapped(part, fn) for name, part in value.items()}
    return value
