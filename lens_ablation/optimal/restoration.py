"""Forward passes with a corrupted subject, in which each row has other clean activations restored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_ablation.ablation import Firings, Rows, removal_masks, replacing_hooks
from lens_ablation.data.inputs import rows_that_fit
from lens_ablation.data.metrics import answer_logits
from lens_ablation.data.task import Task
from lens_ablation.engine.memory import run_in_chunks
from lens_ablation.methods.counterfactual import Counterfactual
from lens_ablation.models.anatomy import anatomy
from lens_ablation.models.capture import capture
from lens_ablation.models.forward import forward
from lens_ablation.models.protocol import FwdHook, LensModel, input_device
from lens_ablation.sites import SiteSet

EMBEDDING = "hook_embed"
"""Where subjects are corrupted: the token embedding, before positions are added."""

Embed = Callable[[Float[Tensor, "variant example pos d_model"], slice], Float[Tensor, "#variant example pos d_model"]]
"""``(embedding, variants) -> embedding`` that the subjects' tokens get in the variants of a pass."""


@dataclass(frozen=True, eq=False)
class Restorations:
    """What each variant puts back.

    Attributes:
        sites: Sites that are restored by some variant.
        flags: Which of them each variant restores, ``[variant, site]``.
        groups: Which group of tokens each variant restores them at.
    """

    sites: SiteSet
    flags: Bool[np.ndarray, "variant site"]
    groups: Int[np.ndarray, " variant"]

    def take(self, variants: slice) -> "Restorations":
        """Some of the variants."""
        return Restorations(self.sites, self.flags[variants], self.groups[variants])

    def __len__(self) -> int:
        return len(self.flags)


