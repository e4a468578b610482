"""Points to clusters of one size at least total cost."""

import math
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

_FAR = 2**60


def balanced_assignment(
    costs: Float[np.ndarray, "point cluster"], prices: Float[np.ndarray, " cluster"] | None = None
) -> tuple[Int[np.ndarray, " point"], Float[np.ndarray, " cluster"]]:
    """The labels of least total cost of those with every label equally often, and prices that make them the cheapest.

    Each point takes its cheapest cluster, prices added; then points move from clusters that are too large to those
    that are too small, one at a time along the path of clusters that costs least. Such moves keep labels the cheapest
    of all with their sizes. Costs are rounded to 2^-40 of the largest: sums of whole numbers are exact.

    Args:
        costs: What each cluster costs each point; as many points as fill clusters of one size.
        prices: What an earlier, similar assignment gave: fewer points are left to move. Does not change the cost.

    Reference:
        Ahuja, Magnanti, Orlin, *Network Flows*, 1993, chapter 9: successive shortest paths.
    """
    unit = math.ldexp(1.0, math.frexp(float(np.abs(costs).max()))[1] - 40)
    whole = np.rint(costs / unit).astype(np.int64)
    start = whole if prices is None else whole + np.rint(prices / unit).astype(np.int64)
    moves = _Moves(whole, start.argmin(axis=1))
    size = len(costs) // costs.shape[1]
    counts = np.bincount(moves.labels, minlength=costs.shape[1])
    while (counts > size).any():
        far, before = moves.paths(np.where(counts > size, 0, _FAR))
        end = int(np.where(counts < size, far, _FAR).argmin())
        counts[end] += 1
        counts[moves.along(before, end)] -= 1
    # a cluster that others could leave for at a gain, were it not full, has the price of that gain
    far, _ = moves.paths(np.zeros(len(counts), dtype=np.int64))
    return moves.labels, -far * unit


class _Moves:
    """What it costs at least to move one point of a cluster to another, ``extra[from, to]``, and which point that is.

    No round trip gains anything, because labels are the cheapest of all with their sizes.
    """

    def __init__(self, costs: Int[np.ndarray, "point cluster"], labels: Int[np.ndarray, " point"]):
        n_clusters = costs.shape[1]
        self.costs, self.labels = costs, labels
        self.extra = np.full((n_clusters, n_clusters), _FAR, dtype=np.int64)
        self.point = np.zeros((n_clusters, n_clusters), dtype=np.int64)
        self._each = np.arange(n_clusters)
        for cluster in range(n_clusters):
            self._look(cluster)

    def _look(self, cluster: int) -> None:
        """Find the moves out of a cluster again."""
        points = np.flatnonzero(self.labels == cluster)
        if len(points) == 0:
            self.extra[cluster] = _FAR
            return
        extra = self.costs[points]
        extra -= extra[:, cluster, None]
        best = extra.argmin(axis=0)
        self.extra[cluster] = extra[best, self._each]
        self.point[cluster] = points[best]

    def paths(
        self, far: Int[np.ndarray, " cluster"]
    ) -> tuple[Int[np.ndarray, " cluster"], Int[np.ndarray, " cluster"]]:
        """Least cost of a chain of moves to each cluster, where beginning at it costs ``far``; and the cluster before.

        By Bellman and Ford; -1 before a cluster at which a chain begins.
        """
        before = np.full(len(far), -1)
        while True:
            through = far[:, None] + self.extra
            best = through.argmin(axis=0)
            least = through[best, self._each]
            shorter = least < far
            if not shorter.any():
                return far, before
            far, before = np.where(shorter, least, far), np.where(shorter, best, before)

    def along(self, before: Int[np.ndarray, " cluster"], end: int) -> int:
        """Move a point along each step of the chain that ends here; the cluster at which it began."""
        chain = [end]
        while before[chain[-1]] >= 0:
            chain.append(int(before[chain[-1]]))
        moved = [(self.point[source, to], to) for to, source in pairwise(chain)]
        for point, to in moved:
            self.labels[point] = to
        for cluster in chain:
            self._look(cluster)
        return chain[-1]
