"""Do the neurons of a task gather in few experts? Counts against permutation, layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.stats import hypergeom

from lens_ablation.files import read_folder, reading, require_shape, write_folder
from lens_ablation.modularity.experts import Experts
from lens_ablation.sites import SiteSet

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_FILE_KIND = "enrichment"
_ARRAYS = ("counts", "concentration", "null", "nmi", "null_nmi", "p_expert")


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Enrichment:
    """How unevenly sets of neurons lie in the experts of each layer. These measures are this package's own.

    Attributes:
        counts: Neurons of a set in each expert, ``[set, layer, expert]``.
        concentration: Sum over experts of squared deviations from the mean count, in units of the variance of one
            count under chance; about the number of experts for random sets, ``[set, layer]``.
        null: The same of random sets of that size, ``[permutation, set, layer]``.
        nmi: Normalised mutual information of expert and membership, ``[set, layer]``.
        null_nmi: Its mean over random sets, which is above 0.
        p_expert: Hypergeometric tail of each expert's count, after Holm within the layer, ``[set, layer, expert]``.
        names: Names of the sets.
        layers: Which layers.
        size: Neurons of an expert.
        settings: Model, way of splitting and digest of the experts.
    """

    counts: Int[np.ndarray, "set layer expert"]
    concentration: Float[np.ndarray, "set layer"]
    null: Float[np.ndarray, "permutation set layer"]
    nmi: Float[np.ndarray, "set layer"]
    null_nmi: Float[np.ndarray, "set layer"]
    p_expert: Float[np.ndarray, "set layer expert"]
    names: tuple[str, ...]
    layers: tuple[int, ...]
    size: int
    settings: Mapping[str, object]

    @property
    def z(self) -> Float[np.ndarray, "set layer"]:
        """Concentration in standard deviations of random sets; NaN where a layer has none or all of its neurons."""
        return _standardised(self.concentration, self.null)

    @property
    def z_overall(self) -> Float[np.ndarray, " set"]:
        """The same of the concentration summed over layers."""
        return _standardised(np.nansum(self.concentration, axis=1), np.nansum(self.null, axis=2))

    @property
    def p(self) -> Float[np.ndarray, "set layer"]:
        """Share of random sets at least as concentrated, the set itself counted in."""
        as_large = (self.null >= self.concentration - 1e-9).sum(axis=0)
        return np.where(np.isnan(self.concentration), np.nan, (as_large + 1) / (len(self.null) + 1))

    @property
    def ratio(self) -> Float[np.ndarray, "set layer expert"]:
        """Neurons of a set in each expert over the mean of the layer's experts; NaN where the layer has none."""
        expected = self.counts.mean(axis=2, keepdims=True)
        return np.divide(self.counts, expected, out=np.full(self.counts.shape, np.nan), where=expected > 0)

    @property
    def max_ratio(self) -> Float[np.ndarray, "set layer"]:
        """The largest of them, which is far above 1 for small random sets too."""
        return self.ratio.max(axis=2)

    def to_dataframe(self) -> pd.DataFrame:
        """One row to a set and a layer."""
        return pd.DataFrame(
            [
                {
                    "set": name,
                    "layer": layer,
                    "neurons": int(self.counts[s, i].sum()),
                    "concentration": self.concentration[s, i],
                    "z": self.z[s, i],
                    "p_value": self.p[s, i],
                    "max_ratio": self.max_ratio[s, i],
                    "nmi": self.nmi[s, i],
                    "random_nmi": self.null_nmi[s, i],
                    "enriched_experts": int((self.p_expert[s, i] < 0.05).sum()),
                }
                for s, name in enumerate(self.names)
                for i, layer in enumerate(self.layers)
            ]
        )

    def save(self, folder: str | Path) -> Path:
        """Write the result to a new folder: tensors as safetensors, settings as JSON."""
        tensors = {name: torch.from_numpy(np.ascontiguousarray(getattr(self, name))) for name in _ARRAYS}
        plain = {"names": list(self.names), "layers": list(self.layers), "size": self.size, "settings": self.settings}
        return write_folder(folder, _FILE_KIND, tensors, plain)

    @classmethod
    def load(cls, folder: str | Path) -> "Enrichment":
        """Read a result that ``save`` wrote.

        Raises:
            DamagedFile: the folder holds something else, or was changed.
        """
        tensors, plain = read_folder(folder, _FILE_KIND)
        with reading(folder):
            names = tuple(str(name) for name in plain["names"])
            layers = tuple(int(layer) for layer in plain["layers"])
            rows = (len(names), len(layers))
            for name in ("concentration", "nmi", "null_nmi"):
                require_shape(name, tensors[name], rows)
            require_shape("null", tensors["null"], (len(tensors["null"]), *rows))
            for name in ("counts", "p_expert"):
                require_shape(name, tensors[name], (*rows, tensors["counts"].shape[-1]))
            arrays: dict[str, Any] = {name: tensors[name].numpy() for name in _ARRAYS}
            return cls(**arrays, names=names, layers=layers, size=int(plain["size"]), settings=dict(plain["settings"]))

    def plot(self) -> "Figure":
        """z by layer, a line to a set."""
        from lens_ablation.plots.modularity import enrichment_figure

        return enrichment_figure(self)

    def __repr__(self) -> str:
        z = ", ".join(f"{name} z = {value:.1f}" for name, value in zip(self.names, self.z_overall, strict=True))
        return f"Enrichment({z}; {self.counts.shape[2]} experts of {self.size}, {len(self.null)} permutations)"


