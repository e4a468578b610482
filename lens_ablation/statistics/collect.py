"""Measuring the activations of a model on some data, in passes that keep nothing of any one token."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_ablation.data.inputs import Batches, InputBatch, batches_of, rows_per_pass
from lens_ablation.data.task import Task
from lens_ablation.errors import BadActivation, HookDidNotFire, StatisticsMismatch, UnsupportedModel
from lens_ablation.models.anatomy import ACTIVATIONS, anatomy
from lens_ablation.models.capture import align, align_pattern
from lens_ablation.models.forward import forward
from lens_ablation.models.protocol import FwdHook, LensModel, require_evaluation_mode
from lens_ablation.progress import Progress, progress_bar
from lens_ablation.sites import HookPoint, Site, SiteSet, as_site_set, check_sites_exist
from lens_ablation.statistics.activation_statistics import ActivationStatistics, PointStatistics, seen_only
from lens_ablation.statistics.cache import StatisticsCache
from lens_ablation.statistics.counted import CountedRows, StatisticsPositions, require_positions
from lens_ablation.statistics.histogram import StreamingHistogram
from lens_ablation.statistics.moments import PositionMeans, StreamingMoments, batch_position_means
from lens_ablation.statistics.peaks import ESTIMATORS, Accumulator, Known, Measurement, OwnRange, PeakEstimator
from lens_ablation.statistics.provenance import MODEL_FIELDS, Provenance, described

LEAST_SAMPLES = 100
"""Fewest values of a coordinate (or at a position) that statistics rest on, unless ``allow_small``."""

PAPER_PEAK = OwnRange()
"""Peak ablation as published."""


def collect_statistics(
    model: LensModel,
    data: Task | Tensor | Iterable[object],
    sites: Site | SiteSet | Iterable[Site | SiteSet],
    *,
    positions: StatisticsPositions = "all",
    peaks: PeakEstimator = PAPER_PEAK,
    per_position: bool = False,
    histograms: bool = True,
    ranges: ActivationStatistics | None = None,
    batch_size: int | None = None,
    cache: str | Path | StatisticsCache | None = None,
    allow_small: bool = False,
    progress: Progress = True,
) -> ActivationStatistics:
    """Statistics of the activations of ``model`` on ``data``, for every hook that holds one of ``sites``.

    Always over whole hooks: ``heads(model)[2, 1]`` measures all heads of layer 2. The data is read once for its
    fingerprint, run once for the moments, and run once more for histograms and peaks (some estimators take another
    pass). Memory does not depend on its length: about 500 bytes a coordinate with histograms, of which patterns have
    ``n_heads * n_pos ** 2`` to a layer.

    Args:
        model: A TransformerLens model in evaluation mode; left exactly as it was.
        data: A ``Task``, tokens ``[example, pos]``, pixels, a ``datasets.Dataset``, or an iterable of batches that
            can be read again in the same order.
        sites: Sites, or several sets of them as in ``[heads(model), neurons(model)]``.
        positions: ``all`` tokens (as the paper does: the first one too), ``all_but_first``, or the ``answer``
            positions of a task. Patterns are measured at ``all``.
        peaks: The definition of the peak.
        per_position: Also the mean at each position, counted from the row's first real token.
        histograms: ``False`` saves the second pass, and gives neither histograms nor peaks nor shapes.
        ranges: Statistics of all shards merged, whose bounds this shard's histograms take over, so that they can
            be merged exactly too.
        batch_size: Rows in a forward pass; about 4096 tokens by default.
        cache: A folder where statistics are kept and found again by what they were measured on.
        allow_small: Accept fewer than 100 values of a coordinate, or at a position.
        progress: ``True`` for a bar, ``False`` for silence, or a callable given ``(done, total)`` rows.

    Raises:
        BadActivation: an activation is not finite, or patterns have several sizes.
        DamagedFile: the cache's entry is damaged.
        HookDidNotFire: a hook did not fire once in each forward pass.
        StatisticsMismatch: ``ranges`` were measured on another model, other hooks or positions.
        UnknownSite: a site is not the model's.
        ValueError: data, sites and settings do not fit together, or there are too few tokens.

    Reference:
        Pochinkov et al., *Investigating Neuron Ablation in Attention Heads: The Case for Peak Activation
        Centering*, 2024. arXiv:2408.17322

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> stats = la.collect_statistics(model, la.tasks.ioi(model, n=64), la.heads(model)[2], progress=False)
        >>> stats["blocks.2.attn.hook_z"].peak.shape
        torch.Size([8, 16])
    """
    require_evaluation_mode(model)
    points = _hook_points(model, sites)
    _check_settings(points, positions, peaks, histograms)
    batches = batches_of(data, model, rows_per_pass(data, model) if batch_size is None else batch_size)
    n_rows = sum(batch.inputs.shape[0] for batch in batches)
    provenance = Provenance.of_model(
        model,
        data=[_data_fingerprint(batches, positions)],
        positions=positions,
        hook_names=[point.name for point in points],
        measurement={
            "peaks": repr(peaks) if histograms else None,
            "per_position": per_position,
            "bounds": None if ranges is None else ranges.provenance.digest,
        },
    )
    if ranges is not None:
        _check_ranges(ranges, provenance)
    store = StatisticsCache(cache) if isinstance(cache, str | Path) else cache
    statistics = None if store is None else store.get(provenance)
    if statistics is None:
        n_passes = 1 + (peaks.n_passes if histograms else 0)
        with progress_bar(progress, n_rows * n_passes, "statistics", "row") as advance:
            run = _Collection(model, batches, points, positions, per_position, advance)
            found = run.measure(peaks if histograms else None, ranges, allow_small)
        statistics = ActivationStatistics(points=found, provenance=provenance, estimator=peaks if histograms else None)
        if store is not None:
            store.put(statistics)
    elif not allow_small:
        for point, of_point in statistics.points.items():
            _require_enough(point, of_point.count, of_point.positions)
    return statistics


class _Stop(Exception):
    """Raised by a hook where the last block ends, as what follows is not measured."""


class _Collection:
    """One measurement: the recorders of all hooks, shown the same data pass after pass.

    The first batch is run to its end and shows whether all hooks fire before the last block ends; if so, all other
    batches end there.
    """

    def __init__(
        self,
        model: LensModel,
        batches: Batches,
        points: Sequence[HookPoint],
        positions: StatisticsPositions,
        per_position: bool,
        advance: Callable[[int], None],
    ):
        self._model, self._batches, self._advance = model, batches, advance
        self._positions: StatisticsPositions = positions
        self._fingerprint = batches.fingerprint
        self._recorders = [_Recorder(point, per_position) for point in points]
        self._end = ACTIVATIONS["resid_post"].format(anatomy(model).n_layers - 1)
        self._stops: bool | None = None

    def measure(
        self, peaks: PeakEstimator | None, ranges: ActivationStatistics | None, allow_small: bool
    ) -> dict[HookPoint, PointStatistics]:
        """Statistics of each hook."""
        self._run_pass(self._recorders)
        if not allow_small:
            for recorder in self._recorders:
                _require_enough(recorder.point, recorder.moments.moments.count, recorder.position_means)
        if peaks is not None:
            self._find_peaks(peaks, ranges)
        return {recorder.point: recorder.statistics() for recorder in self._recorders}

    def _find_peaks(self, peaks: PeakEstimator, ranges: ActivationStatistics | None) -> None:
        spans = [_span(recorder, ranges) for recorder in self._recorders]
        overall = min(float(low.min()) for low, _ in spans), max(float(high.max()) for _, high in spans)
        pending: dict[_Recorder, Measurement] = {}
        for recorder, (lowest, highest) in zip(self._recorders, spans, strict=True):
            name, moments = recorder.point.name, recorder.moments.moments
            own = recorder.histogram = StreamingHistogram(name, lowest, highest, peaks.kept_bins)
            known = Known(name=name, moments=moments, own=own, overall=overall)
            pending[recorder] = _counting(own, peaks.measure(known))
        while pending:
            for recorder, run in list(pending.items()):
                try:
                    recorder.accumulators = next(run)
                except StopIteration as finished:
                    recorder.peak = finished.value
                    del pending[recorder]
            if pending:
                self._run_pass(list(pending))

    def _run_pass(self, recorders: "Sequence[_Recorder]") -> None:
        """Show all the data to these recorders once."""
        with torch.no_grad():
            for batch in self._batches:
                self._run(batch, recorders)
                for recorder in recorders:
                    recorder.check_firings()
                self._advance(batch.inputs.shape[0])
        if self._batches.fingerprint != self._fingerprint:
            raise ValueError(
                "the data came in another order, or changed, between two passes over it. Statistics read it "
                "several times: pass a DataLoader with shuffle=False and no random augmentation, or a tensor."
            )

    def _run(self, batch: InputBatch, recorders: "Sequence[_Recorder]") -> None:
        """Show one batch to these recorders, in a forward pass that goes no further than it must."""
        rows = CountedRows(batch, self._positions)
        hooks: list[FwdHook] = [(recorder.point.name, partial(recorder.show, rows)) for recorder in recorders]
        seen_at_end: list[bool] = []

        def end(activation: Tensor, hook: object) -> None:
            if self._stops:
                raise _Stop
            seen_at_end.append(all(recorder.has_fired for recorder in recorders))

        if self._stops is not False and self._end in self._model.hook_dict:
            hooks.append((self._end, end))
        with suppress(_Stop):
            forward(self._model, batch.inputs, attention_mask=batch.attention_mask, fwd_hooks=hooks)
        if self._stops is None:
            self._stops = seen_at_end == [True]


class _Recorder:
    """What one hook shows, handed to accumulators as ``[sample, coordinate]``."""

    def __init__(self, point: HookPoint, per_position: bool):
        self.point = point
        self.accumulators: tuple[Accumulator, ...] = ()
        self.position_means: PositionMeans | None = None
        self.histogram: StreamingHistogram | None = None
        self.peak: Float[Tensor, " coordinate"] | None = None
        self._per_position = per_position and point.activation != "pattern"
        self._moments: StreamingMoments | None = None
        self._fired = 0

    @property
    def moments(self) -> StreamingMoments:
        assert self._moments is not None
        return self._moments

    def show(self, rows: CountedRows, activation: Tensor, hook: object) -> None:
        """A hook function: takes the activation in and leaves it alone."""
        self._fired += 1
        if activation.device.type == "mps":
            # has no float64
            activation = activation.cpu()
        is_pattern = self.point.activation == "pattern"
        shape = tuple(activation.shape[1 if is_pattern else 2 :])
        if self._moments is None:
            self._moments = StreamingMoments(self.point.name, shape)
            self.accumulators = (self._moments,)
        elif shape != self._moments.shape:
            raise BadActivation(
                f"{self.point.name} has shape {list(shape)} here and had {list(self._moments.shape)} before. Patterns "
                "are measured by query and key: pad all rows to one length, with an attention mask."
            )
        values, valid = _pattern_samples(activation, rows) if is_pattern else _token_samples(activation, rows)
        for accumulator in self.accumulators:
            accumulator.update(values, valid)
        if self._per_position and self.accumulators == (self._moments,):
            self._add_positions(rows, activation)

    def _add_positions(self, rows: CountedRows, activation: Tensor) -> None:
        counted = rows.counted(activation.shape[1])
        if counted is not None:
            counted = counted.to(activation.device)
            activation = align(activation, rows.mask)
            counted = align(counted[..., None].float(), rows.mask)[..., 0].bool()
        batch = batch_position_means(activation.flatten(2), counted)
        self.position_means = batch if self.position_means is None else self.position_means.merge(batch)

    @property
    def has_fired(self) -> bool:
        """Whether the hook fired since the last check."""
        return self._fired > 0

    def check_firings(self) -> None:
        """Raise unless the hook fired once since the last check."""
        if self._fired != 1:
            raise HookDidNotFire(self.point.name, 1, self._fired)
        self._fired = 0

    def statistics(self) -> PointStatistics:
        """Everything found, in the shape of the activation."""
        shape, means, histogram = self.moments.shape, self.position_means, self.histogram
        moments = self.moments.moments.reshape(shape)
        return PointStatistics(
            point=self.point,
            moments=moments,
            histogram=None if histogram is None else histogram.histogram.reshape(shape),
            peak=None if self.peak is None else seen_only(self.peak.cpu().reshape(shape), moments),
            positions=None if means is None else means.reshape(shape),
        )


def _counting(own: StreamingHistogram, run: Measurement) -> Measurement:
    """The same passes, with the histogram that is kept counted in the first of them."""
    yield tuple(dict.fromkeys((own, *next(run))))
    return (yield from run)


def _token_samples(activation: Float[Tensor, "row pos ..."], rows: CountedRows) -> tuple[Tensor, None]:
    values = activation.flatten(0, 1).flatten(1)
    counted = rows.counted(activation.shape[1])
    return (values if counted is None else values[counted.flatten().to(values.device)]), None


def _pattern_samples(
    activation: Float[Tensor, "row head query key"], rows: CountedRows
) -> tuple[Tensor, Bool[Tensor, "row coordinate"] | None]:
    """Patterns with queries and keys counted from each row's first real token, and which of them exist."""
    if rows.mask is None:
        return activation.flatten(1), None
    mask = rows.mask.to(activation.device)
    real = torch.arange(mask.shape[1], device=mask.device) < mask.sum(1, keepdim=True)
    exists = (real[:, :, None] & real[:, None, :])[:, None].expand_as(activation)
    return align_pattern(activation, mask).flatten(1), exists.flatten(1)


