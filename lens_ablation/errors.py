"""Exceptions of the package; each also derives from the built-in kind that a caller would expect."""

import difflib
from collections.abc import Iterable


class UnknownName(ValueError):
    """A model, task, metric, method or hook name that does not exist."""


class UnknownSite(ValueError, IndexError):
    """A site that the model, or the site set, does not have."""


class StatisticsMismatch(ValueError):
    """Statistics measured on another model, weight processing, tokenizer, data or site set."""


class DamagedFile(ValueError):
    """A file that is truncated, was changed by hand, or was written by something else."""


class UnsupportedModel(ValueError):
    """A model that lacks a property which the requested operation needs."""


class BadActivation(ValueError):
    """An activation that is not finite, or of a shape that its site does not allow."""


class HookError(RuntimeError):
    """A hook that misbehaved during a forward pass."""


class HookDidNotFire(HookError):
    """A hook that fired a wrong number of times in a forward pass."""

    def __init__(self, name: str, expected: int, got: int):
        self.name, self.expected, self.got = name, expected, got
        times = "once" if expected == 1 else f"{expected} times"
        super().__init__(
            f"{name} should have fired {times} in {'one' if expected == 1 else expected} forward pass"
            f"{'' if expected == 1 else 'es'} and fired {got} times, so the ablation was not what was asked "
            "for. Run lens_ablation.check_sites(model) to see which hook points of this model are live."
        )

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.name, self.expected, self.got)


class HookHadNoEffect(HookError):
    """A hook point that accepts a replacement which changes nothing."""


class StoreMismatch(ValueError):
    """A store of shards that belongs to another plan, or a folder that is no store."""


class LeakingSplits(ValueError):
    """Splits of records that share questions, so that what is fitted on one is not tested by another."""


class MissingExtra(ImportError):
    """An optional dependency that is not installed."""


class WorkersDied(RuntimeError):
    """Workers that were killed again and again before they finished a shard."""


def unknown_name(kind: str, given: object, known: Iterable[str], listing: str) -> UnknownName:
    """An ``UnknownName`` that says what was given, the nearest right names, and the call that lists all."""
    names = sorted(known)
    nearest = difflib.get_close_matches(str(given), names, n=3, cutoff=0.3) or names[:3]
    return UnknownName(
        f"unknown {kind} {given!r}; nearest: {', '.join(nearest) or 'none'}. {listing} lists all {len(names)}."
    )
