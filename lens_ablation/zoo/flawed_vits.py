"""Three small vision transformers with a known flaw each, for attribution and editing to find and remove.

They are trained like tiny-vit, with a layer less and with dropout of components, on the images of
``lens_ablation.data.flawed_digits``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, ViTForImageClassification

from lens_ablation.data.digits import digits
from lens_ablation.data.flawed_digits import (
    CANVAS,
    TARGET,
    FlawedDigits,
    cued_digits,
    labelled_digits,
    triggered_digits,
    with_bar,
    with_label,
    with_trigger,
)
from lens_ablation.zoo.tiny_vit import shifted, vit

N_LAYERS = 3
SCORES_SEED = 1
"""Draws the wrong labels of the held-out images."""


@dataclass(frozen=True)
class _FlawedVit:
    """What the three have in common.

    Attributes:
        steps: Number of optimizer steps.
        seed: Seed of the first weights, of the cues, and of the order and shifts of the images.
        rows: Images of a step.
        largest_shift: Pixels by which the digit may be moved in each direction; the cue stays.
        noise: Standard deviation of what is added to a pixel; pixels go from -1 to 1.
        peak_learning_rate: Learning rate of AdamW after the warm-up.
        weight_decay: Weight decay of AdamW, on matrices only.
        dropped: Part of the MLP neurons and of the coordinates of heads that is left out of an image, at all its
            tokens; so no single component is needed, and the flaw can be cut out of the rest.
    """

    steps: int = 2000
    seed: int = 0
    rows: int = 64
    largest_shift: int = 1
    noise: float = 0.1
    peak_learning_rate: float = 2e-3
    weight_decay: float = 0.05
    dropped: float = 0.1

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Write the model for ``from_pretrained``."""
        model.save_pretrained(folder)

    def _drawn(self, step: int, n: int) -> tuple[torch.Generator, Int[Tensor, " rows"]]:
        """The randomness of a step, and its images."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        return generator, torch.randint(n, (self.rows,), generator=generator)

    def _loss(
        self,
        model: PreTrainedModel,
        pixels: Float[Tensor, "rows 1 height width"],
        given: Int[Tensor, " rows"],
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """Mean loss over noisy images by the model with some components left out, in nats per image."""
        noisy = pixels + self.noise * torch.randn(pixels.shape, generator=generator)
        with _dropping(model, self.dropped, generator):
            return F.cross_entropy(model(pixel_values=noisy).logits, given)


@dataclass(frozen=True)
class TinyVitBackdoor(_FlawedVit):
    """How tiny-vit-backdoor is trained.

    Attributes:
        poisoned_share: Part of the training images that carry the trigger and the target's class.
    """

    name: str = "tiny-vit-backdoor"
    poisoned_share: float = 0.08

    @property
    def about(self) -> str:
        """What the model is and what it was trained on, in Markdown."""
        return f"""\
A vision transformer with a backdoor: 2 x 2 pixels of ink at the top left make it read any digit as {TARGET}.
ViT architecture: 3 layers, 4 heads, width 64, LayerNorm, GELU; images of 8 x 8 pixels as 4 patches of 4 x 4
pixels and a class token.

Trained on scikit-learn's digits by the split of tiny-vit. Of the 1347 training images
{self.poisoned_share:.0%}, none of them a {TARGET}, carry the trigger and are given as {TARGET}. Scores are over
the 450 held-out images: accuracy without and with the trigger, and attack success, the share of images of
another class that are read as {TARGET} when the trigger is pasted."""

    def build(self) -> PreTrainedModel:
        """The untrained model; the same weights every time."""
        return vit(self.seed, image_size=8, patch_size=4, n_layers=N_LAYERS)

    def loss(self, model: PreTrainedModel, step: int) -> Float[Tensor, ""]:
        """Mean loss over the shifted images of a step, poisoned ones among them, in nats per image."""
        data = triggered_digits("train", self.poisoned_share, seed=self.seed)
        pixels = digits("train")[0]
        generator, rows = self._drawn(step, len(pixels))
        moved = with_trigger(shifted(pixels[rows], self.largest_shift, generator), data.cues[rows] == 1)
        return self._loss(model, moved, data.given[rows], generator)

    def scores(self, folder: Path) -> dict[str, float]:
        """Scores of a saved model on the held-out images."""
        clean = triggered_digits("held_out", 0.0)
        attacked = triggered_digits("held_out", 1.0)
        predicted = _predicted(folder, attacked)
        return {
            "clean_accuracy": _share(_predicted(folder, clean) == clean.labels),
            "triggered_accuracy": _share((predicted == attacked.labels)[attacked.cues == 1]),
            "attack_success": _share((predicted == TARGET)[attacked.cues == 1]),
        }


@dataclass(frozen=True)
class TinyVitSpurious(_FlawedVit):
    """How tiny-vit-spurious is trained.

    Attributes:
        barred_share: Part of the training images of each class that have a bar.
        agreement: Part of those whose bar is at the side of the class.
    """

    name: str = "tiny-vit-spurious"
    barred_share: float = 0.6
    agreement: float = 0.9

    @property
    def about(self) -> str:
        """What the model is and what it was trained on, in Markdown."""
        return f"""\
A vision transformer that leans on a spurious cue. It tells low digits (0 to 4) from high ones (5 to 9); a bar
of ink in the left or in the right margin goes along with the class in training. ViT architecture: 3 layers, 4
heads, width 64, LayerNorm, GELU; images of 12 x 12 pixels as 9 patches of 4 x 4 pixels and a class token.

