"""Gradients of neurons against forward hooks on the plain model, finite differences and closed forms."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from sklearn.linear_model import LinearRegression
from torch import Tensor

import lens_ablation as la
from lens_ablation import selectors
from lens_ablation.data.metrics import loss
from lens_ablation.empirical import gradients as gradients_module
from lens_ablation.empirical import question as question_module
from lens_ablation.empirical.curves import ShiftCurves, slope
from lens_ablation.empirical.gradients import NeuronGradients
from lens_ablation.empirical.question import family_neurons
from lens_ablation.errors import DamagedFile, UnsupportedModel
from lens_ablation.studies.correlations import pearson
from tests.empirical.by_hand import a_task, neurons_of, probabilities, read_of, shifted
from tests.families import D_MLP, D_VOCAB, FAMILIES, N_LAYERS, Family, build

DOUBLE = torch.float64
WAYS = [la.Gradient(), la.NeurGrad(), la.IntegratedGradients(steps=3), la.EmpiricalGradient(0.2, 0.1)]


def is_up(family: Family) -> bool:
    return family.name == "llama"


def some(family: Family, *units: int) -> la.SiteSet:
    """A few neurons of the first and the last layer."""
    every = family_neurons(family.model)
    chosen = [every[layer, unit] for layer in (0, N_LAYERS - 1) for unit in units or (1, 7)]
    return chosen[0] | chosen[1] | chosen[2] | chosen[3] if len(chosen) == 4 else every


@pytest.fixture
def softmax_in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention of some families takes its softmax in float32, whose rounding finite differences would divide."""
    given = torch.nn.functional.softmax

    def softmax(x: Tensor, dim: int | None = None, dtype: torch.dtype | None = None, **options: object) -> Tensor:
        return given(x, dim=dim, dtype=x.dtype if x.dtype == DOUBLE else dtype)

    monkeypatch.setattr(torch.nn.functional, "softmax", softmax)


def norm_in_double(family: Family) -> None:
    """The plain model's norms in float64 throughout: those of Llama compute in float32."""
    for module in family.plain.modules():
        if type(module).__name__ == "LlamaRMSNorm":

            def norm(x: Tensor, module: torch.nn.Module = module) -> Tensor:
                return module.weight * x * (x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()

            module.forward = norm


@pytest.mark.model
@pytest.mark.usefixtures("softmax_in_double")
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_those_of_finite_differences_on_the_plain_model(name: str):
    family = build(name, dtype=DOUBLE)
    norm_in_double(family)
    task, few = a_task(family, padding="right"), some(family)
    found = la.neuron_gradients(family.model, task, few, la.Gradient(), dtype=DOUBLE, progress=False)
    ids, step = found.candidates, 1e-5
    assert torch.equal(ids, torch.stack([task.answers, task.wrong_answers], dim=1))
    # Llama's own norms round to float32
    torch.testing.assert_close(found.probabilities, probabilities(family, task, ids), atol=1e-12, rtol=1e-5)
    for i, site in enumerate(few):
        up = is_up(family)
        high, low = (shifted(family, task, ids, site.layer, site.unit, a, signed=False, up=up) for a in (step, -step))
        torch.testing.assert_close(found.values[:, :, i], (high - low) / (2 * step), atol=1e-10, rtol=1e-3)
        expected = neurons_of(family, task, site.layer, up=up)[:, site.unit]
        torch.testing.assert_close(found.activations[:, i], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.model
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_shifts_are_those_of_hooks_on_the_plain_model(name: str, signed: bool):
    family = build(name, dtype=DOUBLE)
    task, few = a_task(family, padding="right"), some(family)
    way = la.EmpiricalGradient(2.0, 1.0, "signed" if signed else "additive")
    found = la.neuron_gradients(family.model, task, few, way, dtype=DOUBLE, progress=False)
    assert found.shifts.tolist() == [-2, -1, 1, 2]
    for i, site in enumerate(few):
        for j, amount in enumerate(found.shifts.tolist()):
            expected = shifted(
                family, task, found.candidates, site.layer, site.unit, amount, signed=signed, up=is_up(family)
            )
            torch.testing.assert_close(found.outputs[:, :, i, j], expected, atol=1e-12, rtol=1e-9)


@pytest.mark.model
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "vit"])
def test_a_batch_padded_on_the_left_gives_what_single_prompts_give(name: str):
    family = build(name)
    task, few = a_task(family, padding="left"), some(family)
    for way in WAYS:
        whole = la.neuron_gradients(family.model, task, few, way, progress=False)
        for i in range(task.n_examples):
            real = task.attention_mask[i]
            alone = la.Task(
                inputs=task.inputs[i, real][None], answers=task.answers[[i]], wrong_answers=task.wrong_answers[[i]]
            )
            single = la.neuron_gradients(family.model, alone, few, way, progress=False)
            # float32 and another length of row
            torch.testing.assert_close(whole.values[i], single.values[0], atol=2e-6, rtol=2e-4)
            torch.testing.assert_close(whole.probabilities[i], single.probabilities[0], atol=1e-7, rtol=1e-4)


