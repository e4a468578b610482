"""Executors: the same shards whoever computes them, however often and wherever they are killed."""

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lens_ablation.engine.executors import processes, run_job
from lens_ablation.engine.executors.worker import WorkerKilled
from lens_ablation.engine.job import Job
from lens_ablation.engine.options import Engine
from lens_ablation.engine.store import SHARDS, open_store
from lens_ablation.errors import HookDidNotFire, MissingExtra, StoreMismatch, WorkersDied
from lens_ablation.files import TENSORS
from tests.engine.jobs import Stubborn, ToyJob, same

ROOT = Path(__file__).parents[2]
ROWS = (3, 1, 4, 1, 5, 9, 2, 6)
WORKERS = 2
Shards = dict[int, dict[str, Tensor]]


@pytest.fixture(params=["processes", "ray", "submitit"])
def executor(request: pytest.FixtureRequest) -> str:
    if request.param != "processes":
        pytest.importorskip(request.param)
    return request.param


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray cluster for several tests."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    yield
    ray.shutdown()


def job_in(folder: Path, rows: tuple[int, ...] = ROWS, **options: Any) -> ToyJob:
    marks = folder / "marks"
    marks.mkdir(exist_ok=True)
    return ToyJob(rows=rows, marks=marks, **options)


def finish(job: Job, engine: Engine) -> Shards:
    """Every shard of a job, each once, with every row told."""
    told: list[int] = []
    found: Shards = {}
    for shard, tensors in run_job(job, engine, told.append):
        assert shard not in found
        found[shard] = tensors
    assert sum(told) == sum(job.shards)
    return found


def undisturbed(rows: tuple[int, ...] = ROWS) -> Shards:
    """The shards of a serial run."""
    with TemporaryDirectory() as marks:
        return finish(ToyJob(rows=rows, marks=Path(marks)), Engine())


# the same numbers


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.integers(1, 5), min_size=0, max_size=6).map(tuple),
    stops=st.lists(st.integers(0, 4), max_size=3),
    damage=st.lists(st.integers(0, 5), max_size=2),
)
def test_serial_runs_that_are_stopped_go_on(
    tmp_path_factory: pytest.TempPathFactory, rows: tuple[int, ...], stops: list[int], damage: list[int]
):
    folder = tmp_path_factory.mktemp("run")
    job, engine = job_in(folder, rows), Engine(store=folder / "store")
    for stop in stops:
        going = run_job(job, engine, lambda rows: None)
        for _, _ in zip(range(stop), going, strict=False):
            pass
        going.close()
    damaged = 0
    for shard in set(damage):
        file = folder / "store" / SHARDS / f"{shard:06d}" / TENSORS
        if file.exists():
            file.write_bytes(file.read_bytes()[:-3])
            damaged += 1
    assert same(finish(job, engine), undisturbed(rows))
    assert job.all_runs == len(rows) + damaged


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.integers(1, 5), min_size=1, max_size=8).map(tuple),
    workers=st.integers(1, 3),
    keep=st.booleans(),
    stop=st.none() | st.integers(0, 3),
)
def test_processes_give_the_numbers_of_a_serial_run(
    tmp_path_factory: pytest.TempPathFactory, rows: tuple[int, ...], workers: int, keep: bool, stop: int | None
):
    folder = tmp_path_factory.mktemp("run")
    job = job_in(folder, rows)
    engine = Engine(executor="processes", workers=workers, store=folder / "store" if keep else None)
    if stop is not None:
        going = run_job(job, engine, lambda rows: None)
        for _, _ in zip(range(stop), going, strict=False):
            pass
        going.close()
    assert same(finish(job, engine), undisturbed(rows))


@pytest.mark.parametrize("keep", [False, True])
def test_a_running_ray_cluster_is_used_and_left_alone(tmp_path: Path, cluster: None, keep: bool):
    import ray

    job = job_in(tmp_path, ballast=torch.rand(300_000))
    engine = Engine(executor="ray", workers=2, store=tmp_path / "store" if keep else None)
    assert same(finish(job, engine), undisturbed())
    assert ray.is_initialized()
    assert job.all_runs == len(ROWS)
    with pytest.raises(ValueError, match=r"Ray runs already, and cluster=.* would not be heard"):
        finish(job_in(tmp_path), Engine(executor="ray", cluster={"num_gpus": 1}))


