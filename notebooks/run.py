"""Execute the notebooks from top to bottom: ``python notebooks/run.py [--write] [NAME ...]``.

Fails on the first error. ``--write`` keeps the outputs (not stderr) in the notebooks, figures as plotly's JSON.
"""

import argparse
import os
import sys
import tempfile
import time
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


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="notebooks, if not all; such as quickstart")
    parser.add_argument("--write", action="store_true", help="keep the outputs")
    options = parser.parse_args()
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
    paths = [FOLDER / f"{name}.ipynb" for name in options.names] or sorted(FOLDER.glob("*.ipynb"))
    for path in paths:
        begun = time.monotonic()
        try:
            execute(path, write=options.write)
        except (CellExecutionError, ValueError, OSError) as error:
            print(f"{path.name}: {error}", file=sys.stderr)
            return 1
        print(f"{path.name}: {time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
