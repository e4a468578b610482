"""How the cost of a sweep grows, by rows in a pass, step by step, and in bfloat16; run with ``make bench``."""

from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor

import lens_ablation as la
from lens_ablation.data.task import Task
from lens_ablation.engine.options import Engine
from lens_ablation.engine.path import Path, plain
from lens_ablation.engine.size import WORKING_SET, activation_bytes
from lens_ablation.engine.variants import VariantsJob
from lens_ablation.models.protocol import LensModel
from lens_ablation.sites import SiteSet
from tests.benchmarks.table import Table, seconds_of
from tests.benchmarks.work import gpt2, job_of, loop, one_of_each_layer, prompts, sweep

REPEATS = 3


def typical(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median seconds, after a first run that does not count."""
    work()
    return median(seconds_of(work) for _ in range(repeats))


def measured(benchmark: Any, points: list[Callable[[], dict[str, float]]]) -> list[dict[str, float]]:
    """Measure all points, as one benchmark."""
    found: list[dict[str, float]] = []
    benchmark.pedantic(lambda: found.extend(point() for point in points), rounds=1)
    return found


def values_of(job: VariantsJob) -> Tensor:
    """The numbers of all shards, clean passes included."""
    return torch.cat([job.run(shard)["values"] for shard in range(len(job.plan))])


def point(model: LensModel, task: Task, sites: SiteSet, x: float) -> dict[str, float]:
    """Seconds of a sweep and of the loop; of the loop over many sites every few are timed, and scaled."""
    few = list(sites)[:: max(1, len(sites) // 8)]
    return {
        "x": x,
        "ours": typical(lambda: sweep(model, task, sites)),
        "theirs": typical(lambda: loop(model, task, few), 1) * len(sites) / len(few),
    }


def test_growth_with_sites(benchmark, table: Table):
    model = la.load_model("tiny-lm")
    neurons, task = la.neurons(model)[2], la.tasks.ioi(model, n=4)
    counts = [8, 32, 128, 512]
    points = [lambda n=n: point(model, task, la.neurons(model)[2, :n], n) for n in counts]
    assert len(neurons) == counts[-1]
    table.curves.append({"name": "sites", "unit": "neurons ablated", "points": measured(benchmark, points)})


def test_growth_with_prompts(benchmark, table: Table):
    model = la.load_model("tiny-lm")
    heads = la.heads(model)
    points = [lambda n=n: point(model, prompts(model, n, 16), heads, n) for n in (1, 4, 16, 64)]
    table.curves.append({"name": "prompts", "unit": "prompts of 16 tokens", "points": measured(benchmark, points)})


def test_growth_with_length(benchmark, table: Table):
    model = gpt2(n_layer=4, n_embd=128, n_head=8, vocab_size=1000)
    heads = la.heads(model)
    points = [lambda n=n: point(model, prompts(model, 4, n), heads, n) for n in (8, 32, 128)]
    table.curves.append(
        {"name": "length", "unit": "tokens in each of 4 prompts", "points": measured(benchmark, points)}
    )


def test_growth_with_layers(benchmark, table: Table):
    def of(n_layers: int) -> dict[str, float]:
        model = gpt2(n_layer=n_layers, n_embd=128, n_head=8, vocab_size=1000)
        return point(model, prompts(model, 8, 16), la.heads(model), n_layers)

    points = [lambda n=n: of(n) for n in (2, 4, 8, 16)]
    table.curves.append({"name": "layers", "unit": "layers of 8 heads", "points": measured(benchmark, points)})


@pytest.mark.parametrize("name", ["tiny-lm", "GPT-2-small shape"])
def test_rows_in_a_pass(benchmark, table: Table, name: str):
    """Milliseconds of a row by the number of rows in a pass, and what is chosen."""
    is_tiny = name == "tiny-lm"
    model = la.load_model("tiny-lm") if is_tiny else gpt2()
    task = prompts(model, 8 if is_tiny else 2, 16)
    # every row runs the same blocks
    sites = la.neurons(model)[2] if is_tiny else la.neurons(model)[6, :64]
    n_rows = len(sites) * task.n_examples
    sizes = [8, 32, 64, 128, 256, 512, 1024, 4096] if is_tiny else [2, 4, 8, 16, 32, 64, 128]

    def of(size: int) -> dict[str, float]:
        return {"x": size, "ours": typical(lambda: sweep(model, task, sites, batch_size=size), 2) / n_rows}

    points = measured(benchmark, [lambda size=size: of(size) for size in sizes])
    chosen = max(1, WORKING_SET["cpu"] // activation_bytes(model, task.inputs))
    table.curves.append({"name": f"rows, {name}", "unit": "rows in a pass", "points": points, "chosen": chosen})


@pytest.mark.parametrize("name", ["tiny-lm, 1 prompt", "tiny-lm, 16 prompts", "GPT-2-small shape, 16 prompts"])
def test_what_each_step_gains(benchmark, table: Table, name: str):
    """One shortcut after the other; each is on from then on."""
    is_tiny = name.startswith("tiny-lm")
    model = la.load_model("tiny-lm") if is_tiny else gpt2()
    task = prompts(model, 1 if "1 prompt" in name.split(", ")[1:] else 16, 15)
    heads = la.heads(model)
    sites = heads if is_tiny else heads.take(one_of_each_layer(heads))
    job = job_of(model, task, sites)
    found = job.path

    def seconds(path: Path) -> float:
        return typical(lambda: values_of(replace(job, path=path)))

    steps: list[tuple[str, Callable[[], float]]] = [
        ("a loop of `run_with_hooks`", lambda: typical(lambda: loop(model, task, sites))),
        ("rows with their own ablation", lambda: seconds(plain("not used"))),
        ("joining at the first ablated block", lambda: seconds(replace(found, linears=False, tail="model"))),
        ("final norm and unembedding where the metric reads", lambda: seconds(replace(found, linears=False))),
        ("untouched linear maps, last block where the metric reads", lambda: seconds(found)),
    ]
    benchmark.pedantic(
        lambda: table.steps.extend({"work": name, "step": step, "seconds": run()} for step, run in steps), rounds=1
    )


@pytest.mark.parametrize("name", ["tiny-lm", "GPT-2-small shape"])
def test_bfloat16(benchmark, table: Table, name: str):
    """Time in the model's own dtype and in bfloat16, and the difference of the numbers."""
    model = la.load_model("tiny-lm") if name == "tiny-lm" else gpt2()
    task = la.tasks.ioi(model, n=16) if name == "tiny-lm" else prompts(model, 16, 15)
    heads = la.heads(model)
    sites = heads if name == "tiny-lm" else heads.take(one_of_each_layer(heads))

    def run(dtype: torch.dtype | None) -> Tensor:
        # without the comparison that a sweep makes
        return values_of(job_of(model, task, sites, Engine(dtype=dtype)))

    half: list[float] = []
    own: list[float] = []

    def both() -> None:
        own.append(typical(lambda: run(None)))
        half.append(typical(lambda: run(torch.bfloat16)))

    benchmark.pedantic(both, rounds=1)
    difference = (run(torch.bfloat16) - run(None)).abs().max()
    table.dtypes.append(
        {
            "work": f"{len(sites)} heads, {name}, 16 prompts",
            "float32": own[0],
            "bfloat16": half[0],
            "difference": float(difference),
            "unit": task.metric.unit,
        }
    )
