"""What is asked of a model: inputs, the answers it should give, and the metric that judges them."""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from lens_ablation.data import metrics
from lens_ablation.data.metrics import Metric
from lens_ablation.models.capture import token_positions

Inputs = Int[Tensor, "example pos"] | Float[Tensor, "example channel height width"]

IGNORED = -1
"""Marks an absent answer, wrong answer or position in a padded row."""


@dataclass(frozen=True, eq=False)
class Task:
    """Inputs with answers and a metric; rows are examples.

    Answers are token ids (or class ids) and are read at the last unmasked position unless ``positions`` says
    otherwise. With ``positions`` ``[example]`` (or ``None``) the answers may be ``[example]`` or
    ``[example, choice]``, several right answers to one question. With ``positions`` ``[example, target]`` the
    answers are ``[example, target]``, one to each position, and so may the wrong answers be. Absent entries
    are ``-1``; every example has at least one answer.

    Attributes:
        inputs: Tokens ``[example, pos]`` or pixels ``[example, channel, height, width]``.
        answers: Token or class ids, ``[example]``, ``[example, choice]`` or ``[example, target]``.
        wrong_answers: Ids that are wrong, ``[example]`` or ``[example, choice]``.
        counterfactuals: Inputs of the same shape in which another answer is right.
        attention_mask: ``True`` where a token is real; ``None`` means everywhere.
        positions: Where answers are read, ``[example]`` or ``[example, target]``.
        metric: How logits are scored.
        name: What reports call the task.
        spans: Named token spans ``[example, 2]`` (first, past the last), such as ``subject``.
        clean_logits: Logits of the untouched model at the answers, filled in by verbs whose metric needs
            them.

    Raises:
        ValueError: shapes disagree, an example has no answer, or an answer is read at no unmasked token.

    Example:
        >>> import torch, lens_ablation as la
        >>> task = la.Task(inputs=torch.tensor([[1, 2, 3]]), answers=torch.tensor([4]))
        >>> task.n_examples
        1
    """

    inputs: Inputs
    answers: Int[Tensor, "example ..."]
    wrong_answers: Int[Tensor, "example ..."] | None = None
    counterfactuals: Inputs | None = None
    attention_mask: Bool[Tensor, "example pos"] | Int[Tensor, "example pos"] | None = None
    positions: Int[Tensor, "example ..."] | None = None
    metric: Metric | metrics.MetricFn = metrics.loss
    name: str = "task"
    spans: dict[str, Int[Tensor, "example 2"]] = field(default_factory=dict)
    clean_logits: Float[Tensor, "example target d_vocab"] | None = None

    def __post_init__(self) -> None:
        if self.attention_mask is not None:
            object.__setattr__(self, "attention_mask", self.attention_mask.bool())
        if not isinstance(self.metric, Metric):
            object.__setattr__(self, "metric", metrics.as_metric(self.metric))
        _check(self)

    @property
    def n_examples(self) -> int:
        """Number of examples."""
        return self.inputs.shape[0]

    @property
    def n_pos(self) -> int | None:
        """Tokens in a row, padding included; ``None`` for images."""
        return self.inputs.shape[1] if self.inputs.ndim == 2 else None

    @property
    def position_ids(self) -> Int[Tensor, "example pos"] | None:
        """Position of each token counted from the first real one; ``None`` for images."""
        if self.n_pos is None:
            return None
        if self.attention_mask is None:
            return torch.arange(self.n_pos, device=self.inputs.device).expand(self.n_examples, -1)
        return token_positions(self.attention_mask.bool())

    @property
    def answer_positions(self) -> Int[Tensor, "example target"] | None:
        """Row positions at which answers are read (``-1``: none); ``None`` for images."""
        if self.n_pos is None:
            return None
        if self.positions is not None:
            return self.positions if self.positions.ndim == 2 else self.positions[:, None]
        if self.attention_mask is None:
            return torch.full((self.n_examples, 1), self.n_pos - 1, device=self.inputs.device)
        from_end = self.attention_mask.flip(1).long().argmax(dim=1)
        return (self.n_pos - 1 - from_end)[:, None]

    @property
    def n_targets(self) -> Int[Tensor, " example"]:
        """How many questions each example asks: 1, or the number of its answered positions."""
        if self.positions is not None and self.positions.ndim == 2:
            return (self.answers != IGNORED).sum(dim=1)
        return torch.ones(self.n_examples, dtype=torch.int64, device=self.inputs.device)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over inputs, mask, answers and positions: what the task measures on."""
        digest = hashlib.sha256()
        for value in (self.inputs, self.attention_mask, self.answers, self.positions):
            digest.update(b"-" if value is None else f"{tuple(value.shape)} {value.dtype}".encode())
            if value is not None:
                digest.update(bytes_of(value))
        return digest.hexdigest()

    def select(self, rows: Int[Tensor, " row"] | slice) -> "Task":
        """The task with these examples only, in this order; rows may repeat."""
        chosen = copy.copy(self)  # without the checks of a new task: rows of a checked one pass them
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                object.__setattr__(chosen, name, value[rows])
        object.__setattr__(chosen, "spans", {name: span[rows] for name, span in self.spans.items()})
        return chosen

    def batches(self, size: int) -> Iterator["Task"]:
        """Consecutive parts of at most ``size`` examples."""
        for start in range(0, self.n_examples, size):
            yield self.select(slice(start, start + size))

    def with_metric(self, metric: Metric | metrics.MetricFn) -> "Task":
        """The same examples under another metric."""
        return replace(self, metric=metric)

    def to(self, device: torch.device | str) -> "Task":
        """The task with every tensor on ``device``."""
        moved = {f.name: value.to(device) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **moved, spans={name: span.to(device) for name, span in self.spans.items()})

    def score(
        self, logits: Float[Tensor, "example pos d_vocab"] | Float[Tensor, "example n_classes"]
    ) -> Float[Tensor, " example"]:
        """The metric of each example, in the metric's unit."""
        return self.metric(logits, self)


