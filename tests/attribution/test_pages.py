"""Tables of the pages on attribution and editing are those that the measurement gives."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest


@pytest.fixture
def script(docs_script: Callable[[str], Mapping[str, Any]]) -> Mapping[str, Any]:
    """The names of the script that writes them."""
    return docs_script("make_attribution.py")


def rows(way: str, n_passes: int, *correlations: float) -> list[dict[str, Any]]:
    """What was measured of a way, one row to a seed."""
    return [
        {"setup": "a model, digits", "seed": seed, "way": way, "passes": n_passes, "correlation": {"0.1": r}}
        for seed, r in enumerate(correlations)
    ]


def test_means_and_ranges_over_seeds_and_the_best_in_bold(script):
    found = [
        *rows("expected gradient, 8 masks", 24, 0.7, 0.9),
        *rows("ridge, 20 masks", 20, 0.1, -0.1),
        *rows("ridge, 9,000 masks", 9000, 0.8, 0.84),
    ]
    text = script["estimators"]({"estimators": found})
    assert "| a model, digits | passes | 10 % ablated |" in text
    assert "| expected gradient, 8 masks | 24 | .80 (.70 to .90) |" in text
    assert "| ridge, 20 masks | 20 | .00 (-.10 to .10) |" in text
    assert "| ridge, 9,000 masks | 9,000 | **.82** (.80 to .84) |" in text
    assert "| a model | expected gradient, 8 masks | .80 | 24 | 9,000 |" in script["passes"]({"estimators": found})
    assert "more than 20 |" in script["passes"]({"estimators": found[:4]})


def test_errors_are_counted_and_other_edits_have_a_row_each(script):
    def one(task: str, k: int, **groups: tuple[float, float]) -> dict[str, Any]:
        shares = {name: {"n": 10, "before": before, "after": after} for name, (before, after) in groups.items()}
        return {"task": task, "k": k, "of": 1000, "method": "zero", "groups": shares}

    found = [
        one("fix one error", 1, error=(0, 1), others=(0.98, 0.978)),
        one("fix one error", 4, error=(0, 0), others=(0.98, 0.99)),
        one("forget", 30, target=(0.96, 0.02), others=(0.98, 0.97)),
    ]
    lines = script["edits"]({"edits": found}).splitlines()[2:]
    assert lines == [
        "| fix one error | 2.5 (median) of 1,000 | zero | 1 of 2 errors fixed; "
        "the others change by -0.2 points at worst |",
        "| forget | 30 of 1,000 | zero | target 96 % → 2 %, others 98 % → 97 % |",
    ]


def test_forgetting_is_judged_by_what_is_left_and_what_others_lose(script):
    def one(task: str, **groups: tuple[int, float, float]) -> dict[str, Any]:
        return {
            "task": task,
            "groups": {name: {"n": n, "before": before, "after": after} for name, (n, before, after) in groups.items()},
        }

    found = [
        one("remove the backdoor", clean=(10, 1.0, 0.0)),
        one("forget the digit 1", **{"class": (20, 1.0, 0.1), "others": (100, 0.99, 0.97)}),
        one("forget the digit 2", **{"class": (20, 1.0, 0.0), "others": (200, 1.0, 0.97)}),
        one("forget capital", relation=(20, 1.0, 0.15), others=(100, 1.0, 1.0)),
    ]
    assert script["forgotten"]({"edits": found}).splitlines() == [
        "- Reached: the digit 1.",
        "- Forgotten, at a higher price: the digit 2 (others -3.0 points, 6 of 200).",
        "- Not forgotten: capital (3 of 20 left).",
    ]


def test_what_others_lose_is_told_apart_by_what_the_fit_has_seen(script):
    def one(group: str, fitted: float, chosen: float, judged: float, lost: list[float]) -> dict[str, Any]:
        def shares(after: float) -> dict[str, float]:
            return {"n": 100, "before": 1.0, "after": after}

        return {
            "groups": {group: shares(0.0), "others": shares(judged)},
            "seen": {"reference": shares(fitted), "validation reference": shares(chosen)},
            "lost": lost,
        }

    found = [one("class", 1.0, 0.99, 0.98, [0.1, 0.6]), one("class", 0.98, 0.97, 0.94, [0.2]), {"groups": {}}]
    assert script["why"]({"edits": found}) == (
        "- Digits: the others change by -1.0 points on the examples that constants are fitted to (mean of 2 edits), "
        "-2.0 on those that choose their number, and -4.0 on held-out ones. Of 3 held-out examples that are lost, the "
        "untouched model had less margin on 2 than on three quarters of their group.\n"
    )
