"""Padding is added with a mask and never read without one."""

from types import SimpleNamespace

import pytest
import torch

from lens_ablation.data.padding import pad_rows, require_mask_for_padding

PAD, BOS = 2, 0
OWN_PAD = SimpleNamespace(pad_token_id=PAD, bos_token_id=BOS, eos_token_id=1)
PAD_IS_BOS_AND_EOS = SimpleNamespace(pad_token_id=BOS, bos_token_id=BOS, eos_token_id=BOS)
NO_PAD = SimpleNamespace(pad_token_id=None, bos_token_id=BOS, eos_token_id=1)


def test_rows_are_filled_up_on_the_right():
    tokens, mask = pad_rows([[5], [6, 7, 8], [9, 9]], fill=PAD)
    assert tokens.tolist() == [[5, PAD, PAD], [6, 7, 8], [9, 9, PAD]]
    assert mask.sum(dim=1).tolist() == [1, 3, 2]


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="no rows"):
        pad_rows([], fill=0)


@pytest.mark.parametrize(
    ("tokenizer", "rows"),
    [
        (OWN_PAD, [[5, 6], [7, PAD]]),
        (OWN_PAD, [[PAD, 6], [7, 8]]),
        (OWN_PAD, [[5, PAD], [7, PAD]]),
        (PAD_IS_BOS_AND_EOS, [[BOS, 5, 6], [BOS, 7, BOS]]),
        (PAD_IS_BOS_AND_EOS, [[BOS, 5, 6], [BOS, BOS, 7]]),
        (PAD_IS_BOS_AND_EOS, [[5, 6, 7], [BOS, 5, 6]]),
    ],
)
def test_padding_without_a_mask_is_refused(tokenizer, rows):
    tokens = torch.tensor(rows)
    with pytest.raises(ValueError, match="Pass attention_mask="):
        require_mask_for_padding(tokens, None, tokenizer)
    require_mask_for_padding(tokens, torch.ones_like(tokens), tokenizer)


@pytest.mark.parametrize(
    ("tokenizer", "rows"),
    [
        (OWN_PAD, [[5, PAD, 6], [7, 8, 9]]),
        (PAD_IS_BOS_AND_EOS, [[BOS, 5, 6], [BOS, 7, 8]]),
        (PAD_IS_BOS_AND_EOS, [[5, 6, BOS], [7, 8, BOS]]),
        (NO_PAD, [[PAD, PAD], [5, PAD]]),
        (None, [[PAD, PAD], [5, PAD]]),
    ],
)
def test_text_without_padding_needs_no_mask(tokenizer, rows):
    assert require_mask_for_padding(torch.tensor(rows), None, tokenizer) is None
