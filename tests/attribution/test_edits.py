"""The edits of the paper on the embedded models, on held-out images."""

import numpy as np

import lens_ablation as la


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
