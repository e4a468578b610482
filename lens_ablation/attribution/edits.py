"""The edits of the paper, each on an embedded model: attribute, choose components, measure.

Components are z coordinates and MLP neurons. Attributions and numbers of components come from training images or
prompts only; what is reported was measured on held-out ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor

from lens_ablation.attribution.attribute import attribute
from lens_ablation.attribution.coar import Coar
from lens_ablation.attribution.edit_constants import fit_edit_constants
from lens_ablation.attribution.editing import Edit, Effect, edit
from lens_ablation.attribution.rounds import edit_in_rounds
from lens_ablation.data import digit_tasks, tasks
from lens_ablation.data.corpus import Split, facts
from lens_ablation.data.metrics import Metric, as_metric, correct_margin, top1
from lens_ablation.data.task import Task, joined
from lens_ablation.errors import unknown_name
from lens_ablation.models.protocol import LensModel
from lens_ablation.progress import Progress
from lens_ablation.selectors import attention_neurons, neurons
from lens_ablation.sites import SiteSet
from lens_ablation.zoo.tiny_vit import shifted

N_MASKS = 32
"""Masks of each attribution, unless said otherwise."""

DIGIT_SHARES, FACT_SHARES = (0.02, 0.026, 0.04), (0.04, 0.065)
"""Shares of the components for which forgetting fits constants, to digits and to facts."""

TARGETS_COUNT = 0.2
"""What all examples that are to be forgotten count in that fit, beside all that are to be spared."""

STEPS, DIGIT_LR, FACT_LR = 400, 1.0, 0.15
"""Steps of that descent, and their length in standard deviations of the activations."""

ENOUGH = 0.05
"""Share of what is to be forgotten that may be left on validation examples."""

MOVED, NOISE = 2, 0.1
"""Moved copies of each image to which constants are fitted, and what is added to their pixels: as tiny-vit was trained,
since it knows the images themselves by heart."""

FITTED_ON = 0.75
"""Share of the training prompts to which constants are fitted; the others choose how many."""

OTHER_SKILLS = (tasks.ioi, tasks.greater_than, tasks.pronouns, tasks.agreement)
"""What forgetting a relation is to spare beside the other facts."""

VALIDATION_DIGITS = 250
"""Held-out images on which ``forget_class`` chooses; the others are for the report."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Edited:
    """An edit, and what it does to held-out examples.

    Attributes:
        edit: What is ablated, and how it was chosen.
        held_out: Effects on groups of examples that neither the attribution nor the choice has seen.
        tasks: These examples.
    """

    edit: Edit
    held_out: Mapping[str, Effect]
    tasks: Mapping[str, Task]

    def to_dataframe(self) -> pd.DataFrame:
        """One row to a held-out group."""
        return pd.DataFrame([{"group": name, **vars(effect)} for name, effect in self.held_out.items()])


def fix_errors(
    model: LensModel, *, n_masks: int = 4 * N_MASKS, tolerance: float = 0.01, progress: Progress = True
) -> list[Edited]:
    """An edit for each held-out digit that the model gets wrong: the one image right, all others as they were.

    Targets are single images, whose number of components is chosen on themselves; references are 50 training images,
    and 500 others watch the accuracy.

    Args:
        model: tiny-vit, or another vision transformer of the same digits.
        n_masks: Masks of the attribution, which all edits share.
        tolerance: How far the accuracy on training images may fall.

    Returns:
        One to an error; held-out groups ``error`` and ``others``.

    Raises:
        ValueError: the model makes no error.

    Reference:
        Shah, Ilyas, Madry, 2024, arXiv:2404.11534, section 5.1.
    """
    held_out, training = _all_digits(model, "held_out"), _all_digits(model, "train")
    wrong = _places(_answered(model, held_out) == 0)
    if not len(wrong):
        raise ValueError("the model answers every held-out digit rightly, so there is no error to fix")
    n_references = 50
    task = joined([held_out.select(wrong), training.select(slice(n_references))])
    weights = attribute(
        model, task, _components(model), Coar(n_masks=n_masks, ablated_fraction=0.05), progress=progress
    )
    found: list[Edited] = []
    for i, place in enumerate(wrong.tolist()):
        one = edit(
            weights,
            model,
            task,
            target=[i],
            reference=range(len(wrong), task.n_examples),
            validation=(task.select(slice(i, i + 1)), training.select(slice(100, 600))),
            tolerance=tolerance,
            progress=progress,
        )
        others = held_out.select(_places(torch.arange(held_out.n_examples) != place))
        found.append(_measured(one, model, {"error": task.select(slice(i, i + 1)), "others": others}))
    return found


