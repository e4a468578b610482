"""One progress bar to a public call."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

Progress = bool | Callable[[int, int], None]
"""``True`` for a bar (off where there is no terminal or notebook), ``False`` for silence, or ``(done, total)``."""


@contextmanager
def progress_bar(progress: Progress, total: int, label: str, unit: str = "it") -> Iterator[Callable[[int], None]]:
    """A function that is told how much was done since it was last called."""
    if callable(progress):
        done = 0

        def tell(n: int) -> None:
            nonlocal done
            done += n
            progress(done, total)

        yield tell
        return
    with tqdm(total=total, desc=label, unit=unit, leave=False, disable=None if progress else True) as bar:

        def advance(n: int) -> None:
            bar.update(n)

        yield advance


def onward(advance: Callable[[int], None]) -> Callable[[int, int], None]:
    """Progress of a part, ``(done, total)``, as steps of the bar of the whole."""
    seen = 0

    def tell(done: int, total: int) -> None:
        nonlocal seen
        advance(done - seen)
        seen = done

    return tell
