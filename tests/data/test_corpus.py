"""The generated corpus: what is held out stays held out, and every word is in the vocabulary."""

import subprocess
import sys
from random import Random

import pytest

from lens_ablation.data import corpus
from lens_ablation.data.corpus.fact_table import FACTS, PHRASINGS
from lens_ablation.data.corpus.mixture import SENTENCES, document
from lens_ablation.data.corpus.names import FEMALE_NAMES, MALE_NAMES
from lens_ablation.data.corpus.templates import fill

SKILLS = {
    "ioi": corpus.ioi,
    "greater_than": corpus.greater_than,
    "facts": corpus.facts,
    "pronouns": corpus.pronouns,
    "agreement": corpus.agreement,
    "induction": corpus.induction,
}
SPLITS = ("train", "held_out")


@pytest.fixture(params=SKILLS, name="skill")
def _skill(request):
    return SKILLS[request.param]


def _words(examples):
    for example in examples:
        for text in (example.prompt, example.counterfactual):
            yield from text.split()
        for answers in (example.answers, example.wrong_answers, example.counterfactual_answers):
            yield from answers


def test_no_key_of_a_held_out_example_occurs_in_training(skill):
    train, held_out = (
        {key for seed in range(3) for example in skill.examples(600, seed=seed, split=split) for key in example.keys}
        for split in SPLITS
    )
    assert train
    assert held_out
    assert not train & held_out


@pytest.mark.parametrize("name", [name for name in SENTENCES if name not in ("prose", "code", "arithmetic")])
def test_no_held_out_prompt_begins_a_training_sentence(name):
    rng = Random(1)
    sentences = [" ".join(SENTENCES[name](rng, "train")) + " " for _ in range(1500)]
    prompts = {example.prompt + " " for example in SKILLS[name].examples(600, split="held_out")}
    lengths = {len(prompt) for prompt in prompts}
    assert not prompts & {sentence[:length] for sentence in sentences for length in lengths}


@pytest.mark.parametrize("name", ["code", "arithmetic"])
def test_held_out_statements_never_occur_in_training(name):
    def statements(split):
        rng = Random(2)
        return {" ".join(SENTENCES[name](rng, split)) for _ in range(2000)}

    assert not statements("train") & statements("held_out")


def test_held_out_stories_share_no_sentence_with_training():
    def sentences(split):
        rng = Random(3)
        stories = (" ".join(corpus.prose.sentence(rng, split)) for _ in range(500))
        return {sentence for story in stories for sentence in story.split(" . ")}

    quoted = {sentence for sentence in sentences("held_out") if '"' in sentence}
    assert quoted
    assert not sentences("train") & sentences("held_out")


def test_examples_are_the_same_every_time(skill):
    assert skill.examples(50, seed=4) == skill.examples(50, seed=4)
    assert skill.examples(50, seed=4) != skill.examples(50, seed=5)
    assert skill.examples(50, seed=4)[:20] == skill.examples(20, seed=4)


def test_examples_are_the_same_in_another_process(skill):
    name = skill.__name__.rpartition(".")[2]
    prompts = f"[example.prompt for example in corpus.{name}.examples(20, seed=6)]"
    code = f"from lens_ablation.data import corpus; print({prompts})"
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "123", "PYTHONPATH": ":".join(path for path in sys.path if path)},
    )
    assert found.stdout.strip() == str([example.prompt for example in skill.examples(20, seed=6)])


@pytest.mark.parametrize("split", SPLITS)
def test_every_word_of_an_example_is_in_the_vocabulary(skill, split):
    assert set(_words(skill.examples(1000, split=split))) <= set(corpus.vocabulary())


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", SENTENCES)
def test_every_word_of_a_text_is_in_the_vocabulary(name, split):
    words = {word for text in corpus.documents(name, 200, split=split) for word in text.split()}
    assert words <= set(corpus.vocabulary())


@pytest.mark.parametrize("split", SPLITS)
def test_prompt_and_counterfactual_have_as_many_words_and_differ(skill, split):
    for example in skill.examples(500, split=split):
        assert len(example.prompt.split()) == len(example.counterfactual.split())
        assert example.prompt != example.counterfactual


