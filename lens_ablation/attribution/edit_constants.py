"""An edit's components replaced by constants that were fitted to the edit's purpose."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_ablation.attribution.editing import ROUNDING, Edit, parts_of
from lens_ablation.components import Components
from lens_ablation.data.metrics import Metric, choices_of, kl_from_clean, top1
from lens_ablation.data.task import Task, joined
from lens_ablation.engine.options import Engine
from lens_ablation.methods.method import Method
from lens_ablation.methods.optimal import Optimal
from lens_ablation.models.protocol import LensModel
from lens_ablation.optimal.fit import fit_optimal
from lens_ablation.progress import Progress, onward, progress_bar
from lens_ablation.sites import SiteSet


def fit_edit_constants(
    edit: Edit,
    model: LensModel,
    target: Task,
    reference: Task,
    *,
    k: int | Sequence[int] | None = None,
    validation: tuple[Task, Task] | None = None,
    enough: float = 0.1,
    weight: float = 1.0,
    lr: float = 0.05,
    steps: int = 200,
    batch_size: int = 32,
    seed: int = 0,
    judge: Metric = top1,
    engine: Engine | None = None,
    progress: Progress = True,
) -> Edit:
    """The first ``k`` components of an edit, replaced together by the constants that serve the edit best.

    Found jointly by gradient descent: references are to keep what the untouched model says, and targets to lose their
    answers (to get them, if the edit raises them). What a zero or a mean would take from the references, a fitted
    constant can give back, so that fewer of them are lost.

    Of several numbers that are tried, the one is taken that costs the references least among those under which no more
    than ``enough`` of the targets keep their answers (lack them, if the edit raises them); where none gets there, the
    one that moves most targets. Of equals, the smallest.

    Args:
        edit: Which components, in their order.
        model: The model that was attributed.
        target: Examples that are to change, to fit on; with ``reference`` 50 or more.
        reference: Examples that are to stay, to fit on.
        k: How many components, or several numbers to choose from; that of the edit when ``None``.
        validation: Other target and reference examples to judge and choose on; the fitted ones when ``None``.
        enough: Share of the targets that need not move.
        weight: How much the loss of a target counts beside that of a reference.
        lr: As in ``fit_optimal``.
        steps: Most steps of a descent.
        batch_size: Examples in a step.
        seed: Draws splits and batches.
        judge: Which examples count as answered.
        engine: As in ``fit_optimal``.
        progress: ``True`` for a bar, ``False`` for silence, or a callable given ``(done, total)`` steps.

    Returns:
        An edit of these components alone, with ``Optimal`` constants, that ``bake`` takes like any other; its ``scan``
        holds all numbers that were tried.

    Raises:
        ValueError: there are too few examples, or ``k`` is no number of the edit's components.

    Reference:
        Shah, Ilyas, Madry, 2024, arXiv:2404.11534, section 5 (editing by ablation); Li and Janson, 2024,
        arXiv:2409.09951 (constants). Fitting constants to an edit is our own.

    Example:
        >>> import torch, lens_ablation as la
        >>> model = la.load_model("tiny-vit")
        >>> task = la.tasks.digits(model, n=60).with_metric(la.metrics.correct_margin)
        >>> found = la.attribute(model, task, la.neurons(model), la.Coar(n_masks=8), progress=False)
        >>> is_three = task.answers == 3
        >>> rows = {"target": is_three.nonzero()[:, 0], "reference": (~is_three).nonzero()[:, 0]}
        >>> edit = la.edit(found, model, task, **rows, direction="lower", k=20, progress=False)
        >>> parts = [task.select(chosen) for chosen in rows.values()]
        >>> la.fit_edit_constants(edit, model, *parts, steps=5, progress=False).methods[0].name
        'Optimal'
    """
    tried = _numbers(edit, k)
    if not 0 <= enough <= 1:
        raise ValueError(f"enough is a share of the targets, between 0 and 1, got {enough}")
    fitted_on = _marked(target, reference)
    groups = {"target": target, "reference": reference}
    if validation is not None:
        groups |= {"validation target": validation[0], "validation reference": validation[1]}
    found: list[Edit] = []
    with progress_bar(progress, len(tried) * steps, "constants of an edit", "step") as advance:
        for one in tried:
            sets = [sites for sites, _ in parts_of(edit.components, edit.flags(one)[0], edit.methods)]
            constants = fit_optimal(
                model,
                fitted_on,
                sets,
                joint=True,
                loss=_purpose(edit.direction == "lower", weight),
                positions="all",
                lr=lr,
                steps=steps,
                batch_size=batch_size,
                evaluate_every=max(1, min(20, steps)),
                patience=5,
                seed=seed,
                engine=None if engine is None else engine.part(f"constants-{one}"),
                progress=onward(advance),
            )
            replaced = _replaced(edit, one, sets, Optimal(constants), judge)
            found.append(
                replace(
                    replaced,
                    effects={name: replaced.measure(model, part, judge=judge) for name, part in groups.items()},
                )
            )
    prefix = "" if validation is None else "validation "
    best = min(found, key=lambda one: _badness(one, prefix, enough))
    chosen_on = "given" if len(found) == 1 else "attributed" if validation is None else "validation"
    return replace(best, scan=_scan(found, prefix), settings={**best.settings, "k_chosen_on": chosen_on})


def _numbers(edit: Edit, k: int | Sequence[int] | None) -> list[int]:
    """How many components are tried, from the fewest on."""
    numbers = [edit.k] if k is None else [k] if isinstance(k, int) else sorted(set(k))
    if not numbers:
        raise ValueError("k is an empty sequence; give a number of components, or several")
    wrong = [number for number in numbers if not 1 <= number <= len(edit.order)]
    if wrong:
        raise ValueError(f"k must lie in 1..{len(edit.order)}, got {wrong[0]}")
    return numbers


def _replaced(edit: Edit, k: int, sets: Sequence[SiteSet], method: Method, judge: Metric) -> Edit:
    """The first ``k`` components of an edit alone, by another method."""
    return replace(
        edit,
        components=Components(tuple(sets)),
        scores=edit.scores[torch.from_numpy(np.flatnonzero(edit.flags(k)[0]))],
        order=np.arange(k),
        k=k,
        methods=(method,) * len(sets),
        settings={
            **edit.settings,
            "judge": judge.name,
            "constants": dict(method.settings),
            "chosen_from": len(edit.components),
        },
    )


def _badness(fitted: Edit, prefix: str, enough: float) -> tuple[float, float]:
    """Targets that are left beyond what is enough, then what the references lose."""
    target, reference = (fitted.effects[f"{prefix}{name}"] for name in ("target", "reference"))
    left = target.share_after if fitted.direction == "lower" else 1 - target.share_after
    return max(0.0, left - enough - ROUNDING), reference.share_before - reference.share_after


def _scan(found: Sequence[Edit], prefix: str) -> pd.DataFrame:
    """Shares of targets and references under each number of components, and under none."""
    target, reference = ([one.effects[f"{prefix}{name}"] for one in found] for name in ("target", "reference"))
    tolerance = float(str(found[0].settings["tolerance"]))
    return pd.DataFrame(
        {
            "k": [0, *(one.k for one in found)],
            "target": [target[0].share_before, *(one.share_after for one in target)],
            "reference": [reference[0].share_before, *(one.share_after for one in reference)],
            "spares_reference": [
                True,
                *(one.share_after >= one.share_before - tolerance - ROUNDING for one in reference),
            ],
        }
    )


def _marked(target: Task, reference: Task) -> Task:
    """Both groups as one task; of a target the answer is listed as wrong too, of a reference another one."""
    parts = []
    for task, is_target in ((target, True), (reference, False)):
        answers = task.answers.reshape(task.n_examples, -1)[:, :1]
        other = (answers == 0).long()
        parts.append(replace(task, wrong_answers=answers if is_target else other, counterfactuals=None, spans={}))
    return joined(parts)


def _purpose(is_lowered: bool, weight: float) -> Metric:
    """Loss in nats: of references KL from the untouched model, of targets that of their answers, or of all others.

    KL says more of a reference than its answer does, which the untouched model gives with near certainty.
    """

    def loss(scores: Float[Tensor, "batch target d_vocab"], batch: Task) -> Float[Tensor, "batch target"]:
        log_p = scores.log_softmax(dim=-1)
        choices = choices_of(batch.answers, batch).to(scores.device)
        is_answer = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        flags = (choices >= 0).expand(-1, scores.shape[1], -1)
        is_answer.scatter_(2, choices.clamp(min=0).expand(-1, scores.shape[1], -1), flags)
        right = log_p.masked_fill(~is_answer, -torch.inf).logsumexp(dim=2)
        wrong = log_p.masked_fill(is_answer, -torch.inf).logsumexp(dim=2)
        assert batch.wrong_answers is not None
        first = batch.answers.reshape(batch.n_examples, -1)[:, 0]
        is_target = (batch.wrong_answers.reshape(batch.n_examples, -1)[:, 0] == first).to(scores.device)[:, None]
        wanted = -weight * (wrong if is_lowered else right)
        return torch.where(is_target, wanted, kl_from_clean.fn(scores, batch))

    name = f"edit loss ({'lower' if is_lowered else 'raise'}, targets count {weight:g})"
    return Metric(name, "nats", loss, higher_is_better=False, needs=("wrong_answers", "clean_logits"))