def _span(recorder: _Recorder, ranges: ActivationStatistics | None) -> tuple[Tensor, Tensor]:
    own = recorder.moments.moments.span
    if ranges is None:
        return own
    lowest, highest = ranges[recorder.point].moments.span
    return lowest.flatten().to(own[0].device), highest.flatten().to(own[1].device)


def _hook_points(model: LensModel, sites: Site | SiteSet | Iterable[Site | SiteSet]) -> list[HookPoint]:
    """The hooks that hold the sites, in the order of the sets."""
    parts = [sites] if isinstance(sites, Site | SiteSet) else list(sites)
    by_kind: dict[str, list[Site]] = {}
    for site in parts:
        if isinstance(site, Site):
            by_kind.setdefault(site.kind, []).append(site)
    sets = [part for part in parts if not isinstance(part, Site)] + list(by_kind.values())
    points = [point for part in (sets or [[]]) for point in check_sites_exist(as_site_set(part), model).hook_points]
    for point in points:
        if point.name not in model.hook_dict:
            raise UnsupportedModel(f"this model has no hook {point.name}; check_sites(model) shows those that are live")
    return list(dict.fromkeys(points))


def _check_settings(
    points: Sequence[HookPoint], positions: StatisticsPositions, peaks: PeakEstimator, histograms: bool
) -> None:
    require_positions(positions)
    if isinstance(peaks, type) or not isinstance(peaks, PeakEstimator):
        known = ", ".join(f"{estimator.__name__}()" for estimator in ESTIMATORS)
        raise ValueError(f"peaks must be an estimator such as {known}; got {peaks!r}")
    if not histograms and peaks != PAPER_PEAK:
        raise ValueError(f"histograms=False finds no peaks, and {peaks} was asked for; leave one of the two out")
    if positions != "all" and any(point.activation == "pattern" for point in points):
        raise ValueError(
            f"patterns are measured by query and key, so positions={positions!r} says nothing about them; "
            "collect them with positions='all'"
        )


