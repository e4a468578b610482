"""Edits: which components are chosen, what ablating them does, what is refused."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import lens_ablation as la
from lens_ablation.attribution import editing
from lens_ablation.attribution.attribution import Attribution
from lens_ablation.data.task import joined
from lens_ablation.errors import StatisticsMismatch, UnknownName
from lens_ablation.models.protocol import LensModel

pytestmark = pytest.mark.model

N = 30


@pytest.fixture(scope="module")
def backdoor() -> LensModel:
    return la.load_model("tiny-vit-backdoor")


@pytest.fixture(scope="module")
def pairs(backdoor: LensModel) -> tuple[la.Task, la.Task]:
    """The same training images with the trigger and without."""
    with_it, without = (la.tasks.triggered_digits(backdoor, N, split="train", trigger=yes) for yes in (True, False))
    return with_it, without


@pytest.fixture(scope="module")
def found(backdoor: LensModel, pairs: tuple[la.Task, la.Task]) -> tuple[la.Task, Attribution]:
    task = joined(pairs)
    coar = la.Coar(n_masks=16, ablated_fraction=0.3)
    return task, la.attribute(backdoor, task, parts(backdoor), coar, progress=False)


def parts(model: LensModel) -> list[la.SiteSet]:
    return [la.attention_neurons(model), la.neurons(model)]


def edit(model: LensModel, found: tuple[la.Task, Attribution], **options) -> la.Edit:
    task, weights = found
    given = {"target": range(N), "reference": range(N, 2 * N), "progress": False, **options}
    return la.edit(weights, model, task, **given)


def test_components_come_in_the_order_of_welch_scores(backdoor, found):
    weights = found[1].weights.double().numpy()
    wanted, spared = weights[:N], weights[N:]
    spread = np.sqrt(wanted.var(axis=0) / N + spared.var(axis=0) / N)
    expected = (wanted.mean(axis=0) - spared.mean(axis=0)) / spread
    raised, lowered = (edit(backdoor, found, k=7, direction=way) for way in ("raise", "lower"))
    np.testing.assert_allclose(raised.scores.numpy(), expected, rtol=1e-4)
    np.testing.assert_array_equal(raised.order[:7], np.argsort(expected)[:7])
    np.testing.assert_array_equal(lowered.order[:7], np.argsort(-expected)[:7])
    by_difference = edit(backdoor, found, k=7, ranking="difference")
    np.testing.assert_array_equal(by_difference.order[:7], np.argsort(wanted.mean(axis=0) - spared.mean(axis=0))[:7])


def test_a_component_that_never_weighs_anything_is_neither_for_nor_against(backdoor, found):
    task, weights = found
    silent = weights.weights.clone()
    silent[:, :5] = 0
    silent[:N, 5], silent[N:, 5] = -1.0, 1.0  # the same on every example, so that the spread is 0
    chosen = edit(backdoor, (task, replace(weights, weights=silent)), k=1)
    assert chosen.scores[:5].tolist() == [0] * 5
    assert chosen.scores[5] == -torch.inf
    assert chosen.names == [weights.components.names[5]]


def test_effects_are_those_of_the_baked_checkpoint(backdoor, found, tmp_path: Path):
    chosen = edit(backdoor, found, k=40)
    again = la.load_model(la.bake(backdoor, chosen.ablations).save(tmp_path / "baked"))
    clean = la.tasks.digits(backdoor, 100)
    effect = chosen.measure(backdoor, clean)
    with torch.inference_mode():
        before, after = (clean.score(model(clean.inputs)) for model in (backdoor, again))
        answered = again(clean.inputs).argmax(dim=-1) == clean.answers
    assert effect.before == pytest.approx(float(before.mean()), abs=1e-5)
    assert effect.measured == pytest.approx(float((after - before).mean()), abs=1e-4)
    assert effect.share_after == pytest.approx(float(answered.float().mean()), abs=1e-6)
    assert sum(len(sites) for sites, _ in chosen.ablations) == 40 == len(chosen.names)


def test_the_prediction_is_what_the_weights_add_up_to(backdoor, found):
    chosen = edit(backdoor, found, k=9, reference=range(N, 2 * N - 5))
    lost = found[1].weights[:, chosen.order[:9].copy()].sum(dim=1)
    for name, rows in (("target", slice(N)), ("reference", slice(N, 2 * N - 5)), ("others", slice(2 * N - 5, None))):
        assert chosen.effects[name].predicted == pytest.approx(-float(lost[rows].mean()), rel=1e-4)
    assert chosen.effects["target"].predicted > 1
    assert chosen.effects["target"].measured > 1


def test_raising_targets_beats_random_removal_on_held_out_images(backdoor, found):
    chosen = edit(backdoor, found, k=40)
    attacked = la.tasks.triggered_digits(backdoor, 200)
    gained = chosen.measure(backdoor, attacked).measured
    generator = np.random.default_rng(0)
    chance = [
        replace(chosen, order=generator.permutation(len(chosen.order))).measure(backdoor, attacked).measured
        for _ in range(5)
    ]
    assert gained > max(chance) + 3


def test_k_follows_the_rule(backdoor, found):
    validation = tuple(
        la.tasks.triggered_digits(backdoor, 120, seed=1, split="train", trigger=yes) for yes in (True, False)
    )
    chosen = edit(backdoor, found, validation=validation, tolerance=0.03)
    allowed = [
        (-target, k)
        for k, target, reference, spares in chosen.scan.itertuples(index=False)
        if spares and reference >= chosen.scan["reference"][0] - 0.03 - 1e-9
    ]
    assert chosen.k == min(allowed)[1]
    assert chosen.settings["k_chosen_on"] == "validation"
    effect = chosen.effects["validation target"]
    row = chosen.scan[chosen.scan["k"] == chosen.k]
    assert effect.share_after == pytest.approx(float(row["target"].iloc[0]), abs=1e-6)
    assert np.isnan(effect.predicted)
    assert list(chosen.to_dataframe()["group"]) == list(chosen.effects)


def test_groups_that_cost_references_or_do_not_help_are_skipped(backdoor, pairs, found, monkeypatch):
    monkeypatch.setattr(editing, "LARGEST_SHARE", 96 / 576)
    task, weights = found
    shuffled = weights.weights[:, torch.randperm(576, generator=torch.Generator().manual_seed(0))]
    chosen = edit(backdoor, (task, replace(weights, weights=shuffled)), skipping=12, tolerance=0.0)
    ranking = np.argsort(chosen.scores.numpy(), kind="stable")

    def means(places: list[int]) -> tuple[float, float]:
        """The margin of targets and the share of references, with plain hooks."""
        flags = np.zeros(576, dtype=bool)
        flags[places] = True
        with ExitStack() as ablated, torch.inference_mode():
            for sites, method in editing.parts_of(chosen.components, flags, chosen.methods):
                ablated.enter_context(la.ablate(backdoor, sites, method))
            margin = pairs[0].with_metric(la.metrics.correct_margin).score(backdoor(pairs[0].inputs))
            right = backdoor(pairs[1].inputs).argmax(dim=-1) == pairs[1].answers
        return float(margin.mean()), float(right.float().mean())

    kept: list[int] = []
    margin, share = means(kept)
    for start in range(0, 96, 12):
        group = [*kept, *ranking[start : start + 12].tolist()]
        tried = means(group)
        if tried[0] > margin and tried[1] >= share - 1e-6:
            kept, margin = group, tried[0]
    assert 0 < len(kept) < 96
    assert chosen.order[: len(kept)].tolist() == kept
    assert sorted(chosen.order.tolist()) == list(range(576))
    assert chosen.k <= len(kept)
    with pytest.raises(ValueError, match="groups of 1 or more components, got 0"):
        edit(backdoor, found, skipping=0)


def test_nothing_is_ablated_where_nothing_helps(backdoor, pairs, found, caplog):
    clean = pairs[1]
    with torch.inference_mode():
        right = clean.select((backdoor(clean.inputs).argmax(dim=-1) == clean.answers).nonzero()[:, 0])
    chosen = edit(backdoor, found, validation=(right, right))  # no share can rise above 1
    assert (chosen.k, chosen.names, chosen.ablations) == (0, [], [])
    assert chosen.effects["target"].measured == 0
    assert "none is ablated" in caplog.text


def test_one_round_is_an_edit_and_further_ones_see_the_ablated_model(backdoor, pairs, found):
    coar = la.Coar(n_masks=16, ablated_fraction=0.3)
    options = {"k": 20, "progress": False}
    once = la.edit_in_rounds(backdoor, *pairs, parts(backdoor), coar, rounds=(20,), **options)
    np.testing.assert_array_equal(once.order[:20], edit(backdoor, found, k=20).order[:20])
    twice = la.edit_in_rounds(backdoor, *pairs, parts(backdoor), coar, rounds=(10, 10), **options)
    np.testing.assert_array_equal(twice.order[:10], once.order[:10])
    assert set(twice.order[:20].tolist()) != set(once.order[:20].tolist())
    assert sorted(twice.order.tolist()) == list(range(len(twice.components)))
    with la.ablate(backdoor, *twice.ablations[0]):  # nothing of the rounds is left on the model
        assert sum(len(point.fwd_hooks) for point in set(backdoor.hook_dict.values())) > 0
    assert sum(len(point.fwd_hooks) for point in set(backdoor.hook_dict.values())) == 0


def test_impossible_groups_are_refused(backdoor, found, unchecked):
    task, weights = found
    for options, message in (
        ({"target": range(N + 1)}, r"examples \[30\] are both target and reference"),
        ({"target": [0], "reference": [1]}, "one target and one reference tell nothing apart"),
        ({"target": []}, "there are no target examples"),
        ({"reference": [2 * N]}, r"reference examples must lie in 0..59, got 60..60"),
        ({"target": torch.zeros(2 * N, dtype=torch.bool)}, "not flags; pass flags.nonzero"),
        ({"k": 0}, r"k must lie in 1..576, got 0"),
        ({"ranking": "t-test"}, "ranking must be 'welch' or 'difference'"),
        ({"direction": "up"}, "direction must be 'raise' or 'lower'"),
        ({"method": la.Constant(0.1)}, "pass the same method="),
    ):
        given = {"target": range(N), "reference": range(N, 2 * N), "progress": False, **options}
        with pytest.raises(ValueError, match=message):
            unchecked(editing).edit(weights, backdoor, task, **given)


def test_edits_of_something_else_are_refused(backdoor, found, pairs):
    weights = found[1]
    with pytest.raises(ValueError, match="of other examples than this task"):
        edit(backdoor, (joined(pairs[::-1]), weights))
    with pytest.raises(StatisticsMismatch, match="with other weights"):
        edit(la.load_model("tiny-vit"), found)
    with pytest.raises(ValueError, match="is of correct_margin and this task is scored by loss"):
        edit(backdoor, (found[0].with_metric(la.metrics.loss), weights))
    elsewhere = replace(weights, settings={**weights.settings, "positions": "all_but_first"})
    with pytest.raises(ValueError, match="attribute with positions='all'"):
        edit(backdoor, (found[0], elsewhere))
    with pytest.raises(ValueError, match="pass the same positions="):
        la.counterfactual_correlation(elsewhere, backdoor, found[0], n_masks=3, progress=False)
    with pytest.raises(ValueError, match="rounds must add 1 to 576 components"):
        la.edit_in_rounds(backdoor, *pairs, parts(backdoor), la.Coar(), rounds=(0,), progress=False)
    with pytest.raises(ValueError, match="no number of components keeps the share of references"):
        edit(backdoor, found, tolerance=-1.0)
    with pytest.raises(ValueError, match=r"digit must lie in 0..9"):
        la.edits.forget_class(backdoor, 10)
    with pytest.raises(UnknownName, match="unknown relation 'capitals'; nearest: capital"):
        la.edits.forget_relation(la.load_model("tiny-lm"), "capitals")
