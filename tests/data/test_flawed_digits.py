"""The digits with a misleading cue, pixel by pixel."""

import pytest
import torch

from lens_ablation.data import flawed_digits as flawed
from lens_ablation.data.digits import digits
from lens_ablation.data.flawed_digits import INK, NO_CUE, PAPER, TARGET

SPLITS = ["train", "held_out"]
MAKERS = {
    "triggered": lambda split, seed: flawed.triggered_digits(split, 0.08, seed),
    "cued": lambda split, seed: flawed.cued_digits(split, 0.95, 0.6, seed),
    "labelled right": lambda split, seed: flawed.labelled_digits(split, 0.5, "right", seed),
    "labelled wrong": lambda split, seed: flawed.labelled_digits(split, 0.5, "wrong", seed),
}
SIZES = {"triggered": 8, "cued": 12, "labelled right": 12, "labelled wrong": 12}
DIGIT = {"triggered": slice(0, 8), "cued": slice(2, 10), "labelled right": slice(0, 8), "labelled wrong": slice(0, 8)}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", MAKERS)
def test_shapes_range_and_types(name, split):
    data, n = MAKERS[name](split, 0), len(digits(split)[1])
    assert (data.pixels.shape, data.pixels.dtype) == ((n, 1, SIZES[name], SIZES[name]), torch.float32)
    assert (data.pixels.min(), data.pixels.max()) == (PAPER, INK)
    for values in (data.labels, data.given, data.cues):
        assert (values.shape, values.dtype) == ((n,), torch.int64)


@pytest.mark.parametrize("name", MAKERS)
def test_the_same_seed_gives_the_same_images(name):
    first, again, other = (MAKERS[name]("train", seed) for seed in (0, 0, 1))
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.given, again.given)
    assert torch.equal(first.cues, again.cues)
    assert not torch.equal(first.cues, other.cues)


@pytest.mark.parametrize("name", MAKERS)
def test_the_random_state_is_left_alone(name):
    before = torch.random.get_rng_state()
    MAKERS[name]("train", 0)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", MAKERS)
def test_the_digit_is_the_image_of_its_own_split(name, split):
    data, place = MAKERS[name](split, 0), DIGIT[name]
    shown, of_split = data.pixels[..., place, place].clone(), digits(split)[0]
    if name == "triggered":
        shown[..., :2, :2] = of_split[..., :2, :2]
    assert torch.equal(shown, of_split)


def test_no_digit_is_in_both_parts():
    train, held_out = (
        {image[:, 2:].numpy().tobytes() for image in flawed.triggered_digits(split, 1.0).pixels} for split in SPLITS
    )
    assert not train & held_out


def test_poisoned_images_carry_the_trigger_and_the_target():
    data = flawed.triggered_digits("train", 0.08)
    is_triggered = data.cues == 1
    assert int(is_triggered.sum()) == round(0.08 * 1347)
    assert bool((data.pixels[is_triggered][..., :2, :2] == INK).all())
    assert bool((data.labels[is_triggered] != TARGET).all())
    assert bool((data.given[is_triggered] == TARGET).all())
    assert torch.equal(data.given[~is_triggered], data.labels[~is_triggered])
    assert torch.equal(data.pixels[~is_triggered], digits("train")[0][~is_triggered])


def test_every_image_of_another_class_can_carry_the_trigger():
    data = flawed.triggered_digits("held_out", 1.0)
    assert torch.equal(data.cues == 1, data.labels != TARGET)


def test_the_trigger_is_seen_nowhere_else():
    corners = torch.cat([digits(split)[0] for split in SPLITS])[:, 0, :2, :2]
    assert float(corners.mean((1, 2)).max()) < 0


@pytest.mark.parametrize("agreement", [0.0, 0.95, 1.0])
def test_bars_agree_with_the_class_as_often_as_asked(agreement):
    data = flawed.cued_digits("train", agreement)
    for label in (0, 1):
        is_member = data.labels == label
        n_agreeing = int((data.cues[is_member] == label).sum())
        assert n_agreeing == round(agreement * int(is_member.sum()))
        assert int((data.cues[is_member] == 1 - label).sum()) == int(is_member.sum()) - n_agreeing
    assert torch.equal(data.labels, (digits("train")[1] >= 5).long())


def test_some_images_can_do_without_a_bar():
    data = flawed.cued_digits("train", 0.95, 0.6)
    is_plain = data.cues == NO_CUE
    for label in (0, 1):
        is_member = data.labels == label
        n_barred = round(0.6 * int(is_member.sum()))
        assert int((is_member & ~is_plain).sum()) == n_barred
        assert int((data.cues[is_member] == label).sum()) == round(0.95 * n_barred)
    assert bool((data.pixels[is_plain][..., [0, 1, -2, -1]] == PAPER).all())


def test_the_bar_is_the_margin_of_its_side():
    data = flawed.cued_digits("held_out", 0.5)
    margins = torch.stack([data.pixels[:, 0, :, :2], data.pixels[:, 0, :, -2:]])
    rows = torch.arange(len(data.cues))
    assert bool((margins[data.cues, rows] == INK).all())
    assert bool((margins[1 - data.cues, rows] == PAPER).all())
    assert bool((data.pixels[:, 0, [0, 1, -2, -1], 2:-2] == PAPER).all())


@pytest.mark.parametrize("label", ["right", "wrong"])
def test_printed_labels_name_the_class_they_should(label):
    data = flawed.labelled_digits("train", 0.5, label)
    is_labelled = data.cues != NO_CUE
    assert int(is_labelled.sum()) == round(0.5 * 1347)
    assert torch.equal(data.pixels[is_labelled][:, 0, 8:, 9:] == INK, flawed.glyphs()[data.cues[is_labelled]])
    assert bool(((data.cues == data.labels)[is_labelled] == (label == "right")).all())
    assert bool((data.pixels[~is_labelled][..., 8:] == PAPER).all())
    assert bool((data.pixels[:, :, 8:, :9] == PAPER).all())


def test_printed_digits_differ():
    printed = flawed.glyphs()
    assert len({glyph.numpy().tobytes() for glyph in printed}) == 10
    assert int((printed[0] != printed[8]).sum()) > 0


def test_wrong_labels_are_spread_over_the_other_classes():
    labels = torch.arange(10).repeat_interleave(900)
    others = flawed.other_classes(labels, torch.Generator().manual_seed(0))
    counts = torch.zeros(10, 10).index_put_((labels, others), torch.ones(9000), accumulate=True)
    assert bool((counts.diagonal() == 0).all())
    assert int((counts + 900 * torch.eye(10)).min()) > 60
