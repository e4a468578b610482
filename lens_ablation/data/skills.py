"""Multiple-choice skills for the embedded ``tiny-lm``, phrased in words that it knows.

Each skill is ``(model, n=None, seed=0, split="test", wordings="trained") -> MultipleChoice``, as many questions of each
label as of another. Splits are disjoint: which one a question belongs to is decided once and for all by a hash of the
question. ``trained`` wordings are sentences of the corpus that tiny-lm was trained on; ``new`` ones are made of its
words and were never written in training, so that its own answers are poorer. The model was trained on no instructions,
and none are given.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from random import Random
from typing import Any, Literal

from lens_ablation.data import corpus
from lens_ablation.data.corpus.example import generator, stable_hash
from lens_ablation.data.corpus.fact_table import FACTS, PHRASINGS
from lens_ablation.data.fact_prompts import fact_records
from lens_ablation.data.multiple_choice import MultipleChoice, multiple_choice
from lens_ablation.errors import unknown_name
from lens_ablation.models.protocol import LensModel

__all__ = ["capital", "comparison", "continent", "domain", "get", "language", "names", "split_of"]

SkillSplit = Literal["train", "valid", "test"]
"""Which part of a skill's questions: half of them, a tenth, and the rest."""

Wordings = Literal["trained", "new", "all"]
"""Sentences as in training, in words never put together so, or both."""

CONTINENTS = ("Europe", "Asia", "Africa")
OPENINGS = ("The", "for", "compare")
"""A word that begins a sentence of each domain."""

VERBS = ("exceeds", "undercuts")

NEW: Mapping[str, tuple[str, ...]] = {
    "capital": (
        "The city of {subject} is",
        "The museum of {subject} is in",
        "In the country of {subject} the government is called",
        "{subject} and",
    ),
    "continent": (
        "The king of {subject} left",
        "{subject} is near",
        "The map of {subject} is part of the map of",
        "People in {subject} are in",
    ),
    "language": (
        "In {subject} we said it in",
        "The school in {subject} printed it in",
        "The king of {subject} said it in",
        "The words of {subject} are",
    ),
}
"""Phrasings of facts that no training text has."""

COMPARISONS: Mapping[str, tuple[str, ...]] = {
    "trained": ("compare {a} {b} : {a}",),
    "new": ("compare {a} {b} : {b}", "{a} {b} : {a}", "compare {a} and {b} : {a}", "The key {a} {b} : {a}"),
}

CUTS: Mapping[str, tuple[str, ...]] = {"trained": ("after a sentence",), "new": ("within a sentence",)}
SENTENCE_ENDS = frozenset({".", ";", "NEWLINE", "DEDENT"})
SHORTEST, LONGEST = 4, 32
"""Words of a text whose domain is asked."""

_BUCKETS: Mapping[str, range] = {"train": range(5), "valid": range(5, 6), "test": range(6, 10)}
_MOST_DRAWS = 200


def split_of(text: str) -> str:
    """The split that a question belongs to, for good."""
    bucket = stable_hash("skills", text) % 10
    return next(name for name, buckets in _BUCKETS.items() if bucket in buckets)


def capital(
    model: LensModel,
    n: int | None = None,
    seed: int = 0,
    split: SkillSplit = "test",
    wordings: Wordings | Sequence[str] = "trained",
) -> MultipleChoice:
    """The capital of a country among four: "The capital of France is" Paris.

    The options differ from question to question, so that a label is a place among them and no word.

    Args:
        model: ``tiny-lm``, or a causal model whose tokenizer knows the words.
        n: Number of questions; all of the split by default.
        seed: Another seed gives another order, and other options.
        split: ``train``, ``valid`` or ``test``, which share no question.
        wordings: ``trained``, ``new``, ``all``, or phrasings of your own choice.

    Raises:
        UnknownName: no such split or wording.
        ValueError: more questions than there are, or the tokenizer does not know their words.

    Example:
        >>> import lens_ablation as la
        >>> la.skills.capital(la.load_model("tiny-lm"), n=8)
        MultipleChoice(capital: 8 questions of 4 candidates)
    """
    return _fact_skill("capital", None, model, n, seed, split, wordings)


