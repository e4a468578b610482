"""The tasks that come with the package, against the words they were made from."""

import pytest
import torch

from lens_ablation.data import corpus, metrics, tasks
from lens_ablation.data.as_task import as_task
from lens_ablation.data.digits import digits as load_digits
from lens_ablation.data.task import IGNORED, Task
from lens_ablation.errors import UnknownName
from lens_ablation.models.forward import forward

pytestmark = pytest.mark.model

PROMPTS = ["ioi", "greater_than", "facts", "pronouns", "agreement"]
OF_TEXT = [name for name in tasks.names() if name != "digits"]


def words(model, ids) -> str:
    return model.tokenizer.decode(ids)


def real(task: Task, row: int, tokens=None) -> list[int]:
    assert task.attention_mask is not None
    return (task.inputs if tokens is None else tokens)[row][task.attention_mask[row]].tolist()


@pytest.mark.parametrize("split", ["held_out", "train"])
@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_say_what_their_examples_say(lm, name, split):
    n = 40
    task = tasks.get(name)(lm, n, seed=3, split=split)
    by_prompt = {e.prompt: e for e in getattr(corpus, name).examples(4 * n, seed=3, split=split)}
    assert task.counterfactuals is not None
    assert task.wrong_answers is not None
    prompts = [words(lm, real(task, row)[1:]) for row in range(n)]
    assert len(set(prompts)) == n
    for row, prompt in enumerate(prompts):
        example = by_prompt[prompt]
        assert task.inputs[row, 0] == lm.tokenizer.bos_token_id
        assert words(lm, real(task, row, task.counterfactuals)[1:]) == example.counterfactual
        ids = [answers[row].reshape(-1) for answers in (task.answers, task.wrong_answers)]
        right, wrong = (tuple(words(lm, i[i != IGNORED]).split()) for i in ids)
        assert right == example.answers
        assert wrong == (example.wrong_answers[:1] if name == "facts" else example.wrong_answers)
        for span, (first, end) in example.spans.items():
            a, b = task.spans[span][row].tolist()
            assert words(lm, task.inputs[row, a:b]) == " ".join(prompt.split()[first:end]), span


@pytest.mark.parametrize("name", OF_TEXT)
def test_tasks_score_a_model_and_its_counterfactuals(lm, name):
    task = as_task(tasks.get(name)(lm, 6), lm)
    assert task.name == name
    with torch.no_grad():
        for inputs in (task.inputs, task.counterfactuals):
            if inputs is not None:
                scores = task.score(forward(lm, inputs, attention_mask=task.attention_mask))
                assert scores.shape == (6,)
                assert bool(scores.isfinite().all())