def forget_class(model: LensModel, digit: int, *, n_masks: int = 2 * N_MASKS, progress: Progress = True) -> Edited:
    """Unlearn one digit and keep the others.

    The first components by their attributions are replaced by constants that are fitted to the purpose
    (``fit_edit_constants``) on training images and moved copies of them. How many they are is chosen on the first 250
    held-out images, as the model knows the training images by heart; effects are of the other 200.

    Args:
        model: tiny-vit, or another vision transformer of the same digits.
        digit: The class, 0 to 9.
        n_masks: Masks of the attribution.

    Returns:
        Held-out groups ``class`` and ``others``.

    Raises:
        ValueError: no such digit.

    Reference:
        Shah, Ilyas, Madry, 2024, arXiv:2404.11534, section 5.2.
    """
    if digit not in range(10):
        raise ValueError(f"digit must lie in 0..9, got {digit}")
    training, held_out = _all_digits(model, "train"), _all_digits(model, "held_out")
    n = VALIDATION_DIGITS
    parts = {"train": training, "validation": held_out.select(slice(n)), "test": held_out.select(slice(n, None))}
    wanted, others = (
        {name: task.select(_places((task.answers == digit) == is_it)) for name, task in parts.items()}
        for is_it in (True, False)
    )
    found = _forgotten(
        model,
        (wanted["train"].select(slice(40)), others["train"].select(slice(120))),
        (_with_moved_copies(wanted["train"]), _with_moved_copies(others["train"])),
        (wanted["validation"], others["validation"]),
        DIGIT_SHARES,
        DIGIT_LR,
        n_masks,
        progress,
    )
    return _measured(found, model, {"class": wanted["test"], "others": others["test"]})


def forget_relation(
    model: LensModel, relation: str, *, n_masks: int = 2 * N_MASKS, progress: Progress = True
) -> Edited:
    """Unlearn the facts of one relation and keep the others; as ``forget_class``, on training prompts alone.

    What is to be spared are the other facts, and prompts of four other skills.

    Args:
        model: tiny-lm, or another language model that knows the facts.
        relation: ``capital``, ``continent``, ``language``, ``currency``, ``symbol`` or ``young``.
        n_masks: Masks of the attribution.

    Returns:
        Held-out groups ``relation``, ``others`` (facts) and ``indirect objects``.

    Raises:
        UnknownName: no such relation.

    Reference:
        Shah, Ilyas, Madry, 2024, arXiv:2404.11534, section 5.2, with a relation in the place of a class.
    """
    if relation not in facts.RELATIONS:
        raise unknown_name("relation", relation, facts.RELATIONS, "lens_ablation.data.corpus.facts")
    rest = [other for other in facts.RELATIONS if other != relation]

    def asked(relations: Sequence[str], split: Split) -> Task:
        n = facts.n_prompts(split, relations)
        return tasks.facts(model, n, split=split, metric=correct_margin, relations=relations)

    wanted, others = asked([relation], "train"), asked(rest, "train")
    skills = [make(model, 200, split="train", metric=correct_margin) for make in OTHER_SKILLS]
    fitted, validation = zip(*(_in_two(task, FITTED_ON) for task in (wanted, others, *skills)), strict=True)
    found = _forgotten(
        model,
        (wanted.select(slice(40)), others.select(slice(120))),
        (fitted[0], joined(fitted[1:])),
        (validation[0], joined(validation[1:])),
        FACT_SHARES,
        FACT_LR,
        n_masks,
        progress,
    )
    groups = {
        "relation": asked([relation], "held_out"),
        "others": asked(rest, "held_out"),
        "indirect objects": tasks.ioi(model, 200, metric=correct_margin),
    }
    return _measured(found, model, groups)


