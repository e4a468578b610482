"""What was measured of activations: moments, histograms and peaks of whole hooks, with their provenance."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor

from lens_ablation.errors import DamagedFile, StatisticsMismatch
from lens_ablation.files import read_folder, write_folder
from lens_ablation.models.anatomy import ACTIVATIONS
from lens_ablation.sites import HookPoint
from lens_ablation.statistics.histogram import Histogram
from lens_ablation.statistics.moments import Moments, PositionMeans
from lens_ablation.statistics.peaks import PeakEstimator, estimator_from
from lens_ablation.statistics.provenance import Provenance
from lens_ablation.statistics.shapes import shapes

_FILE_KIND = "activation-statistics"

AXES: Mapping[str, tuple[str, ...]] = {
    "z": ("head", "unit"),
    "post": ("unit",),
    "pattern": ("head", "query", "key"),
    "attn_out": ("unit",),
    "mlp_out": ("unit",),
    "q": ("head", "unit"),
    "k": ("head", "unit"),
    "v": ("head", "unit"),
    "ln1_out": ("unit",),
    "ln2_out": ("unit",),
    "pre": ("unit",),
    "pre_linear": ("unit",),
}
"""Axes of the coordinates at each kind of hook."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PointStatistics:
    """Statistics of one hook, each tensor in the shape of the activation without rows and positions.

    That is ``[head, d_head]`` at ``hook_z``, ``[width]`` at ``hook_post`` and layer outputs, and
    ``[head, query, key]`` for patterns, whose queries and keys count from each row's first real token. Where no
    value was seen (a query or key that no row had), the count is 0 and the statistics are NaN.

    Attributes:
        point: The hook.
        moments: Sums behind the moments.
        histogram: Counts between each coordinate's smallest and largest value; ``None`` without histograms.
        peak: Where the values are densest; ``None`` without histograms.
        positions: Sums by position; ``None`` unless asked for.
    """

    point: HookPoint
    moments: Moments
    histogram: Histogram | None
    peak: Float[Tensor, "*coordinate"] | None
    positions: PositionMeans | None

    @property
    def count(self) -> Int[Tensor, "*coordinate"]:
        """How many values were seen."""
        return self.moments.count

    @property
    def mean(self) -> Float64[Tensor, "*coordinate"]:
        """Mean."""
        return self.moments.mean

    @property
    def variance(self) -> Float64[Tensor, "*coordinate"]:
        """Mean squared deviation from the mean."""
        return self.moments.variance

    @property
    def minimum(self) -> Float64[Tensor, "*coordinate"]:
        """Smallest value."""
        return self.moments.minimum.where(self.count > 0, torch.nan)

    @property
    def maximum(self) -> Float64[Tensor, "*coordinate"]:
        """Largest value."""
        return self.moments.maximum.where(self.count > 0, torch.nan)

    @property
    def skewness(self) -> Float64[Tensor, "*coordinate"]:
        """Third standardised moment; NaN for a constant."""
        return self.moments.skewness

    @property
    def kurtosis(self) -> Float64[Tensor, "*coordinate"]:
        """Fourth standardised moment, 3 for a Gaussian; NaN for a constant."""
        return self.moments.kurtosis

    @property
    def zero_share(self) -> Float64[Tensor, "*coordinate"]:
        """Share of values that are exactly 0."""
        return self.moments.zero_share

    @property
    def bin_width(self) -> Float32[Tensor, "*coordinate"] | None:
        """Width of a histogram bin, in the activation's unit: how finely the peak is known."""
        return None if self.histogram is None else self.histogram.bin_width

    @property
    def position_mean(self) -> Float64[Tensor, "pos *coordinate"] | None:
        """Mean at each position from the row's first real token; ``None`` unless asked for."""
        return None if self.positions is None else self.positions.mean

    @property
    def shapes(self) -> np.ndarray | None:
        """Label of each coordinate's distribution, see ``lens_ablation.statistics.shapes``."""
        return None if self.histogram is None else shapes(self.moments, self.histogram)

    def merge(self, other: "PointStatistics", estimator: PeakEstimator | None) -> "PointStatistics":
        """Statistics of both shards, with the peaks found anew.

        Raises:
            ValueError: histograms were counted between different bounds, or the peaks need the values again.
        """
        histogram = peak = positions = None
        moments = self.moments.merge(other.moments)
        if self.histogram is not None and other.histogram is not None:
            histogram = self.histogram.merge(other.histogram)
            found = None if estimator is None else estimator.from_histogram(histogram)
            if found is None:
                raise ValueError(
                    f"peaks by {estimator or 'an unknown estimator'} cannot be found from merged histograms. "
                    "Collect them on all data at once, or on shards with OwnRange or Smoothed."
                )
            peak = seen_only(found, moments)
        if self.positions is not None and other.positions is not None:
            positions = self.positions.merge(other.positions)
        return replace(self, moments=moments, histogram=histogram, peak=peak, positions=positions)

    def to_dataframe(self) -> pd.DataFrame:
        """One row to a coordinate."""
        columns: dict[str, object] = {"hook": self.point.name, "layer": self.point.layer}
        places = np.indices(tuple(self.count.shape)).reshape(self.count.ndim, -1)
        columns |= dict(zip(AXES[self.point.activation], places, strict=True))
        measured = ("count", "mean", "variance", "minimum", "maximum", "skewness", "kurtosis", "zero_share")
        for name in (*measured, "bin_width", "peak"):
            value = getattr(self, name)
            if value is not None:
                columns[name] = value.flatten().numpy()
        labels = self.shapes
        if labels is not None:
            columns["shape"] = labels.reshape(-1)
        return pd.DataFrame(columns)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ActivationStatistics:
    """Statistics of the activations of some hooks, and what they were measured on.

    ``statistics[hook]`` gives one hook's, by ``HookPoint`` or by its TransformerLens name.

    Attributes:
        points: Statistics by hook.
        provenance: Model, data and settings behind them.
        estimator: The definition of the peak; ``None`` without peaks, or for one that is not of this package and
            was read from a file.
    """

    points: Mapping[HookPoint, PointStatistics]
    provenance: Provenance
    estimator: PeakEstimator | None

    def __getitem__(self, hook: HookPoint | str) -> PointStatistics:
        for point, statistics in self.points.items():
            if hook in (point, point.name):
                return statistics
        held = ", ".join(str(point) for point in self.points)
        raise StatisticsMismatch(
            f"these statistics hold nothing on {hook}; they hold {held}. Collect again with sites at that hook."
        )

    def __iter__(self) -> Iterator[HookPoint]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    def __repr__(self) -> str:
        counts = [point.count for point in self.points.values()]
        n_coordinates, most = sum(count.numel() for count in counts), max(int(count.max()) for count in counts)
        return (
            f"ActivationStatistics({self.provenance.model_name}: {len(self)} hooks, {n_coordinates} coordinates, "
            f"{most} samples, peaks {self.provenance.measurement.get('peaks')})"
        )

    def shapes(self) -> dict[HookPoint, np.ndarray]:
        """Label of each coordinate's distribution by hook; empty without histograms."""
        labels = {point: statistics.shapes for point, statistics in self.points.items()}
        return {point: found for point, found in labels.items() if found is not None}

    def merge(self, other: "ActivationStatistics") -> "ActivationStatistics":
        """Statistics of two shards of the data together, as if measured at once.

        Moments and per-position means merge always, up to float64 rounding. Histograms, and the peaks found from
        them, merge exactly if both shards counted between the same bounds, which takes two stages: merge the
        moments of all shards (``histograms=False``), then count each shard with ``ranges=`` what came out.

        Raises:
            StatisticsMismatch: model, hooks or settings differ, bounds differ, or the shards share data.
        """
        provenance = self.provenance.with_data_of(other.provenance)
        try:
            merged = {
                point: statistics.merge(other[point], self.estimator) for point, statistics in self.points.items()
            }
        except ValueError as error:
            raise StatisticsMismatch(str(error)) from error
        return replace(self, points=merged, provenance=provenance)

    def to_dataframe(self) -> pd.DataFrame:
        """One row to a coordinate of a hook: layer, address, count, moments, bin width, peak and shape."""
        tables = [statistics.to_dataframe() for statistics in self.points.values()]
        return pd.concat(tables, ignore_index=True)

    def save(self, folder: str | Path) -> Path:
        """Write the statistics to a folder: tensors as safetensors, provenance as JSON.

        Raises:
            OSError: the folder cannot be written.
        """
        tensors = {
            f"{point.name}/{name}": tensor
            for point, statistics in self.points.items()
            for name, tensor in _tensors(statistics).items()
        }
        estimator = self.estimator
        settings = {
            "provenance": self.provenance.to_json(),
            "points": [[point.activation, point.layer] for point in self.points],
            "estimator": None if estimator is None else [type(estimator).__name__, vars(estimator)],
        }
        return write_folder(folder, _FILE_KIND, tensors, settings)

    @classmethod
    def load(cls, folder: str | Path) -> "ActivationStatistics":
        """Read statistics that ``save`` wrote; needs no model.

        Raises:
            DamagedFile: the folder is truncated, was changed, or holds something else.
            FileNotFoundError: there is no such folder.
        """
        tensors, settings = read_folder(folder, _FILE_KIND)
        try:
            estimator = settings["estimator"]
            points = [_point(*entry) for entry in settings["points"]]
            return cls(
                points={point: _restored(point, tensors) for point in points},
                provenance=Provenance.from_json(settings["provenance"]),
                estimator=None if estimator is None else estimator_from(*estimator),
            )
        except (TypeError, ValueError) as error:
            if isinstance(error, DamagedFile):
                raise
            raise DamagedFile(
                f"the statistics in {folder} were changed after they were written: {error}. Collect them again."
            ) from error


