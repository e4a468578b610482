"""Selective pruning against cut weights of the plain Hugging Face model, and its books kept rightly."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lens_ablation as la
from lens_ablation.errors import DamagedFile, LeakingSplits, StoreMismatch
from lens_ablation.modularity.prune import nested_variants, require_separate
from tests.families import FAMILIES, Family, build


def tasks(family: Family, n: int = 6) -> dict[str, la.Task]:
    """Random data to score and to test on; answers are what the model says, so that accuracy starts at 1."""

    def task(seed: int) -> la.Task:
        inputs = family.inputs(n=n, seed=seed)
        logits = family.plain_logits(inputs)
        return la.Task(inputs=inputs, answers=(logits if logits.ndim == 2 else logits[:, -1]).argmax(dim=1))

    return {name: task(seed) for seed, name in enumerate(("retain", "forget", "retain_test", "forget_test"))}


@pytest.mark.model
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_each_step_is_the_plain_model_with_rows_cut(name: str, attention: bool):
    family = build(name, dtype=torch.float64)
    sites = la.attention_neurons(family.model) if attention else la.neurons(family.model)
    data = tasks(family)
    found = la.prune_selectively(
        family.model,
        **data,
        sites=sites,
        fraction_per_step=0.2,
        steps=3,
        n_random=1,
        metric=la.metrics.probability,
        progress=False,
    )
    of = family.output_projection if attention else family.down_projection
    task = data["forget_test"].with_metric(la.metrics.probability)
    plain = family.surgery()
    for step in range(1, 4):
        for address in found.pruned(step).addresses:
            row = address[1] * 8 + address[2] if attention else address[1]
            family.weight_rows(of(plain, address[0]))[row] = 0
        expected = task.score(family.plain_logits(task.inputs, plain))
        torch.testing.assert_close(found.forget[0, step].double(), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(found.forget[:, 0], found.forget[:1, 0].expand(3, -1))
    assert (found.forget[0, 3] - found.forget[0, 0]).abs().max() > 1e-4


def test_rescoring_measures_the_pruned_model():
    family = build("gpt2", dtype=torch.float64)
    data = tasks(family)
    options: Any = {"fraction_per_step": 0.25, "steps": 2, "n_random": 0, "progress": False}
    once = la.prune_selectively(family.model, **data, rescore=False, **options)
    again = la.prune_selectively(family.model, **data, **options)
    assert once.pruned(1) == again.pruned(1)
    assert once.pruned(2) != again.pruned(2)
    cut = (again.pruned(1), la.Zero())
    use = [la.neuron_use(family.model, data[name], without=cut, progress=False) for name in ("forget", "retain")]
    expected = la.importance(use[0], retain=use[1]).top(0.25, without=again.pruned(1))
    assert again.pruned(2) == again.pruned(1) | expected
    ratio = la.importance(use[0], retain=use[1])
    left = np.array([site not in again.pruned(1) for site in ratio.sites])
    assert again.dominated[1] == pytest.approx(ratio.dominated.numpy()[left].mean())
    assert again.dominated[1] < ratio.dominated_share


def test_random_neurons_are_as_many_over_all_and_in_every_layer():
    sites = la.neurons(build("gpt2").model)
    order = sites.take(np.random.default_rng(5).permutation(60))
    flags = nested_variants(sites, order, (0, 20, 60), 2, seed=0)
    by_layer = flags.reshape(5, 3, 3, 48).sum(axis=3)
    assert sites.take(np.flatnonzero(flags[0, 1])) == sites & order.take(range(20))
    assert (flags.sum(axis=2) == [0, 20, 60]).all()
    assert (by_layer[3:] == by_layer[0]).all()
    assert not (by_layer[1:3] == by_layer[0]).all()
    assert not np.array_equal(flags[3], flags[4])
    assert (flags[:, 1:] >= flags[:, :-1]).all()


def test_areas_are_those_of_known_curves():
    family = build("gpt2")
    found = la.prune_selectively(family.model, **tasks(family), steps=2, n_random=1, progress=False)

    def with_curves(retain: list[float], forget: list[float]) -> la.SelectivePruning:
        return replace(
            found,
            retain=torch.tensor(retain)[None, :, None].expand(3, -1, 6),
            forget=torch.tensor(forget)[None, :, None].expand(3, -1, 6),
        )

    perfect = with_curves([0.8, 0.8, 0.0], [0.6, 0.0, 0.0])
    equal = with_curves([0.8, 0.4, 0.2], [0.6, 0.3, 0.15])
    worst = with_curves([0.8, 0.0, 0.0], [0.6, 0.6, 0.0])
    for curves, area in ((perfect, 0.0), (equal, 1.0), (worst, 2.0)):
        torch.testing.assert_close(curves.area, torch.full((3,), area, dtype=torch.float64), atol=1e-6, rtol=0)
    assert float(equal.area_as_published[0]) == pytest.approx(1 - 0.25**2)
    assert perfect.best_step == 1
    assert float(perfect.ratio[0, 1]) == float("inf")
    assert float(equal.ratio[0, 1]) == pytest.approx(0.75)
    assert np.isnan(float(equal.ratio[0, 0]))


def test_a_killed_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    family = build("gpt2")
    data = tasks(family)
    options: Any = {"fraction_per_step": 0.2, "steps": 3, "n_random": 1, "progress": False}
    engine = la.Engine(store=tmp_path / "store")
    whole = la.prune_selectively(family.model, **data, **options, engine=engine)
    again = la.prune_selectively(family.model, **data, **options, engine=engine)
    assert torch.equal(whole.forget, again.forget)
    assert whole.order == again.order
    shutil.rmtree(tmp_path / "store" / "scores" / "step-2")
    (tmp_path / "store" / "scores" / "step-1" / "tensors.safetensors").write_bytes(b"cut")
    with caplog.at_level(logging.WARNING):
        third = la.prune_selectively(family.model, **data, **options, engine=engine)
    assert "computed again" in caplog.text
    assert third.order == whole.order
    with pytest.raises(StoreMismatch, match="another run"):
        la.prune_selectively(family.model, **data, **{**options, "fraction_per_step": 0.1}, engine=engine)


def test_scored_and_tested_examples_are_apart():
    family = build("gpt2")
    data = tasks(family)
    leaking = {**data, "forget_test": data["forget"]}
    with pytest.raises(LeakingSplits, match="6 examples"):
        la.prune_selectively(family.model, **leaking, progress=False)
    found = la.prune_selectively(family.model, **leaking, steps=1, n_random=0, allow_shared=True, progress=False)
    assert found.settings["shared_examples"] == 6
    mask = torch.ones(6, 7, dtype=torch.bool)
    mask[:, -1] = False
    padded = la.Task(
        inputs=torch.cat([data["forget"].inputs, torch.zeros(6, 1, dtype=torch.int64)], dim=1),
        answers=data["forget"].answers,
        attention_mask=mask,
    )
    with pytest.raises(LeakingSplits):
        require_separate({"forget": data["forget"]}, [padded], False)


def test_a_result_comes_back_from_disk(tmp_path: Path):
    family = build("vit")
    found = la.prune_selectively(family.model, **tasks(family), steps=2, n_random=1, progress=False)
    read = la.SelectivePruning.load(found.save(tmp_path / "pruned"))
    assert torch.equal(read.retain, found.retain)
    assert read.order == found.order
    assert read.to_dataframe().equals(found.to_dataframe())
    assert repr(read) == repr(found)
    lines = found.plot().data
    assert [line.name for line in lines] == ["random", "random, same layers", "abs"]
    assert np.array_equal(lines[-1].y, found.forget_mean[0])
    with pytest.raises(DamagedFile):
        la.SweepResult.load(tmp_path / "pruned")


def test_what_cannot_be_pruned_is_refused(caplog: pytest.LogCaptureFixture):
    family = build("gpt2")
    data = tasks(family)
    with pytest.raises(ValueError, match=r"prune 1\.2 of the neurons"):
        la.prune_selectively(family.model, **data, fraction_per_step=0.4, steps=3)
    with pytest.raises(ValueError, match="no neurons"):
        la.prune_selectively(family.model, **data, sites=la.heads(family.model))
    with pytest.raises(ValueError, match="rescore=False"):
        la.prune_selectively(family.model, **data, method=la.Resample(data["retain"], match="batch"))
    with caplog.at_level(logging.WARNING):
        la.prune_selectively(family.model, **data, fraction_per_step=0.5, steps=2, n_random=0, progress=False)
    assert "from step 2 on all neurons of layers [0, 1, 2] are pruned" in caplog.text


def test_a_domain_is_forgotten_and_stays_so(tmp_path: Path):
    model = la.load_model("tiny-lm")
    data = {
        f"{use}{end}": la.tasks.domain(model, n=12, name=name, split=split)
        for use, name in (("retain", "prose"), ("forget", "arithmetic"))
        for end, split in (("", "train"), ("_test", "held_out"))
    }
    found = la.prune_selectively(model, **data, fraction_per_step=0.2, steps=1, n_random=1, progress=False)
    assert float(found.forget_drop[0, 1]) > 0.3
    assert float(found.retain_drop[0, 1]) < 0.06
    assert float(found.forget_drop[1:, 1].max()) < 0.15
    folder = la.bake(model, found.pruned(), la.Zero()).save(tmp_path / "forgetful")
    again = la.load_model(folder)
    for name in ("retain", "forget"):
        task = data[f"{name}_test"].with_metric(la.metrics.top1)
        with torch.no_grad():
            score = task.score(again(task.inputs))
        torch.testing.assert_close(score, getattr(found, name)[0, found.best_step], atol=1e-6, rtol=0)
