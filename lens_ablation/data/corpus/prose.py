"""Prose: stories of a few sentences about a person, a friend, a thing and an animal.

Held out are whole sentences: a held-out story is made only of sentences that training never shows.
"""

from collections.abc import Mapping
from random import Random

from lens_ablation.data.corpus.example import Split, split_of
from lens_ablation.data.corpus.names import FEELINGS, FEMALE_NAMES, MALE_NAMES, OBJECTS, PLACES
from lens_ablation.data.corpus.templates import fill, fixed_words, word_list

OPENINGS = (
    "One {time} {hero} walked to the {place} with a {adjective} {animal} .",
    "Once upon a time {hero} lived near the {place} with a {adjective} {animal} .",
    "On a {weather} {time} {hero} and {friend} went out to find a {object} .",
    "Every {time} {hero} watched the {animal} that slept by the {place} .",
    "There was a {adjective} {animal} in the {place} , and {hero} loved it .",
    "Early that {time} {hero} packed a {object} and left for the {place} .",
    "It was a {weather} {time} when {hero} first met {friend} at the {place} .",
)
MIDDLES = (
    "{he} had lost {his} {adjective} {object} and felt {feeling} .",
    "{he} told {friend} about the {animal} because {he} was {feeling} .",
    "{friend} laughed and showed {him} a {adjective} {object} .",
    "The {animal} took the {object} and ran across the {place} .",
    "Suddenly the {animal} jumped over the {object} and {hero} screamed .",
    "{hero} and {friend} looked at the {object} but did not touch it .",
    '" Where is my {object} ? " asked {hero} .',
    '" I think the {animal} has it , " said {friend} .',
    '" Please help me , " {hero} said to {friend} , who was very {feeling} .',
    "Behind the {place} {he} found a {adjective} {object} under the leaves .",
    "{friend} gave {him} some bread and they sat together in the {weather} air .",
    "The {weather} wind blew {his} {object} into the {place} .",
    "{he} tried to open the {object} , but it was too {adjective} .",
    "Nobody at the {place} had ever seen such a {adjective} {animal} .",
    "{hero} promised {friend} that {he} would never lose the {object} again .",
)
ENDINGS = (
    "In the end {hero} went home and slept beside {his} {animal} .",
    "At last {he} found the {object} , and {friend} was {feeling} too .",
    "That night {he} dreamed of the {adjective} {animal} in the {place} .",
    "They shared the {object} and became friends forever .",
    "{hero} thanked {friend} and carried the {object} back to the {place} .",
    "From then on the {animal} followed {him} everywhere .",
)
SLOTS: Mapping[str, tuple[str, ...]] = {
    "place": PLACES,
    "object": OBJECTS,
    "feeling": FEELINGS,
    "time": ("morning", "evening", "afternoon", "day", "night", "summer", "winter"),
    "weather": ("sunny", "rainy", "cloudy", "windy", "warm", "foggy", "snowy"),
    "animal": word_list("fox rabbit mouse parrot pony tiger monkey turtle squirrel hedgehog dragon donkey"),
    "adjective": word_list("little big golden silver strange tiny brave wild clever gentle lazy beautiful"),
}
FEMALE = {"he": "she", "him": "her", "his": "her"}
MALE = {"he": "he", "him": "him", "his": "his"}
_STAYS = ("object", "animal", "place")


def _sentence(rng: Random, templates: tuple[str, ...], fixed: Mapping[str, str], split: Split) -> list[str]:
    while True:
        slots = {name: rng.choice(words) for name, words in SLOTS.items()}
        if rng.random() < 0.7:
            slots |= {name: fixed[name] for name in _STAYS}
        words = fill(rng.choice(templates), {**fixed, **slots}).words
        if split_of("prose", *words) == split:
            return list(words)


def sentence(rng: Random, split: Split = "train") -> list[str]:
    """The words of one story of three to five sentences."""
    is_female = rng.random() < 0.5
    hero = rng.choice(FEMALE_NAMES if is_female else MALE_NAMES)
    friend = rng.choice([name for name in FEMALE_NAMES + MALE_NAMES if name != hero])
    fixed = {"hero": hero, "friend": friend, **(FEMALE if is_female else MALE)}
    fixed |= {name: rng.choice(SLOTS[name]) for name in _STAYS}
    story = _sentence(rng, OPENINGS, fixed, split)
    for _ in range(rng.randint(1, 3)):
        story += _sentence(rng, MIDDLES, fixed, split)
    return story + _sentence(rng, ENDINGS, fixed, split)


def vocabulary() -> set[str]:
    """Every word that this module can write."""
    pronouns = {*FEMALE.values(), *MALE.values()}
    slots = {word for words in SLOTS.values() for word in words}
    at_the_start = {word.capitalize() for word in pronouns}
    return fixed_words(OPENINGS + MIDDLES + ENDINGS) | pronouns | at_the_start | slots | {*FEMALE_NAMES, *MALE_NAMES}
