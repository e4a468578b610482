"""Many neurons shifted at once: what the sum of their gradients predicts, and what happens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_ablation.ablation import Firings, removal_masks, replacing_hooks, rows_of_task
from lens_ablation.data.task import Task
from lens_ablation.empirical.gradients import NeuronGradients, Shift
from lens_ablation.empirical.question import Question
from lens_ablation.empirical.shift import Shifted
from lens_ablation.engine.options import Engine
from lens_ablation.files import read_folder, reading, require_shape, write_folder
from lens_ablation.models.anatomy import anatomy
from lens_ablation.models.protocol import LensModel
from lens_ablation.progress import Progress, progress_bar
from lens_ablation.studies.correlations import pearson
from lens_ablation.studies.intervals import Interval, bootstrap_interval

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_FILE_KIND = "group-effects"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class GroupEffects:
    """What shifting random groups of neurons does, and what the sum of their gradients says it does.

    Attributes:
        sizes: Neurons in a group.
        predicted: Sum of gradient times shift, ``[size, group, example, candidate]``, in probability.
        measured: Change of the probability, likewise.
        settings: What the numbers come from: gradients, size of the shift, seed.
    """

    sizes: tuple[int, ...]
    predicted: Float[Tensor, "size group example candidate"]
    measured: Float[Tensor, "size group example candidate"]
    settings: Mapping[str, object]

    def __post_init__(self) -> None:
        require_shape("predicted", self.predicted, (len(self.sizes), *self.predicted.shape[1:]))
        require_shape("measured", self.measured, tuple(self.predicted.shape))

    @property
    def correlations(self) -> Float[Tensor, "size example"]:
        """Pearson correlation over groups of prediction and effect on the first candidate, of each example."""
        return pearson(self.predicted[..., 0], self.measured[..., 0], dim=1, constant=0.0)

    @property
    def correlation(self) -> Float[Tensor, " size"]:
        """Its mean over examples."""
        return self.correlations.mean(dim=1)

    def interval(self, confidence: float = 0.95) -> Interval:
        """Bootstrap interval of that mean."""
        found = self.correlations
        return bootstrap_interval(found, torch.ones(found.shape[1]), confidence=confidence)

    @property
    def share(self) -> Float[Tensor, " size"]:
        """Measured effect as a share of the predicted one, by least squares through the origin over everything."""
        x, y = (values[..., 0].double().flatten(1) for values in (self.predicted, self.measured))
        return (x * y).sum(dim=1) / (x * x).sum(dim=1).clamp(min=1e-300)

    def to_dataframe(self) -> pd.DataFrame:
        """One row to a size: correlation, its 95 % interval, and the measured share of the prediction."""
        low, high = self.interval()
        return pd.DataFrame(
            {
                "neurons": self.sizes,
                "correlation": self.correlation.tolist(),
                "low": low.tolist(),
                "high": high.tolist(),
                "measured_share": self.share.tolist(),
            }
        )

    def plot(self) -> "Figure":
        """Correlation of prediction and effect against the number of neurons."""
        from lens_ablation.plots.neurons import groups_figure

        return groups_figure([self])

    def save(self, folder: str | Path) -> Path:
        """Write the result to a new folder: tensors as safetensors, settings as JSON."""
        tensors = {"predicted": self.predicted, "measured": self.measured}
        return write_folder(folder, _FILE_KIND, tensors, {"sizes": list(self.sizes), "settings": self.settings})

    @classmethod
    def load(cls, folder: str | Path) -> "GroupEffects":
        """Read a result that ``save`` wrote; needs no model.

        Raises:
            DamagedFile: the folder holds something else, or was changed.
        """
        tensors, stored = read_folder(folder, _FILE_KIND)
        with reading(folder):
            return cls(
                sizes=tuple(stored["sizes"]),
                predicted=tensors["predicted"],
                measured=tensors["measured"],
                settings=dict(stored["settings"]),
            )

    def __repr__(self) -> str:
        return f"GroupEffects(groups of {', '.join(map(str, self.sizes))} neurons, {self.measured.shape[1]} of each)"


def group_effects(
    model: LensModel,
    task: Task,
    gradients: NeuronGradients,
    *,
    amount: float = 0.1,
    sizes: Sequence[int] | None = None,
    n_groups: int = 32,
    seed: int = 0,
    batch_size: int | None = None,
    engine: Engine | None = None,
    progress: Progress = True,
) -> GroupEffects:
    """Shift random groups of neurons together, and compare with the sum of their gradients.

    Each neuron of a group is shifted by ``amount`` up or down at random, so that groups of all neurons differ too. What
    up means is the convention of ``gradients``: more of ``|A|`` (``signed``) or of ``A`` (``additive``).

    Args:
        model: The model of ``gradients``.
        task: Their task, with the same examples.
        gradients: From ``neuron_gradients``; their sites are what groups are drawn from.
        amount: Size of each shift, in units of the activation.
        sizes: Neurons in a group; 1, 2, 4 and so on up to all by default.
        n_groups: Groups of each size.
        seed: Draws groups and directions.
        batch_size: Rows (groups times examples) in a pass; chosen when ``None``.
        engine: In which dtype it is run.
        progress: ``True`` for a bar, ``False`` for silence, or a callable given ``(done, total)``.

    Raises:
        ValueError: the gradients are of other examples or neurons, or sizes do not fit.

    Reference:
        Zhao, Jiang, Yoshinaga, *Neuron Empirical Gradient*, 2025, arXiv:2412.18053, where 4,096 neurons are
        shifted together; amounts and directions here are our own.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task = la.tasks.facts(model, n=4)
        >>> found = la.neuron_gradients(model, task, progress=False)
        >>> la.group_effects(model, task, found, sizes=[1, 64], n_groups=4, progress=False)
        GroupEffects(groups of 1, 64 neurons, 4 of each)
    """
    question = Question.of(model, task, gradients.sites, gradients.candidates, batch_size, engine)
    if gradients.settings.get("task_fingerprint") != question.settings["task_fingerprint"]:
        raise ValueError("these gradients are of other examples than the task's; take neuron_gradients of this task")
    if gradients.settings.get("model_fingerprint") != question.settings["model_fingerprint"]:
        raise ValueError("these gradients are of another model; take neuron_gradients(model, task, ...) of this one")
    n_neurons = len(gradients.sites)
    chosen = _sizes(n_neurons) if sizes is None else tuple(sizes)
    if not chosen or min(chosen) < 1 or max(chosen) > n_neurons:
        raise ValueError(f"sizes must lie in 1..{n_neurons}, got {list(chosen)}")
    if n_groups < 2:
        raise ValueError(f"n_groups is {n_groups}; a correlation over groups needs 2 or more")
    generator = np.random.default_rng(seed)
    shape = (len(chosen), n_groups, *gradients.candidates.shape)
    predicted, measured = torch.empty(shape), torch.empty(shape)
    values = gradients.values.double()
    if bool(values.isnan().any()):
        raise ValueError("gradients of neurons that were never moved are NaN; take gradients.signed")
    # under signed shifts a neuron at exactly 0 has no direction to be shifted in
    still = (gradients.activations == 0) & (gradients.shift == "signed")
    with progress_bar(progress, len(chosen) * n_groups * question.task.n_examples, "groups", "row") as advance:
        for i, size in enumerate(chosen):
            shifts = torch.from_numpy(_drawn(generator, n_groups, n_neurons, size) * amount)
            predicted[i] = torch.einsum("gn,ecn->gec", shifts, values * ~still[:, None]).float()
            for rows in question.parts(gradients=False):
                measured[i][:, rows] = _changes(question, rows, shifts, gradients.shift)
                advance(n_groups * (rows.stop - rows.start))
    return GroupEffects(
        sizes=chosen,
        predicted=predicted,
        measured=measured,
        settings={
            **question.settings,
            "shift": gradients.shift,
            "estimator": gradients.settings["estimator"],
            "amount": amount,
            "n_groups": n_groups,
            "seed": seed,
        },
    )


def _sizes(n: int) -> tuple[int, ...]:
    """Powers of two up to ``n``, and ``n``."""
    return (*(2**power for power in range(n.bit_length()) if 2**power < n), n)


def _drawn(generator: np.random.Generator, n_groups: int, n: int, size: int) -> Float[np.ndarray, "group neuron"]:
    """1 or -1 where a group shifts a neuron, else 0."""
    shifts = np.zeros((n_groups, n))
    for group in shifts:
        group[generator.choice(n, size=size, replace=False)] = generator.choice([-1.0, 1.0], size=size)
    return shifts


def _changes(
    question: Question, rows: slice, shifts: Float[Tensor, "group neuron"], convention: Shift
) -> Float[Tensor, "group example candidate"]:
    """Change of the candidates' probabilities on some examples, one group after the other.

    The hooks are those of ``shift``, without its refusal of up projections whose weights were processed: gradients of
    those neurons are asked for too.
    """
    where = rows_of_task(question.task, "answer", torch.arange(rows.start, rows.stop))
    _, baseline = question.clean(rows, [])
    found: list[Tensor] = []
    with torch.inference_mode():
        for amounts in shifts:
            firings = Firings()
            removed = removal_masks(question.sites, (amounts != 0).numpy()[None], anatomy(question.model))
            replacement = Shifted.of(question.sites, amounts, convention).prepare(question.running, list(removed))
            pairs = replacing_hooks(removed, replacement, where, firings, positional=False)
            found.append(question.probabilities(rows, pairs).cpu().double() - baseline.double())
            firings.check(1)
    return torch.stack(found).float()
