"""What is asked of a model's neurons: examples, candidate answers, and the passes that all estimators share."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_ablation.ablation import Firings
from lens_ablation.attribution.outputs import ROWS_OF_GRADIENTS
from lens_ablation.data import metrics
from lens_ablation.data.as_task import as_task
from lens_ablation.data.checks import n_outputs
from lens_ablation.data.metrics import answer_logits
from lens_ablation.data.task import IGNORED, Task
from lens_ablation.engine.gates import frozen_weights
from lens_ablation.engine.options import Engine
from lens_ablation.engine.parts_job import in_dtype
from lens_ablation.engine.size import free_bytes, rows_in_pass
from lens_ablation.errors import HookHadNoEffect
from lens_ablation.models.anatomy import is_gated
from lens_ablation.models.forward import forward
from lens_ablation.models.protocol import FwdHook, LensModel, input_device, require_evaluation_mode
from lens_ablation.selectors import neurons
from lens_ablation.sites import MLP_NEURON_KINDS, HookPoint, Site, SiteSet, as_site_set, check_sites_exist
from lens_ablation.studies.settings import study_settings


@dataclass(frozen=True, eq=False, kw_only=True)
class Slopes:
    """What one pass over some examples gives.

    Attributes:
        values: Slope of each candidate's probability in each neuron, ``[example, candidate, neuron]``.
        activations: The neurons where the answer is read, ``[example, neuron]``.
        probabilities: Of the candidates, ``[example, candidate]``.
        outputs: Of the candidates under each shift; ``None`` where nothing is shifted.
    """

    values: Float[Tensor, "example candidate neuron"]
    activations: Float[Tensor, "example neuron"]
    probabilities: Float[Tensor, "example candidate"]
    outputs: Float[Tensor, "example candidate neuron shift"] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Question:
    """Neurons of a model, and examples with the candidate answers whose probability is watched.

    Attributes:
        model: The model.
        task: Examples; their metric is the probability of the first candidate.
        sites: The neurons.
        candidates: Token or class ids.
        batch_size: Rows in a pass; ``None`` to have it chosen.
        engine: Where and how it is run.
        running: The model, or a copy of it in the dtype of the engine.
    """

    model: LensModel
    task: Task
    sites: SiteSet
    candidates: Int[Tensor, "example candidate"]
    batch_size: int | None = None
    engine: Engine = field(default_factory=Engine)
    running: LensModel = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "running", in_dtype(self.model, self.engine.dtype))

    @classmethod
    def of(
        cls,
        model: LensModel,
        data: object,
        sites: Site | SiteSet | None,
        candidates: Int[Tensor, "..."] | None,
        batch_size: int | None,
        engine: Engine | None,
    ) -> "Question":
        """The question, checked.

        Raises:
            ValueError: parts of it do not fit together.
        """
        require_evaluation_mode(model)
        task = as_task(data, model)
        if task.positions is not None and task.positions.ndim == 2 and task.positions.shape[1] > 1:
            raise ValueError(
                f"{task.name} reads {task.positions.shape[1]} answers of an example, and neurons are followed at one "
                "position; give a Task with one answer, or positions [example]"
            )
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        chosen = family_neurons(model) if sites is None else check_sites_exist(as_site_set(sites), model)
        if chosen.kind not in MLP_NEURON_KINDS:
            raise ValueError(
                f"{chosen.kind} sites are no neurons; take neurons(model), or neurons(model, at='pre_linear') of gated "
                "MLPs"
            )
        if chosen.kind == "pre_linear":
            neurons(model, at="pre_linear")  # refuses models without a gate
        ids = default_candidates(task) if candidates is None else _checked(candidates, task, n_outputs(model))
        task = replace(task, answers=ids[:, 0], wrong_answers=None, metric=metrics.probability, clean_logits=None)
        if task.positions is not None:
            task = replace(task, positions=task.positions.reshape(-1))
        return cls(
            model=model, task=task, sites=chosen, candidates=ids, batch_size=batch_size, engine=engine or Engine()
        )

    @property
    def read(self) -> Int[Tensor, " example"]:
        """The position at which each example is read; of images the first, that of the class token."""
        positions = self.task.answer_positions
        return torch.zeros(self.task.n_examples, dtype=torch.int64) if positions is None else positions[:, 0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Examples, candidates, neurons."""
        n_examples, n_candidates = self.candidates.shape
        return n_examples, n_candidates, len(self.sites)

    @property
    def settings(self) -> dict[str, object]:
        """Model, data and versions behind the numbers."""
        hook = "hook_post" if self.sites.kind == "neuron" else "hook_pre_linear"
        return {
            **study_settings(self.model, self.task, "answer"),
            "hook": f"mlp.{hook}",
            "engine_dtype": str(self.engine.dtype or "the model's"),
        }

    def require_room(self, dtype: torch.dtype, per_value: int = 1) -> None:
        """Refuse results that do not fit in half of the memory that is free.

        Raises:
            ValueError: they do not.
        """
        n_examples, n_candidates, n_neurons = self.shape
        needed = n_examples * n_candidates * n_neurons * per_value * dtype.itemsize
        free = free_bytes(torch.device("cpu"))
        if needed > free // 2:
            times = f" x {per_value} shifts" if per_value > 1 else ""
            raise ValueError(
                f"{n_examples} examples x {n_candidates} candidates x {n_neurons} neurons{times} in {dtype} take "
                f"{needed / 2**30:.3g} GiB, and {free / 2**30:.3g} GiB are free, of which half may be used. Take parts "
                "of the examples (task.batches(n)) and keep what you need of each, fewer neurons, or "
                "dtype=torch.bfloat16"
            )

    def parts(self, *, gradients: bool = True) -> Iterator[slice]:
        """Consecutive examples that fit in a pass."""
        rows = self.batch_size or max(
            1, rows_in_pass(self.running, self.task.inputs) // (ROWS_OF_GRADIENTS if gradients else 1)
        )
        for start in range(0, self.task.n_examples, rows):
            yield slice(start, min(start + rows, self.task.n_examples))

    def slopes(self, rows: slice, scaled: tuple[HookPoint, float] | None = None) -> Slopes:
        """Slopes of the candidates' probabilities in all neurons, by one pass forward and one backward to a candidate.

        Args:
            rows: Which examples.
            scaled: A hook of which the whole vector at the position that is read is multiplied by a number; slopes
                are then taken in that hook's neurons alone.

        Raises:
            HookDidNotFire: a hook did not fire once.
            HookHadNoEffect: no path leads from a neuron's hook to the logits.
        """
        points = self.sites.hook_points if scaled is None else [scaled[0]]
        firings = Firings()
        read = self.read[rows].to(input_device(self.running))
        scale = 1.0 if scaled is None else scaled[1]
        taps = {point: _Tap(firings, point, read, scale=scale) for point in points}
        # hooks inside a copied bridge write to modules of the model that it was copied from
        with torch.enable_grad(), frozen_weights(self.model), frozen_weights(self.running):
            found = self.probabilities(rows, [(point.name, tap) for point, tap in taps.items()])
            firings.check(1)
            leaves = [tap.leaf for tap in taps.values()]
            gradients = [self._gradients(one, leaves, points) for one in _kept_until_last(found)]
        stacked = {point: torch.stack([of[i] for of in gradients], dim=1) for i, point in enumerate(points)}
        return Slopes(
            values=at_sites(self.sites, stacked),
            activations=at_sites(self.sites, {point: tap.clean for point, tap in taps.items()}),
            probabilities=found.detach().cpu(),
        )

    def clean(self, rows: slice, points: list[HookPoint] | None = None) -> tuple[dict[HookPoint, Tensor], Tensor]:
        """What hooks ``[example, width]`` show where the answer is read, and the candidates' probabilities."""
        firings = Firings()
        read = self.read[rows].to(input_device(self.running))
        wanted = self.sites.hook_points if points is None else points
        taps = {point: _Kept(firings, point, read) for point in wanted}
        with torch.inference_mode():
            found = self.probabilities(rows, [(point.name, tap) for point, tap in taps.items()])
        firings.check(1)
        return {point: tap.clean for point, tap in taps.items()}, found.cpu()

    def probabilities(self, rows: slice, hooks: list[FwdHook]) -> Float[Tensor, "example candidate"]:
        """Probabilities of the candidates of some examples, with hooks in place."""
        batch = self.task.select(rows)
        weight = next(iter(self.running.parameters()))
        inputs = batch.inputs.to(weight.device)
        inputs = inputs.to(weight.dtype) if inputs.ndim == 4 else inputs
        mask = None if batch.attention_mask is None else batch.attention_mask.to(weight.device)
        logits = forward(self.running, inputs, attention_mask=mask, fwd_hooks=hooks)
        return probabilities_of(answer_logits(logits, batch)[:, 0], self.candidates[rows])

    def _gradients(
        self, one: tuple[Float[Tensor, " example"], bool], leaves: list[Tensor], points: list[HookPoint]
    ) -> list[Tensor]:
        # rows do not see each other, so that the gradient of their sum is that of each
        found = torch.autograd.grad(one[0].sum(), leaves, retain_graph=not one[1], allow_unused=True)
        for point, gradient in zip(points, found, strict=True):
            if gradient is None:
                raise HookHadNoEffect(
                    f"no path leads from {point.name} to the logits of this model, so its neurons have no gradient; "
                    "check_sites(model, throw=False) shows which hooks are live"
                )
        return [gradient.detach() for gradient in found]


