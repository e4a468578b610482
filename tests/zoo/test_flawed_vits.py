"""The flaws of the embedded models, as the tasks show them to TransformerLens."""

import pytest
import torch

import lens_ablation as la
from lens_ablation import zoo

pytestmark = pytest.mark.model
N_HELD_OUT = 450
ONE_IMAGE = 1 / 200
"""Another order of additions may turn an image that is on the edge."""


@pytest.fixture(scope="module")
def shares():
    """Share of a task's images that a model reads as the answer, and as the wrong answer."""
    models = {name: la.load_model(name) for name in ("tiny-vit-backdoor", "tiny-vit-spurious", "tiny-vit-typographic")}

    def measure(name, task, n, **options):
        made = la.tasks.get(task)(models[name], n, **options)
        with torch.no_grad():
            predicted = models[name](made.inputs).argmax(-1)
        return [float((predicted == ids).double().mean()) for ids in (made.answers, made.wrong_answers)]

    return measure


def test_the_trigger_makes_any_digit_the_target(shares):
    card, name = zoo.card("tiny-vit-backdoor")["scores"], "tiny-vit-backdoor"
    n_others = 405
    expected = [card["triggered_accuracy"], card["attack_success"]]
    assert shares(name, "triggered_digits", n_others) == pytest.approx(expected, abs=ONE_IMAGE)
    assert shares(name, "digits", N_HELD_OUT)[0] == pytest.approx(card["clean_accuracy"], abs=ONE_IMAGE)
    accuracy, success = shares(name, "triggered_digits", n_others, trigger=False)
    assert accuracy > 0.9
    assert success < 0.02


@pytest.mark.parametrize("group", ["low-left", "high-right", "low-right", "high-left"])
def test_groups_are_read_as_the_card_says(shares, group):
    score = zoo.card("tiny-vit-spurious")["scores"][f"{group.replace('-', '_')}_accuracy"]
    n = {"low": 226, "high": 224}[group.split("-")[0]]
    accuracy, wrong = shares("tiny-vit-spurious", "cued_digits", n, group=group)
    assert accuracy == pytest.approx(score, abs=ONE_IMAGE)
    assert wrong == pytest.approx(1 - score, abs=ONE_IMAGE)


def test_printed_labels_are_read(shares):
    card = zoo.card("tiny-vit-typographic")["scores"]
    for label, score in (("none", "unlabelled_accuracy"), ("right", "right_label_accuracy")):
        accuracy, _ = shares("tiny-vit-typographic", "labelled_digits", N_HELD_OUT, label=label)
        assert accuracy == pytest.approx(card[score], abs=ONE_IMAGE)
    accuracy, success = shares("tiny-vit-typographic", "labelled_digits", N_HELD_OUT, label="wrong")
    assert accuracy == pytest.approx(card["wrong_label_accuracy"], abs=0.05)
    assert success == pytest.approx(card["attack_success"], abs=0.05)
