"""Rows of anybody's data: a dataset, a name on the hub, local files or a list of texts."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from datasets.exceptions import DatasetsError

from lens_ablation.errors import DamagedFile, unknown_name

Rows = Dataset | IterableDataset

Source = str | Path | Sequence[str] | Rows | DatasetDict | IterableDatasetDict
"""What builders read: a dataset, a hub name, a local file or folder, or texts."""

_FORMATS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".txt": "text"}


def is_source(data: object) -> TypeGuard[Source]:
    """Whether ``data`` is something that ``open_rows`` reads."""
    if isinstance(data, str | Path | Dataset | IterableDataset | DatasetDict | IterableDatasetDict):
        return True
    return isinstance(data, list | tuple) and bool(data) and all(isinstance(item, str) for item in data)


def is_on_hub(source: Source) -> bool:
    """Whether ``source`` would be streamed from the hub, perhaps without end."""
    return isinstance(source, str) and not Path(source).exists()


def open_rows(source: Source, *, split: str = "train", text_column: str = "text") -> Rows:
    """The rows of ``source``; files and datasets of the hub are read as they are needed.

    Args:
        source: A dataset; texts; a Parquet, JSON, CSV or text file (one text to a line); a folder of such
            files, or one written by ``Dataset.save_to_disk``; else the name of a dataset on the hub.
        split: Which part of a dataset that has several.
        text_column: Name of the column that texts given as a list make.

    Raises:
        ValueError: there is no such file, dataset or split.
    """
    if isinstance(source, DatasetDict | IterableDatasetDict):
        return _part(source, split)
    if isinstance(source, Dataset | IterableDataset):
        return source
    if isinstance(source, str | Path):
        return _part(_load(source), split)
    texts = list(source)
    if not texts or not all(isinstance(text, str) for text in texts):
        found = type(texts[0]).__name__ if texts else "an empty list"
        raise ValueError(f"expected texts, got {found}; pass a list of strings or a datasets.Dataset")
    return Dataset.from_dict({text_column: texts})


def columns(rows: Rows, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The values of the columns ``names``, row by row.

    Raises:
        UnknownName: one of the columns does not exist; the message lists the nearest.
        DamagedFile: a file could not be read.
        ValueError: there are no rows.
    """
    known = rows.column_names
    if known is not None:
        _require_columns(names, known)
        rows = rows.select_columns(list(names))
    is_empty = True
    for row in _readable(rows):
        is_empty = False
        _require_columns(names, row)
        yield tuple(row[name] for name in names)
    if is_empty:
        raise ValueError("the dataset has no rows")


def column_names(rows: Rows) -> list[str]:
    """Names of the columns; of a stream that does not state them, those of its first row."""
    return list(next(iter(rows), {}) if rows.column_names is None else rows.column_names)


def _readable(rows: Rows) -> Iterator[Mapping[str, Any]]:
    try:
        for row in rows:
            yield dict(row)
    except (OSError, ValueError, DatasetsError) as error:
        raise DamagedFile(f"the dataset could not be read to its end: {error}") from error


def _require_columns(names: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            raise unknown_name("column", name, known, "dataset.column_names")


def _part(parts: Mapping[Any, Any], split: str) -> Rows:
    if split not in parts:
        raise unknown_name("split", split, map(str, parts), "list(dataset)")
    return parts[split]


def _load(source: str | Path) -> Mapping[Any, Any]:
    path = Path(source)
    if (path / "dataset_dict.json").exists():
        return DatasetDict.load_from_disk(path)
    if (path / "state.json").exists():
        return {"train": Dataset.load_from_disk(path)}
    stream = partial(datasets.load_dataset, streaming=True)
    if path.is_file():
        if path.suffix not in _FORMATS:
            raise ValueError(f"cannot read {str(source)!r}; it must end in one of {', '.join(_FORMATS)}")
        load = partial(stream, _FORMATS[path.suffix], data_files=str(path))
        return _opened(load, DamagedFile, f"{str(source)!r} is damaged")
    if path.is_dir():
        return _opened(partial(stream, str(path)), ValueError, f"{str(source)!r} holds no data that datasets can read")
    if isinstance(source, Path) or path.suffix in _FORMATS or source.startswith((".", "/", "~")):
        raise ValueError(f"there is no file or folder {str(source)!r}")
    problem = f"{source!r} is no local file or folder, and the hub did not give it"
    return _opened(partial(stream, source), ValueError, problem)


def _opened(load: Callable[[], Mapping[Any, Any]], kind: type[ValueError], problem: str) -> Mapping[Any, Any]:
    try:
        return load()
    except (OSError, ValueError, DatasetsError) as error:
        raise kind(f"{problem}: {error}") from error
