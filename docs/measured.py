"""What the scripts share that measure for the pages, ``measure_*.py``."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

NO_LABELS: Mapping[str, str] = {}


def measure(
    path: Path,
    makers: Mapping[str, Callable[..., Any]],
    asked: Sequence[str],
    settings: Mapping[str, object],
    *,
    labels: Mapping[str, str] = NO_LABELS,
    indent: int | None = None,
) -> None:
    """Measure some parts, and write each as soon as it is there; what was measured of the others is kept.

    Args:
        path: The JSON file, one key to a part, and ``settings``.
        makers: What measures each part.
        asked: Which parts, all by default. ``part=word`` gives the maker a word that labels of rows have, and keeps
            the part's other rows.
        settings: What the numbers rest on; the version of torch and the minutes of each part are written with it.
        labels: The key of a row's label, of parts that can be measured by a word.
        indent: Of the file, to have it in many lines.

    Raises:
        ValueError: there is no such part, or it is not measured by words; nothing is measured then.
    """
    parts = [one.partition("=")[::2] for one in asked or list(makers)]
    wrong = [part for part, word in parts if part not in makers or (word and part not in labels)]
    if wrong:
        by_words = f"; of {', '.join(labels)} a word may be given, part=word" if labels else ""
        raise ValueError(f"cannot measure {', '.join(wrong)}; parts are {', '.join(makers)}{by_words}")
    measured = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for part, word in parts:
        begun = time.perf_counter()
        rows = makers[part](word) if word else makers[part]()
        minutes = dict(measured.get("settings", {}).get("minutes", {}))
        if word:
            label = labels[part]
            new = {row[label] for row in rows}
            rows = [row for row in measured.get(part, []) if row[label] not in new] + rows
        else:
            minutes[part] = (time.perf_counter() - begun) / 60
        measured[part] = rows
        measured["settings"] = {**settings, "torch": torch.__version__, "minutes": minutes}
        path.write_text(json.dumps(measured, indent=indent, separators=(",", ": ")) + "\n", encoding="utf-8")
