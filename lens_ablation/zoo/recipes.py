"""The recipes of all embedded models."""

from collections.abc import Mapping

from lens_ablation.zoo.tiny_lm import TinyLm
from lens_ablation.zoo.tiny_vit import TinyVit

RECIPES: Mapping[str, TinyLm | TinyVit] = {"tiny-lm": TinyLm(), "tiny-vit": TinyVit()}
"""How each embedded model is made, by name."""
