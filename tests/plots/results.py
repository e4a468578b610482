"""Results made by hand, so that figures are tested without a model."""

import numpy as np
import torch

from lens_ablation.sites import HookPoint, SiteSet
from lens_ablation.statistics.activation_statistics import ActivationStatistics, PointStatistics
from lens_ablation.statistics.histogram import StreamingHistogram
from lens_ablation.statistics.moments import batch_moments
from lens_ablation.statistics.peaks import OwnRange
from lens_ablation.statistics.provenance import Provenance
from lens_ablation.studies.pruning import PruningCurve
from lens_ablation.studies.sweep import SweepResult

SETTINGS = {
    "model": "a-model",
    "task": "ioi",
    "metric": "logit_difference",
    "unit": "logits",
    "higher_is_better": True,
    "positions": "all",
    "weight_processing": "raw",
}


def site_set(kind: str, shape: tuple[int, ...]) -> SiteSet:
    return SiteSet(kind, np.indices(shape).reshape(len(shape), -1).T.copy(), shape)


def a_sweep(
    kind: str = "head",
    shape: tuple[int, ...] = (3, 4),
    *,
    n: int = 16,
    keep: list[int] | None = None,
    effects: torch.Tensor | None = None,
    method: str = "Zero",
    seed: int = 0,
    **settings: object,
) -> SweepResult:
    generator = torch.Generator().manual_seed(seed)
    sites = site_set(kind, shape)
    sites = sites if keep is None else sites.take(keep)
    baseline = 5 + torch.randn(n, generator=generator)
    mean = torch.randn(len(sites), generator=generator) if effects is None else effects
    noise = 0.1 * torch.randn(len(sites), n, generator=generator)
    values = baseline + mean[:, None] + noise - noise.mean(dim=1, keepdim=True)
    return SweepResult(
        values=values,
        baseline=baseline,
        weights=torch.ones(n, dtype=torch.int64),
        sites=sites,
        settings={**SETTINGS, "method": {"name": method}, **settings},
    )


def a_curve(*, seeds: tuple[int, ...] = (1, 2, 3), methods: tuple[str, ...] = ("Zero", "Peak")) -> PruningCurve:
    generator = torch.Generator().manual_seed(0)
    fractions, n_sites, n = (0.0, 0.25, 0.5, 1.0), 30, 8
    return PruningCurve(
        values=torch.randn(len(methods), len(seeds), len(fractions), n, generator=generator),
        baseline=torch.randn(n, generator=generator),
        weights=torch.ones(n, dtype=torch.int64),
        fractions=fractions,
        n_removed=tuple(int(f * n_sites) for f in fractions),
        n_sites=n_sites,
        methods=methods,
        seeds=seeds,
        settings={**SETTINGS, "order": "random_per_layer"},
    )


def samples() -> torch.Tensor:
    """Activations ``[sample, head, unit]``: near-Gaussian, Laplace-like, bimodal, off-centre, constant, skewed."""
    generator = torch.Generator().manual_seed(0)
    n = 4000
    normal = torch.randn(n, 4, generator=generator)
    uniform = torch.rand(n, generator=generator) - 0.5
    laplace = -uniform.sign() * (1 - 2 * uniform.abs()).clamp(min=1e-6).log()
    two = torch.cat([normal[: n // 2, 1] - 4, 0.7 * normal[n // 2 :, 1] + 3])
    columns = [normal[:, 0], laplace, two, normal[:, 2] + 3, torch.full((n,), 0.25), (uniform + 0.5) ** 3]
    return torch.stack(columns, dim=1).reshape(n, 2, 3)


def a_measurement(*, histograms: bool = True) -> ActivationStatistics:
    values = samples()
    shape, flat = tuple(values.shape[1:]), values.flatten(1)
    moments = batch_moments(flat)
    stream = StreamingHistogram("hook", *moments.span, bins=100)
    stream.update(flat)
    point = HookPoint("z", 1)
    found = PointStatistics(
        point=point,
        moments=moments.reshape(shape),
        histogram=stream.histogram.reshape(shape) if histograms else None,
        peak=OwnRange().from_histogram(stream.histogram).reshape(shape) if histograms else None,
        positions=None,
    )
    provenance = Provenance(
        model="0" * 64,
        model_name="a-model",
        weight_processing="raw",
        tokenizer="none",
        dtype="torch.float32",
        data=("1" * 64,),
        positions="all",
        hook_names=(point.name,),
        measurement={"peaks": "OwnRange(bins=100)"},
        versions={},
    )
    return ActivationStatistics(points={point: found}, provenance=provenance, estimator=OwnRange())