def family_neurons(model: LensModel) -> SiteSet:
    """All neurons as Zhao et al. take them: the up projection of gated MLPs, ``hook_post`` of others."""
    return neurons(model, at="pre_linear" if is_gated(model) else "post")


def default_candidates(task: Task) -> Int[Tensor, "example candidate"]:
    """The answer of each example, and its wrong answer if the task has some; of several the first."""
    columns = [_first(ids) for ids in (task.answers, task.wrong_answers) if ids is not None]
    return torch.stack(columns, dim=1)


def probabilities_of(
    logits: Float[Tensor, "... d_vocab"], candidates: Int[Tensor, "... candidate"]
) -> Float[Tensor, "... candidate"]:
    """Softmax probabilities of some ids, in float32 at least."""
    return metrics.widened(logits).log_softmax(dim=-1).gather(-1, candidates.to(logits.device)).exp()


def at_sites(sites: SiteSet, by_point: Mapping[HookPoint, Float[Tensor, "... unit"]]) -> Float[Tensor, "... neuron"]:
    """Values of whole hooks as those of the sites, in their order; of layers that are not given, none."""
    first = next(iter(by_point.values()))
    layers = {point.layer: values for point, values in by_point.items()}
    places = np.flatnonzero(np.isin(sites.addresses[:, 0], list(layers)))
    found = torch.empty(*first.shape[:-1], len(places), dtype=first.dtype)
    chosen = sites.addresses[places]
    for layer, values in layers.items():
        here = np.flatnonzero(chosen[:, 0] == layer)
        found[..., torch.from_numpy(here)] = values.cpu()[..., torch.from_numpy(chosen[here, 1])]
    return found


