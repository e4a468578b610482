"""The tasks that come with the package, against the words they were made from."""

import pytest
import torch

from lens_ablation.data import corpus, digit_tasks, flawed_digits, metrics, tasks
from lens_ablation.data.as_task import as_task
from lens_ablation.data.digits import digits as load_digits
from lens_ablation.data.task import IGNORED, Task, joined
from lens_ablation.errors import UnknownName
from lens_ablation.models.forward import forward

pytestmark = pytest.mark.model

PROMPTS = ["ioi", "greater_than", "facts", "pronouns", "agreement"]
OF_IMAGES = ["digits", "triggered_digits", "cued_digits", "labelled_digits"]
OF_TEXT = [name for name in tasks.names() if name not in OF_IMAGES]


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


@pytest.fixture(scope="module")
def model_of(lm, digit_vit, image_vit):
    """The model that a task of this name suits."""
    sizes = {"cued_digits": image_vit(12, 2), "labelled_digits": image_vit(12, 10)}
    return lambda name: sizes.get(name, digit_vit if name in OF_IMAGES else lm)


def test_default_metrics_are_what_the_literature_reports(model_of):
    found = {name: tasks.get(name)(model_of(name), 2).metric for name in tasks.names()}
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
        **dict.fromkeys(OF_IMAGES, metrics.correct_margin),
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