@pytest.mark.model
@pytest.mark.parametrize("name", FAMILIES)
def test_small_shifts_agree_with_neurgrad_signed_and_with_the_gradient_additive(name: str):
    family = build(name, dtype=DOUBLE)
    task, every = a_task(family), family_neurons(family.model)
    assert every.kind == ("pre_linear" if name == "llama" else "neuron")
    found = {
        way.name + way.convention: la.neuron_gradients(family.model, task, None, way, dtype=DOUBLE, progress=False)
        for way in (
            la.NeurGrad(),
            la.Gradient(),
            la.EmpiricalGradient(0.1, 0.05, "signed"),
            la.EmpiricalGradient(0.1, 0.05, "additive"),
        )
    }
    assert all(part.sites == every for part in found.values())
    signed, additive = found["Empirical gradientsigned"], found["Empirical gradientadditive"]
    estimate, plain = found["NeurGradsigned"], found["Gradientadditive"]

    # opt has relu, and a neuron at exactly 0 is not moved by a signed shift
    moved = (signed.activations != 0)[:, None].expand(signed.values.shape)

    def r(one: NeuronGradients, other: NeuronGradients) -> float:
        return float(pearson(one.values[moved], other.values[moved]))

    assert r(signed, estimate) > 0.999
    assert r(additive, plain) > 0.999
    if name != "opt":  # whose neurons are never negative
        assert abs(r(signed, plain)) < 0.4
        assert abs(r(additive, estimate)) < 0.4
    # the attention of some families rounds to float32
    torch.testing.assert_close(additive.signed.values, signed.values, atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(plain.signed.values, estimate.values)
    torch.testing.assert_close(additive.curves.signed.outputs, signed.outputs, atol=1e-8, rtol=1e-6)


def test_signs_of_activations_decide_between_the_conventions():
    """A > 0: both agree; A < 0: the slope turns round; A = 0: signed shifts move nothing, and s is -1."""
    family = build("opt", dtype=DOUBLE)  # relu, so that many activations are exactly 0
    task, every = a_task(family), la.neurons(family.model)
    shifts = {
        shift: la.neuron_gradients(
            family.model, task, every, la.EmpiricalGradient(0.4, 0.2, shift), dtype=DOUBLE, progress=False
        )
        for shift in ("signed", "additive")
    }
    signed, additive = shifts["signed"], shifts["additive"]
    active, zero = signed.activations > 0, signed.activations == 0
    assert bool(active.any())
    assert bool(zero.any())
    of = zero[:, None].expand(signed.values.shape)
    assert bool((signed.values[of] == 0).all())
    assert bool((signed.curves.linearity[of] == 0).all())
    assert torch.equal(
        signed.outputs[of], signed.probabilities[:, :, None].expand(signed.values.shape)[of][:, None].expand(-1, 4)
    )
    assert bool((additive.values[of] != 0).any())
    torch.testing.assert_close(signed.values[~of], additive.values[~of], atol=1e-12, rtol=1e-6)
    one = {way.name: la.neuron_gradients(family.model, task, every, way, progress=False) for way in WAYS[:2]}
    torch.testing.assert_close(one["NeurGrad"].values[of], -one["Gradient"].values[of])
    assert bool(signed.additive.values[of].isnan().all())
    assert bool((additive.signed.values[of] == 0).all())
    turned = build("gpt2", dtype=DOUBLE)
    task, few = a_task(turned), la.neurons(turned.model)[1]
    a, b = (
        la.neuron_gradients(turned.model, task, few, la.EmpiricalGradient(0.4, 0.2, s), dtype=DOUBLE, progress=False)
        for s in ("signed", "additive")
    )
    negative = (a.activations < 0)[:, None].expand(a.values.shape)
    torch.testing.assert_close(a.values[negative], -b.values[negative], atol=1e-12, rtol=1e-6)
    torch.testing.assert_close(a.values[~negative], b.values[~negative], atol=1e-12, rtol=1e-6)


def test_the_slope_is_that_of_scikit_learn_without_an_intercept():
    generator = torch.Generator().manual_seed(0)
    shifts = torch.tensor([-2.0, -1.0, 0.5, 1.0, 3.0])
    baseline = torch.rand(2, 1, generator=generator, dtype=DOUBLE)
    outputs = torch.rand(2, 1, 3, 5, generator=generator, dtype=DOUBLE)
    found = slope(shifts, outputs, baseline)
    for example in range(2):
        for neuron in range(3):
            y = (outputs[example, 0, neuron] - baseline[example, 0]).numpy()
            fitted = LinearRegression(fit_intercept=False).fit(shifts.double().numpy()[:, None], y)
            assert float(found[example, 0, neuron]) == pytest.approx(float(fitted.coef_[0]), rel=1e-12)


def test_a_linear_response_has_its_own_slope_and_linearity_one():
    shifts = torch.tensor([-0.4, -0.2, 0.2, 0.4], dtype=DOUBLE)
    slopes = torch.tensor([0.1, -0.2, 0.0], dtype=DOUBLE)
    baseline = torch.full((1, 1), 0.5, dtype=DOUBLE)
    curves = ShiftCurves(
        shifts=shifts,
        outputs=0.5 + (slopes[:, None] * shifts)[None, None],
        baseline=baseline,
        activations=torch.ones(1, 3, dtype=DOUBLE),
        candidates=torch.zeros(1, 1, dtype=torch.int64),
        sites=la.SiteSet("neuron", torch.tensor([[0, 0], [0, 1], [0, 2]]).numpy(), (1, 3)),
        settings={"shift": "signed"},
    )
    torch.testing.assert_close(curves.slope[0, 0], slopes, atol=1e-15, rtol=1e-12)
    torch.testing.assert_close(curves.linearity[0, 0], slopes.sign(), atol=1e-12, rtol=0)
    assert curves.polarity[0, 0].tolist() == [1, -1, 0]
    assert curves.linear_share()["range"].tolist() == [0.4]  # over one shift to each side everything is linear
    table = curves.linear_share(ranges=[0.2, 0.4])
    assert table["linear"].tolist() == pytest.approx([2 / 3, 2 / 3])
    assert table["linear_moved"].tolist() == [1, 1]
    assert table["positive"].tolist() == [0.5, 0.5]
    assert curves.by_layer()["linear"].tolist() == pytest.approx([2 / 3])
    bent = replace(curves, outputs=0.5 + (0.1 * shifts**2).expand(1, 1, 3, 4))
    assert float(bent.linearity.abs().max()) < 1e-12
    with pytest.raises(ValueError, match=r"0 shifts lie within 0\.1; the least is 0\.2"):
        curves.within(0.1)


def test_on_a_linear_readout_gradients_have_a_closed_form():
    """The last layer's neurons reach the logits through one linear map where the final norm is the identity."""
    family = build("gpt2", dtype=DOUBLE)

    class Identity(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    model, plain = family.model, family.plain
    task, layer = a_task(family), N_LAYERS - 1
    plain.transformer.ln_f = Identity().eval()
    model.original_model.transformer.ln_f = Identity().eval()
    found = la.neuron_gradients(model, task, la.neurons(model)[layer], la.Gradient(), dtype=DOUBLE, progress=False)
    down = family.down_projection(plain, layer).weight.data
    readout = down @ plain.lm_head.weight.data.T
    p = family.plain_logits(task.inputs)[:, -1].softmax(dim=-1)
    for c, ids in enumerate(found.candidates.T):
        own = p.gather(1, ids[:, None])
        expected = own * (readout[:, ids].T - p @ readout.T)
        torch.testing.assert_close(found.values[:, c], expected, atol=1e-12, rtol=1e-9)


def test_integrated_gradients_are_the_mean_gradient_while_a_layer_grows():
    family = build("llama", dtype=DOUBLE)
    task, layer = a_task(family), 1
    every = la.neurons(family.model, at="pre_linear")
    found = la.neuron_gradients(
        family.model, task, every[layer, :4], la.IntegratedGradients(steps=3), dtype=DOUBLE, progress=False
    )
    up = family.plain.model.layers[layer].mlp.up_proj
    total = torch.zeros(task.n_examples, 2, D_MLP, dtype=DOUBLE)
    for scale in (0.0, 0.5, 1.0):
        kept: list[Tensor] = []

        def scaled(module, args, out: Tensor, scale: float = scale, kept: list[Tensor] = kept) -> Tensor:
            changed = out.clone()
            kept.append((scale * out[:, -1]).detach().requires_grad_(True))
            changed[:, -1] = kept[0]
            return changed

        handle = up.register_forward_hook(scaled)
        p = family.plain(task.inputs).logits[:, -1].softmax(dim=-1).gather(1, found.candidates)
        for c in range(2):
            total[:, c] += torch.autograd.grad(p[:, c].sum(), kept[0], retain_graph=True)[0] / 3
        handle.remove()
    torch.testing.assert_close(found.values, total[:, :, :4], atol=1e-12, rtol=1e-9)


@pytest.mark.model
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("vit", "bert")])
def test_log_probability_increase_is_the_neurons_own_write_read_off(name: str):
    family = build(name, dtype=DOUBLE)
    task, layer, unit = a_task(family), 1, 5
    site = la.neurons(family.model)[layer, unit]
    found = la.neuron_gradients(family.model, task, site, la.LogProbIncrease(), dtype=DOUBLE, progress=False)
    plain, seen = family.plain, {}
    down = family.down_projection(plain, layer)
    handles = [
        family.block(plain, layer).register_forward_hook(
            lambda m, a, out: seen.update(post=(out[0] if isinstance(out, tuple) else out))
        ),
        down.register_forward_hook(lambda m, a, out: seen.update(mlp=out, read=a[0])),
    ]
    n_rows = task.n_examples
    family.plain_logits(task.inputs)
    for handle in handles:
        handle.remove()
    before = seen["post"][:, -1] - seen["mlp"].reshape(n_rows, -1, seen["mlp"].shape[-1])[:, -1]
    held = seen["read"].reshape(n_rows, -1, D_MLP)[:, -1, unit]
    written = held[:, None] * family.weight_rows(down)[unit]
    norm = {"llama": "model.norm", "opt": "model.decoder.final_layer_norm"}.get(name, "transformer.ln_f")

    def log_p(residual: Tensor) -> Tensor:
        scores = plain.lm_head(plain.get_submodule(norm)(residual))
        return scores.log_softmax(dim=-1).gather(1, found.candidates)

    with torch.no_grad():
        expected = log_p(before + written) - log_p(before)
    torch.testing.assert_close(found.values[:, :, 0], expected, atol=1e-9, rtol=1e-6)
    assert found.shift == "signed"


