"""Neurons shifted: an amount added to what they are, while a block of code runs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_ablation.ablation import Positions, ablate
from lens_ablation.data.task import Task
from lens_ablation.empirical.gradients import SHIFTS, ZHAO_2025, Shift
from lens_ablation.errors import BadActivation
from lens_ablation.methods.method import Method, Replacement, Request
from lens_ablation.models.protocol import LensModel
from lens_ablation.sites import MLP_NEURON_KINDS, HookPoint, Site, SiteSet, as_site_set, check_sites_exist


@contextmanager
def shift(
    model: LensModel,
    sites: Site | SiteSet | Iterable[Site],
    amount: float | Float[Tensor, " site"],
    *,
    shift: Shift = "additive",
    positions: Positions = "all",
    attention_mask: Bool[Tensor, "row pos"] | Int[Tensor, "row pos"] | None = None,
    task: Task | None = None,
) -> Iterator[LensModel]:
    """The model with an amount added to chosen neurons inside the ``with`` block, and untouched after it.

    ``additive`` gives ``A + amount``; ``signed`` gives ``A + amount * sign(A)``, which enhances a neuron for a positive
    amount and suppresses it for a negative one, and leaves a neuron at exactly 0 alone. Blocks nest, also with
    ``ablate``: of the same neuron, the inner shift acts on what the outer one made.

    Args:
        model: A TransformerLens model in evaluation mode.
        sites: Neurons: ``neurons(model)``, ``neurons(model, at="pre_linear")``, or parts of them.
        amount: In units of the activation: one number, or one to a site ``[site]``.
        shift: ``additive`` or ``signed``.
        positions: ``all`` tokens, ``all_but_first``, the ``answer`` position of ``task``, or token indices
            ``[row, target]``.
        attention_mask: True where a token is real; others are left alone.
        task: Where the rows come from, instead of ``attention_mask``: row ``i`` is its example ``i``.

    Raises:
        BadActivation: an amount is not finite.
        HookDidNotFire: a shift did not fire exactly once in each forward pass of the block.
        ValueError: sites, amounts and model do not fit together; the model is in training mode.

    Reference:
        Zhao, Jiang, Yoshinaga, *Neuron Empirical Gradient*, 2025, arXiv:2412.18053 (signed)

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task = la.tasks.facts(model, n=4)
        >>> with la.shift(model, la.neurons(model)[3, :8], 0.5, positions="answer", task=task):
        ...     logits = model(task.inputs)
    """
    chosen = check_sites_exist(as_site_set(sites), model)
    method = Shifted.of(chosen, amount, shift)
    with ablate(model, chosen, method, positions=positions, attention_mask=attention_mask, task=task):
        yield model


@dataclass(frozen=True, eq=False)
class Shifted(Method):
    """A neuron itself plus an amount; the method behind ``shift``, for verbs that take methods.

    Attributes:
        amounts: By hook, the amount of each neuron, ``[unit]``.
        convention: ``additive`` or ``signed``.
    """

    amounts: Mapping[HookPoint, Float[Tensor, " unit"]]
    convention: Shift = "additive"

    bibtex: ClassVar[str] = ZHAO_2025

    @classmethod
    def of(cls, sites: SiteSet, amount: float | Float[Tensor, " site"], convention: Shift = "additive") -> "Shifted":
        """Amounts of these sites, in their order.

        Raises:
            BadActivation: an amount is not finite.
            ValueError: the sites are no neurons, there are not as many amounts, or there is no such convention.
        """
        if sites.kind not in MLP_NEURON_KINDS:
            raise ValueError(f"{sites.kind} sites are no neurons, so they are not shifted; take neurons(model)")
        if convention not in SHIFTS:
            raise ValueError(f"shift must be 'additive' or 'signed', got {convention!r}")
        given = torch.as_tensor(amount, dtype=torch.float64).cpu()
        if given.ndim > 1 or (given.ndim == 1 and len(given) != len(sites)):
            raise ValueError(f"amount is one number or one to each of {len(sites)} sites, got {tuple(given.shape)}")
        if not bool(torch.isfinite(given).all()):
            raise BadActivation("an amount to shift by is not finite; replace the NaN or infinity first")
        by_point: dict[HookPoint, Tensor] = {}
        spread = given.expand(len(sites))
        for point in sites.hook_points:
            here = torch.from_numpy(sites.addresses[:, 0] == point.layer)
            units = torch.from_numpy(sites.addresses[:, 1])[here]
            by_point[point] = torch.zeros(sites.shape[1], dtype=torch.float64).index_put((units,), spread[here])
        return cls(by_point, convention)

    @property
    def settings(self) -> Mapping[str, object]:
        return {
            "amounts": {point.name: amounts.tolist() for point, amounts in self.amounts.items()},
            "shift": self.convention,
        }

    def prepare(
        self, model: LensModel, points: Sequence[HookPoint], examples: Int[Tensor, " example"] | None = None
    ) -> Replacement:
        missing = [point.name for point in points if point not in self.amounts]
        if missing:
            raise ValueError(f"Shifted holds no amounts for {missing[0]}; make it with Shifted.of(sites, amount)")

        def replacement(request: Request) -> Tensor:
            activation = request.activation
            assert activation is not None  # patterns are refused above
            moved = self.amounts[request.point].to(activation)
            return activation + (moved * activation.sign() if self.convention == "signed" else moved)

        return replacement
