"""Walking down a ranking of components, and skipping those that cost too much."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from lens_ablation.attribution.outputs import Setting
from lens_ablation.data.metrics import Metric
from lens_ablation.engine.variants import run_variants
from lens_ablation.progress import Progress, progress_bar

Direction = Literal["raise", "lower"]

ROUNDING = 1e-6
"""Of shares, which are means in float32."""


def walked(
    order: Int[np.ndarray, " component"],
    largest: int,
    step: int,
    judged: Mapping[str, Setting],
    direction: Direction,
    tolerance: float,
    judge: Metric,
    progress: Progress,
) -> tuple[Int[np.ndarray, " component"], int]:
    """The ranking with the groups first that a walk down it keeps, and how many components those have.

    A group is kept if with it, and with all kept before, the share of references stays within the tolerance, and the
    targets' metric moves on as wanted.

    Raises:
        ValueError: groups of less than one component.
    """
    if step < 1:
        raise ValueError(f"skipping takes groups of 1 or more components, got {step}")
    references = judged["reference"]
    references = replace(references, task=references.task.with_metric(judge))
    sign = 1 if direction == "raise" else -1
    kept = np.zeros((1, len(order)), dtype=bool)
    metric, share = _untouched(judged["target"]), _untouched(references)
    least = share - tolerance - ROUNDING
    with progress_bar(progress, largest, "edit: groups", "component") as advance:
        for start in range(0, largest, step):
            tried = kept.copy()
            tried[0, order[start : min(start + step, largest)]] = True
            advance(min(step, largest - start))
            found = _mean_under(judged["target"], tried)
            if sign * (found - metric) > 0 and _mean_under(references, tried) >= least:
                kept, metric = tried, found
    first = order[kept[0, order]]
    return np.concatenate([first, order[~kept[0, order]]]), max(1, len(first))


def _untouched(setting: Setting) -> float:
    return _mean_under(setting, np.zeros((1, len(setting.components)), dtype=bool))


def _mean_under(setting: Setting, flags: Bool[np.ndarray, "1 component"]) -> float:
    scores = run_variants(setting.model, setting.task, setting.ablations(flags), engine=setting.engine)
    return float(scores.values.mean())
