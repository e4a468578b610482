"""Lenses: what the residual stream in the middle of a model would predict."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_ablation.data import metrics
from lens_ablation.data.answers import untouched_answers
from lens_ablation.data.as_task import as_task
from lens_ablation.data.task import Task
from lens_ablation.engine.gates import frozen_weights
from lens_ablation.engine.options import Engine
from lens_ablation.engine.path import Path as Shortcuts
from lens_ablation.engine.proof import path_of
from lens_ablation.engine.size import rows_in_pass
from lens_ablation.errors import UnsupportedModel
from lens_ablation.files import read_folder, reading, require_shape, write_folder
from lens_ablation.models.checks import require_meaning
from lens_ablation.models.protocol import LensModel, require_evaluation_mode
from lens_ablation.optimal.batches import batch_of
from lens_ablation.optimal.lens_passes import LensPart, Parameters, examples_in_pass, replaces_attention, start_of
from lens_ablation.optimal.lens_strategies import (
    Fitted,
    LensKind,
    LogitLens,
    MeanAttention,
    OptimalConstantAttention,
    TunedLens,
)
from lens_ablation.optimal.split import split_task
from lens_ablation.progress import Progress, progress_bar
from lens_ablation.statistics.provenance import Provenance

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

EVALUATIONS = 10
"""Validations in a fit; of each layer the best parameters are kept."""

_FILE_KIND = "lens"
_KINDS: Mapping[str, type[LensKind]] = {
    kind.__name__: kind for kind in (LogitLens, TunedLens, OptimalConstantAttention, MeanAttention)
}


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Lens:
    """A lens for each layer of one model, and how far its predictions are from the model's.

    Layer ``l`` reads the residual stream that enters block ``l``.

    Attributes:
        kind: What sort of lens it is.
        parameters: What was fitted, one entry to a layer.
        divergence: KL from the model's output to the lens on held-out examples, nats, mean over the positions that
            are read, ``[layer, example]``.
        start: The same before any step.
        provenance: Model, data and settings behind it.
    """

    kind: LensKind
    parameters: Mapping[str, Float[Tensor, "layer ..."]]
    divergence: Float[Tensor, "layer example"]
    start: Float[Tensor, "layer example"]
    provenance: Provenance

    @property
    def kl(self) -> Float[Tensor, " layer"]:
        """Mean divergence of each layer over held-out examples, nats."""
        return self.divergence.mean(dim=1)

    @property
    def error(self) -> Float[Tensor, " layer"]:
        """Standard error of ``kl``."""
        return self.divergence.std(dim=1) / self.divergence.shape[1] ** 0.5

    def __repr__(self) -> str:
        return f"Lens({self.kind.name} of {self.provenance.model_name}, KL {[round(v, 3) for v in self.kl.tolist()]})"

    def logits(
        self, model: LensModel, data: Task | Tensor | Iterable[object]
    ) -> Float[Tensor, "layer example target d_vocab"]:
        """What each layer predicts where the task reads its answers; of tokens, every position but the last.

        Raises:
            StatisticsMismatch: the model is not the one of this lens.
        """
        self.provenance.require_model(model, "this lens's readings", "Fit it on this model with fit_lens")
        task = as_task(data, model).with_metric(metrics.kl_from_clean)
        parameters = {name: value.to(next(iter(model.parameters()))) for name, value in self.parameters.items()}
        found: list[Tensor] = []
        with torch.no_grad(), frozen_weights(model):
            for rows in torch.arange(task.n_examples).split(examples_in_pass(model, task)):
                part = LensPart(self.kind, model, task, rows, _path(model), Engine().clean_bytes)
                found.append(part.logits(parameters).detach().float().cpu())
        return torch.cat(found, dim=1)

    def output(
        self, model: LensModel, data: Task | Tensor | Iterable[object]
    ) -> Float[Tensor, "example target d_vocab"]:
        """What the model itself predicts there, to compare ``logits`` with."""
        task = as_task(data, model)
        answers = untouched_answers(model, task, rows_in_pass(model, task.inputs))
        return torch.cat([logits.float() for logits in answers]).cpu()

    def to_dataframe(self) -> pd.DataFrame:
        """One row to a layer: KL in nats, its standard error, and KL before fitting."""
        return pd.DataFrame(
            {
                "lens": self.kind.name,
                "layer": range(len(self.divergence)),
                "kl": self.kl.tolist(),
                "error": self.error.tolist(),
                "kl before": self.start.mean(dim=1).tolist(),
            }
        )

    def plot(self) -> "Figure":
        """KL to the model's output by layer."""
        from lens_ablation.plots.lens import lenses_figure

        return lenses_figure([self])

    def plot_tokens(self, model: LensModel, tokens: Tensor) -> "Figure":
        """One text, layer by token: colour is KL to the model's output, hovering shows the likeliest next tokens."""
        from lens_ablation.plots.lens import lens_tokens_figure

        return lens_tokens_figure(self, model, tokens)

    def save(self, folder: str | Path) -> Path:
        """Write the lens to a new folder: tensors as safetensors, settings as JSON."""
        tensors = {f"parameters/{name}": value for name, value in self.parameters.items()}
        tensors |= {"divergence": self.divergence, "start": self.start}
        plain = {
            "kind": type(self.kind).__name__,
            "settings": dict(self.kind.settings),
            "provenance": self.provenance.to_json(),
        }
        return write_folder(folder, _FILE_KIND, tensors, plain)

    @classmethod
    def load(cls, folder: str | Path) -> "Lens":
        """Read a lens that ``save`` wrote.

        Raises:
            DamagedFile: the folder holds something else, or was changed.
        """
        tensors, plain = read_folder(folder, _FILE_KIND)
        with reading(folder):
            if plain["kind"] not in _KINDS:
                raise ValueError(f"there is no lens {plain['kind']!r}; there are {', '.join(_KINDS)}")
            made: Callable[..., LensKind] = _KINDS[plain["kind"]]
            require_shape("start", tensors["start"], tuple(tensors["divergence"].shape))
            return cls(
                kind=made(**plain["settings"]),
                parameters={
                    name.removeprefix("parameters/"): value for name, value in tensors.items() if "parameters/" in name
                },
                divergence=tensors["divergence"],
                start=tensors["start"],
                provenance=Provenance.from_json(plain["provenance"]),
            )


