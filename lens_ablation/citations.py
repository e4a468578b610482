"""BibTeX of the methods in use."""

from lens_ablation.methods.method import Method

PACKAGE = """@software{lens_ablation,
  title = {lens_ablation: ablation studies of transformers on {TransformerLens}},
  year  = {2026}
}"""


def cite(*strategies: Method | type[Method]) -> str:
    """BibTeX entries of these methods and of this package, each once.

    Raises:
        ValueError: something else than a method was given.

    Example:
        >>> import lens_ablation as la
        >>> "pochinkov2024investigating" in la.cite(la.Resample)
        True
    """
    entries = [PACKAGE]
    for strategy in strategies:
        if not (isinstance(strategy, Method) or (isinstance(strategy, type) and issubclass(strategy, Method))):
            raise ValueError(f"cite takes ablation methods such as Peak or Peak(stats), got {strategy!r}")
        if strategy.bibtex:
            entries.append(strategy.bibtex)
    return "\n\n".join(dict.fromkeys(entries))