def enrichment(
    sets: SiteSet | Mapping[str, SiteSet], experts: Experts, *, n_permutations: int = 1000, seed: int = 0
) -> Enrichment:
    """Whether sets of neurons lie in experts more unevenly than random sets with as many neurons in every layer.

    Args:
        sets: Neurons of a task, or of several by name.
        experts: The experts of some layers; neurons of others are left out.
        n_permutations: Random sets.
        seed: Another seed draws others.

    Raises:
        ValueError: the sets are no MLP neurons of such a model, or there are too few permutations.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-vit")
        >>> experts = la.split_into_experts(model, None, 8, la.RandomSplit(), progress=False)
        >>> found = la.enrichment(experts[2, 3] | experts[1, 0], experts, n_permutations=100)
        >>> bool(found.z_overall[0] > 10)
        True
    """
    by_name = {"set": sets} if isinstance(sets, SiteSet) else dict(sets)
    shape = (experts.n_layers, experts.width)
    wrong = [name for name, one in by_name.items() if one.kind != "neuron" or one.shape != shape or not len(one)]
    if wrong or not by_name or n_permutations < 2:
        raise ValueError(
            f"give sets of MLP neurons of a model with {shape[0]} layers of {shape[1]}, none of them empty, and two "
            f"permutations or more; got {wrong or list(by_name)} and {n_permutations}"
        )
    counts = np.zeros((len(by_name), len(experts.layers), experts.n_experts), dtype=np.int64)
    for s, one in enumerate(by_name.values()):
        for i, layer in enumerate(experts.layers):
            units = one.addresses[one.addresses[:, 0] == layer, 1]
            counts[s, i] = np.bincount(experts.of_layer(layer)[units], minlength=experts.n_experts)
    rng = np.random.default_rng(seed)
    totals = counts.sum(axis=2)
    colours = [experts.size] * experts.n_experts
    # labels shuffled among the neurons of a layer: draws without replacement from experts of one size
    drawn = np.stack(
        [[rng.multivariate_hypergeometric(colours, int(k), size=n_permutations) for k in row] for row in totals]
    )
    null_nmi = _nmi(drawn, experts.size).mean(axis=2)
    return Enrichment(
        counts=counts,
        concentration=_concentration(counts, experts.size),
        null=np.ascontiguousarray(_concentration(drawn, experts.size).transpose(2, 0, 1)),
        nmi=_nmi(counts, experts.size),
        null_nmi=null_nmi,
        p_expert=_holm(_tails(counts, experts.size)),
        names=tuple(by_name),
        layers=experts.layers,
        size=experts.size,
        settings={"model": experts.settings["model"], "split": experts.split_name, "experts": experts.digest},
    )


def _concentration(counts: Int[np.ndarray, "*row expert"], size: int) -> Float[np.ndarray, "*row"]:
    n, k = counts.shape[-1] * size, counts.sum(axis=-1)
    share = k / n
    variance = size * share * (1 - share) * (n - size) / max(n - 1, 1)
    total = ((counts - size * share[..., None]) ** 2).sum(axis=-1)
    return np.divide(total, variance, out=np.full(k.shape, np.nan), where=variance > 0)


def _nmi(counts: Int[np.ndarray, "*row expert"], size: int) -> Float[np.ndarray, "*row"]:
    """Normalised by the mean of the two entropies; 0 where membership does not vary."""
    n = counts.shape[-1] * size
    table = np.stack([counts, size - counts], axis=-1) / n
    inside = table.sum(axis=-2)
    product = inside[..., None, :] / counts.shape[-1]
    ratio = np.divide(table, product, out=np.ones_like(table), where=table > 0)
    information = (table * np.log(ratio)).sum(axis=(-1, -2))
    own = -(inside * np.log(np.where(inside > 0, inside, 1))).sum(axis=-1)
    return information / (0.5 * (own + np.log(counts.shape[-1])) + 1e-300)


def _tails(counts: Int[np.ndarray, "set layer expert"], size: int) -> Float[np.ndarray, "set layer expert"]:
    """Probability of as many or more in an expert by chance."""
    n, k = counts.shape[-1] * size, counts.sum(axis=-1, keepdims=True)
    return hypergeom.sf(counts - 1, n, k, size)


def _holm(p: Float[np.ndarray, "set layer expert"]) -> Float[np.ndarray, "set layer expert"]:
    """p-values of each layer after Holm's correction for its number of experts."""
    order = p.argsort(axis=-1, kind="stable")
    ranked = np.take_along_axis(p, order, axis=-1) * np.arange(p.shape[-1], 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(ranked, axis=-1), 1)
    found = np.empty_like(p)
    np.put_along_axis(found, order, adjusted, axis=-1)
    return found


def _standardised(value: np.ndarray, null: np.ndarray) -> np.ndarray:
    spread = null.std(axis=0)
    return np.divide(value - null.mean(axis=0), spread, out=np.full(value.shape, np.nan), where=spread > 0)