def test_a_store_goes_from_executor_to_executor(tmp_path: Path, cluster: None):
    pytest.importorskip("submitit")
    job = job_in(tmp_path)
    for name, stop in (("serial", 2), ("ray", 4), ("processes", 6)):
        going = run_job(job, Engine(executor=name, store=tmp_path / "store"), lambda rows: None)
        for _, _ in zip(range(stop), going, strict=False):
            pass
        going.close()
    store = tmp_path / "store"
    # the processes may have finished everything before they were stopped: something must be left
    shutil.rmtree(store / SHARDS / "000000")
    assert same(finish(job, Engine(executor="submitit", workers=2, store=store)), undisturbed())
    assert not list((store / "submitit").iterdir())
    assert same(finish(job, Engine(executor="submitit", store=store)), undisturbed())


def test_settings_of_torch_reach_the_workers(tmp_path: Path):
    torch.set_default_dtype(torch.float64)
    try:
        found = finish(job_in(tmp_path), Engine(executor="processes", workers=2))
        expected = undisturbed()
    finally:
        torch.set_default_dtype(torch.float32)
    assert found[0]["values"].dtype == torch.float64
    assert same(found, expected)


def test_threads_are_set_for_the_shard_and_restored(tmp_path: Path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        job = job_in(tmp_path)
        for engine, threads in (
            (Engine(), 2),
            (Engine(threads=3), 3),
            (Engine(store=tmp_path / "store"), 1),
            (Engine(executor="processes", workers=2), 1),
            (Engine(executor="processes", workers=2, threads=2), 2),
        ):
            for _, tensors in run_job(job, engine, lambda rows: None):
                assert tensors["threads"] == threads
                assert torch.get_num_threads() == 2
        with pytest.raises(Stubborn):
            finish(job_in(tmp_path, fails=(0,)), Engine(threads=3))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_rows_of_the_store_are_told_at_once(tmp_path: Path):
    job, engine = job_in(tmp_path), Engine(store=tmp_path / "store")
    going = run_job(job, engine, lambda rows: None)
    next(going), next(going)
    going.close()
    told: list[int] = []
    going = run_job(job, engine, told.append)
    next(going), next(going)
    assert told == [3, 1]


# faults of shards and workers


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", ["serial", "processes", "ray", "submitit"])
def test_an_exception_of_a_shard_is_raised_as_it_was(
    tmp_path: Path, name: str, keep: bool, request: pytest.FixtureRequest
):
    if name == "submitit" and not keep:
        pytest.skip("submitit needs a store")
    if name == "submitit":
        pytest.importorskip("submitit")
    if name == "ray":
        request.getfixturevalue("cluster")
    job = job_in(tmp_path, fails=(3,))
    engine = Engine(executor=name, workers=None if name == "serial" else 2, store=tmp_path / "store" if keep else None)
    with pytest.raises(Stubborn, match="shard 3: no such luck") as caught:
        finish(job, engine)
    assert caught.value.shard == 3
    if name != "serial":
        assert "raised by a worker in shard 3" in caught.value.__notes__[0]
        assert "jobs.py" in caught.value.__notes__[0]
    if keep:
        kept = open_store(tmp_path / "store", job).listed()
        assert kept
        assert 3 not in kept


class NoHook(ToyJob):
    """A job whose hook does not fire."""

    def run(self, shard: int, advance: object = None) -> dict[str, Tensor]:
        raise HookDidNotFire("blocks.0.hook_z", 1, 0)


class Secret(ToyJob):
    """A job whose exception cannot be pickled at all."""

    def run(self, shard: int, advance: object = None) -> dict[str, Tensor]:
        class HereError(ValueError):
            lock: threading.Lock

        error = HereError("the reason")
        error.lock = threading.Lock()
        raise error


def test_exceptions_that_pickle_badly_still_say_what_happened(tmp_path: Path):
    engine = Engine(executor="processes", workers=2)
    with pytest.raises(HookDidNotFire, match="fired 0 times") as caught:
        finish(NoHook(rows=(1,), marks=tmp_path), engine)
    assert (caught.value.name, caught.value.expected, caught.value.got) == ("blocks.0.hook_z", 1, 0)
    with pytest.raises(RuntimeError, match="HereError: the reason"):
        finish(Secret(rows=(1,), marks=tmp_path), engine)


def test_a_job_that_cannot_travel_says_so(tmp_path: Path):
    job = job_in(tmp_path, ballast=None)
    object.__setattr__(job, "lock", threading.Lock())
    with pytest.raises(TypeError, match=r"cannot be sent to other processes .*executor='serial'"):
        finish(job, Engine(executor="processes", workers=2))


def test_a_killed_worker_is_replaced(
    tmp_path: Path, executor: str, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
):
    if executor == "ray":
        request.getfixturevalue("cluster")
    job = job_in(tmp_path, deadly=(4,))
    with caplog.at_level(logging.WARNING):
        found = finish(job, Engine(executor=executor, workers=2, store=tmp_path / "store"))
    assert same(found, undisturbed())
    assert "shards that are left" in caplog.text
    assert job.all_runs <= len(ROWS) + 2
    assert job.runs(4) == 2


def test_a_shard_that_kills_every_worker_ends_the_run_after_the_others(tmp_path: Path):
    rows = (2, 1, 3)
    job = job_in(tmp_path, rows, fatal=(1,))
    store = tmp_path / "store"
    with pytest.raises(WorkersDied) as caught:
        finish(job, Engine(executor="processes", workers=1, store=store))
    text = str(caught.value)
    assert "3 times in a row" in text
    assert "memory ran out" in text
    assert f"2 of 3 shards are kept in {store}; the same call goes on from there" in text
    assert open_store(store, job).listed() == {0, 2}
    assert same(finish(job_in(tmp_path, rows), Engine(store=store)), undisturbed(rows))


def test_without_a_store_dead_workers_say_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def dies(shards: list[int]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        asked.append(shards)
        raise WorkerKilled("killed")
        yield

    asked: list[list[int]] = []
    monkeypatch.setattr(processes, "workers", lambda payload, work, engine: nullcontext(dies))
    with pytest.raises(WorkersDied, match=r"Nothing was kept; give Engine\(store='FOLDER'\)"):
        finish(job_in(tmp_path, (1, 1, 1)), Engine(executor="processes", workers=2))
    assert asked == [[0, 1, 2], [2, 0, 1], [1, 2, 0]]


@pytest.mark.parametrize("name", ["serial", "processes"])
def test_damaged_shards_are_computed_again(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture):
    job, engine = job_in(tmp_path), Engine(executor=name, store=tmp_path / "store")
    finish(job, engine)
    store = open_store(tmp_path / "store", job)
    (store.folder(2) / TENSORS).write_bytes(b"")
    data = bytearray((store.folder(5) / TENSORS).read_bytes())
    data[-1] ^= 1
    (store.folder(5) / TENSORS).write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert same(finish(job, engine), undisturbed())
    assert "shard 2 is computed again" in caplog.text
    assert "shard 5 is computed again" in caplog.text
    assert job.all_runs == len(ROWS) + 2
    assert store.find(2) is not None


def test_the_store_of_another_job_is_refused_before_anything_runs(tmp_path: Path):
    finish(job_in(tmp_path), Engine(store=tmp_path / "store"))
    other = ToyJob(rows=ROWS, marks=tmp_path / "marks", seed=1)
    with pytest.raises(StoreMismatch, match=r"identity\.seed was 0 and is 1"):
        run_job(other, Engine(store=tmp_path / "store"), lambda rows: None)


@pytest.mark.parametrize("extra", ["ray", "submitit"])
def test_a_missing_extra_is_named(tmp_path: Path, extra: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'lens-ablation\[{extra}\]'") as caught:
        run_job(job_in(tmp_path), Engine(executor=extra, store=tmp_path / "store"), lambda rows: None)
    assert caught.value.name == extra
    assert not (tmp_path / "store").exists()


FULL_DISK = """
import sys
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from lens_ablation.engine.executors import run_job
from lens_ablation.engine.options import Engine
from tests.engine.jobs import ToyJob
disk, marks, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
job = ToyJob(rows=(20,) * 12, marks=marks)
finished = 0
try:
    for shard, tensors in run_job(job, Engine(executor=name, store=disk / "store"), lambda rows: None):
        finished += 1
except OSError as error:
    print(error.errno, error)
print("finished", finished)
kept = [shard.name for shard in (disk / "store" / "shards").iterdir()]
print("temporary", [name for name in kept if not name.isdecimal()])
(disk / "filler").unlink()
print("then", len(list(run_job(job, Engine(store=disk / "store"), lambda rows: None))))
print("runs", job.all_runs - finished)
"""


@pytest.mark.parametrize("name", ["serial", "processes"])
def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path: Path, name: str):
    disk, marks = tmp_path / "disk", tmp_path / "marks"
    disk.mkdir(), marks.mkdir()
    mount = f"mount -t tmpfs -o size=400k tmpfs {disk} && head -c 260000 /dev/zero > {disk}/filler && exec "
    command = ["unshare", "-rm", "sh", "-c", mount + '"$0" "$@"']
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let users mount a small disk")
    run = subprocess.run(
        [*command, sys.executable, "-c", FULL_DISK, str(disk), str(marks), name],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert f"{errno.ENOSPC} " in run.stdout
    assert "cannot write" in run.stdout
    assert "has room" in run.stdout
    assert "temporary []" in run.stdout
    assert "then 12" in run.stdout


def test_a_failing_write_stops_the_run_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    job, engine = job_in(tmp_path), Engine(store=tmp_path / "store")
    written = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if "000003" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"cannot write .*000003: No space left on device") as caught:
        finish(job, engine)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path / "store" / SHARDS)) == ["000000", "000001", "000002"]
    assert same(finish(job, engine), undisturbed())
    assert job.all_runs == len(ROWS) + 1


