"""Ways of splitting a layer's neurons into experts of one size."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from lens_ablation.data.inputs import batches_of, rows_per_pass
from lens_ablation.data.task import Task
from lens_ablation.errors import HookDidNotFire, UnsupportedModel
from lens_ablation.models.anatomy import is_gated
from lens_ablation.models.forward import forward
from lens_ablation.models.protocol import LensModel
from lens_ablation.models.rows import row_maps, weight_of
from lens_ablation.modularity.balanced import balanced_clusters, computed_by
from lens_ablation.sites import HookPoint
from lens_ablation.strategy import Strategy

ZHANG_2022 = """@inproceedings{zhang2022moefication,
  title     = {{MoEfication}: Transformer Feed-forward Layers are Mixtures of Experts},
  author    = {Zhang, Zhengyan and Lin, Yankai and Liu, Zhiyuan and Li, Peng and Sun, Maosong and Zhou, Jie},
  booktitle = {Findings of the Association for Computational Linguistics: ACL 2022},
  year      = {2022}
}"""

Labels = Int[np.ndarray, "layer neuron"]
Matrix = Literal["up", "gate"]

GRAPH_BYTES = 2**31
"""Most memory of the graphs of co-activation that are measured in one pass over the data."""


class ExpertSplit(Strategy):
    """A way of splitting the neurons of a layer into experts. Subclasses are frozen dataclasses."""

    bibtex: ClassVar[str] = ZHANG_2022

    @property
    def computed_by(self) -> str:
        """What computes it: where two programs can, their labels differ."""
        return self.name

    def described(self, model: LensModel) -> Mapping[str, object]:
        """Settings, and of data what the model is shown."""
        return self.settings

    @abstractmethod
    def labels(
        self, model: LensModel, layers: Sequence[int], width: int, n_experts: int
    ) -> Iterator[Int[np.ndarray, " neuron"]]:
        """Layer by layer the expert of each neuron, each expert equally often."""


@dataclass(frozen=True)
class ParameterClustering(ExpertSplit):
    """Neurons whose input weights point alike: balanced k-means on the rows of the MLP's input weights, of length 1.

    Weights are taken as they are: of processed ones the directions, and so the clusters, are others. At random
    initialisation in many dimensions clusters are little more than the first guess; compare several seeds.

    Attributes:
        matrix: Of gated MLPs ``up`` (as in the reference code) or ``gate``.
        n_init: Restarts, of which the best is kept.
        max_iter: Most iterations.
        seed: Of the first centres.

    Raises:
        ValueError: there are no restarts, iterations or such matrix.

    Reference:
        Zhang et al., *MoEfication: Transformer Feed-forward Layers are Mixtures of Experts*, 2022, arXiv:2110.01786

    Example:
        >>> import lens_ablation as la
        >>> la.ParameterClustering(n_init=2)
        ParameterClustering(matrix='up', n_init=2, max_iter=300, seed=0)
    """

    matrix: Matrix = "up"
    n_init: int = 10
    max_iter: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_init < 1 or self.max_iter < 1 or self.matrix not in ("up", "gate"):
            raise ValueError(f"give n_init and max_iter of 1 or more, and matrix 'up' or 'gate'; got {self}")

    @property
    def settings(self) -> Mapping[str, object]:
        return dict(vars(self))

    @property
    def computed_by(self) -> str:
        return computed_by()

    def labels(
        self, model: LensModel, layers: Sequence[int], width: int, n_experts: int
    ) -> Iterator[Int[np.ndarray, " neuron"]]:
        for layer in layers:
            rows = normalize(input_weights(model, layer, self.matrix).float(), dim=1).numpy()
            yield balanced_clusters(rows, n_experts, seed=self.seed, n_init=self.n_init, max_iter=self.max_iter)


@dataclass(frozen=True, eq=False)
class CoActivation(ExpertSplit):
    """Neurons that are active together: a balanced split of the graph whose edges are cosines of ``relu(z)``.

    The graph is split by its first eigenvectors and balanced k-means on them, where the reference code has METIS on
    counts that were clamped batch by batch.

    Attributes:
        data: What the model is run on: a ``Task``, tokens, pixels, or an iterable of batches.
        n_init: Restarts of k-means.
        seed: Of its first centres.

    Reference:
        Zhang et al., 2022, arXiv:2110.01786, the co-activation graph split.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> la.CoActivation(la.tasks.ioi(model, n=8)).name
        'CoActivation'
    """

    data: Task | Tensor | Iterable[Any]
    n_init: int = 10
    seed: int = 0

    @property
    def settings(self) -> Mapping[str, object]:
        of = self.data.fingerprint if isinstance(self.data, Task) else type(self.data).__name__
        return {"data": of, "n_init": self.n_init, "seed": self.seed}

    @property
    def computed_by(self) -> str:
        return f"eigenvectors, {computed_by()}"

    def described(self, model: LensModel) -> Mapping[str, object]:
        return {**self.settings, "data": batches_of(self.data, model, 1).fingerprint}

    def labels(
        self, model: LensModel, layers: Sequence[int], width: int, n_experts: int
    ) -> Iterator[Int[np.ndarray, " neuron"]]:
        at_once = max(1, GRAPH_BYTES // (8 * width**2))
        for start in range(0, len(layers), at_once):
            for graph in co_activation(model, self.data, layers[start : start + at_once]).values():
                points = _embedded(graph, n_experts)
                yield balanced_clusters(points, n_experts, seed=self.seed, n_init=self.n_init, max_iter=300)


@dataclass(frozen=True)
class RandomSplit(ExpertSplit):
    """Neurons put together by chance: what any way of splitting is to be compared with.

    Attributes:
        seed: Another seed gives other experts.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-vit")
        >>> la.split_into_experts(model, None, 8, la.RandomSplit(seed=1), progress=False)
        Experts(RandomSplit: 8 experts of 16 neurons in layers 0, 1, 2, 3)
    """

    seed: int = 0

    @property
    def settings(self) -> Mapping[str, object]:
        return {"seed": self.seed}

    def labels(
        self, model: LensModel, layers: Sequence[int], width: int, n_experts: int
    ) -> Iterator[Int[np.ndarray, " neuron"]]:
        for layer in layers:
            yield np.random.default_rng([self.seed, layer]).permutation(np.arange(width) % n_experts)


@dataclass(frozen=True)
class RoundRobin(ExpertSplit):
    """Neuron ``i`` in expert ``i % n_experts``, which the modularity paper's code calls random.

    Example:
        >>> import lens_ablation as la
        >>> la.split_into_experts(la.load_model("tiny-vit"), [0], 8, la.RoundRobin(), progress=False).labels[0, :10]
        array([0, 1, 2, 3, 4, 5, 6, 7, 0, 1])
    """

    @property
    def settings(self) -> Mapping[str, object]:
        return {}

    def labels(
        self, model: LensModel, layers: Sequence[int], width: int, n_experts: int
    ) -> Iterator[Int[np.ndarray, " neuron"]]:
        for _ in layers:
            yield np.arange(width) % n_experts


def input_weights(model: LensModel, layer: int, matrix: Matrix = "up") -> Float[Tensor, "neuron d_model"]:
    """What each MLP neuron of a layer reads with: rows of the input weights, of gated MLPs of the one asked for.

    Raises:
        UnsupportedModel: no one linear map of this model gives the neurons' inputs.
        ValueError: ``gate`` of MLPs that are not gated.
    """
    if matrix == "gate" and not is_gated(model):
        raise ValueError("this model's MLPs have no gate; take matrix='up'")
    activation = "pre_linear" if is_gated(model) and matrix == "up" else "pre"
    found = row_maps(model).givers.get((activation, layer), ())
    if len(found) == 1:
        return weight_of(found[0]).T.cpu()
    own: Any = getattr(getattr(model, "blocks", {})[layer], "mlp", None)
    weight = getattr(own, "W_gate" if matrix == "gate" else "W_in", None)
    if not isinstance(weight, Tensor):
        raise UnsupportedModel(
            f"no one linear map of layer {layer} gives {HookPoint(activation, layer)}, so its neurons have no rows of "
            "input weights; split by CoActivation(data) instead"
        )
    return weight.detach().T.cpu()


def co_activation(
    model: LensModel, data: Task | Tensor | Iterable[object], layers: Sequence[int]
) -> dict[int, Float[np.ndarray, "neuron neuron"]]:
    """Cosines of ``relu(z)`` over all real tokens of each two neurons of a layer; 0 of neurons never active.

    Raises:
        HookDidNotFire: a hook did not fire once in each forward pass.
    """
    points = [HookPoint("post", layer) for layer in layers]
    sums: dict[HookPoint, Tensor] = {}
    fired: list[HookPoint] = []

    def add(point: HookPoint, mask: Tensor | None, activation: Tensor, hook: object) -> None:
        fired.append(point)
        active = activation.flatten(0, 1) if mask is None else activation[mask.to(activation.device)]
        active = active.detach().double().clamp(min=0)
        product = active.T @ active
        sums[point] = sums[point] + product if point in sums else product

    with torch.no_grad():
        for batch in batches_of(data, model, rows_per_pass(data, model)):
            fired.clear()
            pairs = [(point.name, partial(add, point, batch.attention_mask)) for point in points]
            forward(model, batch.inputs, attention_mask=batch.attention_mask, fwd_hooks=pairs)
            for point in points:
                if fired.count(point) != 1:
                    raise HookDidNotFire(point.name, 1, fired.count(point))
    found: dict[int, np.ndarray] = {}
    for point in points:
        product = sums[point].cpu().numpy()
        length = np.sqrt(np.diag(product))
        scale = np.divide(1, length, out=np.zeros_like(length), where=length > 0)
        found[point.layer] = product * scale[:, None] * scale[None]
    return found


def _embedded(graph: Float[np.ndarray, "neuron neuron"], n: int) -> Float[np.ndarray, "neuron n"]:
    """Rows of the first eigenvectors of the normalised graph, of length 1."""
    weights = graph.copy()
    np.fill_diagonal(weights, 0)
    degree = weights.sum(axis=1)
    scale = np.divide(1, np.sqrt(degree), out=np.zeros_like(degree), where=degree > 0)
    _, vectors = np.linalg.eigh(weights * scale[:, None] * scale[None])
    points = vectors[:, -n:]
    # an eigenvector's sign is arbitrary, and k-means++ would follow it
    points = points * np.sign(points[np.abs(points).argmax(axis=0), np.arange(n)])
    return points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)


def digest_of_labels(labels: Labels) -> str:
    """SHA-256 of labels."""
    return hashlib.sha256(np.ascontiguousarray(labels, dtype="<i8").tobytes()).hexdigest()
