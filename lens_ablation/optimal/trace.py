"""Causal tracing: where clean activations bring back a fact whose subject was taken away."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_ablation.data.answers import untouched_answers
from lens_ablation.data.as_task import as_task
from lens_ablation.data.task import Task
from lens_ablation.engine.size import rows_in_pass
from lens_ablation.errors import UnsupportedModel
from lens_ablation.files import read_folder, reading, require_shape, write_folder
from lens_ablation.models.anatomy import anatomy
from lens_ablation.models.checks import require_meaning
from lens_ablation.models.protocol import LensModel, require_evaluation_mode
from lens_ablation.optimal.corruption import Corruption, GaussianNoise, OptimalVector
from lens_ablation.optimal.restoration import (
    EMBEDDING,
    Passes,
    Prompts,
    Restorations,
    Restored,
    activations_at,
    groups_of,
)
from lens_ablation.optimal.vectors import fit_vectors, in_place_of_subject
from lens_ablation.progress import Progress, progress_bar
from lens_ablation.selectors import attentions, heads, mlps
from lens_ablation.sites import HookPoint, SiteSet
from lens_ablation.studies.intervals import Interval
from lens_ablation.studies.settings import study_settings

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Restore = Literal["attention", "mlp", "head"]
"""What is restored: outputs of attention layers, of MLPs, or of single heads."""

_FILE_KIND = "trace"
_SELECTORS: Mapping[str, Callable[[LensModel], SiteSet]] = {"attention": attentions, "mlp": mlps, "head": heads}

LEAST_LOST = 1e-9
"""Probability that a corruption must take away."""

LEAST_PROMPTS = 10
"""Fewer prompts that the model answers rightly are refused."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TraceResult:
    """Probabilities of the answer with the subject corrupted and some clean activations restored.

    Attributes:
        restored: ``[group, site, example]``; a site is the middle of its window of layers.
        corrupted: With nothing restored, ``[example]``.
        clean: Of the untouched model, ``[example]``.
        groups: Tokens at which activations were restored.
        sites: The sites in their order; for whole layers, the middle of each window.
        settings: Model, task, corruption and window behind the numbers.
    """

    restored: Float[Tensor, "group site example"]
    corrupted: Float[Tensor, " example"]
    clean: Float[Tensor, " example"]
    groups: tuple[str, ...]
    sites: SiteSet
    settings: Mapping[str, object]

    @property
    def effect(self) -> Float[Tensor, "group site"]:
        """Average indirect effect: the share of the lost probability that the restoration brings back, 0 at least.

        ``1 - E[(clean - restored)_+] / (E[clean] - E[min(clean, corrupted)])``; 1 brings back all.
        """
        return (1 - self._ratio()).clamp(min=0)

    def interval(self, confidence: float = 0.95) -> Interval:
        """Interval of the effect from the delta-method standard error, ``[group, site]`` each end."""
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
        quantile = float(torch.special.ndtri(torch.tensor((1 + confidence) / 2, dtype=torch.float64)))
        value, half = 1 - self._ratio(), quantile * self.error
        return Interval((value - half).clamp(min=0), (value + half).clamp(min=0))

    @property
    def error(self) -> Float[Tensor, "group site"]:
        """Standard error of the effect by the delta method, for a ratio of two means over the same prompts."""
        missing, lost = self._missing(), self._lost()
        ratio = self._ratio()
        residual = missing - ratio[:, :, None] * lost
        return residual.std(dim=2) / (lost.mean() * residual.shape[2] ** 0.5)

    @property
    def lost(self) -> float:
        """Probability that the corruption takes away, mean over prompts."""
        return float(self._lost().mean())

    def peak(self, group: str | None = None) -> str:
        """The site with the largest effect at a group of tokens, the first by default."""
        place = 0 if group is None else self.groups.index(group)
        return str(list(self.sites)[int(self.effect[place].argmax())])

    def to_dataframe(self) -> pd.DataFrame:
        """One row to a group and site: effect and its 95 % interval."""
        low, high = self.interval()
        return pd.DataFrame(
            [
                {
                    "group": group,
                    "site": str(site),
                    "layer": site.layer,
                    "effect": float(self.effect[g, s]),
                    "low": float(low[g, s]),
                    "high": float(high[g, s]),
                }
                for g, group in enumerate(self.groups)
                for s, site in enumerate(self.sites)
            ]
        )

    def plot(self) -> "Figure":
        """Effect by layer, a line to a group of tokens; of heads, a heatmap to a group."""
        from lens_ablation.plots.trace import trace_figure

        return trace_figure(self)

    def save(self, folder: str | Path) -> Path:
        """Write the result to a new folder: tensors as safetensors, settings as JSON."""
        tensors = {name: getattr(self, name) for name in ("restored", "corrupted", "clean")}
        tensors["addresses"] = torch.from_numpy(self.sites.addresses)
        plain = {
            "groups": list(self.groups),
            "kind": self.sites.kind,
            "shape": list(self.sites.shape),
            "settings": self.settings,
        }
        return write_folder(folder, _FILE_KIND, tensors, plain)

    @classmethod
    def load(cls, folder: str | Path) -> "TraceResult":
        """Read a result that ``save`` wrote; needs no model.

        Raises:
            DamagedFile: the folder holds something else, or was changed.
        """
        tensors, plain = read_folder(folder, _FILE_KIND)
        with reading(folder):
            sites = SiteSet.from_stored(plain["kind"], tensors["addresses"].numpy(), plain["shape"])
            groups = tuple(str(group) for group in plain["groups"])
            n = len(tensors["clean"])
            require_shape("restored", tensors["restored"], (len(groups), len(sites), n))
            require_shape("corrupted", tensors["corrupted"], (n,))
            return cls(
                restored=tensors["restored"],
                corrupted=tensors["corrupted"],
                clean=tensors["clean"],
                groups=groups,
                sites=sites,
                settings=dict(plain["settings"]),
            )

    def _missing(self) -> Float[Tensor, "group site example"]:
        return (self.clean - self.restored).clamp(min=0).double()

    def _lost(self) -> Float[Tensor, " example"]:
        return (self.clean - self.corrupted).clamp(min=0).double()

    def _ratio(self) -> Float[Tensor, "group site"]:
        return self._missing().mean(dim=2) / self._lost().mean()


