"""Texts become the rows that a model was trained to read."""

from typing import Any

import pytest
import torch
from datasets import Dataset

from lens_ablation.data.tokens import (
    bos_ids,
    fill_id,
    is_bidirectional,
    longest_row,
    require_causal,
    text_rows,
    tokenizer_of,
)
from lens_ablation.errors import UnknownName
from tests import families

pytestmark = pytest.mark.model

KING = "The king was happy ."


def ids_of(model: Any, text: str) -> list[int]:
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_causal_rows_begin_with_bos_once(lm):
    words = lm.tokenizer.get_vocab()
    wanted = [words[word] for word in ("<bos>", *KING.split())]
    rows = list(text_rows(lm, [KING, f"<bos> {KING}"]))
    assert rows == [wanted, wanted]


def test_bos_is_left_out_on_request(lm):
    assert list(text_rows(lm, [KING], prepend_bos=False)) == [ids_of(lm, KING)]
    assert bos_ids(lm, prepend_bos=True) == [lm.tokenizer.bos_token_id]


def test_bos_follows_what_the_configuration_says_of_training(lm, monkeypatch):
    monkeypatch.setattr(lm.cfg, "default_prepend_bos", False)
    assert bos_ids(lm) == []


def test_bos_that_does_not_exist_is_refused(bert):
    assert bos_ids(bert) == []
    with pytest.raises(ValueError, match="no BOS token"):
        bos_ids(bert, prepend_bos=True)


def test_bidirectional_rows_have_the_tokenizers_own_markers(bert):
    (row,) = text_rows(bert, ["w0 w1 w2"])
    assert bert.tokenizer.convert_ids_to_tokens(row) == ["[CLS]", "w0", "w1", "w2", "[SEP]"]
    (short,) = text_rows(bert, ["w0 w1 w2"], max_length=4)
    assert bert.tokenizer.convert_ids_to_tokens(short) == ["[CLS]", "w0", "w1", "[SEP]"]


def test_rows_are_cut_with_bos_counted(lm):
    (row,) = text_rows(lm, [KING], max_length=3)
    assert lm.tokenizer.convert_ids_to_tokens(row) == ["<bos>", "The", "king"]


def test_the_longest_row_is_what_model_and_tokenizer_take(lm, bpe_lm, bert):
    assert [longest_row(model) for model in (lm, bpe_lm, bert)] == [64, 128, 32]


@pytest.mark.parametrize("max_length", [1, 65])
def test_lengths_that_the_model_does_not_take_are_refused(lm, max_length):
    with pytest.raises(ValueError, match=r"2\.\.64"):
        longest_row(lm, max_length)


def test_texts_without_a_target_are_left_out_and_skip_counts_the_others(lm):
    texts = ["", "The", "", "The king", "happy"]
    rows = [lm.tokenizer.convert_ids_to_tokens(row)[1:] for row in text_rows(lm, texts)]
    assert rows == [["The"], ["The", "king"], ["happy"]]
    assert len(list(text_rows(lm, texts, skip=1))) == 2


@pytest.mark.parametrize(("texts", "skip", "message"), [([""], 0, "none of 1 texts"), (["The"], 1, "skip=1 passes")])
def test_no_usable_text_is_an_error(lm, texts, skip, message):
    with pytest.raises(ValueError, match=message):
        list(text_rows(lm, texts, skip=skip))


def test_token_ids_are_taken_as_they_are(lm):
    ids = Dataset.from_dict({"input_ids": [[5, 6, 7], [8, 9, 10]]})
    assert list(text_rows(lm, ids, text_column="input_ids")) == [[5, 6, 7], [8, 9, 10]]
    as_tensors = ids.with_format("torch")
    assert list(text_rows(lm, as_tensors, text_column="input_ids")) == [[5, 6, 7], [8, 9, 10]]


def test_token_ids_lose_what_their_mask_hides(lm):
    pad = lm.tokenizer.pad_token_id
    table = {"input_ids": [[5, 6, pad], [7, 8, 9]]}
    with pytest.raises(ValueError, match="no attention mask"):
        list(text_rows(lm, Dataset.from_dict(table), text_column="input_ids"))
    masked = Dataset.from_dict({**table, "attention_mask": [[1, 1, 0], [1, 1, 1]]})
    assert list(text_rows(lm, masked, text_column="input_ids")) == [[5, 6], [7, 8, 9]]


@pytest.mark.parametrize("values", [[1.5, 2.5], [None, None], [{"a": 1}, {"a": 2}]])
def test_a_column_of_something_else_is_refused(lm, values):
    with pytest.raises(ValueError, match="text_column="):
        list(text_rows(lm, Dataset.from_dict({"text": values})))


def test_a_missing_column_names_the_nearest(lm):
    with pytest.raises(UnknownName, match="content"):
        list(text_rows(lm, Dataset.from_dict({"content": [KING]})))


def test_models_without_texts_are_refused(vit):
    with pytest.raises(ValueError, match="reads images"):
        tokenizer_of(vit)
    with pytest.raises(ValueError, match="no tokenizer"):
        tokenizer_of(families.build("gpt2").model)


def test_direction_is_known(lm, bert):
    assert [is_bidirectional(lm), is_bidirectional(bert)] == [False, True]
    with pytest.raises(ValueError, match="masked_token"):
        require_causal(bert)


def test_padding_uses_the_pad_token_or_else_the_end_token(lm, bpe_lm):
    assert fill_id(lm) == lm.tokenizer.pad_token_id
    assert fill_id(bpe_lm) == bpe_lm.tokenizer.eos_token_id
    assert fill_id(families.build("gpt2").model) == 0


def test_bpe_rows_decode_to_their_text(bpe_lm):
    (row,) = text_rows(bpe_lm, ["Mary went to the store."])
    assert row[0] == bpe_lm.tokenizer.bos_token_id
    assert bpe_lm.tokenizer.decode(torch.tensor(row[1:])) == "Mary went to the store."
