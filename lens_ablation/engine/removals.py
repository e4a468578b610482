"""Which sites each variant removes, held in little memory however many there are."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, UInt8

from lens_ablation.methods.method import Method
from lens_ablation.sites import SiteSet

_AT_ONCE = 2**26
"""Flags unpacked at once."""


class Removals(ABC):
    """Flags ``[variant, site]``, true where a variant removes a site."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Number of variants and number of sites."""

    @abstractmethod
    def flags(self, variants: Int[np.ndarray, " chosen"]) -> Bool[np.ndarray, "chosen site"]:
        """The flags of some variants."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of the flags."""

    def first_layers(self, sites: SiteSet, n_layers: int) -> Int[np.ndarray, " variant"]:
        """The first layer at which each variant removes something, ``n_layers`` where it removes nothing."""
        n_variants, n_sites = self.shape
        first = np.full(n_variants, n_layers, dtype=np.int64)
        step = max(1, _AT_ONCE // max(1, n_sites))
        for start in range(0, n_variants, step):
            chosen = np.arange(start, min(start + step, n_variants))
            first[chosen] = first_layers_of(sites, self.flags(chosen), n_layers)
        return first


def first_layers_of(
    sites: SiteSet, flags: Bool[np.ndarray, "variant site"], n_layers: int
) -> Int[np.ndarray, " variant"]:
    """The first layer at which each variant removes something, ``n_layers`` where it removes nothing."""
    first = np.full(len(flags), n_layers, dtype=np.int64)
    for layer in reversed(sites.layers):
        first[flags[:, sites.addresses[:, 0] == layer].any(axis=1)] = layer
    return first


@dataclass(frozen=True)
class OneEach(Removals):
    """Variant ``i`` removes site ``i`` alone."""

    n_sites: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.n_sites, self.n_sites

    def flags(self, variants: Int[np.ndarray, " chosen"]) -> Bool[np.ndarray, "chosen site"]:
        return variants[:, None] == np.arange(self.n_sites)

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"each of {self.n_sites} alone".encode()).hexdigest()

    def first_layers(self, sites: SiteSet, n_layers: int) -> Int[np.ndarray, " variant"]:
        return sites.addresses[:, 0].astype(np.int64)


@dataclass(frozen=True, eq=False)
class Packed(Removals):
    """Any flags, eight to a byte."""

    bits: UInt8[np.ndarray, "variant byte"]
    n_sites: int

    @classmethod
    def of(cls, flags: Bool[np.ndarray, "variant site"]) -> "Packed":
        """These flags, packed."""
        return cls(np.packbits(flags, axis=1), flags.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.bits), self.n_sites

    def flags(self, variants: Int[np.ndarray, " chosen"]) -> Bool[np.ndarray, "chosen site"]:
        return np.unpackbits(self.bits[variants], axis=1, count=self.n_sites).astype(bool)

    @property
    def digest(self) -> str:
        shape = f"{self.shape}".encode()
        return hashlib.sha256(shape + np.ascontiguousarray(self.bits).tobytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class Ablation:
    """Sites of one kind, which of them each variant removes, and what stands in their place.

    Several act together in one forward pass: heads by their means and neurons by zeros, say.

    Raises:
        ValueError: the flags are not as many as the sites.
    """

    sites: SiteSet
    removed: Removals
    method: Method

    def __post_init__(self) -> None:
        if self.removed.shape[1] != len(self.sites):
            raise ValueError(f"removed has {self.removed.shape[1]} columns for {len(self.sites)} sites")