def seen_only(peak: Float[Tensor, "*coordinate"], moments: Moments) -> Float[Tensor, "*coordinate"]:
    """Peaks, NaN where no value was seen."""
    return peak.where(moments.count > 0, torch.nan)


_PARTS = {"moments": Moments, "histogram": Histogram, "positions": PositionMeans}


def _tensors(statistics: PointStatistics) -> dict[str, Tensor]:
    found = {} if statistics.peak is None else {"peak": statistics.peak}
    for part, kind in _PARTS.items():
        value = getattr(statistics, part)
        if value is not None:
            found |= {f"{part}/{f.name}": getattr(value, f.name) for f in fields(kind)}
    return found


def _point(activation: object, layer: object) -> HookPoint:
    if activation not in ACTIVATIONS or type(layer) is not int or layer < 0:
        raise ValueError(f"there is no hook {activation!r} of layer {layer!r}")
    return HookPoint(str(activation), layer)


def _restored(point: HookPoint, tensors: Mapping[str, Tensor]) -> PointStatistics:
    """One hook's statistics from its tensors, whose dtypes and shapes must agree."""
    shape = tensors[f"{point.name}/moments/count"].shape
    if len(shape) != len(AXES.get(point.activation, ())):
        raise ValueError(f"{point.name} has coordinates of shape {tuple(shape)}")
    parts: dict[str, Any] = {}
    for part, kind in _PARTS.items():
        names = [f.name for f in fields(kind)]
        present = part == "moments" or f"{point.name}/{part}/{names[0]}" in tensors
        found = {name: tensors[f"{point.name}/{part}/{name}"] for name in names} if present else None
        for name, tensor in (found or {}).items():
            _check(f"{point.name}/{part}/{name}", tensor, shape)
        parts[part] = None if found is None else kind(**found)
    peak = tensors.get(f"{point.name}/peak")
    if peak is not None:
        _check(f"{point.name}/peak", peak, shape)
    return PointStatistics(point=point, peak=peak, **parts)


_DTYPES = {
    "count": torch.int64,
    "zeros": torch.int64,
    "counts": torch.int32,
    "lowest": torch.float32,
    "highest": torch.float32,
}


def _check(name: str, tensor: Tensor, shape: torch.Size) -> None:
    leaf = name.rsplit("/", 1)[1]
    trimmed = {
        "positions/count": tensor.shape[1:] + shape,
        "positions/total": tensor.shape[1:],
        "histogram/counts": tensor.shape[:-1],
    }
    found = next((trim for ending, trim in trimmed.items() if name.endswith(ending)), tensor.shape)
    dtype = tensor.dtype == _DTYPES.get(leaf, torch.float64) or (leaf == "peak" and tensor.is_floating_point())
    if found != shape or not dtype:
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}")
