"""Attributions of small models: what they predict, what they keep, what they refuse."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import lens_ablation as la
from lens_ablation.attribution.outputs import GradientJob
from lens_ablation.components import as_components, draw_removals
from lens_ablation.engine.variants import VariantsJob
from lens_ablation.errors import BadActivation, DamagedFile, StatisticsMismatch
from lens_ablation.models.protocol import LensModel
from tests.families import FAMILIES, Family, build

pytestmark = pytest.mark.model


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return build(request.param)


@pytest.fixture(scope="module")
def gpt2() -> Family:
    return build("gpt2")


@pytest.fixture(scope="module")
def digits() -> tuple[LensModel, la.Task]:
    model = la.load_model("tiny-vit")
    return model, la.tasks.digits(model, n=16).with_metric(la.metrics.correct_margin)


def a_task(family: Family, n: int = 4) -> la.Task:
    return la.Task(inputs=family.inputs(n=n), answers=torch.arange(n) % 5)


def test_attributions_order_as_in_the_paper_and_ours_first(digits):
    model, task = digits
    parts = [la.attention_neurons(model), la.neurons(model)]
    ways = {
        "ours": la.Coar(n_masks=64),
        "ridge": la.Coar(n_masks=192, estimator="ridge"),
        "leave one out": la.LeaveOneOut(),
        "gradient": la.GradientTimesMask(),
        "random": la.RandomAttribution(),
    }
    found = {name: la.attribute(model, task, parts, way, progress=False) for name, way in ways.items()}
    judged = la.counterfactual_correlation(found, model, task, [0.1, 0.3], n_masks=60, progress=False)
    r = dict(zip(ways, judged.mean.tolist(), strict=True))
    assert r["ours"][0] > 0.75
    assert r["ours"][0] > r["leave one out"][0] > r["gradient"][0] > abs(r["random"][0])
    assert r["ours"][0] > r["ridge"][0] + 0.2
    assert all(r[name][1] < r[name][0] for name in ("ours", "leave one out", "gradient"))
    assert abs(r["random"][0]) < 0.1
    assert [found[name].n_passes for name in ways] == [192, 192, 769, 3, 0]


def test_weights_are_the_slopes_of_a_model_that_is_linear_in_its_components(gpt2: Family):
    """In the last layer, before the final norm, nothing is linear; a metric that is linear in what is kept would be."""
    heads = la.heads(gpt2.model)[0:1]
    task = a_task(gpt2)
    exact = la.attribute(gpt2.model, task, heads, la.Coar(n_masks=64, ablated_fraction=0.5), progress=False)
    removed = draw_removals(64, len(heads), 0.5, "bernoulli", seed=9)
    judged = la.counterfactual_correlation(exact, gpt2.model, task, 0.5, n_masks=64, progress=False)
    assert exact.predict(removed).shape == (64, 4)
    assert float(judged.mean) > 0.95


def test_few_components_reach_what_ridge_reaches_at_equal_passes(gpt2: Family):
    task, parts = a_task(gpt2), [la.heads(gpt2.model), la.mlps(gpt2.model)]
    ours = la.attribute(gpt2.model, task, parts, la.Coar(n_masks=40, ablated_fraction=0.2), progress=False)
    ridge = la.Coar(n_masks=120, ablated_fraction=0.2, estimator="ridge")
    paper = la.attribute(gpt2.model, task, parts, ridge, progress=False)
    judged = la.counterfactual_correlation(
        {"ours": ours, "ridge": paper}, gpt2.model, task, 0.2, n_masks=80, progress=False
    )
    assert ours.n_passes == paper.n_passes
    assert float(judged.mean[0]) > float(judged.mean[1]) - 0.02


def test_leave_one_out_is_what_a_sweep_finds(family: Family):
    task, heads = a_task(family), la.heads(family.model)
    found = la.attribute(family.model, task, heads, la.LeaveOneOut(), progress=False)
    swept = la.sweep(family.model, task, heads, la.Zero(), progress=False)
    torch.testing.assert_close(found.weights, -swept.effect.T, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.intercept, swept.baseline - found.weights.sum(dim=1))


def test_every_family_is_attributed_by_every_way(family: Family):
    task, parts = a_task(family), [la.heads(family.model), la.neurons(family.model)]
    for way in (la.Coar(n_masks=12), la.Coar(n_masks=12, estimator="ridge"), la.GradientTimesMask()):
        found = la.attribute(family.model, task, parts, way, method=[la.Zero(), la.Constant(0.1)], progress=False)
        assert found.weights.shape == (4, len(found.components))
        assert bool(torch.isfinite(found.weights).all())


def test_more_masks_find_in_the_store_those_that_were_run(gpt2: Family, tmp_path: Path, monkeypatch):
    task, heads = a_task(gpt2), la.neurons(gpt2.model)
    engine = la.Engine(store=tmp_path / "store")
    la.attribute(gpt2.model, task, heads, la.Coar(n_masks=64), engine=engine, progress=False)
    ran: list[int] = []
    plain = VariantsJob.run

    def counted(job: VariantsJob, shard: int, advance=None):
        ran.append(job.n_variants)
        return plain(job, shard, advance)

    monkeypatch.setattr(VariantsJob, "run", counted)
    more = la.attribute(gpt2.model, task, heads, la.Coar(n_masks=100), engine=engine, progress=False)
    assert sum(ran) == 36
    monkeypatch.undo()
    whole = la.attribute(gpt2.model, task, heads, la.Coar(n_masks=100), engine=la.Engine(threads=1), progress=False)
    assert torch.equal(more.weights, whole.weights)


def test_an_attribution_is_saved_whole(gpt2: Family, tmp_path: Path):
    task, parts = a_task(gpt2), [la.heads(gpt2.model), la.mlps(gpt2.model)]
    found = la.attribute(gpt2.model, task, parts, la.Coar(n_masks=16), progress=False)
    loaded = la.Attribution.load(found.save(tmp_path / "found"))
    assert torch.equal(loaded.weights, found.weights)
    assert loaded.components.names == found.components.names
    assert loaded.outputs is not None
    assert found.outputs is not None
    assert torch.equal(loaded.outputs.values, found.outputs.values)
    np.testing.assert_array_equal(loaded.outputs.removed.bits, found.outputs.removed.bits)
    assert loaded.settings == found.settings
    with pytest.raises(DamagedFile):
        la.CounterfactualCorrelation.load(tmp_path / "found")


def test_an_attribution_of_something_else_is_refused(gpt2: Family):
    task, heads = a_task(gpt2), la.heads(gpt2.model)
    found = la.attribute(gpt2.model, task, heads, la.Coar(n_masks=8), progress=False)
    with pytest.raises(StatisticsMismatch, match="other weights"):
        la.counterfactual_correlation(found, build("gpt2", seed=1).model, task, progress=False)
    with pytest.raises(ValueError, match="other examples"):
        la.counterfactual_correlation(found, gpt2.model, a_task(gpt2, 3), progress=False)
    with pytest.raises(ValueError, match="scored by"):
        la.counterfactual_correlation(found, gpt2.model, task.with_metric(la.metrics.probability), progress=False)
    fewer = la.attribute(gpt2.model, task, heads[0], la.Coar(n_masks=8), progress=False)
    with pytest.raises(ValueError, match="other components"):
        la.counterfactual_correlation({"a": found, "b": fewer}, gpt2.model, task, progress=False)


def test_outputs_that_cannot_be_attributed_are_refused(gpt2: Family):
    task, heads = a_task(gpt2), la.heads(gpt2.model)
    with pytest.raises(ValueError, match="no gradient"):
        la.attribute(gpt2.model, task.with_metric(la.metrics.top1), heads, la.Coar(), progress=False)
    never = replace(task, metric=lambda logits, batch: logits[:, -1, 0] * 0)
    with pytest.raises(ValueError, match="no output changes"):
        la.attribute(gpt2.model, never, heads, la.Coar(n_masks=8, estimator="ridge"), progress=False)
    infinite = la.Constant(1e38)
    with pytest.raises(BadActivation, match="not finite"):
        la.attribute(gpt2.model, task, heads, la.Coar(n_masks=8), method=infinite, progress=False)


def test_wrong_options_are_refused():
    for options, message in (
        ({"n_masks": 2}, "at least"),
        ({"estimator": "ridge", "gradient_masks": 3}, "goes with"),
        ({"n_masks": 8, "gradient_masks": 9}, "must lie in"),
    ):
        with pytest.raises(ValueError, match=message):
            la.Coar(**options)


def test_components_of_one_kind_come_in_one_set(gpt2: Family):
    heads = la.heads(gpt2.model)
    with pytest.raises(ValueError, match="join those"):
        as_components([heads[0], heads[1]], gpt2.model)
    both = as_components([heads, la.mlps(gpt2.model)], gpt2.model)
    assert len(both) == len(heads) + 3


def test_gradients_come_in_smaller_passes_unless_the_size_is_given(gpt2: Family):
    from lens_ablation.engine.removals import Ablation, OneEach
    from lens_ablation.engine.variants import variants_job

    heads = la.heads(gpt2.model)
    ablations = [Ablation(heads, OneEach(len(heads)), la.Zero())]
    for batch_size in (None, 5):
        job = variants_job(
            gpt2.model, a_task(gpt2), ablations, positions="all", batch_size=batch_size, engine=la.Engine()
        )
        slower = GradientJob.of(job)
        assert slower.capacity == (5 if batch_size else job.capacity // 4)
