"""Attention of rows that join a pass: what it gives them is known from the clean pass."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn import Module

from lens_ablation.engine.clean import is_by_row, mapped


@contextmanager
def first_rows_attend(
    attention: Module, hook_z: Module, clean: Shaped[Tensor, "example ..."], n_rows: int, n_known: int, n_variants: int
) -> Iterator[None]:
    """Inside, a block's attention sees its first rows; the last ``n_known`` get their clean ``z`` at its hook.

    They get it before anything that is hooked there acts, so that ablations see all rows.

    Args:
        attention: The attention module of a block.
        hook_z: The module of its ``hook_z``.
        clean: What the hook is given in the clean pass, in the layout in which the model gives it.
        n_rows: Rows of the pass.
        n_known: Rows whose ``z`` is known.
        n_variants: How often the examples occur among them.
    """
    known = clean.repeat(n_variants, *([1] * (clean.ndim - 1)))
    n_first = n_rows - n_known
    with ExitStack() as hooked:
        # without any row of its own attention runs on one that is thrown away, as models divide by the number of rows
        cut = partial(_cut, n_rows, max(1, n_first))
        hooked.callback(attention.register_forward_pre_hook(cut, with_kwargs=True).remove)
        hooked.callback(hook_z.register_forward_pre_hook(partial(_extend, known, n_first)).remove)
        yield


def _cut(n_rows: int, n_first: int, attention: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def first(tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        return tensor[:n_first] if is_by_row(tensor, n_rows) else tensor

    return mapped(args, first), mapped(kwargs, first)


def _extend(known: Tensor, n_first: int, hook_z: Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (torch.cat([args[0][:n_first], known]) if n_first else known, *args[1:])
