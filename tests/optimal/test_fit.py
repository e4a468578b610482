"""Optimal constants against closed forms, grids, each site on its own, and the orderings that hold by construction."""

import copy
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

import lens_ablation as la
from lens_ablation.components import as_components
from lens_ablation.data.as_task import as_task
from lens_ablation.errors import DamagedFile, StatisticsMismatch, StoreMismatch, UnknownSite
from lens_ablation.models.capture import capture
from lens_ablation.models.protocol import LensModel
from lens_ablation.optimal import fit
from lens_ablation.optimal.descent import Descent, Schedule
from lens_ablation.optimal.problems import Problems, means, spreads
from lens_ablation.optimal.split import split_task
from lens_ablation.sites import HookPoint
from tests.families import D_HEAD, D_MODEL, D_VOCAB, FAMILIES, N_HEADS, Family, build

QUICK = {"steps": 30, "evaluate_every": 10, "batch_size": 8, "lr": 0.02, "progress": False}


def a_task(family: Family, n: int = 60, *, n_pos: int = 6, masked: bool = False) -> la.Task:
    inputs = family.inputs(n, n_pos, seed=1)
    answers = torch.zeros(n, dtype=torch.int64)
    if inputs.ndim == 4:
        return la.Task(inputs=inputs, answers=answers)
    mask = torch.ones_like(inputs, dtype=torch.bool)
    if masked:
        mask[::3, -1] = False
    return la.Task(inputs=inputs, answers=answers, attention_mask=mask, counterfactuals=inputs.flip(0))


def some_sites(model: LensModel) -> list[la.SiteSet]:
    return [la.heads(model)[1], la.mlps(model)[:2]]


@pytest.mark.model
@pytest.mark.parametrize("name", FAMILIES)
def test_optimal_is_not_worse_than_other_constants_and_resampling(name: str):
    """Held out, within two standard errors of the difference; for means as they were found by the search itself."""
    family = build(name, dtype=torch.float64)
    sets = some_sites(family.model) if name != "bert" else [la.heads(family.model)[1]]
    task = a_task(family, 120)
    split = split_task(task, None, 0, allow_small=False)
    found = la.fit_optimal(family.model, task, sets, per_position=True, **QUICK)
    start = 0
    for sites in sets:
        rows = slice(start, start + len(sites))
        start += len(sites)
        others = [la.Zero(), la.Resample(split.held_out, match="batch")]
        positions = "all" if name == "vit" else "all_but_first"
        metric = la.metrics.kl_from_clean
        own = la.sweep(
            family.model,
            split.held_out,
            sites,
            la.Optimal(found),
            metric=metric,
            positions=positions,
            progress=False,
        )
        torch.testing.assert_close(own.effect, found.gaps[rows], atol=1e-9, rtol=1e-6)
        for method in others:
            other = la.sweep(
                family.model, split.held_out, sites, method, metric=metric, positions=positions, progress=False
            )
            assert_not_worse(found.gaps[rows], other.effect)
    assert_not_worse(found.gaps, found.mean_gaps)
    assert float(found.gaps.min()) > -1e-9


def assert_not_worse(ours: Tensor, theirs: Tensor) -> None:
    difference = (ours - theirs).double()
    error = difference.std(dim=1) / difference.shape[1] ** 0.5
    # in random models means are as good as optimal, and which of the two validates better is chance: hence the share
    allowed = 2 * error + 0.1 * theirs.double().mean(dim=1) + 1e-9
    assert bool((difference.mean(dim=1) <= allowed).all())


def descended(
    family: Family, task: la.Task, site: la.Site, *, steps: int, lr: float
) -> tuple[Descent, dict[HookPoint, Tensor]]:
    """A descent on all examples at once that is also validated on them, so that what it keeps is their minimum."""
    sites = as_components(site, family.model)
    stats = la.collect_statistics(
        family.model, task, site, positions="all_but_first", histograms=False, allow_small=True, progress=False
    )
    schedule = Schedule(lr=lr, steps=steps, batch_size=task.n_examples, evaluate_every=50, patience=steps)
    start = means(stats, per_position=False)
    settings = {"positions": "all_but_first", "per_position": False, "schedule": schedule, "seed": 0}
    descent = Descent(
        family.model, task, task, Problems(sites, None, 0), start, spreads(stats), engine=la.Engine(), **settings
    )
    descent.run(lambda n: None, lambda: None)
    return descent, start