@pytest.mark.parametrize("name", OF_TEXT)
def test_the_same_seed_gives_the_same_task(lm, name):
    first, again, other = (tasks.get(name)(lm, 8, seed=seed) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert tasks.get(name)(lm, 8, split="train").fingerprint != first.fingerprint


@pytest.mark.parametrize("name", ["ioi", "facts", "pronouns", "agreement"])
def test_swapping_the_counterfactual_swaps_right_and_wrong(lm, name):
    task = tasks.get(name)(lm, 10)
    examples = {e.prompt: e for e in getattr(corpus, name).examples(40)}
    for row in range(10):
        example = examples[words(lm, real(task, row)[1:])]
        assert task.wrong_answers is not None
        assert words(lm, task.wrong_answers[row]) == example.counterfactual_answers[0]


def test_default_metrics_are_what_the_literature_reports(lm, digit_vit):
    found = {name: tasks.get(name)(digit_vit if name == "digits" else lm, 2).metric for name in tasks.names()}
    assert found == {
        "ioi": metrics.logit_difference,
        "greater_than": metrics.probability_difference,
        "facts": metrics.logit_difference,
        "pronouns": metrics.logit_difference,
        "agreement": metrics.logit_difference,
        "induction": metrics.loss,
        "prose": metrics.loss,
        "code": metrics.loss,
        "arithmetic": metrics.loss,
        "digits": metrics.correct_margin,
    }


def test_induction_asks_what_followed_in_the_first_copy(lm):
    task = tasks.induction(lm, 5)
    assert task.positions is not None
    for row in range(5):
        first, second = task.spans["first"][row].tolist(), task.spans["second"][row].tolist()
        copy = task.inputs[row, slice(*first)]
        assert torch.equal(copy, task.inputs[row, slice(*second)])
        assert len(copy) == tasks.INDUCTION_LENGTH
        for position, answer in zip(task.positions[row].tolist(), task.answers[row].tolist(), strict=True):
            assert second[0] <= position < second[1]
            assert answer == task.inputs[row, position + 1] == copy[position - second[0] + 1]


def test_induction_counterfactual_leads_to_other_words(lm):
    task = tasks.induction(lm, 5)
    assert task.counterfactuals is not None
    middle = int(task.spans["second"][0, 0])
    assert torch.equal(task.counterfactuals[:, middle:], task.inputs[:, middle:])
    assert torch.equal(task.counterfactuals[:, 1:middle], task.inputs[:, 1:middle].flip(1))


@pytest.mark.parametrize("name", corpus.DOMAINS)
def test_domains_ask_for_every_next_word(lm, name):
    task = tasks.domain(lm, 4, name=name)
    texts = corpus.documents(name, 4)
    assert [words(lm, real(task, row)[1:]) for row in range(4)] == texts
    assert task.n_targets.tolist() == [63] * 4


@pytest.mark.parametrize("name", [name for name in OF_TEXT if name != "greater_than"])
def test_a_subword_tokenizer_reads_the_same_prompts(bpe_lm, name):
    task = as_task(tasks.get(name)(bpe_lm, 12), bpe_lm)
    for row in range(12):
        text = words(bpe_lm, real(task, row)[1:])
        assert " ." not in text or name in corpus.DOMAINS
        if name in PROMPTS:
            answer = words(bpe_lm, task.answers[row])
            assert answer.startswith(" ")
            assert bpe_lm.tokenizer(text + answer)["input_ids"][-1] == task.answers[row]


def test_spans_of_a_subword_tokenizer_hold_the_word(bpe_lm):
    task = tasks.ioi(bpe_lm, 12)
    for row in range(12):
        held = {name: words(bpe_lm, task.inputs[row, slice(*span[row].tolist())]) for name, span in task.spans.items()}
        assert held["IO"].strip() == words(bpe_lm, task.answers[row]).strip()
        assert held["S1"].strip() == held["S2"].strip()


def test_a_tokenizer_without_the_answers_is_refused(bpe_lm):
    with pytest.raises(ValueError, match=r"0 suit this model's tokenizer.*make a Task"):
        tasks.greater_than(bpe_lm, 4)


def test_digits_are_images_with_their_class(digit_vit):
    task = as_task(tasks.digits(digit_vit, 50), digit_vit)
    pixels, labels = load_digits("held_out")
    known = {image.numpy().tobytes(): int(label) for image, label in zip(pixels, labels, strict=True)}
    assert task.counterfactuals is not None
    assert task.wrong_answers is not None
    assert [known[image.numpy().tobytes()] for image in task.inputs] == task.answers.tolist()
    assert [known[image.numpy().tobytes()] for image in task.counterfactuals] == task.wrong_answers.tolist()
    assert not bool((task.answers == task.wrong_answers).any())
    assert len({image.numpy().tobytes() for image in task.inputs}) == 50
    with torch.no_grad():
        assert task.score(forward(digit_vit, task.inputs)).shape == (50,)


def test_digits_depend_on_seed_and_split(digit_vit):
    first, again, other = (tasks.digits(digit_vit, 20, seed=seed) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert tasks.digits(digit_vit, 20, split="train").fingerprint != first.fingerprint


def test_a_metric_of_ones_own(lm):
    assert tasks.ioi(lm, 2, metric=metrics.top1).metric is metrics.top1


@pytest.mark.parametrize("name", tasks.names())
def test_impossible_requests_are_refused(lm, digit_vit, name, unchecked):
    model = digit_vit if name == "digits" else lm
    with pytest.raises(ValueError, match="n must be 1 or more, got 0"):
        tasks.get(name)(model, 0)
    with pytest.raises(UnknownName, match="unknown split 'heldout'; nearest: held_out"):
        unchecked(tasks).get(name)(model, 2, split="heldout")


def test_more_examples_than_there_are_is_refused(lm, digit_vit):
    assert tasks.facts(lm, 245).n_examples == 245
    with pytest.raises(ValueError, match="facts has only 245 different prompts"):
        tasks.facts(lm, 246)
    with pytest.raises(ValueError, match="450 held_out images, not n=451"):
        tasks.digits(digit_vit, 451)


def test_models_of_another_kind_are_refused(lm, vit, bert):
    with pytest.raises(ValueError, match="this is a language model"):
        tasks.digits(lm, 2)
    with pytest.raises(ValueError, match="10 classes, and this model tells 5"):
        tasks.digits(vit, 2)
    for name in OF_TEXT:
        with pytest.raises(ValueError, match="reads images"):
            tasks.get(name)(vit, 2)
        with pytest.raises(ValueError, match="bidirectional"):
            tasks.get(name)(bert, 2)


def test_unknown_names_list_the_nearest(lm):
    with pytest.raises(UnknownName, match="ioi"):
        tasks.get("iol")
    with pytest.raises(UnknownName, match="prose"):
        tasks.domain(lm, 2, name="prosa")
