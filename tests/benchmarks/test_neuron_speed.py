"""Gradients of all neurons in one pass, and shifted neurons against a loop of ``run_with_hooks``."""

import time

import torch
from torch import Tensor

import lens_ablation as la
from tests.benchmarks.table import Row, Table

N_PROMPTS, STRIDE, PART = 50, 8, 64
"""Prompts; every eighth neuron, 256 in all; variants (of 5,120) that the loop runs, spread over all of them."""


def one_after_another(model, task: la.Task, ids: Tensor, variants: list[tuple[la.Site, float]]) -> Tensor:
    """What one would write: for each neuron and shift a hook at the last token, all prompts in one pass."""
    rows, last = torch.arange(task.n_examples), task.answer_positions[:, 0]
    mask = task.attention_mask.long()
    found = []
    with torch.inference_mode():
        for site, amount in variants:

            def shift(activation: Tensor, hook, unit=site.unit, amount=amount) -> Tensor:
                changed = activation.clone()
                changed[rows, last, unit] += amount * activation[rows, last, unit].sign()
                return changed

            logits = model.run_with_hooks(
                task.inputs, fwd_hooks=[(site.hook_name, shift)], attention_mask=mask, use_cache=False
            )
            found.append(logits[rows, last].softmax(dim=-1).gather(1, ids))
    return torch.stack(found)


def test_shifts_of_256_neurons_of_tiny_lm(benchmark, table: Table):
    """The same shifts of the same neurons, same probabilities; the loop runs a part of the variants, scaled."""
    model = la.load_model("tiny-lm")
    task = la.tasks.facts(model, n=N_PROMPTS)
    sites = la.neurons(model)[:, ::STRIDE]
    way = la.EmpiricalGradient(2.0, 0.2)

    def ours() -> la.NeuronGradients:
        return la.neuron_gradients(model, task, sites, way, progress=False)

    measured = ours()
    places = [(i, j) for i in range(len(sites)) for j in range(len(way.shifts))]
    chosen = places[:: len(places) // PART]
    every = list(sites)
    variants = [(every[i], float(way.shifts[j])) for i, j in chosen]
    expected = one_after_another(model, task, measured.candidates, variants)
    for (i, j), value in zip(chosen, expected, strict=True):
        # float32, and matrix products of other shapes
        torch.testing.assert_close(measured.outputs[:, :, i, j], value, atol=5e-6, rtol=1e-4)
    table.compare(
        benchmark,
        ours,
        lambda: one_after_another(model, task, measured.candidates, variants),
        scale=len(places) / len(variants),
        work=f"empirical gradients of {len(sites)} neurons, {len(way.shifts)} shifts, {N_PROMPTS} prompts, tiny-lm",
        against=f"run_with_hooks, a neuron and shift at a time ({len(variants)} of {len(places):,}, scaled)",
        floor=5,
        device="cpu",
        rounds=3,
    )


def test_all_neurons_of_tiny_lm_within_thirty_seconds(benchmark, table: Table):
    model = la.load_model("tiny-lm")
    task = la.tasks.facts(model, n=200, split="train")
    seconds: list[float] = []

    def run() -> None:
        start = time.perf_counter()
        found = la.neuron_gradients(model, task, progress=False)
        seconds.append(time.perf_counter() - start)
        assert found.values.shape == (200, 2, 2048)

    benchmark.pedantic(run, rounds=1)
    row = Row(
        work="NeurGrad of 2,048 neurons, 2 candidates, 200 prompts, tiny-lm",
        against="thirty seconds",
        device="cpu",
        ours=seconds[0],
        theirs=30.0,
        ratio=seconds[0] / 30.0,
        bound="at most",
        floor=1.0,
    )
    table.keep(row)
