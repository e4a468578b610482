"""Ablation by hooks against the same ablation done to weights or by hand on the plain Hugging Face model."""

import pytest
import torch
from torch import Tensor

import lens_ablation as la
from lens_ablation.ablation import Firings
from lens_ablation.errors import BadActivation, HookDidNotFire, UnsupportedModel
from lens_ablation.models.protocol import require_lens_model
from tests.families import D_HEAD, FAMILIES, N_HEADS, TOKEN_FAMILIES, Family, build

pytestmark = pytest.mark.model
EXACT = {"atol": 1e-10, "rtol": 0}
LAYER, HEAD, UNIT = 1, 2, 5


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return build(request.param, dtype=torch.float64)


@pytest.fixture(scope="module")
def gpt2() -> Family:
    return build("gpt2", dtype=torch.float64)


def ablated(family: Family, sites, method, inputs: Tensor | None = None, **options) -> Tensor:
    inputs = family.inputs() if inputs is None else inputs
    with torch.no_grad(), la.ablate(family.model, sites, method, **options):
        return family.model(inputs)


def head_rows(head: int) -> slice:
    return slice(head * D_HEAD, (head + 1) * D_HEAD)


def test_zero_head_equals_zeroed_output_rows(family: Family):
    cut = family.surgery()
    family.weight_rows(family.output_projection(cut, LAYER))[head_rows(HEAD)] = 0
    expected = family.plain_logits(family.inputs(), cut)
    torch.testing.assert_close(ablated(family, la.heads(family.model)[LAYER, HEAD], la.Zero()), expected, **EXACT)
    assert (expected - family.plain_logits(family.inputs())).abs().max() > 1e-4


def test_zero_attention_neuron_equals_one_zeroed_output_row(family: Family):
    cut = family.surgery()
    family.weight_rows(family.output_projection(cut, LAYER))[HEAD * D_HEAD + UNIT] = 0
    site = la.attention_neurons(family.model)[LAYER, HEAD, UNIT]
    torch.testing.assert_close(ablated(family, site, la.Zero()), family.plain_logits(family.inputs(), cut), **EXACT)


def test_zero_neuron_equals_zeroed_down_projection_row(family: Family):
    cut = family.surgery()
    family.weight_rows(family.down_projection(cut, LAYER))[UNIT] = 0
    site = la.neurons(family.model)[LAYER, UNIT]
    torch.testing.assert_close(ablated(family, site, la.Zero()), family.plain_logits(family.inputs(), cut), **EXACT)


def test_zero_pattern_equals_zeroed_output_rows(family: Family):
    cut = family.surgery()
    family.weight_rows(family.output_projection(cut, LAYER))[head_rows(HEAD)] = 0
    site = la.patterns(family.model)[LAYER, HEAD]
    torch.testing.assert_close(ablated(family, site, la.Zero()), family.plain_logits(family.inputs(), cut), **EXACT)


def test_zero_layer_outputs_equal_zeroed_projections(family: Family):
    for sites, projection in ((la.attentions, family.output_projection), (la.mlps, family.down_projection)):
        cut = family.surgery()
        module = projection(cut, LAYER)
        module.weight.data.zero_()
        if module.bias is not None:
            module.bias.data.zero_()
        if family.name == "bert" and sites is la.attentions:
            with pytest.raises(UnsupportedModel, match="hook_attn_out of this model is not the output"):
                ablated(family, sites(family.model)[LAYER], la.Zero())
            continue
        expected = family.plain_logits(family.inputs(), cut)
        torch.testing.assert_close(ablated(family, sites(family.model)[LAYER], la.Zero()), expected, **EXACT)


def values_of(family: Family, layer: int) -> torch.nn.Module:
    """The value projection of the plain model (of GPT-2 the fused one)."""
    ends = ("attn.c_attn", "v_proj", "self.value", "attention.value", "attention.v")
    block = family.block(family.plain, layer)
    return next(module for name, module in block.named_modules() if name.endswith(ends))


