"""Experts: exact sizes, planted clusters, routing against the plain model, enrichment against shuffling."""

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

import lens_ablation as la
from lens_ablation.errors import DamagedFile, HookDidNotFire, StatisticsMismatch, StoreMismatch, UnknownSite
from lens_ablation.modularity import expert_splits
from lens_ablation.modularity.balanced import balanced_clusters, balanced_lloyd, computed_by
from lens_ablation.modularity.expert_splits import co_activation, input_weights
from tests.families import FAMILIES, build

QUICK = la.ParameterClustering(n_init=2)


def planted(n_clusters: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_clusters, 20))
    labels = rng.permutation(np.repeat(np.arange(n_clusters), size))
    return centres[labels] + 0.3 * rng.normal(size=(len(labels), 20)), labels


def test_planted_clusters_are_found_and_have_one_size():
    points, labels = planted(6, 8)
    found = balanced_lloyd(points, 6, seed=0, n_init=4, max_iter=50).labels
    assert np.bincount(found).tolist() == [8] * 6
    assert adjusted_rand_score(labels, found) == 1
    order = np.random.default_rng(1).permutation(48)
    moved = balanced_lloyd(points[order], 6, seed=0, n_init=4, max_iter=50).labels
    assert adjusted_rand_score(found[order], moved) == 1
    assert np.array_equal(found, balanced_lloyd(points, 6, seed=0, n_init=4, max_iter=50).labels)


def test_each_assignment_is_the_cheapest_balanced_one():
    from itertools import permutations

    points, _ = planted(2, 3, seed=4)
    found = balanced_lloyd(points, 2, seed=0, n_init=8, max_iter=50).labels

    def cost(labels: np.ndarray) -> float:
        return sum(((points[labels == k] - points[labels == k].mean(axis=0)) ** 2).sum() for k in (0, 1))

    best = min(cost(np.array(labels)) for labels in set(permutations([0, 0, 0, 1, 1, 1])))
    assert cost(found) == pytest.approx(best)


@pytest.mark.skipif(find_spec("k_means_constrained") is None, reason="the extra experts is not installed")
def test_both_ways_agree_on_planted_clusters():
    points, labels = planted(6, 8)
    found = balanced_clusters(points, 6, seed=0, n_init=4, max_iter=50)
    assert computed_by() == "k-means-constrained"
    assert adjusted_rand_score(labels, found) == 1


@pytest.mark.model
@pytest.mark.parametrize("name", FAMILIES)
def test_input_weights_are_those_of_the_plain_model(name: str):
    family = build(name, dtype=torch.float64)
    block = family.block(family.plain, 1)
    ends = {"gpt2": "c_fc", "hooked": "c_fc", "llama": "up_proj", "opt": "fc1"}
    if name in ends:
        plain = next(m for n, m in block.named_modules() if n.endswith(ends[name]))
    else:
        plain = next(m for m in block.modules() if getattr(m, "out_features", None) == 48)
    expected = family.weight_rows(plain).T
    torch.testing.assert_close(input_weights(family.model, 1), expected.double())
    experts = la.split_into_experts(family.model, 1, 6, QUICK, progress=False)
    assert [len(one) for one in experts] == [8] * 6
    if name == "llama":
        gate = next(m for n, m in block.named_modules() if n.endswith("gate_proj")).weight
        torch.testing.assert_close(input_weights(family.model, 1, "gate"), gate.detach())
    else:
        with pytest.raises(ValueError, match="no gate"):
            input_weights(family.model, 1, "gate")