@pytest.mark.parametrize("split", SPLITS)
def test_right_and_wrong_answers_are_apart(skill, split):
    for example in skill.examples(500, split=split):
        assert example.answer == example.answers[0]
        assert not set(example.answers) & set(example.wrong_answers)
        assert example.answers != example.counterfactual_answers


def test_spans_lie_within_the_prompt(skill):
    for example in skill.examples(300):
        length = len(example.prompt.split())
        assert example.spans
        assert all(0 <= start < end <= length for start, end in example.spans.values())


def test_indirect_object_spans_hold_the_names():
    for example in corpus.ioi.examples(300):
        words = example.prompt.split()
        at = {name: words[start] for name, (start, _) in example.spans.items()}
        assert at == {"IO": example.answer, "S1": example.wrong_answers[0], "S2": example.wrong_answers[0]}


def test_both_orders_of_names_occur():
    orders = [example.spans["IO"] < example.spans["S1"] for example in corpus.ioi.examples(400)]
    assert 0.4 < sum(orders) / len(orders) < 0.6


def test_right_years_are_the_larger_ones():
    for example in corpus.greater_than.examples(300):
        start = int(example.prompt.split()[example.spans["start"][0]])
        assert all(int(year) > start for year in example.answers)
        assert all(int(year) <= start for year in example.wrong_answers)
        assert len(example.answers) + len(example.wrong_answers) == 100


def test_fact_spans_hold_the_subject():
    facts = {(fact.subject, fact.answer) for fact in FACTS}
    for example in corpus.facts.examples(245):
        start, end = example.spans["subject"]
        assert (" ".join(example.prompt.split()[start:end]), example.answer) in facts


def test_induction_answers_follow_the_earlier_copy():
    for example in corpus.induction.examples(200):
        words = example.prompt.split()
        first, copied, repeated = (example.spans[name][0] for name in ("first", "copied", "repeated"))
        assert words[first] == words[repeated] == words[-1]
        assert words[copied] == example.answer


def test_sizes_of_the_tables():
    assert len(set(FEMALE_NAMES) | set(MALE_NAMES)) >= 100
    assert not set(FEMALE_NAMES) & set(MALE_NAMES)
    assert len({(fact.relation, fact.subject) for fact in FACTS}) == len(FACTS) >= 150
    assert len(PHRASINGS) >= 4
    assert all(len(set(phrasings)) >= 4 for phrasings in PHRASINGS.values())
    assert all(len(fact.answer.split()) == 1 for fact in FACTS)
    assert len(corpus.vocabulary()) <= 1800


def test_each_fact_is_held_out_in_one_phrasing_and_taught_in_the_others():
    held_out = corpus.facts.examples(len(FACTS), split="held_out")
    assert len({example.keys for example in held_out}) == len(FACTS)


def test_any_training_step_can_be_asked_for_alone():
    in_order = [corpus.training_documents(step, rows=8, length=64, seed=0) for step in range(4)]
    assert corpus.training_documents(3, rows=8, length=64, seed=0) == in_order[3]
    assert in_order[2] != in_order[3]
    assert all(len(words) == 64 and words[0] == corpus.BOS for batch in in_order for words in batch)


def test_shares_of_the_mixture_are_percentages():
    assert sum(corpus.MIXTURE.values()) == 100


def test_an_unknown_skill_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no skill or domain 'poetry'; there are ioi, "):
        document("poetry", Random(0), 10)


def test_a_sequence_of_one_word_is_refused():
    with pytest.raises(ValueError, match="between 2 and"):
        corpus.induction.repeated(1, 1)


def test_a_slot_of_several_words_has_a_span_of_several_words():
    filled = fill("the capital of {subject} is | {answer} .", {"subject": "South Korea", "answer": "Seoul"})
    assert filled.prompt == "The capital of South Korea is"
    assert filled.spans == {"subject": (3, 5), "answer": (6, 7)}


def test_the_corpus_imports_no_torch():
    heavy = {"torch", "transformers", "numpy"}
    code = f"import sys, lens_ablation.data.corpus; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
