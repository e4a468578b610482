"""Padding of token rows: adding it with a mask, and refusing it without one."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def pad_rows(
    rows: Sequence[Sequence[int]], fill: int
) -> tuple[Int[Tensor, "example pos"], Bool[Tensor, "example pos"]]:
    """Rows of different lengths as one tensor, filled up on the right, and the mask of what is real.

    Raises:
        ValueError: there is no row.

    Example:
        >>> from lens_ablation.data.padding import pad_rows
        >>> pad_rows([[5, 6], [7]], fill=0)[0].tolist()
        [[5, 6], [7, 0]]
    """
    if not rows:
        raise ValueError("there are no rows to pad")
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    padded = torch.full(mask.shape, fill, dtype=torch.int64)
    padded[mask] = torch.tensor([value for row in rows for value in row], dtype=torch.int64)
    return padded, mask


def require_mask_for_padding(
    tokens: Int[Tensor, "example pos"], attention_mask: Tensor | None, tokenizer: object
) -> None:
    """Refuse rows that begin or end with the tokenizer's pad token when there is no attention mask.

    Where the pad token is also the BOS (or EOS) token, one of it at the start (or end) of every row is not
    padding.

    Raises:
        ValueError: padding without a mask, which would be read as text.
    """
    pad = getattr(tokenizer, "pad_token_id", None)
    if attention_mask is not None or pad is None or tokens.shape[1] == 0:
        return
    is_pad = tokens == pad
    for side, doubles_as, marks in (("start", "bos", is_pad), ("end", "eos", is_pad.flip(1))):
        run = marks.long().cumprod(dim=1).sum(dim=1)
        is_marker = getattr(tokenizer, f"{doubles_as}_token_id", None) == pad and bool((run >= 1).all())
        rows = run > (1 if is_marker else 0)
        if bool(rows.any()):
            raise ValueError(
                f"{int(rows.sum())} of {len(rows)} rows {side} with the pad token (id {pad}) and no "
                "attention mask was given, so padding would be read as text. Pass attention_mask=(tokens != "
                "pad id), or attention_mask=torch.ones_like(tokens) if these tokens are meant."
            )
