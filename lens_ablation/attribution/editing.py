"""Editing a model by ablating the components that tell target examples from reference examples."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_ablation.attribution.attribute import methods_of
from lens_ablation.attribution.attribution import Attribution
from lens_ablation.attribution.outputs import Setting
from lens_ablation.attribution.walk import ROUNDING, Direction, walked
from lens_ablation.components import Components
from lens_ablation.data.metrics import Metric, top1
from lens_ablation.data.task import Task
from lens_ablation.engine.options import Engine
from lens_ablation.engine.variants import run_variants
from lens_ablation.methods.method import Method
from lens_ablation.models.protocol import LensModel
from lens_ablation.progress import Progress, progress_bar
from lens_ablation.sites import SiteSet
from lens_ablation.studies.settings import method_settings

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

log = logging.getLogger(__name__)

Ranking = Literal["welch", "difference"]
Examples = Sequence[int] | Int[Tensor, " _chosen"] | slice

LARGEST_SHARE = 0.15
"""Largest part of the components that is tried, unless ``k`` says otherwise."""

_GROWTH = 1.2
"""Each number of components tried is this many times the one before."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What an edit did to a group of examples, as means over them.

    Attributes:
        n_examples: How many.
        before: The metric of the untouched model.
        predicted: What the attribution says that the edit adds to it; NaN for examples that were not attributed.
        measured: What the edit added.
        share_before: Share of examples that the untouched model answers as the judge wants.
        share_after: The same after the edit.
    """

    n_examples: int
    before: float
    predicted: float
    measured: float
    share_before: float
    share_after: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Edit:
    """Components to ablate, and what ablating them does.

    Attributes:
        components: All that were attributed.
        scores: How much more each adds to target than to reference examples, ``[component]``; infinite where it does
            so on every example alike.
        order: Places of the components, the first to be ablated first.
        k: How many of them are ablated.
        direction: What was wanted of the target examples.
        effects: By group: ``target``, ``reference``, ``others`` (attributed examples of neither, if there are any),
            ``validation target`` and ``validation reference``.
        scan: One row to a number of components tried: ``k``, share of validation targets and references that the
            judge counts, and whether the references stayed within the tolerance.
        methods: What stands in the place of an ablated activation, one to each set of components.
        settings: Attribution, rule and data behind the choice.
    """

    components: Components
    scores: Float[Tensor, " component"]
    order: Int[np.ndarray, " component"]
    k: int
    direction: Direction
    effects: Mapping[str, Effect]
    scan: pd.DataFrame
    methods: tuple[Method, ...]
    settings: Mapping[str, object]

    @property
    def names(self) -> list[str]:
        """The ablated components, first to last."""
        return [self.components.names[place] for place in self.order[: self.k]]

    @property
    def ablations(self) -> list[tuple[SiteSet, Method]]:
        """The ablated components of each set with its method, as ``bake`` takes them."""
        return parts_of(self.components, self.flags(self.k)[0], self.methods)

    def flags(self, *ks: int) -> np.ndarray:
        """Which components are ablated with the first ``k``, one row to each ``k``."""
        return first_of(self.order, ks, len(self.order))

    def measure(self, model: LensModel, task: Task, *, judge: Metric = top1, engine: Engine | None = None) -> Effect:
        """What the edit does to other examples.

        Args:
            model: The model that was attributed.
            task: Any examples, with the metric in which the effect is wanted.
            judge: Which examples count as answered.
            engine: Where and how it is run.
        """
        setting = _setting(model, task, self.components, self.methods, engine)
        return _effect(setting, self.flags(self.k), judge, None)

    def to_dataframe(self) -> pd.DataFrame:
        """One row to a group of examples."""
        return pd.DataFrame([{"group": name, **vars(effect)} for name, effect in self.effects.items()])

    def plot(self) -> "Figure":
        """Shares of validation targets and references against the number of ablated components."""
        from lens_ablation.plots.editing import edit_figure

        return edit_figure(self)


def edit(
    attribution: Attribution,
    model: LensModel,
    task: Task,
    *,
    target: Examples,
    reference: Examples,
    direction: Direction = "raise",
    k: int | None = None,
    validation: tuple[Task, Task] | None = None,
    tolerance: float = 0.02,
    skipping: int | None = None,
    ranking: Ranking = "welch",
    judge: Metric = top1,
    method: Method | Sequence[Method] | None = None,
    engine: Engine | None = None,
    progress: Progress = True,
) -> Edit:
    """Choose components whose ablation raises (or lowers) the metric of some examples and spares others.

    Components are ranked by Welch's score, ``(mean_T w - mean_R w) / sqrt(var_T / |T| + var_R / |R|)``: those with the
    lowest are ablated to raise the target examples, those with the highest to lower them. Without ``k``, growing
    numbers of them are tried on the validation examples. Of the numbers under which the share of references that the
    judge counts falls by at most ``tolerance``, the one with the best share of targets is taken (largest, or smallest
    to lower them); of equals, the smallest, which is none at all where none changes the share.

    Args:
        attribution: Weights of the examples of ``task``.
        model: The model that was attributed; left exactly as it was.
        task: The examples that were attributed, in their order.
        target: Rows of the task whose metric is to change.
        reference: Rows of the task whose metric is to stay.
        direction: ``"raise"`` or ``"lower"`` the metric of the targets.
        k: How many components are ablated; chosen on validation examples when ``None``.
        validation: Target and reference examples on which ``k`` is chosen; the attributed ones when ``None``.
        tolerance: Largest fall of the share of references.
        skipping: Walk the ranking in groups of this many components, and skip those that would cost the references more
            than the tolerance or do not move the targets; ``None`` takes components as they are ranked.
        ranking: ``"welch"``, or ``"difference"`` for the difference of means alone.
        judge: A metric that counts examples, such as ``metrics.top1``.
        method: What stands in the place of an ablated activation; as in ``attribute``.
        engine: Where and how it is run.
        progress: ``True`` for a bar, ``False`` for silence, or a callable given ``(done, total)``.

    Raises:
        StatisticsMismatch: the attribution is of another model.
        ValueError: targets and references overlap or are one example each, the attribution is of other examples or
            another method, or no number of components spares the references.

    Reference:
        Shah, Ilyas, Madry, 2024, arXiv:2404.11534, section 5.

    Example:
        >>> import torch, lens_ablation as la
        >>> model = la.load_model("tiny-vit")
        >>> task = la.tasks.digits(model, n=60).with_metric(la.metrics.correct_margin)
        >>> parts = [la.attention_neurons(model), la.neurons(model)]
        >>> found = la.attribute(model, task, parts, la.Coar(n_masks=8), progress=False)
        >>> is_three = task.answers == 3
        >>> rows = {"target": is_three.nonzero()[:, 0], "reference": (~is_three).nonzero()[:, 0]}
        >>> edit = la.edit(found, model, task, **rows, direction="lower", tolerance=0.1, progress=False)
        >>> edit.effects["target"].share_after < edit.effects["target"].share_before
        True
    """
    attribution.require_model(model)
    methods = methods_of(method, attribution.components)
    _require_attributed(attribution, task, methods)
    rows = groups_of(target, reference, task.n_examples)
    scores = welch_scores(attribution.weights, rows["target"], rows["reference"], ranking)
    return finished_edit(
        attribution,
        model,
        task,
        rows,
        scores,
        ranked(scores, direction),
        direction=direction,
        k=k,
        validation=validation,
        tolerance=tolerance,
        judge=judge,
        methods=methods,
        engine=engine,
        progress=progress,
        settings={"ranking": ranking},
        skipping=skipping,
    )


def ranked(scores: Float[Tensor, " component"], direction: Direction) -> Int[np.ndarray, " component"]:
    """Places of the components, the first to be ablated first.

    Raises:
        ValueError: no such direction.
    """
    if direction not in ("raise", "lower"):
        raise ValueError(f"direction must be 'raise' or 'lower', got {direction!r}")
    return np.argsort(scores.numpy() if direction == "raise" else -scores.numpy(), kind="stable")


def finished_edit(
    attribution: Attribution,
    model: LensModel,
    task: Task,
    rows: Mapping[str, Int[Tensor, " _"]],
    scores: Float[Tensor, " component"],
    order: Int[np.ndarray, " component"],
    *,
    direction: Direction,
    k: int | None,
    validation: tuple[Task, Task] | None,
    tolerance: float,
    judge: Metric,
    methods: tuple[Method, ...],
    engine: Engine | None,
    progress: Progress,
    settings: Mapping[str, object],
    largest: int | None = None,
    skipping: int | None = None,
) -> Edit:
    """The edit that ablates the first components of an order: how many, and what it does.

    Args:
        rows: Rows of the task by group: ``target``, ``reference``, ``others``.
        largest: Most components tried; a share of them when ``None``.
    """
    largest = max(1, int(LARGEST_SHARE * len(order))) if largest is None else largest
    groups = {"target": task.select(rows["target"]), "reference": task.select(rows["reference"])}
    judged = groups if validation is None else dict(zip(groups, validation, strict=True))
    judged_in = {name: _setting(model, part, attribution.components, methods, engine) for name, part in judged.items()}
    if skipping is not None and k is None:
        order, largest = walked(order, largest, skipping, judged_in, direction, tolerance, judge, progress)
    tried = _numbers(largest) if k is None else [_checked(k, len(order))]
    total = (len(tried) + 1) * sum(part.n_examples for part in judged.values())
    with progress_bar(progress, total, "edit", "row") as advance:
        shares = {name: _shares(one, order, tried, judge, advance) for name, one in judged_in.items()}
    scan = _scan(shares, tried, tolerance)
    chosen = k if k is not None else _chosen(scan, direction, tolerance)
    flags = first_of(order, [chosen], len(order))
    if len(rows["others"]):
        groups["others"] = task.select(rows["others"])
    predicted = -attribution.weights @ torch.from_numpy(flags[0]).float()
    effects = {
        name: _effect(
            _setting(model, part, attribution.components, methods, engine),
            flags,
            judge,
            float(predicted[rows[name]].mean()),
        )
        for name, part in groups.items()
    }
    for name, one in judged_in.items() if validation is not None else ():
        effects[f"validation {name}"] = _effect(one, flags, judge, None)
    return Edit(
        components=attribution.components,
        scores=scores,
        order=order,
        k=chosen,
        direction=direction,
        effects=effects,
        scan=scan,
        methods=methods,
        settings={
            **attribution.settings,
            **settings,
            "direction": direction,
            "judge": judge.name,
            "tolerance": tolerance,
            "skipping": skipping,
            "k_chosen_on": "given" if k is not None else "validation" if validation else "attributed",
        },
    )


def parts_of(
    components: Components, flags: Bool[np.ndarray, " component"], methods: Sequence[Method]
) -> list[tuple[SiteSet, Method]]:
    """The flagged components of each set with its method, as ``bake`` takes them."""
    split = components.split(flags[None])
    parts = zip(components.sets, split, methods, strict=True)
    return [(sites.take(np.flatnonzero(here[0])), method) for sites, here, method in parts if here.any()]


def _require_attributed(attribution: Attribution, task: Task, methods: Sequence[Method]) -> None:
    if attribution.settings["task_fingerprint"] != task.fingerprint:
        raise ValueError("the attribution is of other examples than this task; pass the task that was attributed")
    metric = getattr(task.metric, "name", None)
    if attribution.settings["metric"] != metric:
        raise ValueError(
            f"the attribution is of {attribution.settings['metric']} and this task is scored by {metric}; use "
            "task.with_metric(...)"
        )
    if attribution.settings["positions"] != "all":
        raise ValueError(
            f"the attribution ablated the positions {attribution.settings['positions']!r}, and an edit ablates all of "
            "them, as weights do; attribute with positions='all'"
        )
    described = [method_settings(method) for method in methods]
    if attribution.settings["methods"] != described:
        raise ValueError(
            f"the attribution replaced activations by {attribution.settings['methods']} and this edit by {described}; "
            "pass the same method="
        )


def groups_of(target: Examples, reference: Examples, n: int) -> dict[str, Int[Tensor, " _"]]:
    """Rows of ``n`` examples by group: ``target``, ``reference`` and ``others``.

    Raises:
        ValueError: targets and references overlap, lie outside, or are none or one each.
    """
    rows = {name: _rows(name, given, n) for name, given in (("target", target), ("reference", reference))}
    both = set(rows["target"].tolist()) & set(rows["reference"].tolist())
    if both:
        raise ValueError(f"examples {sorted(both)[:5]} are both target and reference; take each for one of them")
    if len(rows["target"]) == len(rows["reference"]) == 1:
        raise ValueError("one target and one reference tell nothing apart; add references, 20 or more if there are")
    taken = torch.cat(list(rows.values()))
    rest = torch.ones(n, dtype=torch.bool)
    rest[taken] = False
    return {**rows, "others": rest.nonzero()[:, 0]}


def _rows(name: str, given: Examples, n: int) -> Int[Tensor, " chosen"]:
    rows = torch.arange(n)[given] if isinstance(given, slice) else torch.as_tensor(given)
    if rows.dtype == torch.bool:
        raise ValueError(f"{name} takes numbers of examples, not flags; pass flags.nonzero()[:, 0]")
    rows = rows.long().unique()
    if len(rows) == 0:
        raise ValueError(f"there are no {name} examples; give at least one")
    if int(rows[0]) < 0 or int(rows[-1]) >= n:
        raise ValueError(f"{name} examples must lie in 0..{n - 1}, got {int(rows[0])}..{int(rows[-1])}")
    return rows


def welch_scores(
    weights: Float[Tensor, "example component"],
    target: Int[Tensor, " chosen"],
    reference: Int[Tensor, " others"],
    ranking: Ranking,
) -> Float[Tensor, " component"]:
    """Welch's score, with population variances; the difference of means alone where nothing varies is infinite."""
    if ranking not in ("welch", "difference"):
        raise ValueError(f"ranking must be 'welch' or 'difference', got {ranking!r}")
    wanted, spared = weights[target].double(), weights[reference].double()
    difference = wanted.mean(dim=0) - spared.mean(dim=0)
    if ranking == "difference":
        return difference.float()
    spread = (wanted.var(dim=0, correction=0) / len(wanted) + spared.var(dim=0, correction=0) / len(spared)).sqrt()
    # a component without any weight changes nothing, and is neither for nor against
    return torch.where(difference == 0, torch.zeros_like(difference), difference / spread).float()


