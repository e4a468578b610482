"""Tasks of handwritten digits: plain ones, and those that show the flaws of the embedded models that have one."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lens_ablation.data import metrics
from lens_ablation.data.checks import n_outputs, require_pixels
from lens_ablation.data.corpus import Split
from lens_ablation.data.metrics import Metric, MetricFn
from lens_ablation.data.task import Task
from lens_ablation.errors import unknown_name
from lens_ablation.models.anatomy import anatomy
from lens_ablation.models.protocol import LensModel


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
    check_request(n, split)
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
    check_request(n, split)
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
    check_request(n, split)
    if group is not None and group not in CUE_GROUPS:
        raise unknown_name("group", group, CUE_GROUPS, "lens_ablation.data.digit_tasks.CUE_GROUPS")
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
    check_request(n, split)
    if label not in get_args(PrintedLabel):
        raise unknown_name("label", label, get_args(PrintedLabel), "lens_ablation.data.digit_tasks.PrintedLabel")
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


def check_request(n: int, split: str) -> None:
    """Refuse a split or a number of examples that no task has.

    Raises:
        UnknownName: no such split.
        ValueError: ``n`` is below 1.
    """
    if split not in ("train", "held_out"):
        raise unknown_name("split", split, ("train", "held_out"), "lens_ablation.data.corpus.Split")
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")