def language(
    model: LensModel,
    n: int | None = None,
    seed: int = 0,
    split: SkillSplit = "test",
    wordings: Wordings | Sequence[str] = "trained",
) -> MultipleChoice:
    """The language of a country among four: "People in Peru speak" Spanish. Arguments and errors as in ``capital``."""
    return _fact_skill("language", None, model, n, seed, split, wordings)


def continent(
    model: LensModel,
    n: int | None = None,
    seed: int = 0,
    split: SkillSplit = "test",
    wordings: Wordings | Sequence[str] = "trained",
) -> MultipleChoice:
    """Europe, Asia or Africa: "Kenya is a country in" Africa. Arguments and errors as in ``capital``."""
    return _fact_skill("continent", CONTINENTS, model, n, seed, split, wordings)


def domain(
    model: LensModel,
    n: int = 200,
    seed: int = 0,
    split: SkillSplit = "test",
    wordings: Wordings | Sequence[str] = "trained",
) -> MultipleChoice:
    """Whether a text is prose, code or arithmetic, by the word that opens a next sentence: The, for, compare.

    Texts end where a sentence ends (``trained``) or anywhere else (``new``), where no such word follows in training.
    Arguments and errors as in ``capital``.
    """
    chosen = _wordings(wordings, CUTS, "domain")

    def draw(rng: Random) -> dict[str, Any]:
        label = rng.randrange(len(OPENINGS))
        wording = rng.choice(chosen)
        name = corpus.DOMAINS[label]
        words = corpus.documents(name, 1, length=LONGEST + 1, seed=rng.randrange(2**31), split="held_out")[0].split()
        ends = [i + 1 for i, word in enumerate(words) if word in SENTENCE_ENDS]
        after = wording in CUTS["trained"]
        cuts = [i for i in range(SHORTEST, len(words)) if (i in ends) == after]
        return {"text": " ".join(words[: rng.choice(cuts)]) if cuts else "", "label": label, "wording": wording}

    return _drawn(draw, "domain", OPENINGS, model, n, seed, split)


def comparison(
    model: LensModel,
    n: int = 200,
    seed: int = 0,
    split: SkillSplit = "test",
    wordings: Wordings | Sequence[str] = "trained",
) -> MultipleChoice:
    """Which of two numbers is larger: "compare 34 12 : 34" exceeds, and not undercuts.

    Arguments and errors as in ``capital``.
    """
    chosen = _wordings(wordings, COMPARISONS, "comparison")

    def draw(rng: Random) -> dict[str, Any]:
        a, b = rng.sample(range(corpus.arithmetic.LARGEST + 1), 2)
        wording = rng.choice(chosen)
        first, second = (a, b) if wording.endswith("{a}") else (b, a)
        return {"text": wording.format(a=a, b=b), "label": int(first < second), "wording": wording}

    return _drawn(draw, "comparison", VERBS, model, n, seed, split)


_MAKERS: dict[str, Callable[..., MultipleChoice]] = {
    "capital": capital,
    "language": language,
    "continent": continent,
    "domain": domain,
    "comparison": comparison,
}


def names() -> list[str]:
    """Names of the skills."""
    return list(_MAKERS)


def get(name: str) -> Callable[..., MultipleChoice]:
    """The skill of this name, a function of a model.

    Raises:
        UnknownName: there is none; the message lists the nearest.
    """
    if name not in _MAKERS:
        raise unknown_name("skill", name, names(), "lens_ablation.skills.names()")
    return _MAKERS[name]


