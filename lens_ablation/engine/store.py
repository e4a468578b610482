"""The folder that keeps the finished shards of one job."""

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

from lens_ablation.engine.job import Job, Tensors
from lens_ablation.errors import DamagedFile, StoreMismatch
from lens_ablation.files import read_folder, write_folder

FORMAT = "lens-ablation-store"
VERSION = 1
PLAN = "plan.json"
SHARDS = "shards"
FILE_KIND = "shard"

STALE_SECONDS = 3600.0
"""Age past which a temporary folder belongs to a writer that was killed, and to no run that goes on now."""

_LONGEST_VALUE = 60
_MOST_FIELDS = 8
_FIX = "Choose another folder, or delete this one to start anew."

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Store:
    """Finished shards of one job, each a folder that is there whole or not at all.

    Attributes:
        path: The folder.
        plan: Digest of the job's plan, which every shard carries.
    """

    path: Path
    plan: str

    def folder(self, shard: int) -> Path:
        """Where a shard is kept."""
        return self.path / SHARDS / f"{shard:06d}"

    def write(self, shard: int, tensors: Mapping[str, Shaped[Tensor, "..."]]) -> None:
        """Keep a finished shard.

        Raises:
            OSError: the disk is full, or the folder may not be written.
        """
        write_folder(self.folder(shard), FILE_KIND, tensors, {"shard": shard, "plan": self.plan})

    def read(self, shard: int) -> Tensors:
        """Tensors of a finished shard.

        Raises:
            DamagedFile: the shard was cut or changed, or is one of another job.
            FileNotFoundError: the shard is not finished.
        """
        tensors, settings = read_folder(self.folder(shard), FILE_KIND)
        if settings["plan"] != self.plan or settings["shard"] != shard:
            raise DamagedFile(f"{self.folder(shard)} is another shard, or one of another job")
        return dict(tensors)

    def find(self, shard: int, *, warn: bool = False) -> Tensors | None:
        """Tensors of a finished shard, ``None`` where it is missing or damaged."""
        try:
            return self.read(shard)
        except FileNotFoundError:
            return None
        except DamagedFile as error:
            if warn:
                log.warning("shard %d is computed again: %s", shard, error)
            return None

    def listed(self) -> set[int]:
        """Shards that have a folder, which may be a damaged one."""
        with suppress(FileNotFoundError):
            return {int(name) for name in os.listdir(self.path / SHARDS) if name.isdecimal()}
        return set()


def open_store(path: str | Path, job: Job) -> Store:
    """The store of a job in a folder, which is made where it does not exist.

    Args:
        path: A new or empty folder, or the store of the same job.
        job: Whose shards it keeps.

    Raises:
        StoreMismatch: the folder is the store of another job, or no store at all; nothing in it is touched.
        OSError: the folder cannot be written.
    """
    folder = Path(path).expanduser().absolute()
    wanted = _plan(job)
    found = _read_plan(folder)
    if found is None:
        _write_plan(folder, wanted)
        found = _read_plan(folder)
    if _canonical(found) != _canonical(wanted):
        raise StoreMismatch(_differences(folder, found, wanted))
    _remove_leftovers(folder / SHARDS)
    return Store(folder, hashlib.sha256(_canonical(wanted).encode()).hexdigest())


def _plan(job: Job) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "lens_ablation": version("lens-ablation"),
        "identity": dict(job.identity),
        "shards": list(job.shards),
    }


def _canonical(plan: object) -> str:
    """The same text for the same plan; text, since NaN would not equal itself."""
    return json.dumps(plan, sort_keys=True)


def _read_plan(folder: Path) -> dict[str, Any] | None:
    """The plan of a store, ``None`` in a folder that is still to become one."""
    if folder.exists() and not folder.is_dir():
        raise StoreMismatch(f"{folder} is a file. Choose another folder")
    try:
        plan = json.loads((folder / PLAN).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        foreign = [name for name in _names(folder) if not _is_temporary(name)]
        if foreign:
            raise StoreMismatch(
                f"{folder} holds other things ({', '.join(foreign[:3])}) and no {PLAN}, so it is no store. {_FIX}"
            ) from None
        return None
    except (ValueError, RecursionError) as error:
        raise StoreMismatch(f"{folder / PLAN} is not JSON ({error}). {_FIX}") from error
    if not isinstance(plan, dict) or plan.get("format") != FORMAT:
        raise StoreMismatch(f"{folder / PLAN} was not written by lens_ablation. {_FIX}")
    return plan


def _write_plan(folder: Path, plan: Mapping[str, Any]) -> None:
    text = json.dumps(plan, indent=1).encode()
    new = folder / f".{PLAN}.{uuid.uuid4().hex}.new"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        new.write_bytes(text)
        os.rename(new, folder / PLAN)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write {folder / PLAN}: {error.strerror}. Choose a folder that may be written and has room",
        ) from error
    finally:
        with suppress(OSError):
            new.unlink()


def _names(folder: Path) -> list[str]:
    with suppress(FileNotFoundError, NotADirectoryError):
        return sorted(os.listdir(folder))
    return []


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith((".new", ".old"))


def _remove_leftovers(shards: Path) -> None:
    """Temporary folders of writers that were killed; young ones may be those of another run on this store."""
    for name in _names(shards):
        if _is_temporary(name):
            with suppress(OSError):
                if time.time() - (shards / name).stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(shards / name)


def _differences(folder: Path, found: object, wanted: object) -> str:
    """What distinguishes two plans, field by field."""
    old, new = dict(_leaves(found)), dict(_leaves(wanted))
    fields = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    shown = [_change(name, old.get(name, "absent"), new.get(name, "absent")) for name in fields[:_MOST_FIELDS]]
    more = f"; {len(fields) - _MOST_FIELDS} more fields differ" if len(fields) > _MOST_FIELDS else ""
    return f"{folder} keeps the shards of another run: {'; '.join(shown)}{more}. {_FIX}"


def _leaves(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Fields of nested mappings by dotted name, each value as its JSON."""
    if isinstance(value, Mapping) and (value or not name):
        for key in value:
            yield from _leaves(value[key], f"{name}.{key}" if name else str(key))
    else:
        yield name, json.dumps(value, sort_keys=True)


def _change(name: str, old: str, new: str) -> str:
    same = next((place for place, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), 0)
    return f"{name} was {_short(old, same)} and is {_short(new, same)}"


def _short(text: str, same: int) -> str:
    """A long text from a little before the place where it differs."""
    if len(text) <= _LONGEST_VALUE:
        return text
    start = max(0, min(same - _LONGEST_VALUE // 3, len(text) - _LONGEST_VALUE))
    end = start + _LONGEST_VALUE
    return f"{'...' if start else ''}{text[start:end]}{'...' if end < len(text) else ''}"
