"""Probe of activations: skill neurons, whose activation lies above or below its mean by label."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_ablation.empirical.gradients import NeuronGradients
from lens_ablation.empirical.probe import WANG_2022, Probe, State, require_k, strongest


@dataclass(frozen=True)
class ActivationProbe(Probe):
    """Neurons whose activation tells labels apart by lying above or below its mean: the skill neurons of Wang et al.

    For two labels: threshold = mean activation; bit = ``1[A > threshold]``; score = accuracy of the bit minus 0.5;
    used are the ``k`` largest sizes of scores, ties by place, turned round where the score is not positive; the
    majority decides, ties for label 0. More labels are split in halves (at ``n // 2``) and each half again, with ``k``
    neurons to a node, so ``k (C - 1)`` in all, some of them perhaps several times. A node is fitted on the examples
    whose true label is one of its own, and a prediction descends by what it predicts, on training examples too.

    Labels are places among the candidates. Where every question has other candidates, activations cannot know what
    stands in a place, and this probe is at chance.

    Attributes:
        k: Neurons to a node.

    Raises:
        ValueError: ``k`` is below 1.

    Reference:
        Wang et al., *Finding Skill Neurons in Pre-trained Transformer-based Language Models*, EMNLP 2022; as in Zhao,
        Jiang, Yoshinaga, 2025, arXiv:2412.18053

    Example:
        >>> import lens_ablation as la
        >>> la.ActivationProbe(k=4)
        ActivationProbe(k=4)
    """

    k: int = 64

    bibtex: ClassVar[str] = WANG_2022

    def __post_init__(self) -> None:
        require_k(self.k)

    @property
    def settings(self) -> Mapping[str, object]:
        return {"k": self.k}

    def needs(self, gradients: NeuronGradients, labels: Int[Tensor, " example"]) -> State:
        return {"activations": gradients.activations, "labels": labels}

    def fit(self, seen: State, n_candidates: int) -> State:
        activations, labels = seen["activations"], seen["labels"]
        fitted = [self._node(activations, labels, *node) for node in nodes_of(n_candidates)]
        scores, thresholds, places = (torch.stack(column) for column in zip(*fitted, strict=True))
        chosen = scores.gather(1, places)
        return {
            "scores": scores.gather(0, scores.abs().argmax(dim=0, keepdim=True))[0],
            "node_places": places,
            "node_thresholds": thresholds.gather(1, places),
            "node_polarities": torch.where(chosen > 0, 1, -1),
            "node_scores": chosen,
        }

    def _node(
        self,
        activations: Float[Tensor, "example neuron"],
        labels: Int[Tensor, " example"],
        low: int,
        middle: int,
        high: int,
    ) -> tuple[Float[Tensor, " neuron"], Float[Tensor, " neuron"], Int[Tensor, " chosen"]]:
        """Scores and thresholds of all neurons, and the places of those that are used."""
        own = (labels >= low) & (labels < high)
        if not bool(own.any()):
            raise ValueError(
                f"no training example has a label of {list(range(low, high))}; give examples of all labels"
            )
        here = activations[own]
        is_second = labels[own] >= middle
        # a mean in double precision, so that it does not depend on how the examples are summed
        thresholds = here.double().mean(dim=0)
        right = (here.double() > thresholds) == is_second[:, None]
        scores = right.double().mean(dim=0) - 0.5
        return scores, thresholds, strongest(scores, self.k)

    def predict(self, state: State, gradients: NeuronGradients, n_candidates: int) -> Int[Tensor, " example"]:
        low = torch.zeros(len(gradients.activations), dtype=torch.int64)
        high = torch.full_like(low, n_candidates)
        # a node comes after the one above it, so that each example passes all of its own
        for node, (first, middle, last) in enumerate(nodes_of(n_candidates)):
            here = (low == first) & (high == last)
            second = self._votes(state, node, gradients.activations) & here
            low[second] = middle
            high[here & ~second] = middle
        return low

    def _votes(self, state: State, node: int, activations: Float[Tensor, "example neuron"]) -> Bool[Tensor, " example"]:
        places, polarities = state["node_places"][node], state["node_polarities"][node]
        above = activations[:, places].double() > state["node_thresholds"][node]
        votes = above == (polarities > 0)
        return 2 * votes.sum(dim=1) > len(places)

    def places(self, state: State) -> Int[Tensor, " chosen"]:
        return torch.tensor(list(dict.fromkeys(self._by_score(state).tolist())))

    def polarities(self, state: State) -> Int[Tensor, " chosen"]:
        """Of a neuron's first node: 1 where a larger activation speaks for the later labels."""
        signs = dict[int, int]()
        order = state["node_scores"].reshape(-1).abs().argsort(descending=True, stable=True)
        flat, turned = state["node_places"].reshape(-1)[order], state["node_polarities"].reshape(-1)[order]
        for place, sign in zip(flat.tolist(), turned.tolist(), strict=True):
            signs.setdefault(place, sign)
        return torch.tensor(list(signs.values()))

    def _by_score(self, state: State) -> Int[Tensor, " used"]:
        order = state["node_scores"].reshape(-1).abs().argsort(descending=True, stable=True)
        return state["node_places"].reshape(-1)[order]


def nodes_of(n_labels: int) -> list[tuple[int, int, int]]:
    """First label, first label of the second half, and end, of each node that halves labels; parents come first.

    Example:
        >>> from lens_ablation.empirical.activation_probe import nodes_of
        >>> nodes_of(5)
        [(0, 2, 5), (0, 1, 2), (2, 3, 5), (3, 4, 5)]
    """
    found: list[tuple[int, int, int]] = []
    waiting = [(0, n_labels)]
    while waiting:
        low, high = waiting.pop(0)
        if high - low > 1:
            middle = low + (high - low) // 2
            found.append((low, middle, high))
            waiting = [(low, middle), (middle, high), *waiting]
    return found
