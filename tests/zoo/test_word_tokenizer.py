"""The tokenizer of whole words."""

import pytest
from transformers import AutoTokenizer

from lens_ablation.data.corpus import vocabulary
from lens_ablation.zoo.word_tokenizer import save_tokenizer, word_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(word_tokenizer(vocabulary(), longest=64), folder)
    return AutoTokenizer.from_pretrained(folder)


def words(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


def test_the_special_words_are_known(tokenizer):
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token) == (
        "<bos>",
        "<eos>",
        "<pad>",
        "<unk>",
    )
    assert words(tokenizer, "<bos> Mary") == words(tokenizer, "<bos>Mary") == ["<bos>", "Mary"]


def test_blanks_in_front_of_a_word_change_nothing(tokenizer):
    assert words(tokenizer, "  Mary") == words(tokenizer, " Mary") == words(tokenizer, "Mary") == ["Mary"]


def test_punctuation_that_touches_a_word_is_a_word_of_its_own(tokenizer):
    assert words(tokenizer, "Mary went to the store, John") == [
        "Mary",
        "went",
        "to",
        "the",
        "store",
        ",",
        "John",
    ]
    assert words(tokenizer, "print(x)") == ["print", "(", "x", ")"]


def test_operators_stay_whole(tokenizer):
    assert words(tokenizer, "x == y") == ["x", "==", "y"]


def test_a_foreign_word_becomes_unknown(tokenizer):
    assert words(tokenizer, "Mary xylophones") == ["Mary", "<unk>"]


def test_decoding_gives_the_text_back(tokenizer):
    text = "When Mary and John went to the store , John gave a drink to Mary ."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_padding_is_masked(tokenizer):
    batch = tokenizer(["Mary", "Mary and John"], padding=True, padding_side="left")
    assert batch["attention_mask"] == [[0, 0, 1], [1, 1, 1]]
