"""Results as sections of a report, as folders and tables, and as lines for a terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from lens_ablation.plots.comparison import comparison_figure
from lens_ablation.plots.curves import pruning_figure
from lens_ablation.plots.heatmap import sweep_heatmap
from lens_ablation.plots.histograms import activation_histogram, distribution_gallery
from lens_ablation.plots.style import metric_with_unit, number, signed
from lens_ablation.report.html import Part, Section
from lens_ablation.sites import Kind, Site
from lens_ablation.statistics.activation_statistics import ActivationStatistics
from lens_ablation.studies.pruning import PruningCurve
from lens_ablation.studies.sweep import SweepResult

RESULTS, TABLES, STATISTICS = "results", "tables", "statistics"

_UNIT_KINDS: Mapping[str, tuple[Kind, tuple[str, ...]]] = {
    "z": ("z", ("head", "unit")),
    "post": ("neuron", ("unit",)),
}


class Effect(NamedTuple):
    """The mean effect of ablating a site, with its 95 % interval, in the metric's unit."""

    site: str
    effect: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.site} {signed(self.effect)} [{signed(self.low)}, {signed(self.high)}]"


def strongest(result: SweepResult, n: int = 10) -> list[Effect]:
    """The sites with the largest mean effects, either way.

    Example:
        >>> import lens_ablation as la
        >>> from lens_ablation.report.sections import strongest
        >>> model = la.load_model("tiny-lm")
        >>> result = la.sweep(model, la.tasks.ioi(model, n=8), la.heads(model), la.Zero(), progress=False)
        >>> len(strongest(result, 3))
        3
    """
    low, high = result.interval()
    return [
        Effect(str(site), float(result.mean[i]), float(low[i]), float(high[i]))
        for site, i in zip(result.strongest(n), result.ranking[:n].tolist(), strict=True)
    ]


def sweep_lines(result: SweepResult, n: int = 5) -> list[str]:
    """The strongest sites for a terminal, one line each."""
    head = f"{result.method_name}: change of {metric_with_unit(result.settings)}, with its 95 % interval"
    return [head, *(f"  {effect}" for effect in strongest(result, n))]


def curve_lines(curve: PruningCurve) -> list[str]:
    """Mean over seeds at each fraction for a terminal, one line to a fraction."""
    mean = curve.mean.mean(dim=1)
    width = max(8, *(len(method) for method in curve.methods)) + 2
    head = f"{metric_with_unit(curve.settings)}, mean of {len(curve.seeds)} seeds"
    names = "  removed" + "".join(f"{method:>{width}}" for method in curve.methods)
    rows = [
        f"  {removed / curve.n_sites:>7.0%}" + "".join(f"{number(float(value)):>{width}}" for value in mean[:, i])
        for i, removed in enumerate(curve.n_removed)
    ]
    return [head, names, *rows]


def sweep_section(title: str, results: Sequence[SweepResult], text: str) -> Section:
    """Heatmaps of one or several sweeps on one scale, their strongest sites and their settings."""
    ranked = {result.method_name: strongest(result) for result in results}
    settings = _settings({result.method_name: result.settings for result in results})
    if len(results) == 1:
        table = pd.DataFrame(ranked[results[0].method_name])
        return Section(title, [text, sweep_heatmap(results[0]), table, settings])
    columns = {method: list(map(str, effects)) for method, effects in ranked.items()}
    ranks = pd.DataFrame({"rank": range(1, len(next(iter(columns.values()))) + 1), **columns})
    metric = metric_with_unit(results[0].settings)
    legend = f"The strongest sites under each method: change of {metric} [95 % interval]."
    return Section(title, [text, comparison_figure(results), legend, ranks, settings])


def pruning_section(title: str, curve: PruningCurve, text: str) -> Section:
    """A pruning curve, its means over seeds as a table, and its settings."""
    mean = curve.mean.mean(dim=1)
    removed = {"removed (%)": [100 * n / curve.n_sites for n in curve.n_removed], "removed": curve.n_removed}
    table = pd.DataFrame({**removed, **{method: mean[i].tolist() for i, method in enumerate(curve.methods)}})
    return Section(title, [text, pruning_figure(curve), table, curve.settings])


