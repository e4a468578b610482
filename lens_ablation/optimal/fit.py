"""Constants that hurt least, for every site of a set at once or for sets together."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_ablation.components import Components, as_components
from lens_ablation.data import metrics
from lens_ablation.data.as_task import as_task
from lens_ablation.data.metrics import Metric, MetricFn
from lens_ablation.data.task import Task
from lens_ablation.engine.options import Engine
from lens_ablation.engine.proof import refuse_store_under_hooks
from lens_ablation.engine.variants import digest_of
from lens_ablation.methods.optimal_constants import OptimalConstants
from lens_ablation.models.anatomy import anatomy
from lens_ablation.models.checks import require_meaning
from lens_ablation.models.protocol import LensModel, require_evaluation_mode
from lens_ablation.optimal import checkpoint
from lens_ablation.optimal.descent import Descent, Schedule
from lens_ablation.optimal.problems import Problems, Tables, means, moments, spreads
from lens_ablation.optimal.split import Split, split_task
from lens_ablation.progress import Progress, progress_bar
from lens_ablation.sites import Site, SiteSet
from lens_ablation.statistics.counted import StatisticsPositions
from lens_ablation.statistics.provenance import Provenance

log = logging.getLogger(__name__)

Loss = Literal["kl_last"] | Metric | MetricFn
"""``kl_last`` is ``metrics.kl_from_clean``: KL in nats from the untouched model, where the task reads its answers."""


def fit_optimal(
    model: LensModel,
    data: Task | Tensor | Iterable[object],
    sites: Site | SiteSet | Iterable[Site | SiteSet],
    *,
    per_position: bool = False,
    joint: bool | float = False,
    loss: Loss = "kl_last",
    positions: StatisticsPositions | None = None,
    held_out: Task | None = None,
    lr: float = 0.02,
    steps: int = 1000,
    batch_size: int = 4,
    evaluate_every: int = 50,
    patience: int = 4,
    seed: int = 0,
    allow_small: bool = False,
    engine: Engine | None = None,
    progress: Progress = True,
) -> OptimalConstants:
    """The constants that hurt the loss least in the place of each site, found by gradient descent.

    All sites are optimised in the same forward passes: each row ablates one site, and AdamW moves each coordinate on
    its own, so the problems do not touch each other. The search begins at the means. Three fifths of the examples
    are descended on, a fifth decides which constants are kept (the means and zeros are among the candidates) and
    when a site stops, and the last fifth is what ``gaps`` are reported on. A site whose loss is no number is reported
    and keeps its best constants; the others go on.

    Args:
        model: A TransformerLens model in evaluation mode; left exactly as it was.
        data: A ``Task``, or anything that makes one.
        sites: What to ablate, of one kind or several sets of them; not patterns.
        per_position: A constant to each position, counted from the row's first real token, instead of one for all.
        joint: ``True`` ablates all sites together and finds their constants together; a fraction ablates random parts
            of that size, as COAR does.
        loss: ``kl_last``, or any metric that has a gradient; one that is better when higher is lowered least.
        positions: Which tokens are ablated: ``all``, ``all_but_first`` or ``answer``. ``None`` leaves the first token
            of language models alone, and no token of images.
        held_out: Examples to report on instead of a fifth of ``data``.
        lr: Learning rate of AdamW, in typical standard deviations of the activations at each hook (the paper's 2e-3 is
            in the activations' own unit, which suits GPT-2).
        steps: Most steps.
        batch_size: Examples in a step; each is run once for every site.
        evaluate_every: Steps between validations, after which a run with a store is kept.
        patience: Validations without improvement after which a site stops.
        seed: Draws the split, the order of examples and random parts.
        allow_small: Accept fewer than 50 examples.
        engine: ``store`` keeps the descent, so that a killed one goes on; the descent runs in this process, in the
            model's dtype.
        progress: ``True`` for a bar, ``False`` for silence, or a callable given ``(done, total)`` steps.

    Returns:
        Constants for ``Optimal``, with held-out gaps in the unit of the loss (nats for ``kl_last``).

    Raises:
        StoreMismatch: the engine's store holds another descent.
        UnknownSite: a site is not the model's.
        ValueError: too few examples, patterns, a loss without a gradient, or settings that do not fit together.

    Reference:
        Li and Janson, *Optimal ablation for interpretability*, 2024, arXiv:2409.09951, section 2 and appendix. Early
        stopping and the choice among candidates are our own.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task = la.tasks.ioi(model, n=128, split="train")
        >>> constants = la.fit_optimal(model, task, la.heads(model)[3], steps=20, progress=False)
        >>> constants.gap.shape
        torch.Size([8])
    """
    require_evaluation_mode(model)
    engine = _checked(engine or Engine(), model)
    task = as_task(data, model).with_metric(loss_metric(loss))
    components = as_components(sites, model)
    _require_constants(components, model)
    fraction = _fraction(joint)
    where = ablated_positions(positions, model)
    schedule = Schedule(lr=lr, steps=steps, batch_size=batch_size, evaluate_every=evaluate_every, patience=patience)
    split = split_task(
        task, None if held_out is None else held_out.with_metric(task.metric), seed, allow_small=allow_small
    )
    statistics = moments(model, split.training, components.sets, where, per_position=per_position)
    start = means(statistics, per_position=per_position)
    descent = Descent(
        model,
        split.training,
        split.validation,
        Problems(components, fraction, seed),
        start,
        spreads(statistics),
        positions=where,
        per_position=per_position,
        schedule=schedule,
        seed=seed,
        engine=engine,
    )
    provenance = _provenance(model, split, components, descent, where, per_position=per_position, fraction=fraction)
    _run(descent, engine, provenance, progress)
    return _finished(descent, split, start, provenance, per_position=per_position)


def _checked(engine: Engine, model: LensModel) -> Engine:
    if engine.executor != "serial":
        raise ValueError(
            f"a descent runs in one process, and executor is {engine.executor!r}; fit parts of the sites in several "
            "runs instead, as each site is a problem of its own"
        )
    if engine.dtype is not None:
        raise ValueError("a descent runs in the model's own dtype; leave out Engine(dtype=...), or convert the model")
    refuse_store_under_hooks(model, engine)
    return engine


def ablated_positions(positions: StatisticsPositions | None, model: LensModel) -> StatisticsPositions:
    """``positions``, or where none are given all but the first token of a text, and all of an image."""
    return positions or ("all_but_first" if anatomy(model).modality == "tokens" else "all")


def loss_metric(loss: Loss) -> Metric:
    """The metric that a loss names.

    Raises:
        ValueError: no such loss, or one that has no gradient.
    """
    if isinstance(loss, str):
        if loss != "kl_last":
            raise ValueError(f"loss must be 'kl_last' or a metric such as lens_ablation.metrics.loss, got {loss!r}")
        return metrics.kl_from_clean
    metric = loss if isinstance(loss, Metric) else metrics.as_metric(loss)
    if metric.unit == "fraction":
        raise ValueError(f"metric {metric.name!r} has no gradient; fit to 'kl_last' or lens_ablation.metrics.loss")
    return metric


def _require_constants(components: Components, model: LensModel) -> None:
    for sites in components.sets:
        require_meaning(model, sites.kind)
        if sites.kind == "pattern":
            raise ValueError(
                "no constants are fitted for patterns, whose rows must be distributions; fit those of the heads"
            )


def _fraction(joint: bool | float) -> float | None:
    if joint is False:
        return None
    if not 0 < joint <= 1:
        raise ValueError(f"joint must be False, True, or a fraction of the sites between 0 and 1, got {joint}")
    return float(joint)


def _provenance(
    model: LensModel,
    split: Split,
    components: Components,
    descent: Descent,
    where: StatisticsPositions,
    *,
    per_position: bool,
    fraction: float | None,
) -> Provenance:
    metric, schedule = split.training.metric, descent.schedule
    assert isinstance(metric, Metric)
    return Provenance.of_model(
        model,
        data=[part.fingerprint for part in split],
        positions=where,
        hook_names=[point.name for point in descent.tables],
        measurement={
            "loss": metric.identity,
            "unit": metric.unit,
            "higher_is_better": metric.higher_is_better,
            "direction": "from the untouched model" if metric is metrics.kl_from_clean else "as the metric has it",
            "task": split.training.name,
            "conditioned on": "position" if per_position else "nothing",
            "wrong answers": [digest_of(part.wrong_answers) for part in split],
            "sites": components.digest,
            "ablated_fraction": fraction,
            "schedule": asdict(schedule),
            "seed": descent.seed,
            "path": dict(descent.path.settings),
        },
    )


def _run(descent: Descent, engine: Engine, provenance: Provenance, progress: Progress) -> None:
    identity: Mapping[str, object] = provenance.to_json()
    total = descent.schedule.steps
    n_rows = descent.schedule.batch_size * descent.problems.n
    log.info("at most %d steps of %d rows, forward and backward", total, n_rows)

    def keep() -> None:
        if engine.store is not None:
            checkpoint.keep(descent, engine.store, identity)

    if engine.store is not None:
        checkpoint.resume(descent, engine.store, identity)
    with progress_bar(progress, total, "optimal constants", "step") as advance:
        advance(descent.step)
        descent.run(advance, keep)
        advance(total - descent.step)


def _finished(
    descent: Descent, split: Split, start: Tables, provenance: Provenance, *, per_position: bool
) -> OptimalConstants:
    every = np.arange(descent.problems.n)
    _prefer_zeros(descent, every)
    held_out = descent.parts_of(split.held_out)
    gaps = descent.gaps(held_out, every, descent.best)
    weight = next(iter(descent.best.values()))
    mean_gaps = descent.gaps(held_out, every, {point: table.to(weight) for point, table in start.items()})
    found = OptimalConstants(
        values={point.name: table.detach().cpu() for point, table in descent.best.items()},
        sets=descent.problems.components.sets,
        ablated_fraction=descent.problems.ablated_fraction,
        per_position=per_position,
        gaps=gaps,
        mean_gaps=mean_gaps,
        steps=torch.tensor(descent.steps),
        curve=torch.stack(descent.curve),
        best_step=descent.best_step,
        outcome=tuple(descent.outcome),
        provenance=provenance,
    )
    diverged = [name for name, how in zip(found.problems, found.outcome, strict=True) if how == "diverged"]
    if diverged:
        log.warning(
            "%d problems diverged and keep the best constants before that (%s); try a smaller lr",
            *(len(diverged), ", ".join(diverged[:5])),
        )
    return found


def _prefer_zeros(descent: Descent, every: np.ndarray) -> None:
    """Zeros in the place of constants that lose to them on the validation examples."""
    zeros = {point: torch.zeros_like(table) for point, table in descent.best.items()}
    gaps: Float[Tensor, " problem"] = descent.gaps(descent.parts_of(descent.validation), every, zeros).mean(dim=1)
    better = gaps < descent.best_gap
    descent.adopt(zeros, better)
    descent.best_gap = torch.where(better, gaps, descent.best_gap)
    descent.best_step = torch.where(better, -1, descent.best_step)
