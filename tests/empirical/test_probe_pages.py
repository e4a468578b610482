"""Tables of the page on probes are those that the measurement gives."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

import lens_ablation as la
from tests.test_docs import ROOT


@pytest.fixture
def script(docs_script: Callable[[str], Mapping[str, Any]]) -> Mapping[str, Any]:
    """The names of the script that writes them."""
    return docs_script("make_probes.py")


def test_the_goal_is_said_to_be_met_only_where_it_is(script: Mapping[str, Any]):
    def row(skill: str, own: float, activation: float, best: float) -> dict[str, Any]:
        found = {"LogProb": own, "Activation": activation, "Polarity": 0.1, "Magnitude": best, "Forest": 0.2}
        return {
            "skill": skill,
            "wordings": "new",
            "accuracy": {name: [value, value - 0.1, value + 0.1] for name, value in found.items()},
            "above_model": {"Magnitude": [round(best - own, 3), -0.1, 0.1]},
        }

    rows = [row("one", 0.5, 0.4, 0.6), row("two", 0.7, 0.4, 0.6), row("three", 0.5, 0.7, 0.6)]
    text = script["goal"]({"accuracy": rows})
    assert "met on 1 of 3" in text
    lines = text.splitlines()[2:]
    assert "it reaches the model's answer" in lines[0]
    assert "it does not reach the model's answer" in lines[1]
    assert "does not reach the activation probe" in lines[2]


def test_curves_come_back_as_they_were_measured(script: Mapping[str, Any]):
    measured = json.loads(script["MEASURED"].read_text(encoding="utf-8"))
    rows = {(row["skill"], row["wordings"]): row for row in measured["accuracy"]}
    for row in measured["curves"]:
        curve = script["curve"](row)
        table = rows[row["skill"], row["wordings"]]
        at = curve.ks.index(measured["settings"]["k"])
        for name in ("Polarity", "Magnitude", "Activation"):
            found = float(curve.accuracy[curve.probes.index(f"{name}Probe"), at])
            assert found == pytest.approx(table["accuracy"][name][0], abs=1e-4)
        assert float(curve.model_correct.double().mean()) == pytest.approx(table["accuracy"]["LogProb"][0], abs=1e-4)


def test_what_was_measured_is_what_comes_out_now():
    """One row, to notice when probes or skills change and the page does not."""
    measured = json.loads((ROOT / "docs" / "probes.json").read_text(encoding="utf-8"))
    row = next(row for row in measured["accuracy"] if (row["skill"], row["wordings"]) == ("language", "new"))
    model = la.load_model("tiny-lm")
    train, test = (la.skills.language(model, split=split, wordings="new") for split in ("train", "test"))
    seen, found = (
        la.neuron_gradients(model, one.task, candidates=one.candidates, progress=False) for one in (train, test)
    )
    assert (row["train"], row["test"]) == (train.n_examples, test.n_examples)
    probe = la.fit_skill_probe(seen, train.labels, la.MagnitudeProbe(64))
    # gradients near zero may change sign with rounding, on another machine
    assert abs(probe.accuracy(found, test.labels) - row["accuracy"]["Magnitude"][0]) <= 2.5 / test.n_examples
    assert torch.equal(test.labels.bincount(), torch.tensor([18, 18, 18, 17]))
