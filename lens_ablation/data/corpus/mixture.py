"""Training documents: sentences of one skill or domain packed together.

A document is a pure function of seed, step and row.
"""

from collections.abc import Callable, Mapping
from random import Random

from lens_ablation.data.corpus import (
    agreement,
    arithmetic,
    code,
    facts,
    greater_than,
    induction,
    ioi,
    pronouns,
    prose,
)
from lens_ablation.data.corpus.example import Split, generator
from lens_ablation.data.corpus.vocabulary import BOS

SentenceMaker = Callable[[Random, Split], list[str]]
"""Words of one sentence, from a generator and a split."""

SENTENCES: Mapping[str, SentenceMaker] = {
    "ioi": ioi.sentence,
    "greater_than": greater_than.sentence,
    "facts": facts.sentence,
    "pronouns": pronouns.sentence,
    "agreement": agreement.sentence,
    "induction": induction.sentence,
    "prose": prose.sentence,
    "code": code.sentence,
    "arithmetic": arithmetic.sentence,
}
"""What makes the sentences of each skill and domain."""

DOMAINS = ("prose", "code", "arithmetic")

MIXTURE: Mapping[str, int] = {
    "ioi": 20,
    "greater_than": 10,
    "facts": 14,
    "pronouns": 11,
    "agreement": 6,
    "induction": 19,
    "prose": 8,
    "code": 6,
    "arithmetic": 6,
}
"""Share of the training documents, in percent."""


def document(name: str, rng: Random, length: int, split: Split = "train") -> list[str]:
    """Words of a document: ``<bos>`` and then sentences of one kind, cut at ``length`` words.

    Raises:
        ValueError: There is no skill or domain of that name.
    """
    if name not in SENTENCES:
        raise ValueError(f"no skill or domain {name!r}; there are {', '.join(SENTENCES)}")
    words = [BOS]
    while len(words) < length:
        words += SENTENCES[name](rng, split)
    return words[:length]


def documents(name: str, n: int, *, length: int = 64, seed: int = 0, split: Split = "held_out") -> list[str]:
    """Texts of ``length - 1`` words of one skill or domain, without ``<bos>``.

    Args:
        name: ``"prose"``, ``"code"``, ``"arithmetic"`` or the name of a skill.
        n: Number of texts.
        length: Tokens of each text, the ``<bos>`` that a tokenizer puts in front included.
        seed: Another seed gives other texts.
        split: ``"held_out"`` for sentences that training never shows.
    """
    rng = generator("documents", name, split, seed)
    return [" ".join(document(name, rng, length, split)[1:]) for _ in range(n)]


def training_documents(step: int, *, rows: int, length: int, seed: int) -> list[list[str]]:
    """Words of the documents of one training step, ``[rows][length]``; any step can be asked for alone."""
    names, shares = tuple(MIXTURE), tuple(MIXTURE.values())
    batch: list[list[str]] = []
    for row in range(rows):
        rng = generator("training", seed, step, row)
        batch.append(document(rng.choices(names, shares)[0], rng, length))
    return batch
