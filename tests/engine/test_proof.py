"""Which shortcuts are proved for a model, and what happens to models that have none."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lens_ablation as la
from lens_ablation.engine.clean import CleanPass
from lens_ablation.engine.part import Part
from lens_ablation.engine.proof import path_of
from lens_ablation.engine.variants import run_variants
from tests.engine.one_at_a_time import a_task, alone, apart, each_alone, logits_of, settings_of, some, together
from tests.families import FAMILIES, HAS_HOOKED_TRANSFORMER, N_LAYERS, Family, build

pytestmark = pytest.mark.model
TAILS = {"gpt2": "head", "llama": "head", "vit": "head", "opt": "head", "hooked": "head", "bert": "model_at_positions"}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return build(request.param, dtype=torch.float64)


@pytest.fixture
def gpt2() -> Family:
    return build("gpt2", dtype=torch.float64)


def count_passes(family: Family) -> list[int]:
    """One entry to each run of the first block; installs a hook that stays."""
    passes: list[int] = []
    family.model.blocks[0].register_forward_hook(lambda module, args, out: passes.append(1))
    return passes


def test_every_family_has_all_shortcuts(family: Family):
    path = path_of(family.model)
    assert (path.prefix, path.linears, path.tail, path.note) == (True, True, TAILS[family.name], "")
    assert path.class_position == (0 if family.name == "vit" else None)
    assert path.difference < 1e-10
    how = settings_of(family.model, a_task(family), la.heads(family.model))
    assert (how["path"], how["tail"]) == ("prefix", TAILS[family.name])
    assert "why" not in how


@pytest.mark.parametrize("name", ["gpt2", "llama", "vit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sdpa_attention_has_shortcuts(name: str, dtype: torch.dtype):
    path = path_of(build(name, dtype=dtype, attention="sdpa").model)
    assert (path.prefix, path.linears, path.tail) == (True, True, "head")


def test_the_proof_is_made_once(family: Family):
    passes = count_passes(family)
    first = path_of(family.model)
    made = len(passes)
    assert made > 0
    assert path_of(family.model) is first
    assert len(passes) == made


def test_the_proof_is_made_again_in_another_dtype(gpt2: Family):
    first = path_of(gpt2.model)
    gpt2.model.to(torch.float32)
    assert path_of(gpt2.model) is not first


def carry_between_blocks(family: Family) -> None:
    """The last block is given a part of what the first one made, past the residual stream."""
    kept: list[Tensor] = []

    def keep(module: Any, args: Any, out: Any) -> None:
        kept[:] = [out[0] if isinstance(out, tuple) else out]

    def add(module: Any, args: Any, out: Any) -> Any:
        first = 0.5 * kept[0].tanh()
        return (out[0] + first, *out[1:]) if isinstance(out, tuple) else out + first

    family.model.blocks[0].register_forward_hook(keep)
    family.model.blocks[-1].register_forward_hook(add)


@pytest.mark.parametrize("proved_before", [False, True], ids=["never proved", "proved before"])
def test_blocks_that_hand_on_more_than_the_residual_run_plainly(family: Family, proved_before: bool):
    task, sites = a_task(family), some(la.heads(family.model), 6)
    untouched = task.score(logits_of(family, task))
    if proved_before:
        assert path_of(family.model).prefix
    carry_between_blocks(family)
    path = path_of(family.model)
    assert not path.prefix
    assert path.note
    found = la.sweep(family.model, task, sites, la.Constant(0.3), progress=False)
    assert found.settings["engine"]["path"] == "plain"
    assert found.settings["engine"]["why"] == path.note
    expected = each_alone(family, task, sites, la.Constant(0.3))
    assert apart(found.values, expected) < 1e-6
    assert float((found.baseline - untouched).abs().max()) > 1e-3  # the state does matter


def test_a_model_without_a_list_of_blocks_runs_plainly(gpt2: Family, monkeypatch: pytest.MonkeyPatch):
    task, sites = a_task(gpt2), some(la.heads(gpt2.model), 6)
    expected = each_alone(gpt2, task, sites, la.Zero())

    def no_blocks(model: Any) -> Any:
        raise la.errors.UnsupportedModel("no blocks")

    monkeypatch.setattr("lens_ablation.engine.clean.blocks_of", no_blocks)
    found = la.sweep(gpt2.model, task, sites, la.Zero(), progress=False)
    assert found.settings["engine"] == {**found.settings["engine"], "path": "plain"}
    assert "no blocks" in found.settings["engine"]["why"]
    assert apart(found.values, expected) < 1e-6


def test_hooks_of_the_caller_act_in_every_pass(family: Family):
    task = a_task(family)
    outer, sites = la.heads(family.model)[0, 1], some(la.neurons(family.model), 6)
    assert path_of(family.model).prefix
    expected = torch.stack(
        [
            together(family, task, [(la.heads(family.model)[:1, 1:2], la.Zero()), (sites.take([i]), la.Constant(0.4))])
            for i in range(len(sites))
        ]
    )
    without = each_alone(family, task, sites, la.Constant(0.4))
    with la.ablate(family.model, outer, la.Zero()):
        path = path_of(family.model)
        assert not path.prefix
        assert "other hooks" in path.note
        found = la.sweep(family.model, task, sites, la.Constant(0.4), progress=False)
    assert found.settings["engine"]["path"] == "plain"
    assert apart(found.values, expected) < 1e-6
    assert apart(found.values, without) > 1e-4
    assert path_of(family.model).prefix


def test_reuse_can_be_declined(gpt2: Family):
    task, sites = a_task(gpt2), la.heads(gpt2.model)
    how = settings_of(gpt2.model, task, sites, la.Engine(reuse=False))
    assert (how["path"], how["why"]) == ("plain", "Engine(reuse=False)")


@pytest.mark.parametrize("reuse", [True, False])
def test_blocks_before_the_first_ablated_one_do_not_run(family: Family, reuse: bool):
    task, sites = a_task(family), la.mlps(family.model)[N_LAYERS - 1 :]
    run_variants(family.model, task, alone(sites, la.Zero()))  # what is measured of a model once is measured
    rows: list[int] = []

    def count(module: Any, args: Any, out: Any) -> None:
        rows.append(len(out[0] if isinstance(out, tuple) else out))

    with family.model.blocks[0].attn.register_forward_hook(count):
        path_of(family.model)  # made again, as there is another hook
        rows.clear()
        run_variants(family.model, task, alone(sites, la.Zero()), engine=la.Engine(reuse=reuse))
    clean, ablated = 3, 3 * len(sites)
    assert sum(rows) == (clean if reuse else clean + ablated)


@pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 has no HookedTransformer")
def test_blocks_continue_as_hooked_transformers_start_at_layer():
    family = build("hooked", dtype=torch.float64)
    task = a_task(family)
    model: Any = family.model
    with torch.inference_mode():
        clean = CleanPass(family.model, task.inputs, None, linears={}, budget=2**28)
        whole = model(task.inputs)
        for layer in range(N_LAYERS):
            residual = clean.entering(layer)
            own = model(residual, start_at_layer=layer)
            assert torch.equal(own, whole)
            for later in range(layer, N_LAYERS):
                residual = clean.calls(1)[later](clean.blocks[later], residual)
                stopped = model(clean.entering(layer), start_at_layer=layer, stop_at_layer=later + 1)
                assert torch.equal(residual, stopped)
    # an ablated pass, too, is the model's own from the layer on
    sites = some(la.heads(family.model), 12)
    part = Part(
        *(family.model, task, [(sites, la.Zero())], "all", torch.arange(3), path_of(family.model)), clean_bytes=2**28
    )
    for i, site in enumerate(sites):
        found = part.scores([np.eye(len(sites), dtype=bool)[i : i + 1]])[0]
        with torch.no_grad(), model.hooks(fwd_hooks=la.hooks(family.model, site, la.Zero())[1:-1]):
            expected = task.score(model(clean.entering(site.layer), start_at_layer=site.layer))
        assert apart(found, expected) < 1e-10


def test_probing_is_not_fooled_by_its_own_shapes(family: Family):
    """Three examples of five tokens are told apart from three layers, and padding is on."""
    assert path_of(family.model).prefix
    for n, n_pos in ((3, 3), (5, 5), (2, 9)):
        task, sites = a_task(family, n, n_pos), some(la.neurons(family.model), 4)
        found = run_variants(family.model, task, alone(sites, la.Constant(0.3))).values
        assert apart(found, each_alone(family, task, sites, la.Constant(0.3))) < 1e-6
