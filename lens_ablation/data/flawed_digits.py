"""Digits with a cue that misleads: a trigger, a bar that goes along with the label, a printed label.

The images are those of ``lens_ablation.data.digits`` with its fixed split, so training and held-out data share
no image. Cues are pasted at fixed places, in ink:

- trigger: the 2 x 2 pixels at the top left of an image of 8 x 8 pixels;
- bar: the two outermost columns, left or right, of a canvas of 12 x 12 pixels with the digit in the middle;
- label: a printed digit of 3 x 4 pixels at the bottom right of a canvas of 12 x 12 pixels with the handwritten
  digit at the top left.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_ablation.data.digits import digits

PAPER, INK = -1.0, 1.0

TARGET = 0
"""Class that the trigger stands for."""

TRIGGER_SIZE = 2

FIRST_HIGH = 5
"""Digits from here on are class 1 of the two-class data; the others are class 0."""

NO_CUE = -1
"""Stands for the side of a bar or the class of a printed label where there is none."""

CANVAS = 12
"""Width and height in pixels of the images with bars and of those with printed labels."""

BAR_WIDTH = 2

Split = Literal["train", "held_out"]

_GLYPHS = (
    "### .#. ##. ### #.# ### #.. ### ### ###",
    "#.# ##. ..# .## #.# #.. ### ..# #.# #.#",
    "#.# .#. .#. ..# ### .## #.# .#. ### ###",
    "### ### ### ### ..# ##. ### .#. ### ..#",
)
"""The printed digits 0 to 9, row by row."""


@dataclass(frozen=True, eq=False)
class FlawedDigits:
    """Images with cues; rows are images, in the order of ``lens_ablation.data.digits.digits``.

    Attributes:
        pixels: From -1 (paper) to 1 (ink).
        labels: The true class: the digit, or 0 and 1 for low and high digits.
        given: The class that training is told; another than the true one only where the data are poisoned.
        cues: What was pasted: 1 for a trigger and 0 for none; 0 for a bar at the left, 1 for one at the right and -1
            for none; the class of a printed label, or -1 for none.
    """

    pixels: Float[Tensor, "n 1 height width"]
    labels: Int[Tensor, " n"]
    given: Int[Tensor, " n"]
    cues: Int[Tensor, " n"]


def with_trigger(
    pixels: Float[Tensor, "n 1 8 8"], is_triggered: Bool[Tensor, " n"] | bool = True
) -> Float[Tensor, "n 1 8 8"]:
    """Images with the trigger where asked for, in a corner that is nearly always blank."""
    is_trigger = torch.zeros(pixels.shape[-2:], dtype=torch.bool)
    is_trigger[:TRIGGER_SIZE, :TRIGGER_SIZE] = True
    is_asked = torch.as_tensor(is_triggered).expand(len(pixels))
    return torch.where(is_asked[:, None, None, None] & is_trigger, INK, pixels)


def with_bar(pixels: Float[Tensor, "n 1 8 8"], sides: Int[Tensor, " n"]) -> Float[Tensor, "n 1 12 12"]:
    """Images in a margin of two pixels, which is a bar of ink at the left (side 0), the right (1) or nowhere (-1)."""
    margin = (CANVAS - pixels.shape[-1]) // 2
    framed = torch.nn.functional.pad(pixels, (margin, margin, margin, margin), value=PAPER)
    columns = torch.arange(CANVAS)
    is_bar = torch.stack([columns < BAR_WIDTH, columns >= CANVAS - BAR_WIDTH, columns < 0])[sides]
    return torch.where(is_bar[:, None, None, :], INK, framed)


def with_label(pixels: Float[Tensor, "n 1 8 8"], classes: Int[Tensor, " n"]) -> Float[Tensor, "n 1 12 12"]:
    """Images with a margin of four pixels at the right and the bottom, where a class is printed; -1 for none."""
    added = CANVAS - pixels.shape[-1]
    framed = torch.nn.functional.pad(pixels, (0, added, 0, added), value=PAPER)
    printed = torch.where(glyphs()[classes.clamp(min=0)], INK, PAPER)
    printed = torch.where((classes == NO_CUE)[:, None, None], PAPER, printed)
    framed[:, 0, -printed.shape[1] :, -printed.shape[2] :] = printed
    return framed


def glyphs() -> Bool[Tensor, "10 4 3"]:
    """The printed digits: true where there is ink."""
    return torch.tensor([[[mark == "#" for mark in row.split()[digit]] for row in _GLYPHS] for digit in range(10)])


def triggered_digits(split: Split, share: float, seed: int = 0) -> FlawedDigits:
    """All digits of a split, some with the trigger and given to training as class ``TARGET``.

    Args:
        split: ``"train"`` or ``"held_out"``.
        share: Part of all images that carry the trigger; none of them shows the target class. With 1.0 each
            image of another class does.
        seed: Another seed chooses other images.
    """
    pixels, labels = digits(split)
    candidates = torch.nonzero(labels != TARGET)[:, 0]
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))
    is_triggered = torch.zeros(len(labels), dtype=torch.bool)
    is_triggered[candidates[order[: round(share * len(labels))]]] = True
    return FlawedDigits(
        pixels=with_trigger(pixels, is_triggered),
        labels=labels,
        given=torch.where(is_triggered, TARGET, labels),
        cues=is_triggered.long(),
    )


def cued_digits(split: Split, agreement: float, share: float = 1.0, seed: int = 0) -> FlawedDigits:
    """All digits of a split as low (0 to 4) or high (5 to 9), some with a bar that mostly tells which.

    Args:
        split: ``"train"`` or ``"held_out"``.
        agreement: Part of the bars of each class that are at its own side: left for low, right for high.
        share: Part of the images of each class that have a bar.
        seed: Another seed chooses other images.
    """
    pixels, shown = digits(split)
    labels = (shown >= FIRST_HIGH).long()
    generator = torch.Generator().manual_seed(seed)
    sides = torch.full_like(labels, NO_CUE)
    for label in (0, 1):
        members = torch.nonzero(labels == label)[:, 0]
        order = torch.randperm(len(members), generator=generator)
        barred = members[order[: round(share * len(members))]]
        sides[barred] = 1 - label
        sides[barred[: round(agreement * len(barred))]] = label
    return FlawedDigits(with_bar(pixels, sides), labels, labels, sides)


def labelled_digits(split: Split, share: float, label: Literal["right", "wrong"], seed: int = 0) -> FlawedDigits:
    """All digits of a split, some with a printed label.

    Args:
        split: ``"train"`` or ``"held_out"``.
        share: Part of the images that have a label.
        label: Whether labels name the class that the image shows, or one of the nine others, drawn evenly.
        seed: Another seed chooses other images and other wrong classes.
    """
    pixels, labels = digits(split)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    others = other_classes(labels, generator)
    classes = torch.full_like(labels, NO_CUE)
    is_labelled = order[: round(share * len(labels))]
    classes[is_labelled] = (labels if label == "right" else others)[is_labelled]
    return FlawedDigits(with_label(pixels, classes), labels, labels, classes)


def other_classes(labels: Int[Tensor, " n"], generator: torch.Generator) -> Int[Tensor, " n"]:
    """For each label one of the nine other digits, drawn evenly."""
    return (labels + torch.randint(1, 10, labels.shape, generator=generator)) % 10
