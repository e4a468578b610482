"""Prompts of the corpus as a task: words become the tokens of any model's tokenizer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lens_ablation.data.corpus import Example
from lens_ablation.data.metrics import Metric, MetricFn
from lens_ablation.data.padding import pad_rows
from lens_ablation.data.task import IGNORED, Task
from lens_ablation.data.tokens import bos_ids, fill_id, require_causal, tokenizer_of
from lens_ablation.models.protocol import LensModel

_NO_SPACE_BEFORE = frozenset(".,;:?!")
_DRAWS_PER_PROMPT = 64


def prompt_task(
    model: LensModel,
    draw: Callable[[int], list[Example]],
    n: int,
    *,
    metric: Metric | MetricFn,
    name: str,
) -> Task:
    """``n`` different prompts with their answers, counterfactuals and spans, filled up on the right behind a
    mask.

    Prompts are left out whose answers are not one token each, whose counterfactual has another number of
    tokens, or whose words the tokenizer does not know.

    Args:
        model: A causal language model with its tokenizer.
        draw: Examples by number, the same ones first whatever the number.
        n: Number of prompts.
        metric: How logits are scored.
        name: What reports call the task.

    Raises:
        ValueError: no tokenizer, a bidirectional model, ``n`` below 1, or too few prompts.
    """
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")
    words = Words(model)
    prompts: list[_Prompt] = []
    seen: set[str] = set()
    n_drawn, n_wanted = 0, n
    while len(prompts) < n:
        n_seen = len(seen)
        for example in draw(n_wanted)[n_drawn:]:
            if example.prompt not in seen and len(prompts) < n:
                seen.add(example.prompt)
                prompt = _read(words, example)
                prompts += [] if prompt is None else [prompt]
        if len(seen) == n_seen or n_wanted > _DRAWS_PER_PROMPT * (n + 1):
            raise ValueError(_too_few(name, n, len(prompts), len(seen)))
        n_drawn, n_wanted = n_wanted, 2 * n_wanted
    tokens, mask = pad_rows([prompt.tokens for prompt in prompts], fill_id(model))
    return Task(
        inputs=tokens,
        answers=_ids([prompt.answers for prompt in prompts]),
        wrong_answers=_ids([prompt.wrong_answers for prompt in prompts]),
        counterfactuals=pad_rows([prompt.counterfactual for prompt in prompts], fill_id(model))[0],
        attention_mask=mask,
        metric=metric,
        name=name,
        spans={span: torch.tensor([prompt.spans[span] for prompt in prompts]) for span in prompts[0].spans},
    )


class Words:
    """How words of the corpus become tokens of a model.

    Raises:
        ValueError: the model has no tokenizer, or is bidirectional.
    """

    def __init__(self, model: LensModel):
        self._tokenizer: Any = tokenizer_of(model)
        require_causal(model)
        self.front = bos_ids(model)
        self.longest = int(getattr(model.cfg, "n_ctx", 1 << 30))
        self._following: dict[tuple[str, str], list[int] | None] = {}

    def ids(self, words: Sequence[str]) -> list[int]:
        """Token ids of words written as text, without BOS."""
        return self._tokenizer(_text(words), add_special_tokens=False, verbose=False)["input_ids"]

    def known(self, ids: Sequence[int]) -> bool:
        """Whether none of the ids stands for an unknown word."""
        return self._tokenizer.unk_token_id not in ids

    def following(self, last: str, word: str) -> list[int] | None:
        """Token ids of ``word`` where it follows ``last``; ``None`` if unknown or not separable from it."""
        if (last, word) not in self._following:
            before, both = self.ids([last]), self.ids([last, word])
            separable = both[: len(before)] == before and self.known(both[len(before) :])
            self._following[last, word] = both[len(before) :] if separable else None
        return self._following[last, word]


@dataclass(frozen=True)
class _Prompt:
    tokens: list[int]
    counterfactual: list[int]
    answers: list[int]
    wrong_answers: list[int]
    spans: dict[str, tuple[int, int]]


def _read(words: Words, example: Example) -> _Prompt | None:
    """The prompt in tokens, or ``None`` if it does not fit the tokenizer."""
    prompt, counterfactual = example.prompt.split(), example.counterfactual.split()
    tokens, other = words.ids(prompt), words.ids(counterfactual)
    too_long = len(words.front) + len(tokens) > words.longest
    if len(tokens) != len(other) or too_long or not words.known(tokens) or not words.known(other):
        return None
    ids: list[list[int]] = []
    for answers in (example.answers, example.wrong_answers):
        found = [words.following(prompt[-1], word) for word in answers]
        ids.append([token[0] for token in found if token is not None and len(token) == 1])
        if len(ids[-1]) != len(answers):
            return None
    spans = {}
    for name, (first, end) in example.spans.items():
        before, upto = words.ids(prompt[:first]), words.ids(prompt[:end])
        if tokens[: len(before)] != before or tokens[: len(upto)] != upto:
            return None
        spans[name] = (len(words.front) + len(before), len(words.front) + len(upto))
    return _Prompt(words.front + tokens, words.front + other, ids[0], ids[1], spans)


def _text(words: Sequence[str]) -> str:
    """Words as text, with no space before punctuation, as tokenizers of real models know it."""
    return "".join(word if i == 0 or word in _NO_SPACE_BEFORE else f" {word}" for i, word in enumerate(words))


def _ids(rows: Sequence[Sequence[int]]) -> Int[Tensor, "example ..."]:
    """Ids ``[example]`` where every row has one, else ``[example, choice]``."""
    padded = pad_rows(rows, IGNORED)[0]
    return padded[:, 0] if padded.shape[1] == 1 else padded


def _too_few(name: str, n: int, n_found: int, n_seen: int) -> str:
    if n_found == n_seen:
        return f"{name} has only {n_found} different prompts of this split, not n={n}; ask for fewer"
    fewer = "ask for fewer, or " if n_found else ""
    return (
        f"of {n_seen} prompts of {name} {n_found} suit this model's tokenizer (known words, answers of one token "
        f"each, a counterfactual of as many tokens), and n={n} were asked for; {fewer}make a Task of your own "
        "prompts"
    )
