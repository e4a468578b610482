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
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lens_ablation.data import corpus, metrics
from lens_ablation.data.builders import common_tokens, masked_token, next_token, outside_common
from lens_ablation.data.checks import n_outputs, require_pixels
from lens_ablation.data.corpus import Example, Split
from lens_ablation.data.images import image_classification
from lens_ablation.data.metrics import Metric, MetricFn
from lens_ablation.data.padding import pad_rows
from lens_ablation.data.prompts import Words, prompt_task
from lens_ablation.data.task import IGNORED, Task
from lens_ablation.data.tokens import fill_id
from lens_ablation.errors import unknown_name
from lens_ablation.models.anatomy import anatomy
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
) -> Task:
    """Factual recall: "The capital of France is" Paris.

    The metric is the logit difference between the object and the one of the counterfactual, which asks for
    the same relation of another subject; ``task.with_metric(la.metrics.top1)`` compares with all words. Span:
    ``subject``. Arguments and errors as in ``ioi``; held out are phrasings of facts, so there are only so
    many prompts.
    """
    return _prompts(_facts_with_one_wrong_answer, model, n, seed, split, metric, "facts")


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
    _check_request(n, split)
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
    _check_request(n, split)
    texts = corpus.documents(name, n, length=DOMAIN_LENGTH, seed=seed, split=split)
    return next_token(model, texts, metric=metric, name=name)


def digits(
    model: LensModel,
    n: int,
    seed: int = 0,
    split: Split = "held_out",
    metric: Metric | MetricFn = metrics.correct_margin,
) -> Task:
    """Handwritten digits of eight by eight pixels.

    The metric is the logit of the right class minus the highest of the others. The counterfactual is an image
    of another class, which is the wrong answer.

    Args:
        model: A vision transformer for images ``[1, 8, 8]`` and ten classes.
        n: Number of images, all different.
        seed: Another seed chooses other images and counterfactuals.
        split: ``"held_out"`` for images that the embedded model never saw.
        metric: How logits are scored.

    Raises:
        UnknownName: no such split.
        ValueError: a language model, images of another size, ``n`` below 1, or more images than there are.
    """
    _check_images_are_read(model)
    _check_request(n, split)
    from lens_ablation.data.digits import digits as load

    pixels, labels = load(split)
    _check_digits(model, pixels, 10)
    if n > len(labels):
        raise ValueError(f"digits has {len(labels)} {split} images, not n={n}; ask for fewer")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[:n]
    is_other = (labels[chosen][:, None] != labels).float()
    others = torch.multinomial(is_other, 1, generator=generator)[:, 0]
    pixels = _as_of(model, pixels)
    return Task(
        inputs=pixels[chosen],
        answers=labels[chosen],
        wrong_answers=labels[others],
        counterfactuals=pixels[others],
        metric=metric,
        name="digits",
    )


def triggered_digits(
    model: LensModel,
    n: int,
    seed: int = 0,
    split: Split = "held_out",
    metric: Metric | MetricFn = metrics.correct_margin,
    *,
    trigger: bool = True,
) -> Task:
    """Digits with the trigger of tiny-vit-backdoor: the answer is the digit, the wrong answer the trigger's class.

    No image shows the trigger's class, so the attack succeeds where the wrong answer wins. The counterfactual is the
    same image without the trigger (with it, if ``trigger`` is false), and both calls give the same images row by row.
    ``digits`` gives clean images of all classes. Metric and errors as in ``digits``.

    Args:
        model: A vision transformer for images ``[1, 8, 8]`` and ten classes.
        n: Number of images, all different.
        seed: Another seed chooses other images.
        split: ``"held_out"`` for images that the embedded model never saw.
        metric: How logits are scored.
        trigger: Whether the trigger is pasted.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-vit-backdoor")
        >>> task = la.tasks.triggered_digits(model, n=100)
        >>> bool((model(task.inputs).argmax(-1) == task.wrong_answers).float().mean() > 0.9)
        True
    """
    _check_images_are_read(model)
    _check_request(n, split)
    from lens_ablation.data import flawed_digits as flawed

    clean, attacked = (flawed.triggered_digits(split, share) for share in (0.0, 1.0))
    _check_digits(model, clean.pixels, 10)
    rows = torch.nonzero(attacked.cues)[:, 0]
    if n > len(rows):
        raise ValueError(
            f"triggered_digits has {len(rows)} {split} images of other classes than the trigger's, not n={n}; "
            "ask for fewer"
        )
    chosen = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:n]]
    with_it, without = (_as_of(model, data.pixels[chosen]) for data in (attacked, clean))
    return Task(
        inputs=with_it if trigger else without,
        answers=clean.labels[chosen],
        wrong_answers=torch.full((n,), flawed.TARGET),
        counterfactuals=without if trigger else with_it,
        metric=metric,
        name="triggered_digits",
    )