def statistics_section(title: str, statistics: ActivationStatistics) -> Section:
    """Shapes of the activations, where mean and peak lie furthest apart, and what was measured on what."""
    parts: list[Part] = [_ABOUT_STATISTICS, distribution_gallery(statistics)]
    apart = _furthest_apart(statistics)
    if apart:
        table = pd.DataFrame(
            [(str(site), *values) for site, *values in apart],
            columns=["site", "mean", "peak", "standard deviation", "distance / standard deviation"],
        )
        legend = "Where mean and peak lie furthest apart, measured in standard deviations of the activation:"
        parts += [legend, activation_histogram(statistics, apart[0].site), table]
    return Section(title, [*parts, statistics.provenance.to_json()])


_ABOUT_STATISTICS = (
    "Zero, mean and peak ablation differ where activations do not lie symmetrically around zero. The peak is the "
    "centre of the fullest bin between an activation's smallest and largest value."
)


def save_sweep(folder: Path, name: str, result: SweepResult) -> None:
    """The result as a folder that loads again, and its table as CSV."""
    name = file_name(f"{name} {result.method_name}")
    result.save(folder / RESULTS / name)
    write_table(folder, name, result.to_dataframe())


def save_curve(folder: Path, name: str, curve: PruningCurve) -> None:
    """The curve as a folder that loads again, and its table as CSV."""
    curve.save(folder / RESULTS / file_name(name))
    write_table(folder, name, curve.to_dataframe())


def save_statistics(folder: Path, name: str, statistics: ActivationStatistics) -> None:
    """The statistics as a folder that loads again, and their table as CSV."""
    statistics.save(folder / RESULTS / file_name(name))
    write_table(folder, name, statistics.to_dataframe())


def write_table(folder: Path, name: str, table: pd.DataFrame) -> None:
    """A table as CSV among the tables of an output folder."""
    (folder / TABLES).mkdir(exist_ok=True)
    table.to_csv(folder / TABLES / f"{file_name(name)}.csv", index=False)


def file_name(words: str) -> str:
    """Words as a name for a file: letters, digits and hyphens."""
    return "-".join("".join(c if c.isalnum() else " " for c in words.lower()).split())


class _Apart(NamedTuple):
    site: Site
    mean: float
    peak: float
    spread: float
    distance: float


def _furthest_apart(statistics: ActivationStatistics, n: int = 10) -> list[_Apart]:
    """The single activations whose mean and peak differ most, in standard deviations."""
    rows: list[_Apart] = []
    for point in statistics:
        found = statistics[point]
        if found.peak is None or point.activation not in _UNIT_KINDS:
            continue
        kind, axes = _UNIT_KINDS[point.activation]
        spread = found.variance.sqrt()
        distance = ((found.mean - found.peak).abs() / spread).nan_to_num(nan=0.0, posinf=0.0)
        for flat in distance.flatten().argsort(descending=True, stable=True)[:n].tolist():
            address = tuple(int(i) for i in np.unravel_index(flat, tuple(distance.shape)))
            site = Site(kind, point.layer, **dict(zip(axes, address, strict=True)))
            values = (float(tensor[address]) for tensor in (found.mean, found.peak, spread, distance))
            rows.append(_Apart(site, *values))
    return sorted(rows, key=lambda row: -row.distance)[:n]


def _settings(by_method: Mapping[str, Mapping[str, object]]) -> Mapping[str, object]:
    """Settings of several results: what they share once, and the rest by method."""
    first = next(iter(by_method.values()))
    shared = {
        key: value for key, value in first.items() if all(other.get(key) == value for other in by_method.values())
    }
    own = {
        method: {key: value for key, value in settings.items() if key not in shared}
        for method, settings in by_method.items()
    }
    return {**shared, "by method": own} if len(by_method) > 1 else shared
