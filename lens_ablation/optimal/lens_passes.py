"""How the stream in the middle of a model is carried to its output, for each kind of lens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_ablation.data.task import Task
from lens_ablation.engine.clean import Residual
from lens_ablation.engine.part import Part
from lens_ablation.engine.path import Path
from lens_ablation.engine.size import rows_in_pass
from lens_ablation.methods.method import Method, Replacement, Request
from lens_ablation.models.anatomy import anatomy
from lens_ablation.models.protocol import LensModel, input_device
from lens_ablation.optimal.lens_strategies import LensKind, MeanAttention, OptimalConstantAttention, TunedLens
from lens_ablation.optimal.problems import moments
from lens_ablation.selectors import attentions
from lens_ablation.sites import HookPoint

Parameters = dict[str, Float[Tensor, "layer ..."]]
"""What a lens has learned, one entry to a layer that it reads: ``constants [layer, block, d_model]``, or ``maps [layer,
d_model, d_model]`` and ``biases [layer, d_model]``."""


def replaces_attention(kind: LensKind) -> bool:
    """Whether the lens runs the rest of the model with attention at constants."""
    return isinstance(kind, MeanAttention | OptimalConstantAttention)


def start_of(kind: LensKind, model: LensModel, task: Task) -> Parameters:
    """Parameters before any step: identity for affine maps, means for constants."""
    sizes = anatomy(model)
    n, width = sizes.n_layers, sizes.d_model
    weight = next(iter(model.parameters()))
    if isinstance(kind, TunedLens):
        return {"maps": weight.new_zeros(n, width, width), "biases": weight.new_zeros(n, width)}
    if not replaces_attention(kind):
        return {}
    layers = attentions(model)
    measured = moments(model, task, [layers], "answer", per_position=False)
    means = torch.stack([measured[point].mean for point in layers.hook_points]).to(weight)
    return {"constants": means.repeat(n, 1, 1)}


def examples_in_pass(model: LensModel, task: Task) -> int:
    """Examples whose every layer is read in one forward pass."""
    return max(1, rows_in_pass(model, task.inputs) // anatomy(model).n_layers)


class LensPart:
    """Some examples, ready to be read at every layer.

    Args:
        kind: The lens.
        model: A TransformerLens model.
        task: Where the examples come from.
        rows: Which of them.
        path: By which shortcuts the model may be run.
        clean_bytes: Memory for clean activations.
    """

    def __init__(
        self, kind: LensKind, model: LensModel, task: Task, rows: Int[Tensor, " row"], path: Path, clean_bytes: int
    ):
        self.kind, self.n_layers = kind, anatomy(model).n_layers
        self.constants = _ByLensLayer(len(rows))
        sets = [(attentions(model), self.constants)] if replaces_attention(kind) else []
        self.part = Part(model, task, sets, "all", rows, path, clean_bytes=clean_bytes, gradients=True)
        self.n_examples = len(rows)

    def residual(self, parameters: Mapping[str, Float[Tensor, "layer ..."]]) -> Residual:
        """What goes into the final norm, rows ``[layer, example]``."""
        if replaces_attention(self.kind):
            self.constants.values = parameters["constants"]
            from_layer = np.triu(np.ones((self.n_layers, self.n_layers), dtype=bool))
            residual, order = self.part.residual([from_layer])
            assert order.tolist() == list(range(self.n_layers))
            return residual
        entering = torch.stack([self.part.clean.entering(layer) for layer in range(self.n_layers)])
        if isinstance(self.kind, TunedLens):
            moved = torch.einsum("lrpd,lde->lrpe", entering, parameters["maps"])
            entering = entering + moved + parameters["biases"][:, None, None]
        return entering.flatten(0, 1)

    def divergence(self, parameters: Mapping[str, Float[Tensor, "layer ..."]]) -> Float[Tensor, "layer example"]:
        """KL from the model's own output to what each layer gives, nats, mean over the positions that are read."""
        found = torch.cat(list(self.part.tail_scores(self.residual(parameters))))
        return found.reshape(self.n_layers, self.part.n_examples)

    def logits(
        self, parameters: Mapping[str, Float[Tensor, "layer ..."]]
    ) -> Float[Tensor, "layer example target d_vocab"]:
        """Logits where the task reads its answers."""
        residual = self.residual(parameters)
        found = self.part.answer_logits(residual, slice(0, len(residual)))
        return found.reshape(self.n_layers, self.part.n_examples, *found.shape[1:])


@dataclass(eq=False)
class _ByLensLayer(Method):
    """Constants of each lens layer at each block: rows are ``[layer, example]``, in the order of their layers."""

    n_examples: int
    values: Float[Tensor, "layer block d_model"] | None = None

    @property
    def settings(self) -> Mapping[str, object]:
        return {}

    def prepare(
        self, model: LensModel, points: Sequence[HookPoint], examples: Int[Tensor, " example"] | None = None
    ) -> Replacement:
        def replacement(request: Request) -> Float[Tensor, "row 1 d_model"]:
            assert self.values is not None
            present = request.shape[0] // self.n_examples
            here = self.values[:present, request.point.layer]
            return here.repeat_interleave(self.n_examples, dim=0)[:, None].to(input_device(model))

        return replacement
