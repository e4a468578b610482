"""Multiple-choice questions as tokens: anybody's records, with candidates of one token each."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_ablation.data.answers import untouched_answers
from lens_ablation.data.choice_prompts import Candidates, PromptFormat, Question
from lens_ablation.data.metrics import AnswerLogits, Metric, MetricFn
from lens_ablation.data.padding import pad_rows
from lens_ablation.data.records import Records, read_records, require_no_leaks
from lens_ablation.data.task import Task
from lens_ablation.data.tokens import bos_ids, fill_id, require_causal, tokenizer_of
from lens_ablation.models.protocol import LensModel


def _right_choice(scores: AnswerLogits, batch: Task) -> Float[Tensor, "batch target"]:
    wrong = batch.wrong_answers
    assert wrong is not None
    right = scores[:, 0].gather(1, batch.answers[:, None].to(scores.device))
    others = scores[:, 0].gather(1, wrong.to(scores.device))
    return (right > others.amax(dim=1, keepdim=True)).to(scores.dtype)


RIGHT_CHOICE = Metric("right_choice", "fraction", _right_choice, higher_is_better=True, needs=("wrong_answers",))
"""1 where the right candidate has a higher logit than every other candidate, else 0."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class MultipleChoice:
    """Questions with candidate answers of one token each.

    Attributes:
        task: Prompts, the right token as the answer, the other candidates as wrong answers, read at the last real
            token; its metric is ``right_choice``.
        candidates: Tokens that can be answered, ``[example, candidate]``.
        labels: Place of the right one, ``[example]``.
        names: The candidates in words, ``[example][candidate]``.
        prompts: The prompts in words, ``[example]``.
        wordings: By which wording each example asks, ``[example]``; empty where there is one only.

    Raises:
        ValueError: the parts are of different numbers of examples, or a label is no place of a candidate.
    """

    task: Task
    candidates: Int[Tensor, "example candidate"]
    labels: Int[Tensor, " example"]
    names: tuple[tuple[str, ...], ...]
    prompts: tuple[str, ...]
    wordings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = self.task.n_examples
        sizes = [len(self.candidates), len(self.labels), len(self.names), len(self.prompts)]
        if set(sizes) != {n} or len(self.wordings) not in (0, n):
            raise ValueError(f"a task of {n} examples has candidates, labels, names and prompts of {sizes} examples")
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= self.n_candidates:
            raise ValueError(f"labels lie in 0..{self.n_candidates - 1}, got {self.labels.unique().tolist()}")

    @property
    def n_examples(self) -> int:
        """Number of questions."""
        return self.task.n_examples

    @property
    def n_candidates(self) -> int:
        """Candidates of a question."""
        return self.candidates.shape[1]

    def select(self, rows: Int[Tensor, " row"] | Bool[Tensor, " example"] | slice) -> "MultipleChoice":
        """These questions only, in this order."""
        places = torch.arange(self.n_examples)[rows]
        chosen = places.tolist()
        return replace(
            self,
            task=self.task.select(places),
            candidates=self.candidates[places],
            labels=self.labels[places],
            names=tuple(self.names[i] for i in chosen),
            prompts=tuple(self.prompts[i] for i in chosen),
            wordings=tuple(self.wordings[i] for i in chosen) if self.wordings else (),
        )

    def probabilities(self, model: LensModel, *, batch_size: int = 64) -> Float[Tensor, "example candidate"]:
        """The untouched model's probability of each candidate, among all tokens.

        Example:
            >>> import lens_ablation as la
            >>> model = la.load_model("tiny-lm")
            >>> choices = la.skills.continent(model, n=30)
            >>> accuracy = (choices.probabilities(model).argmax(dim=1) == choices.labels).float().mean()
        """
        parts = zip(self.candidates.split(batch_size), untouched_answers(model, self.task, batch_size), strict=True)
        return torch.cat([logits[:, 0].softmax(dim=-1).gather(1, ids.to(logits.device)).cpu() for ids, logits in parts])

    def to_dataframe(self) -> pd.DataFrame:
        """One row to a question: prompt, candidates, the right answer, its place."""
        table = pd.DataFrame({"prompt": self.prompts, "candidates": self.names, "label": self.labels.tolist()})
        table["answer"] = [names[label] for names, label in zip(self.names, self.labels.tolist(), strict=True)]
        if self.wordings:
            table["wording"] = self.wordings
        return table

    def __repr__(self) -> str:
        return f"MultipleChoice({self.task.name}: {self.n_examples} questions of {self.n_candidates} candidates)"