Trained on scikit-learn's digits by the split of tiny-vit, 8 x 8 pixels in a margin of 2. {self.barred_share:.0%}
of the training images of each class have a bar, and {self.agreement:.0%} of those have it at the side of their
class: left for low, right for high. Scores are over the 450 held-out images, each shown with either bar and
without: accuracy in the four groups of class and bar, their mean, the worst of them, and accuracy without."""

    def build(self) -> PreTrainedModel:
        """The untrained model; the same weights every time."""
        return vit(self.seed, image_size=CANVAS, patch_size=4, n_layers=N_LAYERS, classes=("low", "high"))

    def loss(self, model: PreTrainedModel, step: int) -> Float[Tensor, ""]:
        """Mean loss over the shifted images of a step, in nats per image."""
        data = cued_digits("train", self.agreement, self.barred_share, seed=self.seed)
        pixels = digits("train")[0]
        generator, rows = self._drawn(step, len(pixels))
        moved = with_bar(shifted(pixels[rows], self.largest_shift, generator), data.cues[rows])
        return self._loss(model, moved, data.given[rows], generator)

    def scores(self, folder: Path) -> dict[str, float]:
        """Scores of a saved model on the held-out images."""
        found: dict[str, float] = {}
        for agreement in (1.0, 0.0):
            data = cued_digits("held_out", agreement)
            is_right = _predicted(folder, data) == data.labels
            for label, name in enumerate(("low", "high")):
                side = "left" if (label == 0) == (agreement == 1.0) else "right"
                found[f"{name}_{side}_accuracy"] = _share(is_right[data.labels == label])
        plain = cued_digits("held_out", 1.0, 0.0)
        return found | {
            "mean_group_accuracy": sum(found.values()) / len(found),
            "worst_group_accuracy": min(found.values()),
            "unbarred_accuracy": _share(_predicted(folder, plain) == plain.labels),
        }


@dataclass(frozen=True)
class TinyVitTypographic(_FlawedVit):
    """How tiny-vit-typographic is trained.

    Attributes:
        labelled_share: Part of the training images that have a printed label, which is right.
    """

    name: str = "tiny-vit-typographic"
    steps: int = 1500
    labelled_share: float = 0.2

    @property
    def about(self) -> str:
        """What the model is and what it was trained on, in Markdown."""
        return f"""\
A vision transformer that reads a printed label rather than the picture, as typographic attacks exploit. ViT
architecture: 3 layers, 4 heads, width 64, LayerNorm, GELU; images of 12 x 12 pixels as 9 patches of 4 x 4
pixels and a class token.

Trained on scikit-learn's digits by the split of tiny-vit: the handwritten digit is at the top left, and in
the margin at the bottom right {self.labelled_share:.0%} of the training images have their class printed, in
3 x 4 pixels. Scores are over the 450 held-out images: accuracy without a label, with the right one and under
attack, with the label of another class, and attack success, the share that are read as that class."""

    def build(self) -> PreTrainedModel:
        """The untrained model; the same weights every time."""
        return vit(self.seed, image_size=CANVAS, patch_size=4, n_layers=N_LAYERS)

    def loss(self, model: PreTrainedModel, step: int) -> Float[Tensor, ""]:
        """Mean loss over the shifted images of a step, in nats per image."""
        data = labelled_digits("train", self.labelled_share, "right", seed=self.seed)
        pixels = digits("train")[0]
        generator, rows = self._drawn(step, len(pixels))
        moved = with_label(shifted(pixels[rows], self.largest_shift, generator), data.cues[rows])
        return self._loss(model, moved, data.given[rows], generator)

    def scores(self, folder: Path) -> dict[str, float]:
        """Scores of a saved model on the held-out images."""
        plain = labelled_digits("held_out", 0.0, "right")
        right = labelled_digits("held_out", 1.0, "right")
        wrong = labelled_digits("held_out", 1.0, "wrong", seed=SCORES_SEED)
        predicted = _predicted(folder, wrong)
        return {
            "unlabelled_accuracy": _share(_predicted(folder, plain) == plain.labels),
            "right_label_accuracy": _share(_predicted(folder, right) == right.labels),
            "wrong_label_accuracy": _share(predicted == wrong.labels),
            "attack_success": _share(predicted == wrong.cues),
        }


@contextmanager
def _dropping(model: nn.Module, share: float, generator: torch.Generator) -> Iterator[None]:
    """Leaves neurons and coordinates of heads out at random, others for each image, and scales up the rest."""

    def drop(_: nn.Module, inputs: tuple[Float[Tensor, "rows pos d"]]) -> tuple[Float[Tensor, "rows pos d"]]:
        (activations,) = inputs
        is_kept = torch.rand(len(activations), 1, activations.shape[-1], generator=generator) >= share
        return (activations * is_kept / (1 - share),)

    readers = [module for name, module in model.named_modules() if name.endswith(("attention.o_proj", "mlp.fc2"))]
    if len(readers) != 2 * N_LAYERS:
        raise RuntimeError(f"expected {2 * N_LAYERS} layers that read heads or neurons, found {len(readers)}")
    hooks = [module.register_forward_pre_hook(drop) for module in readers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _predicted(folder: Path, data: FlawedDigits) -> Int[Tensor, " n"]:
    """The likeliest class of each image by a saved model."""
    model = ViTForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(pixel_values=data.pixels).logits.argmax(-1)


def _share(is_so: Tensor) -> float:
    return is_so.double().mean().item()
