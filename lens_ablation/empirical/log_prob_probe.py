"""The model's own answer, as the baseline of all probes."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from lens_ablation.empirical.gradients import NeuronGradients
from lens_ablation.empirical.probe import Probe, State


@dataclass(frozen=True)
class LogProbProbe(Probe):
    """The candidate to which the model gives the highest probability; it uses no neuron and learns nothing.

    Example:
        >>> import lens_ablation as la
        >>> la.LogProbProbe()
        LogProbProbe()
    """

    @property
    def settings(self) -> Mapping[str, object]:
        return {}

    def needs(self, gradients: NeuronGradients, labels: Int[Tensor, " example"]) -> State:
        return {"scores": torch.zeros(1, len(gradients.sites))}

    def fit(self, seen: State, n_candidates: int) -> State:
        return {"scores": torch.zeros(seen["scores"].shape[1], dtype=torch.float64)}

    def predict(self, state: State, gradients: NeuronGradients, n_candidates: int) -> Int[Tensor, " example"]:
        return gradients.probabilities.argmax(dim=1)

    def places(self, state: State) -> Int[Tensor, " chosen"]:
        return torch.zeros(0, dtype=torch.int64)
