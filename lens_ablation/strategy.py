"""What every strategy has: a name, settings that determine it, and a reference."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar


class Strategy(ABC):
    """Something that can be swapped in a verb: a method, a way of attributing, a corruption, a lens.

    Subclasses are frozen dataclasses.

    Attributes:
        bibtex: Reference of the strategy, or of where its use is described.
    """

    bibtex: ClassVar[str] = ""

    @property
    def name(self) -> str:
        """What figures and tables call it."""
        return type(self).__name__

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, object]:
        """Everything that determines it, as plain JSON values."""
