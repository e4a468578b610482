"""Statistics of activations, measured in streaming passes.

- ``collect_statistics``: moments, histograms and peaks of whole hooks on some data.
- ``ActivationStatistics``, ``PointStatistics``: the result; merges, saves, loads, makes a table.
- ``StatisticsCache``: statistics on disk, found again by their ``Provenance``.
- ``OwnRange``, ``GlobalRange``, ``CoarseToFine``, ``Averaged``, ``Smoothed``, ``KernelDensity``, ``Mode``: what
  "the peak" of a coordinate means.
"""

from lens_ablation.statistics.activation_statistics import ActivationStatistics, PointStatistics
from lens_ablation.statistics.cache import StatisticsCache
from lens_ablation.statistics.collect import collect_statistics
from lens_ablation.statistics.peaks import (
    Averaged,
    CoarseToFine,
    GlobalRange,
    KernelDensity,
    Mode,
    OwnRange,
    PeakEstimator,
    Smoothed,
)
from lens_ablation.statistics.provenance import Provenance

__all__ = [
    "ActivationStatistics",
    "Averaged",
    "CoarseToFine",
    "GlobalRange",
    "KernelDensity",
    "Mode",
    "OwnRange",
    "PeakEstimator",
    "PointStatistics",
    "Provenance",
    "Smoothed",
    "StatisticsCache",
    "collect_statistics",
]
