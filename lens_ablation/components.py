"""Components of a model: the sites of one or several sets, numbered through."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from lens_ablation.models.protocol import LensModel
from lens_ablation.sites import Site, SiteSet, as_site_set, check_sites_exist

Sampling = Literal["bernoulli", "fixed"]
"""``bernoulli`` ablates each component on its own with the same probability, ``fixed`` always the same number."""

BLOCK = 64
"""Masks that are drawn together; a longer list of masks begins with the shorter one."""


@dataclass(frozen=True, eq=False)
class Components:
    """Sites of several kinds in one order: those of the first set, then those of the second, and so on."""

    sets: tuple[SiteSet, ...]

    def __len__(self) -> int:
        return sum(len(sites) for sites in self.sets)

    @cached_property
    def names(self) -> list[str]:
        """How each component is printed, such as ``L2H1.z5``."""
        return [str(site) for sites in self.sets for site in sites]

    @cached_property
    def layers(self) -> Int[np.ndarray, " component"]:
        """The layer of each component."""
        return np.concatenate([sites.addresses[:, 0] for sites in self.sets])

    @property
    def digest(self) -> str:
        """SHA-256 of all addresses."""
        return hashlib.sha256("".join(sites.digest for sites in self.sets).encode()).hexdigest()

    @property
    def addresses(self) -> dict[str, Int[Tensor, "_site axis"]]:
        """Addresses of each set, named as files hold them."""
        return {f"sites{place}": torch.from_numpy(sites.addresses) for place, sites in enumerate(self.sets)}

    @property
    def described(self) -> list[dict[str, object]]:
        """Kind and shape of each set, as plain JSON values."""
        return [{"kind": sites.kind, "shape": list(sites.shape)} for sites in self.sets]

    @classmethod
    def from_stored(cls, tensors: Mapping[str, Shaped[Tensor, "..."]], described: object) -> "Components":
        """Components read from a file that holds ``addresses`` and ``described``.

        Raises:
            DamagedFile: they do not make sets of sites.
            ValueError: there is no list of sets.
        """
        if not isinstance(described, list):
            raise ValueError("sets is no list")
        return cls(
            tuple(
                SiteSet.from_stored(part["kind"], tensors[f"sites{place}"].numpy(), part["shape"])
                for place, part in enumerate(described)
            )
        )

    def split(self, columns: Shaped[np.ndarray, "row component"]) -> list[Shaped[np.ndarray, "row _"]]:
        """Columns of the components as those of each set."""
        return np.split(columns, np.cumsum([len(sites) for sites in self.sets])[:-1], axis=1)


def as_components(sites: Site | SiteSet | Iterable[Site | SiteSet] | Components, model: LensModel) -> Components:
    """Sites of any form as components of ``model``.

    Raises:
        UnknownSite: there are none, or the model lacks one.
        ValueError: two sets are of one kind.
    """
    if isinstance(sites, Components):
        given: Sequence[SiteSet] = sites.sets
    elif isinstance(sites, Site | SiteSet):
        given = [as_site_set(sites)]
    else:
        listed = list(sites)
        whole = [part for part in listed if isinstance(part, SiteSet)]
        given = (
            whole if len(whole) == len(listed) and whole else [as_site_set(s for s in listed if isinstance(s, Site))]
        )
    kinds = [part.kind for part in given]
    if len(set(kinds)) < len(kinds):
        raise ValueError(
            f"give one set for each kind of site and join those of one kind with |, got {', '.join(kinds)}"
        )
    return Components(tuple(check_sites_exist(part, model) for part in given))


def draw_removals(
    n_masks: int, n_components: int, ablated_fraction: float, sampling: Sampling, seed: int
) -> Bool[np.ndarray, "mask component"]:
    """Random flags of what each mask ablates, from a private generator.

    Raises:
        ValueError: the fraction is no fraction, or ablates nothing.
    """
    if not 0 < ablated_fraction < 1:
        raise ValueError(f"ablated_fraction must lie between 0 and 1, got {ablated_fraction}")
    if sampling not in ("bernoulli", "fixed"):
        raise ValueError(f"sampling must be 'bernoulli' or 'fixed', got {sampling!r}")
    n_ablated = round(ablated_fraction * n_components)
    if sampling == "fixed" and not 0 < n_ablated < n_components:
        raise ValueError(
            f"{ablated_fraction:g} of {n_components} components are {n_ablated}; take another fraction, or "
            "sampling='bernoulli'"
        )
    blocks: list[np.ndarray] = []
    for block in range(-(-n_masks // BLOCK)):
        drawn = np.random.default_rng([seed, block]).random((BLOCK, n_components))
        if sampling == "bernoulli":
            blocks.append(drawn < ablated_fraction)
        else:
            blocks.append(drawn.argsort(axis=1).argsort(axis=1) < n_ablated)
    return np.concatenate(blocks)[:n_masks]
