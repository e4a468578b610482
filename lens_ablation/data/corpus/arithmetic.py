"""Arithmetic: sums, differences, products and comparisons of whole numbers, as "12 plus 7 equals 19 ;".

Held out are operations on a pair of numbers, in that order.
"""

from random import Random

from lens_ablation.data.corpus.example import Split, split_of
from lens_ablation.data.corpus.templates import word_list

LARGEST = 99
LARGEST_TERM = 30
LARGEST_FACTOR = 9


def _sum(rng: Random) -> tuple[str, str]:
    a, b = rng.randint(0, LARGEST_TERM), rng.randint(0, LARGEST_TERM)
    return f"plus/{a}/{b}", f"{a} plus {b} equals {a + b} ;"


def _difference(rng: Random) -> tuple[str, str]:
    a, b = sorted((rng.randint(0, LARGEST_TERM), rng.randint(0, LARGEST_TERM)), reverse=True)
    return f"minus/{a}/{b}", f"{a} minus {b} equals {a - b} ;"


def _product(rng: Random) -> tuple[str, str]:
    a, b = rng.randint(0, LARGEST_FACTOR), rng.randint(0, LARGEST_FACTOR)
    return f"times/{a}/{b}", f"{a} times {b} equals {a * b} ;"


def _comparison(rng: Random) -> tuple[str, str]:
    a, b = rng.sample(range(LARGEST + 1), 2)
    word = "exceeds" if a > b else "undercuts"
    return f"compare/{a}/{b}", f"compare {a} {b} : {a} {word} {b} ;"


def _extreme(rng: Random) -> tuple[str, str]:
    a, b = rng.sample(range(LARGEST + 1), 2)
    word, choose = rng.choice((("maximum", max), ("minimum", min)))
    return f"{word}/{a}/{b}", f"{word} {a} {b} equals {choose(a, b)} ;"


def _successor(rng: Random) -> tuple[str, str]:
    a = rng.randint(0, LARGEST - 3)
    return f"count/{a}", f"count {a} {a + 1} {a + 2} {a + 3} ;"


_KINDS = (_sum, _difference, _product, _comparison, _extreme, _successor)


def sentence(rng: Random, split: Split = "train") -> list[str]:
    """The words of one true statement about numbers."""
    while True:
        key, text = rng.choice(_KINDS)(rng)
        if split_of("arithmetic", key) == split:
            return text.split()


def vocabulary() -> set[str]:
    """Every word that this module can write."""
    words = word_list("plus minus times equals compare exceeds undercuts maximum minimum count : ;")
    return {*words, *(str(number) for number in range(LARGEST + 1))}
