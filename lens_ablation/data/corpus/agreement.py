"""Subject-verb agreement across a distractor: "Today the keys near the cabinet" are.

The opening word decides which verb comes, the subject its number; the distractor between them may have either
number. Held out are pairs of subject and distractor.
"""

from dataclasses import dataclass
from random import Random

from lens_ablation.data.corpus.example import Example, Split, generator, split_of
from lens_ablation.data.corpus.templates import Filled, fill, fixed_words, word_list

FRAMES = (
    ("is", "are", "Today the {subject} {preposition} the {distractor} | {verb} {quality} ."),
    ("was", "were", "Before the storm the {subject} {preposition} the {distractor} | {verb} {quality} ."),
    ("has", "have", "Since then the {subject} {preposition} the {distractor} | {verb} become {quality} ."),
    ("looks", "look", "From here the {subject} {preposition} the {distractor} | {verb} {quality} ."),
    ("seems", "seem", "Perhaps the {subject} {preposition} the {distractor} | {verb} {quality} ."),
)
"""Singular verb, plural verb, and the frame that asks for them."""

NOUNS = (
    *(
        (noun, noun + "s")
        for noun in word_list("key cabinet door window chair table wall roof fence gate road truck car")
    ),
    *((noun, noun + "s") for noun in word_list("boat bird tree plant poster statue painting bell flag desk")),
    *((noun, noun + "s") for noun in word_list("pillow carpet computer engine ladder pipe wheel bucket curtain sign")),
    ("box", "boxes"),
    ("bench", "benches"),
    ("dish", "dishes"),
    ("shelf", "shelves"),
    ("knife", "knives"),
    ("leaf", "leaves"),
)
"""Singular and plural."""

PREPOSITIONS = ("near", "behind", "beside", "under", "above", "below", "opposite", "against")
QUALITIES = word_list("old new dirty clean broken heavy blue green red yellow cold wet large small")


@dataclass(frozen=True)
class _Case:
    frame: int
    subject: tuple[str, str]
    distractor: tuple[str, str]
    subject_is_plural: bool
    distractor_is_plural: bool
    preposition: str
    quality: str

    @property
    def key(self) -> str:
        return f"agreement {self.subject[0]}/{self.distractor[0]}"

    def verb(self, *, plural: bool) -> str:
        return FRAMES[self.frame][int(plural)]

    def filled(self, *, plural: bool) -> Filled:
        slots = {
            "subject": self.subject[plural],
            "distractor": self.distractor[self.distractor_is_plural],
            "preposition": self.preposition,
            "verb": self.verb(plural=plural),
            "quality": self.quality,
        }
        return fill(FRAMES[self.frame][2], slots)


def _draw(rng: Random, split: Split) -> _Case:
    while True:
        subject, distractor = rng.sample(NOUNS, 2)
        case = _Case(
            frame=rng.randrange(len(FRAMES)),
            subject=subject,
            distractor=distractor,
            subject_is_plural=rng.random() < 0.5,
            distractor_is_plural=rng.random() < 0.5,
            preposition=rng.choice(PREPOSITIONS),
            quality=rng.choice(QUALITIES),
        )
        if split_of(case.key) == split:
            return case


def sentence(rng: Random, split: Split = "train") -> list[str]:
    """The words of one sentence whose verb agrees with a subject some words before it."""
    case = _draw(rng, split)
    return list(case.filled(plural=case.subject_is_plural).words)


def _example(case: _Case) -> Example:
    plural = case.subject_is_plural
    filled = case.filled(plural=plural)
    right, wrong = case.verb(plural=plural), case.verb(plural=not plural)
    return Example(
        prompt=filled.prompt,
        answers=(right,),
        wrong_answers=(wrong,),
        counterfactual=case.filled(plural=not plural).prompt,
        counterfactual_answers=(wrong,),
        spans={"subject": filled.spans["subject"], "distractor": filled.spans["distractor"]},
        keys=(case.key,),
    )


def examples(n: int, *, seed: int = 0, split: Split = "held_out") -> list[Example]:
    """Prompts whose next word is a verb of the subject's number; the wrong answer has the other number.

    The counterfactual has the same subject in the other number.

    Args:
        n: Number of examples.
        seed: Another seed gives other examples.
        split: ``"held_out"`` for pairs of subject and distractor that training never shows.
    """
    rng = generator("agreement", split, seed)
    return [_example(_draw(rng, split)) for _ in range(n)]


def vocabulary() -> set[str]:
    """Every word that this module can write."""
    verbs = {verb for singular, plural, _ in FRAMES for verb in (singular, plural)}
    nouns = {form for noun in NOUNS for form in noun}
    return fixed_words(frame for *_, frame in FRAMES) | verbs | nouns | {*PREPOSITIONS, *QUALITIES}
