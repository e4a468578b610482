"""Sweeps, and masks over many sites, against the loop that one would write; run with ``make bench``."""

import numpy as np
import pytest
import torch
from torch import Tensor

import lens_ablation as la
from lens_ablation.engine.removals import Ablation, Packed
from lens_ablation.engine.variants import run_variants
from tests.benchmarks.products import matmul_rate, products_of
from tests.benchmarks.table import Table
from tests.benchmarks.work import cost_of, flags_cost, gpt2, loop, one_of_each_layer, prompts, sweep

LOOP = "a loop of run_with_hooks"
N_MASKS = 1000


def test_all_heads_of_gpt2(benchmark, table: Table, device: str):
    """The loop is timed on one head of each layer, and scaled to all: each of its passes costs the same."""
    model = gpt2(device)
    task, heads = prompts(model, 16, 15), la.heads(model)
    few = one_of_each_layer(heads)
    chosen = heads.take(few)
    found = {}
    counts = products_of(lambda: found.update(sweep=sweep(model, task, heads)))
    torch.testing.assert_close(found["sweep"][few], loop(model, task, chosen), atol=1e-4, rtol=1e-4)
    table.compare(
        benchmark,
        lambda: sweep(model, task, heads),
        lambda: loop(model, task, chosen),
        scale=len(heads) / len(few),
        work=f"all {len(heads)} heads, GPT-2-small shape, 16 prompts x 15 tokens",
        against=f"{LOOP} (one head of each layer, scaled)",
        floor=2.4 if device == "cpu" else 20,
        device=device,
        rounds=3,
        limit=cost_of(model, task, heads).work / matmul_rate(counts, device),
    )


def test_work_of_a_sweep_over_its_time(benchmark, table: Table):
    """Necessary operations a second, over those of the same matrix products on their own."""
    model = gpt2()
    task, heads = prompts(model, 16, 15), la.heads(model)
    counts, work = products_of(lambda: sweep(model, task, heads)), cost_of(model, task, heads).work
    limits: list[float] = []

    def products() -> None:
        limits.append(work / matmul_rate(counts))

    benchmark.pedantic(lambda: sweep(model, task, heads), setup=products, rounds=3)
    table.keep_efficiency(benchmark, limits, work="144-head sweep, GPT-2-small shape: necessary operations", floor=0.6)


@pytest.mark.parametrize(("n_prompts", "floor"), [(1, 8), (16, 2.5)])
def test_all_heads_of_tiny_lm(benchmark, table: Table, device: str, n_prompts: int, floor: float):
    model = la.load_model("tiny-lm", device=device)
    task, heads = la.tasks.ioi(model, n=n_prompts), la.heads(model)
    name = "1 prompt" if n_prompts == 1 else f"{n_prompts} prompts"
    torch.testing.assert_close(sweep(model, task, heads), loop(model, task, heads), atol=1e-4, rtol=1e-4)
    counts = products_of(lambda: sweep(model, task, heads))
    table.compare(
        benchmark,
        lambda: sweep(model, task, heads),
        lambda: loop(model, task, heads),
        work=f"all {len(heads)} heads, tiny-lm, {name}",
        against=LOOP,
        floor=floor,
        device=device,
        rounds=16,
        limit=cost_of(model, task, heads).work / matmul_rate(counts, device),
    )


def test_neurons_of_a_middle_layer_of_tiny_lm(benchmark, table: Table, device: str):
    model = la.load_model("tiny-lm", device=device)
    task, neurons = la.tasks.ioi(model, n=4), la.neurons(model)[2]
    torch.testing.assert_close(sweep(model, task, neurons), loop(model, task, neurons), atol=1e-4, rtol=1e-4)
    counts = products_of(lambda: sweep(model, task, neurons))
    table.compare(
        benchmark,
        lambda: sweep(model, task, neurons),
        lambda: loop(model, task, neurons),
        work=f"{len(neurons)} neurons of layer 2, tiny-lm, 4 prompts",
        against=LOOP,
        floor=5,
        device=device,
        rounds=8,
        limit=cost_of(model, task, neurons).work / matmul_rate(counts, device),
    )


def test_random_masks_over_all_layers_of_tiny_vit(benchmark, table: Table, device: str):
    model = la.load_model("tiny-vit", device=device)
    task, neurons = la.tasks.digits(model, n=40), la.neurons(model)
    flags = np.random.default_rng(0).random((N_MASKS, len(neurons))) < 0.1
    ablations = [Ablation(neurons, Packed.of(flags), la.Zero())]
    n_layers = int(model.cfg.n_layers)
    keep = torch.from_numpy(~flags).float().reshape(N_MASKS, n_layers, -1).to(device)
    images = task.inputs.to(device)

    def one_by_one() -> Tensor:
        rows = []
        with torch.inference_mode():
            for mask in keep:
                hooks = [
                    (f"blocks.{layer}.mlp.hook_post", lambda activation, hook, kept=kept: activation * kept)
                    for layer, kept in enumerate(mask)
                ]
                rows.append(task.score(model.run_with_hooks(images, fwd_hooks=hooks)).cpu())
        return torch.stack(rows)

    def together() -> Tensor:
        return run_variants(model, task, ablations).values

    torch.testing.assert_close(together(), one_by_one(), atol=1e-4, rtol=1e-4)
    counts = products_of(together)
    table.compare(
        benchmark,
        together,
        one_by_one,
        work=f"{N_MASKS:,} random masks over all {len(neurons)} neurons, tiny-vit, 40 images",
        against="a masked forward pass for each mask",
        floor=2,
        device=device,
        rounds=3,
        limit=flags_cost(model, task, ablations).work / matmul_rate(counts, device),
    )
