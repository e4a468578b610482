"""Overlap against counting by hand and simulation; cross-pruning against the plain model; fresh weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lens_ablation as la
from lens_ablation.errors import StoreMismatch
from lens_ablation.modularity import cross
from tests.families import build
from tests.modularity.test_prune import tasks


def some_sets() -> dict[str, la.SiteSet]:
    neurons = la.neurons(build("gpt2").model)
    rng = np.random.default_rng(3)
    early = rng.choice(96, size=30, replace=False)
    late = np.concatenate([rng.choice(48, size=5, replace=False), 96 + rng.choice(48, size=20, replace=False)])
    return {"a": neurons.take(early), "b": neurons.take(late), "all": neurons}


def test_overlap_is_that_of_counting():
    sets = some_sets()
    found = la.overlap(sets)
    for i, a in enumerate(sets.values()):
        for j, b in enumerate(sets.values()):
            both = len(set(a) & set(b))
            assert found.overlap[i, j] == both / len(a)
            assert found.jaccard[i, j] == pytest.approx(both / len(set(a) | set(b)))
            for layer in range(3):
                mine = {site for site in a if site.layer == layer}
                share = len(mine & set(b)) / len(mine) if mine else np.nan
                np.testing.assert_equal(found.overlap_by_layer[i, j, layer], share)
    assert found.sizes.tolist() == [30, 25, 144]
    assert (np.diag(found.overlap) == 1).all()
    assert (found.overlap[:, 2] == 1).all()
    assert np.isnan(found.z[0, 2])


def test_jaccard_follows_from_overlap_of_sets_of_one_size():
    neurons = la.neurons(build("gpt2").model)
    found = la.overlap({"a": neurons.sample(0.3, seed=0), "b": neurons.sample(0.3, seed=1)})
    o = found.overlap[0, 1]
    assert found.jaccard[0, 1] == pytest.approx(o / (2 - o))
    assert abs(o - 0.3) < 3 * (1 - 0.3) / np.sqrt(143)


def test_the_chance_in_layers_and_its_spread_are_those_of_shuffling_in_layers():
    sets = some_sets()
    found = la.overlap(sets)
    rng = np.random.default_rng(0)
    a, b = (la_flags(sets[name]) for name in "ab")
    shuffled = [sum((a[k] & rng.permutation(b[k])).sum() for k in range(3)) / 30 for _ in range(4000)]
    assert found.chance_in_layers[0, 1] == pytest.approx(np.mean(shuffled), abs=4 * np.std(shuffled) / 60)
    spread = found.excess[0, 1] / found.z[0, 1]
    assert spread == pytest.approx(np.std(shuffled), rel=0.06)
    assert found.chance[0, 1] == pytest.approx(25 / 144)


def la_flags(sites: la.SiteSet) -> np.ndarray:
    flags = np.zeros((3, 48), dtype=bool)
    flags[tuple(sites.addresses.T)] = True
    return flags


def test_chance_is_among_the_sites_there_were():
    neurons = la.neurons(build("gpt2").model)
    half = neurons[:, :24]
    assert isinstance(half, la.SiteSet)
    sets = {name: half.sample(0.5, seed=i) for i, name in enumerate("ab")}
    assert la.overlap(sets, half).chance[0, 1] == 0.5
    assert la.overlap(sets).chance[0, 1] == 0.25
    with pytest.raises(ValueError, match="not among"):
        la.overlap({"a": neurons, "b": half}, half)
    with pytest.raises(ValueError, match="two sets"):
        la.overlap({"a": half})
    with pytest.raises(ValueError, match="one kind"):
        la.overlap({"a": half, "b": la.heads(build("gpt2").model)})


def test_the_figure_shows_the_excess():
    found = la.overlap(some_sets())
    shown = np.array(found.plot().data[0].z)
    assert np.isnan(np.diag(shown)).all()
    assert shown[0, 1] == found.excess[0, 1]


def test_an_overlap_comes_back_from_disk(tmp_path: Path):
    found = la.overlap(some_sets())
    read = la.Overlap.load(found.save(tmp_path / "overlap"))
    assert read.to_dataframe().equals(found.to_dataframe())
    assert read.to_dataframe().shape == (6, 8)


def pairs(family: Any) -> tuple[dict[str, la.Task], dict[str, la.Task]]:
    data = tasks(family)
    more = tasks_of(family, range(10, 14))
    return (
        {"a": data["retain"], "b": data["forget"], "c": more[0]},
        {"a": data["retain_test"], "b": data["forget_test"], "c": more[1]},
    )


def tasks_of(family: Any, seeds: range) -> list[la.Task]:
    found = []
    for seed in seeds:
        inputs = family.inputs(n=4, seed=seed)
        logits = family.plain_logits(inputs)
        found.append(la.Task(inputs=inputs, answers=(logits if logits.ndim == 2 else logits[:, -1]).argmax(dim=1)))
    return found


@pytest.mark.model
@pytest.mark.parametrize("name", ["llama", "vit"])
def test_cross_pruning_is_the_plain_model_with_rows_cut(name: str, tmp_path: Path):
    family = build(name, dtype=torch.float64)
    data, tests = pairs(family)
    found = la.cross_pruning(family.model, data, tests, fraction=0.3, metric=la.metrics.probability, progress=False)
    for i, sites in enumerate(found.sets.values()):
        plain = family.surgery()
        for layer, unit in sites.addresses:
            family.weight_rows(family.down_projection(plain, layer))[unit] = 0
        for j, task in enumerate(tests.values()):
            task = task.with_metric(la.metrics.probability)
            expected = task.score(family.plain_logits(task.inputs, plain)).mean()
            assert found.mean[i, j] == pytest.approx(float(expected), abs=1e-6)
    read = la.CrossPruning.load(found.save(tmp_path / "cross"))
    assert read.to_dataframe().equals(found.to_dataframe())
    assert np.array_equal(found.plot().data[0].z, found.change)
    assert read.correlation(50) == found.correlation(50)
    rank, p = found.correlation(200)
    assert -1 <= rank <= 1
    assert 1 / 201 <= p <= 1
    with pytest.raises(ValueError, match="names of tasks"):
        la.cross_pruning(family.model, data, dict(reversed(tests.items())))


def test_a_killed_cross_pruning_keeps_its_neurons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    family = build("gpt2")
    data, tests = pairs(family)
    options: Any = {"fraction": 0.3, "metric": la.metrics.probability, "progress": False}
    whole = la.cross_pruning(family.model, data, tests, **options)
    scored: list[str] = []
    original = cross.neuron_use

    def counting(model: Any, task: la.Task, *args: Any, **rest: Any) -> Any:
        if len(scored) == 3:
            raise KeyboardInterrupt
        scored.append(task.fingerprint)
        return original(model, task, *args, **rest)

    monkeypatch.setattr(cross, "neuron_use", counting)
    engine = la.Engine(store=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        la.cross_pruning(family.model, data, tests, engine=engine, **options)
    # all data together, and the first two tasks
    done, names = list(scored), list(data)
    assert done[1:] == [data[name].fingerprint for name in names[:2]]
    scored.clear()
    again = la.cross_pruning(family.model, data, tests, engine=engine, **options)
    assert scored == [done[0], data[names[2]].fingerprint]
    assert again.sets == whole.sets
    assert again.to_dataframe().equals(whole.to_dataframe())
    scored.clear()
    la.cross_pruning(family.model, data, tests, engine=engine, **options)
    assert scored == []
    with pytest.raises(StoreMismatch, match="another run"):
        la.cross_pruning(family.model, data, tests, engine=engine, **{**options, "fraction": 0.2})


def test_correlation_finds_damage_that_follows_overlap():
    family = build("gpt2")
    data, tests = pairs(family)
    more = tasks_of(family, range(20, 26))
    data |= {"d": more[0], "e": more[1], "f": more[2]}
    tests |= {"d": more[3], "e": more[4], "f": more[5]}
    found = la.cross_pruning(family.model, data, tests, fraction=0.3, progress=False)
    excess = found.overlap.excess
    # what each test loses is made to be what it shares
    planted = {b: torch.tensor(-excess[:, j : j + 1]).float() for j, b in enumerate(found.names)}
    one = la.CrossPruning(
        values=planted,
        baseline={b: torch.zeros(1) for b in found.names},
        weights={b: torch.ones(1) for b in found.names},
        sets=found.sets,
        overlap=found.overlap,
        settings=found.settings,
    )
    rank, p = one.correlation(400)
    assert rank == pytest.approx(1)
    assert p < 0.02


@pytest.mark.parametrize("name", ["tiny-lm", "tiny-vit"])
def test_fresh_weights_are_those_of_the_initialiser(name: str):
    model = la.load_model(name)
    before = la.check_sites(model).dead
    one, same, other = (la.random_weights(model, seed) for seed in (1, 1, 2))
    weights = [torch.cat([w.flatten() for w in m.parameters()]) for m in (model, one, same, other)]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[1], weights[3])
    assert weights[0].shape == weights[1].shape
    assert not torch.equal(weights[0], weights[1])
    assert la.check_sites(one).dead == before
    state = torch.random.get_rng_state()
    la.random_weights(model)
    assert torch.equal(state, torch.random.get_rng_state())
    task = la.tasks.digits(one, n=4) if name == "tiny-vit" else la.tasks.ioi(one, n=4)
    assert torch.isfinite(one(task.inputs)).all()
