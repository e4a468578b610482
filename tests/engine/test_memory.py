"""What happens when a pass holds too many rows, and how many it is given."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import lens_ablation as la
from lens_ablation.engine import size
from lens_ablation.engine.memory import run_in_chunks
from lens_ablation.engine.part import Part
from tests.engine.one_at_a_time import a_task
from tests.families import Family, build

pytestmark = pytest.mark.model
LINUX = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
WINDOWS = "[enforce fail at alloc_cpu.cpp:116] data. DefaultCPUAllocator: not enough memory"


@pytest.fixture(scope="module")
def gpt2() -> Family:
    return build("gpt2")


class Machine:
    """Runs that fail above a number of variants, and what they were given."""

    def __init__(self, most: int, error: Exception):
        self.most, self.error = most, error
        self.tried: list[int] = []
        self.done: list[int] = []

    def __call__(self, chunk: slice) -> None:
        n = chunk.stop - chunk.start
        self.tried.append(n)
        if n > self.most:
            raise self.error
        self.done += range(chunk.start, chunk.stop)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(LINUX),
        RuntimeError(WINDOWS),
        RuntimeError("std::bad_alloc"),
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
    ],
    ids=["linux", "windows", "bad_alloc", "cuda", "python"],
)
def test_size_is_halved_until_it_fits(error: Exception):
    machine = Machine(3, error)
    run_in_chunks(17, 16, machine, fixed=False)
    assert machine.done == list(range(17))
    assert machine.tried == [16, 8, 4, *[2] * 8, 1]


def test_nothing_is_halved_where_nothing_fails():
    machine = Machine(100, MemoryError())
    run_in_chunks(10, 4, machine, fixed=False)
    assert (machine.tried, machine.done) == ([4, 4, 2], list(range(10)))
    run_in_chunks(0, 4, machine, fixed=False)
    assert machine.tried == [4, 4, 2]


def test_a_size_that_the_caller_chose_is_kept():
    machine = Machine(3, RuntimeError(LINUX))
    with pytest.raises(RuntimeError, match="can't allocate"):
        run_in_chunks(10, 8, machine, fixed=True)
    assert machine.tried == [8]


def test_one_row_that_does_not_fit_is_an_error():
    machine = Machine(0, RuntimeError(LINUX))
    with pytest.raises(RuntimeError, match="can't allocate"):
        run_in_chunks(10, 8, machine, fixed=False)
    assert machine.tried == [8, 4, 2, 1]


def test_other_errors_are_not_taken_for_lack_of_memory():
    machine = Machine(3, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        run_in_chunks(10, 8, machine, fixed=False)
    assert machine.tried == [8]


@pytest.mark.parametrize("batch_size", [None, 12])
def test_passes_that_run_out_of_memory_give_right_numbers(
    gpt2: Family, batch_size: int | None, monkeypatch: pytest.MonkeyPatch
):
    task, heads = a_task(gpt2), la.heads(gpt2.model)
    expected = la.sweep(gpt2.model, task, heads, la.Zero(), progress=False).values
    scores, tried, told = Part.scores, [], []

    def short_of_memory(self: Part, flags: Any) -> torch.Tensor:
        tried.append(len(flags[0]))
        if len(flags[0]) > 2:
            raise RuntimeError(LINUX)
        return scores(self, flags)

    monkeypatch.setattr(Part, "scores", short_of_memory)
    options: Any = {"batch_size": batch_size, "progress": lambda done, total: told.append(done)}
    if batch_size is None:
        found = la.sweep(gpt2.model, task, heads, la.Zero(), **options).values
        assert tried[0] >= len(heads)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
        assert told[-1] == len(heads) * task.n_examples
    else:
        with pytest.raises(RuntimeError, match="can't allocate"):
            la.sweep(gpt2.model, task, heads, la.Zero(), **options)
        assert tried == [4]


SHORT_OF_MEMORY = """
import logging, resource, sys
import psutil, torch
torch.set_num_threads(1)
import lens_ablation as la
from lens_ablation.engine import size
from tests.families import build

logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
family = build("gpt2")
inputs = family.inputs(8, 32)
task = la.Task(inputs=inputs, answers=torch.arange(8))
neurons, method = la.neurons(family.model), la.Constant(0.3)
expected = la.sweep(family.model, task, neurons, method, batch_size=64, progress=False).values
size.WORKING_SET["cpu"], size.ALWAYS_FREE = 2**40, 2**60
resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 12 * 2**20, resource.RLIM_INFINITY))
try:
    la.sweep(family.model, task, neurons, method, batch_size=8 * 144, progress=False)
except RuntimeError as error:
    print("refused:", error)
found = la.sweep(family.model, task, neurons, method, progress=False).values
torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
print("equal", len(neurons))
"""


def test_a_process_without_memory_halves_its_passes_unless_their_size_was_given():
    if sys.platform != "linux":
        pytest.skip("limits of address space are those of Linux")
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", SHORT_OF_MEMORY]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    refused, halved = ran.stdout.find("refused: "), ran.stdout.find("out of memory at")
    assert -1 < refused < halved
    assert "equal 144" in ran.stdout


def test_rows_in_a_pass_shrink_with_free_memory(gpt2: Family, monkeypatch: pytest.MonkeyPatch):
    inputs = gpt2.inputs(4, 32)
    per_row = size.activation_bytes(gpt2.model, inputs)
    assert per_row == 32 * 4 * 32 * 4  # tokens x 4 d_model x bytes; heads x tokens are fewer
    wanted = size.rows_in_pass(gpt2.model, inputs)
    assert wanted == size.WORKING_SET["cpu"] // per_row
    monkeypatch.setattr(size, "free_bytes", lambda device: 2 * size.ALIVE * per_row * 10)
    assert size.rows_in_pass(gpt2.model, inputs) == wanted  # so few bytes are not asked for
    monkeypatch.setattr(size, "ALWAYS_FREE", 0)
    assert size.rows_in_pass(gpt2.model, inputs) == 8
    monkeypatch.setattr(size, "free_bytes", lambda device: 1)
    assert size.rows_in_pass(gpt2.model, inputs) == 1


def test_attention_sets_the_size_of_long_rows(gpt2: Family):
    short, long = (torch.zeros(1, n, dtype=torch.int64) for n in (8, 512))
    assert size.activation_bytes(gpt2.model, short) == 8 * 128 * 4
    assert size.activation_bytes(gpt2.model, long) == 4 * 512 * 512 * 4


def test_free_memory_is_within_the_limit_of_the_process(monkeypatch: pytest.MonkeyPatch):
    import resource

    cpu = torch.device("cpu")
    assert 0 < size.free_bytes(cpu) <= psutil.virtual_memory().total
    used = psutil.Process().memory_info().vms
    monkeypatch.setattr(resource, "getrlimit", lambda which: (used + 2**20, used + 2**20))
    assert size.free_bytes(cpu) <= 2**21
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1, 1))
    assert size.free_bytes(cpu) == 1
