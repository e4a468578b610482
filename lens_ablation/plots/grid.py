"""A sweep laid out for drawing: layers down, heads or units across, and one scale around zero."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from lens_ablation.plots.style import metric_with_unit
from lens_ablation.sites import Site
from lens_ablation.studies.intervals import weighted_mean
from lens_ablation.studies.sweep import SweepResult

_NOUNS = {
    "head": ("head", "head"),
    "pattern": ("attention pattern", "head"),
    "z": ("attention neuron", "head · coordinate of hook_z"),
    "neuron": ("MLP neuron", "neuron"),
    "attention": ("attention layer", "layer"),
    "mlp": ("MLP", "layer"),
    "attn_in": ("input of attention", "coordinate of ln1.hook_out"),
    "mlp_in": ("input of the MLP", "coordinate of ln2.hook_out"),
    "q": ("row of queries", "head · coordinate of hook_q"),
    "k": ("row of keys", "key head · coordinate of hook_k"),
    "v": ("row of values", "value head · coordinate of hook_v"),
    "attn_out": ("output of attention", "coordinate of hook_attn_out"),
    "pre": ("MLP row", "coordinate of hook_pre"),
    "pre_linear": ("MLP row", "coordinate of hook_pre_linear"),
    "mlp_out": ("output of the MLP", "coordinate of hook_mlp_out"),
}

CLIP_AT, LEEWAY = 3.0, 1.25
"""The scale ends at so many root mean squares of the effects, if the largest lies beyond that by this factor."""

ROUNDING = 1e-6
"""Effects below this part of the largest are zeros, and say nothing about the usual size of an effect."""


@dataclass(frozen=True, eq=False)
class EffectGrid:
    """Effects by layer and column; NaN where nothing was measured or the effect is not finite.

    Attributes:
        mean: Mean effect.
        low: Lower end of its interval.
        high: Upper end.
        value: Mean of the metric under the ablation.
        names: Name of each site of the model.
        measured: Whether the sweep had the site.
        tick_places: Columns that get a tick.
        tick_labels: Its text.
    """

    mean: Float[np.ndarray, "layer column"]
    low: Float[np.ndarray, "layer column"]
    high: Float[np.ndarray, "layer column"]
    value: Float[np.ndarray, "layer column"]
    names: np.ndarray
    measured: Bool[np.ndarray, "layer column"]
    tick_places: list[float]
    tick_labels: list[str]

    @property
    def shape(self) -> tuple[int, int]:
        """Layers and columns."""
        return self.mean.shape[0], self.mean.shape[1]


def effect_grid(result: SweepResult, *, confidence: float = 0.95) -> EffectGrid:
    """The effects of a sweep by layer and column: head, unit, (head, unit), or one column for whole layers."""
    sites = result.sites
    shape = sites.shape
    n_layers, n_columns = shape[0], int(np.prod(shape[1:], dtype=np.int64))
    place = np.ravel_multi_index(tuple(sites.addresses.T), shape)
    low, high = result.interval(confidence)

    def laid_out(values: np.ndarray) -> np.ndarray:
        cells = np.full(n_layers * n_columns, np.nan)
        cells[place] = np.where(np.isfinite(values), values, np.nan)
        return cells.reshape(n_layers, n_columns)

    value = weighted_mean(result.values, result.weights)
    measured = np.zeros(n_layers * n_columns, dtype=bool)
    measured[place] = True
    names = [str(Site(sites.kind, **dict(zip(sites.axes, map(int, at), strict=True)))) for at in np.ndindex(*shape)]
    places, labels = _ticks(shape)
    return EffectGrid(
        mean=laid_out(result.mean.numpy()),
        low=laid_out(low.numpy()),
        high=laid_out(high.numpy()),
        value=laid_out(value.numpy()),
        names=np.array(names, dtype=object).reshape(n_layers, n_columns),
        measured=measured.reshape(n_layers, n_columns),
        tick_places=places,
        tick_labels=labels,
    )


def scale_limit(grids: Sequence[EffectGrid]) -> float:
    """Where the common scale ``-limit .. limit`` ends: the largest effect, or less if outliers would eat the scale."""
    effects = np.concatenate([grid.mean[np.isfinite(grid.mean)] for grid in grids])
    largest = float(np.abs(effects).max(initial=0))
    if largest == 0:
        return 1.0
    effects = effects[np.abs(effects) > ROUNDING * largest]
    usual = CLIP_AT * np.sqrt((effects**2).mean())
    return float(usual if largest >= LEEWAY * usual else largest)


def site_noun(kind: str) -> str:
    """What figures call one site of a kind."""
    return _NOUNS[kind][0]


def column_title(kind: str) -> str:
    """Title of the axis along which a layer's sites lie."""
    return _NOUNS[kind][1]


def effect_words(result: SweepResult) -> str:
    """What the numbers are, with their unit: ``change of logit difference (logits)``."""
    return f"change of {metric_with_unit(result.settings)}"


def _ticks(shape: tuple[int, ...]) -> tuple[list[float], list[str]]:
    """Every head, or every second of many; of units round numbers."""
    if len(shape) == 3:
        n_heads, width = shape[1:]
        step = max(1, -(-n_heads // 16))
        shown = range(0, n_heads, step)
        return [head * width + (width - 1) / 2 for head in shown], [f"H{head}" for head in shown]
    n = shape[1] if len(shape) == 2 else 1
    step = 1 if n <= 16 else next(size for size in (2**power for power in range(64)) if n / size <= 10)
    return [float(i) for i in range(0, n, step)], [str(i) for i in range(0, n, step)]
