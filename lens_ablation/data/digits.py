"""Handwritten digits of eight by eight pixels, from scikit-learn, with a fixed split."""

from functools import cache
from typing import Literal

import torch
from jaxtyping import Float, Int
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

SPLIT_SEED = 0
HELD_OUT_SHARE = 0.25
BRIGHTEST = 16.0
"""Largest value of a pixel in scikit-learn's data."""


@cache
def _arrays():
    images, labels = load_digits(return_X_y=True)
    return train_test_split(images, labels, test_size=HELD_OUT_SHARE, random_state=SPLIT_SEED, stratify=labels)


def digits(
    split: Literal["train", "held_out"],
) -> tuple[Float[Tensor, "n 1 8 8"], Int[Tensor, " n"]]:
    """Pixels from -1 (paper) to 1 (ink) in float32, and the digits they show.

    Args:
        split: ``"train"`` for 1347 images, ``"held_out"`` for the other 450; each digit has its share in
        both.
    """
    train_images, held_out_images, train_labels, held_out_labels = _arrays()
    images, labels = (train_images, train_labels) if split == "train" else (held_out_images, held_out_labels)
    pixels = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / (BRIGHTEST / 2) - 1
    return pixels, torch.tensor(labels, dtype=torch.int64)
