"""What selective pruning did: the metric on retained and forgotten data, step by step, against random pruning."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_ablation.files import read_folder, reading, require_shape, write_folder
from lens_ablation.sites import SiteSet
from lens_ablation.studies.intervals import weighted_mean

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_FILE_KIND = "selective-pruning"
SELECTED, RANDOM, MATCHED = "selected", "random", "random, same layers"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class SelectivePruning:
    """The metric on data to retain and to forget as ever more neurons are pruned.

    The first curve prunes the selected neurons; the others prune as many random ones, over all layers or as many in
    every layer. The first step is the untouched model.

    Attributes:
        retain: ``[curve, step, example]``, on examples that no score was measured on.
        forget: The same on the data to forget.
        retain_weights: Targets of each example; means over examples are weighted by it.
        forget_weights: The same on the data to forget.
        curves: What each curve prunes: ``selected``, ``random`` or ``random, same layers``.
        order: The selected neurons in the order of their pruning.
        n_removed: How many are pruned at each step, 0 at the first.
        n_sites: Neurons that there were to choose from.
        dominated: Share of neurons whose score epsilon decided, at each step after the first.
        settings: Model, data, score, method and versions behind the numbers.
    """

    retain: Float[Tensor, "curve step retained"]
    forget: Float[Tensor, "curve step forgotten"]
    retain_weights: Int[Tensor, " retained"]
    forget_weights: Int[Tensor, " forgotten"]
    curves: tuple[str, ...]
    order: SiteSet
    n_removed: tuple[int, ...]
    n_sites: int
    dominated: tuple[float, ...]
    settings: Mapping[str, object]

    @property
    def retain_mean(self) -> Float[Tensor, "curve step"]:
        """Mean metric on the data to retain."""
        return weighted_mean(self.retain.double(), self.retain_weights)

    @property
    def forget_mean(self) -> Float[Tensor, "curve step"]:
        """Mean metric on the data to forget."""
        return weighted_mean(self.forget.double(), self.forget_weights)

    @property
    def retain_drop(self) -> Float[Tensor, "curve step"]:
        """How much worse the metric is than that of the untouched model, on the data to retain."""
        return self._sign * (self.retain_mean[:, :1] - self.retain_mean)

    @property
    def forget_drop(self) -> Float[Tensor, "curve step"]:
        """The same on the data to forget."""
        return self._sign * (self.forget_mean[:, :1] - self.forget_mean)

    @property
    def _sign(self) -> int:
        return 1 if self.settings["higher_is_better"] else -1

    @property
    def ratio(self) -> Float[Tensor, "curve step"]:
        """``forget_drop / retain_drop``: infinite where only the data to forget suffers, NaN where neither does."""
        forgot, lost = self.forget_drop, self.retain_drop
        return torch.where((forgot <= 0) & (lost <= 0), torch.nan, forgot / lost.clamp(min=0))

    @property
    def best_step(self) -> int:
        """The step of the selected neurons at which ``forget_drop - retain_drop`` is largest."""
        return self.best_steps[0]

    @property
    def best_steps(self) -> tuple[int, ...]:
        """The same of each curve."""
        return tuple(int(step) for step in (self.forget_drop - self.retain_drop).argmax(dim=1))

    @property
    def area(self) -> Float[Tensor, " curve"]:
        """Area under the curve of forgotten against retained accuracy, over that of equal loss; lower is better.

        1 is the straight line from the untouched model to the origin, 0 forgets all before anything else suffers.
        Where pruning ends early the curve goes on to the origin straight.

        Raises:
            ValueError: the metric is one of which less is better.
        """
        self._require_accuracy()
        x, y = (torch.cat([mean, torch.zeros(len(mean), 1)], dim=1) for mean in (self.retain_mean, self.forget_mean))
        return _area(x, y)

    @property
    def area_as_published(self) -> Float[Tensor, " curve"]:
        """The same of the measured part alone, as in the paper's code: what pruning did not reach counts as 0.

        Raises:
            ValueError: the metric is one of which less is better.
        """
        self._require_accuracy()
        return _area(self.retain_mean, self.forget_mean)

    def _require_accuracy(self) -> None:
        if self._sign < 0:
            raise ValueError(f"the area is one of accuracies, and of {self.settings['metric']} less is better")

    def pruned(self, step: int | None = None) -> SiteSet:
        """The selected neurons that are pruned at a step, in the order of their pruning; at the best by default.

        Raises:
            ValueError: there is no such step, or nothing is pruned there.
        """
        at = self.best_step if step is None else step
        if not 0 < at < len(self.n_removed):
            raise ValueError(f"steps at which neurons are pruned are 1..{len(self.n_removed) - 1}, got {at}")
        return self.order.take(range(self.n_removed[at]))

    @property
    def by_layer(self) -> Int[np.ndarray, "step layer"]:
        """How many of the selected neurons lie in each layer."""
        layers = self.order.addresses[:, 0]
        return np.stack([np.bincount(layers[:n], minlength=self.order.shape[0]) for n in self.n_removed])

    def to_dataframe(self) -> pd.DataFrame:
        """One row to a curve and a step: neurons pruned, means, drops and their ratio."""
        means = {"retain": self.retain_mean, "forget": self.forget_mean, "retain_drop": self.retain_drop}
        means |= {"forget_drop": self.forget_drop, "ratio": self.ratio}
        return pd.DataFrame(
            [
                {
                    "curve": name,
                    "step": s,
                    "n_removed": n,
                    "fraction": n / self.n_sites,
                    **{key: float(value[c, s]) for key, value in means.items()},
                }
                for c, name in enumerate(self.curves)
                for s, n in enumerate(self.n_removed)
            ]
        )

    def plot(self) -> "Figure":
        """Metric on the data to forget against that on the data to retain, selected and random neurons."""
        from lens_ablation.plots.modularity import selective_figure

        return selective_figure({str(self.settings["kind"]): self})

    def save(self, folder: str | Path) -> Path:
        """Write the result to a new folder: tensors as safetensors, settings as JSON."""
        names = ("retain", "forget", "retain_weights", "forget_weights")
        tensors = {name: getattr(self, name) for name in names} | {"addresses": torch.from_numpy(self.order.addresses)}
        plain = {
            "curves": list(self.curves),
            "n_removed": list(self.n_removed),
            "n_sites": self.n_sites,
            "dominated": list(self.dominated),
            "kind": self.order.kind,
            "shape": list(self.order.shape),
            "settings": self.settings,
        }
        return write_folder(folder, _FILE_KIND, tensors, plain)

    @classmethod
    def load(cls, folder: str | Path) -> "SelectivePruning":
        """Read a result that ``save`` wrote; needs no model.

        Raises:
            DamagedFile: the folder holds something else, or was changed.
        """
        tensors, plain = read_folder(folder, _FILE_KIND)
        with reading(folder):
            found = cls(
                retain=tensors["retain"],
                forget=tensors["forget"],
                retain_weights=tensors["retain_weights"],
                forget_weights=tensors["forget_weights"],
                curves=tuple(str(name) for name in plain["curves"]),
                order=SiteSet.from_stored(plain["kind"], tensors["addresses"].numpy(), plain["shape"]),
                n_removed=tuple(int(n) for n in plain["n_removed"]),
                n_sites=int(plain["n_sites"]),
                dominated=tuple(float(share) for share in plain["dominated"]),
                settings=dict(plain["settings"]),
            )
            sizes = len(found.curves), len(found.n_removed)
            require_shape("retain", found.retain, (*sizes, len(found.retain_weights)))
            require_shape("forget", found.forget, (*sizes, len(found.forget_weights)))
            require_shape("addresses", tensors["addresses"], (found.n_removed[-1], len(found.order.shape)))
            return found

    def __repr__(self) -> str:
        at = self.best_step
        return (
            f"SelectivePruning({self.settings['kind']}: {self.n_removed[at]} of {self.n_sites} neurons at step {at} "
            f"cost the forgotten {float(self.forget_drop[0, at]):.3g}, the retained "
            f"{float(self.retain_drop[0, at]):.3g})"
        )


def _area(x: Float[Tensor, "curve point"], y: Float[Tensor, "curve point"]) -> Float[Tensor, " curve"]:
    """Trapezoids from the last point back to the first, over the triangle below the first."""
    return torch.trapezoid(y.flip(1), x.flip(1), dim=1) / (0.5 * x[:, 0] * y[:, 0])
