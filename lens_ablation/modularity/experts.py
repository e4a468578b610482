"""Layers split into experts: groups of neurons of one size, which are sites like any others."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from sklearn.metrics import adjusted_rand_score

from lens_ablation.engine.options import Engine
from lens_ablation.errors import StatisticsMismatch, UnknownSite
from lens_ablation.files import read_folder, reading, write_folder
from lens_ablation.models.anatomy import anatomy
from lens_ablation.models.fingerprint import fingerprint, model_name, versions, weight_processing
from lens_ablation.models.protocol import LensModel, require_evaluation_mode
from lens_ablation.modularity.balanced import require_balanced
from lens_ablation.modularity.expert_splits import ExpertSplit, ParameterClustering, digest_of_labels
from lens_ablation.modularity.parts import kept_parts
from lens_ablation.progress import Progress, progress_bar
from lens_ablation.sites import SiteSet

_FILE_KIND = "experts"
_LAYER_KIND = "experts-of-a-layer"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Experts:
    """The neurons of some layers in experts of one size.

    ``experts[layer, expert]`` is a set of neurons, to be ablated, swept or attributed like any other.

    Attributes:
        labels: Expert of each neuron, ``[layer, neuron]``.
        layers: Which layers of the model.
        n_experts: Experts of each layer.
        n_layers: Layers of the model.
        settings: Model, its weight processing, way of splitting and what computed it.
    """

    labels: Int[np.ndarray, "layer neuron"]
    layers: tuple[int, ...]
    n_experts: int
    n_layers: int
    settings: Mapping[str, object]

    @property
    def width(self) -> int:
        """Neurons of a layer."""
        return self.labels.shape[1]

    @property
    def size(self) -> int:
        """Neurons of an expert."""
        return self.width // self.n_experts

    @property
    def split_name(self) -> str:
        """How the layers were split."""
        return str(self.settings["split"])

    @property
    def digest(self) -> str:
        """SHA-256 of the labels."""
        return digest_of_labels(self.labels)

    @property
    def sites(self) -> SiteSet:
        """All neurons of these layers."""
        rows = np.array([(layer, unit) for layer in self.layers for unit in range(self.width)], dtype=np.int64)
        return SiteSet("neuron", rows, (self.n_layers, self.width))

    def of_layer(self, layer: int) -> Int[np.ndarray, " neuron"]:
        """Expert of each neuron of a layer of the model.

        Raises:
            UnknownSite: the layer was not split.
        """
        if layer not in self.layers:
            raise UnknownSite(f"layer {layer} was not split; layers {', '.join(map(str, self.layers))} were")
        return self.labels[self.layers.index(layer)]

    def __getitem__(self, key: tuple[int, int]) -> SiteSet:
        layer, expert = key
        if not 0 <= expert < self.n_experts:
            raise UnknownSite(f"there is no expert {expert}: layers have {self.n_experts}, numbered from 0")
        units = np.flatnonzero(self.of_layer(layer) == expert)
        rows = np.stack([np.full_like(units, layer), units], axis=1)
        return SiteSet("neuron", rows, (self.n_layers, self.width))

    def __iter__(self) -> Iterator[SiteSet]:
        return (self[layer, expert] for layer in self.layers for expert in range(self.n_experts))

    def __len__(self) -> int:
        return len(self.layers) * self.n_experts

    def adjusted_rand(self, other: "Experts") -> Float[np.ndarray, " layer"]:
        """Adjusted Rand index with other experts of the same layers: 1 for the same ones, 0 for chance.

        Raises:
            StatisticsMismatch: weights were processed otherwise, as rows of weights then differ.
            ValueError: the other experts are of other layers.
        """
        if self.layers != other.layers or self.labels.shape != other.labels.shape:
            raise ValueError(f"these are experts of layers {self.layers} and {other.layers}; split the same ones")
        if self.settings["weight_processing"] != other.settings["weight_processing"]:
            raise StatisticsMismatch(
                f"weights were {self.settings['weight_processing']} for the one and "
                f"{other.settings['weight_processing']} for the other; split both from raw weights"
            )
        return np.array([adjusted_rand_score(a, b) for a, b in zip(self.labels, other.labels, strict=True)])

    def require_model(self, model: LensModel) -> None:
        """Refuse a model other than the one that was split.

        Raises:
            StatisticsMismatch: it is another, or its weights were processed.
        """
        if self.settings["model_fingerprint"] != fingerprint(model):
            raise StatisticsMismatch(
                f"these are experts of {self.settings['model']} with weights {self.settings['weight_processing']}, and "
                f"this is {model_name(model)} with {weight_processing(model)}, or other weights. Split this model"
            )

    def to_dataframe(self) -> pd.DataFrame:
        """One row to a neuron: layer, unit, expert."""
        table = pd.DataFrame(self.sites.addresses, columns=["layer", "unit"])
        table["expert"] = self.labels.reshape(-1)
        return table

    def save(self, folder: str | Path) -> Path:
        """Write the experts to a new folder."""
        plain = {"layers": list(self.layers), "n_experts": self.n_experts, "n_layers": self.n_layers}
        return write_folder(
            folder, _FILE_KIND, {"labels": torch.from_numpy(self.labels)}, {**plain, "settings": self.settings}
        )

    @classmethod
    def load(cls, folder: str | Path) -> "Experts":
        """Read experts that ``save`` wrote; needs no model.

        Raises:
            DamagedFile: the folder holds something else, or was changed.
        """
        tensors, plain = read_folder(folder, _FILE_KIND)
        with reading(folder):
            found = cls(
                labels=tensors["labels"].numpy(),
                layers=tuple(int(layer) for layer in plain["layers"]),
                n_experts=int(plain["n_experts"]),
                n_layers=int(plain["n_layers"]),
                settings=dict(plain["settings"]),
            )
            sizes = [np.bincount(row, minlength=found.n_experts) for row in found.labels]
            if len(found.layers) != len(sizes) or any((size != found.size).any() for size in sizes):
                raise ValueError("experts have different sizes")
            return found

    def __repr__(self) -> str:
        layers = ", ".join(map(str, self.layers))
        return f"Experts({self.split_name}: {self.n_experts} experts of {self.size} neurons in layers {layers})"


def split_into_experts(
    model: LensModel,
    layers: int | Sequence[int] | None,
    n_experts: int,
    split: ExpertSplit | None = None,
    *,
    engine: Engine | None = None,
    progress: Progress = True,
) -> Experts:
    """Split the MLP neurons of layers into experts of exactly one size.

    Args:
        model: A TransformerLens model in evaluation mode.
        layers: One layer, several, or ``None`` for all.
        n_experts: Experts of each layer; must divide its width.
        split: ``ParameterClustering()`` (the default), ``CoActivation(data)``, ``RandomSplit()`` or ``RoundRobin()``.
        engine: Where finished layers are kept; see ``Engine``.
        progress: ``True`` for a bar, ``False`` for silence, or a callable given ``(done, total)`` layers.

    Raises:
        StoreMismatch: the engine's store holds another run.
        UnknownSite: there is no such layer.
        UnsupportedModel: the model has no MLP neurons, or no input weights of them.
        ValueError: the number of experts does not divide the width; the message lists those that do.

    Reference:
        Zhang et al., *MoEfication: Transformer Feed-forward Layers are Mixtures of Experts*, 2022, arXiv:2110.01786

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-vit")
        >>> experts = la.split_into_experts(model, [2], 16, la.ParameterClustering(n_init=1), progress=False)
        >>> len(experts), len(experts[2, 5])
        (16, 8)
    """
    require_evaluation_mode(model)
    sizes = anatomy(model)
    wanted = range(sizes.n_layers) if layers is None else [layers] if isinstance(layers, int) else layers
    chosen = tuple(int(layer) for layer in wanted)
    outside = [layer for layer in chosen if not 0 <= layer < sizes.n_layers]
    if outside or not chosen or len(set(chosen)) < len(chosen):
        raise UnknownSite(f"layers of this model are 0..{sizes.n_layers - 1}, each once; got {list(chosen)}")
    width = sizes.d_mlp
    if n_experts < 1 or width % n_experts:
        valid = [n for n in range(2, width) if width % n == 0]
        raise ValueError(
            f"{n_experts} experts do not divide a layer of {width} neurons; take one of {', '.join(map(str, valid))}"
        )
    way = ParameterClustering() if split is None else split
    settings = {
        "split": way.name,
        "split_settings": dict(way.described(model)),
        "computed_by": way.computed_by,
    }
    parts = kept_parts(model, engine, "layers", _LAYER_KIND, {**settings, "n_experts": n_experts})
    stored = {layer: parts.read(f"layer-{layer}", {"layer": layer}) for layer in chosen}
    labels = {layer: part[0]["labels"].numpy() for layer, part in stored.items() if part is not None}
    missing = [layer for layer in chosen if layer not in labels]
    with progress_bar(progress, len(chosen), f"experts: {way.name}", "layer") as advance:
        advance(len(labels))
        for layer, found in zip(missing, way.labels(model, missing, width, n_experts), strict=True):
            labels[layer] = np.asarray(found, dtype=np.int64)
            require_balanced(labels[layer], n_experts, way.name)
            parts.write(f"layer-{layer}", {"layer": layer}, {"labels": torch.from_numpy(labels[layer])}, {})
            advance(1)
    return Experts(
        labels=np.stack([labels[layer] for layer in chosen]),
        layers=chosen,
        n_experts=n_experts,
        n_layers=sizes.n_layers,
        settings={
            "model": model_name(model),
            "model_fingerprint": fingerprint(model),
            "weight_processing": weight_processing(model),
            **settings,
            "versions": versions(),
        },
    )
