"""Rows of weights as masks on activations, against rows set to zero in the plain Hugging Face model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

import lens_ablation as la
from lens_ablation.attribution.bake import bake
from lens_ablation.engine import part as part_module
from lens_ablation.engine.removals import Ablation, Packed
from lens_ablation.errors import UnknownSite, UnsupportedModel
from lens_ablation.models.fingerprint import weight_processing
from lens_ablation.sites import READER_KINDS, WRITER_KINDS, Kind
from tests.engine.one_at_a_time import (
    a_task,
    alone,
    apart,
    by_the_engine,
    effect,
    hooks_together,
    logits_of,
    random_flags,
    some,
    together,
)
from tests.families import D_HEAD, D_MLP, D_MODEL, FAMILIES, N_LAYERS, Family, build

pytestmark = pytest.mark.model
DOUBLE = torch.float64
READS: dict[str, tuple[str, ...]] = {
    "attn_in": ("q", "k", "v"),
    "z": ("attn_out",),
    "mlp_in": ("pre", "pre_linear"),
    "neuron": ("mlp_out",),
}
ENDS: dict[str, tuple[str, ...]] = {
    "q": ("q_proj", "query"),
    "k": ("k_proj", "key"),
    "v": ("v_proj", "value"),
    "pre": ("c_fc", "gate_proj", "fc1", "intermediate.dense"),
    "pre_linear": ("up_proj",),
}
REFUSED: dict[str, tuple[str, ...]] = {"bert": ("attn_in", "mlp_in", "attn_out"), "hooked": ("attn_in", "mlp_in")}
_built: dict[str, Family] = {}


def built(name: str) -> Family:
    if name not in _built:
        _built[name] = build(name, dtype=DOUBLE)
    return _built[name]


def kinds_of(name: str) -> list[Kind]:
    kinds = [kind for kind in (*READER_KINDS, *WRITER_KINDS) if kind not in REFUSED.get(name, ())]
    return [kind for kind in kinds if kind != "pre_linear" or name == "llama"]


CASES = [(name, kind) for name in FAMILIES for kind in kinds_of(name)]


def rows(family: Family, kind: Kind) -> tuple[la.SiteSet, la.Method]:
    """All rows of a kind, and the method that stands for zeroing them."""
    if kind in READER_KINDS:
        return la.reader_rows(family.model, [kind])[0], la.Zero()
    return la.writer_rows(family.model, [kind])[0], la.Bias()


def matrix(family: Family, plain: torch.nn.Module, layer: int, of: str) -> Tensor:
    """The weight ``[input, output]`` of the linear map whose output is ``of``."""
    if of == "attn_out":
        return family.weight_rows(family.output_projection(plain, layer))
    if of == "mlp_out":
        return family.weight_rows(family.down_projection(plain, layer))
    modules = dict(family.block(plain, layer).named_modules())
    if family.name in ("gpt2", "hooked") and of in ("q", "k", "v"):
        whole = family.weight_rows(modules["attn.c_attn"])
        at = "qkv".index(of) * D_MODEL
        return whole[:, at : at + D_MODEL]
    return family.weight_rows(next(module for name, module in modules.items() if name.endswith(ENDS[of])))


def cut(family: Family, sites: Sequence[la.Site]) -> torch.nn.Module:
    """The plain model with the rows of these sites set to zero; biases stay."""
    plain = family.surgery()
    for site in sites:
        place = site.unit if site.head is None else site.head * D_HEAD + site.unit
        for of in READS.get(site.kind, (site.kind,)):
            if of == "pre_linear" and family.name != "llama":
                continue
            weight = matrix(family, plain, site.layer, of)
            if site.kind in READS:
                weight[place] = 0
            else:
                weight[:, place] = 0
    return plain


def scores_of_cut(family: Family, task: la.Task, sites: Sequence[la.Site]) -> Tensor:
    return task.score(family.plain_logits(task.inputs, cut(family, sites)))


@pytest.fixture
def shortcuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models take the engine's shortcuts only where these thresholds are gone."""
    monkeypatch.setattr(part_module, "WORTH_KEEPING", 0)
    monkeypatch.setattr(part_module, "WORTH_KNOWING", 1)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_several_rows_equal_zeroed_weights(name: str, kind: Kind):
    family = built(name)
    sites, method = rows(family, kind)
    task, chosen = a_task(family), some(sites, 5)
    expected = family.plain_logits(task.inputs, cut(family, list(chosen)))
    found = logits_of(family, task, la.hooks(family.model, chosen, method))
    assert apart(found, expected) < 1e-10
    assert float((expected - family.plain_logits(task.inputs)).abs().max()) > 1e-4
    assert sites.shape[0] == N_LAYERS


