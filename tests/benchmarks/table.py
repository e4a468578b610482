"""Comparing in one run, and the table of what came out."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import median
from typing import Any, Literal

import torch

FRAMES = 8
"""How much deeper in the call stack each round runs than the one before.

CPython maps and unmaps memory at every call across a 16 KiB boundary of its stack. At an unlucky depth that triples
the time of Python that calls many small functions, of either side; the least of all rounds is free of it.
"""


@dataclass(kw_only=True)
class Row:
    """One comparison.

    Attributes:
        work: What was done.
        against: What it is compared with.
        device: ``cpu`` or ``cuda``.
        ours: Seconds of this package, the least of all rounds.
        theirs: Seconds of the other, the least of all rounds.
        ratio: How many times as fast (``at least``), or as expensive (``at most``).
        bound: Which way the floor is meant.
        floor: What the ratio must reach, or may reach at most.
        limit: Seconds that the necessary operations take at the measured rate of matrix products; ``None`` where
            it was not measured.
        unit: Of ``ours`` and ``theirs``.
    """

    work: str
    against: str
    device: str
    ours: float
    theirs: float
    ratio: float
    bound: Literal["at least", "at most"]
    floor: float
    limit: float | None = None
    unit: str = "s"

    @property
    def holds(self) -> bool:
        return self.ratio >= self.floor if self.bound == "at least" else self.ratio <= self.floor


@dataclass
class Table:
    """All that a run of the benchmarks measured."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    dtypes: list[dict[str, Any]] = field(default_factory=list)

    def compare(
        self,
        benchmark: Any,
        ours: Callable[[], object],
        theirs: Callable[[], object],
        *,
        work: str,
        against: str,
        floor: float,
        device: str = "cpu",
        bound: Literal["at least", "at most"] = "at least",
        rounds: int = 5,
        scale: float = 1.0,
        limit: float | None = None,
    ) -> Row:
        """Time both in turns, keep the row, and require its floor.

        Args:
            scale: The other one's seconds are multiplied by this, where only a part of its work is timed.
        """
        seconds: list[float] = []
        own: list[float] = []

        def both() -> None:
            deep = partial(at_depth, FRAMES * len(own))
            seconds.append(scale * deep(partial(seconds_of, theirs, device)))
            own.append(deep(partial(seconds_of, ours, device)))

        benchmark.pedantic(both, rounds=rounds)
        least, other = min(own), min(seconds)
        row = Row(
            work=work,
            against=against,
            device=device,
            ours=least,
            theirs=other,
            ratio=other / least if bound == "at least" else least / other,
            bound=bound,
            floor=floor,
            limit=limit,
        )
        benchmark.extra_info.update({"ratio": row.ratio, "seconds": row.ours, "limit": limit})
        return self.keep(row)

    def keep_efficiency(self, benchmark: Any, limits: Sequence[float], *, work: str, floor: float) -> Row:
        """Keep what part of some work's time its operations need at the measured rate of matrix products."""
        own = list(benchmark.stats.stats.data)
        row = Row(
            work=work,
            against="the same matrix products on their own",
            device="cpu",
            ours=median(own),
            theirs=median(limits),
            ratio=median(a / b for a, b in zip(limits, own, strict=True)),
            bound="at least",
            floor=floor,
            limit=median(limits),
        )
        benchmark.extra_info.update({"ratio": row.ratio, "seconds": row.ours, "limit": row.limit})
        return self.keep(row)

    def keep(self, row: Row) -> Row:
        """Keep a row, and require its floor."""
        self.rows.append({**asdict(row), "holds": row.holds})
        assert row.holds, f"{row.work} ({row.device}): {row.ratio:.2f}, {row.bound} {row.floor} was required"
        return row


def at_depth(frames: int, work: Callable[[], float]) -> float:
    """What ``work`` returns, called this many frames deeper."""
    return work() if frames == 0 else at_depth(frames - 1, work)


def synchronize(device: str) -> None:
    """Wait for a GPU to finish."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], device: str = "cpu") -> float:
    """Seconds of one run."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table as texts."""
    sign = "≥" if row["bound"] == "at least" else "≤"
    unit = row["unit"]
    return [
        row["work"],
        row["against"],
        row["device"],
        f"{row['ours']:.3g} {unit}",
        f"{row['theirs']:.3g} {unit}",
        f"{row['ratio']:.2f}",
        f"{sign} {row['floor']:g}",
        "" if row["limit"] is None else f"{row['limit']:.3g} s",
    ]


HEADER = ["work", "against", "on", "ours", "theirs", "ratio", "required", "limit"]


def text(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The table in aligned columns."""
    lines = [[*HEADER, ""], *([*cells(row), "" if row["holds"] else "MISSED"] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
