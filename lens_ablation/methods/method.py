"""The contract between an ablation method and the hooks that carry it out."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_ablation.models.protocol import LensModel
from lens_ablation.sites import HookPoint, SiteSet
from lens_ablation.strategy import Strategy


@dataclass(frozen=True, eq=False, kw_only=True)
class Request:
    """What a hook knows when it asks for a replacement.

    Attributes:
        point: The hook.
        shape: Shape of the activation: ``[row, pos, head, d_head]`` at ``hook_z`` (and queries, keys, values),
            ``[row, head, query, key]`` for a pattern, ``[row, pos, width]`` elsewhere.
        examples: Index of the example in each row; ``None`` where row ``i`` is example ``i``.
        positions: Position of each token from its row's first real one, ``[row or 1, pos]``.
        activation: The activation itself; ``None`` for patterns, which some models compute later. A replacement may
            use it at each position on its own only: in the last block the engine computes no others than are read.
    """

    point: HookPoint
    shape: torch.Size
    examples: Int[Tensor, " row"] | None
    positions: Int[Tensor, "#row pos"]
    activation: Float[Tensor, "row ..."] | None


POCHINKOV_2024 = """@inproceedings{pochinkov2024investigating,
  title     = {Investigating Neuron Ablation in Attention Heads: The Case for Peak Activation Centering},
  author    = {Pochinkov, Nicholas and Pasero, Ben and Shibayama, Skylar},
  year      = {2024},
  note      = {arXiv:2408.17322}
}"""
"""BibTeX of the paper behind peak ablation and fixed-input resampling."""

WANG_2023 = """@inproceedings{wang2023interpretability,
  title     = {Interpretability in the Wild: a Circuit for Indirect Object Identification in {GPT}-2 Small},
  author    = {Wang, Kevin and Variengien, Alexandre and Conmy, Arthur and Shlegeris, Buck and Steinhardt, Jacob},
  booktitle = {International Conference on Learning Representations},
  year      = {2023}
}"""
"""BibTeX of the circuit for indirect objects, which ablates to means and to counterfactual prompts."""

SHAH_2024 = """@inproceedings{shah2024decomposing,
  title     = {Decomposing and Editing Predictions by Modeling Model Computation},
  author    = {Shah, Harshay and Ilyas, Andrew and Madry, Aleksander},
  booktitle = {International Conference on Machine Learning},
  year      = {2024}
}"""
"""BibTeX of component attribution, whose components are rows of weights."""

LI_2024 = """@inproceedings{li2024optimal,
  title     = {Optimal ablation for interpretability},
  author    = {Li, Maximilian and Janson, Lucas},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024}
}"""
"""BibTeX of optimal ablation, of tracing by it and of the lens made of constants."""

Replacement = Callable[[Request], Tensor]
"""Gives what stands in the place of the activation, broadcastable to ``request.shape``."""


MENG_2022 = """@inproceedings{meng2022locating,
  title     = {Locating and Editing Factual Associations in {GPT}},
  author    = {Meng, Kevin and Bau, David and Andonian, Alex and Belinkov, Yonatan},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022}
}"""
"""BibTeX of causal tracing, which adds noise to activations."""


class Method(Strategy):
    """What stands in the place of an ablated activation. Subclasses are frozen dataclasses, one file each."""

    @property
    def positional(self) -> bool:
        """Whether the replacement depends on the token's position, which cached generation does not show."""
        return False

    @property
    def by_position(self) -> bool:
        """Whether what is written may differ from position to position; such methods are compared with each other."""
        return self.positional

    def require_sites(self, sites: SiteSet) -> SiteSet:
        """The same sites, once it is known that the method has something to put in the place of each.

        Raises:
            ValueError: it has nothing for one of them.
        """
        return sites

    @abstractmethod
    def prepare(
        self,
        model: LensModel,
        points: Sequence[HookPoint],
        examples: Int[Tensor, " example"] | None = None,
    ) -> Replacement:
        """Check that the method serves these hooks of this model, and gather what it needs.

        Args:
            model: The model to be ablated; methods that need other activations of it run it here.
            points: The hooks that will ask.
            examples: The only examples that will be asked for; ``None`` for all.

        Raises:
            ValueError: the method cannot serve this model, these hooks or these examples.
        """


def at_positions(stored: Float[Tensor, "length ..."], request: Request, *, what: str) -> Float[Tensor, "row pos ..."]:
    """Rows of a per-position table at the positions that ``request`` asks for.

    Raises:
        ValueError: the text is longer than the table; ``what`` names the table.
    """
    longest = int(request.positions.max()) + 1
    if longest > stored.shape[0]:
        raise ValueError(
            f"{what} covers {stored.shape[0]} positions and this text has {longest}. Measure on texts at least as "
            "long, or use values pooled over positions."
        )
    return stored[request.positions.to(stored.device)]