def joined(tasks: Sequence[Task]) -> Task:
    """The examples of several tasks one after the other, under the metric of the first and the names of all.

    Shorter rows of tokens are filled up on the right behind a mask. Fields that only some of the tasks have are left
    out, spans too.

    Raises:
        ValueError: there are no tasks, or their rows do not go together.
    """
    if not tasks:
        raise ValueError("there are no tasks to join")
    if len({task.n_pos is None for task in tasks}) > 1:
        raise ValueError("tasks of images and tasks of tokens do not go together; join tasks of one kind")
    masked = len({task.inputs.shape[1:] for task in tasks if task.n_pos is not None}) > 1
    if masked or any(task.attention_mask is not None for task in tasks):
        # the last real token is told by the mask, so answers that are read there stay where they are
        tasks = [replace(task, attention_mask=_mask_of(task)) for task in tasks]
    if any(task.positions is not None for task in tasks):
        tasks = [task if task.positions is not None else _with_positions(task) for task in tasks]
    together: dict[str, Any] = {"spans": {}}
    for name in (f.name for f in fields(Task)):
        parts = [getattr(task, name) for task in tasks]
        if all(isinstance(part, Tensor) for part in parts):
            together[name] = _stacked(name, parts)
        elif any(isinstance(part, Tensor) for part in parts):
            together[name] = None
    return replace(tasks[0], name=" + ".join(dict.fromkeys(task.name for task in tasks)), **together)


def _mask_of(task: Task) -> Bool[Tensor, "example pos"] | Int[Tensor, "example pos"]:
    return torch.ones_like(task.inputs, dtype=torch.bool) if task.attention_mask is None else task.attention_mask


def _with_positions(task: Task) -> Task:
    """The task with the position of its last real token written out."""
    read = task.answer_positions
    return task if read is None else replace(task, positions=read[:, 0])


def _stacked(name: str, parts: Sequence[Shaped[Tensor, "_example ..."]]) -> Shaped[Tensor, "example ..."]:
    """Rows of all parts; those of two axes are filled up to one width, and single answers are choices of one."""
    if name in ("answers", "wrong_answers") and {part.ndim for part in parts} == {1, 2}:
        parts = [part[:, None] if part.ndim == 1 else part for part in parts]
    if len({part.ndim for part in parts}) == 1 and parts[0].ndim == 2:
        fill = 0 if name in ("inputs", "counterfactuals", "attention_mask") else IGNORED
        width = max(part.shape[1] for part in parts)
        parts = [F.pad(part, (0, width - part.shape[1]), value=fill) for part in parts]
    shapes = sorted({tuple(part.shape[1:]) for part in parts})
    if len(shapes) > 1:
        raise ValueError(f"{name} of these tasks have rows of shapes {shapes}; join tasks of one kind")
    return torch.cat(list(parts))


