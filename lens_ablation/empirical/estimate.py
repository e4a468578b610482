"""Gradients of neurons: what the probability of an answer gains per unit of each activation."""

from collections.abc import Iterable

import torch
from jaxtyping import Int
from torch import Tensor

from lens_ablation.data.task import Task
from lens_ablation.empirical.estimators import GradientEstimator, NeurGrad
from lens_ablation.empirical.gradients import NeuronGradients
from lens_ablation.empirical.question import Question
from lens_ablation.engine.options import Engine
from lens_ablation.models.protocol import LensModel
from lens_ablation.progress import Progress, progress_bar
from lens_ablation.sites import Site, SiteSet, as_site_set


def neuron_gradients(
    model: LensModel,
    task: Task,
    neurons: Site | SiteSet | Iterable[Site] | None = None,
    estimator: GradientEstimator | None = None,
    *,
    candidates: Int[Tensor, " candidate"] | Int[Tensor, "example candidate"] | None = None,
    dtype: torch.dtype = torch.float32,
    batch_size: int | None = None,
    engine: Engine | None = None,
    progress: Progress = True,
) -> NeuronGradients:
    """How the probability of each candidate answer changes with each neuron, on each example.

    The quantity is the softmax probability of the candidate where the task reads its answer: at the last real token,
    or where ``task.positions`` says; of images, the class. Only the activation at that position counts.

    Args:
        model: A TransformerLens model in evaluation mode; left exactly as it was.
        task: Examples with answers, one to each.
        neurons: ``neurons(model)``, ``neurons(model, at="pre_linear")``, or parts of them. By default all that Zhao et
            al. take for the family: the up projection of gated MLPs, ``hook_post`` of others.
        estimator: ``NeurGrad()`` by default; ``EmpiricalGradient()``, ``Gradient()``, ``IntegratedGradients()``,
            ``LogProbIncrease()``.
        candidates: Token (or class) ids ``[candidate]``, or ``[example, candidate]``. By default the answer, and the
            wrong answer if the task has some.
        dtype: Of the result's values; ``torch.bfloat16`` halves their memory.
        batch_size: Rows in a pass; chosen when ``None``.
        engine: Where and how it is run. A store is used where neurons are shifted, to go on after an interruption.
        progress: ``True`` for a bar, ``False`` for silence, or a callable given ``(done, total)``.

    Returns:
        Values ``[example, candidate, neuron]`` in probability per unit of the activation, or of its size, as the
        estimator's convention has it; ``.signed`` and ``.additive`` give either.

    Raises:
        HookDidNotFire: a hook ran a wrong number of times in a forward pass.
        ValueError: arguments do not fit together, or the result would not fit in memory.

    Reference:
        Zhao, Jiang, Yoshinaga, *Neuron Empirical Gradient*, 2025, arXiv:2412.18053.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> la.neuron_gradients(model, la.tasks.facts(model, n=8), progress=False)
        NeuronGradients(NeurGrad, signed: 8 examples, 2 candidates, 2048 neurons)
    """
    if dtype not in (torch.float32, torch.float64, torch.bfloat16):
        raise ValueError(
            f"dtype is {dtype}; take torch.float32, torch.float64 or torch.bfloat16 (in float16 changes of probability "
            "below 6e-8 are 0)"
        )
    way = NeurGrad() if estimator is None else estimator
    sites = None if neurons is None else as_site_set(neurons)
    question = Question.of(model, task, sites, candidates, batch_size, engine)
    question.require_room(dtype)
    n_examples, n_candidates, n_neurons = question.shape
    values = torch.empty(n_examples, n_candidates, n_neurons, dtype=dtype)
    activations, probabilities = torch.empty(n_examples, n_neurons), torch.empty(n_examples, n_candidates)
    outputs: list[Tensor] = []
    with progress_bar(progress, way.rows(question), f"neuron gradients: {way.name}", "row") as advance:
        for i, (rows, found) in enumerate(way.parts(question, advance)):
            if i == 0:
                activations = activations.to(found.activations)
                probabilities = probabilities.to(found.probabilities)
            values[rows] = found.values.to(dtype)
            activations[rows], probabilities[rows] = found.activations, found.probabilities
            outputs += [] if found.outputs is None else [found.outputs]
    return NeuronGradients(
        values=values,
        activations=activations,
        probabilities=probabilities,
        candidates=question.candidates,
        sites=question.sites,
        settings={
            **question.settings,
            "estimator": {"name": way.name, "class": type(way).__name__, "settings": dict(way.settings)},
            "shift": way.convention,
        },
        shifts=None if way.shifts is None else torch.from_numpy(way.shifts),
        outputs=_joined(outputs),
    )


def _joined(parts: list[Tensor]) -> Tensor | None:
    """Parts of the examples together; of one part no copy is made, as it fills much of the memory."""
    return torch.cat(parts) if len(parts) > 1 else next(iter(parts), None)
