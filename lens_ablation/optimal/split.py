"""Examples of a task in three parts: to fit, to decide when to stop, and to report."""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from lens_ablation.data.task import Task

TRAINING, VALIDATION = 0.6, 0.2
"""Shares of the examples; the rest is held out."""

LEAST_EXAMPLES = 50
"""Fewer examples than this are refused unless the caller allows them."""

_FEWEST = 5


class Split(NamedTuple):
    """Disjoint examples of one task."""

    training: Task
    validation: Task
    held_out: Task


def split_task(task: Task, held_out: Task | None, seed: int, *, allow_small: bool) -> Split:
    """A random split; a longest example is always in the training part, so that constants reach all positions.

    Args:
        task: What to split.
        held_out: Other examples to report on; ``None`` holds back a fifth of ``task``.
        seed: Draws the split.
        allow_small: Accept fewer than 50 examples.

    Raises:
        ValueError: there are too few examples, or those held out are longer than any of ``task``.
    """
    n = task.n_examples
    least = _FEWEST if allow_small else LEAST_EXAMPLES
    if n < least:
        allowed = "" if allow_small else f". allow_small=True takes {_FEWEST} or more, and what fits them may be chance"
        raise ValueError(f"constants are fitted to {least} examples or more, and the task has {n}{allowed}")
    drawn = _longest_first(task, seed)
    n_validation = max(1, int(VALIDATION * n))
    n_held_out = 0 if held_out is not None else max(1, n - int(TRAINING * n) - n_validation)
    n_training = n - n_validation - n_held_out
    training, validation, rest = (task.select(rows) for rows in drawn.split([n_training, n_validation, n_held_out]))
    if held_out is None:
        return Split(training, validation, rest)
    require_long_enough(task, held_out)
    return Split(training, validation, held_out)


def require_long_enough(fitted: Task, judged: Task) -> None:
    """Refuse texts to judge on that are longer than all those fitted on.

    Raises:
        ValueError: one is.
    """
    longest, asked = int(_lengths(fitted).max()), int(_lengths(judged).max())
    if asked > longest:
        raise ValueError(
            f"the texts to judge on have up to {asked} tokens and those to fit on {longest}; fit on texts that are at "
            "least as long"
        )


def halves(task: Task, seed: int) -> tuple[Task, Task]:
    """Two random halves of the examples; a longest one is in the first.

    Raises:
        ValueError: there are fewer than 4 examples.
    """
    if task.n_examples < 4:
        raise ValueError(f"{task.n_examples} examples cannot be fitted on and judged on; give more")
    drawn = _longest_first(task, seed)
    half = (len(drawn) + 1) // 2
    return task.select(drawn[:half]), task.select(drawn[half:])


def _longest_first(task: Task, seed: int) -> Int[Tensor, " example"]:
    """A random order of the examples that begins with one of the longest."""
    drawn = torch.randperm(task.n_examples, generator=torch.Generator().manual_seed(seed))
    longest = drawn[_lengths(task)[drawn].argmax()]
    return torch.cat([longest[None], drawn[drawn != longest]])


def _lengths(task: Task) -> Int[Tensor, " example"]:
    if task.attention_mask is not None:
        return task.attention_mask.sum(dim=1)
    return torch.full((task.n_examples,), task.n_pos or 1)