def trace(
    model: LensModel,
    data: Task | Tensor | Iterable[object],
    corruption: Corruption | None = None,
    restore: Restore = "attention",
    *,
    window: int = 1,
    positions: Sequence[str] = ("last", "last_subject", "subject"),
    subject: str = "subject",
    batch_size: int | None = None,
    progress: Progress = True,
) -> TraceResult:
    """Where clean activations bring back an answer whose subject was corrupted.

    The subject's tokens are corrupted at ``hook_embed``; clean activations are put back at one layer (or a window of
    layers around it) and one group of tokens; what counts is how much of the lost probability of the answer returns.
    Only prompts that the model answers rightly are used, and the answer is its likeliest token.

    Args:
        model: A language model in evaluation mode; left exactly as it was.
        data: A ``Task`` with a span that names the subject, such as ``tasks.facts``.
        corruption: ``GaussianNoise`` (three standard deviations by default) or ``OptimalVector``.
        restore: ``attention``, ``mlp`` or ``head``.
        window: Layers restored together around each layer, an odd number; 1 for heads.
        positions: Groups of tokens: ``last``, a span such as ``subject``, or its last token, ``last_subject``.
        subject: The span that is corrupted.
        batch_size: Rows (prompts x restorations) in a forward pass; chosen when ``None``.
        progress: ``True`` for a bar, ``False`` for silence, or a callable given ``(done, total)``.

    Raises:
        UnsupportedModel: the model has no ``hook_embed``, or its ``hook_attn_out`` is not added to the stream.
        ValueError: no such span or group, too few prompts that the model answers rightly, or the corruption takes
            nothing away.

    Reference:
        Meng et al., 2022, arXiv:2202.05262, section 2; Li and Janson, 2024, arXiv:2409.09951, section 4.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task = la.tasks.facts(model, n=40, split="train")
        >>> found = la.trace(model, task, la.GaussianNoise(draws=1), progress=False)
        >>> found.effect.shape
        torch.Size([3, 4])
    """
    task = as_task(data, model)
    corruption = GaussianNoise() if corruption is None else corruption
    sites = _sites(model, task, restore, window, subject)
    prompts = _answered(model, task, positions, subject)
    restorations = _restorations(sites, window, len(positions))
    passes = Passes(batch_size or rows_in_pass(model, task.inputs), fixed=batch_size is not None)
    if isinstance(corruption, GaussianNoise):
        found, prompts = _under_noise(model, prompts, restorations, corruption, passes, progress)
    elif isinstance(corruption, OptimalVector):
        found, prompts = _under_vectors(model, prompts, restorations, corruption, passes, progress)
    else:
        raise ValueError(f"corruption must be GaussianNoise or OptimalVector, got {corruption!r}")
    _require_loss(prompts, found[-1], corruption)
    return TraceResult(
        restored=found[:-1].reshape(len(positions), len(sites), len(prompts)),
        corrupted=found[-1],
        clean=prompts.clean,
        groups=tuple(positions),
        sites=sites,
        settings={
            **study_settings(model, prompts.task, "all"),
            "corruption": {"name": corruption.name, "settings": dict(corruption.settings)},
            "restore": restore,
            "window": window,
            "subject": subject,
            "prompts": task.n_examples,
        },
    )


