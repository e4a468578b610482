"""Groups of neurons and the table of estimators against the same things done by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

import lens_ablation as la
from lens_ablation.empirical.groups import _drawn
from lens_ablation.errors import UnsupportedModel
from tests.empirical.by_hand import a_task, neurons_changed, probabilities, read_of
from tests.families import N_LAYERS, build

DOUBLE = torch.float64


@pytest.mark.model
@pytest.mark.parametrize("name", ["gpt2", "llama", "vit"])
def test_a_group_is_shifted_together_as_by_hooks_on_the_plain_model(name: str):
    family = build(name, dtype=DOUBLE)
    up = name == "llama"
    task, layer = a_task(family), 1
    found = la.neuron_gradients(family.model, task, None, dtype=DOUBLE, progress=False)
    here = la.SiteSet(found.sites.kind, found.sites[layer].addresses, found.sites.shape)
    few = la.neuron_gradients(family.model, task, here, dtype=DOUBLE, progress=False)
    effects = la.group_effects(family.model, task, few, amount=0.3, sizes=[5], n_groups=3, seed=2, progress=False)
    shifts = torch.from_numpy(_drawn(np.random.default_rng(2), 3, len(here), 5)) * 0.3
    assert (shifts != 0).sum(dim=1).tolist() == [5, 5, 5]
    before = probabilities(family, task, few.candidates)
    for group in range(3):
        with neurons_changed(family, layer, read_of(task), lambda v, g=group: v + shifts[g] * v.sign(), up=up):
            after = probabilities(family, task, few.candidates)
        torch.testing.assert_close(effects.measured[0, group].double(), after - before, atol=2e-7, rtol=1e-4)
        expected = torch.einsum("n,ecn->ec", shifts[group], few.values)
        torch.testing.assert_close(effects.predicted[0, group].double(), expected, atol=1e-8, rtol=1e-5)


def test_predictions_hold_for_small_shifts_and_fail_for_large_ones(tmp_path: Path):
    family = build("gpt2", dtype=DOUBLE)
    task = a_task(family, n=4)
    for way in (la.NeurGrad(), la.Gradient()):
        found = la.neuron_gradients(family.model, task, None, way, dtype=DOUBLE, progress=False)
        small, large = (
            la.group_effects(family.model, task, found, amount=amount, n_groups=12, progress=False)
            for amount in (1e-4, 3.0)
        )
        assert small.sizes == (1, 2, 4, 8, 16, 32, 64, 128, 144)
        assert float(small.correlation.min()) > 0.999
        assert small.share.tolist() == pytest.approx([1] * 9, abs=0.02)
        assert float(large.correlation[-1]) < 0.98
    example, size = 1, 4
    r = pearsonr(large.predicted[size, :, example, 0], large.measured[size, :, example, 0]).statistic
    assert float(large.correlations[size, example]) == pytest.approx(r, abs=1e-9)
    low, high = large.interval()
    assert bool((low <= large.correlation + 1e-12).all())
    assert bool((high >= large.correlation - 1e-12).all())
    again = la.GroupEffects.load(large.save(tmp_path / "groups"))
    assert torch.equal(again.measured, large.measured)
    assert again.to_dataframe().equals(large.to_dataframe())
    assert len(large.plot().data) == 2


def test_groups_of_other_examples_models_or_sizes_are_refused():
    family, other = build("gpt2"), build("gpt2", seed=5)
    task = a_task(family)
    found = la.neuron_gradients(family.model, task, la.neurons(family.model)[0], progress=False)
    with pytest.raises(ValueError, match="gradients are of other examples"):
        la.group_effects(family.model, a_task(family, seed=9), found, progress=False)
    with pytest.raises(ValueError, match="gradients are of another model"):
        la.group_effects(other.model, task, found, progress=False)
    with pytest.raises(ValueError, match=r"sizes must lie in 1\.\.48, got \[49\]"):
        la.group_effects(family.model, task, found, sizes=[49], progress=False)
    with pytest.raises(ValueError, match="n_groups is 1"):
        la.group_effects(family.model, task, found, n_groups=1, progress=False)


@pytest.mark.model
@pytest.mark.parametrize("name", ["gpt2", "vit"])
def test_the_table_has_the_correlations_of_scipy_in_both_conventions(name: str, tmp_path: Path):
    family = build(name, dtype=DOUBLE)
    task, some = a_task(family, n=4), la.neurons(family.model)[:, ::8]
    ways = [la.Gradient(), la.IntegratedGradients(steps=3), la.NeurGrad()]
    found = la.compare_gradients(
        family.model, task, some, ways, measured=la.EmpiricalGradient(0.2, 0.1), progress=False
    )
    table = found.to_dataframe().set_index(["estimator", "measured", "probabilities"])
    for way in ways:
        estimate = la.neuron_gradients(family.model, task, some, way, dtype=DOUBLE, progress=False)
        for shift in ("signed", "additive"):
            truth = la.neuron_gradients(
                family.model, task, some, la.EmpiricalGradient(0.2, 0.1, shift), dtype=DOUBLE, progress=False
            )
            row = table.loc[(way.name, shift, "all")]
            x, y = truth.values.flatten().numpy(), estimate.values.flatten().numpy()
            assert row["r"] == pytest.approx(pearsonr(x, y).statistic, abs=1e-4)
            assert row["mae"] == pytest.approx(np.abs(x - y).mean(), rel=1e-3)
            assert row["n"] == len(x)
            for c, group in enumerate(("live", "saturated")):
                chosen = truth.saturated == bool(c)
                assert table.loc[(way.name, shift, group), "n"] == int(chosen.sum()) * len(some)
    assert table.loc[("NeurGrad", "signed", "all"), "r"] > 0.999
    assert table.loc[("Gradient", "additive", "all"), "r"] > 0.999
    assert table.loc[("Gradient", "signed", "all"), "r_converted"] > 0.999
    assert table.loc[("Gradient", "signed", "all"), "r"] < 0.5
    assert bool((table["seconds_per_prompt"] > 0).all())
    assert len(found.plot().data) == 6
    again = la.GradientComparison.load(found.save(tmp_path / "comparison"))
    assert again.to_dataframe().equals(found.to_dataframe())
    low, high = found.interval("NeurGrad", "signed")
    assert 0.99 < float(low) <= float(high) <= 1 + 1e-12


def test_a_comparison_is_refused_where_it_has_no_meaning():
    family = build("gpt2")
    task, some = a_task(family), la.neurons(family.model)[0, :4]
    with pytest.raises(ValueError, match="is what estimates are compared with"):
        la.compare_gradients(family.model, task, some, [la.EmpiricalGradient()], progress=False)
    with pytest.raises(ValueError, match="estimators of different names"):
        la.compare_gradients(family.model, task, some, [la.NeurGrad(), la.NeurGrad()], progress=False)
    signed = la.neuron_gradients(family.model, task, some, la.EmpiricalGradient(0.2, 0.1), progress=False)
    with pytest.raises(ValueError, match=r"must come of EmpiricalGradient\(shift='additive'\)"):
        la.compare_gradients(family.model, task, some, [la.NeurGrad()], measured=signed, progress=False)
    found = la.compare_gradients(
        family.model, task, some, [la.NeurGrad()], measured=la.EmpiricalGradient(0.2, 0.1), progress=False
    )
    with pytest.raises(ValueError, match="no estimator 'Gradient' here; there are NeurGrad"):
        found.of("Gradient")


def test_figures_show_what_the_results_hold():
    family = build("gpt2")
    task = a_task(family)
    found = la.neuron_gradients(
        family.model, task, la.neurons(family.model)[:, :6], la.EmpiricalGradient(0.4, 0.2), progress=False
    )
    curves = found.curves
    figure = curves.plot([2, 0])
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert [line.name.partition(",")[0] for line in lines] == ["L0N2", "L0N0"]
    np.testing.assert_allclose(lines[0].x, [-0.4, -0.2, 0, 0.2, 0.4])
    np.testing.assert_allclose(np.delete(lines[0].y, 2), curves.changes[:, 0, 2].mean(dim=0), atol=1e-12)
    assert len(curves.plot().data) == 12
    with pytest.raises(ValueError, match=r"places in 0\.\.17, got \[18\]"):
        curves.plot([18])
    by_layer = curves.plot_linearity()
    assert [trace.name for trace in by_layer.data] == [f"layer {layer}" for layer in range(N_LAYERS)]
    share = curves.by_layer()["linear"].to_numpy()
    np.testing.assert_allclose([trace.y[-1] for trace in by_layer.data], 100 * share)
    np.testing.assert_allclose(found.plot().data[0].y, found.values[:, 0].mean(dim=0), rtol=1e-5)


def test_groups_of_up_projections_are_shifted_where_weights_were_processed():
    family = build("llama", dtype=DOUBLE)
    family.model.enable_compatibility_mode(disable_warnings=True)
    task = a_task(family)
    few = la.neurons(family.model, at="pre_linear")[1, :5]
    found = la.neuron_gradients(family.model, task, few, dtype=DOUBLE, progress=False)
    effects = la.group_effects(family.model, task, found, amount=1e-3, sizes=[5], n_groups=4, progress=False)
    torch.testing.assert_close(effects.measured, effects.predicted, atol=1e-7, rtol=0.05)
    assert float(effects.measured.abs().max()) > 1e-6
    with pytest.raises(UnsupportedModel, match="processed"), la.shift(family.model, few, 1.0):
        pass
