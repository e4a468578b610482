"""Probes against the same formulas written in NumPy, against scikit-learn, and by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier

import lens_ablation as la
from lens_ablation.empirical.activation_probe import nodes_of
from lens_ablation.empirical.forest_probe import favoured, forest_votes
from lens_ablation.empirical.probe import Probe, strongest
from lens_ablation.empirical.probes import PROBES
from lens_ablation.errors import DamagedFile
from tests.empirical.hand_made import activation, gradients_of, magnitude, polarity, random_case
from tests.families import FAMILIES, build

KINDS: list[Probe] = [
    la.PolarityProbe(k=5),
    la.PolarityProbe(k=5, positive_only=True),
    la.MagnitudeProbe(k=5),
    la.MagnitudeProbe(k=5, rule="sum"),
    la.ActivationProbe(k=5),
    la.ForestProbe(n_trees=7),
    la.LogProbProbe(),
]


def kind_of(probe: Probe) -> str:
    return "-".join([type(probe).__name__, *(str(value) for value in probe.settings.values())])


def test_two_candidates_by_hand():
    """Neuron 0 speaks for the right candidate, neuron 1 against it, neuron 2 is silent, neuron 3 only in size."""
    values = [
        [[1.0, -2.0, 0.0, 3.0], [-1.0, 1.0, 0.0, 1.0]],  # right: 0
        [[-1.0, 3.0, 0.0, 1.0], [2.0, -1.0, 0.0, 2.0]],  # right: 1
        [[4.0, -1.0, 0.0, 0.5], [-2.0, 2.0, 0.0, 0.1]],  # right: 0
    ]
    labels = torch.tensor([0, 1, 0])
    found = gradients_of(values)
    polar = la.fit_skill_probe(found, labels, la.PolarityProbe(k=2))
    assert polar.scores.tolist() == [6, -6, 0, 0]
    assert [str(site) for site in polar.neurons] == ["L0N0", "L0N1"]
    assert polar.polarities.tolist() == [1, -1]
    assert polar.predict(found).tolist() == labels.tolist()
    magnitudes = la.fit_skill_probe(found, labels, la.MagnitudeProbe(k=3))
    assert magnitudes.scores.tolist() == [3, -3, 0, 3]
    assert magnitudes.to_dataframe()["site"].tolist() == ["L0N0", "L0N1", "L1N1"]
    assert magnitudes.predict(found).tolist() == labels.tolist()
    forest = la.fit_skill_probe(found, labels, la.ForestProbe(n_trees=5))
    assert favoured(found.values).tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [1, 0, 0, 1]]
    # what the forest is told is whether the first candidate is right
    assert forest.probe.needs(found, labels)["targets"].tolist() == [1, 0, 1]


def test_votes_and_sums_of_three_candidates_by_hand():
    """A tie within a neuron gives a vote to each; a large gradient outweighs two votes in the sum alone."""
    train = [[[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0], [2.0, 1.0, 1.0], [0.0, 0.0, 0.0]]]
    labels = torch.tensor([0, 1])
    question = gradients_of([[[5.0, 0.0, 0.0], [5.0, 2.0, 1.0], [0.0, 2.0, 9.0]]])
    votes = la.fit_skill_probe(gradients_of(train), labels, la.MagnitudeProbe(k=3))
    assert votes.scores.tolist() == [4, 4, 4]
    # votes: candidates 0 and 1 of neuron 0, 1 and 2 of neuron 1, 2 of neuron 2; of equal ones the first
    assert votes.predict(question).tolist() == [1]
    total = la.fit_skill_probe(gradients_of(train), labels, la.MagnitudeProbe(k=3, rule="sum"))
    assert total.predict(question).tolist() == [2]
    nothing = gradients_of(torch.zeros(1, 3, 3))
    assert votes.predict(nothing).tolist() == total.predict(nothing).tolist() == [0]


@given(
    n_candidates=st.integers(2, 5),
    n_examples=st.integers(10, 30),
    k=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_probes_are_the_formulas_written_again(n_candidates: int, n_examples: int, k: int, seed: int):
    train, labels = random_case(n_examples, n_candidates, 12, seed)
    test, _ = random_case(9, n_candidates, 12, seed + 1)
    arrays = train.values.numpy(), labels.tolist(), test.values.numpy()
    scores, expected = polarity(*arrays, k)
    if scores.any():
        found = la.fit_skill_probe(train, labels, la.PolarityProbe(k))
        assert found.scores.tolist() == scores.tolist()
        assert found.predict(test).tolist() == expected
    for rule in ("votes", "sum"):
        scores, expected = magnitude(*arrays, k, rule)
        if scores.any():
            found = la.fit_skill_probe(train, labels, la.MagnitudeProbe(k, rule=rule))
            assert found.scores.tolist() == scores.tolist()
            assert found.predict(test).tolist() == expected
    expected, n_used = activation(
        train.activations.numpy(), labels.tolist(), test.activations.numpy(), k, list(range(n_candidates))
    )
    found = la.fit_skill_probe(train, labels, la.ActivationProbe(k))
    assert found.predict(test).tolist() == expected
    assert found.state["node_places"].numel() == n_used == k * (n_candidates - 1)
    model = la.fit_skill_probe(train, labels, la.LogProbProbe())
    assert model.predict(test).tolist() == test.probabilities.numpy().argmax(axis=1).tolist()


def test_labels_are_halved_and_each_half_again():
    assert nodes_of(2) == [(0, 1, 2)]
    assert nodes_of(3) == [(0, 1, 3), (1, 2, 3)]
    assert nodes_of(5) == [(0, 2, 5), (0, 1, 2), (2, 3, 5), (3, 4, 5)]
    assert [len(nodes_of(n)) for n in range(2, 9)] == list(range(1, 8))


def test_a_majority_that_is_even_goes_to_the_first_label():
    activations = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    labels = torch.tensor([0, 0, 1, 1])
    train = gradients_of(torch.ones(4, 2, 2), activations=activations)
    probe = la.fit_skill_probe(train, labels, la.ActivationProbe(k=2))
    split = gradients_of(torch.ones(1, 2, 2), activations=torch.tensor([[1.0, 0.0]]))
    assert probe.predict(split).tolist() == [0]
    assert probe.predict(train).tolist() == labels.tolist()


@pytest.mark.parametrize("n_candidates", [2, 3, 5])
@pytest.mark.parametrize("max_depth", [None, 2])
def test_trees_kept_as_arrays_predict_as_scikit_learn_does(n_candidates: int, max_depth: int | None):
    train, labels = random_case(60, n_candidates, 30)
    test, _ = random_case(80, n_candidates, 30, seed=1)
    probe = la.fit_skill_probe(train, labels, la.ForestProbe(max_depth=max_depth))
    features = [favoured(part.values).numpy() for part in (train, test)]
    if n_candidates == 2:
        targets = (labels == 0).long().numpy()
        assert np.array_equal(features[0], (train.values[:, 0] > train.values[:, 1]).numpy())
    else:
        targets = labels.numpy()
        assert np.array_equal(features[0], train.values.numpy().argmax(axis=1))
    forest = RandomForestClassifier(n_estimators=100, max_depth=max_depth, random_state=42)
    forest.fit(features[0], targets)
    votes = forest_votes(probe.state, features[1])
    np.testing.assert_array_equal(votes, forest.predict_proba(features[1]))
    expected = forest.predict(features[1])
    assert probe.predict(test).tolist() == (1 - expected if n_candidates == 2 else expected).tolist()
    np.testing.assert_array_equal(probe.scores.numpy(), forest.feature_importances_)
    assert len(probe.neurons) == (forest.feature_importances_ > 0).sum()
    if max_depth is None:
        assert probe.accuracy(train, labels) > 0.9


def test_a_forest_that_saw_only_some_labels_never_names_the_others():
    train, labels = random_case(40, 4, 10)
    rows = (labels == 1) | (labels == 3)
    chosen = torch.arange(40)[rows]
    probe = la.fit_skill_probe(train.select(chosen), labels[rows], la.ForestProbe(n_trees=5))
    assert set(probe.predict(train).tolist()) == {1, 3}


@pytest.mark.parametrize("probe", KINDS, ids=kind_of)
@pytest.mark.parametrize("n_candidates", [2, 3])
def test_parts_give_the_probe_of_the_whole(probe: Probe, n_candidates: int):
    train, labels = random_case(50, n_candidates, 20)
    whole = la.fit_skill_probe(train, labels, probe)
    parts = (train.select(slice(at, at + 7)) for at in range(0, 50, 7))
    streamed = la.fit_skill_probe(parts, labels, probe)
    assert streamed.state.keys() == whole.state.keys()
    for name, value in whole.state.items():
        assert torch.equal(streamed.state[name], value), name
    assert streamed.n_examples == 50


@pytest.mark.parametrize("probe", KINDS, ids=kind_of)
@pytest.mark.parametrize("n_candidates", [2, 3])
def test_what_was_saved_predicts_the_same(probe: Probe, n_candidates: int, tmp_path: Path):
    train, labels = random_case(50, n_candidates, 20)
    fitted = la.fit_skill_probe(train, labels, probe)
    read = la.SkillProbe.load(fitted.save(tmp_path / "probe"))
    assert read.probe == probe
    assert torch.equal(read.predict(train), fitted.predict(train))
    assert read.to_dataframe().equals(fitted.to_dataframe())
    assert read.settings == fitted.settings
    assert not list((tmp_path / "probe").glob("*.p*k*l*"))


def test_files_that_were_changed_are_refused(tmp_path: Path):
    train, labels = random_case(20, 3, 8)
    folder = la.fit_skill_probe(train, labels, la.PolarityProbe(k=3)).save(tmp_path / "probe")
    manifest = folder / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"PolarityProbe"', '"Nobody"'))
    with pytest.raises(DamagedFile, match="no probe 'Nobody'"):
        la.SkillProbe.load(folder)
    stored = json.loads(text)
    stored["settings"]["probe_settings"] = {"depth": 3}
    manifest.write_text(json.dumps(stored))
    with pytest.raises(DamagedFile):
        la.SkillProbe.load(folder)


def test_neurons_of_equal_scores_are_taken_by_place():
    scores = torch.tensor([1, -3, 3, 0, -3, 1])
    assert strongest(scores, 6).tolist() == [1, 2, 4, 0, 5, 3]
    many = torch.ones(5000, dtype=torch.int64)
    assert strongest(many, 100).tolist() == list(range(100))
    values = torch.zeros(4, 2, 6)
    values[:, 0] = 1.0
    probe = la.fit_skill_probe(gradients_of(values), torch.zeros(4, dtype=torch.int64), la.PolarityProbe(k=3))
    assert probe.neurons.addresses.tolist() == [[0, 0], [0, 1], [0, 2]]


def test_positive_only_leaves_the_others_out():
    train, labels = random_case(60, 3, 40)
    everything = la.fit_skill_probe(train, labels, la.MagnitudeProbe(k=40))
    positive = la.fit_skill_probe(train, labels, la.MagnitudeProbe(k=40, positive_only=True))
    assert torch.equal(everything.scores, positive.scores)
    assert positive.polarities.tolist() == [1] * int((positive.scores > 0).sum())
    assert (everything.polarities == -1).any()
    order = [n for n in everything.neurons if everything.scores[list(train.sites).index(n)] > 0]
    assert list(positive.neurons) == order


def test_a_neuron_without_a_score_is_never_used():
    values = torch.zeros(4, 2, 6)
    values[:, 0, 2] = 1.0
    probe = la.fit_skill_probe(gradients_of(values), torch.zeros(4, dtype=torch.int64), la.PolarityProbe(k=4))
    assert [str(site) for site in probe.neurons] == ["L0N2"]


def test_training_accuracy_of_the_activation_probe_descends_by_what_it_predicts():
    """Not by the true group, as in the authors' release: an example that is lost above cannot be right below."""
    train, labels = random_case(60, 4, 6, seed=3)
    probe = la.fit_skill_probe(train, labels, la.ActivationProbe(k=1))
    expected, _ = activation(train.activations.numpy(), labels.tolist(), train.activations.numpy(), 1, list(range(4)))
    assert probe.accuracy(train, labels) == np.mean(np.array(expected) == labels.numpy()) < 1


