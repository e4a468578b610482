"""How far sets of neurons overlap, against chance."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from lens_ablation.files import read_folder, reading, write_folder
from lens_ablation.sites import SiteSet

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_FILE_KIND = "overlap"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Overlap:
    """How many sites each two sets share, layer by layer.

    Attributes:
        shared: Sites that two sets share, ``[set, set, layer]``; on the diagonal the size of the set.
        width: Sites of each layer that there were to choose from, ``[layer]``.
        names: Names of the sets.
        layers: Which layers.
    """

    shared: Int[np.ndarray, "set set layer"]
    width: Int[np.ndarray, " layer"]
    names: tuple[str, ...]
    layers: tuple[int, ...]

    @property
    def counts(self) -> Int[np.ndarray, "set layer"]:
        """Sites of each set in each layer."""
        return self.shared[np.arange(len(self.names)), np.arange(len(self.names))]

    @property
    def sizes(self) -> Int[np.ndarray, " set"]:
        """Sites of each set."""
        return self.counts.sum(axis=1)

    @property
    def overlap(self) -> Float[np.ndarray, "set set"]:
        """``|A & B| / |A|`` over all layers, row A, column B: symmetric only between sets of one size."""
        return self.shared.sum(axis=2) / self.sizes[:, None]

    @property
    def overlap_by_layer(self) -> Float[np.ndarray, "set set layer"]:
        """The same within each layer, over the sites of A there; NaN where A has none."""
        own = self.counts[:, None].astype(float)
        return np.divide(self.shared, own, out=np.full(self.shared.shape, np.nan), where=own > 0)

    @property
    def jaccard(self) -> Float[np.ndarray, "set set"]:
        """``|A & B| / |A | B|`` over all layers."""
        both = self.shared.sum(axis=2)
        return both / (self.sizes[:, None] + self.sizes[None] - both)

    @property
    def chance(self) -> Float[np.ndarray, "set set"]:
        """Overlap of random sets of these sizes over all layers: ``|B| / N``."""
        return np.broadcast_to(self.sizes[None] / self.width.sum(), (len(self.names),) * 2).copy()

    @property
    def chance_in_layers(self) -> Float[np.ndarray, "set set"]:
        """Overlap of random sets with as many sites in every layer as these: the honest one."""
        expected = (self.counts[:, None] * self.counts[None] / self.width).sum(axis=2)
        return expected / self.sizes[:, None]

    @property
    def excess(self) -> Float[np.ndarray, "set set"]:
        """Overlap beyond that of random sets with as many sites in every layer."""
        return self.overlap - self.chance_in_layers

    @property
    def z(self) -> Float[np.ndarray, "set set"]:
        """That excess in standard deviations of such random sets; NaN on the diagonal, and where they cannot differ."""
        n, a, b = self.width.astype(float), self.counts[:, None] / self.width, self.counts[None] / self.width
        # hypergeometric, layer by layer
        variance = (n * a * b * (1 - a) * (1 - b) * n / np.maximum(n - 1, 1)).sum(axis=2)
        spread = np.sqrt(variance) / self.sizes[:, None]
        found = np.divide(self.excess, spread, out=np.full(spread.shape, np.nan), where=spread > 0)
        np.fill_diagonal(found, np.nan)
        return found

    def to_dataframe(self) -> pd.DataFrame:
        """One row to an ordered pair of sets: shared sites, overlap, Jaccard, both chance levels, z."""
        rows: list[dict[str, object]] = []
        for a, first in enumerate(self.names):
            for b, second in enumerate(self.names):
                if a != b:
                    row: dict[str, object] = {"first": first, "second": second}
                    row["shared"] = int(self.shared[a, b].sum())
                    for key in ("overlap", "jaccard", "chance", "chance_in_layers", "z"):
                        row[key] = float(getattr(self, key)[a, b])
                    rows.append(row)
        return pd.DataFrame(rows)

    def plot(self) -> "Figure":
        """Overlap of each two sets beside the chance level of each pair."""
        from lens_ablation.plots.modularity import overlap_figure

        return overlap_figure(self)

    def save(self, folder: str | Path) -> Path:
        """Write the result to a new folder: tensors as safetensors, settings as JSON."""
        tensors = {"shared": torch.from_numpy(self.shared), "width": torch.from_numpy(self.width)}
        return write_folder(folder, _FILE_KIND, tensors, {"names": list(self.names), "layers": list(self.layers)})

    @classmethod
    def load(cls, folder: str | Path) -> "Overlap":
        """Read a result that ``save`` wrote.

        Raises:
            DamagedFile: the folder holds something else, or was changed.
        """
        tensors, plain = read_folder(folder, _FILE_KIND)
        with reading(folder):
            found = cls(
                shared=tensors["shared"].numpy(),
                width=tensors["width"].numpy(),
                names=tuple(str(name) for name in plain["names"]),
                layers=tuple(int(layer) for layer in plain["layers"]),
            )
            n, layers = len(found.names), len(found.layers)
            if found.shared.shape != (n, n, layers) or found.width.shape != (layers,):
                raise ValueError(f"shared has shape {found.shared.shape} for {n} sets and {layers} layers")
            return found

    def __repr__(self) -> str:
        return f"Overlap({', '.join(self.names)}: {self.sizes.tolist()} of {int(self.width.sum())} sites)"


def overlap(sets: Mapping[str, SiteSet], among: SiteSet | None = None) -> Overlap:
    """How far sets of sites overlap, over all layers and layer by layer, with the overlap of random sets beside it.

    Args:
        sets: Two sets or more of one kind, by name.
        among: The sites that they were chosen from; all of the kind by default.

    Raises:
        ValueError: fewer than two sets, empty ones, of different kinds or models, or not among ``among``.

    Reference:
        Pochinkov et al., *Modularity in Transformers: Investigating Neuron Separability & Specialization*, 2024,
        arXiv:2408.17324; the chance level by layer is this package's own.

    Example:
        >>> import lens_ablation as la
        >>> neurons = la.neurons(la.load_model("tiny-lm"))
        >>> found = la.overlap({"a": neurons.sample(0.1, seed=0), "b": neurons.sample(0.1, seed=1)})
        >>> found.overlap.shape, round(float(found.chance[0, 1]), 3)
        ((2, 2), 0.1)
    """
    if len(sets) < 2 or any(len(one) == 0 for one in sets.values()):
        raise ValueError(f"give two sets of sites or more, none of them empty; got {dict(sets)}")
    kinds = {(one.kind, one.shape) for one in sets.values()}
    if len(kinds) > 1:
        raise ValueError(f"sets of one kind, of one model, overlap; these are {sorted(kinds)}")
    first = next(iter(sets.values()))
    places = np.indices(first.shape).reshape(len(first.shape), -1).T
    pool = SiteSet(first.kind, places.copy(), first.shape) if among is None else among
    outside = next((name for name, one in sets.items() if len(one - pool)), None)
    if outside is not None:
        raise ValueError(f"{outside} has sites that are not among those it was chosen from; give the right among")
    flags = np.stack([_flags(one) for one in sets.values()]).astype(np.int64)
    layers = pool.layers
    return Overlap(
        shared=np.einsum("aln,bln->abl", flags, flags)[:, :, layers],
        width=_flags(pool).sum(axis=1)[layers].astype(np.int64),
        names=tuple(sets),
        layers=tuple(layers),
    )


def _flags(sites: SiteSet) -> np.ndarray:
    """Whether each site of the model is in the set, ``[layer, place in the layer]``."""
    found = np.zeros(sites.shape, dtype=bool)
    found[tuple(sites.addresses.T)] = True
    return found.reshape(sites.shape[0], -1)
