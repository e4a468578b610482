"""How gaps of several methods relate over sites: ratios, and correlations with intervals."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_ablation.studies.correlations import pearson, spearman

TRIMMED = 0.02
"""Share of the sites that is left out of a correlation of logarithms, those furthest from agreement."""


def ratio_table(
    gap: Float[Tensor, "method site"], place: int, methods: Sequence[str], by_position: Sequence[bool]
) -> pd.DataFrame:
    """Gaps of the method at ``place`` over those of each other one, summed up over sites."""
    rows: list[dict[str, object]] = []
    for m, name in enumerate(methods):
        if m == place:
            continue
        usable = gap[m] > 0
        ratio = (gap[place][usable].double() / gap[m][usable].double()).numpy()
        rows.append(
            {
                "method": name,
                "by position": by_position[m],
                "median": float(np.median(ratio)) if len(ratio) else float("nan"),
                "mean": float(ratio.mean()) if len(ratio) else float("nan"),
                "clamped mean": float(np.minimum(ratio, 1).mean()) if len(ratio) else float("nan"),
                "left out": int((~usable).sum()),
            }
        )
    return pd.DataFrame(rows)


def agreement(
    gaps: Float[Tensor, "method site example"],
    place: int,
    methods: Sequence[str],
    *,
    confidence: float,
    n_resamples: int,
    seed: int,
) -> pd.DataFrame:
    """Rank and log correlation over sites of each method with the one at ``place``, with bootstrap intervals.

    Raises:
        ValueError: there are fewer than 3 sites.
    """
    n_examples = gaps.shape[2]
    if gaps.shape[1] < 3:
        raise ValueError(f"a correlation over {gaps.shape[1]} sites says nothing; compare at least 3")
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(n_examples, np.full(n_examples, 1 / n_examples), size=n_resamples) / n_examples
    values = gaps.double().numpy()
    means = values.mean(axis=2)
    resampled = np.einsum("mse,re->mrs", values, drawn)
    rows: list[dict[str, object]] = []
    for m, name in enumerate(methods):
        if m == place:
            continue
        rank, log = spearman(means[m], means[place]), log_correlation(means[m], means[place])
        pairs = list(zip(resampled[m], resampled[place], strict=True))
        ranks = _interval(rank, [spearman(a, b) for a, b in pairs], confidence)
        logs = _interval(log, [log_correlation(a, b) for a, b in pairs], confidence)
        rows.append(
            {
                "method": name,
                "rank": rank,
                "rank low": ranks[0],
                "rank high": ranks[1],
                "log": log,
                "log low": logs[0],
                "log high": logs[1],
            }
        )
    return pd.DataFrame(rows)


def _interval(value: float, resampled: Sequence[float], confidence: float) -> tuple[float, float]:
    """The basic bootstrap interval of a correlation on Fisher's scale.

    Resampling adds noise, which lowers every correlation, so percentiles would lie below the value itself. Correlations
    count as .9999 at most, as the scale has no end.
    """
    limit = 1 - 1e-4
    scaled = np.arctanh(np.clip(np.asarray(resampled, dtype=np.float64), -limit, limit))
    if not np.isfinite(scaled).any() or not np.isfinite(value):
        return float("nan"), float("nan")
    low, high = np.nanpercentile(scaled, [50 * (1 - confidence), 50 * (1 + confidence)])
    middle = 2 * np.arctanh(np.clip(value, -limit, limit))
    return float(np.tanh(middle - high)), float(np.tanh(middle - low))


def log_correlation(a: Float[np.ndarray, " site"], b: Float[np.ndarray, " site"]) -> float:
    """Pearson's correlation of logarithms where both are positive, trimmed; NaN for fewer than 3 sites."""
    usable = (a > 0) & (b > 0)
    if usable.sum() < 3:
        return float("nan")
    x, y = np.log(a[usable]), np.log(b[usable])
    apart = np.abs((x - y) - np.median(x - y))
    kept = np.argsort(apart, kind="stable")[: len(x) - int(TRIMMED * len(x))]
    return float(pearson(torch.from_numpy(x[kept]), torch.from_numpy(y[kept])))
