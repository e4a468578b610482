"""Write the tables that the code knows best into the pages: ``python docs/make_tables.py``.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. It is made from the cards of the embedded models,
or from the thresholds in the code.
"""

from collections.abc import Mapping
from pathlib import Path

from pages import PLACE

from lens_ablation import zoo
from lens_ablation.statistics import shapes

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs" / "models.md", ROOT / "docs" / "statistics.md"]

THRESHOLDS = {
    "POINT_MASS_SHARE": "point mass: smallest share of values in one bin, or exactly 0",
    "LESSER_SHARE": "bimodal: smallest share of values in either part of the mixture",
    "LESSER_HEIGHT": "bimodal: lower maximum, as a part of the higher, at least",
    "VALLEY_DEPTH": "bimodal: valley, as a part of the lower maximum, at most",
    "VALLEY_NOISE": "bimodal: depth of the valley in standard errors, at least",
    "OFF_CENTRE": "off-centre: distance of the mean from 0 in standard deviations, more than",
    "MISFIT": "near-Gaussian, Laplace-like: share of values misplaced by the density, at most",
}
"""Constants of the module on shapes, in the order of its rule, and what they mean."""


def _rows(header: str, rows: list[str]) -> str:
    return "\n".join([header, "|" + "---|" * (header.count("|") - 1), *rows]) + "\n"


def scores(name: str) -> str:
    """All scores of one embedded model."""
    card = zoo.card(name)
    rows = [f"| {score.replace('_', ' ')} | {value:.4f} |" for score, value in card["scores"].items()]
    return _rows("| score | value |", rows)


def models() -> str:
    """The embedded models, one to a row."""
    cards: list[Mapping] = [zoo.card(name) for name in zoo.names()]
    rows = [
        f"| `{card['name']}` | {card['parameters']:,} | {card['bytes'] / 1e6:.1f} MB | {card['steps']:,} | "
        f"{card['training_seconds'] / 60:.0f} min, threads: {card['threads']} |"
        for card in cards
    ]
    return _rows("| model | parameters | weights | steps | training |", rows)


def thresholds() -> str:
    """The thresholds of the shape labels."""
    rows = [f"| {meaning} | {getattr(shapes, name)} |" for name, meaning in THRESHOLDS.items()]
    return _rows("| threshold | value |", rows)


def table(name: str) -> str:
    """The table of this name: ``models``, ``thresholds``, or the scores of the model so called."""
    made = {"models": models, "thresholds": thresholds}
    return made[name]() if name in made else scores(name)


def filled(page: Path) -> str:
    """The text of a page with its tables made anew."""
    text = page.read_text(encoding="utf-8")
    return PLACE.sub(lambda place: place[1] + table(place[2]) + place[3], text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page), encoding="utf-8")
