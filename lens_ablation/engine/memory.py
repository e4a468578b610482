"""How many rows go into a forward pass, and what happens when they were too many."""

import logging
from collections.abc import Callable

import torch

from lens_ablation.data.task import Task

log = logging.getLogger(__name__)

TOKENS_PER_PASS = 4096
"""Tokens in a forward pass where the caller leaves the choice; larger passes gain nothing on small models."""

IMAGES_PER_PASS = 256
"""Images in a forward pass where the caller leaves the choice."""


def rows_that_fit(task: Task) -> int:
    """Rows in a forward pass where the caller leaves the choice."""
    return IMAGES_PER_PASS if task.n_pos is None else max(1, TOKENS_PER_PASS // task.n_pos)


def run_in_chunks(total: int, step: int, run: Callable[[slice], None], *, fixed: bool) -> None:
    """Call ``run`` on consecutive slices of ``0..total``, halving their size whenever memory runs out.

    With ``fixed`` the caller chose the size, and running out of memory is the caller's to see.
    """
    start = 0
    while start < total:
        chunk = slice(start, min(start + step, total))
        try:
            run(chunk)
        except RuntimeError as error:
            if fixed or step == 1 or not _out_of_memory(error):
                raise
            step = step // 2
            log.warning("out of memory at %d ablations in a forward pass; going on with %d", 2 * step, step)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        start = chunk.stop


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