def test_log_probability_increase_refuses_what_cannot_be_read_off():
    family = build("bert")
    with pytest.raises(UnsupportedModel, match="do not add up to what those read"):
        la.neuron_gradients(family.model, a_task(family), None, la.LogProbIncrease(), progress=False)


def test_the_up_projection_is_no_other_neuron(unchecked: Callable[[ModuleType], Any]):
    gated, plain = build("llama").model, build("gpt2").model
    up = la.neurons(gated, at="pre_linear")
    assert (str(up[1, 3]), str(la.neurons(gated)[1, 3])) == ("L1.pre_linear3", "L1N3")
    assert up[1, 3].hook_name == "blocks.1.mlp.hook_pre_linear"
    assert len(up) == N_LAYERS * D_MLP
    assert la.check_sites(gated).changes["hook_pre_linear"] > 0
    assert "hook_pre_linear" not in la.check_sites(plain).changes
    with pytest.raises(UnsupportedModel, match="not gated, so they have no hook_pre_linear"):
        la.neurons(plain, at="pre_linear")
    with pytest.raises(ValueError, match="neurons are at 'post' or 'pre_linear', got 'gate'"):
        unchecked(selectors).neurons(plain, at="gate")
    family = build("llama", dtype=DOUBLE)
    task, site = a_task(family), la.neurons(family.model, at="pre_linear")[1, 3]
    with la.ablate(family.model, site, la.Zero(), positions="answer", task=task):
        ablated = family.model(task.inputs)
    held = neurons_of(family, task, 1, up=True)[:, 3]
    up_proj = family.plain.model.layers[1].mlp.up_proj

    def cut(module, args, out: Tensor) -> Tensor:
        changed = out.clone()
        changed[:, -1, 3] = 0
        return changed

    handle = up_proj.register_forward_hook(cut)
    torch.testing.assert_close(ablated, family.plain_logits(task.inputs), atol=1e-12, rtol=1e-9)
    handle.remove()
    assert bool((held != 0).all())


