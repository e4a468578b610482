"""Memory of forward passes: keeping what was freed, and what happens when a pass held too many rows."""

import logging
from collections.abc import Callable
from functools import cache

import torch

log = logging.getLogger(__name__)

_LARGEST_KEPT = 2**25 - 2**16


@cache
def keep_freed_memory() -> None:
    """Have the C library keep memory that tensors free instead of handing it back to the system after every pass.

    The GNU library learns from the largest block that it saw freed, up to 32 MiB. Without it a fifth of the time of
    passes over small models goes into getting the same pages again. Does nothing anywhere else.
    """
    torch.empty(_LARGEST_KEPT, dtype=torch.uint8)


def run_in_chunks(total: int, step: int, run: Callable[[slice], None], *, fixed: bool) -> None:
    """Call ``run`` on consecutive slices of ``0..total``, halving their size whenever memory runs out.

    With ``fixed`` the caller chose the size, and running out of memory is the caller's to see.
    """
    start = 0
    while start < total:
        chunk = slice(start, min(start + step, total))
        try:
            run(chunk)
        except (RuntimeError, MemoryError) as error:
            if fixed or step == 1 or not _out_of_memory(error):
                raise
            step = step // 2
            log.warning("out of memory at %d ablations in a forward pass; going on with %d", 2 * step, step)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        start = chunk.stop


def _out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed: on a GPU, in Python, or in the allocator of Linux, macOS or Windows."""
    known = ("can't allocate memory", "not enough memory", "std::bad_alloc")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(part in str(error) for part in known)
