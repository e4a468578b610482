"""A descent on disk, from which a killed one goes on."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lens_ablation.errors import DamagedFile, StoreMismatch
from lens_ablation.files import read_folder, write_folder
from lens_ablation.optimal.descent import Descent

_FILE_KIND = "descent"
_FOLDER = "descent"
_ADAM = ("exp_avg", "exp_avg_sq", "step")
_PLACES = ("best_gap", "best_step", "idle")


def keep(descent: Descent, store: str | Path, identity: Mapping[str, object]) -> None:
    """Write the state of a descent to the store.

    Raises:
        OSError: the folder cannot be written.
    """
    tensors: dict[str, Tensor] = {name: getattr(descent, name) for name in _PLACES}
    tensors |= {"active": torch.from_numpy(descent.active), "curve": torch.stack(descent.curve)}
    tensors["steps"] = torch.tensor(descent.steps)
    for point, table in descent.tables.items():
        tensors |= {f"table/{point.name}": table, f"best/{point.name}": descent.best[point]}
        for name, value in descent.optimizer.state.get(table, {}).items():
            tensors[f"{name}/{point.name}"] = value
    plain = {"identity": _digest(identity), "step": descent.step, "outcome": list(descent.outcome)}
    write_folder(Path(store) / _FOLDER, _FILE_KIND, tensors, plain)


def resume(descent: Descent, store: str | Path, identity: Mapping[str, object]) -> bool:
    """Bring a descent to the state that the store holds; ``False`` where it holds none.

    Raises:
        StoreMismatch: the store is that of another descent, or holds other things.
    """
    folder = Path(store) / _FOLDER
    if not folder.exists():
        if Path(store).exists() and any(Path(store).iterdir()):
            raise StoreMismatch(f"{store} holds other things and no descent. Choose another folder")
        return False
    try:
        tensors, plain = read_folder(folder, _FILE_KIND)
    except DamagedFile as error:
        raise StoreMismatch(f"{error} Delete {folder} to start anew.") from error
    if plain["identity"] != _digest(identity):
        raise StoreMismatch(
            f"{store} holds a descent of another model, task, set of sites or schedule. Choose another folder, or "
            "delete this one to start anew."
        )
    for name in _PLACES:
        setattr(descent, name, tensors[name])
    descent.active = tensors["active"].numpy().astype(np.int64)
    descent.curve, descent.steps = list(tensors["curve"]), tensors["steps"].tolist()
    descent.step, descent.outcome = int(plain["step"]), [str(one) for one in plain["outcome"]]
    for point, table in descent.tables.items():
        with torch.no_grad():
            table.copy_(tensors[f"table/{point.name}"])
        descent.best[point] = tensors[f"best/{point.name}"].to(table)
        if f"exp_avg/{point.name}" in tensors:
            descent.optimizer.state[table] = {name: tensors[f"{name}/{point.name}"].clone() for name in _ADAM}
    return True


def _digest(identity: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
