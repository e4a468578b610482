"""Lenses against the plain Hugging Face model, block by block."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import lens_ablation as la
from lens_ablation.engine.proof import path_of
from lens_ablation.errors import DamagedFile, StatisticsMismatch, UnsupportedModel
from lens_ablation.models.capture import capture
from lens_ablation.optimal import lens_passes
from lens_ablation.optimal.lens_passes import LensPart
from tests.families import FAMILIES, N_LAYERS, Family, build


def texts(family: Family, n: int = 60) -> la.Task | Tensor:
    inputs = family.inputs(n, 6, seed=2)
    if family.name in ("vit", "bert"):
        return la.Task(inputs=inputs, answers=torch.zeros(n, dtype=torch.int64))
    return inputs


@pytest.mark.model
@pytest.mark.parametrize("name", ["gpt2", "llama", "vit", "opt"])
def test_the_logit_lens_is_the_models_own_head_on_hidden_states(name: str):
    family = build(name, dtype=torch.float64)
    data = texts(family, 12)
    lens = la.fit_lens(family.model, data, la.LogitLens(), allow_small=True, progress=False)
    found = lens.logits(family.model, data)
    with torch.no_grad():
        inputs = data.inputs if isinstance(data, la.Task) else data
        states = family.plain(inputs, output_hidden_states=True).hidden_states[:N_LAYERS]
        if name == "vit":
            expected = torch.stack([family.plain.classifier(family.plain.vit.layernorm(h)[:, :1]) for h in states])
        else:
            norm = {
                "gpt2": lambda: family.plain.transformer.ln_f,
                "llama": lambda: family.plain.model.norm,
                "opt": lambda: family.plain.model.decoder.final_layer_norm,
            }[name]()
            expected = torch.stack([family.plain.lm_head(norm(h)) for h in states])[:, :, :-1]
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(lens.divergence, lens.start)


@pytest.mark.model
@pytest.mark.parametrize("name", [family for family in FAMILIES if family != "bert"])
def test_constants_equal_to_true_attention_outputs_give_the_models_logits(name: str):
    """At the token whose attention outputs they are, from every layer of the lens."""
    family = build(name, dtype=torch.float64)
    inputs = family.inputs(1, 6, seed=2)
    task = la.Task(inputs=inputs, answers=torch.zeros(1, dtype=torch.int64), metric=la.metrics.kl_from_clean)
    names = [f"blocks.{i}.hook_attn_out" for i in range(N_LAYERS)]
    kept = capture(family.model, inputs, names)
    at = 0 if name == "vit" else -1
    constants = torch.stack([kept[one][0, at] for one in names]).repeat(N_LAYERS, 1, 1)
    part = LensPart(la.OptimalConstantAttention(), family.model, task, torch.arange(1), path_of(family.model), 2**30)
    with torch.no_grad():
        found = part.logits({"constants": constants})
    expected = family.plain_logits(inputs)
    expected = expected if name == "vit" else expected[:, -1]
    torch.testing.assert_close(found[:, 0, 0], expected.expand(N_LAYERS, -1), atol=1e-9, rtol=1e-9)


def test_mean_attention_is_the_rest_of_the_plain_model_with_means_in_the_place_of_attention():
    family = build("gpt2", dtype=torch.float64)
    inputs = texts(family)
    lens = la.fit_lens(family.model, inputs, la.MeanAttention(), progress=False)
    some = inputs[:5]
    model = family.plain.transformer
    with torch.no_grad():
        states = family.plain(some, output_hidden_states=True).hidden_states
        for layer in range(N_LAYERS):
            stream = states[layer]
            for i in range(layer, N_LAYERS):
                middle = stream + lens.parameters["constants"][layer, i]
                stream = middle + model.h[i].mlp(model.h[i].ln_2(middle))
            expected = family.plain.lm_head(model.ln_f(stream))[:, :-1]
            torch.testing.assert_close(lens.logits(family.model, some)[layer].double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.model
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", [la.TunedLens, la.OptimalConstantAttention])
def test_fitting_brings_lenses_closer_on_text_that_was_held_out(name: str, kind: type, tmp_path: Path):
    family = build(name)
    data = texts(family, 100)
    wanted = kind(steps=60, lr=5e-3, batch_size=20)
    if name == "bert" and kind is la.OptimalConstantAttention:
        with pytest.raises(UnsupportedModel, match="attn_out"):
            la.fit_lens(family.model, data, wanted, progress=False)
        return
    lens = la.fit_lens(family.model, data, wanted, progress=False)
    assert lens.divergence.shape == (N_LAYERS, 20)
    assert bool((lens.kl <= lens.start.mean(dim=1) + 1e-6).all())
    assert float(lens.kl.sum()) < 0.97 * float(lens.start.mean(dim=1).sum())
    read = la.Lens.load(lens.save(tmp_path / "lens"))
    assert read.kind == lens.kind
    torch.testing.assert_close(read.logits(family.model, data), lens.logits(family.model, data))
    assert read.to_dataframe().equals(lens.to_dataframe())
    with pytest.raises(StatisticsMismatch, match="Fit it on this model with fit_lens"):
        lens.logits(build(name, seed=7).model, data)


@pytest.mark.parametrize("kind", [la.TunedLens, la.OptimalConstantAttention])
def test_a_fit_does_not_depend_on_how_many_rows_a_pass_holds(kind: type, monkeypatch: pytest.MonkeyPatch):
    family = build("gpt2", dtype=torch.float64)
    data, found = texts(family, 60), []
    for rows in (5 * N_LAYERS, 1000 * N_LAYERS):
        monkeypatch.setattr(lens_passes, "rows_in_pass", lambda model, inputs, rows=rows: rows)
        found.append(la.fit_lens(family.model, data, kind(steps=12, batch_size=12), progress=False))
    for name, value in found[0].parameters.items():
        torch.testing.assert_close(value, found[1].parameters[name], atol=1e-9, rtol=1e-9)
        assert not torch.equal(value, torch.zeros_like(value))


def test_a_tuned_lens_begins_as_the_logit_lens():
    family = build("llama")
    data = texts(family)
    tuned = la.fit_lens(family.model, data, la.TunedLens(steps=1, lr=1e-12), progress=False)
    logit = la.fit_lens(family.model, data, la.LogitLens(), progress=False)
    torch.testing.assert_close(tuned.start, logit.divergence)


def test_divergence_is_kl_over_the_vocabulary_in_nats():
    family = build("gpt2", dtype=torch.float64)
    data = texts(family)
    lens = la.fit_lens(family.model, data, la.LogitLens(), progress=False)
    judged = la.fit_lens(
        family.model,
        data,
        la.LogitLens(),
        held_out=_asking(data[:7]),
        progress=False,
    )
    ours = lens.logits(family.model, data[:7]).double().log_softmax(dim=-1)
    true = lens.output(family.model, data[:7]).double().log_softmax(dim=-1)
    expected = (true.exp() * (true - ours)).sum(dim=-1).mean(dim=-1)
    torch.testing.assert_close(judged.divergence.double(), expected, atol=1e-6, rtol=1e-4)


def _asking(tokens: Tensor) -> la.Task:
    n, n_pos = tokens.shape
    return la.Task(inputs=tokens, answers=tokens[:, 1:], positions=torch.arange(n_pos - 1).repeat(n, 1))


def test_files_that_were_changed_are_refused(tmp_path: Path):
    family = build("gpt2")
    lens = la.fit_lens(family.model, texts(family), progress=False)
    folder = lens.save(tmp_path / "lens")
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"LogitLens"', '"Nobody"'))
    with pytest.raises(DamagedFile, match="there is no lens 'Nobody'"):
        la.Lens.load(folder)


def test_bad_requests_say_what_to_do():
    family = build("gpt2")
    with pytest.raises(ValueError, match="50 examples or more"):
        la.fit_lens(family.model, texts(family, 20), progress=False)
    with pytest.raises(ValueError, match="steps is 0"):
        la.TunedLens(steps=0)
