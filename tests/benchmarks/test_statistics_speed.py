"""``collect_statistics`` against plain forward passes over the same tokens; run with ``make bench``."""

import os
import subprocess
import sys

import pytest
import torch

import lens_ablation as la
from lens_ablation.data.inputs import TOKENS_PER_PASS
from lens_ablation.models.protocol import LensModel
from tests.benchmarks.table import Row, Table
from tests.benchmarks.work import gpt2

N_TOKENS = 100_000
N_TOKENS_GPT2 = int(os.environ.get("BENCH_GPT2_TOKENS", "8192"))
"""Ten minutes for 100,000 of them."""

MEMORY = """
import pathlib, resource, sys, torch, lens_ablation as la
torch.set_num_threads(1)
model, n = la.load_model("tiny-lm"), int(sys.argv[1])
sites = [la.heads(model), la.neurons(model)]
tokens = torch.randint(4, 1000, (n // 50, 50), generator=torch.Generator().manual_seed(0))
la.collect_statistics(model, tokens, sites, progress=False)
# on Linux the peak of resource counts what the parent held when it forked
status = pathlib.Path("/proc/self/status")
lines = status.read_text().splitlines() if status.exists() else []
own = [line.split()[1] for line in lines if line.startswith("VmHWM")]
print(own[0] if own else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def collect(model: LensModel, tokens: torch.Tensor) -> la.ActivationStatistics:
    return la.collect_statistics(model, tokens, [la.heads(model), la.neurons(model)], progress=False)


@pytest.mark.parametrize(("name", "n_pos", "floor"), [("tiny-lm", 50, 3.0), ("GPT-2-small shape", 128, 1.6)])
def test_statistics_of_heads_and_neurons(benchmark, table: Table, device: str, name: str, n_pos: int, floor: float):
    is_tiny = name == "tiny-lm"
    model = la.load_model("tiny-lm", device=device) if is_tiny else gpt2(device)
    n_rows = (N_TOKENS if is_tiny else N_TOKENS_GPT2) // n_pos
    tokens = torch.randint(4, 1000, (n_rows, n_pos), generator=torch.Generator().manual_seed(0))
    parts = tokens.to(device).split(TOKENS_PER_PASS // n_pos)

    def two_forwards() -> None:
        with torch.inference_mode():
            for _ in range(2):
                for part in parts:
                    model(part)

    few = tokens[:: -(-n_rows // 20)]
    with torch.inference_mode():
        _, cache = model.run_with_cache(few.to(device), names_filter=["blocks.1.mlp.hook_post"])
    expected = cache["blocks.1.mlp.hook_post"].flatten(0, 1).double().mean(0).cpu()
    found = collect(model, few)["blocks.1.mlp.hook_post"].mean
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    table.compare(
        benchmark,
        lambda: collect(model, tokens),
        two_forwards,
        work=f"statistics of heads and neurons over {n_rows * n_pos:,} tokens, {name}",
        against="two plain forward passes",
        floor=floor,
        bound="at most",
        device=device,
        rounds=3 if is_tiny else max(1, 20_000 // N_TOKENS_GPT2),
    )


def test_memory_of_statistics_does_not_grow_with_tokens(benchmark, table: Table):
    """Peak memory of whole processes, which load the same model: the least of six, as one alone varies by 5 %."""
    peaks: dict[int, float] = {}

    def measure(n_tokens: int) -> None:
        command = [sys.executable, "-c", MEMORY, str(n_tokens)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        unit = 1024 if sys.platform == "linux" else 1
        peak = int(done.stdout.split()[-1]) * unit / 2**20
        peaks[n_tokens] = min(peak, peaks.get(n_tokens, peak))

    few, many = N_TOKENS // 5, N_TOKENS
    benchmark.pedantic(lambda: measure(many), setup=lambda: measure(few), rounds=6)
    row = Row(
        work=f"memory of statistics over {many:,} tokens, tiny-lm, whole process",
        against=f"over {few:,} tokens",
        device="cpu",
        ours=peaks[many],
        theirs=peaks[few],
        ratio=peaks[many] / peaks[few],
        bound="at most",
        floor=1.03,
        unit="MiB",
    )
    benchmark.extra_info.update({"ratio": row.ratio, "MiB": peaks})
    table.keep(row)