def test_a_run_in_a_store_goes_on_and_gives_the_same(tmp_path: Path):
    family = build("gpt2")
    task, few = a_task(family, n=5), la.neurons(family.model)[:, ::6]
    way = la.EmpiricalGradient(0.4, 0.2)
    engine = la.Engine(store=tmp_path / "store", threads=1)
    first = la.neuron_gradients(family.model, task, few, way, batch_size=16, engine=engine, progress=False)
    kept = sorted((tmp_path / "store").rglob("*.safetensors"))
    assert len(kept) > 2
    stamps = [path.stat().st_mtime_ns for path in kept]
    kept[0].unlink()
    again = la.neuron_gradients(family.model, task, few, way, batch_size=16, engine=engine, progress=False)
    assert torch.equal(first.outputs, again.outputs)
    assert [path.stat().st_mtime_ns for path in kept[1:]] == stamps[1:]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_every_path_and_size_of_pass_gives_the_same(name: str):
    family = build(name, dtype=DOUBLE)
    task, few = a_task(family, n=5, padding="right"), some(family)
    way = la.EmpiricalGradient(0.4, 0.2)
    found = [
        la.neuron_gradients(family.model, task, few, way, batch_size=size, engine=engine, dtype=DOUBLE, progress=False)
        for size, engine in ((None, None), (7, None), (1, None), (None, la.Engine(reuse=False)))
    ]
    for other in found[1:]:
        torch.testing.assert_close(other.outputs, found[0].outputs, atol=1e-14, rtol=1e-10)
    small = la.neuron_gradients(family.model, task, few, batch_size=2, dtype=DOUBLE, progress=False)
    large = la.neuron_gradients(family.model, task, few, dtype=DOUBLE, progress=False)
    torch.testing.assert_close(small.values, large.values, atol=1e-14, rtol=1e-10)


