"""Baselines that follow a path from an empty input to the example: internal influence and neuron conductance."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_ablation.ablation import Firings
from lens_ablation.attribution.attribution import Attribution
from lens_ablation.attribution.outputs import BACKWARD_COST, ROWS_OF_GRADIENTS, Setting
from lens_ablation.attribution.strategy import Attributor, finished, require_slopes
from lens_ablation.data.metrics import Metric
from lens_ablation.data.task import Task
from lens_ablation.engine.executors import run_job
from lens_ablation.engine.gates import frozen_weights
from lens_ablation.engine.job import Job
from lens_ablation.engine.memory import run_in_chunks
from lens_ablation.engine.part import Part
from lens_ablation.engine.parts_job import in_dtype
from lens_ablation.engine.path import plain
from lens_ablation.engine.proof import refuse_store_under_hooks
from lens_ablation.engine.size import rows_in_pass
from lens_ablation.engine.variants import digest_of
from lens_ablation.errors import UnsupportedModel
from lens_ablation.methods.zero import Zero
from lens_ablation.models.checks import require_meaning
from lens_ablation.models.fingerprint import fingerprint, versions
from lens_ablation.models.forward import forward
from lens_ablation.models.protocol import FwdHook, LensModel, require_evaluation_mode
from lens_ablation.sites import HookPoint, SiteSet

EMBEDDING = "hook_embed"
"""Where the path of token models runs; positions are added after it, and are kept."""

AtHooks = dict[HookPoint, Float[Tensor, "..."]]
"""Tensors by hook."""


@dataclass(frozen=True)
class AlongPath(Attributor):
    """What path baselines share: inputs ``start + t (input - start)``, and gradients at the sites.

    The input is the pixels, or the token embedding without positions.

    Attributes:
        n_steps: Steps from the start to the example.
        start: What every pixel, or every coordinate of the embedding, is at the start.
    """

    n_steps: int = 50
    start: float = 0.0

    def __post_init__(self) -> None:
        if self.n_steps < 1:
            raise ValueError(f"n_steps is {self.n_steps}; take at least 1")

    @property
    @abstractmethod
    def points(self) -> Float[np.ndarray, " point"]:
        """Places ``t`` on the path, ascending, at which the model runs."""

    @property
    @abstractmethod
    def shares(self) -> Float[np.ndarray, " point"] | None:
        """What the gradient at each point counts; ``None`` to count it by the activation's way to the next point."""

    @property
    def settings(self) -> Mapping[str, object]:
        return {"n_steps": self.n_steps, "start": self.start}

    def rows(self, setting: Setting) -> int:
        return len(self.points) * setting.task.n_examples

    def attribute(self, setting: Setting, advance: Callable[[int], None]) -> Attribution:
        job = PathJob.of(setting, self)
        n_examples = setting.task.n_examples
        weights, baseline = torch.empty(n_examples, len(setting.components)), torch.empty(n_examples)
        for shard, found in run_job(job, setting.engine, advance):
            weights[job.plan[shard]], baseline[job.plan[shard]] = found["weights"].float(), found["baseline"]
        # the untouched pass is no point of the path
        n_passes = 1 + BACKWARD_COST * len(self.points)
        return finished(self, setting, weights=weights, baseline=baseline, n_passes=n_passes)


@dataclass(frozen=True)
class InternalInfluence(AlongPath):
    """Mean slope of the output in each component's activation, over inputs from an empty one to the example.

    ``integral of df/da over t in 0..1`` by Gauss-Legendre quadrature, summed over positions and over the coordinates
    of the component. Unlike conductance it does not ask how far the activation moves, so its unit is that of the
    metric over that of the activation. Costs a forward and a backward pass for each step, and one pass untouched.

    Attributes:
        n_steps: Points of the quadrature.
        start: What every pixel, or every coordinate of the token embedding, is at the start.

    Raises:
        ValueError: ``n_steps`` is below 1.

    Reference:
        Leino, Sen, Datta, Fredrikson, Li, *Influence-Directed Explanations for Deep Convolutional Networks*, 2018,
        arXiv:1802.03788.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> way = la.InternalInfluence(n_steps=4)
        >>> la.attribute(model, la.tasks.ioi(model, n=8), la.heads(model), way, progress=False).n_passes
        13
    """

    bibtex: ClassVar[str] = """@inproceedings{leino2018influence,
  title     = {Influence-Directed Explanations for Deep Convolutional Networks},
  author    = {Leino, Klas and Sen, Shayak and Datta, Anupam and Fredrikson, Matt and Li, Linyi},
  booktitle = {IEEE International Test Conference},
  year      = {2018}
}"""

    @property
    def name(self) -> str:
        return "Internal influence"

    @property
    def points(self) -> Float[np.ndarray, " point"]:
        return _gauss_legendre(self.n_steps)[0]

    @property
    def shares(self) -> Float[np.ndarray, " point"]:
        return _gauss_legendre(self.n_steps)[1]