def _numbers(largest: int) -> list[int]:
    """Numbers of components to try: one by one at first, then in growing steps."""
    numbers, k = [], 1.0
    while round(k) < largest:
        numbers.append(round(k))
        k = max(k + 1, k * _GROWTH)
    return [*numbers, largest]


def _checked(k: int, n_components: int) -> int:
    if not 1 <= k <= n_components:
        raise ValueError(f"k must lie in 1..{n_components}, got {k}")
    return k


def first_of(order: Int[np.ndarray, " known"], ks: Sequence[int], n_components: int) -> Bool[np.ndarray, "k component"]:
    """Flags of the first ``k`` components of an order."""
    flags = np.zeros((len(ks), n_components), dtype=bool)
    for row, k in zip(flags, ks, strict=True):
        row[order[:k]] = True
    return flags


def _setting(
    model: LensModel, task: Task, components: Components, methods: tuple[Method, ...], engine: Engine | None
) -> Setting:
    return Setting(model=model, task=task, components=components, methods=methods, engine=engine or Engine())


def _shares(
    setting: Setting, order: np.ndarray, ks: Sequence[int], judge: Metric, advance: Callable[[int], None]
) -> Float[Tensor, " tried"]:
    """The judge's share of examples with the first 0 and the first ``k`` components ablated."""
    judged = replace(setting, task=setting.task.with_metric(judge))
    scores = run_variants(
        setting.model,
        judged.task,
        judged.ablations(first_of(order, ks, len(order))),
        engine=setting.engine,
        advance=advance,
    )
    advance(setting.task.n_examples)
    return torch.cat([scores.baseline.mean()[None], scores.values.mean(dim=1)])


