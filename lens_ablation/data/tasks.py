"""The tasks that come with the package, and builders of tasks from anybody's data.

Each task is ``(model, n, seed=0, split="held_out", metric=...) -> Task``. Prompts come from the corpus that
the embedded models were trained on; ``split`` is the side of it that training never showed (``held_out``) or
the one it did (``train``). The words are turned into tokens by the model's own tokenizer, so the tasks also
serve other models.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

import torch

from lens_ablation.data import corpus, metrics
from lens_ablation.data.builders import common_tokens, masked_token, next_token, outside_common
from lens_ablation.data.corpus import Example, Split
from lens_ablation.data.digit_tasks import check_request, cued_digits, digits, labelled_digits, triggered_digits
from lens_ablation.data.images import image_classification
from lens_ablation.data.metrics import Metric, MetricFn
from lens_ablation.data.padding import pad_rows
from lens_ablation.data.prompts import Words, prompt_task
from lens_ablation.data.task import IGNORED, Task
from lens_ablation.data.tokens import fill_id
from lens_ablation.errors import unknown_name
from lens_ablation.models.protocol import LensModel

__all__ = [
    "agreement",
    "common_tokens",
    "cued_digits",
    "digits",
    "domain",
    "facts",
    "get",
    "greater_than",
    "image_classification",
    "induction",
    "ioi",
    "labelled_digits",
    "masked_token",
    "names",
    "next_token",
    "outside_common",
    "pronouns",
    "triggered_digits",
]

INDUCTION_LENGTH = 20
"""Words of the sequence that an induction prompt shows twice."""

DOMAIN_LENGTH = 64
"""Words of a text of a domain, BOS included."""


TaskMaker = Callable[..., Task]
"""``(model, n, seed=0, split="held_out", metric=...) -> Task``."""


def ioi(
    model: LensModel,
    n: int,
    seed: int = 0,
    split: Split = "held_out",
    metric: Metric | MetricFn = metrics.logit_difference,
) -> Task:
    """Indirect objects: "When Mary and John went to the store, John gave a drink to" Mary, and not John.

    The metric is the logit difference between the indirect object and the subject, in logits. In the
    counterfactual the other person gives. Spans: ``IO``, ``S1``, ``S2``.

    Args:
        model: A causal language model with its tokenizer.
        n: Number of prompts.
        seed: Another seed gives other prompts.
        split: ``"held_out"`` for name pairs and templates that the embedded models never saw.
        metric: How logits are scored.

    Raises:
        UnknownName: no such split.
        ValueError: a model of images or without a tokenizer, ``n`` below 1, or more prompts than there are.

    Reference:
        Wang et al., *Interpretability in the Wild: a Circuit for Indirect Object Identification in GPT-2
        small*, ICLR 2023. arXiv:2211.00593

    Example:
        >>> import lens_ablation as la
        >>> task = la.tasks.ioi(la.load_model("tiny-lm"), n=4)
        >>> task.n_examples, sorted(task.spans)
        (4, ['IO', 'S1', 'S2'])
    """
    return _prompts(corpus.ioi.examples, model, n, seed, split, metric, "ioi")


def greater_than(
    model: LensModel,
    n: int,
    seed: int = 0,
    split: Split = "held_out",
    metric: Metric | MetricFn = metrics.probability_difference,
) -> Task:
    """Years: "The war lasted from the year 17 32 to the year 17" and then any two-digit year above 32.

    The metric is the summed probability of the larger years minus that of the others. In the counterfactual
    the first year is 01. Spans: ``noun``, ``start_century``, ``start``, ``end_century``. Arguments and errors
    as in ``ioi``; the tokenizer must have each two-digit year as one token.

    Reference:
        Hanna et al., *How does GPT-2 compute greater-than?*, NeurIPS 2023. arXiv:2305.00586
    """
    return _prompts(corpus.greater_than.examples, model, n, seed, split, metric, "greater_than")


def facts(
    model: LensModel,
    n: int,
    seed: int = 0,
    split: Split = "held_out",
    metric: Metric | MetricFn = metrics.logit_difference,
    *,
    relations: Sequence[str] | None = None,
) -> Task:
    """Factual recall: "The capital of France is" Paris.

    The metric is the logit difference between the object and the one of the counterfactual, which asks for
    the same relation of another subject; ``task.with_metric(la.metrics.top1)`` compares with all words. Span:
    ``subject``. Arguments and errors as in ``ioi``; held out are phrasings of facts, so there are only so
    many prompts. ``relations`` limits what is asked for, such as ``["capital"]``.

    Raises:
        UnknownName: no such relation.
    """
    asked = corpus.facts.RELATIONS if relations is None else tuple(relations)
    for relation in asked:
        if relation not in corpus.facts.RELATIONS:
            raise unknown_name("relation", relation, corpus.facts.RELATIONS, "lens_ablation.data.corpus.facts")
    return _prompts(partial(_facts_with_one_wrong_answer, relations=asked), model, n, seed, split, metric, "facts")


def pronouns(
    model: LensModel,
    n: int,
    seed: int = 0,
    split: Split = "held_out",
    metric: Metric | MetricFn = metrics.logit_difference,
) -> Task:
    """Pronoun gender: "Mary went to the park because" she, and not he.

    The metric is the logit difference between the pronouns. The counterfactual is about a person of the other
    gender. Span: ``person``. Arguments and errors as in ``ioi``.
    """
    return _prompts(corpus.pronouns.examples, model, n, seed, split, metric, "pronouns")


def agreement(
    model: LensModel,
    n: int,
    seed: int = 0,
    split: Split = "held_out",
    metric: Metric | MetricFn = metrics.logit_difference,
) -> Task:
    """Agreement of subject and verb across a distractor: "The keys near the cabinet" are, and not is.

    The metric is the logit difference between the forms of the verb. The counterfactual has the subject in
    the other number. Spans: ``subject``, ``distractor``. Arguments and errors as in ``ioi``.
    """
    return _prompts(corpus.agreement.examples, model, n, seed, split, metric, "agreement")


def induction(
    model: LensModel,
    n: int,
    seed: int = 0,
    split: Split = "held_out",
    metric: Metric | MetricFn = metrics.loss,
) -> Task:
    """A sequence of random words, twice; asked is each next token within the second copy.

    The metric is the loss in nats, mean over the targets of a row. In the counterfactual the first copy is in
    reverse order, so that another word followed each word. Spans: ``first`` and ``second``, the two copies.
    Arguments and errors as in ``ioi``.
    """
    words = Words(model)
    check_request(n, split)
    texts = corpus.induction.repeated(n, INDUCTION_LENGTH, seed=seed, split=split)
    copies = [_word_ids(words, text.split()[:INDUCTION_LENGTH]) for text in texts]
    front, rows = words.front, [[*chain(*copy)] for copy in copies]
    tokens, mask = pad_rows([front + row + row for row in rows], fill_id(model))
    if tokens.shape[1] > words.longest:
        raise ValueError(f"prompts have {tokens.shape[1]} tokens and this model takes {words.longest}")
    ends = [(len(front) + len(row), len(front) + 2 * len(row)) for row in rows]
    changed = [[*front, *chain(*reversed(copy)), *row] for copy, row in zip(copies, rows, strict=True)]
    return Task(
        inputs=tokens,
        answers=pad_rows([row[1:] for row in rows], IGNORED)[0],
        counterfactuals=pad_rows(changed, fill_id(model))[0],
        attention_mask=mask,
        positions=pad_rows([range(middle, end - 1) for middle, end in ends], IGNORED)[0],
        metric=metric,
        name="induction",
        spans={
            "first": torch.tensor([[len(front), middle] for middle, _ in ends]),
            "second": torch.tensor(ends),
        },
    )


def _word_ids(words: Words, sequence: Sequence[str]) -> list[list[int]]:
    """Token ids of each word as it stands within a text, so that the order may change."""
    ids: list[list[int]] = []
    for word in sequence:
        found = words.following("the", word)
        if found is None:
            raise ValueError(
                f"the model's tokenizer does not know {word!r}; use tasks.next_token with texts of your own"
            )
        ids.append(found)
    return ids


def domain(
    model: LensModel,
    n: int,
    seed: int = 0,
    split: Split = "held_out",
    metric: Metric | MetricFn = metrics.loss,
    *,
    name: str,
) -> Task:
    """Every next token of texts of one domain: ``"prose"``, ``"code"`` or ``"arithmetic"``.

    The metric is the loss in nats, mean over the tokens of a text. Arguments and errors as in ``ioi``.

    Raises:
        UnknownName: no such domain.

    Example:
        >>> import lens_ablation as la
        >>> la.tasks.domain(la.load_model("tiny-lm"), n=2, name="code").name
        'code'
    """
    if name not in corpus.DOMAINS:
        raise unknown_name("domain", name, corpus.DOMAINS, "lens_ablation.data.corpus.DOMAINS")
    check_request(n, split)
    texts = corpus.documents(name, n, length=DOMAIN_LENGTH, seed=seed, split=split)
    return next_token(model, texts, metric=metric, name=name)


def _facts_with_one_wrong_answer(n: int, *, seed: int, split: Split, relations: Sequence[str]) -> list[Example]:
    found = corpus.facts.examples(n, seed=seed, split=split, relations=relations)
    return [replace(example, wrong_answers=example.counterfactual_answers) for example in found]


def _prompts(
    generate: Callable[..., list[Example]],
    model: LensModel,
    n: int,
    seed: int,
    split: Split,
    metric: Metric | MetricFn,
    name: str,
) -> Task:
    check_request(n, split)
    return prompt_task(model, lambda k: generate(k, seed=seed, split=split), n, metric=metric, name=name)


_MAKERS: dict[str, TaskMaker] = {
    "ioi": ioi,
    "greater_than": greater_than,
    "facts": facts,
    "pronouns": pronouns,
    "agreement": agreement,
    "induction": induction,
    **{name: partial(domain, name=name) for name in corpus.DOMAINS},
    "digits": digits,
    "triggered_digits": triggered_digits,
    "cued_digits": cued_digits,
    "labelled_digits": labelled_digits,
}


def names() -> list[str]:
    """Names of the tasks that come with the package; each domain goes by its own name."""
    return list(_MAKERS)


def get(name: str) -> TaskMaker:
    """The task of this name, a function of a model and a number of examples.

    Raises:
        UnknownName: there is none; the message lists the nearest.
    """
    if name not in _MAKERS:
        raise unknown_name("task", name, names(), "lens_ablation.tasks.names()")
    return _MAKERS[name]