@pytest.mark.parametrize("head", range(N_HEADS))
def test_uniform_pattern_equals_mean_of_values_by_hand(family: Family, head: int):
    kept = {}

    def keep(module: torch.nn.Module, args: tuple, output: Tensor) -> None:
        kept["v"] = output[..., -output.shape[-1] // 3 :] if family.name in ("gpt2", "hooked") else output

    def write(module: torch.nn.Module, args: tuple) -> tuple[Tensor]:
        kv_heads = kept["v"].shape[-1] // D_HEAD
        kv = head // (N_HEADS // kv_heads)
        z = args[0].clone()
        z[..., head_rows(head)] = kept["v"][..., kv * D_HEAD : (kv + 1) * D_HEAD].mean(dim=1, keepdim=True)
        return (z,)

    handles = [
        values_of(family, LAYER).register_forward_hook(keep),
        family.output_projection(family.plain, LAYER).register_forward_pre_hook(write),
    ]
    expected = family.plain_logits(family.inputs())
    for handle in handles:
        handle.remove()
    n_pos = kept["v"].shape[1]
    uniform = la.Constant(torch.full((N_HEADS, n_pos, n_pos), 1 / n_pos, dtype=torch.float64))
    found = ablated(family, la.patterns(family.model)[LAYER, head], uniform)
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize(
    "select",
    [la.heads, la.attention_neurons, la.neurons, la.patterns, la.attentions, la.mlps],
    ids=lambda f: f.__name__,
)
def test_own_activations_written_back_change_nothing(family: Family, select):
    if family.name == "bert" and select is la.attentions:
        pytest.skip(
            "refused: BERT's hook_attn_out is the stream after its layer norm; goes when TransformerLens moves it"
        )
    inputs = family.inputs()
    found = ablated(family, select(family.model), la.Counterfactual(inputs), inputs)
    with torch.no_grad():
        clean = family.model(inputs)
    torch.testing.assert_close(found, clean, atol=0 if select is not la.patterns else 1e-12, rtol=0)


def test_fixed_input_resampling_by_position_by_hand(family: Family):
    inputs, fixed = family.inputs(), family.inputs(n=1, n_pos=4, seed=7)
    stored = {}

    def keep(module: torch.nn.Module, args: tuple) -> None:
        stored["z"] = args[0]

    handle = family.output_projection(family.plain, LAYER).register_forward_pre_hook(keep)
    family.plain_logits(fixed)
    handle.remove()

    def write(module: torch.nn.Module, args: tuple) -> tuple[Tensor]:
        z = args[0].clone()
        n = min(z.shape[1], stored["z"].shape[1])
        z[:, :, head_rows(HEAD)] = 0
        z[:, :n, head_rows(HEAD)] = stored["z"][:, :n, head_rows(HEAD)]
        return (z,)

    handle = family.output_projection(family.plain, LAYER).register_forward_pre_hook(write)
    expected = family.plain_logits(inputs)
    handle.remove()
    site = la.heads(family.model)[LAYER, HEAD]
    torch.testing.assert_close(ablated(family, site, la.Resample(fixed), inputs), expected, **EXACT)


def test_batch_resampling_is_a_derangement_of_the_same_activations(family: Family):
    inputs = family.inputs(n=5)
    seen, site = {}, la.heads(family.model)[LAYER, HEAD]

    def keep(z: Tensor, hook: object) -> None:
        seen["z"] = z[:, :, HEAD].clone()

    family.model.run_with_hooks(inputs, fwd_hooks=[(site.hook_name, keep)])
    clean = seen["z"]
    with la.ablate(family.model, site, la.Resample(inputs, match="batch", seed=3)):
        family.model.run_with_hooks(inputs, fwd_hooks=[(site.hook_name, keep)])
    donors = [int((clean - row).abs().flatten(1).sum(1).argmin()) for row in seen["z"]]
    assert sorted(donors) == list(range(5))
    assert all(donor != row for row, donor in enumerate(donors))
    torch.testing.assert_close(seen["z"], clean[donors], **EXACT)


@pytest.mark.parametrize("name", TOKEN_FAMILIES)
def test_left_padding_changes_no_number(name: str):
    # in float64 the eager attention of transformers gives NaN for padded queries (Llama, OPT), hooks or not
    family = build(name, dtype=torch.float32)
    short = family.inputs(n=2, n_pos=5)
    padded = torch.cat([torch.zeros(2, 2, dtype=torch.int64), short], dim=1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]] * 2)
    site = la.heads(family.model)[LAYER, HEAD]
    for method in (la.Zero(), la.Resample(family.inputs(n=1, n_pos=4, seed=5))):
        expected = ablated(family, site, method, short)
        with torch.no_grad(), la.ablate(family.model, site, method, attention_mask=mask):
            found = family.model(padded, attention_mask=mask)
        torch.testing.assert_close(found[:, 2:], expected, atol=2e-6, rtol=1e-5)