def _scan(shares: Mapping[str, Float[Tensor, " _"]], tried: Sequence[int], tolerance: float) -> pd.DataFrame:
    reference = shares["reference"].double().numpy()
    return pd.DataFrame(
        {
            "k": [0, *tried],
            "target": shares["target"].double().numpy(),
            "reference": reference,
            "spares_reference": reference >= reference[0] - tolerance - ROUNDING,
        }
    )


def _chosen(scan: pd.DataFrame, direction: Direction, tolerance: float) -> int:
    ks, targets, references, spares = (scan[name].to_numpy() for name in scan.columns)
    allowed = np.flatnonzero(spares)
    if not len(allowed[allowed > 0]):
        raise ValueError(
            f"no number of components keeps the share of references within {tolerance:g}; the smallest loss is "
            f"{references[0] - references[1:].max():.3g}. Allow more, or give k"
        )
    best = int(ks[allowed[np.argmax(targets[allowed] if direction == "raise" else -targets[allowed])]])
    if best == 0:
        log.warning("no number of components that spares the references changes the share of targets; none is ablated")
    return best


def _effect(setting: Setting, flags: np.ndarray, judge: Metric, predicted: float | None) -> Effect:
    def run(one: Setting) -> tuple[Float[Tensor, " example"], Float[Tensor, " example"]]:
        scores = run_variants(one.model, one.task, one.ablations(flags), engine=one.engine)
        return scores.baseline, scores.values[0]

    before, after = run(setting)
    share_before, share_after = run(replace(setting, task=setting.task.with_metric(judge)))
    return Effect(
        n_examples=setting.task.n_examples,
        before=float(before.mean()),
        predicted=float("nan") if predicted is None else predicted,
        measured=float((after - before).mean()),
        share_before=float(share_before.mean()),
        share_after=float(share_after.mean()),
    )