def fit_lens(
    model: LensModel,
    data: Task | Tensor | Iterable[object],
    kind: LensKind | None = None,
    *,
    held_out: Task | None = None,
    seed: int = 0,
    allow_small: bool = False,
    clean_bytes: int = 2**30,
    progress: Progress = True,
) -> Lens:
    """A lens that reads a prediction off the residual stream before each block, judged on held-out text.

    Tokens are read at every next token, tasks where they read their answers (images at their class). The lens is
    fitted to the model's own output, never to the true answers.

    Args:
        model: A TransformerLens model in evaluation mode; left exactly as it was.
        data: Tokens ``[example, pos]``, a ``Task``, or anything that makes one.
        kind: ``LogitLens`` (the default), ``TunedLens``, ``OptimalConstantAttention`` or ``MeanAttention``.
        held_out: Examples to report on instead of a fifth of ``data``.
        seed: Draws the split.
        allow_small: Accept fewer than 50 examples.
        clean_bytes: Memory for clean activations that are kept between steps.
        progress: ``True`` for a bar, ``False`` for silence, or a callable given ``(done, total)`` steps.

    Raises:
        UnsupportedModel: the model's blocks cannot be run on their own, or, for lenses of constants, attention outputs
            are not added to the stream.
        ValueError: too few examples, or something that is no lens.

    Reference:
        Li and Janson, 2024, arXiv:2409.09951, section 5 (constants); Belrose et al., 2023, arXiv:2303.08112 (tuned).

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-vit")
        >>> la.fit_lens(model, la.tasks.digits(model, n=100), la.LogitLens(), progress=False).kl.shape
        torch.Size([4])
    """
    kind = LogitLens() if kind is None else kind
    if type(kind).__name__ not in _KINDS:
        raise ValueError(f"a lens is one of {', '.join(_KINDS)}, got {kind!r}")
    require_evaluation_mode(model)
    if replaces_attention(kind):
        require_meaning(model, "attention")
    path = _path(model)
    task = as_task(data, model).with_metric(metrics.kl_from_clean)
    judged = None if held_out is None else held_out.with_metric(metrics.kl_from_clean)
    split = split_task(task, judged, seed, allow_small=allow_small)
    fit = _Fit(kind, model, split.training, split.validation, path, clean_bytes)
    start = {name: value.clone() for name, value in fit.parameters.items()}
    with frozen_weights(model):
        if isinstance(kind, Fitted):
            fit.run(kind, progress)
        reported = fit.parts(split.held_out)
        divergence, before = (fit.divergence(reported, found) for found in (fit.best, start))
    return Lens(
        kind=kind,
        parameters={name: value.detach().cpu() for name, value in fit.best.items()},
        divergence=divergence,
        start=before,
        provenance=Provenance.of_model(
            model,
            data=[part.fingerprint for part in split],
            positions="answer",
            hook_names=[],
            measurement={"lens": kind.name, **kind.settings, "split seed": seed, "path": dict(path.settings)},
        ),
    )


