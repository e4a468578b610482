"""Learned vectors in the place of a subject, one to each restoration."""

import torch
from jaxtyping import Float
from torch import Tensor

from lens_ablation.engine.gates import frozen_weights
from lens_ablation.models.protocol import LensModel, input_device
from lens_ablation.optimal.batches import batch_of
from lens_ablation.optimal.corruption import OptimalVector
from lens_ablation.optimal.restoration import (
    EMBEDDING,
    Embed,
    Passes,
    Prompts,
    Restorations,
    Restored,
    activations_at,
)
from lens_ablation.progress import Progress, progress_bar

KEPT_BATCHES = 64
"""Batches whose clean activations are kept from one epoch to the next."""


def fit_vectors(
    model: LensModel,
    prompts: Prompts,
    restorations: Restorations,
    way: OptimalVector,
    passes: Passes,
    progress: Progress,
) -> Float[Tensor, "variant d_model"]:
    """The vector of each restoration under which the least probability of the answers is missing.

    All begin at the mean embedding of the subjects' tokens; the problems are independent of each other.

    Args:
        model: A TransformerLens model in evaluation mode.
        prompts: Prompts to fit on.
        restorations: What each variant restores.
        way: Steps, learning rate and batches.
        passes: Rows of forward passes.
        progress: Where progress goes, in steps.
    """
    start = _mean_embedding(model, prompts)
    vectors = start.repeat(len(restorations), 1).requires_grad_(True)
    optimizer = torch.optim.AdamW([vectors], lr=way.lr, weight_decay=0.0)
    batches = torch.arange(len(prompts)).split(way.batch_size)
    size = passes.n_prompts(len(restorations))
    kept: dict[tuple[int, int], Restored] = {}
    with progress_bar(progress, way.steps, "optimal vectors", "step") as advance, frozen_weights(model):
        for step in range(way.steps):
            batch = batch_of(step, len(batches), way.seed)
            gradient = torch.zeros_like(vectors)
            for part, rows in enumerate(batches[batch].split(size)):
                key = (batch, part)
                restored = kept.get(key) or Restored(model, prompts.select(rows), restorations.sites)
                if len(kept) < KEPT_BATCHES:
                    kept[key] = restored
                gradient += _gradient(restored, restorations, vectors, passes) / len(batches[batch])
            vectors.grad = gradient
            optimizer.step()
            advance(1)
    return vectors.detach()


def in_place_of_subject(vectors: Float[Tensor, "variant d_model"]) -> Embed:
    """Each variant's vector at every token of the subject."""

    def embed(
        embedding: Float[Tensor, "variant example pos d_model"], variants: slice
    ) -> Float[Tensor, "variant example pos d_model"]:
        return vectors[variants, None, None].expand_as(embedding)

    return embed


def _gradient(
    restored: Restored, restorations: Restorations, vectors: Float[Tensor, "variant d_model"], passes: Passes
) -> Float[Tensor, "variant d_model"]:
    """Gradient of the probability that is missing, summed over prompts."""
    prompts, gradient = restored.prompts, torch.zeros_like(vectors)

    def run(variants: slice) -> None:
        with torch.enable_grad():
            found = restored.in_one_pass(restorations, in_place_of_subject(vectors), variants)
            missing = (prompts.clean.to(found) - found).clamp(min=0).sum()
            gradient[variants] = torch.autograd.grad(missing, vectors)[0][variants]

    passes.run(len(restorations), len(prompts), run)
    return gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _mean_embedding(model: LensModel, prompts: Prompts) -> Float[Tensor, " d_model"]:
    """Mean of ``hook_embed`` over all tokens of all subjects."""
    found = activations_at(model, prompts.task, EMBEDDING, prompts.subject)
    return found.mean(dim=0).clone().to(input_device(model))
