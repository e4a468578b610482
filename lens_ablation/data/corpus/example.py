"""What a prompt of a skill is, and which side of the train / held-out border a key lies on."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal

Split = Literal["train", "held_out"]
"""Which side of the border: seen in training, or never."""

HELD_OUT_SHARE = 5
"""One key of this many is held out."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt whose next word tests one skill.

    All texts are words separated by single spaces, without ``<bos>``; one word is one token.

    Attributes:
        prompt: The words before the answer.
        answers: The right next words; one of them unless the skill allows many.
        wrong_answers: Next words of the same kind that are wrong.
        counterfactual: A prompt of the same number of words in which the right answer differs.
        counterfactual_answers: The right next words after ``counterfactual``.
        spans: Word positions ``(start, end)`` in ``prompt``, end exclusive, by name. Add 1 under a ``<bos>``.
        keys: What decided the split; no key of a held-out example occurs in training.
    """

    prompt: str
    answers: tuple[str, ...]
    wrong_answers: tuple[str, ...]
    counterfactual: str
    counterfactual_answers: tuple[str, ...]
    spans: Mapping[str, tuple[int, int]]
    keys: tuple[str, ...]

    @property
    def answer(self) -> str:
        """The first right answer."""
        return self.answers[0]


def stable_hash(*key: object) -> int:
    """A whole number that depends on the text of ``key`` alone, on every machine and in every process."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def split_of(*key: object) -> Split:
    """The split that a key belongs to, for good: one in ``HELD_OUT_SHARE`` is held out."""
    return "held_out" if stable_hash(*key) % HELD_OUT_SHARE == 0 else "train"


def generator(*label: object) -> Random:
    """A random generator seeded by the text of ``label``."""
    return Random("/".join(str(part) for part in label))