@pytest.mark.parametrize("probe", KINDS, ids=kind_of)
def test_gradients_of_something_else_are_refused(probe: Probe):
    train, labels = random_case(20, 3, 8)
    fitted = la.fit_skill_probe(train, labels, probe)
    other, _ = random_case(20, 3, 10)
    with pytest.raises(ValueError, match="gradients of other neurons"):
        fitted.predict(other)
    more, _ = random_case(20, 4, 8)
    with pytest.raises(ValueError, match="questions of 3 candidates and these have 4"):
        fitted.predict(more)
    with pytest.raises(ValueError, match=r"signed gradients and these are additive; take gradients\.signed"):
        fitted.predict(gradients_of(train.values, shift="additive"))
    with pytest.raises(ValueError, match="another model"):
        fitted.predict(gradients_of(train.values, fingerprint="another"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2, 0], "4 labels for gradients of 6"),
        ([0, 1, 2, 0, 1, 3], "0..2, got 0..3"),
        ([-1, 1, 2, 0, 1, 2], "0..2, got -1..2"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: list[int], message: str):
    train, _ = random_case(6, 3, 8)
    with pytest.raises(ValueError, match=message):
        la.fit_skill_probe(train, torch.tensor(labels), la.PolarityProbe(k=2))


def test_bad_requests_say_what_to_do(unchecked: Any):
    train, labels = random_case(6, 3, 8)
    for make in (la.PolarityProbe, la.MagnitudeProbe, la.ActivationProbe):
        with pytest.raises(ValueError, match="k must be 1"):
            make(k=0)
        with pytest.raises(ValueError, match="k=9 neurons are asked for and there are 8"):
            la.fit_skill_probe(train, labels, make(k=9))
    from lens_ablation.empirical import sign_probes

    with pytest.raises(ValueError, match="'votes' or 'sum'"):
        unchecked(sign_probes).MagnitudeProbe(rule="mean")
    with pytest.raises(ValueError, match="1 or more"):
        la.ForestProbe(n_trees=0)
    with pytest.raises(ValueError, match="no gradients"):
        la.fit_skill_probe([], labels, la.PolarityProbe())
    with pytest.raises(ValueError, match="6 examples; give each one label"):
        la.fit_skill_probe([train], torch.cat([labels, labels]), la.PolarityProbe(k=2))
    with pytest.raises(ValueError, match="score that is not zero"):
        la.fit_skill_probe(gradients_of(torch.zeros(3, 2, 4)), torch.tensor([0, 1, 0]), la.PolarityProbe(k=2))
    with pytest.raises(ValueError, match="not finite"):
        la.fit_skill_probe(gradients_of(torch.full((3, 2, 4), torch.nan)), torch.tensor([0, 1, 0]), la.ForestProbe())
    with pytest.raises(ValueError, match="one candidate"):
        la.fit_skill_probe(gradients_of(torch.ones(3, 1, 4)), torch.zeros(3, dtype=torch.int64), la.PolarityProbe(k=2))
    one = random_case(6, 3, 8)[0].select(torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"no training example has a label of \[1, 2\]"):
        la.fit_skill_probe(one, torch.tensor([0, 0]), la.ActivationProbe(k=2))
    with pytest.raises(ValueError, match="give parts of one kind"):
        la.fit_skill_probe([train, random_case(6, 2, 8)[0]], torch.cat([labels, labels % 2]), la.PolarityProbe(k=2))


