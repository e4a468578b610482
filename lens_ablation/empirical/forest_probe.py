"""Probe of which candidate each neuron favours, by a random forest whose trees are kept as plain arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from lens_ablation.empirical.gradients import NeuronGradients
from lens_ablation.empirical.probe import Probe, State


@dataclass(frozen=True)
class ForestProbe(Probe):
    """A random forest on which candidate each neuron's gradient is largest for, over all neurons.

    A feature is ``argmax_c G[p, c, n]``, the first of equal ones, a place that is fed as a number; for two candidates
    it is ``1[G[p, 0, n] > G[p, 1, n]]``, and the target ``1[right = 0]``, as in the authors' release. The forest is
    scikit-learn's; a fitted probe keeps its trees as arrays and predicts from them, so that a saved one needs no
    pickle and gives the same predictions under another scikit-learn.

    Attributes:
        n_trees: Trees of the forest.
        max_depth: Most splits on a path; none by default.
        seed: Random state of the forest.

    Raises:
        ValueError: ``n_trees`` or ``max_depth`` is below 1.

    Reference:
        Zhao, Jiang, Yoshinaga, 2025, arXiv:2412.18053

    Example:
        >>> import lens_ablation as la
        >>> la.ForestProbe()
        ForestProbe(n_trees=100, max_depth=None, seed=42)
    """

    n_trees: int = 100
    max_depth: int | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        if self.n_trees < 1 or (self.max_depth is not None and self.max_depth < 1):
            raise ValueError(f"n_trees and max_depth must be 1 or more, got {self.n_trees} and {self.max_depth}")

    @property
    def settings(self) -> Mapping[str, object]:
        return {"n_trees": self.n_trees, "max_depth": self.max_depth, "seed": self.seed}

    def needs(self, gradients: NeuronGradients, labels: Int[Tensor, " example"]) -> State:
        target = 1 - labels if gradients.values.shape[1] == 2 else labels
        return {"features": favoured(gradients.values), "targets": target}

    def fit(self, seen: State, n_candidates: int) -> State:
        from sklearn.ensemble import RandomForestClassifier

        forest = RandomForestClassifier(
            n_estimators=self.n_trees, max_depth=self.max_depth, random_state=self.seed, n_jobs=1
        )
        forest.fit(seen["features"].numpy(), seen["targets"].numpy())
        importance = torch.from_numpy(np.asarray(forest.feature_importances_, dtype=np.float64))
        return {"scores": importance, **_arrays(forest, n_candidates)}

    def predict(self, state: State, gradients: NeuronGradients, n_candidates: int) -> Int[Tensor, " example"]:
        votes = forest_votes(state, favoured(gradients.values).numpy())
        targets = torch.from_numpy(votes.argmax(axis=1))
        return 1 - targets if n_candidates == 2 else targets

    def places(self, state: State) -> Int[Tensor, " chosen"]:
        order = state["scores"].argsort(descending=True, stable=True)
        return order[state["scores"][order] > 0]


def favoured(values: Float[Tensor, "example candidate neuron"]) -> Int8[Tensor, "example neuron"]:
    """The place of the candidate with the largest gradient; of two candidates, 1 where the first's is larger."""
    if values.shape[1] == 2:
        return (values[:, 0] > values[:, 1]).to(torch.int8)
    return values.argmax(dim=1).to(torch.int8)


def forest_votes(state: State, features: Int8[np.ndarray, "example neuron"]) -> Float[np.ndarray, "example label"]:
    """Shares of labels in the leaves that each example falls into, averaged over trees as scikit-learn does."""
    left, right = state["left"].numpy(), state["right"].numpy()
    feature, threshold = state["feature"].numpy(), state["threshold"].numpy()
    shares, roots = state["shares"].numpy(), state["roots"].numpy()
    rows = np.arange(len(features))
    total = np.zeros((len(features), shares.shape[1]))
    for root in roots:
        node = np.full(len(features), root)
        while True:
            is_split = left[node] >= 0
            if not is_split.any():
                break
            here, at = rows[is_split], node[is_split]
            goes_left = features[here, feature[at]] <= threshold[at]
            node[is_split] = np.where(goes_left, left[at], right[at])
        total += shares[node]
    return total / len(roots)


def _arrays(forest: Any, n_candidates: int) -> dict[str, Tensor]:
    """All trees one after the other; children are counted from the first node of all, and leaves have -1."""
    trees = [tree.tree_ for tree in forest.estimators_]
    roots = np.cumsum([0, *(tree.node_count for tree in trees)])[:-1]

    def children(name: str) -> np.ndarray:
        own = [(getattr(tree, name), root) for tree, root in zip(trees, roots, strict=True)]
        return np.concatenate([np.where(child < 0, -1, child + root) for child, root in own])

    found = np.concatenate([tree.value[:, 0] for tree in trees])  # shares, since scikit-learn 1.3
    shares = np.zeros((len(found), n_candidates))
    shares[:, np.asarray(forest.classes_, dtype=np.int64)] = found
    return {
        "roots": torch.from_numpy(roots.astype(np.int64)),
        "left": torch.from_numpy(children("children_left").astype(np.int64)),
        "right": torch.from_numpy(children("children_right").astype(np.int64)),
        "feature": torch.from_numpy(np.concatenate([tree.feature for tree in trees]).astype(np.int64)),
        "threshold": torch.from_numpy(np.concatenate([tree.threshold for tree in trees]).astype(np.float64)),
        "shares": torch.from_numpy(shares),
    }
