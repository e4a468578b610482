"""What the scripts share that write tables into the pages, ``make_*.py``.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

PLACE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Measured = Mapping[str, Any]
"""What a ``measure_*.py`` wrote, by part."""

Tables = Mapping[str, tuple[Sequence[str], Callable[[Measured], str]]]
"""By name: the parts of the measurement that a table needs, and what makes it."""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def short(value: float) -> str:
    """A correlation or share as ``.87``."""
    return f"{round(value, 2) + 0:.2f}".replace("0.", ".", 1)


def percent(share: float) -> str:
    """A share as ``87 %``."""
    return f"{100 * share:.0f} %"


def filled(text: str, measured: Measured, tables: Tables) -> str:
    """A page with its tables made anew; tables of other scripts and of parts not measured are left alone."""

    def fill(place: re.Match[str]) -> str:
        needed, make = tables.get(place[2], ((), None))
        if make is None or any(part not in measured for part in needed):
            return place[0]
        return place[1] + make(measured) + place[3]

    return PLACE.sub(fill, text)


def write(pages: Iterable[Path], path: Path, tables: Tables) -> Measured:
    """Make the tables of these pages anew from what was measured, which is returned."""
    measured = json.loads(path.read_text(encoding="utf-8"))
    for page in pages:
        page.write_text(filled(page.read_text(encoding="utf-8"), measured, tables), encoding="utf-8")
    return measured