# faults of the driver


def start_driver(folder: Path, executor: str, rows: tuple[int, ...], seconds: float) -> subprocess.Popen[bytes]:
    workers = None if executor == "serial" else WORKERS
    arguments = (rows, str(folder / "marks"), str(folder / "store"), executor, workers, seconds)
    code = f"from tests.engine.jobs import drive; drive(*{arguments!r})"
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for_shards(folder: Path, count: int, driver: subprocess.Popen[bytes]) -> None:
    # a Ray cluster can take a minute to start on a busy machine
    latest = time.monotonic() + 150
    while len([name for name in _listed(folder / "store" / SHARDS) if name.isdecimal()]) < count:
        if driver.poll() is None and time.monotonic() >= latest:
            driver.kill()
        if driver.poll() is not None:
            _, errors = driver.communicate()
            pytest.fail(f"the driver ended with {driver.returncode}: {errors.decode()}")
        time.sleep(0.02)


def _listed(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.exists() else []


def descendants(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(driver.pid).children(recursive=True)


def test_a_driver_killed_in_the_middle_loses_a_shard_per_worker_at_most(tmp_path: Path, executor: str):
    rows = tuple(range(1, 16))
    job = job_in(tmp_path, rows)
    driver = start_driver(tmp_path, executor, rows, seconds=0.2)
    wait_for_shards(tmp_path, 4, driver)
    workers = descendants(driver)
    worker_names = {worker.pid: worker.name() for worker in workers}
    driver.kill()
    driver.communicate()
    again = Engine(store=tmp_path / "store")
    if executor != "ray":  # which takes long to start
        again = Engine(executor=executor, workers=2, store=tmp_path / "store")
    assert same(finish(job, again), undisturbed(rows))
    assert job.all_runs <= len(rows) + WORKERS
    # agents of Ray look after their parent only now and then
    _, alive = psutil.wait_procs([worker for worker in workers if "Agent" not in worker_names[worker.pid]], timeout=20)
    assert not alive


def test_ctrl_c_ends_all_processes_and_keeps_what_is_finished(tmp_path: Path, executor: str):
    rows = (1,) * 12
    job = job_in(tmp_path, rows)
    driver = start_driver(tmp_path, executor, rows, seconds=0.4)
    wait_for_shards(tmp_path, 3, driver)
    workers = descendants(driver)
    assert workers
    driver.send_signal(signal.SIGINT)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == -signal.SIGINT or driver.returncode == 1
    assert b"KeyboardInterrupt" in errors
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive
    kept = open_store(tmp_path / "store", job).listed()
    assert len(kept) >= 3
    before = job.all_runs
    assert same(finish(job, Engine(store=tmp_path / "store")), undisturbed(rows))
    assert job.all_runs - before == len(rows) - len(kept)


def test_two_runs_on_one_store_do_not_disturb_each_other(tmp_path: Path):
    rows = (1,) * 10
    job = job_in(tmp_path, rows)
    drivers = [start_driver(tmp_path, "serial", rows, seconds=0.1) for _ in range(2)]
    for driver in drivers:
        _, errors = driver.communicate(timeout=90)
        assert driver.returncode == 0, errors.decode()
    before = job.all_runs
    assert same(finish(job, Engine(store=tmp_path / "store")), undisturbed(rows))
    assert job.all_runs == before


# options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"workers": 0, "executor": "ray"}, "workers is 0; give 1 or more"),
        ({"workers": 2}, "take executor='processes'"),
        ({"threads": -1}, "threads is -1; give 1 or more"),
        ({"threads": True}, "threads is True"),
        ({"executor": "submitit"}, r"store='FOLDER'"),
        ({"cluster": {"num_gpus": 1}}, "cluster holds options of ray and submitit"),
        ({"dtype": torch.int32}, "torch.float32 or torch.bfloat16"),
        ({"clean_bytes": -1}, "0 to keep nothing"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        Engine(**options)


def test_an_executor_that_does_not_exist_is_refused():
    engine = Engine()
    object.__setattr__(engine, "executor", "dask")  # past the check of types that tests switch on
    with pytest.raises(ValueError, match="choose one of serial, processes, ray, submitit"):
        engine.__post_init__()
