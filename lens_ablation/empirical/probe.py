"""What every probe of skills offers: what it needs of gradients, how it is fitted, and how it predicts."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_ablation.empirical.gradients import ZHAO_2025, NeuronGradients
from lens_ablation.strategy import Strategy

WANG_2022 = """@inproceedings{wang2022finding,
  title     = {Finding Skill Neurons in Pre-trained Transformer-based Language Models},
  author    = {Wang, Xiaozhi and Wen, Kaiyue and Zhang, Zhengyan and Hou, Lei and Liu, Zhiyuan and Li, Juanzi},
  booktitle = {Conference on Empirical Methods in Natural Language Processing},
  year      = {2022}
}"""
"""BibTeX of the probe of activations."""

State = Mapping[str, Tensor]
"""What a fitted probe knows, by name."""


class Probe(Strategy):
    """A way to tell which candidate is right from neurons; subclasses are frozen dataclasses."""

    bibtex: ClassVar[str] = ZHAO_2025
    adds_up: ClassVar[bool] = False
    """Whether parts of what it needs are added to each other; else they are put one after the other."""

    @abstractmethod
    def needs(self, gradients: NeuronGradients, labels: Int[Tensor, " example"]) -> State:
        """What fitting takes from some examples: sums over them, or one row to an example."""

    @abstractmethod
    def fit(self, seen: State, n_candidates: int) -> State:
        """What the fitted probe knows, among it ``scores [neuron]``, from what it needs of all examples.

        Raises:
            ValueError: no neuron can be chosen.
        """

    @abstractmethod
    def predict(self, state: State, gradients: NeuronGradients, n_candidates: int) -> Int[Tensor, " example"]:
        """The place of the candidate that is taken for the right one."""

    @abstractmethod
    def places(self, state: State) -> Int[Tensor, " chosen"]:
        """Places of the neurons it uses among those it was given, most important first, each once."""

    def polarities(self, state: State) -> Int[Tensor, " chosen"]:
        """1 where more of a neuron of ``places`` speaks for the right candidate, -1 where less does; 0 unsaid."""
        return torch.zeros(len(self.places(state)), dtype=torch.int64)


def gold(values: Float[Tensor, "example candidate neuron"], labels: Int[Tensor, " example"]) -> Float[Tensor, "..."]:
    """Values of the right candidate, ``[example, neuron]``."""
    return values[torch.arange(len(labels)), labels]


def strongest(scores: Float[Tensor, " neuron"] | Int[Tensor, " neuron"], k: int) -> Int[Tensor, " chosen"]:
    """Places of the ``k`` largest sizes, largest first; of equal ones the first places.

    Raises:
        ValueError: there are fewer.
    """
    if k > len(scores):
        raise ValueError(f"k={k} neurons are asked for and there are {len(scores)}; ask for fewer")
    return scores.abs().argsort(descending=True, stable=True)[:k]


def require_k(k: int) -> None:
    """Refuse a number of neurons below 1.

    Raises:
        ValueError: it is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be 1 neuron or more, got {k}")


def together(parts: Sequence[State], *, adds_up: bool) -> dict[str, Tensor]:
    """What is needed of all parts."""
    names = parts[0].keys()
    stacked = {name: [part[name] for part in parts] for name in names}
    if adds_up:
        return {name: torch.stack(values).sum(dim=0) for name, values in stacked.items()}
    return {name: torch.cat(values) for name, values in stacked.items()}