def raise_worst_group(
    model: LensModel, *, n_masks: int = N_MASKS, tolerance: float = 0.05, progress: Progress = True
) -> Edited:
    """Make tiny-vit-spurious look at the digit rather than at the bar.

    Targets are training images whose bar contradicts the class, references the same images with the other bar.

    Returns:
        Held-out groups: the four pairs of class and side.

    Reference:
        Shah, Ilyas, Madry, 2024, arXiv:2404.11534, section 5.3.
    """

    def cued(group: str, n: int, seed: int, split: Split) -> Task:
        return digit_tasks.cued_digits(model, n, group=group, seed=seed, split=split)

    found = edit_in_rounds(
        model,
        cued("conflicting", 60, 0, "train"),
        cued("agreeing", 60, 0, "train"),
        _components(model),
        Coar(n_masks=n_masks),
        rounds=(20,) * 6,
        validation=(cued("conflicting", 400, 5, "train"), cued("agreeing", 400, 5, "train")),
        tolerance=tolerance,
        progress=progress,
    )
    groups = ("low-left", "high-right", "low-right", "high-left")
    return _measured(found, model, {group: cued(group, 220, 0, "held_out") for group in groups})


def remove_backdoor(
    model: LensModel, *, n_masks: int = N_MASKS, tolerance: float = 0.02, progress: Progress = True
) -> Edited:
    """Make tiny-vit-backdoor ignore its trigger.

    Targets are training images with the trigger, references the same ones without.

    Returns:
        Held-out groups ``triggered`` and ``clean``, judged by the right answer, and ``attack``: triggered images, where
        the shares count those that are read as the trigger's class.

    Reference:
        Shah, Ilyas, Madry, 2024, arXiv:2404.11534, section 5.4.
    """
    with_it, without = (
        digit_tasks.triggered_digits(model, 700, split="train", trigger=trigger) for trigger in (True, False)
    )
    found = edit_in_rounds(
        model,
        with_it.select(slice(50)),
        without.select(slice(50)),
        _components(model),
        Coar(n_masks=n_masks, ablated_fraction=0.3),
        rounds=(20,) * 4,
        validation=(with_it.select(slice(300, 700)), without.select(slice(300, 700))),
        tolerance=tolerance,
        progress=progress,
    )
    attacked = digit_tasks.triggered_digits(model, 400)
    measured = _measured(found, model, {"triggered": attacked, "clean": _all_digits(model, "held_out")})
    return _with_attack(measured, model, attacked)


def withstand_labels(
    model: LensModel, *, n_masks: int = N_MASKS, tolerance: float = 0.02, progress: Progress = True
) -> Edited:
    """Make tiny-vit-typographic look at the digit rather than at the printed label.

    Targets are training images with a wrong label, references the same ones without a label.

    Returns:
        Held-out groups ``wrong label``, ``no label`` and ``right label``, and ``attack``: images with a wrong label,
        where the shares count those that are read as the label.

    Reference:
        Shah, Ilyas, Madry, 2024, arXiv:2404.11534, section 5.5.
    """

    def labelled(label: digit_tasks.PrintedLabel, n: int, seed: int, split: Split) -> Task:
        return digit_tasks.labelled_digits(model, n, label=label, seed=seed, split=split)

    wrong, plain = labelled("wrong", 1300, 0, "train"), labelled("none", 1300, 0, "train")
    found = edit_in_rounds(
        model,
        wrong.select(slice(100)),
        plain.select(slice(100)),
        _components(model),
        Coar(n_masks=n_masks),
        rounds=(60,),
        validation=(wrong.select(slice(700, 1300)), plain.select(slice(700, 1300))),
        tolerance=tolerance,
        progress=progress,
    )
    groups = {f"{label} label".replace("none", "no"): labelled(label, 450, 1, "held_out") for label in _LABELS}
    return _with_attack(_measured(found, model, groups), model, groups["wrong label"])


