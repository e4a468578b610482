"""Multiple-choice records as prompts: fields become ``### Name:value`` lines, and examples with answers go before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from lens_ablation.data.records import ANSWER_FIELDS, Record, field_of

LETTERS = "abcdefghijklmnopqrstuvwxyz"

Candidates = Sequence[str] | Literal["letters", "options"]
"""What can be answered: the same words to every question, a letter to each option, or each record's own options."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A record in words: the prompt, what may follow it, and which of that is right."""

    prompt: str
    candidates: tuple[str, ...]
    label: int


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """How records become prompts.

    Attributes:
        candidates: What can be answered.
        instruction: What stands before everything, followed by a blank line.
        fields: Name shown and field of the record, in order; all fields but the label by default.
        label: The field of the right answer: an index, a candidate or an option.
        template: Text with fields in braces instead of lines, such as ``"{text}"``.
        answer: Name of the line that asks.
        separator: What stands between the prompt and an answer: nothing where labels have no leading space.
        shots: Answered questions of each label that go before.
        seed: What they are drawn with.
    """

    candidates: Candidates
    instruction: str = ""
    fields: Mapping[str, str] | None = None
    label: str = "label"
    template: str | None = None
    answer: str = "Answer"
    separator: str = ""
    shots: int = 0
    seed: int = 42

    def __post_init__(self) -> None:
        if isinstance(self.candidates, str):
            if self.candidates not in ("letters", "options"):
                raise ValueError(f"candidates must be words, 'letters' or 'options', got {self.candidates!r}")
        elif len(set(self.candidates)) != len(self.candidates) or len(self.candidates) < 2:
            raise ValueError(f"candidates must be two or more different words, got {list(self.candidates)}")
        if self.shots < 0:
            raise ValueError(f"shots must be 0 or more, got {self.shots}")
        if self.template is not None and self.fields is not None:
            raise ValueError("give fields or a template, not both")

    def questions(self, records: Sequence[Record], demos: Sequence[Record] | None = None) -> list[Question]:
        """The records as questions, each after ``shots`` answered ones of every label; never after itself.

        Raises:
            ValueError: a field is missing, a label is unknown, or there are too few demonstrations.
        """
        read = [(record, *self._answers(record)) for record in records]
        pool = _Demos(self, records if demos is None else demos) if self.shots else None
        found: list[Question] = []
        for record, candidates, label in read:
            before = [] if pool is None else pool.before(record, len(candidates))
            parts = [*([self.instruction] if self.instruction else []), *before, self._block(record)]
            found.append(Question(prompt="\n\n".join(parts), candidates=candidates, label=label))
        return found

    def _answers(self, record: Record) -> tuple[tuple[str, ...], int]:
        """Candidates of a record, and the place of the right one."""
        options = record.get("options")
        if isinstance(self.candidates, str):
            if not isinstance(options, Sequence) or isinstance(options, str) or len(options) < 2:
                raise ValueError(
                    f"candidates={self.candidates!r} needs records with a list of options, got {options!r}; name the "
                    "candidates, for example candidates=['no', 'yes']"
                )
            names = tuple(map(str, options)) if self.candidates == "options" else tuple(LETTERS[: len(options)])
        else:
            names = tuple(self.candidates)
        return names, _place(field_of(record, self.label), names, options)

    def _block(self, record: Record) -> str:
        if self.template is not None:
            try:
                return self.template.format_map(record)
            except KeyError as error:
                raise ValueError(
                    f"the template asks for {error}, and the record's fields are {', '.join(map(str, record))}"
                ) from None
        fields = self.fields or {
            name.replace("_", " ").capitalize(): name for name in record if name not in {*ANSWER_FIELDS, self.label}
        }
        lines = [f"### {name}:{_shown(field_of(record, field))}" for name, field in fields.items()]
        return "\n".join([*lines, f"### {self.answer}:"])

    def question(self, record: Record) -> str:
        """A record as it is asked, without what stands before it."""
        return self._block(record)

    def answered(self, record: Record) -> str:
        """A record as a demonstration, its answer included."""
        names, label = self._answers(record)
        return f"{self._block(record)}{self.separator}{names[label]}"

    def label_of(self, record: Record) -> int:
        """The place of a record's right answer."""
        return self._answers(record)[1]


class _Demos:
    """Demonstrations by label, in one shuffled order for all prompts."""

    def __init__(self, form: PromptFormat, records: Sequence[Record]):
        self._form = form
        shuffled = list(records)
        Random(f"demos/{form.seed}").shuffle(shuffled)
        self._by_label: dict[int, dict[str, Record]] = {}
        for record in shuffled:
            # a question that comes twice is one demonstration
            self._by_label.setdefault(form.label_of(record), {}).setdefault(self._question(record), record)

    def _question(self, record: Record) -> str:
        return self._form.question(record)  # as it is shown, whatever other fields it has

    def before(self, record: Record, n_labels: int) -> list[str]:
        own = self._question(record)
        found: list[str] = []
        for label in range(n_labels):
            others = [one for question, one in self._by_label.get(label, {}).items() if question != own]
            if len(others) < self._form.shots:
                raise ValueError(
                    f"shots={self._form.shots} asks for as many demonstrations of label {label}, and without the "
                    f"record itself there are {len(others)}; give more records with demos=..., or fewer shots"
                )
            found += [self._form.answered(one) for one in others[: self._form.shots]]
        return found


def _place(label: Any, names: Sequence[str], options: Any) -> int:
    """The index of the right answer, from an index, a candidate or an option."""
    if isinstance(label, bool):
        label = int(label)
    if isinstance(label, int):
        if 0 <= label < len(names):
            return label
        raise ValueError(f"label {label} is no index of the {len(names)} candidates {list(names)}; indices start at 0")
    if label in names:
        return list(names).index(label)
    if isinstance(options, Sequence) and not isinstance(options, str) and label in options:
        place = list(options).index(label)
        if place < len(names):
            return place
    shown = f" or options {list(options)}" if isinstance(options, Sequence) else ""
    raise ValueError(f"unknown label {label!r}; the candidates are {list(names)}{shown}. An index from 0 serves too")


def _shown(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "; ".join(f"{letter}: {one}" for letter, one in zip(LETTERS, value, strict=False))
    return str(value)
