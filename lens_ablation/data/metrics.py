"""Scores of logits against a task's answers: ``metric(logits, batch) -> [batch]``.

``batch`` is the part of the task that the logits belong to. A metric is a plain function wrapped with its
unit and what it needs; any function of the same signature serves as well.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_ablation.errors import unknown_name

if TYPE_CHECKING:
    from lens_ablation.data.task import Task

MetricFn = Callable[[Tensor, Any], Tensor]
"""``(logits, batch) -> Float[Tensor, "batch"]``."""

AnswerLogits = Float[Tensor, "batch target d_vocab"]


@dataclass(frozen=True)
class Metric:
    """A named score of logits, one number to an example.

    Attributes:
        name: What figures and files call it.
        unit: Its unit: ``nats``, ``logits``, ``fraction`` or ``probability``.
        fn: ``(logits at the answers [batch, target, d_vocab], batch) -> [batch, target]``.
        higher_is_better: Whether a larger value means a better model.
        needs: Fields of the task that must be there.
    """

    name: str
    unit: str
    fn: Callable[[Tensor, Any], Tensor]
    higher_is_better: bool
    needs: tuple[Literal["wrong_answers", "clean_logits"], ...] = ()
    reads: Literal["answers", "logits"] = "answers"

    def __call__(
        self, logits: Float[Tensor, "batch pos d_vocab"] | Float[Tensor, "batch n_classes"], batch: "Task"
    ) -> Float[Tensor, " batch"]:
        """The score of each example of ``batch``.

        Raises:
            ValueError: ``batch`` lacks what the metric needs, or the metric gave another shape.
        """
        if self.reads == "logits":
            self.require_needs(batch)
            return _one_per_example(self, self.fn(logits, batch), batch)
        return self.of_answers(answer_logits(logits, batch), batch)

    @property
    def identity(self) -> str:
        """The name; of a function of the user's own also a digest of its code and of what it closes over."""
        if self.reads == "answers":
            return self.name
        digest = hashlib.sha256()
        for part in _code_parts(self.fn):
            digest.update(part.encode() + b"\0")
        return f"{self.name} {digest.hexdigest()}"

    def require_needs(self, batch: "Task") -> None:
        """Refuse a task that lacks what the metric needs.

        Raises:
            ValueError: a field is missing.
        """
        for name in self.needs:
            if getattr(batch, name) is None:
                raise ValueError(
                    f"metric {self.name!r} needs {name}, which this task does not have. Give the Task "
                    f"{name}=..., or choose another metric with task.with_metric(...)."
                )

    def of_answers(self, scores: "AnswerLogits", batch: "Task") -> Float[Tensor, " batch"]:
        """The score of each example from its logits at the answers alone, ``[batch, target, d_vocab]``.

        Raises:
            ValueError: as above.
        """
        self.require_needs(batch)
        per_target = self.fn(scores, batch)
        asked = _is_asked(batch).to(per_target.device)
        total = torch.where(asked, per_target, torch.zeros_like(per_target)).sum(dim=1)
        return _one_per_example(self, total / asked.sum(dim=1).clamp(min=1), batch)


def _code_parts(fn: object) -> Iterator[str]:
    """What a function does, as text that is the same in another process; of another callable, its type and state."""
    code = getattr(fn, "__code__", None)
    if not isinstance(code, CodeType):
        yield f"{type(fn).__module__}.{type(fn).__qualname__} {getattr(fn, '__dict__', {})!r}"
        return
    yield from _of_code(code)
    closed = [cell.cell_contents for cell in getattr(fn, "__closure__", None) or ()]
    for value in (*closed, getattr(fn, "__defaults__", None), getattr(fn, "__kwdefaults__", None)):
        yield from _code_parts(value) if hasattr(value, "__code__") else (_value_text(value),)


def _of_code(code: CodeType) -> Iterator[str]:
    yield f"{code.co_code.hex()} {code.co_names}"
    for constant in code.co_consts:
        yield from _of_code(constant) if isinstance(constant, CodeType) else (repr(constant),)


def _value_text(value: object) -> str:
    return repr(value.tolist()) if isinstance(value, Tensor) else repr(value)


def as_metric(fn: MetricFn) -> Metric:
    """A user's ``(logits, batch) -> [batch]`` as a ``Metric`` that is given all logits."""
    name = getattr(fn, "__name__", type(fn).__name__)
    return Metric(name=name, unit=name, fn=fn, higher_is_better=True, reads="logits")


def answer_logits(
    logits: Float[Tensor, "batch pos d_vocab"] | Float[Tensor, "batch n_classes"], batch: "Task"
) -> AnswerLogits:
    """Logits at the positions where ``batch`` reads its answers ``[batch, target, d_vocab]``.

    Absent targets (``-1``) give the logits of position 0; ``Metric`` leaves them out of its mean. Half
    precision is widened to float32, so that probabilities are not rounded.
    """
    positions = batch.answer_positions
    if logits.ndim == 2:
        return widened(logits[:, None])
    if positions is None:
        raise ValueError(f"the task has images and the model gave logits {tuple(logits.shape)} with positions")
    return widened(at_positions(logits, positions))


def at_positions(
    values: Float[Tensor, "row pos width"], positions: Int[Tensor, "row target"]
) -> Float[Tensor, "row target width"]:
    """Values at some positions of each row; absent ones (``-1``) give position 0."""
    index = positions.clamp(min=0).to(values.device)
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[-1]))