def test_the_minimum_of_a_quadratic_is_reached():
    """Without a final norm the last MLP's constant enters logits linearly: squared distances have a closed minimum."""
    family = build("gpt2", dtype=torch.float64)
    unembedding = torch.linalg.qr(
        torch.randn(D_VOCAB, D_MODEL, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ).Q
    family.plain.lm_head.weight.data.copy_(unembedding)
    family = replace(family, model=rewrapped(family, torch.float64))
    object.__setattr__(family.model.ln_final, "forward", lambda x: x)
    inputs = family.inputs(30, 3, seed=2)
    drawn = torch.randn(D_VOCAB, D_VOCAB, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    targets = 0.05 * drawn

    def squared_distance(logits: Tensor, batch: la.Task) -> Tensor:
        return ((logits[:, -1] - targets[batch.answers]) ** 2).mean(dim=1)

    metric = replace(la.metrics.as_metric(squared_distance), higher_is_better=False)
    task = la.Task(inputs=inputs, answers=inputs[:, 0], metric=metric)
    site = la.mlps(family.model)[2]
    descent, _ = descended(family, task, site, steps=1000, lr=0.1)
    constant = descent.best[site.hook_point]
    with torch.no_grad():
        clean = family.model(inputs)[:, -1]
        streams = capture(family.model, inputs, ["blocks.2.hook_resid_post", "blocks.2.hook_mlp_out"])
        rest = (streams["blocks.2.hook_resid_post"] - streams["blocks.2.hook_mlp_out"])[:, -1]
        torch.testing.assert_close(streams["blocks.2.hook_resid_post"][:, -1] @ unembedding.T, clean)
        # least squares: the mean over examples of what is left to explain
        wanted = (targets[task.answers] - rest @ unembedding.T).mean(dim=0)
        best = torch.linalg.lstsq(unembedding, wanted[:, None]).solution[:, 0]
    torch.testing.assert_close(constant, best, atol=1e-4, rtol=0)


def test_a_scalar_constant_is_the_lowest_point_of_a_grid():
    family = build("llama", dtype=torch.float64)
    task = a_task(family, 50).with_metric(la.metrics.kl_from_clean)
    site = la.neurons(family.model)[2, 7]
    descent, start = descended(family, task, site, steps=300, lr=0.02)
    own, mean = (float(tables[site.hook_point][7]) for tables in (descent.best, start))
    width = 3 * max(abs(own - mean), 1e-3)
    grid = own + width * np.linspace(-1, 1, 41)
    options = {"positions": "all_but_first", "progress": False}
    values = [
        float(la.sweep(family.model, task, site, la.Constant(float(value)), **options).values.double().mean())
        for value in grid
    ]
    assert abs(int(np.argmin(values)) - 20) <= 1
    assert float(descent.best_gap[0]) <= min(values) * 1.001


@pytest.mark.parametrize("name", ["gpt2", "llama", "vit"])
@pytest.mark.parametrize("per_position", [False, True])
def test_sites_found_together_are_those_found_alone(name: str, per_position: bool):
    family = build(name, dtype=torch.float64)
    task = a_task(family)
    heads = la.heads(family.model)[:2]
    settings = {**QUICK, "per_position": per_position}
    together = la.fit_optimal(family.model, task, heads, **settings)
    for place in (0, 5):
        site = list(heads)[place]
        alone = la.fit_optimal(family.model, task, site, **settings)
        at = (..., site.head, slice(None))
        torch.testing.assert_close(together[site.hook_name][at], alone[site.hook_name][at], atol=1e-7, rtol=0)
        torch.testing.assert_close(together.gaps[place], alone.gaps[0], atol=1e-9, rtol=1e-6)


def test_the_first_position_is_left_alone_unless_told():
    family = build("gpt2", dtype=torch.float64)
    task = a_task(family)
    sites = la.heads(family.model)[1]
    usual = la.fit_optimal(family.model, task, sites, **QUICK)
    everywhere = la.fit_optimal(family.model, task, sites, positions="all", **QUICK)
    assert usual.provenance.positions == "all_but_first"
    assert everywhere.provenance.positions == "all"
    assert not torch.allclose(usual.mean_gaps, everywhere.mean_gaps)
    assert (
        la.fit_optimal(
            build("vit").model, a_task(build("vit")), la.heads(build("vit").model)[0], **QUICK
        ).provenance.positions
        == "all"
    )


def test_an_mlp_begins_at_its_own_mean():
    """A row shift, MLP l at the mean of MLP l - 1, would show here."""
    family = build("gpt2", dtype=torch.float64)
    task = a_task(family)
    mlps = la.mlps(family.model)
    found = la.fit_optimal(family.model, task, mlps, **QUICK)
    split = split_task(task, None, 0, allow_small=False)
    stats = la.collect_statistics(
        family.model,
        split.training,
        mlps,
        positions="all_but_first",
        histograms=False,
        allow_small=True,
        progress=False,
    )
    swept = la.sweep(
        family.model,
        split.held_out,
        mlps,
        la.Mean(stats),
        metric=la.metrics.kl_from_clean,
        positions="all_but_first",
        progress=False,
    )
    torch.testing.assert_close(found.mean_gaps, swept.effect, atol=1e-7, rtol=1e-5)


def test_a_component_that_never_changes_costs_nothing():
    family = build("gpt2", dtype=torch.float64)
    family.plain.transformer.h[1].attn.c_attn.weight.data[:, 2 * D_MODEL :] = 0
    model = rewrapped(family, torch.float64)
    found = la.fit_optimal(model, a_task(family), la.heads(model)[1], **QUICK)
    assert float(found.mean_gaps.abs().max()) < 1e-9
    assert float(found.gaps.abs().max()) < 1e-9


def rewrapped(family: Family, dtype: torch.dtype) -> LensModel:
    """A bridge around the changed plain model."""
    plain = copy.deepcopy(family.plain)
    name = type(plain).__name__
    return build_bridge_from_module(plain, name, hf_config=plain.config, dtype=dtype, device="cpu")


def test_joint_constants_ablate_everything_at_once():
    family = build("gpt2", dtype=torch.float64)
    task = a_task(family)
    sets = [la.heads(family.model), la.mlps(family.model)]
    found = la.fit_optimal(family.model, task, sets, joint=True, **QUICK)
    split = split_task(task, None, 0, allow_small=False)
    values = []
    for batch in (split.held_out.with_metric(la.metrics.kl_from_clean),):
        clean = family.model(batch.inputs)[:, -1]
        known = replace(batch, clean_logits=clean[:, None])
        with (
            la.ablate(family.model, sets[0], la.Optimal(found), positions="all_but_first"),
            la.ablate(family.model, sets[1], la.Optimal(found), positions="all_but_first"),
        ):
            values.append(known.score(family.model(batch.inputs)))
    torch.testing.assert_close(found.gaps[0], torch.cat(values).float(), atol=1e-6, rtol=1e-5)
    assert found.problems == ["15 sites together"]
    assert float(found.gap[0]) <= float(found.mean_gaps.mean())


def test_constants_for_random_parts_are_better_there_than_means():
    family = build("gpt2")
    task = a_task(family, 100)
    found = la.fit_optimal(family.model, task, la.heads(family.model), joint=0.5, **{**QUICK, "steps": 100})
    assert float(found.gap[0]) < float(found.mean_gaps.mean())
    assert int(found.best_step[0]) > 0


@pytest.mark.parametrize("stop_at", [15, 20, 29])
def test_a_killed_descent_goes_on_as_if_nothing_had_happened(stop_at: int, tmp_path: Path):
    family = build("gpt2")
    task, sites = a_task(family), [la.heads(family.model)[:2], la.mlps(family.model)]
    whole = la.fit_optimal(family.model, task, sites, **QUICK)

    def stop(done: int, total: int) -> None:
        if done >= stop_at:
            raise KeyboardInterrupt

    engine = la.Engine(store=tmp_path / "store")
    with pytest.raises(KeyboardInterrupt):
        la.fit_optimal(family.model, task, sites, engine=engine, **{**QUICK, "progress": stop})
    seen: list[int] = []
    again = {**QUICK, "progress": lambda done, total: seen.append(done)}
    resumed = la.fit_optimal(family.model, task, sites, engine=engine, **again)
    # stopped within a step, whose news came before it was kept
    assert seen[0] == (stop_at - 1) // 10 * 10
    for name, value in whole.values.items():
        assert torch.equal(value, resumed.values[name])
    assert torch.equal(whole.gaps, resumed.gaps)
    assert torch.equal(whole.curve.nan_to_num(), resumed.curve.nan_to_num())
    with pytest.raises(StoreMismatch, match="another model, task"):
        la.fit_optimal(family.model, task, sites, engine=engine, **{**QUICK, "lr": 0.5})


def test_a_problem_that_diverges_is_reported_and_the_others_finish(caplog: pytest.LogCaptureFixture):
    family = build("gpt2")
    # nothing reads head 0 of layer 1, so its problem has no slope and stays where it is
    family.plain.transformer.h[1].attn.c_proj.weight.data[:D_HEAD] = 0
    model = rewrapped(family, torch.float32)
    with caplog.at_level(logging.WARNING):
        found = la.fit_optimal(model, a_task(family), la.heads(model)[1], **{**QUICK, "lr": 1e30})
    assert found.outcome[0] != "diverged"
    assert set(found.outcome[1:]) == {"diverged"}
    assert "diverged" in caplog.text
    assert bool(torch.isfinite(found.gaps).all())
    torch.testing.assert_close(found.gaps[1:], found.mean_gaps[1:])


def test_constants_are_saved_and_read_with_their_provenance(tmp_path: Path):
    family = build("gpt2")
    found = la.fit_optimal(family.model, a_task(family), some_sites(family.model), per_position=True, **QUICK)
    read = la.OptimalConstants.load(found.save(tmp_path / "constants"))
    assert read.digest == found.digest
    assert read.provenance == found.provenance
    assert read.outcome == found.outcome
    pd_own, pd_read = found.to_dataframe(), read.to_dataframe()
    assert pd_own.equals(pd_read)
    assert la.Optimal(read).settings == la.Optimal(found).settings
    assert la.Optimal(read).name == "Optimal (per position)"
    (tmp_path / "constants" / "manifest.json").write_text("{}")
    with pytest.raises(DamagedFile):
        la.OptimalConstants.load(tmp_path / "constants")


def test_constants_serve_their_own_model_and_sites_only():
    family = build("gpt2")
    found = la.fit_optimal(family.model, a_task(family), la.heads(family.model)[1, :2], **QUICK)
    inputs = family.inputs()
    with pytest.raises(UnknownSite, match="no constant was optimised for SiteSet"):
        la.hooks(family.model, la.heads(family.model)[1, 3], la.Optimal(found))
    with pytest.raises(UnknownSite, match="not of z sites"):
        la.hooks(family.model, la.attention_neurons(family.model)[1, 0, 2], la.Optimal(found))
    with pytest.raises(StatisticsMismatch, match="these constants were measured on"):
        la.hooks(build("gpt2", seed=5).model, la.heads(family.model)[1, 1], la.Optimal(found))
    with pytest.raises(UnknownSite, match="no constant was optimised"):
        la.sweep(family.model, inputs, la.heads(family.model), la.Optimal(found), progress=False)


def test_bad_requests_say_what_to_do(unchecked):
    model = build("gpt2").model
    task, sites = a_task(build("gpt2")), la.heads(model)[1]
    plain = unchecked(fit).fit_optimal
    cases = [
        ({"data": task.select(slice(0, 20))}, "50 examples or more, and the task has 20. allow_small=True"),
        ({"data": task.select(slice(0, 3)), "allow_small": True}, "5 examples or more"),
        ({"sites": la.patterns(model)}, "no constants are fitted for patterns"),
        ({"joint": 1.5}, "a fraction of the sites between 0 and 1, got 1.5"),
        ({"loss": "kl"}, "loss must be 'kl_last'"),
        ({"loss": la.metrics.top1}, "has no gradient"),
        ({"lr": 0.0}, "positive learning rate"),
        ({"steps": 0}, "steps is 0"),
        ({"engine": la.Engine(executor="processes")}, "runs in one process"),
        ({"engine": la.Engine(dtype=torch.float64)}, "the model's own dtype"),
        (
            {"held_out": la.Task(inputs=torch.randint(4, 50, (9, 12)), answers=torch.zeros(9, dtype=torch.int64))},
            "12 tokens",
        ),
    ]
    for change, message in cases:
        asked = {"data": task, "sites": sites, "progress": False, **change}
        with pytest.raises(ValueError, match=message):
            plain(model, asked.pop("data"), asked.pop("sites"), **asked)


def test_masked_tokens_are_neither_ablated_nor_counted():
    """Padding on the right of some rows: the same constants as from the rows without it."""
    family = build("gpt2", dtype=torch.float64)
    bare = a_task(family, 60, n_pos=5)
    padded = la.Task(
        inputs=torch.nn.functional.pad(bare.inputs, (0, 2), value=7),
        answers=bare.answers,
        attention_mask=torch.nn.functional.pad(torch.ones_like(bare.inputs, dtype=torch.bool), (0, 2)),
    )
    sites = la.heads(family.model)[0]
    found = [la.fit_optimal(family.model, as_task(task, family.model), sites, **QUICK) for task in (bare, padded)]
    torch.testing.assert_close(found[0].gaps, found[1].gaps, atol=1e-7, rtol=1e-5)
    assert found[0].gaps.shape == (N_HEADS, 12)
