"""Ridge regression of outputs on masks, all examples and all penalties at once; run with ``make bench``."""

import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from lens_ablation.attribution import regression
from lens_ablation.attribution.regression import PENALTIES, LinearFit, fit_ridge
from lens_ablation.components import draw_removals
from lens_ablation.engine.removals import Packed
from tests.benchmarks.table import Row, Table

N_MASKS, N_COMPONENTS, N_EXAMPLES = 10_000, 2_300, 200
N_PENALTIES = len(PENALTIES) - 1
"""The last one leaves the mean alone, and costs nothing."""

WORK = f"ridge, {N_MASKS:,} masks x {N_COMPONENTS:,} components x {N_EXAMPLES} examples, {N_PENALTIES} penalties"
MOST_SECONDS = 10.0

MEMORY = """
import pathlib, resource, sys, torch
from tests.benchmarks.test_regression_speed import fit_ridge, problem
torch.set_num_threads(1)
removed, outputs = problem()
if sys.argv[1] == "fit":
    fit_ridge(removed, outputs)
# on Linux the peak of resource counts what the parent held when it forked
status = pathlib.Path("/proc/self/status")
lines = status.read_text().splitlines() if status.exists() else []
own = [line.split()[1] for line in lines if line.startswith("VmHWM")]
print(own[0] if own else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@cache
def problem() -> tuple[Packed, Tensor]:
    """Masks that ablate a tenth, and outputs that are linear in them with noise."""
    generator = torch.Generator().manual_seed(0)
    removed = draw_removals(N_MASKS, N_COMPONENTS, 0.1, "bernoulli", seed=0)
    weights = torch.randn(N_EXAMPLES, N_COMPONENTS, generator=generator)
    noise = 20 * torch.randn(N_MASKS, N_EXAMPLES, generator=generator)
    return Packed.of(removed), torch.from_numpy(~removed).float() @ weights.T + noise


def design() -> Tensor:
    """The same masks as numbers, ``[mask, component]``, 1 where a component is kept."""
    removed, _ = problem()
    return torch.from_numpy(~removed.flags(np.arange(N_MASKS))).float()


@pytest.fixture
def one_penalty(monkeypatch: pytest.MonkeyPatch) -> LinearFit:
    """The regression with a fixed penalty."""
    with monkeypatch.context() as patched:
        patched.setattr(regression, "PENALTIES", (1.0,))
        return fit_ridge(*problem())


def test_against_scikit_learn(benchmark, table: Table, one_penalty: LinearFit):
    """Two examples and one penalty are timed, and scaled to all: each fit costs the same."""
    from sklearn.linear_model import Ridge

    x, y = design().numpy(), problem()[1].numpy()
    penalty, few = float(one_penalty.penalties[0]), 2

    def ridge(example: int) -> np.ndarray:
        return Ridge(alpha=penalty).fit(x, y[:, example]).coef_

    for example in range(few):
        np.testing.assert_allclose(one_penalty.weights[example].numpy(), ridge(example), atol=1e-4)
    table.compare(
        benchmark,
        lambda: fit_ridge(*problem()),
        lambda: [ridge(example) for example in range(few)],
        scale=N_EXAMPLES * N_PENALTIES / few,
        work=WORK,
        against=f"scikit-learn's Ridge, one example and penalty after the other ({few} fits, scaled)",
        floor=100,
        rounds=3,
    )


def test_against_normal_equations(benchmark, table: Table, one_penalty: LinearFit):
    """One example is timed with all penalties, and scaled to all examples."""
    x, y = design(), problem()[1]

    def solve(example: int, penalties: list[float]) -> Tensor:
        centred = x - x.mean(dim=0)
        gram, moment = centred.T @ centred, centred.T @ (y[:, example] - y[:, example].mean())
        eye = torch.eye(N_COMPONENTS)
        factors = (torch.linalg.cholesky(gram + penalty * eye) for penalty in penalties)
        return torch.stack([torch.cholesky_solve(moment[:, None], factor)[:, 0] for factor in factors])

    unit = float(one_penalty.penalties[0])
    torch.testing.assert_close(one_penalty.weights[0], solve(0, [unit])[0], atol=1e-4, rtol=0)
    table.compare(
        benchmark,
        lambda: fit_ridge(*problem()),
        lambda: solve(0, [share * unit for share in PENALTIES[:-1]]),
        scale=N_EXAMPLES,
        work=WORK,
        against="normal equations in torch, one example after the other (1 example, scaled)",
        floor=30,
        rounds=3,
    )


def test_in_ten_seconds(benchmark, table: Table):
    benchmark.pedantic(lambda: fit_ridge(*problem()), setup=lambda: (problem(), None)[1], rounds=3)
    seconds = min(benchmark.stats.stats.data)
    row = Row(
        work=WORK,
        against="ten seconds",
        device="cpu",
        ours=seconds,
        theirs=MOST_SECONDS,
        ratio=seconds / MOST_SECONDS,
        bound="at most",
        floor=1.0,
    )
    benchmark.extra_info.update({"ratio": row.ratio, "seconds": row.ours})
    table.keep(row)


def test_memory(benchmark, table: Table):
    """Peak memory of whole processes, which make the same problem."""
    peaks: dict[str, float] = {}

    def measure(what: str) -> None:
        done = subprocess.run([sys.executable, "-c", MEMORY, what], check=True, capture_output=True, text=True)
        unit = 1024 if sys.platform == "linux" else 1
        peaks[what] = int(done.stdout.split()[-1]) * unit / 2**20

    benchmark.pedantic(lambda: measure("fit"), setup=lambda: measure("problem only"), rounds=1)
    row = Row(
        work=f"memory of {WORK}, whole process",
        against="the same process without the regression",
        device="cpu",
        ours=peaks["fit"],
        theirs=peaks["problem only"],
        ratio=peaks["fit"] / peaks["problem only"],
        bound="at most",
        floor=2.0,
        unit="MiB",
    )
    benchmark.extra_info.update({"ratio": row.ratio, "MiB": peaks})
    table.keep(row)
