"""Noise in the measure of each coordinate's own spread."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_ablation.methods.measured import covering, measured, statistics_settings
from lens_ablation.methods.method import MENG_2022, Method, Replacement, Request
from lens_ablation.models.protocol import LensModel
from lens_ablation.sites import HookPoint
from lens_ablation.statistics.activation_statistics import ActivationStatistics


@dataclass(frozen=True, eq=False)
class Noise(Method):
    """The activation plus Gaussian noise of ``scale`` standard deviations of each coordinate.

    With ``around="mean"`` the noise stands around the mean instead, which keeps nothing of the activation but its
    first two moments. Each example has noise of its own, the same in every batch and for the same seed.

    Attributes:
        statistics: From ``collect_statistics`` on this model.
        scale: Standard deviations.
        seed: Draws the noise.
        around: ``activation`` or ``mean``.

    Raises:
        ValueError: ``scale`` is negative, or ``around`` unknown.

    Reference:
        Meng et al., *Locating and Editing Factual Associations in GPT*, 2022, arXiv:2202.05262, section 2 (noise on
        embeddings in units of their standard deviation).

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task = la.tasks.ioi(model, n=64)
        >>> stats = la.collect_statistics(model, task, la.heads(model), progress=False)
        >>> result = la.sweep(model, task, la.heads(model), la.Noise(stats, scale=2.0), progress=False)
    """

    statistics: ActivationStatistics
    scale: float = 1.0
    seed: int = 0
    around: Literal["activation", "mean"] = "activation"
    bibtex: ClassVar[str] = MENG_2022

    def __post_init__(self) -> None:
        if not self.scale >= 0:
            raise ValueError(f"scale counts standard deviations and must be 0 or more, got {self.scale}")
        if self.around not in ("activation", "mean"):
            raise ValueError(f"around must be 'activation' or 'mean', got {self.around!r}")

    @property
    def positional(self) -> bool:
        return True

    @property
    def settings(self) -> Mapping[str, object]:
        own = {"scale": self.scale, "seed": self.seed, "around": self.around}
        return {**own, **statistics_settings(self.statistics)}

    def prepare(
        self, model: LensModel, points: Sequence[HookPoint], examples: Int[Tensor, " example"] | None = None
    ) -> Replacement:
        if self.around == "activation" and any(point.activation == "pattern" for point in points):
            raise ValueError(
                "noise on a pattern needs the pattern itself, which some models compute only after hook_z was "
                "written; use Noise(statistics, around='mean'), or ablate heads"
            )
        mean = covering(measured(self.statistics, model, points, "mean"), "the mean")
        variance = covering(measured(self.statistics, model, points, "variance"), "the variance")
        drawn: dict[tuple[HookPoint, int, torch.Size], Tensor] = {}

        def replacement(request: Request) -> Tensor:
            centre = mean(request) if request.activation is None or self.around == "mean" else request.activation
            rows = torch.arange(request.shape[0]) if request.examples is None else request.examples.cpu()
            for example in rows.unique().tolist():
                key = (request.point, example, request.shape[1:])
                if key not in drawn:
                    drawn[key] = self._noise(*key)
            noise = torch.stack([drawn[request.point, example, request.shape[1:]] for example in rows.tolist()])
            spread = variance(request).sqrt() * self.scale
            return centre + noise.to(centre) * spread.to(centre)

        return replacement

    def _noise(self, point: HookPoint, example: int, shape: torch.Size) -> Float[Tensor, "..."]:
        key = hashlib.sha256(f"{self.seed}:{point.name}:{example}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") & (2**63 - 1))
        return torch.randn(shape, generator=generator)
