"""Constants that were found by gradient descent, with how they were found."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from lens_ablation.components import Components
from lens_ablation.errors import UnknownSite
from lens_ablation.files import read_folder, reading, require_shape, write_folder
from lens_ablation.sites import HookPoint, SiteSet
from lens_ablation.statistics.provenance import Provenance

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_FILE_KIND = "optimal-constants"
_TENSORS = ("gaps", "mean_gaps", "steps", "curve", "best_step")


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class OptimalConstants:
    """The constants that hurt least in the place of some sites, and what they cost on data that did not choose them.

    A *problem* is what was optimised on its own: a site, or, of constants found jointly, all sites together.

    Attributes:
        values: By hook name, the constants in the shape of the activation without rows and positions, or with
            ``per_position`` one such to a position from the row's first real token, ``[pos, ...]``. Coordinates of
            sites that were not asked for hold their means.
        sets: The sites that were optimised, one set to a kind.
        ablated_fraction: ``None`` where each site was optimised alone; 1 where all were ablated together; else the
            share of them that was ablated at random.
        per_position: Whether there is a constant to each position.
        gaps: What ablation to these constants adds to the loss of held-out examples, ``[problem, example]``.
        mean_gaps: The same for the means that the search began at.
        steps: Steps of descent at which validation losses were taken, ``[evaluation]``.
        curve: Mean gap on the validation examples, ``[evaluation, problem]``; NaN after a problem had stopped.
        best_step: Step whose constants were kept, ``[problem]``: 0 for the means, -1 for zeros.
        outcome: By problem ``converged``, ``out of steps`` or ``diverged``.
        provenance: Model, data and settings behind them.
    """

    values: Mapping[str, Float[Tensor, "..."]]
    sets: tuple[SiteSet, ...]
    ablated_fraction: float | None
    per_position: bool
    gaps: Float[Tensor, "problem example"]
    mean_gaps: Float[Tensor, "problem example"]
    steps: Int[Tensor, " evaluation"]
    curve: Float[Tensor, "evaluation problem"]
    best_step: Int[Tensor, " problem"]
    outcome: tuple[str, ...]
    provenance: Provenance

    @property
    def problems(self) -> list[str]:
        """What each problem is called: its site, or the number of sites that were optimised together."""
        if self.ablated_fraction is None:
            return [str(site) for sites in self.sets for site in sites]
        return [f"{sum(map(len, self.sets))} sites together"]

    @property
    def gap(self) -> Float[Tensor, " problem"]:
        """Mean held-out loss that ablation adds, in the unit of the loss."""
        return self.gaps.mean(dim=1)

    @property
    def error(self) -> Float[Tensor, " problem"]:
        """Standard error of ``gap``."""
        return self.gaps.std(dim=1) / self.gaps.shape[1] ** 0.5

    @property
    def conditioning(self) -> str:
        """What a constant may depend on: ``position`` or ``nothing``."""
        return "position" if self.per_position else "nothing"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all values."""
        digest = hashlib.sha256()
        for name, value in sorted(self.values.items()):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(np.ascontiguousarray(value.detach().cpu().double().numpy()).tobytes())
        return digest.hexdigest()

    def __getitem__(self, hook: HookPoint | str) -> Float[Tensor, "..."]:
        name = hook.name if isinstance(hook, HookPoint) else hook
        if name not in self.values:
            raise UnknownSite(f"these constants hold nothing on {name}; they hold {', '.join(sorted(self.values))}")
        return self.values[name]

    def __repr__(self) -> str:
        return (
            f"OptimalConstants({self.provenance.model_name}: {', '.join(map(repr, self.sets))}, conditioned on "
            f"{self.conditioning}, mean gap {float(self.gap.mean()):.3g})"
        )

    def require_sites(self, sites: SiteSet) -> None:
        """Refuse sites whose constants were not optimised.

        Raises:
            UnknownSite: a site is not among them.
        """
        for own in self.sets:
            if own.kind == sites.kind:
                missing = sites - own
                if len(missing) == 0:
                    return
                raise UnknownSite(f"no constant was optimised for {missing}; fit_optimal(model, task, those sites)")
        raise UnknownSite(
            f"these constants are of {', '.join(own.kind for own in self.sets)} sites, not of {sites.kind} sites; a "
            "constant of a whole is not one of its parts. Fit them with fit_optimal"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row to a problem: held-out gap, its standard error, the gap of the mean, and how the search ended."""
        return pd.DataFrame(
            {
                "problem": self.problems,
                "gap": self.gap.tolist(),
                "error": self.error.tolist(),
                "gap_of_mean": self.mean_gaps.mean(dim=1).tolist(),
                "best_step": self.best_step.tolist(),
                "outcome": self.outcome,
            }
        )

    def plot(self) -> "Figure":
        """Validation gap of every problem while its constants were searched for."""
        from lens_ablation.plots.optimal import descent_figure

        return descent_figure(self)

    def save(self, folder: str | Path) -> Path:
        """Write the constants to a new folder: tensors as safetensors, settings as JSON."""
        components = Components(self.sets)
        tensors = {f"values/{name}": value for name, value in self.values.items()} | components.addresses
        tensors |= {name: getattr(self, name) for name in _TENSORS}
        plain = {
            "sets": components.described,
            "ablated_fraction": self.ablated_fraction,
            "per_position": self.per_position,
            "outcome": list(self.outcome),
            "provenance": self.provenance.to_json(),
        }
        return write_folder(folder, _FILE_KIND, tensors, plain)

    @classmethod
    def load(cls, folder: str | Path) -> "OptimalConstants":
        """Read constants that ``save`` wrote; needs no model.

        Raises:
            DamagedFile: the folder holds something else, or was changed.
        """
        tensors, plain = read_folder(folder, _FILE_KIND)
        with reading(folder):
            sets = Components.from_stored(tensors, plain["sets"]).sets
            values = {name.removeprefix("values/"): v for name, v in tensors.items() if name.startswith("values/")}
            if set(values) != {point.name for sites in sets for point in sites.hook_points}:
                raise ValueError(f"values of {', '.join(sorted(values))} are not those of its sites")
            found = cls(
                values=values,
                sets=sets,
                ablated_fraction=plain["ablated_fraction"],
                per_position=bool(plain["per_position"]),
                outcome=tuple(str(one) for one in plain["outcome"]),
                provenance=Provenance.from_json(plain["provenance"]),
                **{name: tensors[name] for name in _TENSORS},
            )
            n_problems, n_examples = len(found.problems), found.gaps.shape[-1]
            for name in ("gaps", "mean_gaps"):
                require_shape(name, getattr(found, name), (n_problems, n_examples))
            require_shape("curve", found.curve, (len(found.steps), n_problems))
            require_shape("best_step", found.best_step, (n_problems,))
            if len(found.outcome) != n_problems:
                raise ValueError("outcome has not one entry to a problem")
            return found
