"""What can be ablated: sites, and ordered sets of them addressed like arrays."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from lens_ablation.errors import DamagedFile, UnknownSite
from lens_ablation.models.anatomy import ACTIVATIONS, Anatomy, anatomy
from lens_ablation.models.protocol import LensModel

Kind = Literal[
    "head",
    "z",
    "neuron",
    "pattern",
    "attention",
    "mlp",
    "attn_in",
    "mlp_in",
    "q",
    "k",
    "v",
    "attn_out",
    "pre",
    "pre_linear",
    "mlp_out",
]

READER_KINDS: tuple[Kind, ...] = ("attn_in", "z", "mlp_in", "neuron")
"""Units that linear maps read: the rows of weights on the side of the input."""

WRITER_KINDS: tuple[Kind, ...] = ("q", "k", "v", "attn_out", "pre", "pre_linear", "mlp_out")
"""Units that linear maps give: the rows of weights on the side of the output."""

MLP_NEURON_KINDS: tuple[Kind, ...] = ("neuron", "pre_linear")
"""Units that are neurons of MLPs: what the second projection reads, and the up projection of gated ones."""

_AXES: dict[str, tuple[str, ...]] = {
    "head": ("layer", "head"),
    "z": ("layer", "head", "unit"),
    "neuron": ("layer", "unit"),
    "pattern": ("layer", "head"),
    "attention": ("layer",),
    "mlp": ("layer",),
    "attn_in": ("layer", "unit"),
    "mlp_in": ("layer", "unit"),
    "q": ("layer", "head", "unit"),
    "k": ("layer", "head", "unit"),
    "v": ("layer", "head", "unit"),
    "attn_out": ("layer", "unit"),
    "pre": ("layer", "unit"),
    "pre_linear": ("layer", "unit"),
    "mlp_out": ("layer", "unit"),
}
_ACTIVATION = {
    "head": "z",
    "z": "z",
    "neuron": "post",
    "pattern": "pattern",
    "attention": "attn_out",
    "mlp": "mlp_out",
    "attn_in": "ln1_out",
    "mlp_in": "ln2_out",
    **{kind: kind for kind in WRITER_KINDS},
}
_PRINTED: dict[str, Callable[..., str]] = {
    "head": "L{}H{}".format,
    "z": "L{}H{}.z{}".format,
    "neuron": "L{}N{}".format,
    "pattern": "L{}H{}.pattern".format,
    "attention": "L{}.attn".format,
    "mlp": "L{}.mlp".format,
    "attn_in": "L{}.attn_in{}".format,
    "mlp_in": "L{}.mlp_in{}".format,
    "q": "L{}H{}.q{}".format,
    "k": "L{}H{}.k{}".format,
    "v": "L{}H{}.v{}".format,
    "attn_out": "L{}.attn_out{}".format,
    "pre": "L{}.pre{}".format,
    "pre_linear": "L{}.pre_linear{}".format,
    "mlp_out": "L{}.mlp_out{}".format,
}


@dataclass(frozen=True, order=True)
class HookPoint:
    """One TransformerLens hook of one layer: ``activation`` is a key of ``ACTIVATIONS`` such as ``z``."""

    activation: str
    layer: int

    @property
    def name(self) -> str:
        """The TransformerLens name, ``blocks.2.attn.hook_z``."""
        return ACTIVATIONS[self.activation].format(self.layer)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Site:
    """One thing that can be ablated, printed ``L2H1``, ``L2H1.z5``, ``L3N17``, ``L3.mlp``, ``L2H1.pattern``."""

    kind: Kind
    layer: int
    head: int | None = None
    unit: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in _AXES:
            raise UnknownSite(f"unknown kind of site {self.kind!r}; kinds are {', '.join(_AXES)}")
        for axis in ("layer", "head", "unit"):
            given, wanted = getattr(self, axis), axis in _AXES[self.kind]
            if (given is not None) != wanted:
                raise UnknownSite(
                    f"a {self.kind} site {'needs' if wanted else 'has no'} {axis} (got {given!r}); "
                    f"its address is {', '.join(_AXES[self.kind])}"
                )

    @property
    def address(self) -> tuple[int, ...]:
        """``(layer, head)``, ``(layer, head, unit)``, ``(layer, unit)`` or ``(layer,)``, by kind."""
        return tuple(getattr(self, axis) for axis in _AXES[self.kind])

    @property
    def hook_point(self) -> HookPoint:
        """The hook whose activation holds this site."""
        return HookPoint(_ACTIVATION[self.kind], self.layer)

    @property
    def hook_name(self) -> str:
        """The TransformerLens name of that hook."""
        return self.hook_point.name

    def __or__(self, other: "Site | SiteSet") -> "SiteSet":
        return as_site_set(self) | other

    def __str__(self) -> str:
        return _PRINTED[self.kind](*self.address)

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True, eq=False, repr=False)
class SiteSet:
    """An ordered set of sites of one kind, addressed by layer, head and unit like an array.

    ``heads[2, 1]`` is the site L2H1, ``heads[2]`` and ``heads[1:3, :4]`` are the parts of the set that lie there,
    ``heads[-1]`` counts from the model's last layer. Sets support ``|``, ``-``, ``&``, ``len``, iteration, ``in``
    and ``sample``.

    Attributes:
        kind: Granularity of the sites.
        addresses: Integers ``[n_sites, axis]``; the axes are layer, then head, then unit, as the kind has them.
        shape: Size of the model along each axis.

    Example:
        >>> import lens_ablation as la
        >>> heads = la.heads(la.load_model("tiny-lm"))
        >>> heads[2, 1], len(heads[2])
        (L2H1, 8)
    """

    kind: Kind
    addresses: np.ndarray
    shape: tuple[int, ...]

    @classmethod
    def from_stored(cls, kind: object, addresses: np.ndarray, shape: object) -> "SiteSet":
        """A set read from a file.

        Raises:
            DamagedFile: the parts do not make a set of sites.
        """
        axes = _AXES.get(str(kind), ())
        if not isinstance(shape, Sequence) or len(shape) != len(axes) or addresses.shape[1:] != (len(axes),):
            raise DamagedFile(f"a stored set of {kind!r} sites has shape {shape} and addresses {addresses.shape}")
        if (addresses < 0).any() or (addresses >= np.asarray(shape, dtype=np.int64)).any():
            raise DamagedFile(f"a stored set of {kind!r} sites names sites outside its own shape {shape}")
        return cls(cast(Kind, kind), addresses, tuple(int(size) for size in shape))

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the address axes: ``layer``, ``head``, ``unit``."""
        return _AXES[self.kind]

    @property
    def layers(self) -> list[int]:
        """Layers that occur, ascending."""
        return [int(layer) for layer in np.unique(self.addresses[:, 0])]

    @property
    def hook_points(self) -> list["HookPoint"]:
        """The hooks that hold these sites, by layer."""
        return [HookPoint(_ACTIVATION[self.kind], layer) for layer in self.layers]

    @property
    def digest(self) -> str:
        """SHA-256 of the kind and the addresses, in their order."""
        named = f"{self.kind} {self.addresses.shape}".encode()
        return hashlib.sha256(named + np.ascontiguousarray(self.addresses, dtype="<i8").tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.addresses)

    def __iter__(self) -> Iterator[Site]:
        return (self._site(row) for row in self.addresses)

    def __contains__(self, site: object) -> bool:
        return isinstance(site, Site) and site.kind == self.kind and bool(self._where(site.address).any())

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, SiteSet) and self.kind == other.kind and np.array_equal(self.addresses, other.addresses)
        )

    def __hash__(self) -> int:
        return hash((self.kind, self.addresses.tobytes()))

    def __getitem__(self, key: "int | slice | tuple[int | slice, ...]") -> "Site | SiteSet":
        keys = key if isinstance(key, tuple) else (key,)
        if len(keys) > len(self.axes):
            raise UnknownSite(f"{self.kind} sites are addressed [{', '.join(self.axes)}], got {len(keys)} indices")
        chosen = np.ones(len(self), dtype=bool)
        for axis, wanted in enumerate(keys):
            chosen &= self._on_axis(axis, wanted)
        if len(keys) == len(self.axes) and not any(isinstance(k, slice) for k in keys):
            if not chosen.any():
                raise UnknownSite(f"this set of {len(self)} {self.kind} sites does not hold {list(keys)}")
            return self._site(self.addresses[chosen][0])
        return self._part(chosen)

    def __or__(self, other: "Site | SiteSet") -> "SiteSet":
        other = self._same_kind(other)
        added = np.concatenate([self.addresses, other.addresses[~other._in(self)]])
        shape = tuple(max(a, b) for a, b in zip(self.shape, other.shape, strict=True))
        return SiteSet(self.kind, added, shape)

    def __sub__(self, other: "Site | SiteSet") -> "SiteSet":
        return self._part(~self._in(self._same_kind(other)))

    def __and__(self, other: "Site | SiteSet") -> "SiteSet":
        return self._part(self._in(self._same_kind(other)))

    def take(self, order: Sequence[int] | np.ndarray) -> "SiteSet":
        """The sites at these places of the set, in this order.

        Raises:
            UnknownSite: a place lies outside the set.
        """
        places = np.asarray(order, dtype=np.int64)
        if places.size and (places.min() < 0 or places.max() >= len(self)):
            raise UnknownSite(f"places must lie in 0..{len(self) - 1}, got {places.min()}..{places.max()}")
        return SiteSet(self.kind, self.addresses[places], self.shape)

    def places(self, sites: "Site | SiteSet") -> np.ndarray:
        """Where in this set those sites stand, ``[site]``, in their order; ``take`` gives them back.

        Raises:
            UnknownSite: a site is not in the set.
            ValueError: they are of another kind.

        Example:
            >>> import lens_ablation as la
            >>> heads = la.heads(la.load_model("tiny-lm"))
            >>> heads.places(heads[1, 2] | heads[0, 3]).tolist()
            [10, 3]
        """
        other = self._same_kind(sites)
        missing = other - self
        if len(missing):
            raise UnknownSite(f"this set of {len(self)} {self.kind} sites does not hold {missing}; give parts of it")
        own, wanted = self._numbered(other)
        order = np.argsort(own, kind="stable")
        return order[np.searchsorted(own, wanted, sorter=order)]

    def sample(self, fraction: float, seed: int) -> "SiteSet":
        """A random part of ``int(fraction * len)`` sites, in the set's order; the same for the same seed.

        Raises:
            ValueError: ``fraction`` lies outside 0..1.
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must lie in 0..1, got {fraction}")
        n = int(fraction * len(self))
        return self.take(np.sort(np.random.default_rng(seed).choice(len(self), size=n, replace=False)))

    def __repr__(self) -> str:
        shown = ", ".join(str(site) for site in self.take(range(min(3, len(self)))))
        return f"SiteSet({len(self)} {self.kind} sites: {shown}{', ...' if len(self) > 3 else ''})"

    def _site(self, address: np.ndarray) -> Site:
        return Site(self.kind, **{axis: int(i) for axis, i in zip(self.axes, address, strict=True)})

    def _part(self, chosen: np.ndarray) -> "SiteSet":
        return SiteSet(self.kind, self.addresses[chosen], self.shape)

    def _where(self, address: tuple[int, ...]) -> np.ndarray:
        return (self.addresses == np.asarray(address)).all(axis=1)

    def _in(self, other: "SiteSet") -> np.ndarray:
        return np.isin(*self._numbered(other))

    def _numbered(self, other: "SiteSet") -> tuple[np.ndarray, np.ndarray]:
        """The sites of both sets as numbers, one to an address."""
        shape = tuple(max(a, b) for a, b in zip(self.shape, other.shape, strict=True))
        own, others = (np.asarray(np.ravel_multi_index(tuple(s.addresses.T), shape)) for s in (self, other))
        return own, others

    def _on_axis(self, axis: int, wanted: int | slice) -> np.ndarray:
        size, along = self.shape[axis], self.addresses[:, axis]
        if isinstance(wanted, slice):
            return np.isin(along, np.arange(size)[wanted])
        if not -size <= wanted < size:
            raise UnknownSite(
                f"{self.axes[axis]} {wanted} does not exist: this model has {size}, numbered 0..{size - 1}"
            )
        return along == wanted % size

    def _same_kind(self, other: "Site | SiteSet") -> "SiteSet":
        other = as_site_set(other)
        if other.kind != self.kind:
            raise ValueError(
                f"a set holds sites of one kind; these are {self.kind} and {other.kind}. Ablate both by nesting "
                "two ablate(...) contexts, or by adding two lists of hooks(...)."
            )
        return other


def as_site_set(sites: "Site | SiteSet | Iterable[Site]") -> SiteSet:
    """``sites`` as a ``SiteSet``, whatever they came as.

    Raises:
        UnknownSite: they are empty.
        ValueError: they are not sites, or of several kinds.
    """
    if isinstance(sites, SiteSet):
        return sites
    listed = [sites] if isinstance(sites, Site) else list(sites)
    if not listed:
        raise UnknownSite("no sites were given; choose some, for example lens_ablation.heads(model)[0, 1]")
    if not all(isinstance(site, Site) for site in listed):
        raise ValueError(f"expected sites, got {type(listed[0]).__name__}; use a selector such as heads(model)[0, 1]")
    kinds = {site.kind for site in listed}
    if len(kinds) > 1:
        raise ValueError(f"a set holds sites of one kind, got {', '.join(sorted(kinds))}")
    addresses = np.asarray(list(dict.fromkeys(site.address for site in listed)), dtype=np.int64)
    return SiteSet(listed[0].kind, addresses, tuple(int(size) + 1 for size in addresses.max(axis=0)))


def check_sites_exist(sites: SiteSet, model: LensModel) -> SiteSet:
    """The same sites with the model's own shape, once all of them are known to exist.

    Raises:
        UnknownSite: the set is empty, or a site lies outside the model.
    """
    if len(sites) == 0:
        raise UnknownSite("the set of sites is empty; choose some, for example lens_ablation.heads(model)[0]")
    shape = grid(sites.kind, anatomy(model))
    outside = (sites.addresses >= np.asarray(shape)).any(axis=1) | (sites.addresses < 0).any(axis=1)
    if outside.any():
        first = sites.take(np.flatnonzero(outside)[:1])
        sizes = ", ".join(f"{n} {axis}s" for n, axis in zip(shape, sites.axes, strict=True))
        raise UnknownSite(f"{first.addresses[0].tolist()} is no {sites.kind} of this model, which has {sizes}")
    return SiteSet(sites.kind, sites.addresses, shape)


def grid(kind: str, sizes: Anatomy) -> tuple[int, ...]:
    """Size of a model along each axis of a kind of site."""
    return (sizes.n_layers, *sizes.coordinates(_ACTIVATION[kind]))[: len(_AXES[kind])]


def unit_site(point: HookPoint, address: Sequence[int]) -> Site:
    """The single coordinate ``address`` of the activation at a hook, as a site.

    Raises:
        UnknownSite: no kind of site is one coordinate there.
    """
    kinds: list[Kind] = [kind for kind in READER_KINDS + WRITER_KINDS if _ACTIVATION[kind] == point.activation]
    if not kinds:
        raise UnknownSite(f"single coordinates of {point} are no sites")
    return Site(kinds[0], point.layer, **dict(zip(_AXES[kinds[0]][1:], map(int, address), strict=True)))
