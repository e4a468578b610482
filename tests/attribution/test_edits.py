"""The edits of the paper on the embedded models, on held-out images and prompts."""

import numpy as np
import pytest

import lens_ablation as la
from lens_ablation.attribution import edits
from lens_ablation.data.corpus import facts


def test_the_backdoor_goes_and_the_accuracy_stays():
    edited = la.edits.remove_backdoor(la.load_model("tiny-vit-backdoor"), progress=False)
    attack, clean = edited.held_out["attack"], edited.held_out["clean"]
    assert attack.share_before > 0.95
    assert attack.share_after <= 0.1
    assert clean.share_after >= clean.share_before - 0.02
    assert edited.held_out["triggered"].share_after > 0.7


def test_the_worst_group_gains_more_than_half_of_its_gap():
    edited = la.edits.raise_worst_group(la.load_model("tiny-vit-spurious"), progress=False)
    before, after = (
        [getattr(effect, f"share_{when}") for effect in edited.held_out.values()] for when in ("before", "after")
    )
    gap = np.mean(before) - min(before)
    assert min(after) >= min(before) + gap / 2
    assert np.mean(after) > np.mean(before)


def test_forgetting_a_relation_spares_and_judges_all_other_prompts(monkeypatch: pytest.MonkeyPatch):
    """With a descent too short to forget: who is asked, and on what, does not depend on it."""
    monkeypatch.setattr(edits, "STEPS", 2)
    found = la.edits.forget_relation(la.load_model("tiny-lm"), "young", n_masks=4, progress=False)
    assert found.tasks.keys() == found.held_out.keys() == {"relation", "others", "indirect objects"}
    for name, task in found.tasks.items():
        assert found.held_out[name].n_examples == task.n_examples
    every = facts.n_prompts("held_out")
    assert found.tasks["relation"].n_examples + found.tasks["others"].n_examples == every
    assert len({str(example.prompt) for example in facts.examples(every)}) == every
    with pytest.raises(ValueError, match="has only"):
        la.tasks.facts(la.load_model("tiny-lm"), every + 1)
    seen = found.edit.effects
    assert seen["target"].n_examples + seen["validation target"].n_examples == facts.n_prompts("train", ["young"])
