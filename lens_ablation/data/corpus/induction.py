"""Induction: a sequence of random words and then the same sequence again.

Held out are sequences.
"""

from random import Random

from lens_ablation.data.corpus.example import Example, Split, generator, split_of
from lens_ablation.data.corpus.vocabulary import ordinary_words

SHORTEST = 4
LONGEST = (6, 10, 14, 30)
COPIES = (2, 2, 3, 4)
_WORDS = ordinary_words()


def _sequence(rng: Random, length: int, split: Split) -> list[str]:
    while True:
        words = rng.sample(_WORDS, length)
        if split_of("induction", *words) == split:
            return words


def sentence(rng: Random, split: Split = "train") -> list[str]:
    """A sequence of distinct random words, two to four times."""
    return rng.choice(COPIES) * _sequence(rng, rng.randint(SHORTEST, rng.choice(LONGEST)), split)


def repeated(n: int, length: int, *, seed: int = 0, split: Split = "held_out") -> list[str]:
    """Texts of ``2 * length`` words whose second half repeats the first.

    Raises:
        ValueError: ``length`` is below 2 or above the number of words there are.
    """
    if not 2 <= length <= len(_WORDS):
        raise ValueError(f"repeated(length={length}): the length must be between 2 and {len(_WORDS)} words")
    rng = generator("repeated", split, seed, length)
    return [" ".join(2 * _sequence(rng, length, split)) for _ in range(n)]


def _example(rng: Random, length: int, split: Split) -> Example:
    words = _sequence(rng, length, split)
    at = rng.randrange(1, length)
    wrong = next(word for word in rng.sample(_WORDS, length + 1) if word not in words)
    changed = [*words[:at], wrong, *words[at + 1 :]]
    return Example(
        prompt=" ".join(words + words[:at]),
        answers=(words[at],),
        wrong_answers=(wrong,),
        counterfactual=" ".join(changed + words[:at]),
        counterfactual_answers=(wrong,),
        spans={
            "first": (at - 1, at),
            "copied": (at, at + 1),
            "repeated": (length + at - 1, length + at),
        },
        keys=("sequence " + " ".join(words),),
    )


def examples(n: int, *, length: int = 12, seed: int = 0, split: Split = "held_out") -> list[Example]:
    """Prompts that end within the second copy of a random sequence; the next word of the first copy is right.

    In the counterfactual the first copy has another word at that place; that word is the wrong answer.

    Args:
        n: Number of examples.
        length: Words of the sequence. Prompts have ``length + 1`` to ``2 * length - 1`` words.
        seed: Another seed gives other examples.
        split: ``"held_out"`` for sequences that training never shows.
    """
    rng = generator("induction", split, seed)
    return [_example(rng, length, split) for _ in range(n)]
