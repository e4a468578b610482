"""Ablation to constants of the caller's choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_ablation.errors import BadActivation
from lens_ablation.methods.method import Method, Replacement, Request
from lens_ablation.models.protocol import LensModel
from lens_ablation.sites import HookPoint


@dataclass(frozen=True, eq=False)
class Constant(Method):
    """Given values in the place of the activation.

    Attributes:
        values: One number; a tensor for every hook; or a tensor by hook name. Tensors have the activation's shape
            without rows and positions: ``[head, d_head]``, ``[width]``, or ``[head, query, key]`` for patterns.

    Raises:
        BadActivation: a value is not finite.

    Example:
        >>> import torch, lens_ablation as la
        >>> method = la.Constant({"blocks.0.mlp.hook_post": torch.ones(512)})
    """

    values: float | Float[Tensor, "..."] | Mapping[str, Float[Tensor, "..."]]

    def __post_init__(self) -> None:
        tensors = self.values.values() if isinstance(self.values, Mapping) else [torch.as_tensor(self.values)]
        if not all(bool(torch.isfinite(value).all()) for value in tensors):
            raise BadActivation("Constant was given values that are not finite; replace the NaN or infinity first")

    @property
    def settings(self) -> Mapping[str, object]:
        if isinstance(self.values, Mapping):
            return {"values": {name: value.tolist() for name, value in self.values.items()}}
        return {"values": self.values.tolist() if isinstance(self.values, Tensor) else self.values}

    def prepare(
        self, model: LensModel, points: Sequence[HookPoint], examples: Int[Tensor, " example"] | None = None
    ) -> Replacement:
        values = {point: self._of(point) for point in points}

        def replacement(request: Request) -> Tensor:
            value = values[request.point]
            own = request.shape[1:] if request.point.activation == "pattern" else request.shape[2:]
            if value.ndim and value.shape != own:
                raise ValueError(
                    f"Constant has shape {tuple(value.shape)} for {request.point.name}, whose activation is "
                    f"{tuple(own)} without rows and positions"
                )
            return value

        return replacement

    def _of(self, point: HookPoint) -> Tensor:
        if not isinstance(self.values, Mapping):
            return torch.as_tensor(self.values)
        if point.name not in self.values:
            raise ValueError(
                f"Constant holds no values for {point.name}; it holds {', '.join(sorted(self.values)) or 'none'}"
            )
        return self.values[point.name]