_LABELS: tuple[digit_tasks.PrintedLabel, ...] = ("wrong", "none", "right")


def _forgotten(
    model: LensModel,
    attributed: tuple[Task, Task],
    fitted: tuple[Task, Task],
    validation: tuple[Task, Task],
    shares: Sequence[float],
    lr: float,
    n_masks: int,
    progress: Progress,
) -> Edit:
    """Constants under which the first examples are lost and the second are not, for what tells them apart.

    The plain ranking of zero ablation: what harms the references is for the constants to give back.
    """
    wanted, others = attributed
    task = joined([wanted, others])
    weights = attribute(model, task, _components(model), Coar(n_masks=n_masks, ablated_fraction=0.3), progress=progress)
    numbers = [round(share * len(weights.components)) for share in shares]
    by_zeros = edit(
        weights,
        model,
        task,
        target=range(wanted.n_examples),
        reference=range(wanted.n_examples, task.n_examples),
        direction="lower",
        k=numbers[-1],
        progress=progress,
    )
    return fit_edit_constants(
        by_zeros,
        model,
        *fitted,
        k=numbers,
        validation=validation,
        enough=ENOUGH,
        weight=TARGETS_COUNT * fitted[1].n_examples / fitted[0].n_examples,
        lr=lr,
        steps=STEPS,
        progress=progress,
    )


def _in_two(task: Task, share: float) -> tuple[Task, Task]:
    n = round(share * task.n_examples)
    return task.select(slice(n)), task.select(slice(n, None))


def _with_moved_copies(task: Task) -> Task:
    """Images, and copies that are moved by up to a pixel and have some noise."""
    generator = torch.Generator().manual_seed(0)
    plain = replace(task, counterfactuals=None)
    copies = [
        replace(plain, inputs=moved + NOISE * torch.randn(moved.shape, generator=generator))
        for moved in (shifted(task.inputs, 1, generator) for _ in range(MOVED))
    ]
    return joined([plain, *copies])


def _components(model: LensModel) -> list[SiteSet]:
    return [attention_neurons(model), neurons(model)]


def _all_digits(model: LensModel, split: Split) -> Task:
    return digit_tasks.digits(model, 450 if split == "held_out" else 1347, split=split)


def _places(flags: Tensor) -> Tensor:
    return flags.nonzero()[:, 0]


def _answered(model: LensModel, task: Task) -> Tensor:
    with torch.inference_mode():
        return top1(model(task.inputs), task)


def _measured(found: Edit, model: LensModel, groups: Mapping[str, Task]) -> Edited:
    effects = {name: found.measure(model, task) for name, task in groups.items()}
    return Edited(edit=found, held_out=effects, tasks=groups)


def _with_attack(edited: Edited, model: LensModel, attacked: Task) -> Edited:
    effect = edited.edit.measure(model, attacked, judge=attack_success)
    return replace(edited, held_out={**edited.held_out, "attack": effect}, tasks={**edited.tasks, "attack": attacked})


def _says_wrong_answer(logits: Tensor, batch: Task) -> Tensor:
    assert batch.wrong_answers is not None
    return (logits.argmax(dim=-1) == batch.wrong_answers.to(logits.device)).to(logits.dtype)


attack_success: Metric = as_metric(_says_wrong_answer)
"""Share of images that are read as the attacker's class, the task's wrong answer."""
