"""Clusters of exactly one size."""

import importlib
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_ablation.modularity.assignment import balanced_assignment

LLOYD, CONSTRAINED = "balanced Lloyd", "k-means-constrained"


class Descent(NamedTuple):
    """Labels, their sum of squared distances to the centres they were assigned to, and iterations until they stood."""

    labels: Int[np.ndarray, " point"]
    inertia: float
    n_iter: int


def computed_by() -> str:
    """What computes balanced clusters here."""
    return LLOYD if find_spec("k_means_constrained") is None else CONSTRAINED


def balanced_clusters(
    points: Float[np.ndarray, "point dimension"], n_clusters: int, *, seed: int, n_init: int, max_iter: int
) -> Int[np.ndarray, " point"]:
    """A label to each point, every label equally often.

    By ``k-means-constrained`` where the extra ``experts`` is installed; else by ``balanced_lloyd``. Both assign points
    to centres by least total distance (not squared) and move centres to means.
    """
    way = balanced_lloyd if computed_by() == LLOYD else constrained_clusters
    labels = way(points, n_clusters, seed=seed, n_init=n_init, max_iter=max_iter).labels
    require_balanced(labels, n_clusters, computed_by())
    return labels


def constrained_clusters(
    points: Float[np.ndarray, "point dimension"], n_clusters: int, *, seed: int, n_init: int, max_iter: int
) -> Descent:
    """Those of ``k-means-constrained``, which rounds distances to a thousandth."""
    size = len(points) // n_clusters
    found = importlib.import_module("k_means_constrained").KMeansConstrained(
        n_clusters=n_clusters,
        size_min=size,
        size_max=size,
        n_init=n_init,
        max_iter=max_iter,
        random_state=seed,
        n_jobs=1,  # several restart with other seeds, and fail on large data
    )
    found.fit(points)
    return Descent(np.asarray(found.labels_, dtype=np.int64), float(found.inertia_), int(found.n_iter_))


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
) -> Descent:
    """Lloyd's algorithm with exact balanced assignment: each centre is given its number of points at least cost.

    Distances are those of single precision. Of all iterations of all restarts that with the least sum of squared
    distances is kept.
    """
    rows = torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32))
    descents = [
        descend(rows, first_centres(rows, n_clusters, np.random.default_rng(seed + start)), max_iter)
        for start in range(n_init)
    ]
    return min(descents, key=lambda found: found.inertia)


def descend(
    rows: Float[Tensor, "point dimension"], centres: Float[Tensor, "cluster dimension"], max_iter: int
) -> Descent:
    """The best labels of Lloyd's iterations from these centres."""
    labels, prices = np.full(len(rows), -1), None
    best = Descent(labels, float("inf"), 0)
    for n_iter in range(1, max_iter + 1):
        squared = _squared_distances(rows, centres)
        now, prices = balanced_assignment(squared.sqrt().double().numpy(), prices)
        own = torch.from_numpy(now)
        inertia = float(squared.gather(1, own[:, None]).double().sum())
        best = Descent(now, inertia, n_iter) if inertia < best.inertia else best._replace(n_iter=n_iter)
        if np.array_equal(now, labels):
            break
        labels = now
        centres = torch.zeros_like(centres).index_add_(0, own, rows) * (len(centres) / len(rows))
    return best


def first_centres(
    rows: Float[Tensor, "point dimension"], n_clusters: int, rng: np.random.Generator
) -> Float[Tensor, "cluster dimension"]:
    """Greedy k-means++: points drawn by squared distance from the centres so far, of several tries the best.

    As scikit-learn's ``kmeans_plusplus``, which turns single precision into double at every centre and takes four
    times as long on wide layers.
    """
    n_tries = 2 + int(np.log(n_clusters))
    chosen = [int(rng.integers(len(rows)))]
    nearest = _squared_distances(rows, rows[chosen])
    for _ in range(n_clusters - 1):
        upto = nearest[:, 0].double().cumsum(0)
        drawn = torch.searchsorted(upto, torch.from_numpy(rng.random(n_tries)) * upto[-1]).clamp(max=len(rows) - 1)
        left = torch.minimum(nearest, _squared_distances(rows, rows[drawn]))
        best = int(left.double().sum(dim=0).argmin())
        nearest = left[:, best, None]
        chosen.append(int(drawn[best]))
    return rows[chosen]


def _squared_distances(
    rows: Float[Tensor, "point dimension"], centres: Float[Tensor, "cluster dimension"]
) -> Float[Tensor, "point cluster"]:
    """Without a copy of the rows, as ``torch.cdist`` makes."""
    lengths = torch.linalg.vector_norm(rows, dim=1).square()[:, None] + centres.square().sum(dim=1)
    return torch.addmm(lengths, rows, centres.T, alpha=-2).clamp(min=0)