@dataclass(frozen=True)
class Conductance(AlongPath):
    """How much of the output flows through each component on the way from an empty input to the example.

    ``sum over k of df/da(t_k) * (a(t_k+1) - a(t_k))``, summed over positions and over the coordinates of the
    component, in the unit of the metric. Over units that everything flows through, and that nothing by-passes, it
    adds up to ``f(example) - f(start)`` as the steps grow many. Costs a forward and a backward pass for each step and
    one more, and one pass untouched.

    Attributes:
        n_steps: Steps; one more points.
        start: What every pixel, or every coordinate of the token embedding, is at the start.
        spacing: ``gauss_legendre`` for the points of that quadrature, which lie close together at both ends and just
            inside them; ``even`` for points at equal distances with both ends among them.

    Raises:
        ValueError: ``n_steps`` is below 1, or ``spacing`` is unknown.

    Reference:
        Dhamdhere, Sundararajan, Yan, *How Important Is a Neuron?*, 2018, arXiv:1805.12233; as a sum over steps as in
        Shrikumar, Su, Kundaje, 2018, arXiv:1807.09946.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> way = la.Conductance(n_steps=4)
        >>> la.attribute(model, la.tasks.ioi(model, n=8), la.heads(model), way, progress=False).n_passes
        16
    """

    spacing: Literal["gauss_legendre", "even"] = "gauss_legendre"
    bibtex: ClassVar[str] = """@inproceedings{dhamdhere2019important,
  title     = {How Important Is a Neuron?},
  author    = {Dhamdhere, Kedar and Sundararajan, Mukund and Yan, Qiqi},
  booktitle = {International Conference on Learning Representations},
  year      = {2019}
}"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spacing not in ("gauss_legendre", "even"):
            raise ValueError(f"spacing must be 'gauss_legendre' or 'even', got {self.spacing!r}")

    @property
    def settings(self) -> Mapping[str, object]:
        return {**super().settings, "spacing": self.spacing}

    @property
    def points(self) -> Float[np.ndarray, " point"]:
        n_points = self.n_steps + 1
        return _gauss_legendre(n_points)[0] if self.spacing == "gauss_legendre" else np.linspace(0, 1, n_points)

    @property
    def shares(self) -> None:
        return None


def _gauss_legendre(n_points: int) -> tuple[Float[np.ndarray, " point"], Float[np.ndarray, " point"]]:
    """Points in 0..1 and their shares, which sum to 1."""
    points, shares = np.polynomial.legendre.leggauss(n_points)
    return (points + 1) / 2, shares / 2


@dataclass(eq=False, kw_only=True)
class PathJob(Job):
    """Gradients at the sites along the path, in shards of some examples.

    Attributes:
        setting: Model, examples, components.
        way: Which points, and what is summed over them.
        capacity: Rows (points times examples) in a pass.
        plan: Examples of each shard.
    """

    setting: Setting
    way: AlongPath
    capacity: int
    plan: list[slice] = field(init=False)
    _running: LensModel | None = field(init=False, default=None)

    @classmethod
    def of(cls, setting: Setting, way: AlongPath) -> "PathJob":
        """The work, checked and planned.

        Raises:
            UnsupportedModel: the model shows no token embedding, or a site means something else on it.
            ValueError: the metric has no gradient, a method was given, or patterns were.
        """
        model = setting.model
        require_evaluation_mode(model)
        refuse_store_under_hooks(model, setting.engine)
        require_slopes(setting)
        for method in setting.methods:
            if not isinstance(method, Zero):
                raise ValueError(f"{way.name} replaces nothing, so {method.name} means nothing to it; leave out method")
        for sites in setting.components.sets:
            if sites.kind == "pattern":
                raise ValueError(f"{way.name} is not defined here for patterns; take heads(model)")
            require_meaning(model, sites.kind)
        if setting.task.n_pos is not None and EMBEDDING not in model.hook_dict:
            raise UnsupportedModel(
                f"this model has no {EMBEDDING}, where the path from an empty input runs; take LeaveOneOut() or Coar()"
            )
        chosen = setting.batch_size
        if chosen is not None and chosen < 1:
            raise ValueError(f"batch_size must be 1 or more, got {chosen}")
        capacity = chosen or max(1, rows_in_pass(model, setting.task.inputs) // ROWS_OF_GRADIENTS)
        return cls(setting=setting, way=way, capacity=capacity)

    def __post_init__(self) -> None:
        total = self.setting.task.n_examples
        step = min(self.capacity, total)
        self.plan = [slice(start, min(start + step, total)) for start in range(0, total, step)]

    @property
    def shards(self) -> Sequence[int]:
        return [len(self.way.points) * (examples.stop - examples.start) for examples in self.plan]

    @property
    def identity(self) -> Mapping[str, object]:
        setting = self.setting
        positions = setting.positions if isinstance(setting.positions, str) else setting.positions.tolist()
        return {
            "model": fingerprint(setting.model),
            "task": setting.task.fingerprint,
            "wrong answers": digest_of(setting.task.wrong_answers),
            "metric": _metric(setting.task).identity,
            "positions": positions,
            "components": setting.components.digest,
            "attributor": {"name": self.way.name, **self.way.settings},
            "rows in a pass": self.capacity,
            "dtype": str(setting.engine.dtype or "the model's"),
            "versions": versions(),
        }

    def run(self, shard: int, advance: Callable[[int], None] | None = None) -> dict[str, Tensor]:
        """``weights [example, component]`` in float64, and ``baseline [example]``."""
        setting = self.setting
        if self._running is None:
            self._running = in_dtype(setting.model, setting.engine.dtype)
        part = Part(
            self._running,
            setting.task,
            list(zip(setting.components.sets, setting.methods, strict=True)),
            setting.positions,
            torch.arange(self.plan[shard].start, self.plan[shard].stop),
            plain("gradients along a path"),
            clean_bytes=0,
            gradients=True,
            prepared_on=setting.model,
        )
        walk = _Walk(part, self.way)

        def run(points: slice) -> None:
            walk.go(points)
            if advance is not None:
                advance(part.n_examples * (points.stop - points.start))

        step = max(1, self.capacity // part.n_examples)
        run_in_chunks(len(self.way.points), step, run, fixed=setting.batch_size is not None)
        return {"weights": walk.weights, "baseline": part.baseline}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_running": None}


class _Walk:
    """Sums over the points of a path, some points at a time."""

    def __init__(self, part: Part, way: AlongPath):
        self.part, self.way = part, way
        self.points = sorted({point for sites, _ in part.sets for point in sites.hook_points})
        n_components = sum(len(sites) for sites, _ in part.sets)
        self.weights = torch.zeros(part.n_examples, n_components, dtype=torch.float64)
        self._last: dict[HookPoint, tuple[Tensor, Tensor]] = {}

    def go(self, points: slice) -> None:
        """Run these points, which follow those that were run before."""
        activations, gradients = self._gradients(torch.from_numpy(self.way.points[points]))
        shares = self.way.shares
        sums: dict[HookPoint, Tensor] = {}
        for point in self.points:
            gradient, activation = gradients[point], activations[point]
            if shares is not None:
                share = torch.from_numpy(shares[points]).to(gradient)
                sums[point] = torch.tensordot(share, gradient, dims=1)
                continue
            if point in self._last:
                # the step from the last point of the pass before to the first one of this
                activation = torch.cat([self._last[point][0], activation])
                gradient = torch.cat([self._last[point][1], gradient])
            sums[point] = (gradient[:-1] * activation.diff(dim=0)).sum(dim=0)
        self.weights += torch.cat([_at_sites(self.part, sites, sums) for sites, _ in self.part.sets], dim=1)
        if shares is None:
            # copies, so that the rest of this pass is freed before the next
            self._last = {point: (activations[point][-1:].clone(), gradients[point][-1:].clone()) for point in sums}

    def _gradients(self, t: Float[Tensor, " point"]) -> tuple[AtHooks, AtHooks]:
        """Activations ``[point, example, pos, ...]`` at the sites' hooks, and the metric's gradients in them."""
        part, metric, n_points = self.part, _metric(self.part.batch), len(t)
        batch = part.repeated(slice(0, n_points * part.n_examples))
        inputs = part.inputs.repeat(n_points, *([1] * (part.inputs.ndim - 1)))
        mask = None if batch.attention_mask is None else batch.attention_mask.to(part.device)
        firings = Firings()
        taps = {point: _Tap(firings, firings.watch(point.name)) for point in self.points}
        pairs: list[FwdHook] = [(point.name, tap) for point, tap in taps.items()]
        moved = _Moved(firings, self.way.start, t.repeat_interleave(part.n_examples))
        if inputs.ndim == 4:
            inputs = moved.of(inputs)
        else:
            moved.place = firings.watch(EMBEDDING)
            pairs.append((EMBEDDING, moved))
        with torch.enable_grad(), frozen_weights(part.model):
            values = metric(forward(part.model, inputs, attention_mask=mask, fwd_hooks=pairs), batch)
            firings.check(1)
            if not values.requires_grad:
                raise ValueError(
                    f"metric {metric.name!r} has no gradient; attribute correct_margin, logit_difference or loss, or "
                    "take Coar(estimator='ridge')"
                )
            leaves = [tap.leaf for tap in taps.values()]
            found = torch.autograd.grad(values.sum(), leaves, materialize_grads=True, allow_unused=True)
        shape = (n_points, part.n_examples)
        activations = {point: tap.activation.unflatten(0, shape) for point, tap in taps.items()}
        return activations, {point: slope.unflatten(0, shape) for point, slope in zip(taps, found, strict=True)}


@dataclass(eq=False, repr=False)  # TransformerLens names each hook by its repr, and tensors are slow to print
class _Tap:
    """Adds a leaf of zeros to an activation: the gradient in the leaf is that in the activation."""

    firings: Firings
    place: int
    leaf: Tensor = field(init=False)
    activation: Tensor = field(init=False)

    def __call__(self, activation: Float[Tensor, "row pos ..."], hook: object) -> Float[Tensor, "row pos ..."]:
        self.firings.counts[self.place] += 1
        self.activation = activation.detach()
        self.leaf = torch.zeros_like(self.activation, requires_grad=True)
        return activation + self.leaf


@dataclass(eq=False, repr=False)
class _Moved:
    """Moves the input of each row to its place ``t`` on the path."""

    firings: Firings
    start: float
    t: Float[Tensor, " row"]
    place: int = -1

    def of(self, inputs: Float[Tensor, "row ..."]) -> Float[Tensor, "row ..."]:
        t = self.t.to(inputs).reshape(-1, *([1] * (inputs.ndim - 1)))
        return self.start + t * (inputs - self.start)

    def __call__(self, embedded: Float[Tensor, "row pos d_model"], hook: object) -> Float[Tensor, "row pos d_model"]:
        self.firings.counts[self.place] += 1
        return self.of(embedded)


def _at_sites(part: Part, sites: SiteSet, sums: AtHooks) -> Float[Tensor, "example site"]:
    """Sums ``[example, pos, ...]`` at hooks as those of sites: over their tokens, and over their coordinates."""
    found = torch.zeros(part.n_examples, len(sites), dtype=torch.float64)
    for point in sites.hook_points:
        at_hook = sums[point]
        tokens = part.rows.replaced(at_hook.shape[1])
        if tokens is not None:
            at_hook = at_hook * tokens.to(at_hook.device).reshape(*tokens.shape, *([1] * (at_hook.ndim - 2)))
        here = np.flatnonzero(sites.addresses[:, 0] == point.layer)
        index = sites.addresses[here, 1:].T
        # tokens, and whatever axes the address does not name
        whole = at_hook.double().sum(dim=(1, *range(2 + len(index), at_hook.ndim)))
        chosen = whole[(slice(None), *map(torch.from_numpy, index))] if len(index) else whole[:, None]
        found[:, torch.from_numpy(here)] = chosen.cpu()
    return found


def _metric(task: Task) -> Metric:
    assert isinstance(task.metric, Metric)
    return task.metric
