"""Probes with few neurons, agreement between probes, and their figures."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import lens_ablation as la
from tests.empirical.hand_made import random_case


def test_a_curve_is_each_probe_fitted_alone():
    train, labels = random_case(60, 3, 30)
    test, asked = random_case(40, 3, 30, seed=1)
    probes = [la.PolarityProbe(), la.MagnitudeProbe(rule="sum"), la.ActivationProbe()]
    curve = la.probe_curve(train, labels, test, asked, probes, ks=(1, 3, 30))
    assert curve.correct.shape == (3, 3, 40)
    for i, k in enumerate((1, 3, 30)):
        for j, probe in enumerate((la.PolarityProbe(k), la.MagnitudeProbe(k, rule="sum"), la.ActivationProbe(k))):
            alone = la.fit_skill_probe(train, labels, probe)
            assert torch.equal(curve.correct[j, i], alone.predict(test) == asked)
    assert torch.equal(curve.model_correct, test.probabilities.argmax(dim=1) == asked)
    table = curve.to_dataframe()
    assert (table["low"] <= table["accuracy"]).all()
    assert (table["accuracy"] <= table["high"]).all()
    assert len(table) == 9
    parts = [train.select(slice(0, 25)), train.select(slice(25, 60))]
    assert torch.equal(la.probe_curve(parts, labels, test, asked, probes, ks=(1, 3, 30)).correct, curve.correct)


def test_probes_of_parts_share_no_example_and_have_every_label():
    train, labels = random_case(61, 3, 30)
    probes = la.probes_of_parts(train, labels, la.PolarityProbe(k=5), n_parts=3, seed=1)
    assert sum(probe.n_examples for probe in probes.values()) == 61
    # scores are sums over examples, so that those of disjoint parts add up to those of all
    whole = la.fit_skill_probe(train, labels, la.PolarityProbe(k=5))
    assert torch.equal(torch.stack([probe.scores for probe in probes.values()]).sum(dim=0), whole.scores)
    for probe in probes.values():
        assert 20 <= probe.n_examples <= 21
    other = la.probes_of_parts(train, labels, la.PolarityProbe(k=5), n_parts=3, seed=2)
    assert not torch.equal(other["part 1"].scores, probes["part 1"].scores)


def test_agreement_is_rank_correlation_and_shared_neurons():
    train, labels = random_case(60, 3, 30)
    probes = la.probes_of_parts(train, labels, la.MagnitudeProbe(k=6))
    table = la.probe_agreement(probes)
    first, second = probes.values()
    row = table.iloc[0]
    assert row["rank"] == pytest.approx(spearmanr(first.scores, second.scores).statistic)
    both = set(first.neurons) & set(second.neurons)
    assert row["shared"] == len(both) / 6
    assert row["by_chance"] == 6 / 30
    signs = [dict(zip(p.neurons, p.polarities.tolist(), strict=True)) for p in (first, second)]
    assert row["same_sign"] == pytest.approx(np.mean([signs[0][site] == signs[1][site] for site in both]))
    same = la.probe_agreement({"a": first, "b": first, "c": second})
    assert same.iloc[0]["rank"] == pytest.approx(1.0)
    assert same.iloc[0]["shared"] == same.iloc[0]["same_sign"] == 1.0
    assert len(same) == 3


def test_figures_have_axes_lines_and_the_models_own_answer():
    train, labels = random_case(60, 3, 30)
    test, asked = random_case(40, 3, 30, seed=1)
    figure = la.probe_curve(train, labels, test, asked, ks=(1, 2, 8)).plot()
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert [line.name for line in lines] == ["PolarityProbe", "MagnitudeProbe", "ActivationProbe"]
    assert figure.layout.yaxis.title.text == "right answers (%)"
    assert any("own answer" in note.text for note in figure.layout.annotations)
    probe = la.fit_skill_probe(train, labels, la.PolarityProbe(k=12))
    bars = probe.plot().data
    assert sum(sum(bar.y) for bar in bars) == len(probe.neurons)
    by_layer = np.bincount(probe.neurons.addresses[:, 0], minlength=2)
    assert np.array_equal(sum(np.asarray(bar.y) for bar in bars), by_layer)


def test_bad_requests_say_what_to_do():
    train, labels = random_case(60, 3, 30)
    with pytest.raises(ValueError, match="ForestProbe has no number of neurons"):
        la.probe_curve(train, labels, train, labels, la.ForestProbe())
    for ks in ((), (4, 2), (2, 2)):
        with pytest.raises(ValueError, match="growing numbers"):
            la.probe_curve(train, labels, train, labels, ks=ks)
    for n_parts in (1, 21):
        with pytest.raises(ValueError, match=r"n_parts must lie in 2\.\.20"):
            la.probes_of_parts(train, labels, la.PolarityProbe(k=2), n_parts=n_parts)
    probe = la.fit_skill_probe(train, labels, la.PolarityProbe(k=2))
    other = la.fit_skill_probe(train, labels, la.MagnitudeProbe(k=2))
    wrong = [{"a": probe}, {"a": probe, "b": other}]
    wrong.append({name: la.fit_skill_probe(train, labels, la.LogProbProbe()) for name in "ab"})
    for probes in wrong:
        with pytest.raises(ValueError, match="two or more probes of one kind"):
            la.probe_agreement(probes)
    few, few_labels = random_case(60, 3, 20)
    small = la.fit_skill_probe(few, few_labels, la.PolarityProbe(k=2))
    with pytest.raises(ValueError, match="different neurons"):
        la.probe_agreement({"a": probe, "b": small})