def _sites(model: LensModel, task: Task, restore: Restore, window: int, subject: str) -> SiteSet:
    require_evaluation_mode(model)
    if restore not in _SELECTORS:
        raise ValueError(f"restore must be {', '.join(map(repr, _SELECTORS))}, got {restore!r}")
    if anatomy(model).modality != "tokens":
        raise UnsupportedModel("tracing corrupts tokens of a subject, and this model reads images")
    if EMBEDDING not in model.hook_dict:
        raise UnsupportedModel(f"this model has no {EMBEDDING}, so the subject cannot be corrupted")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window is {window}; give an odd number of layers, so that it has a middle")
    if restore == "head" and window > 1:
        raise ValueError("heads of several layers have nothing in common; take window=1 with restore='head'")
    if subject not in task.spans:
        raise ValueError(
            f"the task has no span {subject!r} to corrupt; it has {', '.join(sorted(task.spans)) or 'none'}. Give "
            "Task(spans={'subject': [example, 2]})"
        )
    sites = _SELECTORS[restore](model)
    require_meaning(model, sites.kind)
    return sites


def _answered(model: LensModel, task: Task, positions: Sequence[str], subject: str) -> Prompts:
    """The prompts that the model answers rightly, with the likeliest token as their only answer."""
    if task.positions is not None and task.positions.ndim == 2:
        raise ValueError("tracing asks one question of a prompt, and this task asks several")
    likeliest, clean = [], []
    for logits in untouched_answers(model, task):
        likeliest.append(logits[:, 0].argmax(dim=1).cpu())
        clean.append(logits[:, 0].softmax(dim=1).amax(dim=1).float().cpu())
    found = torch.cat(likeliest)
    right = (task.answers.reshape(task.n_examples, -1) == found[:, None]).any(dim=1)
    if int(right.sum()) < LEAST_PROMPTS:
        raise ValueError(
            f"the model answers {int(right.sum())} of {task.n_examples} prompts rightly, and tracing needs "
            f"{LEAST_PROMPTS}; give prompts of facts that it knows"
        )
    rows = right.nonzero()[:, 0]
    kept = replace(task, answers=found, wrong_answers=None, counterfactuals=None).select(rows)
    start, stop = kept.spans[subject].unbind(dim=1)
    places = torch.arange(kept.inputs.shape[1])
    is_subject = (places >= start[:, None]) & (places < stop[:, None])
    return Prompts(kept, is_subject, groups_of(positions, kept), torch.cat(clean)[rows])


