"""tiny-vit: a vision transformer of four layers and four heads, trained on scikit-learn's digits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

from lens_ablation.data.digits import digits

PAPER = -1.0
"""Value of a blank pixel."""


@dataclass(frozen=True)
class TinyVit:
    """How tiny-vit is trained.

    Attributes:
        steps: Number of optimizer steps.
        seed: Seed of the first weights and of the order and shifts of the images.
        rows: Images of a step.
        largest_shift: Pixels by which an image may be moved in each direction.
        noise: Standard deviation of what is added to a pixel; pixels go from -1 to 1.
        peak_learning_rate: Learning rate of AdamW after the warm-up.
        weight_decay: Weight decay of AdamW, on matrices only.
    """

    name: str = "tiny-vit"
    steps: int = 3000
    seed: int = 0
    rows: int = 128
    largest_shift: int = 1
    noise: float = 0.1
    peak_learning_rate: float = 2e-3
    weight_decay: float = 0.05

    @property
    def about(self) -> str:
        """What the model is and what it was trained on, in Markdown."""
        return f"""\
A vision transformer (ViT architecture: 4 layers, 4 heads, width 64, LayerNorm, GELU) that reads the
handwritten digits of scikit-learn, 8 x 8 grey pixels from -1 (paper) to 1 (ink), as 16 patches of
2 x 2 pixels and a class token.

Trained on the 1347 images that `lens_ablation.data.digits` gives for training, by a fixed stratified
split; in training an image is moved by up to {self.largest_shift} pixel and gets some noise. Held out are
the other 450 images."""

    def build(self) -> PreTrainedModel:
        """The untrained model; the same weights every time."""
        return vit(self.seed, image_size=8, patch_size=2, n_layers=4)

    def loss(self, model: PreTrainedModel, step: int) -> Float[Tensor, ""]:
        """Mean loss over the shifted images of a step, in nats per image."""
        pixels, labels = digits("train")
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        rows = torch.randint(len(labels), (self.rows,), generator=generator)
        moved = shifted(pixels[rows], self.largest_shift, generator)
        noisy = moved + self.noise * torch.randn(moved.shape, generator=generator)
        return F.cross_entropy(model(pixel_values=noisy).logits, labels[rows])

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Write the model for ``from_pretrained``."""
        model.save_pretrained(folder)

    def scores(self, folder: Path) -> dict[str, float]:
        """Scores of a saved model on the held-out images."""
        return vit_scores(folder)


def vit(
    seed: int, *, image_size: int, patch_size: int, n_layers: int, classes: Sequence[str] = tuple("0123456789")
) -> PreTrainedModel:
    """An untrained ViT of four heads and width 64 for grey images; the same weights every time.

    Args:
        seed: Seed of the weights.
        image_size: Width and height of an image in pixels.
        patch_size: Width and height of a patch in pixels.
        n_layers: Number of layers.
        classes: Names of the classes.
    """
    config = ViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        intermediate_size=128,
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(classes)),
        label2id={name: index for index, name in enumerate(classes)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ViTForImageClassification(config)


def shifted(
    pixels: Float[Tensor, "n channels height width"], largest: int, generator: torch.Generator
) -> Float[Tensor, "n channels height width"]:
    """Each image moved by its own number of pixels, paper moving in."""
    n, _, height, width = pixels.shape
    padded = F.pad(pixels, (largest, largest, largest, largest), value=PAPER)
    down, right = torch.randint(2 * largest + 1, (2, n, 1), generator=generator)
    rows = (down + torch.arange(height))[:, None, :, None]
    columns = (right + torch.arange(width))[:, None, None, :]
    return padded[torch.arange(n)[:, None, None, None], 0, rows, columns]


def vit_scores(folder: Path) -> dict[str, float]:
    """Share of images read right, and the mean loss in nats per image, of a saved model.

    Args:
        folder: Folder written by ``save_pretrained``.
    """
    model = ViTForImageClassification.from_pretrained(folder).eval()
    found: dict[str, float] = {}
    for split in ("train", "held_out"):
        pixels, labels = digits(split)
        with torch.no_grad():
            logits = model(pixel_values=pixels).logits.double()
        found[f"{split}_accuracy"] = (logits.argmax(-1) == labels).double().mean().item()
        found[f"{split}_loss"] = F.cross_entropy(logits, labels).item()
    return found