def test_all_probes_can_be_read_and_cited():
    assert {type(probe).__name__ for probe in KINDS} == set(PROBES)
    assert "zhao2025neuron" in la.cite(la.PolarityProbe)
    assert "wang2022finding" in la.cite(la.ActivationProbe(k=3))


def test_a_skill_is_read_from_neurons_of_tiny_lm():
    """Texts that break off anywhere: the model's next word does not say their domain, and its neurons do."""
    model = la.load_model("tiny-lm")
    asked = [la.skills.domain(model, n=60, split=split, wordings="new") for split in ("train", "test")]
    found = [la.neuron_gradients(model, one.task, candidates=one.candidates, progress=False) for one in asked]
    own = la.fit_skill_probe(found[0], asked[0].labels, la.LogProbProbe())
    expected = (asked[1].probabilities(model).argmax(dim=1) == asked[1].labels).float().mean()
    assert own.accuracy(found[1], asked[1].labels) == pytest.approx(float(expected), abs=1e-6)
    assert len(own.neurons) == 0
    probe = la.fit_skill_probe(found[0], asked[0].labels, la.ForestProbe())
    assert probe.accuracy(found[1], asked[1].labels) > float(expected) + 0.2


@pytest.mark.model
@pytest.mark.parametrize("name", FAMILIES)
def test_probes_take_the_gradients_of_every_family(name: str):
    """Down to a probe that names the answers of a random model's own choice, from its probabilities."""
    family = build(name)
    inputs = family.inputs(24)
    with torch.no_grad():
        logits = family.model(inputs, return_type="logits")
    ids = torch.arange(4) if name == "vit" else torch.arange(10, 14)
    read = logits if name == "vit" else logits[:, -1]
    labels = read[:, ids].argmax(dim=1)
    task = la.Task(inputs=inputs, answers=ids[labels])
    found = la.neuron_gradients(family.model, task, candidates=ids, progress=False)
    assert la.fit_skill_probe(found, labels, la.LogProbProbe()).accuracy(found, labels) == 1.0
    for probe in (la.PolarityProbe(8), la.MagnitudeProbe(8), la.ForestProbe(n_trees=20)):
        fitted = la.fit_skill_probe(found, labels, probe)
        assert fitted.predict(found).shape == (24,)
        assert fitted.neurons.kind == ("pre_linear" if name == "llama" else "neuron")
    assert fitted.accuracy(found, labels) > 0.9
    other = la.neuron_gradients(build(name, seed=5).model, task, candidates=ids, progress=False)
    with pytest.raises(ValueError, match="gradients of another model"):
        fitted.predict(other)


def test_classes_of_images_are_candidates_too():
    """The ten digits of tiny-vit, at the class token."""
    model = la.load_model("tiny-vit")
    train, test = (la.tasks.digits(model, n=120, split=split) for split in ("train", "held_out"))
    digits = torch.arange(10)
    seen, found = (la.neuron_gradients(model, one, candidates=digits, progress=False) for one in (train, test))
    probe = la.fit_skill_probe(seen, train.answers, la.MagnitudeProbe(k=64))
    own = la.fit_skill_probe(seen, train.answers, la.LogProbProbe())
    assert own.accuracy(found, test.answers) > 0.9
    assert probe.accuracy(found, test.answers) > 0.5
    activations = la.fit_skill_probe(seen, train.answers, la.ActivationProbe(k=16))
    assert activations.state["node_places"].shape == (9, 16)
    assert activations.accuracy(found, test.answers) > 0.5
