"""Gradients written by hand, and the probes written again in NumPy."""

import numpy as np
import torch
from torch import Tensor

from lens_ablation.empirical.gradients import NeuronGradients
from lens_ablation.sites import SiteSet


def sites_of(n: int, n_layers: int = 2) -> SiteSet:
    width = -(-n // n_layers)
    addresses = np.indices((n_layers, width)).reshape(2, -1).T[:n].copy()
    return SiteSet("neuron", addresses, (n_layers, width))


def gradients_of(
    values: Tensor | list,
    *,
    activations: Tensor | None = None,
    probabilities: Tensor | None = None,
    shift: str = "signed",
    fingerprint: str = "by hand",
) -> NeuronGradients:
    """Gradients ``[example, candidate, neuron]`` of no model."""
    values = torch.as_tensor(values, dtype=torch.float32)
    n_examples, n_candidates, n_neurons = values.shape
    return NeuronGradients(
        values=values,
        activations=torch.zeros(n_examples, n_neurons) if activations is None else activations,
        probabilities=torch.full((n_examples, n_candidates), 0.1) if probabilities is None else probabilities,
        candidates=torch.arange(n_candidates).expand(n_examples, -1).clone(),
        sites=sites_of(n_neurons),
        settings={
            "model": "none",
            "model_fingerprint": fingerprint,
            "task": "by hand",
            "shift": shift,
            "estimator": "by hand",
            "hook": "mlp.hook_post",
        },
    )


def random_case(
    n_examples: int, n_candidates: int, n_neurons: int, seed: int = 0, *, levels: int = 5
) -> tuple[NeuronGradients, Tensor]:
    """Gradients of few levels, so that ties abound, that lean towards the right candidate in some neurons."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n_examples) % n_candidates
    values = torch.randint(-levels, levels + 1, (n_examples, n_candidates, n_neurons), generator=generator).float()
    lean = torch.randint(-2, 3, (n_neurons,), generator=generator)
    values[torch.arange(n_examples), labels] += lean
    activations = torch.randn(n_examples, n_neurons, generator=generator) + 0.7 * labels[:, None] * lean.sign()
    probabilities = torch.rand(n_examples, n_candidates, generator=generator)
    return gradients_of(values, activations=activations, probabilities=probabilities), labels


def by_size(scores: np.ndarray, k: int) -> list[int]:
    """The ``k`` largest sizes; of equal ones the lowest places."""
    return sorted(range(len(scores)), key=lambda n: (-abs(scores[n]), n))[:k]


def first_largest(values: list[float]) -> int:
    return max(range(len(values)), key=lambda c: (values[c], -c))


def polarity(train: np.ndarray, labels: list[int], test: np.ndarray, k: int) -> tuple[np.ndarray, list[int]]:
    n_examples, n_candidates, n_neurons = train.shape
    scores = np.zeros(n_neurons)
    for n in range(n_neurons):
        for p in range(n_examples):
            scores[n] += 2 * np.sign(train[p, labels[p], n]) - sum(np.sign(train[p, c, n]) for c in range(n_candidates))
    chosen = by_size(scores, k)
    found = [
        first_largest([sum(np.sign(scores[n]) * np.sign(g[c, n]) for n in chosen) for c in range(n_candidates)])
        for g in test
    ]
    return scores, found


def magnitude(
    train: np.ndarray, labels: list[int], test: np.ndarray, k: int, rule: str
) -> tuple[np.ndarray, list[int]]:
    n_examples, n_candidates, n_neurons = train.shape
    scores = np.zeros(n_neurons)
    for n in range(n_neurons):
        for p in range(n_examples):
            scores[n] += sum(np.sign(train[p, labels[p], n] - train[p, c, n]) for c in range(n_candidates))
    chosen = by_size(scores, k)
    found: list[int] = []
    for g in test:
        votes = [0.0] * n_candidates
        for n in chosen:
            turned = [np.sign(scores[n]) * g[c, n] for c in range(n_candidates)]
            for c in range(n_candidates):
                votes[c] += turned[c] if rule == "sum" else float(turned[c] == max(turned))
        found.append(first_largest(votes))
    return scores, found


def activation(
    train: np.ndarray, labels: list[int], test: np.ndarray, k: int, classes: list[int]
) -> tuple[list[int], int]:
    """Predictions of the tree of halves by recursion, and how many neurons all nodes use."""
    if len(classes) == 1:
        return [classes[0]] * len(test), 0
    halves = classes[: len(classes) // 2], classes[len(classes) // 2 :]
    own = [p for p in range(len(train)) if labels[p] in classes]
    second = np.array([labels[p] in halves[1] for p in own])
    threshold = train[own].astype(np.float64).mean(axis=0)
    accuracy = np.array([((train[own, n] > threshold[n]) == second).mean() for n in range(train.shape[1])])
    chosen = by_size(accuracy - 0.5, k)
    (left, n_left), (right, n_right) = (activation(train, labels, test, k, half) for half in halves)
    found: list[int] = []
    for p, row in enumerate(test):
        votes = sum((row[n] > threshold[n]) == (accuracy[n] > 0.5) for n in chosen)
        found.append(right[p] if votes > k / 2 else left[p])
    return found, k + n_left + n_right
