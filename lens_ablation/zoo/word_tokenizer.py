"""A tokenizer of whole words."""

import json
from collections.abc import Mapping
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Sequence, Split, WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from lens_ablation.data.corpus import BOS, EOS, PAD, UNK

PUNCTUATION = r'[.,;:?"()\[\]]'
"""Characters that are words of their own, also when they touch another word."""


def word_tokenizer(vocabulary: Mapping[str, int], *, longest: int) -> PreTrainedTokenizerFast:
    """A tokenizer in which every word between blanks is one token, and every punctuation mark.

    Like GPT-2's it does not put ``<bos>`` in front by itself; an unknown word becomes ``<unk>``.

    Args:
        vocabulary: Token id of every word, special words included.
        longest: Most tokens that the model takes.
    """
    tokenizer = Tokenizer(WordLevel(dict(vocabulary), unk_token=UNK))
    tokenizer.pre_tokenizer = Sequence([WhitespaceSplit(), Split(Regex(PUNCTUATION), "isolated")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        model_max_length=longest,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a tokenizer so that transformers 4 and 5 both load it; they call its class by different names."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
