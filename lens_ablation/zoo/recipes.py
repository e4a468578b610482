"""The recipes of all embedded models."""

from collections.abc import Mapping

from lens_ablation.zoo.flawed_vits import TinyVitBackdoor, TinyVitSpurious, TinyVitTypographic
from lens_ablation.zoo.tiny_lm import TinyLm
from lens_ablation.zoo.tiny_vit import TinyVit

RECIPES: Mapping[str, TinyLm | TinyVit | TinyVitBackdoor | TinyVitSpurious | TinyVitTypographic] = {
    recipe.name: recipe for recipe in (TinyLm(), TinyVit(), TinyVitBackdoor(), TinyVitSpurious(), TinyVitTypographic())
}
"""How each embedded model is made, by name."""
