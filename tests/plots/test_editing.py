"""Figures of edits: what lines, markers and notes say."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import lens_ablation as la
from lens_ablation.attribution.editing import Effect
from lens_ablation.components import Components
from lens_ablation.plots import edit_figure
from tests.plots.results import SETTINGS, site_set


def an_effect(n: int) -> Effect:
    return Effect(n_examples=n, before=0.0, predicted=0.0, measured=0.0, share_before=0.0, share_after=0.0)


def an_edit() -> la.Edit:
    return la.Edit(
        components=Components((site_set("neuron", (3, 4)),)),
        scores=torch.zeros(12),
        order=np.arange(12),
        k=2,
        direction="raise",
        effects={
            "target": an_effect(5),
            "reference": an_effect(6),
            "validation target": an_effect(70),
            "validation reference": an_effect(80),
        },
        scan=pd.DataFrame(
            {
                "k": [0, 1, 2, 4],
                "target": [0.0, 0.25, 0.5, 0.75],
                "reference": [1.0, 1.0, 0.99, 0.5],
                "spares_reference": [True, True, True, False],
            }
        ),
        methods=(la.Zero(),),
        settings={**SETTINGS, "judge": "top1", "tolerance": 0.015, "k_chosen_on": "validation"},
    )


def test_lines_are_the_shares_that_were_tried():
    target, reference = edit_figure(an_edit()).data
    assert list(target.x) == [0, 1, 2, 4]
    np.testing.assert_allclose(target.y, [0, 25, 50, 75])
    np.testing.assert_allclose(reference.y, [100, 100, 99, 50])
    assert (target.line.color, target.line.dash) != (reference.line.color, reference.line.dash)


def test_numbers_are_those_of_the_examples_behind_the_lines():
    edit = an_edit()
    figure = edit_figure(edit)
    assert [trace.name for trace in figure.data] == ["target (70)", "reference (80)"]
    assert "150 examples" in figure.layout.title.subtitle.text
    own = {name: effect for name, effect in edit.effects.items() if "validation" not in name}
    assert [trace.name for trace in edit_figure(replace(edit, effects=own)).data] == ["target (5)", "reference (6)"]


def test_numbers_that_spend_too_much_are_hollow():
    figure = edit_figure(an_edit())
    assert list(figure.data[1].marker.symbol) == ["square", "square", "square", "square-open"]
    assert "hollow: references fall by more than 1.5 percentage points" in figure.layout.annotations[-1].text


def test_the_chosen_number_stands_over_its_line_and_above_the_data():
    figure = edit_figure(an_edit())
    word = figure.layout.annotations[0]
    assert figure.layout.shapes[0].x0 == word.x == 2
    assert word.text == "2 ablated"
    assert (word.yref, word.y, word.yanchor) == ("paper", 1, "bottom")


@pytest.mark.parametrize(
    ("chosen_on", "said"),
    [
        ("given", "number given"),
        ("attributed", "chosen on attributed examples"),
        ("validation", "chosen on validation examples"),
    ],
)
def test_the_note_says_where_the_number_comes_from(chosen_on: str, said: str):
    edit = an_edit()
    figure = edit_figure(replace(edit, settings={**edit.settings, "k_chosen_on": chosen_on}))
    assert said in figure.layout.annotations[-1].text


def test_axes_have_units():
    figure = edit_figure(an_edit())
    assert figure.layout.title.text == "Ablating components to raise the target examples"
    assert figure.layout.xaxis.title.text == "ablated components (of 12)"
    assert figure.layout.yaxis.title.text == "examples counted by top1 (%)"
