"""Tables of the page on modularity are those that the measurement gives."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

import lens_ablation as la
from lens_ablation.data.task import joined
from tests.test_docs import ROOT


@pytest.fixture
def script(docs_script: Callable[[str], Mapping[str, Any]]) -> Mapping[str, Any]:
    """The names of the script that writes them."""
    return docs_script("make_modularity.py")


def test_the_goal_is_said_to_be_met_only_where_it_is(script: Mapping[str, Any]):
    def row(target: str, forget: float, retain: float) -> dict[str, Any]:
        return {
            "model": "tiny-lm",
            "target": target,
            "score": "abs",
            "sites": "MLP",
            "curves": ["selected", "random", "random, same layers"],
            "n_removed": [0, 10],
            "n_sites": 40,
            "best": [1, 0, 1],
            "forget": [[0.9, 0.9 - forget], [0.9, 0.8], [0.9, 0.7]],
            "retain": [[0.8, 0.8 - retain], [0.8, 0.7], [0.8, 0.7]],
        }

    rows = {"domains": [row("one", 0.5, 0.05), row("two", 0.5, 0.2)], "digits": [row("three", 0.5, 0.0)]}
    text = script["goal"](rows)
    assert "in 2 of 3 cases" in text
    lines = text.splitlines()[4:]
    assert "**10.0×**" in lines[0]
    assert "**2.5×**" in lines[1]
    assert "only the forgotten" in lines[2]
    assert "(1.0×)" in lines[0]
    assert "(2.0×)" in lines[0]


def test_what_was_measured_is_what_comes_out_now():
    """One row, to notice when scores or models change and the page does not."""
    measured = json.loads((ROOT / "docs" / "modularity.json").read_text(encoding="utf-8"))
    row = next(row for row in measured["digits"] if (row["target"], row["score"], row["sites"]) == ("3", "abs", "MLP"))
    model = la.load_model("tiny-vit")
    data = {}
    for split, n, end in (("train", 1200, ""), ("held_out", 450, "_test")):
        every = la.tasks.digits(model, n=n, split=split)
        parts = [every.select((every.answers == digit).nonzero()[:, 0]) for digit in range(10)]
        data |= {f"forget{end}": parts[3], f"retain{end}": joined([part for i, part in enumerate(parts) if i != 3])}
    found = la.prune_selectively(
        model, **data, fraction_per_step=0.05, steps=9, rescore=False, n_random=0, progress=False
    )
    # scores next to each other may change places with rounding, on another machine
    torch.testing.assert_close(found.forget_mean[0], torch.tensor(row["forget"][0]).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(found.retain_mean[0], torch.tensor(row["retain"][0]).double(), atol=0.02, rtol=0)
    assert found.by_layer[row["best"][0]].tolist() == pytest.approx(row["by_layer"], abs=2)
