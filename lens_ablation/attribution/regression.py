"""Linear models of outputs on masks: ridge with a penalty chosen for each example, and lasso."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_ablation.attribution.large_regression import fit_large
from lens_ablation.attribution.packed_masks import column_chunks, column_square, keep_mean, row_chunks
from lens_ablation.engine.removals import Packed

PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, float("inf"))
"""Penalties tried, in units of the sum of squares of one mask column. The last one leaves the mean alone."""

LARGEST_SIDE = 16_000
"""Masks or components, whichever are fewer, that one factorisation takes: 2 GiB in float64. What is larger is
solved by iteration."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearFit:
    """``output = intercept + sum of the weights of what is kept``, one model to an example.

    Attributes:
        weights: ``[example, component]``, in the unit of the output.
        intercept: ``[example]``: the output with everything ablated, as the line has it.
        penalties: The penalty chosen for each example.
        errors: Standard errors of the weights, ``[example, component]``; ``None`` where there is no formula.
        held_out: Predictions for each mask from fits without it, ``[mask, example]``; NaN where no fit left it out.
    """

    weights: Float[Tensor, "example component"]
    intercept: Float[Tensor, " example"]
    penalties: Float[Tensor, " example"]
    errors: Float[Tensor, "example component"] | None
    held_out: Float[Tensor, "mask example"]


def fit_ridge(removed: Packed, outputs: Float[Tensor, "mask example"]) -> LinearFit:
    """Ridge regression of all examples at once, with masks unpacked some at a time.

    With up to ``LARGEST_SIDE`` masks or components, whichever are fewer, one factorisation of that side serves all
    penalties. Each example's penalty is the one with the smallest squared error on masks left out one by one, which
    has a closed form. Memory is some four squares of the smaller side in float64, up to 1 GiB of unpacked masks,
    and where masks are more than components once masks times components in float32.

    Beyond that, conjugate gradients solve for each penalty in turn, which is slower and takes little memory
    (``fit_large``). Penalties are chosen on every fifth mask, and weights have no standard errors.

    Raises:
        ValueError: there are fewer than 4 masks, or the iteration did not converge.
    """
    n_masks, n_components = removed.shape
    _require_masks(n_masks)
    if min(n_masks, n_components) > LARGEST_SIDE:
        found = fit_large(removed, outputs, PENALTIES)
        return LinearFit(**found._asdict(), errors=None)
    mean = keep_mean(removed)
    fit = _dual if n_masks <= n_components else _primal
    return fit(removed, mean, outputs, column_square(n_masks, mean))


def _dual(removed: Packed, mean: Tensor, outputs: Tensor, unit: float) -> LinearFit:
    centred = (outputs - outputs.mean(dim=0)).double()
    kernel = torch.zeros(len(outputs), len(outputs), dtype=torch.float64)
    for _, x in column_chunks(removed, mean):
        kernel += (x @ x.T).double()
    values, vectors = torch.linalg.eigh(kernel)
    del kernel
    values = values.clamp(min=0)
    shrinks = _shrinks(values, unit)
    rotated = vectors.T @ centred
    best = _best(vectors, shrinks, (vectors**2) @ shrinks.T, rotated, centred, unit)
    dual = (vectors @ (rotated / (values[:, None] + best.penalty))).T
    weights = torch.empty(outputs.shape[1], removed.n_sites, dtype=torch.float64)
    spread = torch.empty(len(best.penalties), removed.n_sites, dtype=torch.float64)
    inverse = 1 / (values + best.penalties[:, None]) ** 2
    directions = vectors.T.float()
    for columns, x in column_chunks(removed, mean):
        weights[:, columns] = dual @ x.double()
        spread[:, columns] = (inverse.float() @ (directions @ x).square_()).double()
    return _finished(weights, mean, outputs, best, spread)


def _primal(removed: Packed, mean: Tensor, outputs: Tensor, unit: float) -> LinearFit:
    centred = (outputs - outputs.mean(dim=0)).double()
    gram = torch.zeros(removed.n_sites, removed.n_sites, dtype=torch.float64)
    moment = torch.zeros(removed.n_sites, outputs.shape[1], dtype=torch.float64)
    for rows, x in row_chunks(removed, mean):
        gram += (x.T @ x).double()
        moment += (x.T @ centred[rows].float()).double()
    values, vectors = torch.linalg.eigh(gram)
    del gram
    values = values.clamp(min=1e-9)
    shrinks = _shrinks(values, unit)
    turned = (vectors / values.sqrt()).float()
    basis = torch.empty(removed.shape)
    leverage = torch.empty(len(outputs), len(shrinks), dtype=torch.float64)
    for rows, x in row_chunks(removed, mean):
        torch.matmul(x, turned, out=basis[rows])
        leverage[rows] = (basis[rows].square() @ shrinks.T.float()).double()
    rotated = vectors.T @ moment
    best = _best(basis, shrinks, leverage, rotated / values.sqrt()[:, None], centred, unit)
    weights = (vectors @ (rotated / (values[:, None] + best.penalty))).T
    spread = (values / (values + best.penalties[:, None]) ** 2) @ vectors.T.square()
    return _finished(weights, mean, outputs, best, spread)


