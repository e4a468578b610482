"""BibTeX of the strategies in use."""

from lens_ablation.strategy import Strategy

PACKAGE = """@software{lens_ablation,
  title = {lens_ablation: ablation studies of transformers on {TransformerLens}},
  year  = {2026}
}"""


def cite(*strategies: Strategy | type[Strategy]) -> str:
    """BibTeX entries of these strategies and of this package, each once.

    Raises:
        ValueError: something else than a strategy was given.

    Example:
        >>> import lens_ablation as la
        >>> "pochinkov2024investigating" in la.cite(la.Resample)
        True
    """
    entries = [PACKAGE]
    for strategy in strategies:
        if not (isinstance(strategy, Strategy) or (isinstance(strategy, type) and issubclass(strategy, Strategy))):
            raise ValueError(f"cite takes ablation methods such as Peak or Peak(stats), got {strategy!r}")
        if strategy.bibtex:
            entries.append(strategy.bibtex)
    return "\n\n".join(dict.fromkeys(entries))