def test_resampled_patterns_respect_left_padding():
    family = build("gpt2", dtype=torch.float64)
    short = family.inputs(n=2, n_pos=5)
    padded = torch.cat([torch.zeros(2, 2, dtype=torch.int64), short], dim=1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]] * 2)
    method = la.Resample(family.inputs(n=1, n_pos=5, seed=5))
    site = la.patterns(family.model)[LAYER, HEAD]
    expected = ablated(family, site, method, short)
    with torch.no_grad(), la.ablate(family.model, site, method, attention_mask=mask):
        found = family.model(padded, attention_mask=mask)
    torch.testing.assert_close(found[:, 2:], expected, **EXACT)


@pytest.mark.parametrize("positions", ["all", "all_but_first", "answer", torch.tensor([[1, 3]] * 3)], ids=str)
def test_only_the_chosen_positions_are_replaced(gpt2: Family, positions):
    inputs, site = gpt2.inputs(), la.heads(gpt2.model)[LAYER, HEAD]
    task = la.Task(inputs=inputs, answers=inputs[:, 0])
    changed = {}

    def compare(z: Tensor, hook: object) -> None:
        changed["at"] = (z[:, :, HEAD] == 0).all(dim=-1)

    with la.ablate(gpt2.model, site, la.Zero(), positions=positions, task=task):
        gpt2.model.run_with_hooks(inputs, fwd_hooks=[(site.hook_name, compare)])
    expected = (
        {
            "all": [0, 1, 2, 3, 4, 5],
            "all_but_first": [1, 2, 3, 4, 5],
            "answer": [5],
        }.get(positions, [1, 3])
        if isinstance(positions, str)
        else [1, 3]
    )
    assert [row.nonzero().flatten().tolist() for row in changed["at"]] == [expected] * 3


def hook_counts(model) -> dict[str, int]:
    return {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()}


def test_nothing_is_left_behind_even_when_the_body_raises(family: Family):
    before = hook_counts(family.model)
    clean = family.model(family.inputs())
    with pytest.raises(KeyError), la.ablate(family.model, la.heads(family.model), la.Zero()):
        raise KeyError("on purpose")
    assert hook_counts(family.model) == before
    assert torch.equal(family.model(family.inputs()), clean)


def test_hooks_do_not_change_what_they_were_given(family: Family):
    inputs, site = family.inputs(), la.heads(family.model)[LAYER, HEAD]
    seen = {}

    def keep(z: Tensor, hook: object) -> None:
        seen["same"], seen["copy"] = z, z.clone()

    pairs = [(site.hook_name, keep), *la.hooks(family.model, site, la.Zero())]
    family.model.run_with_hooks(inputs, fwd_hooks=pairs)
    assert torch.equal(seen["same"], seen["copy"])


def test_plain_pairs_work_beside_other_hooks(family: Family):
    inputs, site = family.inputs(), la.heads(family.model)[LAYER, HEAD]
    calls = []
    pairs = [
        *la.hooks(family.model, site, la.Zero()),
        ("blocks.0.hook_resid_pre", lambda a, hook: calls.append(1)),
    ]
    found = family.model.run_with_hooks(inputs, fwd_hooks=pairs)
    assert calls == [1]
    torch.testing.assert_close(found, ablated(family, site, la.Zero(), inputs), **EXACT)


def test_contexts_nest_and_compose(family: Family):
    heads, neurons = la.heads(family.model)[LAYER, HEAD], la.neurons(family.model)[2, UNIT]
    cut = family.surgery()
    family.weight_rows(family.output_projection(cut, LAYER))[head_rows(HEAD)] = 0
    family.weight_rows(family.down_projection(cut, 2))[UNIT] = 0
    with la.ablate(family.model, heads, la.Zero()):
        found = ablated(family, neurons, la.Zero())
    torch.testing.assert_close(found, family.plain_logits(family.inputs(), cut), **EXACT)


def test_a_hook_that_is_skipped_raises_and_names_itself(gpt2: Family):
    with (
        pytest.raises(HookDidNotFire, match=r"blocks\.2\.attn\.hook_z"),
        la.ablate(gpt2.model, la.heads(gpt2.model), la.Zero()),
    ):
        gpt2.model(gpt2.inputs(), stop_at_layer=2)


def test_a_hook_that_fires_twice_in_a_pass_raises():
    firings = Firings()
    firings.watch("blocks.0.attn.hook_z")
    firings.pass_began(torch.zeros(1), None)
    firings.counts[0] += 2
    with pytest.raises(HookDidNotFire, match="fired 2 times"):
        firings.pass_ended(torch.zeros(1), None)


