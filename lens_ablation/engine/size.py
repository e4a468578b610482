"""How many rows a forward pass holds."""

import os
import resource

import psutil
import torch
from torch import Tensor

from lens_ablation.models.anatomy import anatomy
from lens_ablation.models.protocol import LensModel, input_device

WORKING_SET = {"cpu": 8 * 2**20, "cuda": 512 * 2**20}
"""Bytes of the largest activation of a block. Measured: larger passes are no faster, and past this size slower
on a processor (see the page on performance)."""

LOGITS = {"cpu": 16 * 2**20, "cuda": 2**30}
"""Bytes of logits held at once."""

ALWAYS_FREE = 2**28
"""Bytes that a pass may take without asking how many are free; where they are not, the pass is halved."""

ALIVE = 16
"""Activations of the largest size that a block holds at once, from above."""


def rows_in_pass(model: LensModel, inputs: Tensor) -> int:
    """Rows of such inputs in a forward pass where the caller leaves the choice.

    As many as keep the largest activation of a block within the caches of the machine, and all of them within
    half of the memory that is free.
    """
    device = input_device(model)
    per_row = activation_bytes(model, inputs)
    wanted = max(1, WORKING_SET.get(device.type, WORKING_SET["cuda"]) // per_row)
    if wanted * ALIVE * per_row <= ALWAYS_FREE:
        return wanted
    fitting = max(1, free_bytes(device) // (2 * ALIVE * per_row))
    # a power of two, so that a run which is continued later finds the same number
    return min(wanted, 2 ** (fitting.bit_length() - 1))


def activation_bytes(model: LensModel, inputs: Tensor) -> int:
    """Bytes of the largest activation that a row has in a block."""
    sizes = anatomy(model)
    n_pos = tokens_of(model, inputs)
    widest = max(n_pos * max(sizes.d_mlp, 4 * sizes.d_model), sizes.n_heads * n_pos * n_pos)
    return widest * next(iter(model.parameters())).element_size()


def tokens_of(model: LensModel, inputs: Tensor) -> int:
    """Tokens that the blocks see of each row."""
    return inputs.shape[1] if inputs.ndim == 2 else anatomy(model).image_tokens


def free_bytes(device: torch.device) -> int:
    """Memory that can still be used on ``device``; on the processor also within the limits of the process."""
    if device.type == "cuda":
        return (
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
    free = psutil.virtual_memory().available
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        free = min(free, limit - psutil.Process(os.getpid()).memory_info().vms)
    return max(1, free)


def floating_point_work(model: LensModel, inputs: Tensor) -> float:
    """Operations of a forward pass over one such row: two to a weight and token."""
    return 2.0 * tokens_of(model, inputs) * anatomy(model).n_weights