class _Fit:
    """Gradient descent on the parameters of all layers at once; each layer keeps its own best."""

    def __init__(
        self, kind: LensKind, model: LensModel, training: Task, validation: Task, path: Shortcuts, clean_bytes: int
    ):
        self.kind, self.model, self.path, self.clean_bytes = kind, model, path, clean_bytes
        self.training, self.validation = training, validation
        self.parameters: Parameters = start_of(kind, model, training)
        self.best: Parameters = {name: value.clone() for name, value in self.parameters.items()}

    def run(self, kind: Fitted, progress: Progress) -> None:
        for value in self.parameters.values():
            value.requires_grad_(True)
        leaves = list(self.parameters.values())
        optimizer = torch.optim.AdamW(leaves, lr=kind.lr, weight_decay=0.0)
        batches = torch.arange(self.training.n_examples).split(kind.batch_size)
        made: dict[int, list[LensPart]] = {}
        validated = self.parts(self.validation)
        lowest = self.divergence(validated, self.parameters).mean(dim=1)
        every = max(1, kind.steps // EVALUATIONS)
        with progress_bar(progress, kind.steps, kind.name, "step") as advance:
            for step in range(kind.steps):
                batch = batch_of(step, len(batches), kind.seed)
                if batch not in made:
                    made[batch] = self.parts(self.training, batches[batch], self.clean_bytes // len(batches))
                for value, gradient in zip(leaves, self._gradients(made[batch], leaves), strict=True):
                    value.grad = gradient
                optimizer.step()
                advance(1)
                if (step + 1) % every == 0 or step + 1 == kind.steps:
                    now = self.divergence(validated, self.parameters).mean(dim=1)
                    self._keep(now < lowest)
                    lowest = torch.where(now < lowest, now, lowest)

    def _gradients(self, parts: list[LensPart], leaves: list[Tensor]) -> list[Tensor]:
        """Gradients of the mean divergence over the examples of some parts, summed over layers."""
        total = [torch.zeros_like(leaf) for leaf in leaves]
        n_examples = sum(part.n_examples for part in parts)
        for part in parts:
            with torch.enable_grad():
                found = torch.autograd.grad(part.divergence(self.parameters).sum() / n_examples, leaves)
            for gradient, added in zip(total, found, strict=True):
                gradient += added.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        return total

    def parts(
        self, task: Task, rows: Int[Tensor, " row"] | None = None, clean_bytes: int | None = None
    ) -> list[LensPart]:
        """Examples ready to be read, in parts that fit in memory."""
        rows = torch.arange(task.n_examples) if rows is None else rows
        pieces = rows.split(examples_in_pass(self.model, task))
        share = (self.clean_bytes if clean_bytes is None else clean_bytes) // len(pieces)
        return [LensPart(self.kind, self.model, task, piece, self.path, share) for piece in pieces]

    def divergence(self, parts: list[LensPart], parameters: Mapping[str, Any]) -> Float[Tensor, "layer example"]:
        """KL of every layer on the examples of some parts."""
        fixed = {name: value.detach() for name, value in parameters.items()}
        with torch.no_grad():
            return torch.cat([part.divergence(fixed).detach().float().cpu() for part in parts], dim=1)

    def _keep(self, better: Tensor) -> None:
        for name, value in self.parameters.items():
            chosen = better.to(value.device).reshape(-1, *[1] * (value.ndim - 1))
            self.best[name] = torch.where(chosen, value.detach(), self.best[name])


def _path(model: LensModel) -> Shortcuts:
    path = path_of(model)
    if not path.prefix:
        raise UnsupportedModel(
            f"a lens runs parts of the model on their own, which this one does not allow: {path.note}"
        )
    return path
