"""The embedded models on disk: where they lie, and what their cards say."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from lens_ablation.errors import unknown_name

WEIGHTS = Path(__file__).parent / "weights"
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "scikit-learn")


def names() -> list[str]:
    """Names of the embedded models."""
    return sorted(folder.parent.name for folder in WEIGHTS.glob("*/card.json"))


def path(name: str) -> Path:
    """Folder of an embedded model, for ``from_pretrained``.

    Raises:
        UnknownName: There is no embedded model of that name.
    """
    if name not in names():
        raise unknown_name("embedded model", name, names(), "lens_ablation.zoo.names()")
    return WEIGHTS / name


def card(name: str) -> dict:
    """Card of an embedded model: data, seed, steps, scores, checksum, versions, seconds of training.

    Raises:
        UnknownName: There is no embedded model of that name.
    """
    return read(path(name))


def read(folder: Path) -> dict:
    """Card in the folder of a trained model."""
    return json.loads((folder / "card.json").read_text(encoding="utf-8"))


def scores(model: str | Path) -> dict[str, float]:
    """Scores of a model on held-out data, computed from its weights.

    Args:
        model: Name of an embedded model, or the folder of one that ``lens_ablation.zoo.train`` wrote.

    Raises:
        UnknownName: There is no embedded model of that name.
    """
    from lens_ablation.zoo.recipes import RECIPES

    folder = path(model) if isinstance(model, str) else model
    return RECIPES[read(folder)["name"]].scores(folder)


def versions() -> dict[str, str]:
    """Versions of the libraries that a training depends on."""
    return {library: version(library) for library in LIBRARIES}


def readme(card: Mapping) -> str:
    """A card for people, in Markdown."""
    scores = "\n".join(f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in card["scores"].items())
    libraries = ", ".join(f"{name} {number}" for name, number in card["versions"].items())
    return f"""# {card["name"]}

{card["about"]}

## Scores on held-out data

Losses are in nats; the rest are shares or differences of probabilities, unless named otherwise.

| score | value |
|---|---|
{scores}

## Training

{card["steps"]} steps, seed {card["seed"]}, {card["training_seconds"]:.0f} seconds on {card["threads"]} CPU
threads; {card["parameters"]} parameters. Made with {libraries}.

Rebuild it with `python -m lens_ablation.zoo.train {card["name"]} --threads {card["threads"]}`. SHA-256 of
`model.safetensors`: `{card["sha256"]}`.
"""