def test_experts_are_sites_that_can_be_ablated(tmp_path: Path):
    family = build("gpt2")
    for split in (QUICK, la.CoActivation(family.inputs(n=8), n_init=2), la.RandomSplit(), la.RoundRobin()):
        experts = la.split_into_experts(family.model, None, 12, split, progress=False)
        assert len(experts) == 36
        assert len(set().union(*map(set, experts))) == 144
        again = la.Experts.load(experts.save(tmp_path / split.name))
        assert np.array_equal(again.labels, experts.labels)
        assert (experts.adjusted_rand(again) == 1).all()
        assert experts.digest == la.split_into_experts(family.model, None, 12, split, progress=False).digest
    task = la.Task(inputs=family.inputs(), answers=family.inputs()[:, 0])
    assert la.sweep(family.model, task, experts[1, 3], la.Zero(), progress=False).values.shape == (4, 3)
    with pytest.raises(DamagedFile):
        la.Overlap.load(tmp_path / "RoundRobin")


class _Killed(Exception):
    pass


@pytest.mark.parametrize("sort", ["weights", "co-activation"])
def test_a_killed_split_goes_on(sort: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    family = build("gpt2")
    inputs = family.inputs(n=8)
    split = QUICK if sort == "weights" else la.CoActivation(inputs, n_init=2)
    whole = la.split_into_experts(family.model, None, 12, split, progress=False)
    engine = la.Engine(store=tmp_path)

    def kill(done: int, total: int) -> None:
        if done == 2:
            raise _Killed

    with pytest.raises(_Killed):
        la.split_into_experts(family.model, None, 12, split, engine=engine, progress=kill)
    clustered: list[int] = []
    original = expert_splits.balanced_clusters

    def counting(points: np.ndarray, *args: Any, **options: Any) -> np.ndarray:
        clustered.append(len(points))
        return original(points, *args, **options)

    monkeypatch.setattr(expert_splits, "balanced_clusters", counting)
    again = la.split_into_experts(family.model, None, 12, split, engine=engine, progress=False)
    assert clustered == [48]
    assert again.digest == whole.digest
    assert again.settings == whole.settings
    (tmp_path / "layers" / "layer-1" / "tensors.safetensors").write_bytes(b"cut")
    assert la.split_into_experts(family.model, [1], 12, split, engine=engine, progress=False).digest
    assert clustered == [48, 48]
    other = la.ParameterClustering(n_init=3) if sort == "weights" else la.CoActivation(inputs[:5], n_init=2)
    with pytest.raises(StoreMismatch, match="another run"):
        la.split_into_experts(family.model, None, 12, other, engine=engine, progress=False)
    with pytest.raises(StoreMismatch, match="another run"):
        la.split_into_experts(family.model, None, 6, split, engine=engine, progress=False)


def test_graphs_that_do_not_fit_together_are_measured_one_by_one(monkeypatch: pytest.MonkeyPatch):
    family = build("gpt2")
    split = la.CoActivation(family.inputs(n=8), n_init=2)
    together = la.split_into_experts(family.model, None, 12, split, progress=False)
    monkeypatch.setattr(expert_splits, "GRAPH_BYTES", 2 * 8 * 48**2 + 1)
    assert la.split_into_experts(family.model, None, 12, split, progress=False).digest == together.digest


def test_a_hook_of_co_activation_that_does_not_fire_is_an_error(monkeypatch: pytest.MonkeyPatch):
    family = build("gpt2")
    original = expert_splits.forward

    def silent(model: Any, inputs: Any, *, fwd_hooks: Any, **options: Any) -> Any:
        return original(model, inputs, fwd_hooks=fwd_hooks[1:], **options)

    monkeypatch.setattr(expert_splits, "forward", silent)
    with pytest.raises(HookDidNotFire):
        co_activation(family.model, family.inputs(n=5), [0, 1])


def test_what_cannot_be_split_is_refused():
    model = build("gpt2").model
    with pytest.raises(ValueError, match="take one of 2, 3, 4, 6, 8, 12, 16, 24"):
        la.split_into_experts(model, None, 7)
    with pytest.raises(UnknownSite, match=r"0\.\.2"):
        la.split_into_experts(model, [3], 6)
    experts = la.split_into_experts(model, [1], 6, la.RandomSplit(), progress=False)
    with pytest.raises(UnknownSite, match="not split"):
        experts[0, 0]
    other = build("gpt2", seed=1)
    task = la.Task(inputs=other.inputs(), answers=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(StatisticsMismatch, match="Split this model"):
        la.routed_quality(other.model, task, experts, kept=(1,), progress=False)
    folded: Any = copy.copy(experts)
    object.__setattr__(folded, "settings", {**experts.settings, "weight_processing": "compatibility"})
    with pytest.raises(StatisticsMismatch, match="raw weights"):
        experts.adjusted_rand(folded)


def test_co_activation_is_the_cosine_of_positive_parts():
    family = build("gpt2", dtype=torch.float64)
    inputs, seen = family.inputs(n=5), {}
    handle = family.down_projection(family.plain, 1).register_forward_pre_hook(lambda m, given: seen.update(z=given[0]))
    family.plain_logits(inputs)
    handle.remove()
    z = seen["z"].flatten(0, 1).clamp(min=0).numpy()
    length = np.linalg.norm(z, axis=0)
    expected = z.T @ z / np.maximum(length[:, None] * length, 1e-300)
    np.testing.assert_allclose(co_activation(family.model, inputs, [1])[1], expected, atol=1e-12)


@pytest.mark.model
@pytest.mark.parametrize("by", ["positive", "abs"])
@pytest.mark.parametrize("name", FAMILIES)
def test_routing_is_the_plain_model_with_experts_cut_at_each_token(name: str, by: Any):
    family = build(name, dtype=torch.float64)
    experts = la.split_into_experts(family.model, None, 6, la.RandomSplit(), progress=False)
    inputs = family.inputs()
    logits = family.plain_logits(inputs)
    task = la.Task(
        inputs=inputs,
        answers=(logits if logits.ndim == 2 else logits[:, -1]).argmax(dim=1),
        metric=la.metrics.probability,
    )
    found = la.routed_quality(family.model, task, experts, kept=(2, 6), by=by, progress=False)
    handles = []
    for layer in range(3):
        labels = experts.of_layer(layer)

        def cut(module: torch.nn.Module, given: tuple, labels: np.ndarray = labels) -> tuple:
            z = given[0].clone()
            for row in z.view(-1, 48):
                used = row.clamp(min=0) if by == "positive" else row.abs()
                scores = np.array([float(used[labels == e].sum()) for e in range(6)])
                row[torch.from_numpy(~np.isin(labels, np.argsort(-scores)[:2]))] = 0
            return (z, *given[1:])

        handles.append(family.down_projection(family.plain, layer).register_forward_pre_hook(cut))
    expected = task.score(family.plain_logits(inputs))
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(found.values[0, 0].double(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.values[0, 1], found.baseline, atol=1e-6, rtol=1e-5)
    assert (found.values[0, 0] - found.baseline).abs().max() > 1e-5
    assert found.to_dataframe().shape == (2, 5)


def test_results_come_back_from_disk(tmp_path: Path):
    model = la.load_model("tiny-vit")
    experts = la.split_into_experts(model, [1, 2], 8, la.RandomSplit(), progress=False)
    sets = {name: la.neurons(model).sample(0.1, seed=i) for i, name in enumerate("ab")}
    found = la.enrichment(sets, experts, n_permutations=50)
    read = la.Enrichment.load(found.save(tmp_path / "enrichment"))
    assert read.to_dataframe().equals(found.to_dataframe())
    task = la.tasks.digits(model, n=6)
    quality = la.routed_quality(model, task, {"a": experts}, kept=(1, 4), progress=False)
    same = la.RoutedQuality.load(quality.save(tmp_path / "quality"))
    assert same.to_dataframe().equals(quality.to_dataframe())
    with pytest.raises(DamagedFile):
        la.Enrichment.load(tmp_path / "quality")


def test_figures_show_what_the_results_hold():
    model = la.load_model("tiny-vit")
    experts = la.split_into_experts(model, None, 8, la.RandomSplit(), progress=False)
    found = la.enrichment(experts[1, 2], experts, n_permutations=50)
    np.testing.assert_allclose(found.plot().data[0].y, found.z[0])
    shown = la.plots.expert_map(found)
    assert shown.data[0].customdata[1].tolist() == [16, 0, 0, 0, 0, 0, 0, 0]
    # 16 where the mean is 2; none at all is the end of the scale, and a layer without any is left out
    assert shown.data[0].z[1].tolist() == [3, -4, -4, -4, -4, -4, -4, -4]
    assert (shown.data[0].zmin, shown.data[0].colorbar.ticktext[0]) == (-4, "none")
    assert np.isnan(shown.data[0].z[0]).all()
    assert "RandomSplit" in shown.layout.title.subtitle.text
    with pytest.raises(ValueError, match="no set"):
        la.plots.expert_map(found, "other")
    quality = la.routed_quality(model, la.tasks.digits(model, n=6), experts, kept=(1, 4), progress=False)
    np.testing.assert_allclose(quality.plot().data[0].y, quality.mean[0])
    np.testing.assert_allclose(quality.plot().data[0].x, [12.5, 50])


def test_enrichment_of_random_sets_is_none_and_of_planted_ones_is_large():
    model = la.load_model("tiny-lm")
    experts = la.split_into_experts(model, None, 16, la.RandomSplit(), progress=False)
    neurons = la.neurons(model)
    noise = {str(seed): neurons.sample(0.1, seed=seed) for seed in range(20)}
    found = la.enrichment(noise, experts, n_permutations=300)
    assert np.abs(found.z_overall).mean() < 1.5
    assert (np.abs(found.z) < 4).mean() > 0.97
    assert 0.3 < found.p.mean() < 0.7
    assert (found.p_expert < 0.05).any(axis=2).mean() < 0.15
    there = {"planted": experts[1, 3] | experts[2, 5] | neurons.sample(0.02, seed=1)}
    planted = la.enrichment(there, experts, n_permutations=300)
    assert (planted.z[0, 1:3] > 10).all()
    assert (planted.p_expert[0, 1] < 0.05).nonzero()[0].tolist() == [3]
    assert planted.p[0, 1] == pytest.approx(1 / 301)


def test_enrichment_is_that_of_shuffled_labels():
    model = build("gpt2").model
    experts = la.split_into_experts(model, [0, 2], 6, la.RandomSplit(), progress=False)
    chosen = la.neurons(model).sample(0.3, seed=2)
    found = la.enrichment(chosen, experts, n_permutations=4000)
    units = chosen.addresses[chosen.addresses[:, 0] == 2, 1]
    inside = np.isin(np.arange(48), units)
    labels = experts.of_layer(2)
    rng = np.random.default_rng(0)
    share = inside.mean()
    variance = 8 * share * (1 - share) * 40 / 47

    def concentration(of: np.ndarray) -> float:
        counts = np.array([inside[of == e].sum() for e in range(6)])
        return float(((counts - 8 * share) ** 2).sum() / variance)

    shuffled = np.array([concentration(rng.permutation(labels)) for _ in range(4000)])
    assert found.concentration[0, 1] == pytest.approx(concentration(labels))
    assert found.null[:, 0, 1].mean() == pytest.approx(shuffled.mean(), rel=0.05)
    assert found.null[:, 0, 1].mean() == pytest.approx(6, rel=0.05)
    assert found.null[:, 0, 1].std() == pytest.approx(shuffled.std(), rel=0.08)
    assert found.nmi[0, 1] == pytest.approx(normalized_mutual_info_score(labels, inside))
    with pytest.raises(ValueError, match="MLP neurons"):
        la.enrichment(la.heads(model), experts)