def widened(logits: Tensor) -> Tensor:
    """Half precision as float32."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _is_asked(batch: "Task") -> Bool[Tensor, "batch target"]:
    """Which targets have an answer."""
    return (choices_of(batch.answers, batch) != -1).any(dim=2)


def choices_of(ids: Int[Tensor, "batch ..."], batch: "Task") -> Int[Tensor, "batch target choice"]:
    """Ids as ``[batch, target, choice]``; absent choices stay ``-1``."""
    if batch.positions is not None and batch.positions.ndim == 2 and ids.shape == batch.positions.shape:
        return ids[:, :, None]
    return ids.reshape(ids.shape[0], 1, -1)


def _pooled(scores: AnswerLogits, ids: Int[Tensor, "batch ..."], batch: "Task") -> Float[Tensor, "batch target"]:
    """``logsumexp`` of the scores of the choices; of one choice, its score."""
    choices = choices_of(ids, batch).to(scores.device)
    picked = scores.gather(2, choices.clamp(min=0).expand(-1, scores.shape[1], -1))
    return picked.masked_fill(_is_absent(choices), -torch.inf).logsumexp(dim=2)


def _is_absent(choices: Int[Tensor, "batch target choice"]) -> Bool[Tensor, "batch target choice"]:
    """Choices to leave out; of a target that is absent as a whole none, as its gradient would be NaN."""
    absent = choices == -1
    return absent & ~absent.all(dim=2, keepdim=True)


def _one_per_example(metric: Metric, values: Tensor, batch: "Task") -> Float[Tensor, " batch"]:
    if values.shape != (batch.n_examples,):
        raise ValueError(
            f"metric {metric.name!r} gave shape {tuple(values.shape)} for {batch.n_examples} examples; a "
            "metric returns one number per example, [batch]"
        )
    return values


def _loss(scores: AnswerLogits, batch: "Task") -> Float[Tensor, "batch target"]:
    return -_pooled(scores.log_softmax(dim=-1), batch.answers, batch)


def _top1(scores: AnswerLogits, batch: "Task") -> Float[Tensor, "batch target"]:
    best = scores.argmax(dim=-1, keepdim=True)
    return (best == choices_of(batch.answers, batch).to(scores.device)).any(dim=2).to(scores.dtype)


def _logit_difference(scores: AnswerLogits, batch: "Task") -> Float[Tensor, "batch target"]:
    assert batch.wrong_answers is not None
    return _pooled(scores, batch.answers, batch) - _pooled(scores, batch.wrong_answers, batch)


def _correct_margin(scores: AnswerLogits, batch: "Task") -> Float[Tensor, "batch target"]:
    choices = choices_of(batch.answers, batch).to(scores.device)
    picked = scores.gather(2, choices.clamp(min=0).expand(-1, scores.shape[1], -1))
    right = picked.masked_fill(_is_absent(choices), -torch.inf).amax(dim=2)
    is_answer = torch.zeros(scores.shape, dtype=torch.int8, device=scores.device)
    is_answer.scatter_reduce_(
        2,
        choices.clamp(min=0).expand(-1, scores.shape[1], -1),
        (choices != -1).to(torch.int8).expand(-1, scores.shape[1], -1),
        reduce="amax",
    )
    return right - scores.masked_fill(is_answer.bool(), -torch.inf).amax(dim=2)


def _probability(scores: AnswerLogits, batch: "Task") -> Float[Tensor, "batch target"]:
    return _pooled(scores.log_softmax(dim=-1), batch.answers, batch).exp()


def _probability_difference(scores: AnswerLogits, batch: "Task") -> Float[Tensor, "batch target"]:
    assert batch.wrong_answers is not None
    log_p = scores.log_softmax(dim=-1)
    return _pooled(log_p, batch.answers, batch).exp() - _pooled(log_p, batch.wrong_answers, batch).exp()


def _kl_from_clean(scores: AnswerLogits, batch: "Task") -> Float[Tensor, "batch target"]:
    assert batch.clean_logits is not None
    clean = batch.clean_logits.to(scores).log_softmax(dim=-1)
    return (clean.exp() * (clean - scores.log_softmax(dim=-1))).sum(dim=-1)


loss = Metric("loss", "nats", _loss, higher_is_better=False)
"""Cross-entropy of the answer in nats, mean over an example's targets; of several choices, of their sum."""

top1 = Metric("top1", "fraction", _top1, higher_is_better=True)
"""1 where the highest logit is an answer, else 0; mean over an example's targets."""

logit_difference = Metric(
    "logit_difference", "logits", _logit_difference, higher_is_better=True, needs=("wrong_answers",)
)
"""Logit of the answer minus that of the wrong answer; sets of choices by ``logsumexp`` (the log odds)."""

correct_margin = Metric("correct_margin", "logits", _correct_margin, higher_is_better=True)
"""Logit of the answer minus the highest logit that is not an answer."""

probability = Metric("probability", "probability", _probability, higher_is_better=True)
"""Probability of the answer, summed over its choices."""

probability_difference = Metric(
    "probability_difference",
    "probability",
    _probability_difference,
    higher_is_better=True,
    needs=("wrong_answers",),
)
"""Summed probability of the answers minus that of the wrong answers."""

kl_from_clean = Metric("kl_from_clean", "nats", _kl_from_clean, higher_is_better=False, needs=("clean_logits",))
"""KL(untouched model || this model) in nats at the answers, summed over the vocabulary."""

_ALL = (loss, top1, logit_difference, correct_margin, probability, probability_difference, kl_from_clean)


def names() -> list[str]:
    """Names of all metrics."""
    return [metric.name for metric in _ALL]


def get(name: str) -> Metric:
    """The metric of this name.

    Raises:
        UnknownName: there is none; the message lists the nearest.
    """
    for metric in _ALL:
        if metric.name == name:
            return metric
    raise unknown_name("metric", name, names(), "lens_ablation.metrics.names()")
