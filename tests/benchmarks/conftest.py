"""What the benchmarks share: all cores, one table at the end, and the machine that it was measured on."""

import json
import os
import platform
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
import torch

from tests.benchmarks.table import Table, text

TABLE = pytest.StashKey[Table]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench-table", type=Path, help="write what the benchmarks measured into this JSON file")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TABLE] = Table()


@pytest.fixture
def all_cores() -> Iterator[int]:
    """Torch threads on all cores that this process may use; tests have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(cores())
    yield cores()
    torch.set_num_threads(before)


@pytest.fixture
def table(request: pytest.FixtureRequest, all_cores: int) -> Table:
    """Where a benchmark puts what it measured."""
    return request.config.stash[TABLE]


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NO_GPU)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    table = config.stash[TABLE]
    if not table.rows and not table.curves:
        return
    terminalreporter.section("benchmarks")
    about = machine()
    for line in [*(f"{name}: {value}" for name, value in about.items()), "", *text(table.rows)]:
        terminalreporter.write_line(line)
    path = config.getoption("--bench-table")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": about, **vars(table)}, indent=1) + "\n", encoding="utf-8")
        terminalreporter.write_line(f"\nwritten to {path}")


def machine() -> dict[str, str]:
    """The machine and the versions that numbers were measured with."""
    packages = ("torch", "transformers", "transformer-lens", "numpy")
    return {
        "processor": processor(),
        "cores": str(cores()),
        "threads": f"{cores()} torch threads",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "versions": ", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
        ),
        "date": date.today().isoformat(),
    }


def processor() -> str:
    """The model name of the processor, as far as the system tells."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
