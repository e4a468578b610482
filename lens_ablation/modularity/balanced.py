"""Clusters of exactly one size."""

import importlib
from importlib.util import find_spec

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import kmeans_plusplus

from lens_ablation.errors import MissingExtra

MOST_WITHOUT_EXTRA = 4096
"""Most points that are clustered without the extra ``experts``: exact assignment takes their square in memory."""


def balanced_clusters(
    points: Float[np.ndarray, "point dimension"], n_clusters: int, *, seed: int, n_init: int, max_iter: int
) -> tuple[Int[np.ndarray, " point"], str]:
    """A label to each point, every label equally often, and what computed it.

    By ``k-means-constrained`` where the extra ``experts`` is installed; else by ``balanced_lloyd``. Both assign points
    to centres by least total distance (not squared) and move centres to means.

    Raises:
        MissingExtra: there are more points than the second way can take.
    """
    size = len(points) // n_clusters
    if find_spec("k_means_constrained") is not None:
        model = importlib.import_module("k_means_constrained").KMeansConstrained(
            n_clusters=n_clusters,
            size_min=size,
            size_max=size,
            n_init=n_init,
            max_iter=max_iter,
            random_state=seed,
            n_jobs=1,  # several restart with other seeds, and fail on large data
        )
        labels, how = np.asarray(model.fit(points).labels_, dtype=np.int64), "k-means-constrained"
    elif len(points) > MOST_WITHOUT_EXTRA:
        raise MissingExtra(
            f"{len(points)} neurons are too many to be balanced without k-means-constrained. Install it: "
            "pip install 'lens-ablation[experts]'"
        )
    else:
        labels, how = balanced_lloyd(points, n_clusters, seed=seed, n_init=n_init, max_iter=max_iter), "balanced Lloyd"
    require_balanced(labels, n_clusters, how)
    return labels, how


def require_balanced(labels: Int[np.ndarray, " point"], n_clusters: int, how: str) -> None:
    """Refuse labels of which one is more frequent than another.

    Raises:
        RuntimeError: they are not balanced.
    """
    sizes = np.bincount(labels, minlength=n_clusters)
    if (sizes != len(labels) // n_clusters).any():
        raise RuntimeError(
            f"{how} gave clusters of {sizes.min()} to {sizes.max()} points where all should have "
            f"{len(labels) // n_clusters}; install another version of it"
        )


def balanced_lloyd(
    points: Float[np.ndarray, "point dimension"], n_clusters: int, *, seed: int, n_init: int, max_iter: int
) -> Int[np.ndarray, " point"]:
    """Lloyd's algorithm with exact balanced assignment: each centre is given its number of points at least cost."""
    rows = torch.from_numpy(np.ascontiguousarray(points)).double()
    best: tuple[float, np.ndarray] | None = None
    for start in range(n_init):
        centres, _ = kmeans_plusplus(rows.numpy(), n_clusters, random_state=seed + start)
        labels, inertia = _descend(rows, torch.from_numpy(centres), max_iter)
        if best is None or inertia < best[0]:
            best = inertia, labels
    assert best is not None
    return best[1]


def _descend(
    rows: Float[torch.Tensor, "point dimension"], centres: Float[torch.Tensor, "cluster dimension"], max_iter: int
) -> tuple[np.ndarray, float]:
    n_clusters, size = len(centres), len(rows) // len(centres)
    labels = np.full(len(rows), -1)
    best = labels, float("inf")
    for _ in range(max_iter):
        distances = torch.cdist(rows, centres)
        places = linear_sum_assignment(distances.repeat_interleave(size, dim=1).numpy())[1]
        now = (places // size).astype(np.int64)
        inertia = float(distances[torch.arange(len(rows)), torch.from_numpy(now)].square().sum())
        if inertia < best[1]:
            best = now, inertia
        if np.array_equal(now, labels):
            break
        labels = now
        own = torch.from_numpy(labels)
        centres = torch.zeros_like(centres).index_add_(0, own, rows) / size
    assert n_clusters * size == len(rows)
    return best