@pytest.mark.usefixtures("shortcuts")
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_engine_equals_zeroed_weights(name: str, kind: Kind):
    family = built(name)
    sites, method = rows(family, kind)
    task, chosen = a_task(family), some(sites, 4)
    expected = torch.stack([scores_of_cut(family, task, [site]) for site in chosen])
    assert apart(by_the_engine(family, task, alone(chosen, method), variants_at_once=4), expected) < 1e-10
    assert effect(family, task, expected) > 1e-6


@pytest.mark.usefixtures("shortcuts")
@pytest.mark.parametrize("side", ["reader", "writer", "both"])
@pytest.mark.parametrize("name", FAMILIES)
def test_all_kinds_at_once_equal_zeroed_weights(name: str, side: str):
    family, task, n = built(name), a_task(built(name)), 6
    wanted = {"reader": READER_KINDS, "writer": WRITER_KINDS}.get(side, (*READER_KINDS, *WRITER_KINDS))
    parts = [rows(family, kind) for kind in kinds_of(name) if kind in wanted]
    ablations = [
        Ablation(sites, random_flags(sites, n, share=0.05, seed=i), method) for i, (sites, method) in enumerate(parts)
    ]
    expected = []
    for variant in range(n):
        removed = [
            site
            for part in ablations
            for site in part.sites.take(np.flatnonzero(part.removed.flags(np.array([variant]))[0]))
        ]
        expected.append(scores_of_cut(family, task, removed))
    found = by_the_engine(family, task, ablations, variants_at_once=n)
    assert apart(found, torch.stack(expected)) < 1e-10
    assert apart(hooks_together(family, task, ablations), found) < 1e-10


def test_a_sweep_of_rows_equals_zeroed_weights():
    family = built("llama")
    task, sites = a_task(family), some(la.writer_rows(family.model, ["k"])[0], 6)
    result = la.sweep(family.model, task, sites, la.Bias(), progress=False)
    expected = torch.stack([scores_of_cut(family, task, [site]) for site in sites])
    assert apart(result.values, expected) < 1e-6
    assert sites.shape == (N_LAYERS, 2, D_HEAD)  # two key heads for four query heads
    assert la.cite(la.Bias()).count("shah2024") == 1


@pytest.mark.parametrize("name", ["gpt2", "vit", "llama"])
def test_every_row_of_every_linear_map_is_a_site(name: str):
    family = built(name)
    block = family.block(family.plain, 0)
    linears = [m for m in block.modules() if getattr(m, "weight", None) is not None and m.weight.ndim == 2]
    outputs = sum(family.weight_rows(linear).shape[1] for linear in linears)
    assert sum(len(sites) for sites in la.writer_rows(family.model)) == N_LAYERS * outputs
    assert sum(len(sites) for sites in la.reader_rows(family.model)) == N_LAYERS * (3 * D_MODEL + D_MLP)


def test_rows_before_attention_cost_the_attention():
    family = built("gpt2")
    values, outputs = la.writer_rows(family.model, ["v", "attn_out"])
    sets = (values[1, :, :2], outputs[1, :8])
    before, behind = (la.estimate(family.model, a_task(family), sites, la.Zero()) for sites in sets)
    assert before.rows == behind.rows
    assert before.work > behind.work


def summed_slopes(family: Family, task: la.Task, kind: Kind) -> Tensor:
    """Gradient times weight, summed over each row, ``[example, row]``."""
    plain = family.surgery()
    of = READS.get(kind, (kind,))
    logits = plain(task.inputs).logits
    found = []
    for value in task.score(logits):
        gradients = torch.autograd.grad(value, list(plain.parameters()), retain_graph=True, allow_unused=True)
        slopes = family.surgery()
        for parameter, own, gradient in zip(slopes.parameters(), plain.parameters(), gradients, strict=True):
            parameter.data = torch.zeros_like(own) if gradient is None else own.data * gradient
        axis = 1 if kind in READS else 0
        found.append(
            torch.cat([sum(matrix(family, slopes, layer, name).sum(axis) for name in of) for layer in range(N_LAYERS)])
        )
    return torch.stack(found)


@pytest.mark.parametrize("kind", ["attn_in", "neuron", "q", "v", "attn_out", "pre"])
def test_slopes_are_gradient_times_parameter(kind: Kind):
    # the engine's gates at every kept row; GPT-2's tied embedding is no row of a block
    family = built("opt" if kind != "attn_in" else "vit")
    sites, method = rows(family, kind)
    task = a_task(family)
    found = la.attribute(family.model, task, sites, la.GradientTimesMask(), method=method, progress=False).weights
    assert apart(found, summed_slopes(family, task, kind)) < 1e-6