def _check_ranges(ranges: ActivationStatistics, provenance: Provenance) -> None:
    compared = (*MODEL_FIELDS, "positions", "hook_names")
    differences = provenance.differences(ranges.provenance)
    wrong = {name: pair for name, pair in differences.items() if name in compared}
    if wrong:
        raise StatisticsMismatch(f"ranges were measured on something else: {described(wrong)}. Measure them again.")


def _data_fingerprint(batches: Batches, positions: StatisticsPositions) -> str:
    if positions != "answer":
        return batches.fingerprint
    return hashlib.sha256(f"{batches.fingerprint} {batches.answers_fingerprint}".encode()).hexdigest()


def _require_enough(point: HookPoint, count: Tensor, means: PositionMeans | None) -> None:
    """Refuse statistics that rest on a handful of values; coordinates that never occur are left out."""
    counts = {"coordinate": count} | ({} if means is None else {"position": means.count})
    for of, n in counts.items():
        few = (n > 0) & (n < LEAST_SAMPLES)
        if bool(few.any()):
            raise ValueError(
                f"{point.name} has only {int(n[few].min())} values of a {of}, for {int(few.sum())} of {n.numel()}, and "
                f"statistics want {LEAST_SAMPLES}. Give more data, or pass allow_small=True if this is meant."
            )
