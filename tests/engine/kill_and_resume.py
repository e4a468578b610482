"""A sweep over the heads of tiny-lm, killed in the middle and started again, as a transcript.

python tests/engine/kill_and_resume.py --executor processes --workers 3 --store FOLDER
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from torch import Tensor  # noqa: E402

from lens_ablation.engine.executors import run_job  # noqa: E402
from lens_ablation.engine.job import Job  # noqa: E402
from lens_ablation.engine.options import Engine  # noqa: E402
from lens_ablation.engine.store import SHARDS  # noqa: E402
from tests.engine.jobs import MarkedSweep, marked_sweep, same  # noqa: E402

Shards = dict[int, dict[str, Tensor]]

START = time.monotonic()
SECONDS_TO_WAIT = 300


def job(marks: Path, shards: int) -> MarkedSweep:
    """What is run; every start of a shard leaves a file in ``marks``."""
    marks.mkdir(parents=True, exist_ok=True)
    return marked_sweep(marks, shards)


def say(text: str) -> None:
    print(f"{time.monotonic() - START:6.1f} s  {text}", flush=True)


def finish(what: Job, engine: Engine) -> Shards:
    return dict(run_job(what, engine, lambda rows: None))


def finished(store: Path) -> dict[str, int]:
    """Shards in the store, each with the time at which it was written."""
    folder = store / SHARDS
    found = [entry for entry in folder.iterdir() if entry.name.isdecimal()] if folder.exists() else []
    return {entry.name: entry.stat().st_mtime_ns for entry in sorted(found)}


def start_and_kill(arguments: argparse.Namespace) -> None:
    """Run in a process group of its own until enough shards are finished, then SIGKILL the whole group."""
    driver = subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--driver"], cwd=ROOT, start_new_session=True)
    say(f"driver {driver.pid} started with executor={arguments.executor!r}, workers={arguments.workers}")
    latest = time.monotonic() + SECONDS_TO_WAIT
    while len(finished(arguments.store)) < arguments.kill_after:
        if driver.poll() is not None or time.monotonic() > latest:
            sys.exit(f"the driver ended with {driver.returncode} before it could be killed; give more --shards")
        time.sleep(0.02)
    os.killpg(driver.pid, signal.SIGKILL)
    say(f"SIGKILL to its process group; it ended with {driver.wait()}")


def transcript(arguments: argparse.Namespace) -> bool:
    """Kill a run, go on with it, compare; whether all is as it should be."""
    what = job(arguments.store.parent / f"{arguments.store.name}-marks", arguments.shards)
    if finished(arguments.store) or what.all_runs:
        sys.exit(f"{arguments.store} was used before; give a new --store")
    start_and_kill(arguments)
    before, begun = finished(arguments.store), what.all_runs
    say(f"in the store: {len(before)} of {arguments.shards} shards: {' '.join(str(int(name)) for name in before)}")
    say(f"shards begun: {begun}, so {begun - len(before)} were being computed (at most {arguments.workers})")
    say("the same run again")
    found = finish(what, engine(arguments))
    after = finished(arguments.store)
    say(f"finished: {len(found)} shards, {what.all_runs - begun} computed now")
    untouched = sum(after[name] == when for name, when in before.items())
    say(f"of the {len(before)} shards in the store {untouched} were left as they were")
    again = what.all_runs - arguments.shards
    say(f"computed more than once: {again} (at most one to a worker: {again <= arguments.workers})")
    with TemporaryDirectory() as marks:
        equal = same(found, finish(job(Path(marks), arguments.shards), Engine(threads=1)))
    say(f"equal bit for bit to an undisturbed serial run without a store: {equal}")
    return equal and again <= arguments.workers


def engine(arguments: argparse.Namespace) -> Engine:
    workers = None if arguments.executor == "serial" else arguments.workers
    return Engine(executor=arguments.executor, workers=workers, store=arguments.store)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executor", choices=["serial", "processes", "ray", "submitit"], default="processes")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--store", type=lambda text: Path(text).absolute(), required=True)
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--kill-after", type=int, default=7, help="finished shards after which the run is killed")
    parser.add_argument("--driver", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.basicConfig(format="         %(levelname)s %(message)s")
    if arguments.driver:
        marks = arguments.store.parent / f"{arguments.store.name}-marks"
        finish(job(marks, arguments.shards), engine(arguments))
        return
    sys.exit(0 if transcript(arguments) else 1)


if __name__ == "__main__":
    main()