@dataclass(frozen=True)
class Passes:
    """How many rows (prompts x variants) a forward pass holds.

    Attributes:
        rows: That many at most; a pass has one prompt and one variant at least.
        fixed: Whether the caller chose them, and not the machine's memory.
    """

    rows: int
    fixed: bool

    def n_prompts(self, n_variants: int) -> int:
        """Prompts that are run together, with all variants where they fit."""
        return max(1, self.rows // n_variants)

    def run(self, n_variants: int, n_prompts: int, run: Callable[[slice], None]) -> None:
        """Call ``run`` on the variants of each pass."""
        run_in_chunks(n_variants, max(1, self.rows // n_prompts), run, fixed=self.fixed)


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts that a model answers rightly, with what is restored and corrupted in them.

    Attributes:
        task: The prompts; their answers are the tokens that the untouched model finds likeliest.
        subject: True at the tokens of the subject, ``[example, pos]``.
        groups: Token indices of each group, ``[group, example, target]``, ``-1`` for none.
        clean: Probability that the untouched model gives the answer, ``[example]``.
    """

    task: Task
    subject: Bool[Tensor, "example pos"]
    groups: Int[Tensor, "group example target"]
    clean: Float[Tensor, " example"]

    def select(self, rows: Int[Tensor, " row"]) -> "Prompts":
        """Some of the prompts."""
        return Prompts(self.task.select(rows), self.subject[rows], self.groups[:, rows], self.clean[rows])

    def __len__(self) -> int:
        return len(self.clean)


class Restored:
    """Some prompts whose clean activations are at hand, to be run with any of them restored.

    Args:
        model: A TransformerLens model in evaluation mode.
        prompts: The prompts.
        sites: What may be restored.
    """

    def __init__(self, model: LensModel, prompts: Prompts, sites: SiteSet):
        self.model, self.prompts = model, prompts
        task = replace(prompts.task, counterfactuals=prompts.task.inputs)
        self.clean = Counterfactual(task).prepare(model, sites.hook_points)

    def probabilities(
        self, restorations: Restorations, embed: Embed, passes: Passes
    ) -> Float[Tensor, "variant example"]:
        """Probability of the answer in each variant, in as many forward passes as its rows ask for."""
        found = torch.empty(len(restorations), len(self.prompts))

        def run(variants: slice) -> None:
            found[variants] = self.in_one_pass(restorations, embed, variants).detach().float().cpu()

        passes.run(len(restorations), len(self.prompts), run)
        return found

    def in_one_pass(
        self, restorations: Restorations, embed: Embed, variants: slice
    ) -> Float[Tensor, "variant example"]:
        """Probability of the answer in some variants; gradients reach what ``embed`` closes over.

        Raises:
            HookDidNotFire: a hook fired a wrong number of times.
        """
        restorations = restorations.take(variants)
        n, prompts, device = len(restorations), self.prompts, input_device(self.model)
        task, firings = prompts.task, Firings()
        corrupt = _Corrupt(prompts.subject.to(device), embed, variants, firings)
        pairs = [(EMBEDDING, corrupt), *self._restoring(restorations, firings)]
        inputs = task.inputs.repeat(n, 1).to(device)
        mask = None if task.attention_mask is None else task.attention_mask.repeat(n, 1).to(device)
        logits = forward(self.model, inputs, attention_mask=mask, fwd_hooks=pairs)
        firings.check(1)
        repeated = task.select(torch.arange(n * len(prompts)) % len(prompts))
        return answer_probability(logits, repeated).reshape(n, len(prompts))

    def _restoring(self, restorations: Restorations, firings: Firings) -> list[FwdHook]:
        """Hooks that write the clean activations of the same prompt."""
        n, n_examples, task = len(restorations), len(self.prompts), self.prompts.task
        masks = {
            point: mask.repeat_interleave(n_examples, dim=0)
            for point, mask in removal_masks(restorations.sites, restorations.flags, anatomy(self.model)).items()
        }
        rows = Rows(
            examples=torch.arange(n * n_examples) % n_examples,
            attention_mask=None if task.attention_mask is None else task.attention_mask.bool().repeat(n, 1),
            where=torch.cat(list(self.prompts.groups[torch.from_numpy(restorations.groups)])),
        )
        return replacing_hooks(masks, self.clean, rows, firings, positional=True)


def activations_at(
    model: LensModel, task: Task, name: str, chosen: Bool[Tensor, "example pos"]
) -> Float[Tensor, "token d_model"]:
    """Untouched activations of a hook at some tokens of all prompts."""
    found: list[Tensor] = []
    for rows in torch.arange(task.n_examples).split(rows_that_fit(task.inputs)):
        part = task.select(rows)
        captured = capture(model, part.inputs, [name], attention_mask=part.attention_mask)[name]
        found.append(captured[chosen[rows].to(captured.device)])
    return torch.cat(found)


def answer_probability(logits: Float[Tensor, "row pos d_vocab"], task: Task) -> Float[Tensor, " row"]:
    """Probability of the one answer of each row."""
    p = answer_logits(logits, task)[:, 0].softmax(dim=-1)
    return p.gather(1, task.answers.to(p.device)[:, None])[:, 0]


@dataclass(eq=False, repr=False)
class _Corrupt:
    """Corrupts the embedding of the subject, and counts itself."""

    subject: Bool[Tensor, "example pos"]
    embed: Embed
    variants: slice
    firings: Firings

    def __post_init__(self) -> None:
        self.place = self.firings.watch(EMBEDDING)

    def __call__(self, activation: Float[Tensor, "row pos d_model"], hook: object) -> Float[Tensor, "row pos d_model"]:
        self.firings.counts[self.place] += 1
        by_variant = activation.unflatten(0, (-1, len(self.subject)))
        changed = self.embed(by_variant, self.variants).to(activation)
        return torch.where(self.subject[:, :, None], changed, by_variant).flatten(0, 1)


def groups_of(names: Sequence[str], task: Task) -> Int[Tensor, "group example target"]:
    """Token indices of named groups: ``last``, a span's name (all its tokens), or ``last_`` and a span's name.

    Raises:
        ValueError: no such group, or the prompts have several answers each.
    """
    found: list[Tensor] = []
    for name in names:
        if name == "last":
            answered = task.answer_positions
            assert answered is not None
            found.append(answered[:, :1])
        elif name in task.spans:
            start, stop = task.spans[name].unbind(dim=1)
            places = start[:, None] + torch.arange(int((stop - start).max()))
            found.append(places.where(places < stop[:, None], -1))
        elif name.removeprefix("last_") in task.spans:
            found.append(task.spans[name.removeprefix("last_")][:, 1:] - 1)
        else:
            spans = ", ".join(f"{span!r}, 'last_{span}'" for span in sorted(task.spans))
            raise ValueError(f"there are no tokens called {name!r}; groups are 'last', {spans}")
    width = max(group.shape[1] for group in found)
    return torch.stack([torch.nn.functional.pad(group, (0, width - group.shape[1]), value=-1) for group in found])
