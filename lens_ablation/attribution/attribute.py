"""The verb ``attribute``."""

from collections.abc import Iterable, Sequence

from torch import Tensor

from lens_ablation.ablation import Positions
from lens_ablation.attribution.attribution import Attribution
from lens_ablation.attribution.outputs import Setting
from lens_ablation.attribution.strategy import Attributor
from lens_ablation.components import Components, as_components
from lens_ablation.data.as_task import as_task
from lens_ablation.data.metrics import Metric, MetricFn
from lens_ablation.data.task import Task
from lens_ablation.engine.options import Engine
from lens_ablation.methods.method import Method
from lens_ablation.methods.zero import Zero
from lens_ablation.models.protocol import LensModel
from lens_ablation.progress import Progress, progress_bar
from lens_ablation.sites import Site, SiteSet


def attribute(
    model: LensModel,
    data: Task | Tensor | Iterable[object],
    sites: Site | SiteSet | Iterable[Site | SiteSet] | Components,
    attributor: Attributor,
    *,
    method: Method | Sequence[Method] | None = None,
    metric: Metric | MetricFn | None = None,
    positions: Positions = "all",
    batch_size: int | None = None,
    engine: Engine | None = None,
    progress: Progress = True,
) -> Attribution:
    """What each component adds to each example's output.

    Args:
        model: A TransformerLens model in evaluation mode; left exactly as it was.
        data: A ``Task``, or anything that makes one.
        sites: The components: a set of sites, or sets of several kinds.
        attributor: ``Coar(...)``, or a baseline such as ``LeaveOneOut()``.
        method: What stands in the place of an ablated activation, ``Zero()`` by default; one for all sets, or one to
            each.
        metric: The output that is attributed, instead of the task's own.
        positions: Which tokens are ablated.
        batch_size: Rows in a forward pass; chosen when ``None``.
        engine: Where finished parts are kept, who computes them; see ``Engine``.
        progress: ``True`` for a bar, ``False`` for silence, or a callable given ``(done, total)``.

    Returns:
        Weights ``[example, component]``, in the unit of the metric.

    Raises:
        BadActivation: an output is not finite.
        ValueError: model, data, sites and method do not fit together, or no output changes.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> parts = [la.heads(model), la.mlps(model)]
        >>> found = la.attribute(model, la.tasks.ioi(model, n=8), parts, la.Coar(n_masks=16), progress=False)
        >>> found.components.names[0]
        'L0H0'
    """
    task = as_task(data, model)
    task = task if metric is None else task.with_metric(metric)
    setting = Setting(
        model=model,
        task=task,
        components=(components := as_components(sites, model)),
        methods=methods_of(method, components),
        positions=positions,
        batch_size=batch_size,
        engine=engine or Engine(),
    )
    with progress_bar(progress, attributor.rows(setting), attributor.name, "row") as advance:
        return attributor.attribute(setting, advance)


def methods_of(method: Method | Sequence[Method] | None, components: Components) -> tuple[Method, ...]:
    """One method to each set of components, zero ablation if none was given.

    Raises:
        ValueError: there are not as many as sets.
    """
    if method is None or isinstance(method, Method):
        return (method or Zero(),) * len(components.sets)
    if len(method) != len(components.sets):
        raise ValueError(f"{len(method)} methods were given for {len(components.sets)} sets of sites; give one to each")
    return tuple(method)
