"""In which order a descent takes its batches."""

import torch


def batch_of(step: int, n_batches: int, seed: int) -> int:
    """The batch of a step: all of them once in each epoch, in another order each time, the same after a restart."""
    epoch, place = divmod(step, n_batches)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return int(torch.randperm(n_batches, generator=generator)[place])
