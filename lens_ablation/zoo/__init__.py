"""The embedded models: small, trained here on data of our own, with cards that say how good they are."""

from lens_ablation.zoo.cards import card, names, path, scores

__all__ = ["card", "names", "path", "scores"]
