"""Execute the notebooks from top to bottom: ``python notebooks/run.py [--write] [NAME ...]``.

Fails on the first error. ``--write`` keeps the outputs (not stderr) in the notebooks, figures as plotly's JSON.
"""

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).resolve().parent
LARGEST = 1_000_000
"""Bytes of a notebook with its outputs."""


def execute(path: Path, *, write: bool) -> None:
    """Run one notebook in an empty folder.

    Raises:
        CellExecutionError: a cell failed.
        ValueError: the notebook is too large to be kept with its outputs.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}})
        client.execute()
    if not write:
        return
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    text = nbformat.writes(notebook)
    if len(text.encode()) > LARGEST:
        raise ValueError(f"{path.name} has {len(text) / 1e6:.1f} MB with its outputs; show less")
    path.write_text(text + "\n", encoding="utf-8")


def _timed(path: Path, *, write: bool) -> float:
    begun = time.monotonic()
    execute(path, write=write)
    return time.monotonic() - begun


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="notebooks, if not all; such as quickstart")
    parser.add_argument("--write", action="store_true", help="keep the outputs")
    options = parser.parse_args()
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
    paths = [FOLDER / f"{name}.ipynb" for name in options.names] or sorted(FOLDER.glob("*.ipynb"))
    # two at a time, with one thread each: more slow each other on a machine of two cores
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(max_workers=2) as workers:
        running = {path: workers.submit(_timed, path, write=options.write) for path in paths}
        for path, found in running.items():
            try:
                print(f"{path.name}: {found.result():.0f} s")
            except (CellExecutionError, ValueError, OSError) as error:
                print(f"{path.name}: {error}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