def _shrinks(values: Float[Tensor, " direction"], unit: float) -> Float[Tensor, "penalty direction"]:
    """What each penalty leaves of each direction."""
    return torch.stack([values / (values + share * unit) for share in PENALTIES])


@dataclass(frozen=True, eq=False)
class _Best:
    """Penalty and error of each example, predictions of masks left out, and the penalties that occur, ascending."""

    penalty: Float[Tensor, " example"]
    error: Float[Tensor, " example"]
    held_out: Float[Tensor, "mask example"]

    @property
    def penalties(self) -> Float[Tensor, " penalty"]:
        return self.penalty.unique()


def _best(
    basis: Float[Tensor, "mask direction"],
    shrinks: Float[Tensor, "penalty direction"],
    leverage: Float[Tensor, "mask penalty"],
    rotated: Float[Tensor, "direction example"],
    centred: Float[Tensor, "mask example"],
    unit: float,
) -> _Best:
    """The penalty of each example with the smallest leave-one-out error, and its predictions."""
    n_masks = len(centred)
    chosen = torch.full((centred.shape[1],), float("inf"), dtype=torch.float64)
    error = torch.full_like(chosen, float("inf"))
    held_out = torch.zeros_like(centred)
    for place, share in enumerate(PENALTIES):
        fitted = (basis @ (shrinks[place, :, None] * rotated).to(basis.dtype)).double()
        left_out = 1 - 1 / n_masks - leverage[:, place]
        residual = (centred - fitted) / left_out.clamp(min=1e-6)[:, None]
        squared = (residual**2).mean(dim=0)
        better = squared < error
        chosen[better], error[better] = share * unit, squared[better]
        held_out[:, better] = (centred - residual)[:, better]
    return _Best(chosen, error, held_out)


def _finished(
    weights: Float[Tensor, "example component"],
    mean: Float[Tensor, " component"],
    outputs: Float[Tensor, "mask example"],
    best: _Best,
    spread: Float[Tensor, "penalty component"],
) -> LinearFit:
    """The fit with intercept and standard errors; ``spread`` is the variance of weights for unit noise."""
    which = torch.searchsorted(best.penalties, best.penalty)
    intercept = outputs.mean(dim=0).double() - weights @ mean.double()
    return LinearFit(
        weights=weights.float(),
        intercept=intercept.float(),
        penalties=best.penalty.float(),
        errors=(best.error.sqrt()[:, None] * spread[which].sqrt()).float(),
        held_out=(best.held_out + outputs.mean(dim=0)).float(),
    )


def fit_lasso(removed: Packed, outputs: Float[Tensor, "mask example"], seed: int = 0) -> LinearFit:
    """Lasso by scikit-learn, one example after the other, each with a penalty chosen by five-fold cross-validation.

    Raises:
        ValueError: there are fewer than 20 masks.
    """
    from sklearn.linear_model import LassoCV
    from sklearn.model_selection import KFold, cross_val_predict

    _require_masks(len(outputs), least=20)
    x = 1.0 - removed.flags(np.arange(len(outputs))).astype(np.float32)
    folds = KFold(5, shuffle=True, random_state=seed)
    weights, intercept, penalties, held_out = [], [], [], []
    for y in outputs.T.double().numpy():
        model = LassoCV(alphas=20, cv=folds, precompute=x.shape[1] <= len(x), max_iter=5000).fit(x, y)
        weights.append(model.coef_)
        intercept.append(model.intercept_)
        penalties.append(model.alpha_)
        held_out.append(cross_val_predict(_lasso(model.alpha_), x, y, cv=folds))
    return LinearFit(
        weights=torch.from_numpy(np.stack(weights)).float(),
        intercept=torch.tensor(intercept).float(),
        penalties=torch.tensor(penalties).float(),
        errors=None,
        held_out=torch.from_numpy(np.stack(held_out, axis=1)).float(),
    )


def _lasso(alpha: float) -> object:
    from sklearn.linear_model import Lasso

    return Lasso(alpha=alpha, max_iter=5000)


def predicted(
    removed: Packed, weights: Float[Tensor, "example component"], intercept: Float[Tensor, " example"]
) -> Float[Tensor, "mask example"]:
    """What linear models say of masks."""
    parts = [x @ weights.T for _, x in row_chunks(removed)]
    return torch.cat(parts) + intercept


def _require_masks(n_masks: int, least: int = 4) -> None:
    if n_masks < least:
        raise ValueError(f"{n_masks} masks are too few to fit a linear model; take at least {least}")
