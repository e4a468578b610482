"""Finished parts of a long run, kept on disk for the call that goes on from there."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lens_ablation.engine.options import Engine
from lens_ablation.engine.proof import refuse_store_under_hooks
from lens_ablation.errors import DamagedFile, StoreMismatch
from lens_ablation.files import read_folder, write_folder
from lens_ablation.models.fingerprint import fingerprint, versions
from lens_ablation.models.protocol import LensModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptParts:
    """A folder of parts, each with the digest of all that it depends on.

    Attributes:
        folder: Where they are kept; ``None`` keeps nothing.
        file_kind: What a part is called in its file.
        common: What all parts depend on.
    """

    folder: Path | None
    file_kind: str
    common: Mapping[str, object]

    def read(self, name: str, of: Mapping[str, object]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and settings of a part, if it is there.

        Args:
            name: Name of the part.
            of: What it depends on beside what all parts do.

        Raises:
            StoreMismatch: the folder belongs to another run.
        """
        if self.folder is None:
            return None
        path = self.folder / name
        try:
            tensors, plain = read_folder(path, self.file_kind)
        except FileNotFoundError:
            return None
        except DamagedFile as error:
            log.warning("%s is computed again: %s", name, error)
            return None
        if plain["identity"] != self._identity(of):
            raise StoreMismatch(f"{path} belongs to another run. Choose another folder, or delete this one")
        return tensors, plain

    def write(
        self, name: str, of: Mapping[str, object], tensors: Mapping[str, Tensor], plain: Mapping[str, object]
    ) -> None:
        """Keep a part, under the same name and for what it depends on."""
        if self.folder is not None:
            write_folder(self.folder / name, self.file_kind, tensors, {**plain, "identity": self._identity(of)})

    def _identity(self, of: Mapping[str, object]) -> str:
        said = json.dumps({**self.common, **of}, sort_keys=True, default=str)
        return hashlib.sha256(said.encode()).hexdigest()


def kept_parts(
    model: LensModel, engine: Engine | None, name: str, file_kind: str, common: Mapping[str, object]
) -> KeptParts:
    """Parts in a folder of the engine's store, which depend on the model and versions in any case.

    Raises:
        ValueError: the engine keeps parts, and the model has hooks of others.
    """
    if engine is None or engine.store is None:
        return KeptParts(None, file_kind, common)
    refuse_store_under_hooks(model, engine)
    said = {"model": fingerprint(model), "versions": versions(), **common}
    return KeptParts(Path(engine.store) / name, file_kind, said)
