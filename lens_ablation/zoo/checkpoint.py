"""Training state on disk: tensors as safetensors, the rest as JSON, complete or not there at all."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

MANIFEST = "checkpoint.json"


@dataclass(frozen=True)
class Progress:
    """How far a training has come: steps done, and seconds they took."""

    step: int
    seconds: float


def sha256(path: Path) -> str:
    """Checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    recipe: Mapping[str, object],
) -> None:
    """Write the state of a training; the manifest comes last and makes it valid.

    Args:
        folder: Folder of the checkpoint, made if missing.
        model: The model after ``progress.step`` steps.
        optimizer: An optimizer of ``model.parameters()``, in that order.
        progress: Steps and seconds so far.
        recipe: What is trained, in JSON's types; resuming asks for the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model/{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in state.items()}
    path = folder / f"step-{progress.step:06d}.safetensors"
    temporary = path.with_name(path.name + ".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    os.replace(temporary, path)
    manifest = {
        "step": progress.step,
        "seconds": progress.seconds,
        "file": path.name,
        "sha256": sha256(path),
        "recipe": recipe,
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1))
    for old in folder.glob("step-*.safetensors*"):
        if old != path:
            old.unlink()


def restore(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Mapping[str, object],
) -> Progress:
    """Put a saved state into the model and its optimizer; without a checkpoint, change nothing.

    Raises:
        ValueError: The checkpoint belongs to another recipe, or is damaged.
    """
    manifest_path = folder / MANIFEST
    if not manifest_path.exists():
        return Progress(0, 0.0)
    advice = f"remove {folder} to start again"
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        path = folder / Path(manifest["file"]).name
        intact = sha256(path) == manifest["sha256"]
        progress, found = Progress(manifest["step"], manifest["seconds"]), manifest["recipe"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the checkpoint in {folder} cannot be read ({error}); {advice}") from error
    if not intact:
        raise ValueError(f"{path} is damaged: its checksum is not the one in {MANIFEST}; {advice}")
    if found != dict(recipe):
        raise ValueError(f"the checkpoint in {folder} was made by other settings, {found}; {advice}")
    _put(load_file(path), model, optimizer)
    return progress


def _put(tensors: dict[str, torch.Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors.pop(f"model/{name}"))
    for key, tensor in tensors.items():
        _, index, name = key.split("/")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
