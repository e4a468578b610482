"""Facts as multiple-choice records: several phrasings of each, and answers of the same kind to choose from."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from lens_ablation.data.corpus.templates import fill


def fact_records(
    facts: Mapping[str, str],
    phrasings: Sequence[str],
    *,
    candidates: Sequence[str] | None = None,
    n_options: int = 4,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Every fact in every phrasing, as records for ``multiple_choice(..., template="{text}", separator=" ")``.

    Without ``candidates`` each record has its own options: the right object and others that are drawn from the rest,
    the right one in every place equally often.

    Args:
        facts: Object of each subject, such as ``{"France": "Paris"}``; an object should be one token.
        phrasings: Texts up to the object with ``{subject}`` in them, such as ``"The capital of {subject} is"``.
        candidates: The same answers to all questions; facts with another object are left out.
        n_options: Options of a question where there are no ``candidates``.
        seed: Another seed draws other options.

    Returns:
        Records with ``text``, ``options``, ``label`` (a place), ``subject``, ``object`` and ``wording`` (a phrasing).

    Raises:
        ValueError: a phrasing has no ``{subject}``, or there are fewer different objects than options.

    Example:
        >>> import lens_ablation as la
        >>> facts = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid"}
        >>> records = la.fact_records(facts, ["The capital of {subject} is", "{subject} and"], n_options=2)
        >>> len(records), records[0]["text"]
        (6, 'The capital of France is')
    """
    strange = next((phrasing for phrasing in phrasings if "{subject}" not in phrasing.split()), None)
    if not phrasings or strange is not None:
        raise ValueError(f"a phrasing holds {{subject}} as a word of its own, got {strange!r}")
    kept = {subject: found for subject, found in facts.items() if candidates is None or found in candidates}
    objects = sorted(set(kept.values()))
    n = n_options if candidates is None else len(candidates)
    if len(objects) < 2 or (candidates is None and len(objects) < n):
        raise ValueError(
            f"{len(kept)} facts have {len(objects)} different objects, and a question has {n} options; give more "
            "facts, or fewer options"
        )
    rng = Random(f"facts/{seed}")
    cases = [(subject, phrasing) for subject in kept for phrasing in phrasings]
    places = [i % n for i in range(len(cases))]
    rng.shuffle(places)
    records: list[dict[str, Any]] = []
    for (subject, phrasing), place in zip(cases, places, strict=True):
        right = kept[subject]
        if candidates is None:
            options = rng.sample([one for one in objects if one != right], n - 1)
            options.insert(place, right)
        else:
            options = list(candidates)
        records.append(
            {
                "text": fill(phrasing, {"subject": subject}).prompt,
                "options": options,
                "label": options.index(right),
                "subject": subject,
                "object": right,
                "wording": phrasing,
            }
        )
    return records