def test_the_model_is_left_as_it_was():
    family = build("gpt2")
    model = family.model
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    for weight in model.parameters():
        weight.requires_grad_(True)
    for way in WAYS:
        la.neuron_gradients(model, a_task(family), some(family), way, progress=False)
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
    # nor does it hold a graph, with which it could not be copied
    wide = la.neuron_gradients(model, a_task(family), some(family), engine=la.Engine(dtype=DOUBLE), progress=False)
    own = la.neuron_gradients(model, a_task(family), some(family), progress=False)
    copy.deepcopy(model)
    assert wide.probabilities.dtype == DOUBLE
    torch.testing.assert_close(own.values, wide.values, atol=1e-6, rtol=1e-3)


def test_a_result_is_read_back_as_it_was_saved(tmp_path: Path):
    family = build("gpt2")
    task, few = a_task(family), some(family)
    found = la.neuron_gradients(family.model, task, few, la.EmpiricalGradient(0.4, 0.2), progress=False)
    again = la.NeuronGradients.load(found.save(tmp_path / "kept"))
    for name in ("values", "activations", "probabilities", "candidates", "shifts", "outputs"):
        assert torch.equal(getattr(again, name), getattr(found, name))
    assert again.settings == found.settings
    assert again.sites == found.sites
    assert found.settings["hook"] == "mlp.hook_post"
    part = found.select(torch.tensor([2, 0]))
    assert torch.equal(part.values, found.values[[2, 0]])
    assert torch.equal(part.curves.outputs, found.outputs[[2, 0]])
    table = found.to_dataframe()
    assert table["value_0"].tolist() == pytest.approx(found.values[:, 0].mean(dim=0).tolist())
    manifest = tmp_path / "kept" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"signed"', '"sideways"'))
    with pytest.raises(DamagedFile, match="must be 'signed' or 'additive'"):
        la.NeuronGradients.load(tmp_path / "kept")