def multiple_choice(
    records: Records,
    model: LensModel,
    *,
    candidates: Candidates,
    instruction: str = "",
    fields: Mapping[str, str] | None = None,
    label: str = "label",
    template: str | None = None,
    answer: str = "Answer",
    separator: str = "",
    shots: int = 0,
    demos: Records | None = None,
    seed: int = 42,
    metric: Metric | MetricFn = RIGHT_CHOICE,
    name: str = "multiple choice",
) -> MultipleChoice:
    """Multiple-choice records, in the format of MCEval8K or any other, as a task.

    A prompt is ``instruction``, a blank line, the demonstrations, and the question: a line ``### Name:value`` for
    each field and then ``### Answer:``. Rows are filled up on the right behind a mask.

    Args:
        records: Mappings with a ``label`` (an index from 0, a candidate or an option), a JSON file of one list, a
            ``datasets.Dataset``, or its name on the hub.
        model: A causal language model with its tokenizer.
        candidates: Words that can be answered, the same to all questions; ``"letters"`` for a, b, c... of each
            record's ``options``; ``"options"`` for the options themselves.
        instruction: What stands before everything.
        fields: Name shown and field of the record, in order; by default all but the label.
        label: The field that holds the right answer.
        template: Text with fields in braces instead of lines, for models that know no instructions.
        answer: Name of the line that asks.
        separator: Between prompt and answer. Llama 3 and Qwen have labels without a leading space; GPT-2 answers a
            prompt of words with ``" "``.
        shots: Answered questions of each label before every question; never the question itself.
        demos: Where those come from, such as the training split; ``records`` by default.
        seed: What they are drawn with.
        metric: How logits are scored.
        name: What reports call the task.

    Raises:
        DamagedFile: a file is no JSON.
        ValueError: a candidate is not one token, a label is unknown, a field is missing, questions have different
            numbers of candidates, the tokenizer does not know a word, or a prompt is longer than the model takes.

    Reference:
        Zhao, Jiang, Yoshinaga, *Neuron Empirical Gradient*, ACL 2025, arXiv:2412.18053 (MCEval8K)

    Example:
        >>> import lens_ablation as la
        >>> asked = [{"text": f"compare {a} 30 : {a}", "label": int(a < 30)} for a in (4, 71, 12, 56)]
        >>> choices = la.multiple_choice(
        ...     asked,
        ...     la.load_model("tiny-lm"),
        ...     candidates=["exceeds", "undercuts"],
        ...     template="{text}",
        ...     separator=" ",
        ... )
        >>> choices, choices.labels.tolist()
        (MultipleChoice(multiple choice: 4 questions of 2 candidates), [1, 0, 1, 0])
    """
    form = PromptFormat(
        candidates=candidates,
        instruction=instruction,
        fields=fields,
        label=label,
        template=template,
        answer=answer,
        separator=separator,
        shots=shots,
        seed=seed,
    )
    listed = read_records(records)
    questions = form.questions(listed, None if demos is None else read_records(demos))
    counts = sorted({len(question.candidates) for question in questions})
    if len(counts) > 1:
        raise ValueError(f"questions have {counts} candidates; a set of questions has one number of them, so split it")
    rows, ids = _encoded(model, questions, separator)
    tokens, mask = pad_rows(rows, fill_id(model))
    labels = torch.tensor([question.label for question in questions])
    chosen = torch.tensor(ids)
    is_right = torch.arange(chosen.shape[1]) == labels[:, None]
    task = Task(
        inputs=tokens,
        answers=chosen[is_right],
        wrong_answers=chosen[~is_right].reshape(len(chosen), -1),
        attention_mask=mask,
        positions=mask.sum(dim=1) - 1,
        metric=metric,
        name=name,
    )
    return MultipleChoice(
        task=task,
        candidates=chosen,
        labels=labels,
        names=tuple(question.candidates for question in questions),
        prompts=tuple(question.prompt for question in questions),
        wordings=tuple(str(record["wording"]) for record in listed) if "wording" in listed[0] else (),
    )


