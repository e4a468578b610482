"""Zero ablation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from lens_ablation.methods.method import Method, Replacement, Request
from lens_ablation.models.protocol import LensModel
from lens_ablation.sites import HookPoint


@dataclass(frozen=True)
class Zero(Method):
    """Zeros in the place of the activation.

    At ``hook_z`` this equals zeroing the head's rows of ``W_O``; the output bias stays. In a model with folded value
    biases it means something else than in a raw one (see the page on value biases).

    Reference:
        Michel et al., *Are Sixteen Heads Really Better than One?*, 2019, arXiv:1905.10650 (heads masked with zeros).

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> pairs = la.hooks(model, la.heads(model)[2, 1], la.Zero())
    """

    bibtex: ClassVar[str] = """@inproceedings{michel2019sixteen,
  title     = {Are Sixteen Heads Really Better than One?},
  author    = {Michel, Paul and Levy, Omer and Neubig, Graham},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2019}
}"""

    @property
    def settings(self) -> Mapping[str, object]:
        return {}

    def prepare(
        self, model: LensModel, points: Sequence[HookPoint], examples: Int[Tensor, " example"] | None = None
    ) -> Replacement:
        def replacement(request: Request) -> Tensor:
            return torch.zeros(())

        return replacement
