"""Ways of reading a prediction off the residual stream in the middle of a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lens_ablation.methods.method import LI_2024
from lens_ablation.strategy import Strategy


class LensKind(Strategy):
    """How the residual stream that enters a block is carried to the output."""


@dataclass(frozen=True)
class LogitLens(LensKind):
    """The final norm and the unembedding, at once; nothing is fitted.

    Reference:
        nostalgebraist, *interpreting GPT: the logit lens*, 2020.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-vit")
        >>> la.fit_lens(model, la.tasks.digits(model, n=60), la.LogitLens(), progress=False).kl.shape
        torch.Size([4])
    """

    @property
    def name(self) -> str:
        return "Logit lens"

    @property
    def settings(self) -> Mapping[str, object]:
        return {}


@dataclass(frozen=True)
class Fitted(LensKind):
    """What lenses that are fitted have in common.

    Attributes:
        steps: Steps of AdamW (no weight decay).
        lr: Learning rate.
        batch_size: Texts in a step.
        seed: Draws the order of texts.
    """

    steps: int = 300
    lr: float = 2e-3
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "lr", "batch_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give a positive number")

    @property
    def settings(self) -> Mapping[str, object]:
        return {"steps": self.steps, "lr": self.lr, "batch_size": self.batch_size, "seed": self.seed}


@dataclass(frozen=True)
class TunedLens(Fitted):
    """An affine map for each layer before the final norm, fitted to the model's own output; it begins as identity.

    Reference:
        Belrose et al., *Eliciting Latent Predictions from Transformers with the Tuned Lens*, 2023, arXiv:2303.08112.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-vit")
        >>> la.fit_lens(model, la.tasks.digits(model, n=60), la.TunedLens(steps=5), progress=False).kl.shape
        torch.Size([4])
    """

    bibtex: ClassVar[str] = """@article{belrose2023eliciting,
  title   = {Eliciting Latent Predictions from Transformers with the Tuned Lens},
  author  = {Belrose, Nora and Ostrovsky, Igor and McKinney, Lev and Furman, Zach and Smith, Logan and Halawi, Danny
             and Biderman, Stella and Steinhardt, Jacob},
  journal = {arXiv:2303.08112},
  year    = {2023}
}"""

    @property
    def name(self) -> str:
        return "Tuned lens"


@dataclass(frozen=True)
class OptimalConstantAttention(Fitted):
    """The rest of the model with every later attention output at the constant that hurts least.

    Each layer of the lens has its own constants at all later layers; they begin at the mean attention outputs.

    Reference:
        Li and Janson, *Optimal ablation for interpretability*, 2024, arXiv:2409.09951, section 5. There the constants
        begin at random, and only the last token is read.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-vit")
        >>> kind = la.OptimalConstantAttention(steps=5)
        >>> la.fit_lens(model, la.tasks.digits(model, n=60), kind, progress=False).kl.shape
        torch.Size([4])
    """

    bibtex: ClassVar[str] = LI_2024

    @property
    def name(self) -> str:
        return "Optimal constant attention"


@dataclass(frozen=True)
class MeanAttention(LensKind):
    """The rest of the model with every later attention output at its mean; nothing but means is measured.

    Reference:
        Li and Janson, *Optimal ablation for interpretability*, 2024, arXiv:2409.09951, section 5.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-vit")
        >>> la.fit_lens(model, la.tasks.digits(model, n=60), la.MeanAttention(), progress=False).kl.shape
        torch.Size([4])
    """

    bibtex: ClassVar[str] = LI_2024

    @property
    def name(self) -> str:
        return "Mean attention"

    @property
    def settings(self) -> Mapping[str, object]:
        return {}