def bytes_of(tensor: Tensor) -> bytes:
    """The content of a tensor of any dtype, row by row."""
    # a copy, because a view of one row can pass for contiguous and have other strides
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy().tobytes()


def _check(task: Task) -> None:
    _check_rows(task)
    _check_answers(task)
    if task.inputs.ndim == 4:
        if task.positions is not None or task.attention_mask is not None:
            raise ValueError("images have neither positions nor an attention mask; leave both out")
        return
    if task.attention_mask is not None:
        if task.attention_mask.shape != task.inputs.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(task.attention_mask.shape)} and inputs "
                f"{tuple(task.inputs.shape)}; give one entry to a token"
            )
        if not bool(task.attention_mask.any(dim=1).all()):
            raise ValueError("attention_mask hides every token of an example; drop that example")
    if task.positions is not None:
        _check_positions(task, task.positions)


def _check_rows(task: Task) -> None:
    is_tokens = task.inputs.ndim == 2 and not task.inputs.is_floating_point()
    if not is_tokens and not (task.inputs.ndim == 4 and task.inputs.is_floating_point()):
        raise ValueError(
            "inputs must be whole numbers [example, pos] (tokens) or floats [example, channel, height, "
            f"width] (pixels), got {task.inputs.dtype} {tuple(task.inputs.shape)}"
        )
    n = task.inputs.shape[0]
    if task.inputs.numel() == 0:
        raise ValueError(f"a task needs at least one example and one token; inputs is {tuple(task.inputs.shape)}")
    for f in fields(task):
        value = getattr(task, f.name)
        if isinstance(value, Tensor) and value.shape[0] != n:
            raise ValueError(f"{f.name} has {value.shape[0]} rows and inputs has {n}; give each example a row")
    if task.counterfactuals is not None and task.counterfactuals.shape != task.inputs.shape:
        raise ValueError(
            f"counterfactuals have shape {tuple(task.counterfactuals.shape)} and inputs "
            f"{tuple(task.inputs.shape)}; a counterfactual is the same prompt with other words in the same "
            "places"
        )


def _check_answers(task: Task) -> None:
    for name in ("answers", "wrong_answers"):
        ids = getattr(task, name)
        if ids is None:
            continue
        if ids.ndim not in (1, 2):
            raise ValueError(f"{name} must be [example] or [example, choice], got {tuple(ids.shape)}")
        if int(ids.min()) < IGNORED:
            raise ValueError(f"{name} must be ids, or -1 for absent; got {int(ids.min())}")
        missing = (ids.reshape(len(ids), -1) == IGNORED).all(dim=1).nonzero()[:, 0].tolist()
        if missing:
            raise ValueError(f"examples {missing[:3]} have no {name}; leave those examples out")


def _check_positions(task: Task, positions: Tensor) -> None:
    if positions.ndim not in (1, 2):
        raise ValueError(f"positions must be [example] or [example, target], got {tuple(positions.shape)}")
    if positions.ndim == 2 and task.answers.shape != positions.shape:
        raise ValueError(
            f"positions {tuple(positions.shape)} ask one answer each, and answers has shape "
            f"{tuple(task.answers.shape)}; give both the same shape, absent entries as -1"
        )
    highest = int(positions.max())
    if highest >= task.inputs.shape[1] or int(positions.min()) < IGNORED:
        raise ValueError(
            f"positions must lie in 0..{task.inputs.shape[1] - 1} (or be -1 for absent), got "
            f"{int(positions.min())}..{highest}"
        )
    is_asked = task.answers != IGNORED if positions.ndim == 2 else torch.ones_like(positions, dtype=torch.bool)
    if bool((positions[is_asked] == IGNORED).any()):
        raise ValueError("an answer has position -1, so there is nowhere to read it; give its position")
    if task.attention_mask is None:
        return
    places = positions.reshape(len(positions), -1).clamp(min=0)
    is_real = task.attention_mask.gather(1, places).reshape(positions.shape)
    if not bool(is_real[is_asked].all()):
        raise ValueError("an answer is read at a token that attention_mask hides; give the position of a real one")
