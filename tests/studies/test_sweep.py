"""Sweeps and pruning curves against plain loops over TransformerLens hooks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import lens_ablation as la
from lens_ablation.errors import BadActivation, DamagedFile
from lens_ablation.studies.masks import nested_removals
from tests.families import FAMILIES, N_HEADS, Family, build

pytestmark = pytest.mark.model


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return build(request.param, dtype=torch.float64)


@pytest.fixture(scope="module")
def gpt2() -> Family:
    return build("gpt2", dtype=torch.float64)


def a_task(family: Family, n: int = 5) -> la.Task:
    inputs = family.inputs(n)
    return la.Task(inputs=inputs, answers=torch.arange(n) % 5, wrong_answers=(torch.arange(n) + 1) % 5)


def looped(family: Family, task: la.Task, sites, method) -> torch.Tensor:
    """One forward pass to a site, as one would write it by hand."""
    rows = []
    for site in sites:
        with torch.no_grad():
            pairs = la.hooks(family.model, site, method, task=task)
            rows.append(task.score(family.model.run_with_hooks(task.inputs, fwd_hooks=pairs)).float())
    return torch.stack(rows)


METHODS = {
    "zero": lambda task: la.Zero(),
    "constant": lambda task: la.Constant(0.3),
    "fixed input": lambda task: la.Resample(task.inputs[:1]),
    "other examples": lambda task: la.Resample(task, match="batch", seed=2),
    "counterfactual": lambda task: la.Counterfactual(task.inputs.flip(0)),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("select", [la.heads, la.patterns, la.mlps], ids=lambda f: f.__name__)
def test_sweep_equals_a_loop_over_sites(family: Family, select, method: str):
    task = a_task(family)
    sites, strategy = select(family.model), METHODS[method](task)
    result = la.sweep(family.model, task, sites, strategy, progress=False)
    torch.testing.assert_close(result.values, looped(family, task, sites, strategy), atol=1e-6, rtol=1e-5)
    assert result.values.shape == (len(sites), 5)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 1000])
def test_batch_size_never_changes_a_number(gpt2: Family, batch_size: int):
    task = a_task(gpt2)
    strategy = la.Resample(task, match="batch")
    expected = la.sweep(gpt2.model, task, la.heads(gpt2.model), strategy, progress=False).values
    found = la.sweep(gpt2.model, task, la.heads(gpt2.model), strategy, batch_size=batch_size, progress=False).values
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_padded_examples_score_as_unpadded_ones(gpt2: Family):
    short = gpt2.inputs(n=2, n_pos=4)
    padded = torch.cat([short, torch.zeros(2, 3, dtype=torch.int64)], dim=1)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0]] * 2)
    answers = torch.tensor([7, 8])
    plain = la.Task(inputs=short, answers=answers)
    with_padding = la.Task(inputs=padded, answers=answers, attention_mask=mask)
    results = [
        la.sweep(gpt2.model, task, la.heads(gpt2.model), la.Resample(gpt2.inputs(1)), progress=False)
        for task in (plain, with_padding)
    ]
    torch.testing.assert_close(results[0].values, results[1].values, atol=1e-6, rtol=1e-6)


def test_effect_is_values_minus_baseline_with_an_interval_around_its_mean(gpt2: Family):
    result = la.sweep(gpt2.model, a_task(gpt2, 20), la.heads(gpt2.model), la.Zero(), progress=False)
    torch.testing.assert_close(result.effect, result.values - result.baseline)
    torch.testing.assert_close(result.mean, result.effect.mean(dim=1))
    low, high = result.interval()
    assert bool(((low <= result.mean) & (result.mean <= high)).all())
    standard_error = result.effect.std(dim=1) / 20**0.5
    torch.testing.assert_close(high - low, 2 * 1.96 * standard_error, rtol=0.25, atol=1e-6)


def test_sweep_is_saved_and_loaded(gpt2: Family, tmp_path):
    result = la.sweep(gpt2.model, a_task(gpt2), la.heads(gpt2.model)[1:], la.Zero(), progress=False)
    loaded = la.SweepResult.load(result.save(tmp_path / "sweep"))
    assert torch.equal(loaded.values, result.values)
    assert loaded.sites == result.sites
    assert loaded.settings["weight_processing"] == "raw"
    assert loaded.to_dataframe().equals(result.to_dataframe())
    with pytest.raises(DamagedFile):
        la.PruningCurve.load(tmp_path / "sweep")


def edit_manifest(folder: Path, **changed: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["settings"] |= changed
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("changed", [{"fractions": 3}, {"seeds": ["x"]}, {"methods": []}, {"n_removed": [1]}], ids=str)
def test_curves_changed_by_hand_are_damaged_files(gpt2: Family, tmp_path: Path, changed: dict):
    curve = la.pruning_curve(gpt2.model, a_task(gpt2), la.heads(gpt2.model), la.Zero(), seeds=(1,), progress=False)
    edit_manifest(curve.save(tmp_path / "curve"), **changed)
    with pytest.raises(DamagedFile, match="curve"):
        la.PruningCurve.load(tmp_path / "curve")


@pytest.mark.parametrize("changed", [{"shape": 3}, {"shape": [1, 1]}, {"kind": "mlp"}, {"settings": 5}], ids=str)
def test_sweeps_changed_by_hand_are_damaged_files(gpt2: Family, tmp_path: Path, changed: dict):
    result = la.sweep(gpt2.model, a_task(gpt2), la.heads(gpt2.model), la.Zero(), progress=False)
    edit_manifest(result.save(tmp_path / "sweep"), **changed)
    with pytest.raises(DamagedFile):
        la.SweepResult.load(tmp_path / "sweep")


def test_metric_given_to_the_verb_replaces_the_tasks_own(gpt2: Family):
    task = a_task(gpt2)
    result = la.sweep(
        gpt2.model, task, la.heads(gpt2.model), la.Zero(), metric=la.metrics.kl_from_clean, progress=False
    )
    torch.testing.assert_close(result.baseline, torch.zeros(5), atol=1e-6, rtol=0)
    assert bool((result.values > 0).all())
    own = la.sweep(
        gpt2.model, task, la.heads(gpt2.model), la.Zero(), metric=lambda logits, batch: logits[:, -1, 0], progress=False
    )
    assert own.settings["metric"] == "<lambda>"


def test_nan_weights_are_refused_before_anything_is_measured():
    family = build("gpt2")
    next(iter(family.model.parameters())).data[:] = float("nan")
    with pytest.raises(BadActivation, match="untouched model"):
        la.sweep(family.model, a_task(family), la.heads(family.model), la.Zero(), progress=False)


def test_progress_counts_to_the_total_once(gpt2: Family):
    told = []
    la.sweep(
        gpt2.model,
        a_task(gpt2),
        la.heads(gpt2.model),
        la.Zero(),
        progress=lambda done, total: told.append((done, total)),
    )
    assert told[-1] == (12 * 5, 12 * 5)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_masks_are_nested_equal_for_equal_seeds_and_of_the_papers_size():
    grid = np.indices((3, 20)).reshape(2, -1).T
    sites = la.SiteSet("neuron", grid, (3, 20))
    fractions = [0, 0.13, 0.26, 0.39, 1]
    masks = nested_removals(sites, fractions, "random_per_layer", 42, "step")
    np.random.default_rng(0).random()
    assert np.array_equal(masks, nested_removals(sites, fractions, "random_per_layer", 42, "step"))
    assert not np.array_equal(masks, nested_removals(sites, fractions, "random_per_layer", 43, "step"))
    assert bool((masks[1:] >= masks[:-1]).all())
    per_layer = masks.reshape(5, 3, 20).sum(axis=2)
    assert per_layer.tolist() == [[n] * 3 for n in (0, 2, 4, 6, 18)]
    assert nested_removals(sites, [1.0], "random_per_layer", 0).all()


def test_scores_remove_the_highest_first():
    sites = la.SiteSet("mlp", np.arange(4)[:, None], (4,))
    masks = nested_removals(sites, [0.25, 0.5], torch.tensor([0.1, 3.0, -2.0, 1.0]), 0)
    assert masks.tolist() == [[False, True, False, False], [False, True, False, True]]


@pytest.mark.parametrize("fractions", [[], [0.5, 0.2], [0, 1.5], [-0.1]])
def test_fractions_must_rise_within_0_and_1(fractions):
    sites = la.SiteSet("mlp", np.arange(4)[:, None], (4,))
    with pytest.raises(ValueError, match=r"0\.\.1"):
        nested_removals(sites, fractions, "random", 0)


def test_pruning_curve_equals_joint_ablation_of_the_same_masks(family: Family):
    task, sites = a_task(family), la.attention_neurons(family.model)
    methods = [la.Zero(), la.Resample(task.inputs[:1])]
    curve = la.pruning_curve(family.model, task, sites, methods, fractions=(0, 0.5, 1), seeds=(42, 123), progress=False)
    assert curve.values.shape == (2, 2, 3, 5)
    for m, method in enumerate(methods):
        for s, seed in enumerate((42, 123)):
            masks = nested_removals(sites, (0, 0.5, 1), "random_per_layer", seed)
            torch.testing.assert_close(curve.values[m, s, 0], curve.baseline, atol=1e-6, rtol=1e-6)
            for f in (1, 2):
                part = sites.take(np.flatnonzero(masks[f]))
                with torch.no_grad(), la.ablate(family.model, part, method):
                    expected = task.score(family.model(task.inputs)).float()
                torch.testing.assert_close(curve.values[m, s, f], expected, atol=1e-6, rtol=1e-5)


def test_strongest_sites_come_first(gpt2: Family):
    result = la.sweep(gpt2.model, a_task(gpt2), la.heads(gpt2.model), la.Zero(), progress=False)
    sizes = [float(result.mean[list(result.sites).index(site)].abs()) for site in result.strongest(4)]
    assert sizes == sorted(result.mean.abs().tolist(), reverse=True)[:4]


def test_methods_may_be_named_and_must_be_told_apart(gpt2: Family):
    task, heads = a_task(gpt2), la.heads(gpt2.model)
    two = [la.Resample(task.inputs[:1]), la.Resample(task.inputs[1:2])]
    with pytest.raises(ValueError, match="several methods are called"):
        la.pruning_curve(gpt2.model, task, heads, two, progress=False)
    named = dict(zip(("first", "second"), two, strict=True))
    curve = la.pruning_curve(gpt2.model, task, heads, named, fractions=(0.5,), seeds=(1,), progress=False)
    assert curve.methods == ("first", "second")


def test_pruning_curve_is_saved_and_loaded(gpt2: Family, tmp_path):
    curve = la.pruning_curve(gpt2.model, a_task(gpt2), la.heads(gpt2.model), la.Zero(), seeds=(1,), progress=False)
    loaded = la.PruningCurve.load(curve.save(tmp_path / "curve"))
    assert torch.equal(loaded.values, curve.values)
    assert loaded.to_dataframe().equals(curve.to_dataframe())
    assert curve.n_removed[-1] == 3 * N_HEADS