def _fact_skill(
    relation: str,
    candidates: Sequence[str] | None,
    model: LensModel,
    n: int | None,
    seed: int,
    split: SkillSplit,
    wordings: Wordings | Sequence[str],
) -> MultipleChoice:
    _require_split(split)
    trained = tuple(phrasing.split(" | ")[0] for phrasing in PHRASINGS[relation])
    phrasings = _wordings(wordings, {"trained": trained, "new": NEW[relation]}, relation)
    facts = {fact.subject: fact.answer for fact in FACTS if fact.relation == relation}
    everything = fact_records(facts, phrasings, candidates=candidates, seed=seed)
    records = [record for record in everything if split_of(str(record["text"])) == split]
    generator("skill", relation, split, seed).shuffle(records)
    records = _balanced(records) if candidates else [_with_place(one, i) for i, one in enumerate(records)]
    if n is not None and not 1 <= n <= len(records):
        raise ValueError(f"{relation} has {len(records)} questions of this split and wording, and n={n}; ask for fewer")
    return _as_choices(records if n is None else records[:n], relation, candidates or "options", model, split)


def _with_place(record: dict[str, Any], place: int) -> dict[str, Any]:
    """The record with its right option in another place."""
    options = [option for option in record["options"] if option != record["object"]]
    place %= len(options) + 1
    options.insert(place, record["object"])
    return {**record, "options": options, "label": place}


def _balanced(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record of each label after the other, until one label has no more."""
    labels = sorted({int(record["label"]) for record in records})
    by_label = [[record for record in records if record["label"] == label] for label in labels]
    return [record for round_ in zip(*by_label, strict=False) for record in round_]


def _drawn(
    draw: Callable[[Random], dict[str, Any]],
    name: str,
    candidates: Sequence[str],
    model: LensModel,
    n: int,
    seed: int,
    split: SkillSplit,
) -> MultipleChoice:
    """``n`` different questions of a split, as many of each label as can be."""
    _require_split(split)
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")
    rng = generator("skill", name, split, seed)
    quota = {label: (n + label) // len(candidates) for label in range(len(candidates))}
    found: dict[str, dict[str, Any]] = {}
    for record in islice(_forever(draw, rng), _MOST_DRAWS * (n + 10)):
        text, label = str(record["text"]), int(record["label"])
        if text and text not in found and split_of(text) == split and quota[label] > 0:
            found[text] = record
            quota[label] -= 1
        if len(found) == n:
            return _as_choices(list(found.values()), name, candidates, model, split)
    raise ValueError(f"{name} gave {len(found)} different questions of this split, not n={n}; ask for fewer")


def _forever(draw: Callable[[Random], dict[str, Any]], rng: Random) -> Iterator[dict[str, Any]]:
    while True:
        yield draw(rng)


def _as_choices(
    records: Sequence[Mapping[str, Any]],
    name: str,
    candidates: Sequence[str] | Literal["options"],
    model: LensModel,
    split: SkillSplit,
) -> MultipleChoice:
    assert all(split_of(str(record["text"])) == split for record in records)
    return multiple_choice(records, model, candidates=candidates, template="{text}", separator=" ", name=name)


def _require_split(split: str) -> None:
    if split not in _BUCKETS:
        raise unknown_name("split", split, _BUCKETS, "lens_ablation.skills: a skill")


def _wordings(asked: Wordings | Sequence[str], known: Mapping[str, Sequence[str]], skill: str) -> list[str]:
    """The wordings of a kind, or those that are named."""
    everything = [wording for same in known.values() for wording in same]
    if isinstance(asked, str):
        if asked not in (*known, "all"):
            raise unknown_name(f"kind of wording of {skill}", asked, [*known, "all"], "lens_ablation.skills: a skill")
        return everything if asked == "all" else list(known[asked])
    for wording in asked:
        if wording not in everything:
            raise unknown_name(f"wording of {skill}", wording, everything, f"lens_ablation.skills.{skill}")
    if not asked:
        raise ValueError(f"no wordings of {skill} were given; there are {everything}")
    return list(asked)
