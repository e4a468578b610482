"""Baked models against hooks on the bridge, and against cuts made by hand in the plain Hugging Face model."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

import lens_ablation as la
from lens_ablation.attribution.bake import RECORD, bake
from lens_ablation.errors import BadActivation, StatisticsMismatch, UnknownSite, UnsupportedModel
from lens_ablation.methods.method import Replacement, Request
from lens_ablation.models.protocol import LensModel
from lens_ablation.sites import HookPoint
from tests.families import D_HEAD, D_MLP, D_MODEL, D_VOCAB, HAS_HOOKED_TRANSFORMER, N_HEADS, Family, build, plain_model
from tests.models.test_loading import save_tokenizer

pytestmark = pytest.mark.model
BRIDGES = ["gpt2", "llama", "vit", "opt", "bert"]
DOUBLE = torch.float64
KINDS: dict[str, Callable[[LensModel], la.SiteSet]] = {
    "head": lambda model: la.heads(model)[0, 1] | la.heads(model)[1, 0] | la.heads(model)[1, 3],
    "z": lambda model: la.attention_neurons(model).sample(0.3, seed=0),
    "neuron": lambda model: la.neurons(model).sample(0.3, seed=1),
    "attention": lambda model: la.attentions(model)[:2],
    "mlp": lambda model: la.mlps(model)[1:],
}
METHODS = ["zero", "number", "constant", "mean", "peak"]
CASES = [(name, kind) for name in BRIDGES for kind in KINDS if (name, kind) != ("bert", "attention")]


def width(kind: str) -> tuple[int, ...]:
    return {"head": (N_HEADS, D_HEAD), "z": (N_HEADS, D_HEAD), "neuron": (D_MLP,)}.get(kind, (D_MODEL,))


def a_method(name: str, family: Family, sites: la.SiteSet) -> la.Method:
    if name == "zero":
        return la.Zero()
    if name == "number":
        return la.Constant(0.3)
    if name == "constant":
        generator = torch.Generator().manual_seed(5)
        shape = width(sites.kind)
        return la.Constant({p.name: torch.randn(shape, generator=generator).double() for p in sites.hook_points})
    inputs = family.inputs(40, seed=3)
    task = la.Task(inputs=inputs, answers=torch.zeros(40, dtype=torch.int64))
    stats = la.collect_statistics(family.model, task, sites, allow_small=True, progress=False)
    return la.Mean(stats) if name == "mean" else la.Peak(stats)


def constants(method: la.Method, model: LensModel, sites: la.SiteSet) -> dict[int, Tensor]:
    """By layer, what the method puts there, flat."""
    shape = torch.Size((1, 1, *width(sites.kind)))
    asked = method.prepare(model, sites.hook_points)
    return {
        p.layer: asked(
            Request(point=p, shape=shape, examples=None, positions=torch.zeros(1, 1).long(), activation=None)
        )
        .double()
        .expand(shape)
        .flatten()
        for p in sites.hook_points
    }


def cut(family: Family, sites: la.SiteSet, values: Mapping[int, Tensor]) -> torch.nn.Module:
    """A copy of the plain model, edited by hand."""
    plain = family.surgery()
    for layer in sites.layers:
        at_attention = sites.kind in ("head", "z", "attention")
        projection = (family.output_projection if at_attention else family.down_projection)(plain, layer)
        rows = family.weight_rows(projection)
        if getattr(projection, "bias", None) is None:
            projection.bias = torch.nn.Parameter(torch.zeros(rows.shape[1], dtype=rows.dtype))
        if sites.kind in ("attention", "mlp"):
            rows.zero_()
            projection.bias.data.copy_(values[layer])
            continue
        for _, *unit in (address for address in sites.addresses.tolist() if address[0] == layer):
            first = unit[0] * D_HEAD if at_attention else unit[0]
            chosen = (
                range(first, first + D_HEAD) if sites.kind == "head" else [first + (unit[1] if at_attention else 0)]
            )
            for i in chosen:
                projection.bias.data += values[layer][i] * rows[i]
                rows[i] = 0
    return plain


def hooked_logits(model: LensModel, inputs: Tensor, parts: Sequence[tuple[la.SiteSet, la.Method]]) -> Tensor:
    pairs = [pair for sites, method in parts for pair in la.hooks(model, sites, method)]
    with torch.no_grad():
        return model.run_with_hooks(inputs, fwd_hooks=pairs)


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


def state(model: Any) -> dict[str, Tensor]:
    root = model.original_model
    named = [*root.named_parameters(remove_duplicate=False), *root.named_buffers(remove_duplicate=False)]
    return {name: tensor.detach().clone() for name, tensor in named}


def saved(name: str, folder: Path, plain: torch.nn.Module | None = None) -> Path:
    (plain or plain_model(name)).double().save_pretrained(folder)
    if name != "vit":
        save_tokenizer(folder)
    return folder


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_baked_equals_hooks_and_cuts_by_hand(name: str, kind: str):
    family = build(name, dtype=DOUBLE)
    sites, inputs = KINDS[kind](family.model), family.inputs(5, seed=9)
    clean = family.plain_logits(inputs)
    before = state(family.model)
    for label in METHODS:
        method = a_method(label, family, sites)
        baked = bake(family.model, sites, method)
        logits = family.plain_logits(inputs, baked.model)
        assert apart(logits, hooked_logits(family.model, inputs, [(sites, method)])) < 1e-10
        by_hand = cut(family, sites, constants(method, family.model, sites))
        assert apart(logits, family.plain_logits(inputs, by_hand)) < 1e-10
        assert apart(logits, clean) > 1e-4
        assert baked.check(inputs) < 1e-10
        assert type(baked.model) is type(family.plain)
    after = state(family.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", BRIDGES)
def test_saved_and_loaded_gives_the_same_numbers(name: str, tmp_path: Path):
    model = la.load_model(saved(name, tmp_path / "source"), dtype=DOUBLE)
    family = Family(name, model, plain_model(name).double())
    inputs = family.inputs(4, seed=2)
    for kind in ("head", "neuron"):
        sites = KINDS[kind](model)
        method = a_method("mean", family, sites)
        baked = bake(model, sites, method)
        again = la.load_model(baked.save(tmp_path / kind), dtype=DOUBLE)
        with torch.no_grad():
            assert apart(again(inputs), hooked_logits(model, inputs, [(sites, method)])) < 1e-10
        assert la.check_sites(again, throw=False).anatomy.n_heads == N_HEADS
        record = json.loads((tmp_path / kind / RECORD).read_text())["settings"]
        assert record == json.loads(json.dumps(baked.settings))
        assert record["ablations"][0]["sites"] == [str(site) for site in sites]
        assert "output_attentions" not in json.loads((tmp_path / kind / "config.json").read_text())


@pytest.mark.parametrize("name", BRIDGES)
def test_several_at_once_and_one_after_the_other(name: str, tmp_path: Path):
    family = build(name, dtype=DOUBLE)
    model, inputs = family.model, family.inputs(4, seed=2)
    heads, neurons, mlps = KINDS["head"](model), la.neurons(model)[0, :9], la.mlps(model)[2:]
    parts = [
        (heads, la.Constant(0.2)),
        (neurons, la.Zero()),
        (mlps, la.Constant(-0.1)),
        (la.heads(model)[2], la.Zero()),
    ]
    together = bake(model, parts)
    assert together.check(inputs) < 1e-10
    assert [len(sites) for sites in together.sites] == [3, 9, 1, 4]
    current = model
    for i, (sites, method) in enumerate(parts):
        folder = bake(current, sites, method).save(tmp_path / str(i))
        if name != "vit":
            save_tokenizer(folder)
        current = la.load_model(folder, dtype=DOUBLE)
    with torch.no_grad():
        assert apart(current(inputs), family.plain_logits(inputs, together.model)) < 1e-10


def test_a_layer_output_written_over_hides_its_heads():
    family = build("llama", dtype=DOUBLE)
    model, inputs = family.model, family.inputs()
    both = [(la.attentions(model)[1:2], la.Zero()), (la.heads(model)[1], la.Constant(0.5))]
    baked = bake(model, both)
    assert baked.settings["added_biases"] == []
    assert apart(baked.model(inputs).logits, hooked_logits(model, inputs, both)) < 1e-10


def test_llama_gets_biases_only_where_a_constant_needs_them(tmp_path: Path):
    model = la.load_model(saved("llama", tmp_path / "source"), dtype=DOUBLE)
    assert bake(model, la.heads(model)[1], la.Zero()).settings["added_biases"] == []
    baked = bake(model, [(la.heads(model)[1], la.Constant(0.1)), (la.neurons(model)[0], la.Constant(0.1))])
    assert baked.settings["added_biases"] == ["attention_bias", "mlp_bias"]
    biases = {name: weight for name, weight in baked.model.named_parameters() if name.endswith("bias")}
    moved = {name for name, bias in biases.items() if bool(bias.any())}
    assert moved == {"model.layers.1.self_attn.o_proj.bias", "model.layers.0.mlp.down_proj.bias"}
    again = la.load_model(baked.save(tmp_path / "baked"), dtype=DOUBLE)
    inputs = build("llama").inputs()
    with torch.no_grad():
        assert apart(again(inputs), baked.model(inputs).logits) < 1e-10


def test_an_architecture_without_biases_takes_zero_only():
    config = transformers.MistralConfig(
        vocab_size=D_VOCAB,
        hidden_size=D_MODEL,
        num_hidden_layers=2,
        num_attention_heads=N_HEADS,
        num_key_value_heads=2,
        intermediate_size=D_MLP,
        head_dim=D_HEAD,
        sliding_window=None,
    )
    torch.manual_seed(0)
    plain = transformers.MistralForCausalLM(config).double().eval()
    plain.set_attn_implementation("eager")
    model = build_bridge_from_module(plain, "MistralForCausalLM", hf_config=config, dtype=DOUBLE, device="cpu")
    assert bake(model, la.heads(model)[1, 2], la.Zero()).check(torch.arange(4, 12)[None]) < 1e-10
    with pytest.raises(UnsupportedModel, match=r"o_proj has no bias.*Zero\(\)"):
        bake(model, la.heads(model)[1, 2], la.Constant(0.1))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
def test_tied_embeddings_stay_tied(name: str, tied: bool, tmp_path: Path):
    config = plain_model(name).config
    config.tie_word_embeddings = tied
    torch.manual_seed(1)
    plain = type(plain_model(name))(config).eval()
    model = la.load_model(saved(name, tmp_path / "source", plain), dtype=DOUBLE)
    baked = bake(model, la.mlps(model)[1], la.Constant(0.2) if name != "llama" else la.Zero())
    shared = baked.model.get_output_embeddings().weight is baked.model.get_input_embeddings().weight
    assert shared == tied
    again = la.load_model(baked.save(tmp_path / "baked"), dtype=DOUBLE)
    inputs = build(name).inputs()
    with torch.no_grad():
        assert apart(again(inputs), baked.model(inputs).logits) < 1e-10


@pytest.mark.parametrize("name", ["tiny-lm", "tiny-vit"])
def test_embedded_models(name: str, tmp_path: Path):
    model = la.load_model(name)
    task = la.tasks.ioi(model, n=32) if name == "tiny-lm" else la.tasks.digits(model, n=32)
    for select in (la.heads, la.attention_neurons, la.neurons, la.attentions, la.mlps):
        sites = select(model).sample(0.25, seed=0)
        stats = la.collect_statistics(model, task, sites, allow_small=True, progress=False)
        for method in (la.Zero(), la.Mean(stats), la.Peak(stats)):
            baked = bake(model, sites, method)
            assert baked.check(task.inputs, task.attention_mask) < 1e-4
    again = la.load_model(baked.save(tmp_path / "baked"))
    with torch.no_grad():
        assert apart(again(task.inputs), hooked_logits(model, task.inputs, [(sites, method)])) < 1e-4
    if name == "tiny-lm":
        text = "When Mary and John went to the store"
        assert torch.equal(again.to_tokens(text), model.to_tokens(text))
        assert (tmp_path / "baked" / "generation_config.json").is_file()


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "bert"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_are_compared_at_real_tokens(name: str, side: str):
    family = build(name)
    inputs = family.inputs()
    mask = torch.ones_like(inputs)
    mask[0, : 2 if side == "left" else None] = 0 if side == "left" else 1
    if side == "right":
        mask[0, -2:] = 0
    baked = bake(family.model, la.heads(family.model)[1], la.Constant(0.3))
    assert baked.check(inputs, mask) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_dtypes(dtype: torch.dtype):
    family = build("gpt2", dtype=dtype)
    baked = bake(family.model, la.heads(family.model)[1], la.Constant(0.3))
    assert {weight.dtype for weight in baked.model.parameters()} == {dtype}


@pytest.mark.parametrize("name", BRIDGES)
def test_global_random_state_is_left_alone(name: str):
    family = build(name, dtype=DOUBLE)
    before = torch.get_rng_state()
    bake(family.model, la.heads(family.model)[0], la.Zero())
    assert torch.equal(before, torch.get_rng_state())


class Halved(la.Method):
    """Half of the activation: no constant."""

    settings: Mapping[str, object] = {}

    def prepare(self, model: LensModel, points: Sequence[HookPoint], examples: Tensor | None = None) -> Replacement:
        return lambda request: request.activation * 0.5


class ByRow(Halved):
    """Another value in each row."""

    def prepare(self, model: LensModel, points: Sequence[HookPoint], examples: Tensor | None = None) -> Replacement:
        return lambda request: torch.arange(request.shape[0]).float().reshape(-1, *[1] * (len(request.shape) - 1))


class Twos(Halved):
    """A constant of somebody else."""

    def prepare(self, model: LensModel, points: Sequence[HookPoint], examples: Tensor | None = None) -> Replacement:
        return lambda request: torch.full(request.shape, 2.0)


class Broken(Halved):
    """Not a number."""

    def prepare(self, model: LensModel, points: Sequence[HookPoint], examples: Tensor | None = None) -> Replacement:
        return lambda request: torch.tensor(float("nan"))


class Fickle(Halved):
    """Another constant each time it is prepared."""

    prepared = 0

    def prepare(self, model: LensModel, points: Sequence[HookPoint], examples: Tensor | None = None) -> Replacement:
        self.prepared += 1
        value = torch.tensor(float(self.prepared))
        return lambda request: value


def test_a_baked_model_that_differs_from_the_hooked_one_is_not_given_back():
    family = build("gpt2")
    with pytest.raises(UnsupportedModel, match="the baked model differs from the ablated one"):
        bake(family.model, la.heads(family.model)[1], Fickle())


def test_methods_that_are_no_constants_are_refused():
    family = build("gpt2", dtype=DOUBLE)
    model, sites = family.model, la.heads(family.model)[1]
    inputs = family.inputs(40)
    task = la.Task(inputs=inputs, answers=inputs[:, 0], counterfactuals=inputs.roll(1, 0))
    stats = la.collect_statistics(model, task, sites, allow_small=True, per_position=True, progress=False)
    refused = [
        la.Mean(stats, per_position=True),
        la.Resample(task),
        la.Resample(task, match="batch"),
        la.Counterfactual(task),
        la.Noise(stats),
        la.Noise(stats, around="mean"),
        Halved(),
        ByRow(),
    ]
    for method in refused:
        with pytest.raises(ValueError, match=r"cannot be baked.*Zero, Constant, Mean"):
            bake(model, sites, method)
    assert bake(model, sites, Twos()).check(inputs) < 1e-10
    with pytest.raises(BadActivation, match="not finite"):
        bake(model, sites, Broken())


def test_sites_that_cannot_be_baked_are_refused():
    family = build("gpt2", dtype=DOUBLE)
    model, heads = family.model, la.heads(family.model)
    with pytest.raises(ValueError, match="a pattern cannot be baked"):
        bake(model, la.patterns(model)[0], la.Zero())
    with pytest.raises(ValueError, match="two methods were given"):
        bake(model, [(heads[0], la.Zero()), (heads[:, 1], la.Constant(1.0))])
    with pytest.raises(UnknownSite):
        bake(model, la.Site("head", 9, 0), la.Zero())
    with pytest.raises(UnknownSite):
        bake(model, heads[0] - heads[0], la.Zero())
    for wrong in (heads[0], []):
        with pytest.raises(ValueError, match="give sites and a method"):
            bake(model, wrong)
    bert = build("bert")
    with pytest.raises(UnsupportedModel, match="not the output of its layer"):
        bake(bert.model, la.attentions(bert.model), la.Zero())


def test_models_that_cannot_be_baked_are_refused(tmp_path: Path):
    family = build("gpt2", dtype=DOUBLE)
    inputs = family.inputs(40)
    task = la.Task(inputs=inputs, answers=inputs[:, 0])
    other = build("gpt2", dtype=DOUBLE, seed=1)
    stats = la.collect_statistics(other.model, task, la.heads(other.model), allow_small=True, progress=False)
    with pytest.raises(StatisticsMismatch):
        bake(family.model, la.heads(family.model)[0], la.Mean(stats))
    family.model.train()
    with pytest.raises(ValueError, match="training mode"):
        bake(family.model, la.heads(family.model)[0], la.Zero())


@pytest.mark.parametrize("tied", [True, False])
def test_processed_weights_are_refused_where_no_checkpoint_stands_for_them(tied: bool, tmp_path: Path):
    plain = plain_model("gpt2")
    plain.config.tie_word_embeddings = tied
    torch.manual_seed(1)
    folder = saved("gpt2", tmp_path, type(plain)(plain.config))
    processed = la.load_model(folder, dtype=DOUBLE, processing="compatibility")
    for select in (la.heads, la.neurons, la.mlps):
        with pytest.raises(UnsupportedModel, match=r"unprocessed|weight processing: compatibility"):
            bake(processed, select(processed)[0], la.Constant(0.2))


@pytest.mark.parametrize(("name", "kinds"), [("llama", ["head", "z", "attention"]), ("vit", list(KINDS))])
def test_processed_weights_that_are_a_checkpoint_are_baked_exactly(name: str, kinds: list[str], tmp_path: Path):
    model = la.load_model(saved(name, tmp_path / "source"), dtype=DOUBLE, processing="compatibility")
    for kind in kinds:
        assert bake(model, KINDS[kind](model), la.Constant(0.2)).check(build(name, dtype=DOUBLE).inputs()) < 1e-10


@pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 has no HookedTransformer")
def test_hooked_transformer_is_refused():
    family = build("hooked")
    with pytest.raises(UnsupportedModel, match="TransformerBridge"):
        bake(family.model, la.heads(family.model)[0], la.Zero())


def test_edited_weights_are_baked_as_they_are():
    family = build("gpt2", dtype=DOUBLE)
    model = family.model
    with torch.no_grad():
        model.blocks[0].attn.q.weight.mul_(0.5)
    baked = bake(model, la.heads(model)[1], la.Zero())
    assert baked.check(family.inputs()) < 1e-10


def test_folders(tmp_path: Path):
    model = la.load_model("tiny-vit")
    baked = bake(model, la.heads(model)[0], la.Zero())
    folder = baked.save(tmp_path / "deep" / "baked")
    names = {path.name for path in folder.iterdir()}
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"baked"}
    bake(model, la.heads(model)[1], la.Zero()).save(folder)
    assert {path.name for path in folder.iterdir()} == names
    assert json.loads((folder / RECORD).read_text())["settings"]["ablations"][0]["sites"][0] == "L1H0"
    foreign = tmp_path / "foreign"
    shutil.copytree(la.zoo.path("tiny-vit"), foreign)
    kept = (foreign / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="did not write"):
        baked.save(foreign)
    assert (foreign / "model.safetensors").read_bytes() == kept
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        baked.save(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        baked.save(tmp_path / "file")
    assert not list(tmp_path.rglob(".*"))


def test_a_damaged_checkpoint_is_not_loaded(tmp_path: Path):
    model = la.load_model("tiny-vit")
    folder = bake(model, la.heads(model)[0], la.Zero()).save(tmp_path / "baked")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="could not be loaded"):
        la.load_model(folder)


@pytest.mark.parametrize("name", BRIDGES)
def test_optimal_constants_are_baked_like_any_other(name: str, tmp_path: Path):
    family = build(name, dtype=DOUBLE)
    inputs = family.inputs(60, seed=3)
    task = la.Task(inputs=inputs, answers=torch.zeros(60, dtype=torch.int64))
    sites = la.heads(family.model)[1]
    found = la.fit_optimal(family.model, task, sites, steps=3, lr=0.1, evaluate_every=1, progress=False)
    baked = bake(family.model, sites, la.Optimal(found))
    assert baked.check(family.inputs()) < 1e-9
    by_position = la.fit_optimal(family.model, task, sites, steps=1, per_position=True, progress=False)
    with pytest.raises(ValueError, match="position"):
        bake(family.model, sites, la.Optimal(by_position))
