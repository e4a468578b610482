"""The closed vocabulary of the corpus, in the order of the token ids."""

from functools import cache

from lens_ablation.data.corpus import agreement, arithmetic, code, facts, greater_than, ioi, pronouns, prose

BOS, EOS, PAD, UNK = "<bos>", "<eos>", "<pad>", "<unk>"
SPECIAL_WORDS = (BOS, EOS, PAD, UNK)


def ordinary_words() -> list[str]:
    """Every word that the generators can write, sorted."""
    modules = (agreement, arithmetic, code, facts, greater_than, ioi, pronouns, prose)
    return sorted(set().union(*(module.vocabulary() for module in modules)))


@cache
def vocabulary() -> dict[str, int]:
    """Token id of every word: the special words first, then the ordinary ones."""
    return {word: index for index, word in enumerate([*SPECIAL_WORDS, *ordinary_words()])}
