"""Statistics on disk, found again by what they were measured on."""

from dataclasses import dataclass
from pathlib import Path

from lens_ablation.errors import StatisticsMismatch
from lens_ablation.statistics.activation_statistics import ActivationStatistics
from lens_ablation.statistics.provenance import Provenance, described


@dataclass(frozen=True)
class StatisticsCache:
    """A folder with one entry to a provenance, named by its digest; several processes may use it at once.

    An entry that is damaged is an error which names it, not a reason to measure again in silence.

    Attributes:
        folder: The folder; made when the first entry is written.

    Example:
        >>> import tempfile, lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task, heads = la.tasks.ioi(model, n=64), la.heads(model)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for _ in range(2):  # the second time it is read
        ...         stats = la.collect_statistics(model, task, heads, cache=folder, progress=False)
    """

    folder: str | Path

    def path(self, provenance: Provenance) -> Path:
        """Where the entry of that provenance is, or would be."""
        return Path(self.folder).expanduser() / provenance.digest[:32]

    def get(self, provenance: Provenance) -> ActivationStatistics | None:
        """The statistics measured on exactly that; ``None`` where there are none yet.

        Raises:
            DamagedFile: the entry is truncated or was changed; the message names it.
            StatisticsMismatch: the entry was measured on something else, so somebody moved it here.
        """
        path = self.path(provenance)
        try:
            found = ActivationStatistics.load(path)
        except FileNotFoundError:
            return None
        differences = provenance.differences(found.provenance)
        if differences:
            raise StatisticsMismatch(
                f"{path} holds statistics of something else than its name says: {described(differences)}. Delete it."
            )
        return found

    def put(self, statistics: ActivationStatistics) -> Path:
        """Write an entry, in the place of the one with the same provenance if there is one.

        Raises:
            OSError: the folder cannot be written.
        """
        return statistics.save(self.path(statistics.provenance))
