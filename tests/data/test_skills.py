"""The generated skills: disjoint, balanced, in words of tiny-lm; and prompts of anybody's facts."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

import lens_ablation as la
from lens_ablation.data import corpus, skills
from lens_ablation.data.corpus.fact_table import FACTS
from lens_ablation.data.skills import COMPARISONS, CONTINENTS, NEW, OPENINGS, VERBS, split_of
from lens_ablation.errors import UnknownName

SPLITS = ("train", "valid", "test")


@pytest.mark.parametrize("name", la.skills.names())
def test_splits_share_no_question_and_repeat_none(name: str):
    model = la.load_model("tiny-lm")
    make = la.skills.get(name)
    splits = {
        split: [{"text": text} for text in make(model, split=split, seed=seed, wordings="all").prompts]
        for seed, split in enumerate(SPLITS)
    }
    assert la.leaks(splits)["records"].sum() == 0
    for split, records in splits.items():
        assert {split_of(record["text"]) for record in records} == {split}


@pytest.mark.parametrize("name", la.skills.names())
@pytest.mark.parametrize("wordings", ["trained", "new"])
def test_labels_are_balanced(name: str, wordings: str):
    choices = la.skills.get(name)(la.load_model("tiny-lm"), split="train", wordings=wordings)
    counts = choices.labels.bincount(minlength=choices.n_candidates)
    assert int(counts.max() - counts.min()) <= 1
    assert la.skills.get(name)(la.load_model("tiny-lm"), n=7, split="train", wordings=wordings).n_examples == 7


@pytest.mark.parametrize("name", la.skills.names())
def test_the_model_answers_what_it_was_trained_on(name: str):
    model = la.load_model("tiny-lm")
    choices = la.skills.get(name)(model, wordings="trained")
    right = choices.probabilities(model).argmax(dim=1) == choices.labels
    assert float(right.float().mean()) > 0.8


@pytest.mark.parametrize("name", la.skills.names())
def test_a_seed_gives_the_same_questions_and_another_one_others(name: str):
    model = la.load_model("tiny-lm")
    make = la.skills.get(name)
    first, again, other = (make(model, n=20, seed=seed) for seed in (1, 1, 2))
    assert first.to_dataframe().equals(again.to_dataframe())
    assert first.prompts != other.prompts


def test_new_wordings_are_made_of_known_words_and_were_never_written():
    words = corpus.vocabulary()
    templates = [one for same in NEW.values() for one in same]
    texts = [t.replace("{subject}", "France") for t in templates]
    texts += [t.format(a=3, b=5) for t in COMPARISONS["new"]]
    assert not [word for text in texts for word in text.split() if word not in words]
    written = " ".join(
        " ".join(words) for step in range(60) for words in corpus.training_documents(step, rows=16, length=64, seed=0)
    )
    assert "The capital of" in written
    assert not [text for text in texts if len(text.split()) > 3 and text in written]


def test_right_answers_are_right():
    model = la.load_model("tiny-lm")
    table = la.skills.capital(model, wordings="all").to_dataframe()
    capitals = {fact.subject: fact.answer for fact in FACTS if fact.relation == "capital"}
    for row in table.head(60).to_dict("records"):
        subject = next(name for name in sorted(capitals, key=len, reverse=True) if name in row["prompt"])
        assert row["answer"] == capitals[subject]
        assert len(set(row["candidates"])) == 4
    for wordings in ("trained", "new"):
        for row in la.skills.comparison(model, n=50, wordings=wordings).to_dataframe().to_dict("records"):
            numbers = [int(word) for word in row["prompt"].split() if word.isdigit()]
            asked, other = numbers[-1], next((n for n in numbers[:-1] if n != numbers[-1]), numbers[-1])
            assert row["answer"] == VERBS[int(asked < other)]
    domains = la.skills.domain(model, n=30).to_dataframe()
    assert set(domains["answer"]) == set(OPENINGS)
    for row in domains.to_dict("records"):
        is_code = "NEWLINE" in row["prompt"]
        assert (row["answer"] == "for") == is_code
    assert set(la.skills.continent(model).to_dataframe()["answer"]) == set(CONTINENTS)


def test_texts_end_at_the_end_of_a_sentence_or_within_one():
    model = la.load_model("tiny-lm")
    ends = {"trained": True, "new": False}
    for wordings, at_end in ends.items():
        prompts = la.skills.domain(model, n=40, wordings=wordings).prompts
        assert all((prompt.split()[-1] in {".", ";", "NEWLINE", "DEDENT"}) == at_end for prompt in prompts)


def test_wordings_can_be_chosen():
    model = la.load_model("tiny-lm")
    chosen = la.skills.capital(model, wordings=["The capital of {subject} is"])
    assert set(chosen.wordings) == {"The capital of {subject} is"}
    assert len(set(la.skills.capital(model).wordings)) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "held_out"}, "unknown split"),
        ({"wordings": "other"}, "unknown kind of wording"),
        ({"wordings": ["no such"]}, "unknown wording"),
        ({"wordings": []}, "no wordings"),
        ({"n": 0}, "ask for fewer|1 or more"),
        ({"n": 20_000}, "ask for fewer"),
    ],
)
@pytest.mark.parametrize("name", ["capital", "comparison"])
def test_bad_requests_say_what_to_do(
    name: str, options: dict, message: str, unchecked: Callable[[ModuleType], Any], monkeypatch: pytest.MonkeyPatch
):
    plain = unchecked(skills)
    monkeypatch.setattr(plain, "_MOST_DRAWS", 1)
    with pytest.raises(ValueError, match=message):
        plain.get(name)(la.load_model("tiny-lm"), **options)


def test_an_unknown_skill_is_named():
    with pytest.raises(UnknownName, match="nearest: capital"):
        la.skills.get("capitals")


def test_anybodys_facts_in_several_phrasings():
    facts = {"France": "Paris", "South Korea": "Seoul", "Italy": "Rome", "Spain": "Madrid"}
    records = la.fact_records(facts, ["the capital of {subject} is", "{subject} has its capital in"], n_options=3)
    assert len(records) == 8
    assert records[2]["text"] == "The capital of South Korea is"
    for record in records:
        assert record["options"][record["label"]] == record["object"] == facts[record["subject"]]
        assert len(set(record["options"])) == 3
    places = torch.tensor([record["label"] for record in records]).bincount()
    assert int(places.max() - places.min()) <= 1
    model = la.load_model("tiny-lm")
    choices = la.multiple_choice(records, model, candidates="options", template="{text}", separator=" ")
    assert bool((choices.probabilities(model).argmax(dim=1) == choices.labels).all())
    fixed = la.fact_records(facts, ["{subject} and"], candidates=["Paris", "Rome"])
    assert [record["label"] for record in fixed] == [0, 1]


@pytest.mark.parametrize(
    ("phrasings", "n_options", "message"),
    [(["the capital"], 2, "holds {subject}"), ([], 2, "holds {subject}"), (["{subject} is"], 3, "fewer options")],
)
def test_bad_facts_say_what_to_do(phrasings: list[str], n_options: int, message: str):
    with pytest.raises(ValueError, match=message):
        la.fact_records({"France": "Paris", "Italy": "Rome"}, phrasings, n_options=n_options)