def test_a_block_without_a_forward_pass_claims_nothing(gpt2: Family):
    with la.ablate(gpt2.model, la.heads(gpt2.model), la.Zero()) as model:
        assert model is gpt2.model


@pytest.mark.parametrize("name", [family for family in TOKEN_FAMILIES if family in ("gpt2", "llama", "opt")])
def test_generation_with_a_cache_equals_generation_without(name: str):
    family = build(name)
    prompt, sites = family.inputs(n=1), la.heads(family.model)[LAYER]
    texts = []
    for cached in (True, False):
        with la.ablate(family.model, sites, la.Zero()):
            texts.append(
                family.model.generate(
                    prompt,
                    max_new_tokens=5,
                    do_sample=False,
                    use_past_kv_cache=cached,
                    verbose=False,
                    stop_at_eos=False,
                    return_type="tokens",
                )
            )
    assert torch.equal(*texts)


def test_positional_methods_refuse_generation_with_a_cache(gpt2: Family):
    family = build("gpt2")
    with (
        pytest.raises(BadActivation, match="use_past_kv_cache=False"),
        la.ablate(family.model, la.heads(family.model)[1], la.Resample(family.inputs(n=1))),
    ):
        family.model.generate(
            family.inputs(n=1), max_new_tokens=3, use_past_kv_cache=True, verbose=False, stop_at_eos=False
        )


def test_patterns_refuse_generation_with_a_cache_and_allow_it_without():
    family = build("gpt2")
    prompt, method = family.inputs(n=1), la.Zero()
    patterns = la.collect_statistics(family.model, family.inputs(9, 12), la.patterns(family.model), allow_small=True)
    options = {"max_new_tokens": 3, "do_sample": False, "verbose": False, "stop_at_eos": False, "return_type": "tokens"}
    with (
        pytest.raises(BadActivation, match="use_past_kv_cache=False"),
        la.ablate(family.model, la.patterns(family.model)[1], la.Mean(patterns)),
    ):
        family.model.generate(prompt, use_past_kv_cache=True, **options)
    texts = []
    for sites in (la.patterns(family.model)[1], la.heads(family.model)[1]):
        with la.ablate(family.model, sites, method):
            texts.append(family.model.generate(prompt, use_past_kv_cache=False, **options))
    assert torch.equal(*texts)


def test_replacement_takes_the_activations_dtype():
    family = build("gpt2", dtype=torch.bfloat16)
    found = ablated(family, la.heads(family.model), la.Constant(torch.full((N_HEADS, D_HEAD), 0.5)))
    assert found.dtype == torch.bfloat16


def test_bad_requests_name_the_fix(gpt2: Family):
    model = gpt2.model
    heads = la.heads(model)
    with pytest.raises(ValueError, match=r"layer 9 does not exist.*0\.\.2"):
        heads[9]
    with pytest.raises(ValueError, match="empty"):
        la.hooks(model, heads - heads, la.Zero())
    with pytest.raises(ValueError, match="no head of this model"):
        la.hooks(model, la.Site("head", 7, 0), la.Zero())
    with pytest.raises(ValueError, match="needs to know the task"):
        la.hooks(model, heads, la.Zero(), positions="answer")
    with pytest.raises(ValueError, match="positions must be"):
        la.hooks(model, heads, la.Zero(), positions="last")
    with pytest.raises(ValueError, match="not a TransformerLens model"):
        require_lens_model(gpt2.plain)
    with pytest.raises(ValueError, match="not finite"):
        la.Constant(float("nan"))
    model.train()
    try:
        with pytest.raises(ValueError, match=r"model\.eval\(\)"):
            la.hooks(model, heads, la.Zero())
    finally:
        model.eval()


@pytest.mark.parametrize("inner", ["resample", "counterfactual"])
def test_donors_of_an_inner_ablation_are_untouched_by_the_outer_one(gpt2: Family, inner: str):
    tokens, others = gpt2.inputs(n=3), gpt2.inputs(n=3, seed=1)
    heads = la.heads(gpt2.model)
    method = la.Resample(others) if inner == "resample" else la.Counterfactual(others)
    together = la.hooks(gpt2.model, heads[0], la.Zero()) + la.hooks(gpt2.model, heads[2], method)
    expected = gpt2.model.run_with_hooks(tokens, fwd_hooks=together)
    with la.ablate(gpt2.model, heads[0], la.Zero()), la.ablate(gpt2.model, heads[2], method):
        found = gpt2.model(tokens)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
