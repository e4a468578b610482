"""Years: "The war lasted from the year 17 32 to the year 17" and then any two-digit word above 32.

A year is two words, century and year of the century. In training the second year is drawn evenly from those
that are larger. Held out are combinations of noun, century and first year.
"""

from dataclasses import dataclass
from random import Random

from lens_ablation.data.corpus.example import Example, Split, generator, split_of
from lens_ablation.data.corpus.templates import Filled, fill, fixed_words, word_list

FRAMES = (
    "The {noun} lasted from the year {century} {start} to the year {century} | {end} .",
    "The {noun} began in the year {century} {start} and ended in the year {century} | {end} .",
    "Historians date the {noun} from {century} {start} to {century} | {end} .",
)

NOUNS = word_list("""
    war siege drought famine plague dynasty reign strike expedition voyage project trial rebellion truce
    campaign conflict crisis debate exile alliance embargo occupation partnership regime
    """)

CENTURIES = tuple(str(century) for century in range(11, 20))
YEARS = tuple(f"{year:02d}" for year in range(100))
FIRST_STARTS = range(2, 99)
COUNTERFACTUAL_START = 1


@dataclass(frozen=True)
class _Case:
    frame: str
    noun: str
    century: str
    start: int
    end: int

    @property
    def key(self) -> str:
        return f"first year {self.noun}/{self.century}/{self.start}"

    def filled(self, start: int) -> Filled:
        slots = {"noun": self.noun, "century": self.century, "start": YEARS[start], "end": YEARS[self.end]}
        return fill(self.frame, slots)


def _draw(rng: Random, split: Split) -> _Case:
    while True:
        start = rng.choice(FIRST_STARTS)
        case = _Case(
            frame=rng.choice(FRAMES),
            noun=rng.choice(NOUNS),
            century=rng.choice(CENTURIES),
            start=start,
            end=rng.randrange(start + 1, 100),
        )
        if split_of(case.key) == split:
            return case


def sentence(rng: Random, split: Split = "train") -> list[str]:
    """The words of one sentence about a span of years."""
    case = _draw(rng, split)
    return list(case.filled(case.start).words)


def _example(case: _Case) -> Example:
    filled = case.filled(case.start)
    start = filled.spans["start"]
    end_century = (filled.prompt_length - 1, filled.prompt_length)
    return Example(
        prompt=filled.prompt,
        answers=YEARS[case.start + 1 :],
        wrong_answers=YEARS[: case.start + 1],
        counterfactual=case.filled(COUNTERFACTUAL_START).prompt,
        counterfactual_answers=YEARS[COUNTERFACTUAL_START + 1 :],
        spans={
            "noun": filled.spans["noun"],
            "start_century": (start[0] - 1, start[0]),
            "start": start,
            "end_century": end_century,
        },
        keys=(case.key,),
    )


def examples(n: int, *, seed: int = 0, split: Split = "held_out") -> list[Example]:
    """Prompts whose next word is any year of the century above the first one; the others are wrong.

    In the counterfactual the first year is 01, so that every year from 02 on is right.

    Args:
        n: Number of examples.
        seed: Another seed gives other examples.
        split: ``"held_out"`` for combinations of noun, century and first year that training never shows.
    """
    rng = generator("greater_than", split, seed)
    return [_example(_draw(rng, split)) for _ in range(n)]


def vocabulary() -> set[str]:
    """Every word that this module can write."""
    return fixed_words(FRAMES) | {*NOUNS, *CENTURIES, *YEARS}