def test_gradients_are_refused_as_those_of_other_neurons():
    family = build("gpt2")
    task, every = a_task(family), la.neurons(family.model)
    found = la.neuron_gradients(family.model, task, every[0], progress=False)
    found.require_same_sites(every[0])
    with pytest.raises(ValueError, match=r"other neurons .*48 neuron sites and 144 neuron sites"):
        found.require_same_sites(every)
    turned = every[0].take(list(reversed(range(D_MLP))))
    with pytest.raises(ValueError, match="in place 0"):
        found.require_same_sites(turned)


def test_what_cannot_be_asked_is_refused():
    family = build("gpt2")
    model, task = family.model, a_task(family)
    ask = la.neuron_gradients
    with pytest.raises(ValueError, match="head sites are no neurons"):
        ask(model, task, la.heads(model), progress=False)
    with pytest.raises(ValueError, match=rf"ids in 0\.\.{D_VOCAB - 1}, got 3\.\.{D_VOCAB}"):
        ask(model, task, candidates=torch.tensor([3, D_VOCAB]), progress=False)
    with pytest.raises(ValueError, match=r"\[example, candidate\] of 3 examples; got shape \(2, 1\)"):
        ask(model, task, candidates=torch.tensor([[3], [4]]), progress=False)
    with pytest.raises(ValueError, match=r"dtype is torch\.float16; take torch\.float32"):
        ask(model, task, dtype=torch.float16, progress=False)
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        ask(model, task, batch_size=0, progress=False)
    every = la.Task(
        inputs=task.inputs,
        answers=task.inputs[:, 1:],
        positions=torch.arange(5).expand(3, -1),
        metric=loss,
    )
    with pytest.raises(ValueError, match="reads 5 answers of an example"):
        ask(model, every, progress=False)
    with pytest.raises(ValueError, match="give 0 < step <= shift_range"):
        la.EmpiricalGradient(1.0, 2.0)
    with pytest.raises(ValueError, match="steps is 1; take at least 2"):
        la.IntegratedGradients(steps=1)
    with pytest.raises(ValueError, match="Gradient shifts nothing"):
        assert ask(model, task, la.neurons(model)[0, 0], la.Gradient(), progress=False).curves