@pytest.mark.parametrize("name", OF_IMAGES)
def test_tasks_of_digits_depend_on_seed_and_split(model_of, name):
    make, model = tasks.get(name), model_of(name)
    first, again, other = (make(model, 20, seed=seed) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert make(model, 20, split="train").fingerprint != first.fingerprint
    assert first.name == name
    with torch.no_grad():
        assert as_task(first, model).score(forward(model, first.inputs)).shape == (20,)


def shown(images: torch.Tensor, place: slice) -> list[int]:
    """The held-out image of digits that each image shows there, the trigger's corner aside."""
    known = {image[:, 2:].numpy().tobytes(): row for row, image in enumerate(load_digits("held_out")[0])}
    return [known[image[:, place, place][:, 2:].numpy().tobytes()] for image in images]


def test_triggered_digits_pair_each_image_with_its_other_self(digit_vit):
    attacked, clean = (tasks.triggered_digits(digit_vit, 30, seed=4, trigger=trigger) for trigger in (True, False))
    pixels, labels = load_digits("held_out")
    rows = shown(clean.inputs, slice(0, 8))
    assert len(set(rows)) == 30
    assert torch.equal(clean.inputs, pixels[rows])
    assert torch.equal(attacked.inputs, flawed_digits.with_trigger(pixels[rows]))
    assert clean.counterfactuals is not None
    assert attacked.counterfactuals is not None
    assert torch.equal(clean.counterfactuals, attacked.inputs)
    assert torch.equal(attacked.counterfactuals, clean.inputs)
    for task in (attacked, clean):
        assert torch.equal(task.answers, labels[rows])
        assert task.wrong_answers is not None
        assert task.wrong_answers.tolist() == [flawed_digits.TARGET] * 30
        assert flawed_digits.TARGET not in task.answers


@pytest.mark.parametrize("group", [None, *digit_tasks.CUE_GROUPS])
def test_cued_digits_show_the_groups_asked_for(model_of, group):
    task = tasks.cued_digits(model_of("cued_digits"), 20, group=group)
    rows = shown(task.inputs, slice(2, 10))
    assert len(set(rows)) == 20
    labels = (load_digits("held_out")[1][rows] >= 5).long()
    sides = (task.inputs[:, 0, 0, -1] == flawed_digits.INK).long()
    groups = digit_tasks.CUE_GROUPS
    pairs = groups["agreeing"] + groups["conflicting"] if group is None else groups[group]
    counts = {pair: list(zip(labels.tolist(), sides.tolist(), strict=True)).count(pair) for pair in pairs}
    assert counts == dict.fromkeys(pairs, 20 // len(pairs))
    assert task.wrong_answers is not None
    assert task.counterfactuals is not None
    assert torch.equal(task.answers, labels)
    assert torch.equal(task.wrong_answers, 1 - labels)
    assert torch.equal(task.counterfactuals, flawed_digits.with_bar(load_digits("held_out")[0][rows], 1 - sides))


def test_labelled_digits_print_the_class_asked_for(model_of):
    model = model_of("labelled_digits")
    by_label: dict[str, Task] = {}
    for label in ("none", "right", "wrong"):
        by_label[label] = tasks.labelled_digits(model, 30, label=label)
    rows = shown(by_label["none"].inputs, slice(0, 8))
    pixels, labels = (values[rows] for values in load_digits("held_out"))
    attackers = by_label["wrong"].wrong_answers
    assert attackers is not None
    assert not bool((attackers == labels).any())
    printed = {"none": torch.full_like(labels, flawed_digits.NO_CUE), "right": labels, "wrong": attackers}
    for label, task in by_label.items():
        other = "none" if label == "wrong" else "wrong"
        assert torch.equal(task.inputs, flawed_digits.with_label(pixels, printed[label]))
        assert task.counterfactuals is not None
        assert torch.equal(task.counterfactuals, by_label[other].inputs)
        assert torch.equal(task.answers, labels)
        assert task.wrong_answers is not None
        assert torch.equal(task.wrong_answers, attackers)


def test_a_metric_of_ones_own(lm):
    assert tasks.ioi(lm, 2, metric=metrics.top1).metric is metrics.top1


def _unchecked_maker(unchecked, name: str):
    return getattr(unchecked(digit_tasks), name) if hasattr(digit_tasks, name) else unchecked(tasks).get(name)


@pytest.mark.parametrize("name", tasks.names())
def test_impossible_requests_are_refused(model_of, name, unchecked):
    model = model_of(name)
    with pytest.raises(ValueError, match="n must be 1 or more, got 0"):
        tasks.get(name)(model, 0)
    with pytest.raises(UnknownName, match="unknown split 'heldout'; nearest: held_out"):
        _unchecked_maker(unchecked, name)(model, 2, split="heldout")


def test_more_examples_than_there_are_is_refused(lm, digit_vit, model_of):
    assert tasks.facts(lm, 245).n_examples == 245
    with pytest.raises(ValueError, match="facts has only 245 different prompts"):
        tasks.facts(lm, 246)
    with pytest.raises(ValueError, match="450 held_out images, not n=451"):
        tasks.digits(digit_vit, 451)
    with pytest.raises(ValueError, match="405 held_out images of other classes than the trigger's, not n=406"):
        tasks.triggered_digits(digit_vit, 406)
    with pytest.raises(ValueError, match="images of high digits, and n=450 asks for 225"):
        tasks.cued_digits(model_of("cued_digits"), 450)
    with pytest.raises(ValueError, match="450 held_out images, not n=451"):
        tasks.labelled_digits(model_of("labelled_digits"), 451)


def test_models_of_another_kind_are_refused(lm, vit, bert, digit_vit):
    for name in OF_IMAGES:
        with pytest.raises(ValueError, match="this is a language model"):
            tasks.get(name)(lm, 2)
    for name in ("digits", "triggered_digits"):
        with pytest.raises(ValueError, match="10 classes, and this model tells 5"):
            tasks.get(name)(vit, 2)
    for name in ("cued_digits", "labelled_digits"):
        with pytest.raises(ValueError, match=r"\[1, 8, 8\]; resize them"):
            tasks.get(name)(digit_vit, 2)
    for name in OF_TEXT:
        with pytest.raises(ValueError, match="reads images"):
            tasks.get(name)(vit, 2)
        with pytest.raises(ValueError, match="bidirectional"):
            tasks.get(name)(bert, 2)


def test_facts_of_some_relations_only(lm):
    one, other, both = (
        tasks.facts(lm, 20, relations=names).answers.unique() for names in (["young"], ["capital"], None)
    )
    assert not set(one.tolist()) & set(other.tolist())
    assert set(both.tolist()) - set(one.tolist()) - set(other.tolist())
    with pytest.raises(UnknownName, match="unknown relation 'capitals'; nearest: capital"):
        tasks.facts(lm, 2, relations=["capitals"])


def test_joined_tasks_are_scored_as_they_were_alone(lm):
    parts = [tasks.facts(lm, 5), tasks.ioi(lm, 4), tasks.greater_than(lm, 3)]
    parts = [part.with_metric(metrics.loss) for part in parts]
    together = joined(parts)
    assert together.n_examples == 12
    assert together.metric is parts[0].metric
    assert together.name == "facts + ioi + greater_than"
    assert joined([together, together]).name == together.name
    with torch.inference_mode():
        alone = [part.score(forward(lm, part.inputs, attention_mask=part.attention_mask)) for part in parts]
        found = together.score(forward(lm, together.inputs, attention_mask=together.attention_mask))
    torch.testing.assert_close(found, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_tasks_that_do_not_go_together_are_not_joined(lm, digit_vit):
    with pytest.raises(ValueError, match="there are no tasks to join"):
        joined([])
    with pytest.raises(ValueError, match="tasks of images and tasks of tokens do not go together"):
        joined([tasks.facts(lm, 2), tasks.digits(digit_vit, 2)])


def test_unknown_groups_and_labels_are_refused(model_of, unchecked):
    with pytest.raises(UnknownName, match="unknown group 'low_left'; nearest: low-left"):
        tasks.cued_digits(model_of("cued_digits"), 2, group="low_left")
    with pytest.raises(UnknownName, match="unknown label 'rigth'; nearest: right"):
        unchecked(digit_tasks).labelled_digits(model_of("labelled_digits"), 2, label="rigth")


def test_unknown_names_list_the_nearest(lm):
    with pytest.raises(UnknownName, match="ioi"):
        tasks.get("iol")
    with pytest.raises(UnknownName, match="prose"):
        tasks.domain(lm, 2, name="prosa")
