"""Folders of tensors with a JSON manifest: written whole or not at all, and checked when they are read."""

import hashlib
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Shaped
from safetensors import SafetensorError
from torch import Tensor

from lens_ablation.errors import DamagedFile

FORMAT = "lens-ablation"
VERSION = 1
TENSORS = "tensors.safetensors"
MANIFEST = "manifest.json"
MANIFEST_LIMIT = 256 * 2**20
"""Most bytes of a manifest; a larger file was not written here."""

_ATTEMPTS = 100
_FIX = "Delete the folder and make it again, or restore it from a copy."


class _Fields(dict[str, Any]):
    """Fields of a file; a missing one makes the file a damaged one."""

    def __init__(self, folder: Path, fields: Mapping[str, Any]):
        super().__init__(fields)
        self._folder = folder

    def __missing__(self, key: str) -> Any:
        raise DamagedFile(f"{self._folder} has no {key!r}; it was changed since it was written. {_FIX}")


def write_folder(
    path: str | Path, kind: str, tensors: Mapping[str, Shaped[Tensor, "..."]], settings: Mapping[str, object]
) -> Path:
    """Write tensors and settings as one folder, under a temporary name that is renamed when all is there.

    A folder written here before is replaced; of several that write the same one at once the last wins.

    Args:
        path: The folder; missing parents are made.
        kind: What it holds, such as ``activation-statistics``.
        tensors: Tensors by name, on any device.
        settings: Plain JSON values.

    Raises:
        OSError: the folder cannot be written, or ``path`` is something that was not written here.
        TypeError: a setting is no JSON value.

    Example:
        >>> import tempfile, torch
        >>> from lens_ablation.files import read_folder, write_folder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     where = write_folder(f"{folder}/ones", "example", {"ones": torch.ones(3)}, {"seed": 0})
        ...     read_folder(where, "example")[1]["seed"]
        0
    """
    target = Path(path).expanduser().absolute()
    data = safetensors.torch.save({name: _packed(tensor) for name, tensor in tensors.items()})
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "settings": dict(settings),
    }
    text = json.dumps(manifest, indent=1).encode()
    new = target.with_name(f".{target.name}.{uuid.uuid4().hex}.new")
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            new.mkdir()
            (new / TENSORS).write_bytes(data)
            (new / MANIFEST).write_bytes(text)
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot write {target}: {error.strerror}. Choose a folder that may be written and has room",
            ) from error
        publish(new, target, own={TENSORS, MANIFEST})
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return target


def _packed(tensor: Tensor) -> Tensor:
    """A copy on the CPU that shares memory with nothing."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def publish(new: Path, target: Path, own: Collection[str]) -> None:
    """Give the finished folder ``new`` its name; a folder there that holds nothing but ``own`` files goes.

    Raises:
        FileExistsError: ``target`` is a file, or holds other things.
        OSError: other processes keep replacing it.
    """
    for _ in range(_ATTEMPTS):
        with suppress(OSError):
            os.rename(new, target)
            return
        _require_replaceable(target, own)
        old = new.with_suffix(".old")
        placed = False
        try:
            with suppress(OSError):
                os.rename(target, old)
            with suppress(OSError):
                os.rename(new, target)
                placed = True
        finally:
            if not placed:
                with suppress(OSError):  # in vain where another process has filled the place
                    os.rename(old, target)
            shutil.rmtree(old, ignore_errors=True)
        if placed:
            return
    raise OSError(f"cannot write {target}: other processes replace it all the time. Write to another folder")


def _require_replaceable(target: Path, own: Collection[str]) -> None:
    try:
        foreign = sorted(set(os.listdir(target)) - set(own))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise FileExistsError(f"{target} is a file. Choose another folder, or remove it") from None
    if foreign:
        raise FileExistsError(
            f"{target} holds other things ({', '.join(foreign[:3])}) and is not replaced. Choose a new folder"
        )


def read_folder(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and settings of a folder that ``write_folder`` wrote, all of it checked.

    Args:
        path: The folder.
        kind: What it must hold.

    Raises:
        DamagedFile: the folder is truncated or changed, holds another kind, or was written by something else.
        FileNotFoundError: there is no such folder.
    """
    folder = Path(path).expanduser().absolute()
    state = _state(folder)
    while True:
        try:
            return _read(folder, kind)
        except (DamagedFile, OSError):
            # another process may have replaced the folder between two reads
            time.sleep(0.02)
            before, state = state, _state(folder)
            if state == before:
                raise


def _state(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _read(folder: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {folder}")
    manifest = _manifest(folder, kind)
    path = folder / TENSORS
    size = _size(path)
    if size != manifest["bytes"]:
        raise DamagedFile(f"{path} has {size} bytes and should have {manifest['bytes']}; it was cut. {_FIX}")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
        raise DamagedFile(f"{path} does not have the sha256 of its manifest; its content was changed. {_FIX}")
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise DamagedFile(f"{path} is no safetensors file ({error}). {_FIX}") from error
    return _Fields(folder, tensors), _Fields(folder, manifest["settings"])


def _size(path: Path) -> int:
    try:
        found = path.lstat()
    except OSError as error:
        raise DamagedFile(f"{path} is missing, so this was not written by lens_ablation. {_FIX}") from error
    if not stat.S_ISREG(found.st_mode):
        raise DamagedFile(f"{path} is a link or a device, and should be an ordinary file. {_FIX}")
    return found.st_size


def _manifest(folder: Path, kind: str) -> dict[str, Any]:
    path = folder / MANIFEST
    if _size(path) > MANIFEST_LIMIT:
        raise DamagedFile(f"{path} is larger than any manifest that is written here. {_FIX}")
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is not JSON ({error}). {_FIX}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DamagedFile(f"{path} was not written by lens_ablation. {_FIX}")
    if manifest.get("version") != VERSION:
        raise DamagedFile(
            f"{path} has format version {manifest.get('version')!r} and this lens_ablation reads {VERSION}. "
            "Use the release that wrote it, or make it again."
        )
    if manifest.get("kind") != kind:
        raise DamagedFile(f"{folder} holds {manifest.get('kind')!r}, not {kind!r}. Give another folder.")
    types = {"sha256": str, "bytes": int, "settings": dict}
    wrong = [field for field, wanted in types.items() if type(manifest.get(field)) is not wanted]
    if wrong:
        raise DamagedFile(f"{path} has no proper {wrong[0]!r}; it was changed by hand. {_FIX}")
    return manifest


@contextmanager
def reading(folder: str | Path) -> Iterator[None]:
    """Report whatever is wrong with the content of a result's files as ``DamagedFile``."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if isinstance(error, DamagedFile):
            raise
        raise DamagedFile(
            f"the result in {folder} was changed after it was written: {error}. Make it again."
        ) from error


def require_shape(name: str, tensor: Shaped[Tensor, "..."], shape: tuple[int, ...]) -> None:
    """Refuse a stored tensor of another shape than the rest of the result implies.

    Raises:
        ValueError: the shape is another.
    """
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)} and should have {shape}")
