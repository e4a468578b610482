"""Every method of ablation on the same sites and examples, measured against the optimal constant."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_ablation.components import Components, as_components
from lens_ablation.data.as_task import as_task
from lens_ablation.data.metrics import Metric
from lens_ablation.data.task import Task
from lens_ablation.engine.options import Engine
from lens_ablation.engine.removals import Ablation, OneEach
from lens_ablation.engine.variants import run_variants
from lens_ablation.files import read_folder, reading, require_shape, write_folder
from lens_ablation.methods.counterfactual import Counterfactual
from lens_ablation.methods.mean import Mean
from lens_ablation.methods.method import Method
from lens_ablation.methods.optimal import Optimal
from lens_ablation.methods.resample import Resample
from lens_ablation.methods.zero import Zero
from lens_ablation.models.protocol import LensModel
from lens_ablation.optimal.agreement import agreement, ratio_table
from lens_ablation.optimal.fit import Loss, ablated_positions, fit_optimal, loss_metric
from lens_ablation.optimal.problems import moments
from lens_ablation.optimal.split import halves, require_long_enough
from lens_ablation.progress import Progress, onward, progress_bar
from lens_ablation.sites import Site, SiteSet
from lens_ablation.statistics.counted import StatisticsPositions
from lens_ablation.studies.settings import method_settings, named_methods, study_settings

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

TYPES = (
    "Zero",
    "Mean (per position)",
    "Mean",
    "Counterfactual mean (per position)",
    "Resample (per position)",
    "Resample (shuffled positions)",
    "Optimal (per position)",
    "Optimal",
    "Counterfactual",
)
"""The types of ablation that are compared where none are named."""

_FILE_KIND = "method-comparison"


@dataclass(frozen=True, eq=False, kw_only=True)
class MethodComparison:
    """What ablating each site alone adds to the loss, by each method.

    Attributes:
        gaps: Loss under ablation minus loss of the untouched model, ``[method, site, example]``; of a metric that is
            better when higher, turned round.
        methods: What the methods are called.
        by_position: Whether a replacement may depend on the token's position, for each method. Compare methods that
            agree in it.
        sites: Names of the sites, those of the first set first.
        settings: Model, task, loss and methods behind the numbers.
    """

    gaps: Float[Tensor, "method site example"]
    methods: tuple[str, ...]
    by_position: tuple[bool, ...]
    sites: tuple[str, ...]
    settings: Mapping[str, object]

    @property
    def gap(self) -> Float[Tensor, "method site"]:
        """Mean over examples, in the unit of the loss."""
        return self.gaps.mean(dim=2)

    @property
    def error(self) -> Float[Tensor, "method site"]:
        """Standard error of the mean over examples."""
        return self.gaps.std(dim=2) / self.gaps.shape[2] ** 0.5

    def of(self, method: str) -> Float[Tensor, "site example"]:
        """Gaps of one method.

        Raises:
            ValueError: there is no method of this name.
        """
        return self.gaps[self._place(method)]

    def ratios(self, to: str | None = None) -> pd.DataFrame:
        """Gaps of one method over those of each other, by median and mean over the sites.

        ``median`` and ``mean`` are of ratios as they are, ``clamped mean`` of ratios limited to 1. Sites whose gap by
        the other method is not positive have no ratio, and are counted in ``left out``.

        Args:
            to: The method whose gaps are the numerators; the first optimal one by default.

        Raises:
            ValueError: there is no such method.
        """
        place = self._place(to or self._first("Optimal"))
        return ratio_table(self.gap, place, self.methods, self.by_position)

    def correlations(
        self, with_: str | None = None, *, confidence: float = 0.95, n_resamples: int = 1000, seed: int = 0
    ) -> pd.DataFrame:
        """Correlation, over sites, of each method's gaps with those of one method.

        ``rank`` is Spearman's. ``log`` is Pearson's of logarithms, over the sites where both gaps are positive, less
        the 2 % of them whose logarithms lie furthest apart. Intervals are basic bootstrap ones over resampled examples,
        on Fisher's scale: noise lowers correlations, which they correct for, so a value may lie below its interval.

        Args:
            with_: The method to correlate with; counterfactual ablation by default.
            confidence: Of the intervals.
            n_resamples: Resamples behind them.
            seed: Draws them.

        Raises:
            ValueError: there is no such method, or there are fewer than 3 sites.
        """
        place = self._place(with_ or self._first("Counterfactual"))
        return agreement(self.gaps, place, self.methods, confidence=confidence, n_resamples=n_resamples, seed=seed)

    def to_dataframe(self) -> pd.DataFrame:
        """One row to a method and site: gap and its standard error."""
        gap, error = self.gap, self.error
        return pd.DataFrame(
            [
                {
                    "method": method,
                    "by position": self.by_position[m],
                    "site": site,
                    "gap": float(gap[m, s]),
                    "error": float(error[m, s]),
                }
                for m, method in enumerate(self.methods)
                for s, site in enumerate(self.sites)
            ]
        )

    def plot(self, against: str | None = None) -> "Figure":
        """Gap of each site by each method against its gap by one method, on logarithmic axes."""
        from lens_ablation.plots.optimal import gaps_figure

        return gaps_figure(self, against=against)

    def save(self, folder: str | Path) -> Path:
        """Write the result to a new folder: tensors as safetensors, settings as JSON."""
        plain = {name: list(getattr(self, name)) for name in ("methods", "by_position", "sites")}
        return write_folder(folder, _FILE_KIND, {"gaps": self.gaps}, {**plain, "settings": self.settings})

    @classmethod
    def load(cls, folder: str | Path) -> "MethodComparison":
        """Read a result that ``save`` wrote; needs no model.

        Raises:
            DamagedFile: the folder holds something else, or was changed.
        """
        tensors, plain = read_folder(folder, _FILE_KIND)
        with reading(folder):
            found = cls(
                gaps=tensors["gaps"],
                methods=tuple(str(name) for name in plain["methods"]),
                by_position=tuple(bool(flag) for flag in plain["by_position"]),
                sites=tuple(str(name) for name in plain["sites"]),
                settings=dict(plain["settings"]),
            )
            n = found.gaps.shape[-1]
            require_shape("gaps", found.gaps, (len(found.methods), len(found.sites), n))
            if len(found.by_position) != len(found.methods):
                raise ValueError("by_position has not one entry to a method")
            return found

    def _place(self, method: str) -> int:
        if method not in self.methods:
            raise ValueError(f"there is no method {method!r} here; there are {', '.join(self.methods)}")
        return self.methods.index(method)

    def _first(self, word: str) -> str:
        """The method of this name, or else the first whose name begins so; ``word`` itself where there is none."""
        if word in self.methods:
            return word
        return next((name for name in self.methods if name.startswith(word)), word)


def compare_methods(
    model: LensModel,
    data: Task | Tensor | Iterable[object],
    sites: Site | SiteSet | Iterable[Site | SiteSet],
    methods: Sequence[Method] | Mapping[str, Method] | None = None,
    *,
    fit_on: Task | None = None,
    loss: Loss = "kl_last",
    positions: StatisticsPositions | None = None,
    steps: int = 1000,
    seed: int = 0,
    allow_small: bool = False,
    batch_size: int | None = None,
    engine: Engine | None = None,
    progress: Progress = True,
) -> MethodComparison:
    """What ablating each site alone adds to the loss, by every method on the same examples.

    Without ``methods`` all types of the paper are compared: zeros, means and means of the counterfactual prompts,
    resampling, the counterfactual's own value, and optimal constants, each conditioned on the position and not, as its
    name says. What they need is measured on ``fit_on``, or on half of the examples, and judged on the others.

    Args:
        model: A TransformerLens model in evaluation mode; left exactly as it was.
        data: A ``Task``, or anything that makes one; with counterfactuals unless ``methods`` are given.
        sites: What to ablate, of one kind or several sets of them.
        methods: Methods of your own, by their names or by names of yours; all of ``data`` is then judged on.
        fit_on: Examples that means and constants are found on, instead of half of ``data``.
        loss: As in ``fit_optimal``.
        positions: As in ``fit_optimal``; the same for all methods.
        steps: Most steps of each descent.
        seed: Draws splits, donors and the order of examples.
        allow_small: Accept fewer than 50 examples to fit on.
        batch_size: Rows in a forward pass; chosen when ``None``.
        engine: Where finished parts are kept, and who computes them; constants are always found in this process, in the
            model's dtype.
        progress: ``True`` for a bar, ``False`` for silence, or a callable given ``(done, total)``.

    Raises:
        ValueError: the task has no counterfactuals and no methods were given; too few examples; names that repeat.

    Reference:
        Li and Janson, *Optimal ablation for interpretability*, 2024, arXiv:2409.09951, section 3.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task, heads = la.tasks.ioi(model, n=32), la.heads(model)
        >>> methods = [la.Zero(), la.Counterfactual(task)]
        >>> la.compare_methods(model, task, heads, methods, progress=False).gap.shape
        torch.Size([2, 32])
    """
    task = as_task(data, model).with_metric(loss_metric(loss))
    components = as_components(sites, model)
    where = ablated_positions(positions, model)
    engine = engine or Engine()
    if methods is None:
        _require_counterfactuals(task)
        fitted, task = halves(task, seed) if fit_on is None else (fit_on.with_metric(task.metric), task)
        require_long_enough(fitted, task)
        n_steps = 2 * steps
    else:
        fitted, n_steps = task, 0
    total = n_steps + len(TYPES if methods is None else methods) * len(components)
    with progress_bar(progress, total, "comparing methods", "site") as advance:
        if methods is None:
            compared = _every_type(
                model, fitted, task, components, where, loss, steps, seed, engine, allow_small, advance
            )
        else:
            compared = named_methods(methods)
        gaps = []
        for place, method in enumerate(compared.values()):
            gaps.append(_gaps(model, task, components, method, where, batch_size, engine.part(f"method-{place}")))
            advance(len(components))
    return MethodComparison(
        gaps=torch.stack(gaps),
        methods=tuple(compared),
        by_position=tuple(method.by_position for method in compared.values()),
        sites=tuple(components.names),
        settings={
            **study_settings(model, task, where),
            "methods": [method_settings(method) for method in compared.values()],
            "fit_on": fitted.fingerprint,
            "kinds": [part.kind for part in components.sets],
        },
    )


def _require_counterfactuals(task: Task) -> None:
    if task.counterfactuals is None:
        raise ValueError(
            f"task {task.name!r} has no counterfactuals, which two of the paper's methods replace by; build it with "
            "Task(counterfactuals=...), or name methods that need none: compare_methods(..., methods=[Zero(), ...])"
        )


def _every_type(
    model: LensModel,
    fitted: Task,
    judged: Task,
    components: Components,
    where: StatisticsPositions,
    loss: Loss,
    steps: int,
    seed: int,
    engine: Engine,
    allow_small: bool,
    advance: Callable[[int], None],
) -> dict[str, Method]:
    """All types of ablation of the paper by name, with what they rest on measured on ``fitted``."""
    sets = list(components.sets)
    assert fitted.counterfactuals is not None
    changed = replace(fitted, inputs=fitted.counterfactuals, counterfactuals=None)
    pooled = moments(model, fitted, sets, where, per_position=False)
    # tables reach the first position too, which is then left alone or not
    by_position, of_changed = (moments(model, part, sets, "all", per_position=True) for part in (fitted, changed))
    descents = replace(engine, executor="serial", workers=None, cluster={}, dtype=None)
    optimal = [
        fit_optimal(
            model,
            fitted,
            sets,
            per_position=per_position,
            loss=loss,
            positions=where,
            steps=steps,
            seed=seed,
            allow_small=allow_small,
            engine=descents.part(f"constants-{'by-position' if per_position else 'pooled'}"),
            progress=onward(advance),
        )
        for per_position in (True, False)
    ]
    found: list[Method] = [
        Zero(),
        Mean(by_position, per_position=True),
        Mean(pooled),
        Mean(of_changed, per_position=True),
        Resample(judged, match="batch", seed=seed),
        Resample(judged, match="batch", seed=seed, shuffled=True),
        Optimal(optimal[0]),
        Optimal(optimal[1]),
        Counterfactual(judged),
    ]
    return dict(zip(TYPES, found, strict=True))


def _gaps(
    model: LensModel,
    task: Task,
    components: Components,
    method: Method,
    where: StatisticsPositions,
    batch_size: int | None,
    engine: Engine,
) -> Float[Tensor, "site example"]:
    """What ablating each site alone adds to the loss."""
    assert isinstance(task.metric, Metric)
    sign = -1.0 if task.metric.higher_is_better else 1.0
    found: list[Tensor] = []
    for sites in components.sets:
        scores = run_variants(
            model,
            task,
            [Ablation(sites, OneEach(len(sites)), method)],
            positions=where,
            batch_size=batch_size,
            engine=engine.part(sites.kind),
        )
        found.append(sign * (scores.values - scores.baseline))
    return torch.cat(found)
