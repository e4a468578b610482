"""Speed side by side with the loop that one would write; run with ``make bench``."""

import time
from collections.abc import Callable

import pytest
import torch

import lens_ablation as la

REPEATS = 5


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@pytest.mark.parametrize("n_prompts", [1, 16])
def test_sweep_of_all_heads_against_a_loop_over_hooks(benchmark, n_prompts: int):
    model = la.load_model("tiny-lm")
    task, heads = la.tasks.ioi(model, n=n_prompts), la.heads(model)

    def loop() -> torch.Tensor:
        rows = []
        for site in heads:
            pairs = la.hooks(model, site, la.Zero(), task=task)
            logits = model.run_with_hooks(task.inputs, fwd_hooks=pairs, attention_mask=task.attention_mask)
            rows.append(task.score(logits))
        return torch.stack(rows)

    def sweep() -> torch.Tensor:
        return la.sweep(model, task, heads, la.Zero(), progress=False).values

    with torch.inference_mode():
        torch.testing.assert_close(sweep(), loop(), atol=1e-4, rtol=1e-4)
        ratios = sorted(seconds(loop) / seconds(sweep) for _ in range(REPEATS))
        benchmark.extra_info["times as fast as the loop (median)"] = round(ratios[REPEATS // 2], 2)
        benchmark.pedantic(sweep, rounds=3)