def test_rows_are_components_of_an_attribution():
    family = built("gpt2")
    task = a_task(family)
    sets = [sites[1, :4] for sites in la.reader_rows(family.model, ["attn_in", "mlp_in"])]
    left_out = la.attribute(family.model, task, sets, la.LeaveOneOut(), progress=False)
    baseline = task.score(family.plain_logits(task.inputs))
    expected = torch.stack([baseline - scores_of_cut(family, task, [site]) for part in sets for site in part], dim=1)
    assert apart(left_out.weights, expected) < 1e-6
    assert left_out.components.names[:2] == ["L1.attn_in0", "L1.attn_in1"]
    coar = la.Coar(n_masks=16, ablated_fraction=0.2)
    assert la.attribute(family.model, task, la.writer_rows(family.model), coar, method=la.Bias(), progress=False)


@pytest.mark.parametrize("order", [("v", "pattern"), ("pattern", "v")])
def test_patterns_are_realised_with_the_ablated_values(order: tuple[str, str]):
    family = built("llama")
    task, n = a_task(family), 4
    values, patterns = la.writer_rows(family.model, ["v"])[0], la.patterns(family.model)
    given: dict[str, tuple[la.SiteSet, la.Method]] = {
        "v": (values, la.Bias()),
        "pattern": (patterns, la.Resample(task.inputs[:1])),
    }
    flags = {kind: random_flags(sites, n, seed=len(kind)) for kind, (sites, _) in given.items()}
    ablations = {kind: Ablation(sites, flags[kind], method) for kind, (sites, method) in given.items()}
    expected = hooks_together(family, task, [ablations["v"], ablations["pattern"]])
    assert apart(by_the_engine(family, task, [ablations[kind] for kind in order], variants_at_once=n), expected) < 1e-10


@pytest.mark.parametrize(("name", "kind"), [("llama", "pre"), ("llama", "attn_out"), ("bert", "q"), ("vit", "mlp_out")])
def test_rows_can_be_baked(name: str, kind: Kind):
    family = built(name)
    sites, method = rows(family, kind)
    inputs, chosen = family.inputs(), some(sites, 6)
    expected = family.plain_logits(inputs, cut(family, list(chosen)))
    assert apart(family.plain_logits(inputs, bake(family.model, chosen, method).model), expected) < 1e-10


def test_rows_read_by_three_maps_cannot_be_baked():
    family = built("llama")
    with pytest.raises(UnsupportedModel, match="one linear map"):
        bake(family.model, *rows(family, "attn_in"))


def test_rows_have_statistics_and_figures(tmp_path: Path):
    family = built("llama")
    task, kinds = a_task(family), ("attn_in", "k", "pre_linear")
    sets: list[la.SiteSet] = [rows(family, kind)[0] for kind in kinds]
    options: dict[str, Any] = {"allow_small": True, "progress": False}
    stats = la.collect_statistics(family.model, task, sets, **options)
    again = type(stats).load(stats.save(tmp_path / "stats"))
    for sites in sets:
        one = some(sites, 1)
        mean = again[one.hook_points[0]].mean[tuple(one.addresses[0, 1:])]
        expected = together(family, task, [(one, la.Constant(float(mean)))])
        assert apart(together(family, task, [(one, la.Mean(again))]), expected) < 1e-5
        assert str(next(iter(one))) in str(la.plots.activation_histogram(again, next(iter(one))).layout.title.text)
        assert la.sweep(family.model, task, some(sites, 3), la.Zero(), progress=False).plot()
    assert la.plots.distribution_gallery(again)


def test_masks_differ_by_row_as_positions_do():
    family = built("gpt2")
    task, sites = a_task(family), some(la.writer_rows(family.model, ["q"])[0], 3)
    for positions in ("all_but_first", "answer"):
        expected = torch.stack([together(family, task, [(sites.take([i]), la.Bias())], positions) for i in range(3)])
        found = by_the_engine(family, task, alone(sites, la.Bias()), positions)
        assert apart(found, expected) < 1e-10


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in FAMILIES for kind in REFUSED.get(name, ())])
def test_what_is_no_row_is_refused(name: str, kind: Kind):
    family = built(name)
    select = la.reader_rows if kind in READER_KINDS else la.writer_rows
    reason = "no hook" if name == "hooked" else "rows of"
    with pytest.raises(UnsupportedModel, match=reason):
        select(family.model, [kind])
    with pytest.raises(UnsupportedModel, match=r"kinds=\['.*gives the others"):
        select(family.model)
    site = la.Site(kind, 0, unit=1)
    with pytest.raises(UnsupportedModel, match=reason):
        la.hooks(family.model, site, la.Zero())
    with pytest.raises(UnsupportedModel, match=reason):
        la.sweep(family.model, a_task(family), site, la.Zero(), progress=False)


