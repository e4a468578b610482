"""Learned vectors in the place of a subject, one to each restoration."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_ablation.engine.gates import frozen_weights
from lens_ablation.models.capture import capture
from lens_ablation.models.protocol import LensModel, input_device
from lens_ablation.optimal.corruption import OptimalVector
from lens_ablation.optimal.restoration import EMBEDDING, Embed, Prompts, Restorations, Restored
from lens_ablation.progress import Progress, progress_bar

KEPT_BATCHES = 64
"""Batches whose clean activations are kept from one epoch to the next."""


def fit_vectors(
    model: LensModel, prompts: Prompts, restorations: Restorations, way: OptimalVector, size: int, progress: Progress
) -> Float[Tensor, "variant d_model"]:
    """The vector of each restoration under which the least probability of the answers is missing.

    All begin at the mean embedding of the subjects' tokens; the problems are independent of each other.

    Args:
        model: A TransformerLens model in evaluation mode.
        prompts: Prompts to fit on.
        restorations: What each variant restores.
        way: Steps, learning rate and batches.
        size: Most prompts in a forward pass.
        progress: Where progress goes, in steps.
    """
    start = _mean_embedding(model, prompts)
    vectors = start.repeat(len(restorations), 1).requires_grad_(True)
    optimizer = torch.optim.AdamW([vectors], lr=way.lr, weight_decay=0.0)
    batches = torch.arange(len(prompts)).split(way.batch_size)
    kept: dict[tuple[int, int], Restored] = {}
    with progress_bar(progress, way.steps, "optimal vectors", "step") as advance, frozen_weights(model):
        for step in range(way.steps):
            epoch, place = divmod(step, len(batches))
            generator = torch.Generator().manual_seed(way.seed * 1_000_003 + epoch)
            batch = int(torch.randperm(len(batches), generator=generator)[place])
            gradient = torch.zeros_like(vectors)
            for part, rows in enumerate(batches[batch].split(size)):
                key = (batch, part)
                restored = kept.get(key) or Restored(model, prompts.select(rows), restorations.sites)
                if len(kept) < KEPT_BATCHES:
                    kept[key] = restored
                gradient += _gradient(restored, restorations, vectors) / len(batches[batch])
            vectors.grad = gradient
            optimizer.step()
            advance(1)
    return vectors.detach()


def rows_of_vectors(vectors: Float[Tensor, "variant d_model"], n_examples: int) -> Embed:
    """Each variant's vector at every token of the subject, rows ``[variant, example]``."""

    def embed(
        embedding: Float[Tensor, "row pos d_model"], subject: Bool[Tensor, "row pos"]
    ) -> Float[Tensor, "row pos d_model"]:
        return vectors.repeat_interleave(n_examples, dim=0)[:, None].expand_as(embedding)

    return embed


def _gradient(
    restored: Restored, restorations: Restorations, vectors: Float[Tensor, "variant d_model"]
) -> Float[Tensor, "variant d_model"]:
    """Gradient of the probability that is missing, summed over prompts."""
    prompts = restored.prompts
    with torch.enable_grad():
        found = restored.probabilities(restorations, rows_of_vectors(vectors, len(prompts)))
        missing = (prompts.clean.to(found) - found).clamp(min=0).sum()
        return torch.autograd.grad(missing, vectors)[0].nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _mean_embedding(model: LensModel, prompts: Prompts) -> Float[Tensor, " d_model"]:
    """Mean of ``hook_embed`` over all tokens of all subjects."""
    found = capture(model, prompts.task.inputs, [EMBEDDING], attention_mask=prompts.task.attention_mask)[EMBEDDING]
    chosen = found[prompts.subject.to(found.device)]
    return chosen.mean(dim=0).clone().to(input_device(model))
