"""Pronoun gender: "Mary went to the park because" she, "The king forgot the hat at" his.

Each frame asks for one case of the pronoun. Held out are pairs of person and frame.
"""

from dataclasses import dataclass
from random import Random

from lens_ablation.data.corpus.example import Example, Split, generator, split_of
from lens_ablation.data.corpus.names import (
    FEELINGS,
    FEMALE_NAMES,
    GENDERED_NOUNS,
    MALE_NAMES,
    OBJECTS,
    PLACES,
)
from lens_ablation.data.corpus.templates import Filled, fill, fixed_words

FRAMES = (
    ("subject", "{person} went to the {place} because | {pronoun} was {feeling} ."),
    ("subject", "When {person} came home , | {pronoun} was {feeling} ."),
    ("subject", "{person} was so {feeling} that | {pronoun} left the {place} ."),
    ("subject", "Although {person} was {feeling} , | {pronoun} stayed at the {place} ."),
    ("subject", "In the {place} {person} said that | {pronoun} liked the {object} ."),
    ("subject", "{person} looked for the {object} until | {pronoun} was {feeling} ."),
    ("object", "{person} was {feeling} , so we helped | {pronoun} ."),
    ("object", "{person} asked for a {object} and I gave it to | {pronoun} ."),
    ("object", "At the {place} {person} waved , but nobody saw | {pronoun} ."),
    ("possessive", "{person} forgot the {object} at | {pronoun} house ."),
    ("possessive", "At the {place} {person} was proud of | {pronoun} {object} ."),
    ("possessive", "{person} came to the {place} with | {pronoun} friends ."),
)
"""Case of the pronoun, and the frame."""

FEMALE = {"subject": "she", "object": "her", "possessive": "her"}
MALE = {"subject": "he", "object": "him", "possessive": "his"}
NOUN_SHARE = 0.3
"""Share of sentences about a noun and not a name."""


@dataclass(frozen=True)
class _Case:
    frame: int
    person: str
    other: str
    is_female: bool
    place: str
    item: str
    feeling: str

    @property
    def key(self) -> str:
        return f"pronoun {self.person}/{self.frame}"

    def pronoun(self, *, is_female: bool) -> str:
        return (FEMALE if is_female else MALE)[FRAMES[self.frame][0]]

    def filled(self, person: str, pronoun: str) -> Filled:
        slots = {"place": self.place, "object": self.item, "feeling": self.feeling}
        return fill(FRAMES[self.frame][1], slots | {"person": person, "pronoun": pronoun})


def _people(rng: Random) -> tuple[str, str]:
    if rng.random() < NOUN_SHARE:
        female, male = rng.choice(GENDERED_NOUNS)
        return f"the {female}", f"the {male}"
    return rng.choice(FEMALE_NAMES), rng.choice(MALE_NAMES)


def _draw(rng: Random, split: Split) -> _Case:
    while True:
        female, male = _people(rng)
        is_female = rng.random() < 0.5
        case = _Case(
            frame=rng.randrange(len(FRAMES)),
            person=female if is_female else male,
            other=male if is_female else female,
            is_female=is_female,
            place=rng.choice(PLACES),
            item=rng.choice(OBJECTS),
            feeling=rng.choice(FEELINGS),
        )
        if split_of(case.key) == split:
            return case


def sentence(rng: Random, split: Split = "train") -> list[str]:
    """The words of one sentence in which a pronoun follows its person."""
    case = _draw(rng, split)
    return list(case.filled(case.person, case.pronoun(is_female=case.is_female)).words)


def _example(case: _Case) -> Example:
    right, wrong = case.pronoun(is_female=case.is_female), case.pronoun(is_female=not case.is_female)
    filled = case.filled(case.person, right)
    return Example(
        prompt=filled.prompt,
        answers=(right,),
        wrong_answers=(wrong,),
        counterfactual=case.filled(case.other, wrong).prompt,
        counterfactual_answers=(wrong,),
        spans={"person": filled.spans["person"]},
        keys=(case.key,),
    )


def examples(n: int, *, seed: int = 0, split: Split = "held_out") -> list[Example]:
    """Prompts whose next word is a pronoun of the person's gender; the wrong answer is the other gender's.

    The counterfactual is about a person of the other gender.

    Args:
        n: Number of examples.
        seed: Another seed gives other examples.
        split: ``"held_out"`` for pairs of person and frame that training never shows.
    """
    rng = generator("pronouns", split, seed)
    return [_example(_draw(rng, split)) for _ in range(n)]


def vocabulary() -> set[str]:
    """Every word that this module can write."""
    nouns = {noun for pair in GENDERED_NOUNS for noun in pair}
    pronouns = {*FEMALE.values(), *MALE.values()}
    people = {*FEMALE_NAMES, *MALE_NAMES, *nouns, "the", "The"}
    return fixed_words(frame for _, frame in FRAMES) | people | pronouns | {*PLACES, *OBJECTS, *FEELINGS}
