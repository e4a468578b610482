"""How causal tracing takes the subject away: noise on its embedding, or one learned vector in its place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lens_ablation.methods.method import LI_2024, MENG_2022
from lens_ablation.strategy import Strategy


class Corruption(Strategy):
    """What stands at the subject's tokens at ``hook_embed``."""


@dataclass(frozen=True)
class GaussianNoise(Corruption):
    """Noise added to the subject's embedding, scaled to the spread of each coordinate over the task's tokens.

    Probabilities are averaged over the draws. All restorations of a draw see the same noise.

    Attributes:
        scale: Standard deviations of the residual stream that enters the first block, coordinate by coordinate.
        draws: How many noises each example is given.
        seed: Draws them.

    Raises:
        ValueError: ``scale`` is not positive, or ``draws`` is below 1.

    Reference:
        Meng, Bau, Andonian, Belinkov, *Locating and Editing Factual Associations in GPT*, 2022, arXiv:2202.05262,
        section 2.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task = la.tasks.facts(model, n=40, split="train")
        >>> la.trace(model, task, la.GaussianNoise(scale=2.0, draws=1), progress=False).settings["corruption"]["name"]
        'GaussianNoise'
    """

    scale: float = 3.0
    draws: int = 5
    seed: int = 0
    bibtex: ClassVar[str] = MENG_2022

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale is {self.scale}; give a positive number of standard deviations")
        if self.draws < 1:
            raise ValueError(f"draws is {self.draws}; take at least 1")

    @property
    def settings(self) -> Mapping[str, object]:
        return {"scale": self.scale, "draws": self.draws, "seed": self.seed}

    def noise(
        self, spread: Float[Tensor, " d_model"], n_examples: int, n_pos: int, draw: int
    ) -> Float[Tensor, "example pos d_model"]:
        """The noise of one draw at every token of every example."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + draw)
        drawn = torch.randn(n_examples, n_pos, len(spread), generator=generator)
        return self.scale * spread.cpu() * drawn


@dataclass(frozen=True)
class OptimalVector(Corruption):
    """One learned vector in the place of every token of the subject, for each restoration its own.

    Each vector is the one under which the restored model loses least of the probability that the untouched model
    gives its answer: what is then still missing is what the restoration does not bring back, and not the harm that an
    unlucky replacement does. Vectors are fitted on three fifths of the prompts and judged on the others.

    Attributes:
        steps: Steps of AdamW (no weight decay).
        lr: Learning rate.
        batch_size: Prompts in a step.
        seed: Draws the split and the order of prompts.

    Raises:
        ValueError: a number that is not positive.

    Reference:
        Li and Janson, *Optimal ablation for interpretability*, 2024, arXiv:2409.09951, section 4.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task = la.tasks.facts(model, n=60, split="train")
        >>> found = la.trace(model, task, la.OptimalVector(steps=5), positions=["last"], progress=False)
        >>> found.effect.shape
        torch.Size([1, 4])
    """

    steps: int = 200
    lr: float = 1e-2
    batch_size: int = 20
    seed: int = 0
    bibtex: ClassVar[str] = LI_2024

    def __post_init__(self) -> None:
        for name in ("steps", "lr", "batch_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give a positive number")

    @property
    def settings(self) -> Mapping[str, object]:
        return {"steps": self.steps, "lr": self.lr, "batch_size": self.batch_size, "seed": self.seed}