def _restorations(sites: SiteSet, window: int, n_groups: int) -> Restorations:
    """Each window of layers at each group of tokens; at the end a variant that restores nothing."""
    layers = sites.addresses[:, 0]
    flags = np.eye(len(sites), dtype=bool)
    if window > 1:
        flags = np.abs(layers[:, None] - layers[None, :]) <= window // 2
    nothing = np.zeros((1, len(sites)), dtype=bool)
    groups = np.repeat(np.arange(n_groups), len(sites))
    return Restorations(sites, np.concatenate([np.tile(flags, (n_groups, 1)), nothing]), np.append(groups, 0))


def _under_noise(
    model: LensModel,
    prompts: Prompts,
    restorations: Restorations,
    noise: GaussianNoise,
    passes: Passes,
    progress: Progress,
) -> tuple[Float[Tensor, "variant example"], Prompts]:
    spread = _spread(model, prompts.task)
    n_pos = prompts.task.inputs.shape[1]
    total = torch.zeros(len(restorations), len(prompts))
    drawn = [noise.noise(spread, len(prompts), n_pos, draw) for draw in range(noise.draws)]
    with progress_bar(progress, noise.draws * len(prompts), "tracing", "prompt") as advance, torch.inference_mode():
        for rows in torch.arange(len(prompts)).split(passes.n_prompts(len(restorations))):
            restored = Restored(model, prompts.select(rows), restorations.sites)
            for one in drawn:
                added = one[rows]
                found = restored.probabilities(
                    restorations, lambda embedding, variants, added=added: embedding + added.to(embedding), passes
                )
                total[:, rows] += found / noise.draws
                advance(len(rows))
    return total, prompts


def _under_vectors(
    model: LensModel,
    prompts: Prompts,
    restorations: Restorations,
    way: OptimalVector,
    passes: Passes,
    progress: Progress,
) -> tuple[Float[Tensor, "variant example"], Prompts]:
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(way.seed))
    n_fit = int(0.6 * len(prompts))
    fitted, judged = prompts.select(order[:n_fit]), prompts.select(order[n_fit:])
    embed = in_place_of_subject(fit_vectors(model, fitted, restorations, way, passes, progress))
    found = torch.empty(len(restorations), len(judged))
    with torch.inference_mode():
        for rows in torch.arange(len(judged)).split(passes.n_prompts(len(restorations))):
            restored = Restored(model, judged.select(rows), restorations.sites)
            found[:, rows] = restored.probabilities(restorations, embed, passes)
    return found, judged


def _spread(model: LensModel, task: Task) -> Float[Tensor, " d_model"]:
    """Standard deviation of each coordinate of what enters the first block, over all real tokens."""
    real = torch.ones(task.inputs.shape, dtype=torch.bool) if task.attention_mask is None else task.attention_mask
    return activations_at(model, task, HookPoint("resid_pre", 0).name, real.bool()).float().std(dim=0)


def _require_loss(prompts: Prompts, corrupted: Float[Tensor, " example"], corruption: Corruption) -> None:
    lost = float((prompts.clean - corrupted).clamp(min=0).mean())
    if not lost > LEAST_LOST:
        fix = "give a larger scale" if isinstance(corruption, GaussianNoise) else "one vector serves all subjects"
        raise ValueError(
            f"{corruption.name} takes {lost:.2g} of the answers' probability away, so there is nothing to bring back: "
            f"{fix}, or the span does not cover what the answer depends on"
        )
