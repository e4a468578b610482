"""Sentences with slots: ``"The capital of {subject} is | {answer} ."``, where ``|`` ends the prompt."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PROMPT_END = "|"


@dataclass(frozen=True)
class Filled:
    """A sentence made from a template.

    Attributes:
        words: All words of the sentence.
        prompt_length: Number of words before the answer; all of them in a template without ``|``.
        spans: Word positions ``(start, end)`` of each slot, end exclusive.
    """

    words: tuple[str, ...]
    prompt_length: int
    spans: Mapping[str, tuple[int, int]]

    @property
    def prompt(self) -> str:
        """The words before the answer."""
        return " ".join(self.words[: self.prompt_length])


def fill(template: str, slots: Mapping[str, str]) -> Filled:
    """The template with every ``{slot}`` replaced, its first letter in upper case.

    Args:
        template: Words separated by spaces; a slot is a word of its own.
        slots: Text of each slot, one word or several.

    Raises:
        KeyError: The template has a slot without a text.
    """
    words: list[str] = []
    spans: dict[str, tuple[int, int]] = {}
    prompt_length: int | None = None
    for part in template.split():
        if part == PROMPT_END:
            prompt_length = len(words)
        elif part.startswith("{"):
            name = part[1:-1]
            text = slots[name].split()
            spans[name] = (len(words), len(words) + len(text))
            words += text
        else:
            words.append(part)
    words[0] = words[0][:1].upper() + words[0][1:]
    return Filled(tuple(words), len(words) if prompt_length is None else prompt_length, spans)


def fixed_words(templates: Iterable[str]) -> set[str]:
    """The words of the templates that are no slots."""
    return {
        word for template in templates for word in template.split() if word != PROMPT_END and not word.startswith("{")
    }


def words_of(texts: Iterable[str]) -> set[str]:
    """All words of the texts."""
    return {word for text in texts for word in text.split()}


def word_list(text: str) -> tuple[str, ...]:
    """The words of a text, in order."""
    return tuple(text.split())
