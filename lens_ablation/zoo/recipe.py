"""What it takes to train an embedded model: the part that differs between models."""

from dataclasses import Field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel


@runtime_checkable
class Recipe(Protocol):
    """A model, its data and its scores; a frozen dataclass, whose fields are written into the card."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def name(self) -> str:
        """Name of the model, and of its folder."""
        ...

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        ...

    @property
    def peak_learning_rate(self) -> float:
        """Learning rate of AdamW after the warm-up."""
        ...

    @property
    def weight_decay(self) -> float:
        """Weight decay of AdamW, on matrices only."""
        ...

    @property
    def about(self) -> str:
        """What the model is and what it was trained on, in Markdown."""
        ...

    def build(self) -> PreTrainedModel:
        """The untrained model; the same weights every time."""
        ...

    def loss(self, model: PreTrainedModel, step: int) -> Float[Tensor, ""]:
        """Training loss at a step, in nats; depends on the weights and ``step`` only."""
        ...

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Write what ``from_pretrained`` needs."""
        ...

    def scores(self, folder: Path) -> dict[str, float]:
        """Scores of a saved model on held-out data."""
        ...