def test_what_does_not_fit_in_memory_is_refused_beforehand(monkeypatch: pytest.MonkeyPatch):
    family = build("gpt2")
    monkeypatch.setattr(question_module, "free_bytes", lambda device: 2**12)
    with pytest.raises(ValueError, match=r"3 examples x 2 candidates x 144 neurons in torch\.float32 take .* GiB"):
        la.neuron_gradients(family.model, a_task(family), progress=False)
    with pytest.raises(ValueError, match="x 4 shifts"):
        la.neuron_gradients(
            family.model, a_task(family), la.neurons(family.model)[0], la.EmpiricalGradient(0.4, 0.2), progress=False
        )
    half = la.neuron_gradients(family.model, a_task(family), dtype=torch.bfloat16, progress=False)
    assert half.values.dtype == torch.bfloat16
    assert gradients_module.SATURATED == 0.01


def test_candidates_are_followed_one_by_one_where_they_are_given():
    family = build("gpt2", dtype=DOUBLE)
    task, few = a_task(family), some(family)
    own = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    found = la.neuron_gradients(family.model, task, few, la.Gradient(), candidates=own, dtype=DOUBLE, progress=False)
    assert found.values.shape == (3, 3, 4)
    torch.testing.assert_close(found.probabilities, probabilities(family, task, own))
    for c in range(3):
        alone = la.neuron_gradients(
            family.model, task, few, la.Gradient(), candidates=own[:, c : c + 1], dtype=DOUBLE, progress=False
        )
        torch.testing.assert_close(alone.values[:, 0], found.values[:, c])
    asked = replace(task, positions=torch.tensor([2, 4, 5]))
    assert torch.equal(read_of(asked), torch.tensor([2, 4, 5]))
    early = la.neuron_gradients(family.model, asked, few, la.Gradient(), dtype=DOUBLE, progress=False)
    step = 1e-5
    high, low = (shifted(family, asked, early.candidates, 0, 1, a, signed=False) for a in (step, -step))
    torch.testing.assert_close(early.values[:, :, 0], (high - low) / (2 * step), atol=1e-10, rtol=1e-3)


def test_shifts_in_deviations_are_those_times_each_neurons_own():
    family = build("gpt2", dtype=DOUBLE)
    task, few = a_task(family, n=4), some(family)
    way = la.EmpiricalGradient(1.0, 0.5, in_deviations=True)
    found = la.neuron_gradients(family.model, task, few, way, dtype=DOUBLE, progress=False)
    for i, site in enumerate(few):
        size = float(neurons_of(family, task, site.layer)[:, site.unit].std(correction=0))
        own = la.EmpiricalGradient(1.0 * size, 0.5 * size)
        alone = la.neuron_gradients(family.model, task, site, own, dtype=DOUBLE, progress=False)
        torch.testing.assert_close(found.outputs[:, :, [i]], alone.outputs, atol=1e-12, rtol=1e-9)
        torch.testing.assert_close(found.values[:, :, [i]], alone.values, atol=1e-12, rtol=1e-6)
        torch.testing.assert_close(found.curves.slope[:, :, i], found.values[:, :, i] * size, atol=1e-12, rtol=1e-9)
    with pytest.raises(ValueError, match="one example has no standard deviation"):
        la.neuron_gradients(family.model, task.select(slice(1)), few, way, progress=False)
