"""The digits and their fixed split."""

import torch

from lens_ablation.data.digits import digits


def test_shapes_range_and_types():
    for split, n in (("train", 1347), ("held_out", 450)):
        pixels, labels = digits(split)
        assert (pixels.shape, pixels.dtype) == ((n, 1, 8, 8), torch.float32)
        assert (labels.shape, labels.dtype) == ((n,), torch.int64)
        assert (pixels.min(), pixels.max()) == (-1, 1)


def test_every_digit_has_its_share_in_both_parts():
    train, held_out = (torch.bincount(digits(split)[1], minlength=10).float() for split in ("train", "held_out"))
    assert torch.allclose(held_out / (train + held_out), torch.tensor(0.25), atol=0.01)


def test_no_image_is_in_both_parts():
    train, held_out = ({image.numpy().tobytes() for image in digits(split)[0]} for split in ("train", "held_out"))
    assert not train & held_out


def test_the_split_is_the_same_every_time():
    assert torch.equal(digits("held_out")[0], digits("held_out")[0])
