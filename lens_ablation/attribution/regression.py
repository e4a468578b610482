"""Linear models of outputs on masks: ridge with a penalty chosen for each example, and lasso."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_ablation.engine.removals import Packed

PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, float("inf"))
"""Penalties tried, in units of the sum of squares of one mask column. The last one leaves the mean alone."""

LARGEST_SIDE = 16_000
"""Masks or components, whichever are fewer, that one factorisation takes: 2 GiB in float64."""

_CHUNK = 2048


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearFit:
    """``output = intercept + sum of the weights of what is kept``, one model to an example.

    Attributes:
        weights: ``[example, component]``, in the unit of the output.
        intercept: ``[example]``: the output with everything ablated, as the line has it.
        penalties: The penalty chosen for each example.
        errors: Standard errors of the weights, ``[example, component]``; ``None`` where there is no formula.
        held_out: Predictions for each mask from the others, ``[mask, example]``.
    """

    weights: Float[Tensor, "example component"]
    intercept: Float[Tensor, " example"]
    penalties: Float[Tensor, " example"]
    errors: Float[Tensor, "example component"] | None
    held_out: Float[Tensor, "mask example"]


def fit_ridge(removed: Packed, outputs: Float[Tensor, "mask example"]) -> LinearFit:
    """Ridge regression of all examples at once, from one factorisation of the smaller side.

    Each example's penalty is the one with the smallest squared error on masks left out one by one, which has a
    closed form. Masks are unpacked a few thousand at a time.

    Raises:
        ValueError: there are fewer than 4 masks, or more of both masks and components than memory can take.
    """
    n_masks, n_components = removed.shape
    _require_masks(n_masks)
    if min(n_masks, n_components) > LARGEST_SIDE:
        raise ValueError(
            f"{n_masks} masks of {n_components} components need a factorisation larger than {LARGEST_SIDE}; take "
            "fewer masks with estimator='expected_gradient', which needs few"
        )
    centred = (outputs - outputs.mean(dim=0)).double()
    unit = _column_square(removed)
    if n_masks <= n_components:
        return _dual(removed, outputs, centred, unit)
    return _primal(removed, outputs, centred, unit)


def _dual(removed: Packed, outputs: Tensor, centred: Tensor, unit: float) -> LinearFit:
    mean = _keep_mean(removed)
    kernel = torch.zeros(len(outputs), len(outputs), dtype=torch.float64)
    for columns in _column_chunks(removed):
        x = columns - columns.mean(dim=0)
        kernel += (x @ x.T).double()
    values, vectors = torch.linalg.eigh(kernel)
    values = values.clamp(min=0)
    rotated = vectors.T @ centred
    best = _best(vectors, values, rotated, centred, unit, leverage=lambda shrink: (vectors**2) @ shrink)
    dual = vectors @ (rotated / (values[:, None] + best.penalty)).where(torch.isfinite(best.penalty), torch.zeros(()))
    weights = torch.zeros(outputs.shape[1], removed.n_sites, dtype=torch.float64)
    squared = torch.zeros(len(values), removed.n_sites, dtype=torch.float64)
    for rows, x in _row_chunks(removed, mean):
        weights += dual[rows].T @ x.double()
        squared += vectors[rows].T @ x.double()
    return _finished(weights, mean, outputs, best, squared**2, values)


def _primal(removed: Packed, outputs: Tensor, centred: Tensor, unit: float) -> LinearFit:
    mean = _keep_mean(removed)
    gram = torch.zeros(removed.n_sites, removed.n_sites, dtype=torch.float64)
    moment = torch.zeros(removed.n_sites, outputs.shape[1], dtype=torch.float64)
    for rows, x in _row_chunks(removed, mean):
        gram += (x.T @ x).double()
        moment += (x.T @ centred[rows].float()).double()
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp(min=1e-9)
    projected = torch.cat([x @ vectors.float() for _, x in _row_chunks(removed, mean)])
    basis = projected / values.sqrt().float()
    rotated = (vectors.T @ moment) / values.sqrt()[:, None]
    squares = basis**2
    best = _best(basis, values, rotated, centred, unit, leverage=lambda shrink: squares @ shrink.float())
    scaled = (values.sqrt()[:, None] * rotated / (values[:, None] + best.penalty)).where(
        torch.isfinite(best.penalty), torch.zeros(())
    )
    weights = (vectors @ scaled).T
    return _finished(weights, mean, outputs, best, vectors.T**2 * values[:, None], values)


@dataclass(frozen=True, eq=False)
class _Best:
    penalty: Float[Tensor, " example"]
    error: Float[Tensor, " example"]
    held_out: Float[Tensor, "mask example"]


def _best(basis: Tensor, values: Tensor, rotated: Tensor, centred: Tensor, unit: float, *, leverage) -> _Best:
    """The penalty of each example with the smallest leave-one-out error, and its predictions."""
    n_masks = len(centred)
    chosen = torch.full((centred.shape[1],), float("inf"), dtype=torch.float64)
    error = torch.full_like(chosen, float("inf"))
    held_out = torch.zeros_like(centred)
    for share in PENALTIES:
        penalty = share * unit
        shrink = values / (values + penalty) if penalty < float("inf") else torch.zeros_like(values)
        fitted = (basis @ (shrink[:, None] * rotated).to(basis.dtype)).double()
        left_out = 1 - 1 / n_masks - leverage(shrink).double()
        residual = (centred - fitted) / left_out.clamp(min=1e-6)[:, None]
        squared = (residual**2).mean(dim=0)
        better = squared < error
        chosen[better], error[better] = penalty, squared[better]
        held_out[:, better] = (centred - residual)[:, better]
    return _Best(chosen, error, held_out)


def _finished(
    weights: Tensor, mean: Tensor, outputs: Tensor, best: _Best, squared: Tensor, values: Tensor
) -> LinearFit:
    """The fit with intercept and standard errors; ``squared`` holds squares of components along each direction."""
    noise = best.error.sqrt()
    errors = torch.zeros_like(weights)
    for penalty in best.penalty.unique().tolist():
        here = best.penalty == penalty
        if penalty < float("inf"):
            spread = (squared / ((values[:, None] + penalty) ** 2)).sum(dim=0).sqrt()
            errors[here] = noise[here, None] * spread
    intercept = outputs.mean(dim=0).double() - weights @ mean.double()
    return LinearFit(
        weights=weights.float(),
        intercept=intercept.float(),
        penalties=best.penalty.float(),
        errors=errors.float(),
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
    parts = [x @ weights.T for _, x in _row_chunks(removed, torch.zeros(removed.n_sites))]
    return torch.cat(parts) + intercept


def _require_masks(n_masks: int, least: int = 4) -> None:
    if n_masks < least:
        raise ValueError(f"{n_masks} masks are too few to fit a linear model; take at least {least}")


def _keep_mean(removed: Packed) -> Float[Tensor, " component"]:
    total = sum(x.sum(dim=0).double() for _, x in _row_chunks(removed, torch.zeros(removed.n_sites)))
    return (torch.as_tensor(total) / removed.shape[0]).float()


def _column_square(removed: Packed) -> float:
    """Mean sum of squares of a centred mask column."""
    mean = _keep_mean(removed)
    return float(removed.shape[0] * (mean * (1 - mean)).mean().clamp(min=1e-6))


def _row_chunks(
    removed: Packed, mean: Float[Tensor, " component"]
) -> Iterator[tuple[slice, Float[Tensor, "chunk component"]]]:
    """Keep masks less their mean, some at a time."""
    n_masks = removed.shape[0]
    for start in range(0, n_masks, _CHUNK):
        stop = min(start + _CHUNK, n_masks)
        kept = ~removed.flags(np.arange(start, stop))
        yield slice(start, stop), torch.from_numpy(kept).float() - mean


def _column_chunks(removed: Packed) -> Iterator[Float[Tensor, "mask chunk"]]:
    """Keep masks of some components at a time."""
    step = 8 * _CHUNK
    for start in range(0, removed.n_sites, step):
        stop = min(start + step, removed.n_sites)
        bits = removed.bits[:, start // 8 : -(-stop // 8)]
        yield torch.from_numpy(1 - np.unpackbits(bits, axis=1, count=stop - start)).float()
