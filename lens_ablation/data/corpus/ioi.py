"""Indirect objects: "When Mary and John went to the store , John gave a drink to" Mary.

The two names come in the order indirect object, subject (ABBA) or subject, indirect object (BABA). Held out
are name pairs, combinations of frame and verbs, and whole frames; a held-out example is held out in both
ways.
"""

from dataclasses import dataclass
from random import Random

from lens_ablation.data.corpus.example import Example, Split, generator, split_of
from lens_ablation.data.corpus.names import NAMES, OBJECTS, PLACES
from lens_ablation.data.corpus.templates import Filled, fill, fixed_words, words_of

FRAMES = (
    "When {A} and {B} {went} the {place} , {S2} {gave} a {object} to | {IO} .",
    "After {A} and {B} {went} the {place} , {S2} {gave} a {object} to | {IO} .",
    "While {A} and {B} were working at the {place} , {S2} {gave} a {object} to | {IO} .",
    "{A} and {B} {went} the {place} . {S2} {gave} a {object} to | {IO} .",
    "Then {A} and {B} had a long talk at the {place} , and {S2} {gave} a {object} to | {IO} .",
    "{A} and {B} were playing at the {place} when {S2} decided to {give} a {object} to | {IO} .",
    "The {place} was quiet , so {A} and {B} sat down and {S2} {gave} a {object} to | {IO} .",
    "Yesterday {A} and {B} {went} the {place} because {S2} wanted to {give} a {object} to | {IO} .",
)
"""Frames of the training text."""

HELD_OUT_FRAMES = (
    "While {A} and {B} had a long talk at the {place} , {S2} decided to {give} a {object} to | {IO} .",
    "Then {A} and {B} {went} the {place} . {S2} wanted to {give} a {object} to | {IO} .",
)
"""Frames that training never shows."""

WENT = (
    "went to",
    "came to",
    "walked to",
    "ran to",
    "drove to",
    "got to",
    "met at",
    "stayed at",
    "arrived at",
)
GIVE = (
    ("give", "gave"),
    ("hand", "handed"),
    ("pass", "passed"),
    ("offer", "offered"),
    ("send", "sent"),
    ("show", "showed"),
    ("bring", "brought"),
    ("throw", "threw"),
    ("sell", "sold"),
    ("lend", "lent"),
)


@dataclass(frozen=True)
class _Case:
    frame: str
    went: str
    give: tuple[str, str]
    place: str
    item: str
    indirect_object: str
    subject: str
    indirect_object_first: bool

    @property
    def pair(self) -> str:
        return "name pair " + "/".join(sorted((self.indirect_object, self.subject)))

    @property
    def template(self) -> str:
        went = self.went if "{went}" in self.frame else "-"
        return f"indirect object template {self.frame}/{went}/{self.give[0]}"

    def split(self) -> Split | None:
        """The split this case may appear in, if any."""
        template: Split = "held_out" if self.frame in HELD_OUT_FRAMES else split_of(self.template)
        return template if split_of(self.pair) == template else None

    def filled(self, *, swapped: bool = False) -> Filled:
        """The sentence; ``swapped`` exchanges who gives and who receives, and keeps the order of the pair."""
        first, second = self.indirect_object, self.subject
        if not self.indirect_object_first:
            first, second = second, first
        giver, receiver = self.subject, self.indirect_object
        if swapped:
            giver, receiver = receiver, giver
        slots = {"A": first, "B": second, "S2": giver, "IO": receiver, "went": self.went, "place": self.place}
        return fill(self.frame, slots | {"give": self.give[0], "gave": self.give[1], "object": self.item})


def _draw(rng: Random, split: Split) -> _Case:
    frames = FRAMES if split == "train" else FRAMES + HELD_OUT_FRAMES * 2
    while True:
        indirect_object, subject = rng.sample(NAMES, 2)
        case = _Case(
            frame=rng.choice(frames),
            went=rng.choice(WENT),
            give=rng.choice(GIVE),
            place=rng.choice(PLACES),
            item=rng.choice(OBJECTS),
            indirect_object=indirect_object,
            subject=subject,
            indirect_object_first=rng.random() < 0.5,
        )
        if case.split() == split:
            return case


def sentence(rng: Random, split: Split = "train") -> list[str]:
    """The words of one sentence in which someone gives something to someone."""
    return list(_draw(rng, split).filled().words)


def _example(case: _Case) -> Example:
    filled = case.filled()
    first, second = filled.spans["A"], filled.spans["B"]
    if not case.indirect_object_first:
        first, second = second, first
    return Example(
        prompt=filled.prompt,
        answers=(case.indirect_object,),
        wrong_answers=(case.subject,),
        counterfactual=case.filled(swapped=True).prompt,
        counterfactual_answers=(case.subject,),
        spans={"IO": first, "S1": second, "S2": filled.spans["S2"]},
        keys=(case.pair, case.template),
    )


def examples(n: int, *, seed: int = 0, split: Split = "held_out") -> list[Example]:
    """Prompts whose next word is the indirect object; the wrong answer is the subject.

    In the counterfactual the other person gives, so that right and wrong change places.

    Args:
        n: Number of examples, half of each order on average.
        seed: Another seed gives other examples.
        split: ``"held_out"`` for name pairs and templates that training never shows.
    """
    rng = generator("ioi", split, seed)
    return [_example(_draw(rng, split)) for _ in range(n)]


def vocabulary() -> set[str]:
    """Every word that this module can write."""
    verbs = words_of((*WENT, *(word for pair in GIVE for word in pair)))
    return fixed_words(FRAMES + HELD_OUT_FRAMES) | verbs | {*NAMES, *PLACES, *OBJECTS}
