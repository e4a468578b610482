"""Probes of the signs of gradients, and of which candidate a neuron favours."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_ablation.empirical.gradients import NeuronGradients
from lens_ablation.empirical.probe import Probe, State, gold, require_k, strongest


@dataclass(frozen=True)
class _SignProbe(Probe):
    """Scores that are sums over examples; the ``k`` largest sizes are used, each with its sign."""

    k: int = 64
    positive_only: bool = False

    adds_up: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_k(self.k)

    @property
    def settings(self) -> Mapping[str, object]:
        return {"k": self.k, "positive_only": self.positive_only}

    def fit(self, seen: State, n_candidates: int) -> State:
        scores = seen["scores"]
        usable = scores.clamp(min=0) if self.positive_only else scores
        if not bool((usable != 0).any()):
            kind = "positive" if self.positive_only else "not zero"
            raise ValueError(
                f"no neuron has a score that is {kind}, so {self.name} has nothing to choose; give examples of every "
                "label, or other neurons"
            )
        places = strongest(usable, self.k)
        # a neuron without a score has no direction
        places = places[usable[places] != 0]
        return {"scores": scores, "places": places, "polarities": scores[places].sign()}

    def places(self, state: State) -> Int[Tensor, " chosen"]:
        return state["places"]

    def polarities(self, state: State) -> Int[Tensor, " chosen"]:
        return state["polarities"]


@dataclass(frozen=True)
class PolarityProbe(_SignProbe):
    """Neurons whose gradient is positive for the right candidate and negative for the others, or the reverse.

    With ``G[p, c, n]`` the gradient of neuron ``n`` for candidate ``c`` of prompt ``p``, and ``y`` the right one:
    ``s_n = sum_p (2 sign G[p, y, n] - sum_c sign G[p, c, n])``; used are the ``k`` largest ``|s_n|``, ties by place;
    the prediction is ``argmax_c sum_n sign(s_n) sign G[p, c, n]``, of equal ones the first.

    Attributes:
        k: Neurons to use; neurons whose score is exactly 0 are never used.
        positive_only: Use neurons with a positive score only.

    Raises:
        ValueError: ``k`` is below 1.

    Reference:
        Zhao, Jiang, Yoshinaga, 2025, arXiv:2412.18053

    Example:
        >>> import lens_ablation as la
        >>> la.PolarityProbe(k=16).settings
        {'k': 16, 'positive_only': False}
    """

    def needs(self, gradients: NeuronGradients, labels: Int[Tensor, " example"]) -> State:
        signs = gradients.values.sign()
        scores = 2 * gold(signs, labels).sum(dim=0, dtype=torch.int64) - signs.sum(dim=(0, 1), dtype=torch.int64)
        return {"scores": scores}

    def predict(self, state: State, gradients: NeuronGradients, n_candidates: int) -> Int[Tensor, " example"]:
        signs = gradients.values[:, :, state["places"]].sign().to(torch.int64)
        return (signs * state["polarities"]).sum(dim=2).argmax(dim=1)


@dataclass(frozen=True)
class MagnitudeProbe(_SignProbe):
    """Neurons whose gradient is larger for the right candidate than for the others, or smaller.

    ``s_n = sum_p sum_c sign(G[p, y, n] - G[p, c, n])``; used are the ``k`` largest ``|s_n|``, ties by place. By
    ``votes`` each neuron votes for every candidate that attains ``max_c sign(s_n) G[p, c, n]``, and most votes win; by
    ``sum`` the prediction is ``argmax_c sum_n sign(s_n) G[p, c, n]``. Of equal candidates the first is taken. The rule
    is the same on training and test examples; the authors' release prints training accuracy by ``sum`` and test
    accuracy by ``votes``, which cannot be compared.

    Attributes:
        k: Neurons to use; neurons whose score is exactly 0 are never used.
        positive_only: Use neurons with a positive score only.
        rule: ``votes`` or ``sum``.

    Raises:
        ValueError: ``k`` is below 1, or there is no such rule.

    Reference:
        Zhao, Jiang, Yoshinaga, 2025, arXiv:2412.18053

    Example:
        >>> import lens_ablation as la
        >>> la.MagnitudeProbe(k=16).rule
        'votes'
    """

    rule: Literal["votes", "sum"] = "votes"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule not in ("votes", "sum"):
            raise ValueError(f"rule must be 'votes' or 'sum', got {self.rule!r}")

    @property
    def settings(self) -> Mapping[str, object]:
        return {**super().settings, "rule": self.rule}

    def needs(self, gradients: NeuronGradients, labels: Int[Tensor, " example"]) -> State:
        values = gradients.values
        above = (gold(values, labels)[:, None] - values).sign()
        return {"scores": above.sum(dim=(0, 1), dtype=torch.int64)}

    def predict(self, state: State, gradients: NeuronGradients, n_candidates: int) -> Int[Tensor, " example"]:
        values: Float[Tensor, "example candidate chosen"] = gradients.values[:, :, state["places"]]
        turned = values.double() * state["polarities"]
        if self.rule == "sum":
            return turned.sum(dim=2).argmax(dim=1)
        votes = turned == turned.amax(dim=1, keepdim=True)
        return votes.sum(dim=2).argmax(dim=1)
