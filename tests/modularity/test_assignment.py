"""Balanced assignment: as cheap as scipy's on repeated columns, at prices that show it."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from lens_ablation.modularity.assignment import balanced_assignment
from lens_ablation.modularity.balanced import descend, first_centres


def cost_of(costs: np.ndarray, labels: np.ndarray) -> float:
    return float(costs[np.arange(len(costs)), labels].sum())


def least_cost(costs: np.ndarray) -> float:
    size = len(costs) // costs.shape[1]
    rows, columns = linear_sum_assignment(np.repeat(costs, size, axis=1))
    return cost_of(costs[rows], columns // size)


def costs_of(sort: str, rng: np.random.Generator, size: int, n_clusters: int) -> np.ndarray:
    shape = (size * n_clusters, n_clusters)
    if sort == "ties":
        return rng.integers(0, 3, size=shape).astype(float)
    costs = rng.random(shape)
    costs[:, 0] *= 0.01 if sort == "all to one" else 1
    return costs


@pytest.mark.parametrize("sort", ["random", "ties", "all to one"])
@pytest.mark.parametrize(("size", "n_clusters"), [(1, 9), (12, 1), (7, 2), (5, 6), (3, 20)])
def test_no_balanced_assignment_is_cheaper(sort: str, size: int, n_clusters: int):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        costs = costs_of(sort, rng, size, n_clusters)
        guess = None if seed % 2 else rng.normal(size=n_clusters)
        labels, prices = balanced_assignment(costs, guess)
        assert np.bincount(labels, minlength=n_clusters).tolist() == [size] * n_clusters
        assert cost_of(costs, labels) == pytest.approx(least_cost(costs), abs=1e-9)
        # complementary slackness: nobody would rather be elsewhere at these prices
        charged = costs + prices
        assert (charged[np.arange(len(costs)), labels] <= charged.min(axis=1) + 1e-9).all()


def test_costs_that_are_all_zero_are_assigned():
    assert np.bincount(balanced_assignment(np.zeros((12, 3)))[0]).tolist() == [4, 4, 4]


def test_first_centres_are_far_from_each_other():
    rng = np.random.default_rng(0)
    planted = 10 * rng.normal(size=(8, 30))
    points = planted[np.repeat(np.arange(8), 20)] + 0.1 * rng.normal(size=(160, 30))
    rows = torch.from_numpy(points).float()
    for seed in range(5):
        centres = first_centres(rows, 8, np.random.default_rng(seed))
        nearest = torch.cdist(centres.double(), torch.from_numpy(planted)).argmin(dim=1)
        assert sorted(nearest.tolist()) == list(range(8))


def test_iterations_end_when_labels_stand():
    rows = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    start = first_centres(rows, 6, np.random.default_rng(1))
    found = descend(rows, start, 100)
    assert 2 < found.n_iter < 100
    cut = descend(rows, start, 2)
    assert cut.n_iter == 2
    assert cut.inertia >= found.inertia
    centres = torch.stack([rows[torch.from_numpy(found.labels == k)].mean(dim=0) for k in range(6)])
    again = descend(rows, centres, 100)
    assert again.inertia == pytest.approx(found.inertia, rel=1e-5)
