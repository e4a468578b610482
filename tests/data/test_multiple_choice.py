"""Records as multiple choice: tokens, labels, demonstrations, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

import lens_ablation as la
from lens_ablation.data.choice_prompts import PromptFormat
from lens_ablation.models.protocol import LensModel

OPTIONS: dict[str, Any] = {"candidates": ["exceeds", "undercuts"], "template": "{text}", "separator": " "}


def comparisons(n: int = 12) -> list[dict]:
    return [{"text": f"compare {i + 10} 15 : {i + 10}", "label": int(i + 10 < 15)} for i in range(n) if i != 5]


def agnews(n: int = 8) -> list[dict]:
    return [{"text": f"the key is near the door {i}", "label": i % 4} for i in range(n)]


def test_tokens_are_those_of_the_prompt_and_of_what_follows_it(bpe_lm: LensModel):
    tokenizer: Any = bpe_lm.tokenizer
    choices = la.multiple_choice(
        agnews(), bpe_lm, instruction="Which one ?", candidates=["a", "b", "c", "d"], fields={"Text": "text"}
    )
    prompt = "Which one ?\n\n### Text:the key is near the door 1\n### Answer:"
    assert choices.prompts[1] == prompt
    own = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    expected = [tokenizer.bos_token_id, *own]
    mask = choices.task.attention_mask
    assert mask is not None
    assert choices.task.inputs[1][mask[1]].tolist() == expected
    for i, letter in enumerate("abcd"):
        assert [*own, int(choices.candidates[1, i])] == tokenizer(prompt + letter, add_special_tokens=False)[
            "input_ids"
        ]
    assert choices.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert torch.equal(choices.task.answers, choices.candidates.gather(1, choices.labels[:, None])[:, 0])
    positions = choices.task.positions
    assert positions is not None
    assert torch.equal(positions, mask.sum(dim=1) - 1)
    for row in range(choices.n_examples):
        wrong = set(choices.candidates[row].tolist()) - {int(choices.task.answers[row])}
        assert choices.task.wrong_answers is not None
        assert set(choices.task.wrong_answers[row].tolist()) == wrong


def test_options_are_lettered_or_are_the_candidates_themselves(bpe_lm: LensModel):
    records = [{"text": "key", "options": ["was", "and", "she"], "label": 2}]
    letters = la.multiple_choice(records, bpe_lm, candidates="letters")
    assert letters.prompts == ("### Text:key\n### Options:a: was; b: and; c: she\n### Answer:",)
    assert letters.names == (("a", "b", "c"),)
    own = la.multiple_choice(records, bpe_lm, candidates="options", template="the {text} and the", separator=" ")
    assert own.prompts == ("the key and the",)
    assert own.names == (("was", "and", "she"),)
    assert own.labels.tolist() == [2]


def test_labels_come_as_index_candidate_or_option():
    form = PromptFormat(candidates="letters")
    record = {"text": "x", "options": ["one", "two"]}
    found = [form.label_of({**record, "label": label}) for label in (1, "b", "two", True)]
    assert found == [1, 1, 1, 1]
    for label in (2, -1, "c", "three", None, 0.5):
        with pytest.raises(ValueError, match=r"label|indices start at 0"):
            form.label_of({**record, "label": label})


def test_rows_do_not_depend_on_their_neighbours():
    """Filled up behind a mask, a prompt gives the probabilities that it gives alone."""
    model = la.load_model("tiny-lm")
    choices = la.skills.capital(model, n=12)
    together = choices.probabilities(model)
    for i in range(3):
        rows = torch.tensor([i])
        mask = choices.task.attention_mask
        assert mask is not None
        tokens = choices.task.inputs[i][mask[i]][None]
        with torch.no_grad():
            alone = model(tokens, return_type="logits")[0, -1].softmax(dim=-1)[choices.candidates[i]]
        torch.testing.assert_close(together[i], alone, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(choices.select(rows).probabilities(model)[0], alone, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("shots", [1, 2])
def test_demonstrations_have_every_label_and_never_the_record_itself(shots: int):
    model = la.load_model("tiny-lm")
    records = comparisons(10)
    form = PromptFormat(candidates=OPTIONS["candidates"], template="{text}", separator=" ", shots=shots)
    for question, record in zip(form.questions([*records, records[0]]), [*records, records[0]], strict=True):
        *before, own = question.prompt.split("\n\n")
        assert own == record["text"]
        assert not any(one.startswith(record["text"]) for one in before)
        answers = [one.split()[-1] for one in before]
        assert answers == ["exceeds"] * shots + ["undercuts"] * shots
        for one in before:
            text, answer = one.rsplit(" ", 1)
            assert {"text": text, "label": OPTIONS["candidates"].index(answer)} in records
    few = la.multiple_choice(records, model, shots=1, **OPTIONS)
    assert few.task.inputs.shape[1] > la.multiple_choice(records, model, **OPTIONS).task.inputs.shape[1]


def test_a_record_that_is_a_demonstration_in_another_guise_is_left_out_too():
    """Records that show the same question differ in a field that is not shown."""
    records = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    twins = [{**record, "id": i} for i, record in enumerate(records * 2)]
    form = PromptFormat(candidates=["x", "y"], template="{text}", separator=" ", shots=1)
    with pytest.raises(ValueError, match="there are 0"):
        form.questions(twins)


def test_demonstrations_are_the_same_for_a_seed_and_come_from_where_they_are_said_to():
    form = PromptFormat(candidates=["x", "y"], template="{text}", separator=" ", shots=1)
    records = [{"text": f"q{i}", "label": i % 2} for i in range(6)]
    demos = [{"text": f"d{i}", "label": i % 2} for i in range(6)]
    found = form.questions(records, demos)
    assert found == form.questions(records, demos)
    assert all(one.startswith("d") for question in found for one in question.prompt.split("\n\n")[:2])


def test_the_metric_says_whether_the_right_candidate_wins():
    model = la.load_model("tiny-lm")
    choices = la.skills.comparison(model, n=40, wordings="new")
    with torch.no_grad():
        scores = choices.task.score(model(choices.task.inputs, attention_mask=choices.task.attention_mask))
    expected = (choices.probabilities(model).argmax(dim=1) == choices.labels).float()
    assert torch.equal(scores, expected)
    assert 0.3 < float(expected.mean()) < 0.9


def test_datasets_and_files_are_read(tmp_path: Path):
    model = la.load_model("tiny-lm")
    records = comparisons()
    (tmp_path / "test.json").write_text(json.dumps(records))
    expected = la.multiple_choice(records, model, **OPTIONS)
    for source in (Dataset.from_list(records), tmp_path / "test.json"):
        found = la.multiple_choice(source, model, **OPTIONS)
        assert found.task.fingerprint == expected.task.fingerprint
        assert found.to_dataframe().equals(expected.to_dataframe())


def test_selecting_takes_everything_along():
    choices = la.skills.capital(la.load_model("tiny-lm"), n=6)
    rows = torch.tensor([4, 1])
    part = choices.select(rows)
    assert part.to_dataframe().equals(choices.to_dataframe().iloc[[4, 1]].reset_index(drop=True))
    assert torch.equal(part.candidates, choices.candidates[rows])
    assert choices.select(torch.arange(6) < 2).n_examples == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"candidates": ["exceeds"]}, "two or more different words"),
        ({"candidates": ["exceeds", "exceeds"]}, "two or more different words"),
        ({"candidates": "letter"}, "'letters' or 'options'"),
        ({"candidates": "options"}, "needs records with a list of options"),
        ({"candidates": ["exceeds", "nosuchword"]}, "does not know the candidate 'nosuchword'"),
        ({"candidates": ["exceeds", "King George"]}, r"is 2 tokens here, \['(King|<unk>)', 'George'\]"),
        ({"separator": ""}, "melts into the end of the prompt"),
        ({"template": "{body}"}, "the template asks for 'body'"),
        ({"template": "nosuchword {text}"}, "does not know 'nosuchword' in the prompt"),
        ({"template": None}, "does not know '###'"),
        ({"fields": {"Text": "text"}}, "fields or a template"),
        ({"label": "gold"}, "no field 'gold'"),
        ({"shots": -1}, "0 or more"),
        ({"shots": 9}, "asks for as many demonstrations of label 0"),
        ({"template": " ".join(["{text}"] * 20)}, "too long"),
    ],
)
def test_bad_requests_say_what_to_do(changed: dict, message: str):
    model = la.load_model("tiny-lm")
    with pytest.raises(ValueError, match=message):
        la.multiple_choice(comparisons(), model, **{**OPTIONS, **changed})


def test_candidates_of_several_tokens_are_refused_with_their_tokens(bpe_lm: LensModel):
    with pytest.raises(ValueError, match=r"'unquestionable' is \d+ tokens here, \['u"):
        la.multiple_choice(agnews(), bpe_lm, candidates=["a", "unquestionable", "c", "d"])


def test_models_that_cannot_answer_are_refused(bert: LensModel):
    with pytest.raises(ValueError, match="bidirectional"):
        la.multiple_choice([{"text": "w1", "label": 0}], bert, candidates=["w2", "w3"], template="{text}")


def test_questions_of_different_numbers_of_candidates_are_refused():
    records = [
        {"text": "The capital of France is", "options": ["Paris", "Rome"], "label": 0},
        {"text": "The capital of Italy is", "options": ["Paris", "Rome", "Bern"], "label": 1},
    ]
    with pytest.raises(ValueError, match=r"\[2, 3\] candidates"):
        la.multiple_choice(records, la.load_model("tiny-lm"), candidates="options", template="{text}", separator=" ")
