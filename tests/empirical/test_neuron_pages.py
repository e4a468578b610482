"""Tables of the page on gradients of neurons are those that the measurement gives."""

import json
import runpy
from collections.abc import Mapping
from typing import Any

import pytest

from tests.test_docs import ROOT


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    """The names of the script that writes them."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return runpy.run_path(str(ROOT / "docs" / "make_neurons.py"))


def test_tables_in_the_page_are_those_of_what_was_measured(script: Mapping[str, Any]):
    measured = json.loads(script["MEASURED"].read_text(encoding="utf-8"))
    texts = {page.name: page.read_text(encoding="utf-8") for page in script["PAGES"]}
    stale = [name for name, text in texts.items() if script["filled"](text, measured) != text]
    assert not stale, "run: python docs/make_neurons.py"
    assert all(f"<!-- table: {name} -->" in texts["neurons.md"] for name in script["TABLES"])


def test_what_does_not_hold_is_said_not_to_hold(script: Mapping[str, Any]):
    def row(unit: str, size: float, r: float) -> dict[str, Any]:
        return {"setup": "one", "unit": unit, "range": size, "r": r, "linear_moved": 0.5}

    said = script["readings"]({"ranges": [row("deviations", 0.1, 0.98), row("raw", 2.0, 0.4)]})
    assert "r is .980 (.99 does not hold)" in said
    assert "it is .400, and 50 %" in said
    assert "(.99 holds)" in script["readings"]({"ranges": [row("deviations", 0.1, 0.995), row("raw", 2.0, 0.4)]})
