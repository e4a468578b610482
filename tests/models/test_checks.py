"""check_sites: what it finds on each family, and what it refuses."""

import pytest
import torch

import lens_ablation as la
from lens_ablation.errors import HookHadNoEffect, UnsupportedModel
from lens_ablation.models import checks
from lens_ablation.models.anatomy import anatomy, probe_inputs
from tests.families import D_HEAD, D_MLP, D_MODEL, FAMILIES, N_HEADS, N_LAYERS, Family, build

pytestmark = pytest.mark.model


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return build(request.param, dtype=torch.float64)


def test_every_hook_is_live_and_means_what_it_says(family: Family):
    report = la.check_sites(family.model)
    assert report.dead == []
    assert report.z_is_pattern_v is not None
    assert report.z_is_pattern_v < 1e-6
    assert report.patterns_can_be_replaced
    assert report.d_mlp[0] == D_MLP


def test_direct_pattern_writes_act_only_where_the_family_obeys_them(family: Family):
    direct = la.check_sites(family.model).direct_pattern_write
    assert direct is not None
    assert (direct > 0) == (family.name in ("gpt2", "llama", "hooked"))


def test_the_residual_stream_is_additive_except_after_post_norms(family: Family):
    report = la.check_sites(family.model)
    assert report.residual_is_additive == (family.name != "bert")
    assert report.is_layer_output("hook_attn_out") == (family.name != "bert")
    assert report.is_layer_output("hook_mlp_out")


def test_anatomy_is_measured_not_read(family: Family):
    sizes = anatomy(family.model)
    assert (sizes.n_layers, sizes.n_heads, sizes.d_head) == (N_LAYERS, N_HEADS, D_HEAD)
    assert (sizes.d_mlp, sizes.d_model) == (D_MLP, D_MODEL)
    assert sizes.n_key_value_heads == (2 if family.name == "llama" else N_HEADS)
    assert sizes.bidirectional == (family.name in ("bert", "vit"))
    assert sizes.modality == ("pixels" if family.name == "vit" else "tokens")


def test_query_heads_of_a_key_value_group_are_named():
    assert list(anatomy(build("llama").model).kv_group(3)) == [2, 3]
    assert list(anatomy(build("gpt2").model).kv_group(3)) == [3]


def test_the_report_is_a_table_and_a_text(family: Family):
    report = la.check_sites(family.model)
    assert {"check", "value", "verdict"} == set(report.to_dataframe().columns)
    assert "hook_z = pattern @ v" in str(report)


def test_a_dead_hook_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch):
    family = build("opt")
    # on OPT a write to hook_pattern is ignored: posing as a site hook, it is a dead one
    monkeypatch.setitem(checks._SITE_HOOKS, "hook_pattern", "pattern")
    with pytest.raises(HookHadNoEffect, match="hook_pattern of external"):
        la.check_sites(family.model)
    assert la.check_sites(family.model, throw=False).dead == ["hook_pattern"]


def test_patterns_that_do_not_fire_are_refused_with_the_fix():
    family = build("vit", attention="sdpa")
    with pytest.raises(UnsupportedModel, match="eager attention"):
        la.hooks(family.model, la.patterns(family.model), la.Zero())


def test_patterns_that_fire_without_eager_attention_are_exact():
    family = build("gpt2", attention="sdpa")
    inputs = family.inputs()
    logits = []
    for select in (la.patterns, la.heads):
        with torch.no_grad(), la.ablate(family.model, select(family.model)[1, 2], la.Zero()):
            logits.append(family.model(inputs))
    torch.testing.assert_close(*logits)


def test_probe_inputs_fit_the_model(family: Family):
    inputs = probe_inputs(family.model, n_examples=2, n_pos=5)
    assert family.plain_logits(inputs).shape[0] == 2
