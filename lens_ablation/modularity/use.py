"""How much each neuron is used on some data: sums that every score of importance is made of."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from lens_ablation.ablation import hooks
from lens_ablation.data.inputs import batches_of, rows_per_pass
from lens_ablation.data.task import Task
from lens_ablation.errors import BadActivation, HookDidNotFire, StatisticsMismatch
from lens_ablation.methods.method import Method
from lens_ablation.models.forward import forward
from lens_ablation.models.protocol import LensModel, require_evaluation_mode
from lens_ablation.progress import Progress, progress_bar
from lens_ablation.selectors import neurons
from lens_ablation.sites import MLP_NEURON_KINDS, HookPoint, Site, SiteSet, as_site_set, check_sites_exist
from lens_ablation.statistics.activation_statistics import ActivationStatistics
from lens_ablation.statistics.counted import CountedRows, StatisticsPositions, require_positions
from lens_ablation.statistics.moments import Moments, batch_moments
from lens_ablation.statistics.provenance import Provenance

KINDS = (*MLP_NEURON_KINDS, "z")
"""Kinds of sites that are neurons: of MLPs (``post``), of attention (``z``), and the up projection of gated MLPs."""

_POINTS = {"post": "neuron", "z": "z", "pre_linear": "pre_linear"}


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class NeuronUse:
    """How much each neuron is used on some data.

    Attributes:
        sites: The neurons, of MLPs or of attention.
        count: How many tokens were counted.
        mean: Mean activation ``z``, ``[neuron]``.
        variance: Mean squared deviation from the mean.
        mean_abs: Mean of ``|z|``; ``None`` where only moments were measured.
        mean_sqrt: Mean of ``sqrt(|z|)``; ``None`` likewise.
        positive: Share of tokens with ``z > 0``; ``None`` likewise.
        provenance: Model, data and settings behind them.
    """

    sites: SiteSet
    count: int
    mean: Float64[Tensor, " neuron"]
    variance: Float64[Tensor, " neuron"]
    mean_abs: Float64[Tensor, " neuron"] | None
    mean_sqrt: Float64[Tensor, " neuron"] | None
    positive: Float64[Tensor, " neuron"] | None
    provenance: Provenance

    @property
    def dead(self) -> Bool[Tensor, " neuron"]:
        """Neurons that were 0 at every token."""
        return (self.mean == 0) & (self.variance == 0)

    def __repr__(self) -> str:
        return (
            f"NeuronUse({self.provenance.model_name}: {len(self.sites)} {self.sites.kind} sites, {self.count} tokens)"
        )


def neuron_use(
    model: LensModel,
    data: Task | Tensor | Iterable[object],
    sites: Site | SiteSet | Iterable[Site] | None = None,
    *,
    positions: StatisticsPositions = "all",
    without: tuple[SiteSet, Method] | None = None,
    batch_size: int | None = None,
    progress: Progress = True,
) -> NeuronUse:
    """How much each neuron is used on ``data``, in one pass that keeps nothing of any one token.

    Args:
        model: A TransformerLens model in evaluation mode; left exactly as it was.
        data: A ``Task``, tokens ``[example, pos]``, pixels, a ``datasets.Dataset``, or an iterable of batches.
        sites: ``neurons(model)`` (the default), ``attention_neurons(model)``, or some of them.
        positions: ``all`` tokens (as in the paper: the first one too), ``all_but_first``, or a task's ``answer``;
            of images the class token, which is their first.
        without: Sites and a method: the model is measured while these are ablated.
        batch_size: Rows in a forward pass; about 4096 tokens by default.
        progress: ``True`` for a bar, ``False`` for silence, or a callable given ``(done, total)`` rows.

    Raises:
        BadActivation: an activation is not finite.
        HookDidNotFire: a hook did not fire once in each forward pass.
        ValueError: the sites are no neurons, or model, data and settings do not fit together.

    Reference:
        Pochinkov, Schoots, *Dissecting Language Models: Machine Unlearning via Selective Pruning*, 2024,
        arXiv:2403.01267

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> la.neuron_use(model, la.tasks.domain(model, n=8, name="code"), progress=False)
        NeuronUse(tiny-lm: 2048 neuron sites, 512 tokens)
    """
    require_evaluation_mode(model)
    require_positions(positions)
    chosen = neuron_sites(model, sites)
    if batch_size is None:
        batch_size = rows_per_pass(data, model)
    batches = batches_of(data, model, batch_size)
    recorders = [_Recorder(point) for point in chosen.hook_points]
    n_rows = sum(batch.inputs.shape[0] for batch in batches)
    with progress_bar(progress, n_rows, "use of neurons", "row") as advance, torch.no_grad():
        for batch in batches:
            rows = CountedRows(batch, positions)
            pairs = [] if without is None else hooks(model, *without, attention_mask=batch.attention_mask)
            pairs += [(recorder.point.name, partial(recorder.show, rows)) for recorder in recorders]
            forward(model, batch.inputs, attention_mask=batch.attention_mask, fwd_hooks=pairs)
            for recorder in recorders:
                recorder.check_firings()
            advance(batch.inputs.shape[0])
    ablated = None if without is None else [without[0].kind, without[0].digest, without[1].name]
    provenance = Provenance.of_model(
        model,
        data=[batches.fingerprint if positions != "answer" else f"{batches.fingerprint} {batches.answers_fingerprint}"],
        positions=positions,
        hook_names=[point.name for point in chosen.hook_points],
        measurement={"neuron_use": chosen.kind, "without": ablated},
    )
    return _assembled(chosen, recorders, provenance)


def neuron_sites(model: LensModel, sites: Site | SiteSet | Iterable[Site] | None) -> SiteSet:
    """These sites as a set, once they are known to be neurons of the model; all its MLP neurons if none are given.

    Raises:
        UnknownSite: the model has no such site.
        ValueError: they are no neurons.
    """
    return require_neurons(check_sites_exist(neurons(model) if sites is None else as_site_set(sites), model))


def require_neurons(sites: SiteSet) -> SiteSet:
    """The same sites, once they are known to be neurons.

    Raises:
        ValueError: they are not.
    """
    if sites.kind not in KINDS:
        raise ValueError(
            f"{sites.kind} sites are no neurons; take neurons(model), attention_neurons(model), or parts of them"
        )
    return sites


def of_statistics(statistics: ActivationStatistics, sites: SiteSet | None = None) -> NeuronUse:
    """What collected statistics say of the use of neurons: means and variances alone.

    Args:
        statistics: What ``collect_statistics`` measured at ``hook_post``, ``hook_z`` or ``hook_pre_linear``.
        sites: The neurons; all of them by default.

    Raises:
        StatisticsMismatch: the statistics hold nothing on some of the neurons.
        ValueError: they hold several kinds of neurons, or none.
    """
    chosen = _sites_of(statistics) if sites is None else require_neurons(sites)
    found = [statistics[point].moments for point in chosen.hook_points]
    counts = {int(count) for moments in found for count in moments.count.unique()}
    if len(counts) > 1:
        raise StatisticsMismatch(f"neurons were counted at {sorted(counts)} tokens; collect all of them at once")
    return NeuronUse(
        sites=chosen,
        count=counts.pop(),
        mean=_chosen(chosen, [moments.mean.flatten() for moments in found]),
        variance=_chosen(chosen, [moments.variance.flatten() for moments in found]),
        mean_abs=None,
        mean_sqrt=None,
        positive=None,
        provenance=statistics.provenance,
    )


class _Recorder:
    """What one hook shows, summed up by coordinate."""

    def __init__(self, point: HookPoint):
        self.point = point
        self.moments: Moments | None = None
        self.sums: Tensor | None = None
        self._fired = 0

    def show(self, rows: CountedRows, activation: Tensor, hook: object) -> None:
        """A hook function: takes the activation in and leaves it alone."""
        self._fired += 1
        values, counted = activation.flatten(2), rows.counted(activation.shape[1])
        values = values.flatten(0, 1) if counted is None else values[counted.to(values.device)]
        if not bool(torch.isfinite(values).all()):
            raise BadActivation(
                f"{self.point.name} holds NaN or infinity. Half precision may have overflowed: load the model with "
                "dtype=torch.float32, or look for NaN in its weights or inputs"
            )
        # MPS has no float64
        exact = values.cpu().double() if values.device.type == "mps" else values.double()
        moments, size = batch_moments(exact), exact.abs()
        sums = torch.stack([size.sum(0), size.sqrt().sum(0), (exact > 0).double().sum(0)])
        self.moments = moments if self.moments is None else self.moments.merge(moments)
        self.sums = sums if self.sums is None else self.sums + sums

    def check_firings(self) -> None:
        """Raise unless the hook fired once since the last check."""
        if self._fired != 1:
            raise HookDidNotFire(self.point.name, 1, self._fired)
        self._fired = 0


def _assembled(chosen: SiteSet, recorders: Sequence[_Recorder], provenance: Provenance) -> NeuronUse:
    found = [recorder.moments for recorder in recorders if recorder.moments is not None]
    sums = [recorder.sums for recorder in recorders if recorder.sums is not None]
    count = int(found[0].count[0])
    if count == 0:
        raise ValueError("no token was counted; give data with real tokens, or positions='all'")

    def column(of: Callable[[Moments, Tensor], Tensor]) -> Float64[Tensor, " neuron"]:
        return _chosen(chosen, [of(moments, total) for moments, total in zip(found, sums, strict=True)])

    return NeuronUse(
        sites=chosen,
        count=count,
        mean=column(lambda moments, _: moments.mean),
        variance=column(lambda moments, _: moments.variance),
        mean_abs=column(lambda _, total: total[0] / count),
        mean_sqrt=column(lambda _, total: total[1] / count),
        positive=column(lambda _, total: total[2] / count),
        provenance=provenance,
    )


def _chosen(sites: SiteSet, layers: Sequence[Float[Tensor, " coordinate"]]) -> Float64[Tensor, " neuron"]:
    """Values of the sites, from those of all coordinates of each of their layers."""
    together = torch.stack(list(layers)).cpu().double()
    row = np.searchsorted(sites.layers, sites.addresses[:, 0])
    place = np.ravel_multi_index(tuple(sites.addresses[:, 1:].T), sites.shape[1:])
    return together[torch.from_numpy(row), torch.from_numpy(place)]


def _sites_of(statistics: ActivationStatistics) -> SiteSet:
    kinds = sorted({_POINTS[point.activation] for point in statistics if point.activation in _POINTS})
    if len(kinds) != 1:
        raise ValueError(
            f"these statistics hold {' and '.join(kinds) or 'no'} sites; MLP and attention neurons are ranked "
            "separately, so say which: sites=neurons(model)"
        )
    kind = kinds[0]
    points = [point for point in statistics if _POINTS.get(point.activation) == kind]
    shape = (max(point.layer for point in points) + 1, *statistics[points[0]].count.shape)
    everything = np.indices(shape).reshape(len(shape), -1).T
    measured = np.isin(everything[:, 0], [point.layer for point in points])
    return SiteSet.from_stored(kind, everything[measured].copy(), shape)
