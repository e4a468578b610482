"""Ridge regression where both masks and components are too many to factorise: conjugate gradients on packed masks."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_ablation.attribution.packed_masks import column_square, keep_mean, row_chunks
from lens_ablation.engine.removals import Packed

log = logging.getLogger(__name__)

HELD_OUT = 5
"""Every fifth mask is held out while penalties are chosen."""

GROUP_BYTES = 2**30
"""Memory for the vectors of the examples that are solved together."""

CLOSE, ROUGH = 1e-8, 1e-4
"""Residual, over the right-hand side, at which weights are done, and at which penalties are compared."""

_BYTES_OF_COMPONENT, _BYTES_OF_MASK = 80, 40
"""What an example takes for each of them while it is solved for: seven numbers in float64 and six in float32, and five
in float64."""

_ROUNDS, _MOST_STEPS = 8, 2000
_PATIENCE = 2

Vectors = Float[Tensor, "component example"]


class LargeFit(NamedTuple):
    """Weights and what they were chosen by; ``held_out`` is NaN for masks that were not held out."""

    weights: Float[Tensor, "example component"]
    intercept: Float[Tensor, " example"]
    penalties: Float[Tensor, " example"]
    held_out: Float[Tensor, "mask example"]


def fit_large(removed: Packed, outputs: Float[Tensor, "mask example"], shares: Sequence[float]) -> LargeFit:
    """Ridge regression of all examples by conjugate gradients, with a penalty chosen for each on held-out masks.

    Penalties are tried from the largest, each from the solution of the one before, on four fifths of the masks; an
    example has its own when the squared error on the other masks has risen twice in a row. The weights are then
    those of all masks. An iteration takes ``4 * masks * components * examples`` operations. Beside masks (a bit
    each), outputs and weights, it holds 1 GiB of vectors at most, and a chunk of unpacked masks of 256 MiB.

    Args:
        removed: What each mask ablates.
        outputs: The metric under each mask.
        shares: Penalties to try, in units of the sum of squares of one mask column; infinity leaves the mean alone.

    Raises:
        ValueError: the iteration did not converge.
    """
    n_masks, n_components = removed.shape
    n_examples = outputs.shape[1]
    held = np.arange(n_masks) % HELD_OUT == HELD_OUT - 1
    system, training = _System(removed), _System(Packed(removed.bits[~held], n_components))
    fit = LargeFit(
        weights=torch.empty(n_examples, n_components),
        intercept=torch.empty(n_examples),
        penalties=torch.empty(n_examples),
        held_out=torch.full((n_masks, n_examples), float("nan")),
    )
    step = max(1, GROUP_BYTES // (_BYTES_OF_COMPONENT * n_components + _BYTES_OF_MASK * n_masks))
    for start in range(0, n_examples, step):
        group = slice(start, min(start + step, n_examples))
        y = outputs[:, group].double()
        share, predicted = _chosen(training, removed, y, held, shares)
        fit.held_out[torch.from_numpy(held), group] = predicted.float()
        penalty = share * system.unit
        weights = system.solution(y, penalty)
        fit.weights[group] = weights.T.float()
        fit.intercept[group] = (y.mean(dim=0) - weights.T @ system.mean.double()).float()
        fit.penalties[group] = penalty.float()
    return fit


class _System:
    """The normal equations of centred masks, never held whole."""

    def __init__(self, removed: Packed):
        self.removed, self.mean = removed, keep_mean(removed)
        self.unit = column_square(removed.shape[0], self.mean)

    def moment(self, y: Float[Tensor, "mask example"]) -> Vectors:
        """Right-hand side."""
        centred = y - y.mean(dim=0)
        total = torch.zeros(self.removed.n_sites, y.shape[1], dtype=torch.float64)
        for rows, x in row_chunks(self.removed, self.mean, torch.float64):
            total += x.T @ centred[rows]
        return total

    def product(self, weights: Vectors, penalty: Float[Tensor, " example"]) -> Vectors:
        """Left-hand side, in the dtype of the weights."""
        total = weights * penalty.to(weights.dtype)
        for _, x in row_chunks(self.removed, self.mean, weights.dtype):
            total.addmm_(x.T, x @ weights)
        return total

    def improved(
        self, weights: Vectors, residual: Vectors, penalty: Float[Tensor, " example"], goal: Float[Tensor, " example"]
    ) -> Vectors:
        """Weights after conjugate gradients in float32 have brought the norm of each residual below its goal."""
        step = torch.zeros_like(residual, dtype=torch.float32)
        rest = residual.float()
        direction, square = rest.clone(), rest.double().square().sum(dim=0)
        for _ in range(_MOST_STEPS):
            is_open = square.sqrt() > goal
            if not bool(is_open.any()):
                break
            along = direction[:, is_open]
            image = self.product(along, penalty[is_open])
            length = square[is_open] / (along * image).sum(dim=0).double()
            step[:, is_open] += along * length.float()
            rest[:, is_open] -= image * length.float()
            new = rest[:, is_open].double().square().sum(dim=0)
            direction[:, is_open] = rest[:, is_open] + along * (new / square[is_open]).float()
            square[is_open] = new
        return weights + step.to(weights.dtype)

    def solution(self, y: Float[Tensor, "mask example"], penalty: Float[Tensor, " example"]) -> Vectors:
        """Weights in float64, whose residual is refined until it is small against the right-hand side."""
        finite = torch.isfinite(penalty)
        weights = torch.zeros(self.removed.n_sites, y.shape[1], dtype=torch.float64)
        moment, penalty = self.moment(y)[:, finite], penalty[finite]
        goal = CLOSE * moment.norm(dim=0)
        found, residual, rounds = torch.zeros_like(moment), moment, 0
        while bool(((error := residual.norm(dim=0)) > goal).any()):
            if rounds == _ROUNDS:
                raise ValueError(
                    f"conjugate gradients left residuals of {float((error / moment.norm(dim=0)).max()):.1g}, and "
                    f"{CLOSE:g} was asked for; take fewer masks with estimator='expected_gradient', which needs few"
                )
            # float32 carries a few digits of each residual; the next round starts from the true one
            found = self.improved(found, residual, penalty, torch.maximum(goal / 2, 1e-4 * error))
            residual = moment - self.product(found, penalty)
            rounds += 1
        weights[:, finite] = found
        return weights


def _chosen(
    training: _System,
    removed: Packed,
    y: Float[Tensor, "mask example"],
    held: Bool[np.ndarray, " mask"],
    shares: Sequence[float],
) -> tuple[Float[Tensor, " example"], Float[Tensor, "held example"]]:
    """The penalty of each example with the smallest squared error on held-out masks, and its predictions of them."""
    known, fresh = y[torch.from_numpy(~held)], y[torch.from_numpy(held)]
    masks = Packed(removed.bits[held], removed.n_sites)
    n_examples = y.shape[1]
    moment = training.moment(known)
    goal = ROUGH * moment.norm(dim=0)
    share = torch.full((n_examples,), float("inf"), dtype=torch.float64)
    found = known.mean(dim=0).expand_as(fresh).clone()
    error = ((fresh - found) ** 2).mean(dim=0)
    if float("inf") not in shares:
        error.fill_(float("inf"))
    last, rises = error.clone(), torch.zeros(n_examples)
    weights = torch.zeros_like(moment, dtype=torch.float32)
    for tried in sorted((one for one in shares if one < float("inf")), reverse=True):
        trying = rises < _PATIENCE
        if not bool(trying.any()):
            break
        penalty = torch.full((int(trying.sum()),), tried * training.unit, dtype=torch.float64)
        before = weights[:, trying]
        residual = moment[:, trying] - training.product(before, penalty).double()
        weights[:, trying] = after = training.improved(before, residual, penalty, goal[trying])
        parts = [x @ after for _, x in row_chunks(masks, training.mean)]
        predicted = torch.cat(parts).double() + known[:, trying].mean(dim=0)
        squared = ((fresh[:, trying] - predicted) ** 2).mean(dim=0)
        rises[trying] = torch.where(squared > last[trying], rises[trying] + 1, torch.zeros(()))
        last[trying] = squared
        better = torch.full_like(trying, False)
        better[trying] = squared < error[trying]
        found[:, better] = predicted[:, better[trying]]
        share[better], error[better] = tried, last[better]
        log.info("penalty %g: %d of %d examples tried, %d better", tried, len(penalty), n_examples, int(better.sum()))
    return share, found
