"""Rebuild an embedded model: ``python -m lens_ablation.zoo.train NAME [--steps N] [--output DIR]``.

An interrupted training continues from its last checkpoint and ends with the same weights, bit for bit, on
the same machine with the same number of threads.
"""

import argparse
import json
import math
import shutil
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from lens_ablation.progress import Progress, progress_bar
from lens_ablation.zoo import cards, checkpoint
from lens_ablation.zoo.recipe import Recipe
from lens_ablation.zoo.recipes import RECIPES

WARM_UP = 0.03
CHECKPOINT_EVERY = 200


def train(
    recipe: Recipe,
    output: Path,
    *,
    checkpoint_every: int = CHECKPOINT_EVERY,
    progress: Progress = True,
) -> Path:
    """Train a model and write it with its card; continue where an earlier call was interrupted.

    Args:
        recipe: What to train.
        output: Folder of the finished model, replaced when training is done. Until then the state lies
            beside it in ``<output>.checkpoint``.
        checkpoint_every: Steps between two checkpoints.
        progress: ``True`` for a progress bar, ``False`` for silence, or a callable given ``(done, total)``.

    Returns:
        ``output``.

    Raises:
        ValueError: A checkpoint of other settings, or a damaged one, lies beside ``output``.
    """
    state = output.with_name(output.name + ".checkpoint")
    state.mkdir(parents=True, exist_ok=True)
    settings = asdict(recipe)
    model = recipe.build().train()
    optimizer = _optimizer(model, recipe)
    done = checkpoint.restore(state, model, optimizer, settings)
    before = time.monotonic() - done.seconds
    with progress_bar(progress, recipe.steps, recipe.name, "step") as advance:
        advance(done.step)
        for step in range(done.step, recipe.steps):
            loss = _step(model, optimizer, recipe, step)
            if (step + 1) % checkpoint_every == 0 or step + 1 == recipe.steps:
                if not math.isfinite(loss):
                    raise RuntimeError(f"the loss of {recipe.name} is {loss} at step {step}; lower the learning rate")
                done = checkpoint.Progress(step + 1, time.monotonic() - before)
                checkpoint.save(state, model, optimizer, done, settings)
            advance(1)
    _finish(recipe, model.eval(), output, done.seconds)
    shutil.rmtree(state, ignore_errors=True)
    return output


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW whose weight decay leaves biases and norms alone."""
    groups = [
        {"params": [parameter], "weight_decay": recipe.weight_decay if parameter.ndim > 1 else 0.0}
        for parameter in model.parameters()
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak_learning_rate, betas=(0.9, 0.98), foreach=False)


def _learning_rate(recipe: Recipe, step: int) -> float:
    """A linear warm-up, then half a cosine down to a fiftieth."""
    warm_up = max(1, round(WARM_UP * recipe.steps))
    if step < warm_up:
        return recipe.peak_learning_rate * (step + 1) / warm_up
    share = (step - warm_up) / max(1, recipe.steps - warm_up)
    return recipe.peak_learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))


def _step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, recipe: Recipe, step: int) -> float:
    for group in optimizer.param_groups:
        group["lr"] = _learning_rate(recipe, step)
    loss = recipe.loss(model, step)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def _finish(recipe: Recipe, model: PreTrainedModel, output: Path, seconds: float) -> None:
    """Write weights, card and README under a temporary name, then put them in the place of ``output``."""
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    recipe.save(model, partial)
    weights = partial / "model.safetensors"
    weights.chmod(0o644)
    card = {
        "name": recipe.name,
        "about": recipe.about,
        **asdict(recipe),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "scores": {name: round(value, 6) for name, value in recipe.scores(partial).items()},
        "sha256": checkpoint.sha256(weights),
        "bytes": weights.stat().st_size,
        "versions": cards.versions(),
    }
    checkpoint.write_text(partial / "card.json", json.dumps(card, indent=1) + "\n")
    checkpoint.write_text(partial / "README.md", cards.readme(card))
    shutil.rmtree(output, ignore_errors=True)
    partial.rename(output)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m lens_ablation.zoo.train", description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES), help="model to train")
    parser.add_argument("--steps", type=int, help="optimizer steps, if not the recipe's own")
    parser.add_argument("--output", type=Path, help="folder of the finished model; by default ./zoo/NAME")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; by default 2")
    options = parser.parse_args(arguments)
    recipe = RECIPES[options.name]
    if options.steps is not None:
        if options.steps < 1:
            parser.error(f"--steps must be 1 or more, not {options.steps}")
        recipe = replace(recipe, steps=options.steps)
    torch.set_num_threads(options.threads)
    output = options.output or Path("zoo") / options.name
    try:
        folder = train(recipe, output)
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    scores = cards.read(folder)["scores"]
    print(f"wrote {folder}\n" + "\n".join(f"  {name:40} {value:.4f}" for name, value in scores.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
