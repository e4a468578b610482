"""Tables of the page on gradients of neurons are those that the measurement gives."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest


@pytest.fixture
def script(docs_script: Callable[[str], Mapping[str, Any]]) -> Mapping[str, Any]:
    """The names of the script that writes them."""
    return docs_script("make_neurons.py")


def test_what_does_not_hold_is_said_not_to_hold(script: Mapping[str, Any]):
    def row(unit: str, size: float, r: float) -> dict[str, Any]:
        return {"setup": "one", "unit": unit, "range": size, "r": r, "linear_moved": 0.5}

    said = script["readings"]({"ranges": [row("deviations", 0.1, 0.98), row("raw", 2.0, 0.4)]})
    assert "r is .980 (.99 does not hold)" in said
    assert "it is .400, and 50 %" in said
    assert "(.99 holds)" in script["readings"]({"ranges": [row("deviations", 0.1, 0.995), row("raw", 2.0, 0.4)]})