def _kept_until_last(
    found: Float[Tensor, "example candidate"],
) -> list[tuple[Float[Tensor, " example"], bool]]:
    columns = list(found.unbind(dim=1))
    return [(column, i == len(columns) - 1) for i, column in enumerate(columns)]


def _first(ids: Int[Tensor, "example ..."]) -> Int[Tensor, " example"]:
    rows = ids.reshape(len(ids), -1)
    return rows.gather(1, (rows != IGNORED).long().argmax(dim=1, keepdim=True))[:, 0]


def _checked(ids: Int[Tensor, "..."], task: Task, n_ids: int | None) -> Int[Tensor, "example candidate"]:
    if ids.ndim == 1:
        ids = ids.expand(task.n_examples, -1)
    if ids.ndim != 2 or len(ids) != task.n_examples or ids.shape[1] == 0:
        raise ValueError(
            f"candidates must be ids [candidate], or [example, candidate] of {task.n_examples} examples; got shape "
            f"{tuple(ids.shape)}"
        )
    if int(ids.min()) < 0 or (n_ids is not None and int(ids.max()) >= n_ids):
        last = "" if n_ids is None else n_ids - 1
        raise ValueError(
            f"candidates must be ids in 0..{last}, got {int(ids.min())}..{int(ids.max())}; give each candidate as "
            "one token"
        )
    return ids.clone()


@dataclass(eq=False, repr=False)  # TransformerLens names each hook by its repr, and tensors are slow to print
class _Kept:
    """Keeps what a hook shows at one position of each row."""

    firings: Firings
    point: HookPoint
    read: Int[Tensor, " row"]
    place: int = field(init=False)
    clean: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.place = self.firings.watch(self.point.name)

    def __call__(self, activation: Float[Tensor, "row pos unit"], hook: object) -> Tensor | None:
        self.firings.counts[self.place] += 1
        self.clean = activation.detach()[self._index(activation)]
        return None

    def _index(self, activation: Tensor) -> tuple[Tensor, Tensor]:
        return torch.arange(len(activation), device=activation.device), self.read


@dataclass(eq=False, repr=False)
class _Tap(_Kept):
    """Adds a leaf of zeros there: the gradient in the leaf is that in the activation; multiplies it by ``scale``."""

    scale: float = 1.0
    leaf: Tensor = field(init=False)

    def __call__(self, activation: Float[Tensor, "row pos unit"], hook: object) -> Tensor:
        super().__call__(activation, hook)
        self.leaf = torch.zeros_like(self.clean, requires_grad=True)
        index = self._index(activation)
        if self.scale == 1:
            return activation.index_put(index, self.leaf, accumulate=True)
        return activation.index_put(index, self.scale * self.clean + self.leaf)