def multiple_choice_splits(
    splits: Mapping[str, Records],
    model: LensModel,
    *,
    allow_leaks: bool = False,
    leak_fields: Collection[str] | None = None,
    demos_from: str | None = None,
    label: str = "label",
    **options: Any,
) -> dict[str, MultipleChoice]:
    """Each split of records as multiple choice, once it is known that they share no question.

    Args:
        splits: Records by name of the split, such as ``disjoint_splits`` gives.
        model: A causal language model with its tokenizer.
        allow_leaks: Take splits that share or repeat questions all the same.
        leak_fields: Fields that make a question; all but ``label`` and ``answer`` by default.
        demos_from: The split that demonstrations are drawn from; the first by default.
        label: The field that holds the right answer.
        **options: As in ``multiple_choice``.

    Raises:
        LeakingSplits: a question stands in two splits, or twice in one.
        ValueError: as in ``multiple_choice``.

    Example:
        >>> import lens_ablation as la
        >>> asked = [{"text": f"compare {a} 30 : {a}", "label": int(a < 30)} for a in range(10, 50) if a != 30]
        >>> parts = la.multiple_choice_splits(
        ...     la.disjoint_splits(asked, {"train": 20, "test": 10}),
        ...     la.load_model("tiny-lm"),
        ...     candidates=["exceeds", "undercuts"],
        ...     template="{text}",
        ...     separator=" ",
        ... )
        >>> parts["test"]
        MultipleChoice(test: 10 questions of 2 candidates)
    """
    read = {name: read_records(part) for name, part in splits.items()}
    if not allow_leaks:
        require_no_leaks(read, label=label, fields=leak_fields)
    source = next(iter(read)) if demos_from is None else demos_from
    if source not in read:
        raise ValueError(f"demos_from names the split {source!r}; there are {', '.join(read)}")
    shared = {"demos": read[source], "label": label, **options}
    return {name: multiple_choice(part, model, **{"name": name, **shared}) for name, part in read.items()}


def _encoded(
    model: LensModel, questions: Sequence[Question], separator: str
) -> tuple[list[list[int]], list[list[int]]]:
    """Tokens of every prompt, and of each candidate as it follows the prompt."""
    require_causal(model)
    tokenizer = tokenizer_of(model)
    front = bos_ids(model)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]

    prompts = encode([question.prompt for question in questions])
    _require_known(prompts, [question.prompt for question in questions], tokenizer, front)
    longest = int(getattr(model.cfg, "n_ctx", 1 << 30))
    too_long = [len(front) + len(row) for row in prompts if len(front) + len(row) > longest]
    if too_long:
        raise ValueError(
            f"{len(too_long)} of {len(prompts)} prompts are too long (up to {max(too_long)} tokens, and this model "
            f"takes {longest}); cut the texts, or give fewer shots"
        )
    ids: list[list[int]] = []
    for question, prompt in zip(questions, prompts, strict=True):
        both = encode([question.prompt + separator + word for word in question.candidates])
        ids.append([_single(tokenizer, prompt, row, word) for row, word in zip(both, question.candidates, strict=True)])
        if len(set(ids[-1])) != len(ids[-1]):
            raise ValueError(f"candidates {list(question.candidates)} share a token; choose words that start apart")
    return [front + prompt for prompt in prompts], ids


def _single(tokenizer: Any, prompt: Sequence[int], both: Sequence[int], word: str) -> int:
    """The one token by which a candidate continues a prompt."""
    rest = list(both[len(prompt) :])
    if list(both[: len(prompt)]) != list(prompt):
        raise ValueError(
            f"the candidate {word!r} melts into the end of the prompt, {tokenizer.convert_ids_to_tokens(both)[-4:]}; "
            "set separator=' ', or end the prompt otherwise"
        )
    if len(rest) != 1:
        raise ValueError(
            f"the candidate {word!r} is {len(rest)} tokens here, {tokenizer.convert_ids_to_tokens(rest)}; a candidate "
            "is one token. Choose other words, or separator=' ' (or '')"
        )
    if _is_unknown(tokenizer, rest[0]):
        raise ValueError(f"the tokenizer does not know the candidate {word!r}; choose a word that it knows")
    return rest[0]


def _is_unknown(tokenizer: Any, token: int) -> bool:
    # some tokenizers have one special token for everything, and know every word
    return token == tokenizer.unk_token_id and token not in (tokenizer.bos_token_id, tokenizer.eos_token_id)


def _require_known(
    prompts: Sequence[Sequence[int]], texts: Sequence[str], tokenizer: Any, front: Sequence[int]
) -> None:
    for row, text in zip(prompts, texts, strict=True):
        if not row and not front:
            raise ValueError("a prompt is empty; give it at least one token")
        if any(_is_unknown(tokenizer, token) for token in row):
            words = [word for word in text.split() if _is_unknown(tokenizer, _first(tokenizer, word))]
            raise ValueError(
                f"the tokenizer does not know {', '.join(map(repr, words[:3])) or 'a word'} in the prompt {text!r}; "
                "phrase it in words it knows, with template=..."
            )


def _first(tokenizer: Any, word: str) -> int:
    found = tokenizer(word, add_special_tokens=False, verbose=False)["input_ids"]
    return found[0] if found else -1
