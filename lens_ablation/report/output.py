"""Output folders and files that appear whole or not at all."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARKER = "lens-ablation.json"
"""Lies in every folder that ``whole_folder`` made, and says that it may be replaced."""


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A new folder that takes the name ``path`` when the block ends well, and is gone when it does not.

    It is made on entering, so that a place that cannot be written is known before any work is done. A folder that
    was made here before is replaced; so is an empty one.

    Raises:
        FileExistsError: ``path`` is a file, or a folder with other things in it.
        OSError: the folder cannot be made there.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from lens_ablation.report.output import whole_folder
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     with whole_folder(f"{parent}/run") as folder:
        ...         _ = (folder / "notes.txt").write_text("done")
        ...     sorted(file.name for file in Path(parent, "run").iterdir())
        ['lens-ablation.json', 'notes.txt']
    """
    target = Path(path).expanduser().absolute()
    _require_replaceable(target)
    new = target.with_name(f".{target.name}.{uuid.uuid4().hex}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        new.mkdir()
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write {target}: {error.strerror}. Choose a folder that may be written"
        ) from error
    try:
        (new / MARKER).write_text(json.dumps({"format": "lens-ablation-output"}), encoding="utf-8")
        yield new
        _publish(new, target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_whole(path: str | Path, text: str) -> Path:
    """Write a text file under a temporary name and give it its own when all of it is there.

    Raises:
        OSError: it cannot be written.
    """
    target = Path(path).expanduser().absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.{uuid.uuid4().hex}.new")
    try:
        new.write_text(text, encoding="utf-8")
        os.replace(new, target)
    finally:
        new.unlink(missing_ok=True)
    return target


def _require_replaceable(target: Path) -> None:
    if target.is_dir():
        held = sorted(entry.name for entry in target.iterdir())
        if held and MARKER not in held:
            raise FileExistsError(
                f"{target} holds other things ({', '.join(held[:3])}) and is not replaced. Choose a new folder"
            )
    elif target.exists():
        raise FileExistsError(f"{target} is a file. Choose another folder, or remove it")


def _publish(new: Path, target: Path) -> None:
    _require_replaceable(target)
    old = new.with_suffix(".old")
    with suppress(FileNotFoundError):
        os.rename(target, old)
    try:
        os.rename(new, target)
    except OSError:
        with suppress(OSError):
            os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)
