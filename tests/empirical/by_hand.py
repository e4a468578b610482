"""The same things done by hand, with forward hooks on the plain Hugging Face model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import lens_ablation as la
from tests.families import Family

Change = Callable[[Tensor], Tensor]
"""From a row's neurons ``[unit]`` to what stands in their place."""


def a_task(family: Family, n: int = 3, *, padding: str = "none", seed: int = 0) -> la.Task:
    """Random inputs with an answer and a wrong one, perhaps behind padding."""
    inputs = family.inputs(n, 6, seed=seed)
    n_ids = 5 if family.name == "vit" else 50
    drawn = torch.randint(0, n_ids, (2, n), generator=torch.Generator().manual_seed(seed + 1))
    answers, wrong = drawn[0], (drawn[0] + 1 + drawn[1] % (n_ids - 1)) % n_ids
    if family.name == "vit" or padding == "none":
        return la.Task(inputs=inputs, answers=answers, wrong_answers=wrong)
    lengths = torch.tensor([4, 6, 5])[torch.arange(n) % 3]
    places = torch.arange(6)
    mask = places < lengths[:, None] if padding == "right" else places >= (6 - lengths)[:, None]
    return la.Task(inputs=inputs, answers=answers, wrong_answers=wrong, attention_mask=mask)


def read_of(task: la.Task) -> Tensor:
    """Where each example is read; of images the class token."""
    found = task.answer_positions
    return torch.zeros(task.n_examples, dtype=torch.int64) if found is None else found[:, 0]


@contextmanager
def neurons_changed(family: Family, layer: int, read: Tensor, change: Change, *, up: bool = False) -> Iterator[None]:
    """Inside, the neurons of a layer are changed at one position of each row of the plain model.

    ``hook_post`` is what the second projection reads; ``up`` is the output of ``up_proj``.
    """
    block = family.block(family.plain, layer)
    module = block.get_submodule("mlp.up_proj") if up else family.down_projection(family.plain, layer)
    rows = torch.arange(len(read))

    def changed(values: Tensor) -> Tensor:
        three = values.reshape(len(read), -1, values.shape[-1]).clone()
        three[rows, read] = change(three[rows, read])
        return three.reshape(values.shape)

    if up:
        handle = module.register_forward_hook(lambda module, args, out: changed(out))
    else:
        handle = module.register_forward_pre_hook(lambda module, args: (changed(args[0]),))
    try:
        yield
    finally:
        handle.remove()


def probabilities(family: Family, task: la.Task, ids: Tensor) -> Tensor:
    """Softmax probabilities ``[example, candidate]`` of the plain model where the task is read."""
    options = {} if task.attention_mask is None else {"attention_mask": task.attention_mask.long()}
    logits = family.plain_logits(task.inputs, **options)
    if logits.ndim == 3:
        logits = logits[torch.arange(len(logits)), read_of(task)]
    return logits.softmax(dim=-1).gather(1, ids)


def shifted(
    family: Family, task: la.Task, ids: Tensor, layer: int, unit: int, amount: float, *, signed: bool, up: bool = False
) -> Tensor:
    """Those probabilities with one neuron shifted."""

    def change(values: Tensor) -> Tensor:
        moved = values.clone()
        moved[:, unit] += amount * (values[:, unit].sign() if signed else 1.0)
        return moved

    with neurons_changed(family, layer, read_of(task), change, up=up):
        return probabilities(family, task, ids)


def neurons_of(family: Family, task: la.Task, layer: int, *, up: bool = False) -> Tensor:
    """A layer's neurons ``[example, unit]`` where the task is read, of the plain model."""
    seen: list[Tensor] = []

    def keep(values: Tensor) -> Tensor:
        seen.append(values)
        return values

    with neurons_changed(family, layer, read_of(task), keep, up=up):
        probabilities(family, task, torch.zeros(task.n_examples, 1, dtype=torch.int64))
    return seen[0]