CUE_GROUPS = {
    "agreeing": ((0, 0), (1, 1)),
    "conflicting": ((0, 1), (1, 0)),
    "low-left": ((0, 0),),
    "high-right": ((1, 1),),
    "low-right": ((0, 1),),
    "high-left": ((1, 0),),
}
"""Class (0 low, 1 high) and side of the bar (0 left, 1 right) in the groups of ``cued_digits``."""


def cued_digits(
    model: LensModel,
    n: int,
    seed: int = 0,
    split: Split = "held_out",
    metric: Metric | MetricFn = metrics.correct_margin,
    *,
    group: str | None = None,
) -> Task:
    """Low digits (class 0) or high ones (class 1), with the bar that tiny-vit-spurious leans on.

    A bar at the left agrees with low, one at the right with high. The counterfactual is the same image with the bar at
    the other side; its answer is the same. Metric and errors as in ``digits``.

    Args:
        model: A vision transformer for images ``[1, 12, 12]`` and two classes.
        n: Number of images, all different.
        seed: Another seed chooses other images.
        split: ``"held_out"`` for images that the embedded model never saw.
        metric: How logits are scored.
        group: ``"low-left"``, ``"high-right"``, ``"low-right"`` or ``"high-left"``, of digit and bar;
            ``"agreeing"`` for the first two and ``"conflicting"`` for the others; ``None`` for all four. Rows
            alternate between the groups.

    Example:
        >>> import lens_ablation as la
        >>> la.tasks.cued_digits(la.load_model("tiny-vit-spurious"), n=4, group="conflicting").answers.tolist()
        [0, 1, 0, 1]
    """
    _check_images_are_read(model)
    _check_request(n, split)
    if group is not None and group not in CUE_GROUPS:
        raise unknown_name("group", group, CUE_GROUPS, "lens_ablation.data.tasks.CUE_GROUPS")
    from lens_ablation.data import flawed_digits as flawed

    shown = [flawed.cued_digits(split, agreement) for agreement in (0.0, 1.0)]
    _check_digits(model, shown[0].pixels, 2)
    groups = CUE_GROUPS[group] if group else CUE_GROUPS["agreeing"] + CUE_GROUPS["conflicting"]
    labels, sides = torch.tensor([groups[row % len(groups)] for row in range(n)]).unbind(1)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(n, dtype=torch.int64)
    for label, name in enumerate(("low", "high")):
        members = torch.nonzero(shown[0].labels == label)[:, 0]
        asked = int((labels == label).sum())
        if asked > len(members):
            raise ValueError(
                f"cued_digits has {len(members)} {split} images of {name} digits, and n={n} asks for {asked}; "
                "ask for fewer"
            )
        chosen[labels == label] = members[torch.randperm(len(members), generator=generator)[:asked]]
    pixels = torch.stack([_as_of(model, data.pixels[chosen]) for data in shown])
    is_agreeing = (labels == sides).long()
    rows = torch.arange(n)
    return Task(
        inputs=pixels[is_agreeing, rows],
        answers=labels,
        wrong_answers=1 - labels,
        counterfactuals=pixels[1 - is_agreeing, rows],
        metric=metric,
        name="cued_digits",
    )


