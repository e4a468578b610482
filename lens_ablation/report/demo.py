"""The demonstration: which heads of two small models matter, under four ablation methods."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lens_ablation.data import tasks
from lens_ablation.data.task import Task
from lens_ablation.methods.mean import Mean
from lens_ablation.methods.method import Method
from lens_ablation.methods.peak import Peak
from lens_ablation.methods.resample import Resample
from lens_ablation.methods.zero import Zero
from lens_ablation.models.loading import load_model
from lens_ablation.models.protocol import LensModel
from lens_ablation.plots.style import metric_name, number, unit_suffix
from lens_ablation.progress import Progress
from lens_ablation.report.html import Section, write_report
from lens_ablation.report.sections import (
    pruning_section,
    save_curve,
    save_statistics,
    save_sweep,
    statistics_section,
    strongest,
    sweep_section,
)
from lens_ablation.selectors import attention_neurons, heads
from lens_ablation.statistics.activation_statistics import ActivationStatistics
from lens_ablation.statistics.collect import collect_statistics
from lens_ablation.studies.intervals import weighted_mean
from lens_ablation.studies.pruning import PruningCurve, pruning_curve
from lens_ablation.studies.sweep import SweepResult, sweep

N_MEASURED, N_SWEPT, N_PRUNED = 512, 128, 64
"""Training examples behind mean and peak; held-out examples of each sweep and of each pruning curve."""

SHOWN = 3
"""Heads that a line of the summary names."""


@dataclass(frozen=True)
class _Case:
    model: str
    task: str
    about: str
    is_pruned: bool = True


_CASES = (
    _Case(
        "tiny-lm",
        "ioi",
        "Indirect objects: after “When Mary and John went to the store, John gave a drink to”, the model should say "
        "Mary, who is named once, and not John. The metric is the logit of the one minus that of the other.",
    ),
    _Case(
        "tiny-lm",
        "greater_than",
        "Years: after “The war lasted from the year 17 32 to the year 17”, any two-digit year above 32 is right. The "
        "metric is the summed probability of the right years minus that of the wrong ones.",
        is_pruned=False,
    ),
    _Case(
        "tiny-vit",
        "digits",
        "Handwritten digits: the metric is the logit of the right class minus the highest of the others.",
    ),
)


def run_demo(folder: Path, *, progress: Progress = True, say: Callable[[str], None] = lambda line: None) -> Path:
    """Run the demonstration on the embedded models and write its report, tables and results to ``folder``.

    Args:
        folder: Where to write.
        progress: ``True`` for bars, ``False`` for silence, or a callable given ``(done, total)``.
        say: Given each line of the summary.

    Returns:
        The report.
    """
    sections = [Section("What this shows", [_INTRODUCTION])]
    for name in dict.fromkeys(case.model for case in _CASES):
        model = load_model(name)
        for case in _CASES:
            if case.model == name:
                sections += _study(case, model, folder, progress, say)
    return write_report(folder, "Which heads matter?", sections)


_INTRODUCTION = (
    "Two small models that come with lens_ablation, a language model and a vision transformer, each with its heads "
    "ablated one at a time. What stands in the place of a head's output is, by method: zeros; its mean; the output it "
    "has on another example (resample); or its peak, the value where its activations are densest. Mean and peak were "
    "measured on training examples, the effects on held-out ones. Red cells are heads without which the model gets "
    "worse. Hover over a cell for its value and its interval."
)


def _study(
    case: _Case, model: LensModel, folder: Path, progress: Progress, say: Callable[[str], None]
) -> list[Section]:
    make = tasks.get(case.task)
    name = f"{case.model} {case.task}"
    statistics = collect_statistics(model, make(model, N_MEASURED, split="train"), heads(model), progress=progress)
    task = make(model, N_SWEPT)
    results = [sweep(model, task, heads(model), method, progress=progress) for method in _methods(statistics, task)]
    for result in results:
        save_sweep(folder, name, result)
    _summarise(case, results, say)
    label = f"{case.model}: {case.task.replace('_', ' ')}"
    sections = [sweep_section(label, results, case.about)]
    if case.is_pruned:
        curve = _prune(model, make(model, N_PRUNED), statistics, progress)
        save_curve(folder, f"{name} pruning", curve)
        say(_halfway(curve))
        save_statistics(folder, f"{name} statistics", statistics)
        sections.append(pruning_section(f"{label}, growing shares", curve, _ABOUT_PRUNING))
        sections.append(statistics_section(f"{case.model}: activations", statistics))
    return sections


_ABOUT_PRUNING = (
    "Random sets of attention neurons (coordinates of hook_z) are ablated, the same nested sets under every method, so "
    "that the curves differ only in what stands in the place of the removed activations. The paper on peak ablation "
    "found that peak damages OPT-1.3b and Mistral-7B least; a small model need not agree."
)


def _methods(statistics: ActivationStatistics, task: Task) -> list[Method]:
    return [Zero(), Mean(statistics), Resample(task, match="batch"), Peak(statistics)]


def _prune(model: LensModel, task: Task, statistics: ActivationStatistics, progress: Progress) -> PruningCurve:
    return pruning_curve(model, task, attention_neurons(model), _methods(statistics, task), progress=progress)


def _summarise(case: _Case, results: Sequence[SweepResult], say: Callable[[str], None]) -> None:
    """The heads that matter most under each method, with their intervals."""
    first = results[0]
    untouched = number(float(weighted_mean(first.baseline, first.weights)))
    metric, unit = metric_name(first.settings), unit_suffix(first.settings)
    say(f"\n{case.model}, {case.task}: {metric} {untouched}{unit} untouched; change without each head alone")
    width = max(len(result.method_name) for result in results)
    for result in results:
        say(f"  {result.method_name:<{width}}  " + "   ".join(map(str, strongest(result, SHOWN))))


def _halfway(curve: PruningCurve) -> str:
    """The metric under each method where half of the sites are gone."""
    half = min(range(len(curve.fractions)), key=lambda i: abs(curve.fractions[i] - 0.5))
    means = curve.mean[:, :, half].mean(dim=1)
    found = ", ".join(f"{method} {number(float(mean))}" for method, mean in zip(curve.methods, means, strict=True))
    return f"  with {curve.n_removed[half]} of {curve.n_sites} attention neurons ablated: {found}"
