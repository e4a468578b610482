"""A generated English-like corpus with a closed vocabulary: skills to test, and three domains.

- ``ioi``, ``greater_than``, ``facts``, ``pronouns``, ``agreement``, ``induction``: skills. Each has
  ``examples(n, seed=, split=)`` and ``sentence(rng, split)``.
- ``prose``, ``code``, ``arithmetic``: domains. Each has ``sentence(rng, split)``.
- ``documents(name, n)``: texts of one skill or domain; ``training_documents(step, ...)``: the mixture.
- ``vocabulary()``: token id of every word.

What is held out is decided by a hash of a key (a name pair, a subject with a phrasing, a sequence), so that
both sides are endless and never meet. Importing this package imports only the standard library.
"""

from lens_ablation.data.corpus import (
    agreement,
    arithmetic,
    code,
    facts,
    greater_than,
    induction,
    ioi,
    pronouns,
    prose,
)
from lens_ablation.data.corpus.example import Example, Split
from lens_ablation.data.corpus.mixture import DOMAINS, MIXTURE, documents, training_documents
from lens_ablation.data.corpus.vocabulary import BOS, EOS, PAD, UNK, vocabulary

__all__ = [
    "BOS",
    "DOMAINS",
    "EOS",
    "MIXTURE",
    "PAD",
    "UNK",
    "Example",
    "Split",
    "agreement",
    "arithmetic",
    "code",
    "documents",
    "facts",
    "greater_than",
    "induction",
    "ioi",
    "pronouns",
    "prose",
    "training_documents",
    "vocabulary",
]
