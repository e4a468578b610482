"""Edits in several rounds, each of which attributes what the ones before have left."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack

import numpy as np
import torch

from lens_ablation.ablation import ablate
from lens_ablation.attribution.attribute import attribute, methods_of
from lens_ablation.attribution.attribution import Attribution
from lens_ablation.attribution.editing import (
    Edit,
    Ranking,
    finished_edit,
    first_of,
    groups_of,
    parts_of,
    ranked,
    welch_scores,
)
from lens_ablation.attribution.strategy import Attributor
from lens_ablation.attribution.walk import Direction
from lens_ablation.components import as_components
from lens_ablation.data.metrics import Metric, top1
from lens_ablation.data.task import Task, joined
from lens_ablation.methods.method import Method
from lens_ablation.models.protocol import LensModel
from lens_ablation.progress import Progress
from lens_ablation.sites import SiteSet


def edit_in_rounds(
    model: LensModel,
    target: Task,
    reference: Task,
    sites: Iterable[SiteSet],
    attributor: Attributor,
    *,
    rounds: Sequence[int],
    direction: Direction = "raise",
    k: int | None = None,
    validation: tuple[Task, Task] | None = None,
    tolerance: float = 0.02,
    skipping: int | None = None,
    ranking: Ranking = "welch",
    judge: Metric = top1,
    method: Method | Sequence[Method] | None = None,
    progress: Progress = True,
) -> Edit:
    """An edit whose components are chosen some at a time, each time by an attribution of the ablated model.

    Weights hold near the model that was attributed. Where many components must go, those that take over when the
    first ones are gone show only in another attribution. How many of all are ablated is chosen at the end, as in
    ``edit``; the predicted effects are those of the first attribution.

    Args:
        model: A TransformerLens model; left exactly as it was.
        target: Examples whose metric is to change.
        reference: Examples whose metric is to stay.
        sites: The components, one set of each kind.
        attributor: How they are attributed.
        rounds: How many components each round adds.
        direction: As in ``edit``, like the other options.

    Raises:
        ValueError: as ``edit``, or the rounds add more components than there are.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-vit-backdoor")
        >>> with_it, without = (la.tasks.triggered_digits(model, n=20, trigger=yes) for yes in (True, False))
        >>> coar = la.Coar(n_masks=8, ablated_fraction=0.3)
        >>> sites = [la.attention_neurons(model), la.neurons(model)]
        >>> found = la.edit_in_rounds(model, with_it, without, sites, coar, rounds=(20, 20), k=40, progress=False)
        >>> found.effects["target"].measured > 2
        True
    """
    task = joined([target, reference])
    at = target.n_examples
    rows = groups_of(range(at), range(at, task.n_examples), task.n_examples)
    components = as_components(list(sites), model)
    methods = methods_of(method, components)
    if not rounds or min(rounds) < 1 or sum(rounds) > len(components):
        raise ValueError(f"rounds must add 1 to {len(components)} components in all, got {tuple(rounds)}")
    order, rest = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    first: Attribution | None = None
    scores = torch.zeros(len(components))
    for added in rounds:
        with ExitStack() as ablated:
            for part, how in parts_of(components, first_of(order, [len(order)], len(components))[0], methods):
                ablated.enter_context(ablate(model, part, how))
            found = attribute(model, task, components, attributor, method=methods, progress=progress)
        scores = welch_scores(found.weights, rows["target"], rows["reference"], ranking)
        by_score = ranked(scores, direction)
        left = by_score[~np.isin(by_score, order)]
        order, rest = np.concatenate([order, left[:added]]), left[added:]
        first = first or found
    assert first is not None
    return finished_edit(
        first,
        model,
        task,
        rows,
        scores,
        np.concatenate([order, rest]),
        direction=direction,
        k=k,
        validation=validation,
        tolerance=tolerance,
        judge=judge,
        methods=methods,
        engine=None,
        progress=progress,
        settings={"ranking": ranking, "rounds": list(rounds)},
        largest=sum(rounds),
        skipping=skipping,
    )