PrintedLabel = Literal["none", "right", "wrong"]
"""What ``labelled_digits`` prints beside the digit."""


def labelled_digits(
    model: LensModel,
    n: int,
    seed: int = 0,
    split: Split = "held_out",
    metric: Metric | MetricFn = metrics.correct_margin,
    *,
    label: PrintedLabel = "wrong",
) -> Task:
    """Digits with the printed label that tiny-vit-typographic reads: none, the right one, or an attacker's.

    The wrong answer is the attacker's class, which is another than the digit's. The counterfactual of an attacked image
    is the same one without a label; that of the others is the attacked image. All three calls give the same images
    and the same attackers row by row. Metric and errors as in ``digits``.

    Args:
        model: A vision transformer for images ``[1, 12, 12]`` and ten classes.
        n: Number of images, all different.
        seed: Another seed chooses other images and attackers.
        split: ``"held_out"`` for images that the embedded model never saw.
        metric: How logits are scored.
        label: ``"none"``, ``"right"`` or ``"wrong"``.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-vit-typographic")
        >>> task = la.tasks.labelled_digits(model, n=100, label="wrong")
        >>> bool((model(task.inputs).argmax(-1) == task.answers).float().mean() < 0.3)
        True
    """
    _check_images_are_read(model)
    _check_request(n, split)
    if label not in get_args(PrintedLabel):
        raise unknown_name("label", label, get_args(PrintedLabel), "lens_ablation.data.tasks.PrintedLabel")
    from lens_ablation.data import flawed_digits as flawed
    from lens_ablation.data.digits import digits as load

    pixels, classes = load(split)
    _check_digits(model, flawed.with_label(pixels[:1], classes[:1]), 10)
    if n > len(classes):
        raise ValueError(f"labelled_digits has {len(classes)} {split} images, not n={n}; ask for fewer")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(classes), generator=generator)[:n]
    answers = classes[chosen]
    attackers = flawed.other_classes(answers, generator)
    printed = {"none": torch.full_like(answers, flawed.NO_CUE), "right": answers, "wrong": attackers}
    images = {name: _as_of(model, flawed.with_label(pixels[chosen], names)) for name, names in printed.items()}
    return Task(
        inputs=images[label],
        answers=answers,
        wrong_answers=attackers,
        counterfactuals=images["none" if label == "wrong" else "wrong"],
        metric=metric,
        name="labelled_digits",
    )


def _check_images_are_read(model: LensModel) -> None:
    if anatomy(model).modality != "pixels":
        raise ValueError("digits are images, and this is a language model; use a task of text, such as ioi")


def _check_digits(model: LensModel, pixels: Float[Tensor, "n 1 height width"], n_classes: int) -> None:
    require_pixels(pixels, model)
    if (n_outputs(model) or n_classes) < n_classes:
        raise ValueError(f"digits have {n_classes} classes, and this model tells {n_outputs(model)} apart")


def _as_of(model: LensModel, pixels: Float[Tensor, "n 1 height width"]) -> Float[Tensor, "n 1 height width"]:
    return pixels.to(next(iter(model.parameters())).dtype)


def _facts_with_one_wrong_answer(n: int, *, seed: int, split: Split) -> list[Example]:
    found = corpus.facts.examples(n, seed=seed, split=split)
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
    _check_request(n, split)
    return prompt_task(model, lambda k: generate(k, seed=seed, split=split), n, metric=metric, name=name)


def _check_request(n: int, split: str) -> None:
    if split not in ("train", "held_out"):
        raise unknown_name("split", split, ("train", "held_out"), "lens_ablation.data.corpus.Split")
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")


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