@pytest.mark.parametrize("options", [{}, {"fold_ln": False, "center_writing_weights": False, "center_unembed": False}])
def test_processed_weights_are_refused(options: dict[str, bool]):
    family = build("gpt2")
    family.model.enable_compatibility_mode(disable_warnings=True, **options)
    for select in (la.reader_rows, la.writer_rows):
        with pytest.raises(UnsupportedModel, match=r"processed .*folded value biases.*load_model"):
            select(family.model)
    with pytest.raises(UnsupportedModel, match="processed"):
        la.sweep(family.model, a_task(family), la.Site("attn_in", 0, unit=1), la.Zero(), progress=False)


def test_value_biases_that_are_zero_in_the_checkpoint_are_no_processing():
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=40, attn_implementation="eager")
    fresh = transformers.GPT2LMHeadModel(config).eval()
    model = build_bridge_from_module(fresh, "GPT2LMHeadModel", hf_config=config, dtype=torch.float32, device="cpu")
    assert weight_processing(model) == "folded value biases"  # as far as the weights tell
    assert [sites.kind for sites in la.reader_rows(model)] == ["attn_in", "z", "mlp_in", "neuron"]


def test_a_bias_stands_only_in_the_place_of_a_linear_map_s_output():
    family = built("gpt2")
    for sites in (la.heads(family.model), la.neurons(family.model)):
        with pytest.raises(UnsupportedModel, match=r"output of no linear map.*Zero\(\)"):
            la.hooks(family.model, sites, la.Bias())


def test_unknown_kinds_are_refused():
    family = built("gpt2")
    with pytest.raises(UnknownSite, match=r"kinds of reader_rows are attn_in, z, mlp_in, neuron; got q"):
        la.reader_rows(family.model, ["q"])
    with pytest.raises(UnknownSite, match="got none"):
        la.writer_rows(family.model, [])


def test_a_map_without_a_hook_is_refused():
    family = build("gpt2")
    block: Any = family.model.blocks[1]
    block.extra = torch.nn.Linear(D_MODEL, 3).eval()

    def run_extra(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        block.extra(args[0])

    block.register_forward_pre_hook(run_extra)
    with pytest.raises(UnsupportedModel, match=r"1 linear maps .*layer 1, 3 outputs.*kinds="):
        la.writer_rows(family.model)
    assert la.writer_rows(family.model, ["q", "pre"])


def test_removals_of_no_row_change_nothing():
    family = built("vit")
    task, sites = a_task(family), la.writer_rows(family.model, ["k"])[0]
    none = Packed.of(np.zeros((2, len(sites)), dtype=bool))
    found = by_the_engine(family, task, [Ablation(sites, none, la.Bias())])
    assert apart(found, task.score(logits_of(family, task)).expand(2, -1)) < 1e-12


def bridge_of(config: Any, model_class: Any) -> Any:
    torch.manual_seed(0)
    plain = model_class(config).eval()
    for parameter in plain.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    plain.set_attn_implementation("eager")
    return build_bridge_from_module(plain, model_class.__name__, hf_config=plain.config, dtype=torch.float32)


@pytest.mark.parametrize("leaks", [False, True])
def test_a_norm_that_is_the_residual_too_is_refused(leaks: bool):
    config = transformers.BloomConfig(
        vocab_size=50, hidden_size=32, n_layer=2, n_head=4, apply_residual_connection_post_layernorm=leaks
    )
    model = bridge_of(config, transformers.BloomForCausalLM)
    if leaks:
        with pytest.raises(UnsupportedModel, match=r"differs from the same change of the weights by 0\.\d+.*elsewhere"):
            la.reader_rows(model, ["attn_in"])
    else:
        assert len(la.reader_rows(model, ["attn_in"])[0]) == 2 * 32


def test_a_norm_that_a_parallel_mlp_reads_too_is_refused():
    config = transformers.GPTJConfig(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=32, rotary_dim=4)
    model = bridge_of(config, transformers.GPTJForCausalLM)
    with pytest.raises(UnsupportedModel, match=r"parallel blocks.*kinds=\['z', 'neuron'\]"):
        la.reader_rows(model)
