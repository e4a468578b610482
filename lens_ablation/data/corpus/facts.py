"""Factual recall: the capital of France, the symbol of gold, the young of a cow.

Of every fact one phrasing is held out; the fact itself is learned from its other phrasings.
"""

from collections.abc import Collection
from random import Random

from lens_ablation.data.corpus.example import Example, Split, generator, stable_hash
from lens_ablation.data.corpus.fact_table import FACTS, PHRASINGS, Fact
from lens_ablation.data.corpus.templates import fill, fixed_words, words_of

RELATIONS = tuple(PHRASINGS)
"""What facts are about: ``capital``, ``continent``, ``language``, ``currency``, ``symbol``, ``young``."""


def _held_out_phrasing(fact: Fact) -> int:
    return stable_hash("facts", fact.relation, fact.subject) % len(PHRASINGS[fact.relation])


def _pool(split: Split) -> list[tuple[Fact, int]]:
    return [
        (fact, phrasing)
        for fact in FACTS
        for phrasing in range(len(PHRASINGS[fact.relation]))
        if (phrasing == _held_out_phrasing(fact)) == (split == "held_out")
    ]


_POOLS: dict[Split, list[tuple[Fact, int]]] = {"train": _pool("train"), "held_out": _pool("held_out")}


def _filled(fact: Fact, phrasing: int):
    return fill(PHRASINGS[fact.relation][phrasing], {"subject": fact.subject, "answer": fact.answer})


def sentence(rng: Random, split: Split = "train") -> list[str]:
    """The words of one sentence that states a fact."""
    return list(_filled(*rng.choice(_POOLS[split])).words)


def _example(rng: Random, fact: Fact, phrasing: int) -> Example:
    filled = _filled(fact, phrasing)
    others = [
        other
        for other in FACTS
        if other.relation == fact.relation
        and other.answer != fact.answer
        and len(other.subject.split()) == len(fact.subject.split())
    ]
    other = rng.choice(others)
    wrong = {f.answer for f in FACTS if f.relation == fact.relation} - {fact.answer, other.answer}
    return Example(
        prompt=filled.prompt,
        answers=(fact.answer,),
        wrong_answers=(other.answer, *sorted(wrong)),
        counterfactual=_filled(other, phrasing).prompt,
        counterfactual_answers=(other.answer,),
        spans={"subject": filled.spans["subject"]},
        keys=(f"fact phrasing {fact.relation}/{fact.subject}/{phrasing}",),
    )


def n_prompts(split: Split, relations: Collection[str] = RELATIONS) -> int:
    """How many different prompts a split has."""
    return sum(fact.relation in relations for fact, _ in _POOLS[split])


def examples(
    n: int, *, seed: int = 0, split: Split = "held_out", relations: Collection[str] = RELATIONS
) -> list[Example]:
    """Prompts that ask for the answer of a fact; no prompt comes twice before every prompt has come once.

    The counterfactual asks for the same relation of another subject of as many words; its answer is the first
    wrong answer, the other answers of the relation follow.

    Args:
        n: Number of examples.
        seed: Another seed gives another order.
        split: ``"held_out"`` for pairs of subject and phrasing that training never shows.
        relations: What is asked for.
    """
    rng = generator("facts", split, seed)
    pool = [case for case in _POOLS[split] if case[0].relation in relations]
    cases: list[tuple[Fact, int]] = []
    while len(cases) < n:
        cases += rng.sample(pool, len(pool))
    return [_example(rng, fact, phrasing) for fact, phrasing in cases[:n]]


def vocabulary() -> set[str]:
    """Every word that this module can write."""
    templates = (template for relation in PHRASINGS.values() for template in relation)
    return fixed_words(templates) | words_of(f"{fact.subject} {fact.answer}" for fact in FACTS)
