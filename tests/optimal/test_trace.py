"""Causal tracing against hooks by hand on the plain Hugging Face model, and against what must hold."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import lens_ablation as la
from lens_ablation.errors import UnsupportedModel
from lens_ablation.models.protocol import LensModel
from lens_ablation.optimal import trace
from tests.families import HAS_HOOKED_TRANSFORMER, N_HEADS, N_LAYERS, Family, build

NAMES = ["gpt2", "llama", "opt", *(["hooked"] if HAS_HOOKED_TRANSFORMER else [])]


def knowing(family: Family, n: int = 24, *, masked: bool = False) -> la.Task:
    """Prompts that the model answers rightly, because the answers are what it says."""
    inputs = family.inputs(n, 7, seed=4)
    mask = torch.ones_like(inputs, dtype=torch.bool)
    if masked:
        mask[::2, -1] = False
    with torch.no_grad():
        logits = family.plain(inputs, attention_mask=mask.long()).logits
    last = mask.sum(dim=1) - 1
    spans = {"subject": torch.tensor([[1, 3]]).repeat(n, 1)}
    spans["subject"][::3, 1] = 4
    return la.Task(inputs=inputs, answers=logits[torch.arange(n), last].argmax(dim=1), attention_mask=mask, spans=spans)


@pytest.mark.model
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("corruption", [la.GaussianNoise(draws=2), la.OptimalVector(steps=1, lr=1e-3)])
def test_everything_restored_behind_the_subject_brings_back_all_and_nothing_brings_nothing(
    name: str, corruption: la.GaussianNoise | la.OptimalVector
):
    family = build(name, dtype=torch.float64)
    whole = 2 * N_LAYERS + 1
    found = la.trace(family.model, knowing(family), corruption, window=whole, positions=["last"], progress=False)
    torch.testing.assert_close(found.effect, torch.ones_like(found.effect), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.restored[0], found.clean.expand(N_LAYERS, -1), atol=1e-6, rtol=0)
    nothing = replace(found, restored=found.corrupted.expand_as(found.restored))
    assert float(nothing.effect.abs().max()) < 1e-6


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("restore", "window"), [("attention", 1), ("attention", 3), ("mlp", 1)])
def test_probabilities_are_those_of_hooks_on_the_plain_model(restore: str, window: int, masked: bool):
    family = build("gpt2", dtype=torch.float64)
    task, noise = knowing(family, masked=masked), la.GaussianNoise(scale=2.0, draws=2, seed=5)
    groups = ["last", "subject", "last_subject"]
    found = la.trace(family.model, task, noise, restore, window=window, positions=groups, progress=False)
    n, n_pos = task.inputs.shape
    with torch.no_grad():
        states = family.plain(task.inputs, attention_mask=task.attention_mask.long(), output_hidden_states=True)
    spread = states.hidden_states[0][task.attention_mask].float().std(dim=0)
    last = task.attention_mask.sum(dim=1) - 1
    start, stop = task.spans["subject"].T
    places = torch.arange(n_pos)
    where = {
        "last": places == last[:, None],
        "subject": (places >= start[:, None]) & (places < stop[:, None]),
        "last_subject": places == stop[:, None] - 1,
    }
    expected = torch.zeros(3, N_LAYERS, n, dtype=torch.float64)
    corrupted = torch.zeros(n, dtype=torch.float64)
    for draw in range(2):
        added = noise.noise(spread, n, n_pos, draw).double() * where["subject"][:, :, None]
        corrupted += by_hand(family, task, restore, added, {}, where["last"]) / 2
        for g, group in enumerate(groups):
            for layer in range(N_LAYERS):
                layers = range(max(0, layer - window // 2), min(N_LAYERS, layer + window // 2 + 1))
                at = dict.fromkeys(layers, where[group])
                expected[g, layer] += by_hand(family, task, restore, added, at, where["last"]) / 2
    torch.testing.assert_close(found.restored.double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.corrupted.double(), corrupted, atol=1e-6, rtol=0)


def by_hand(
    family: Family, task: la.Task, restore: str, added: Tensor, restored: dict[int, Tensor], last: Tensor
) -> Tensor:
    """Probability of the answers with noise on the embedding and clean outputs restored, by plain PyTorch hooks."""
    model, clean, handles = family.plain.transformer, {}, []
    options = {"attention_mask": task.attention_mask.long()}

    def part(layer: int) -> torch.nn.Module:
        return model.h[layer].attn if restore == "attention" else model.h[layer].mlp

    def keep(layer: int):
        return lambda module, args, out: clean.update({layer: out[0] if isinstance(out, tuple) else out})

    def put(layer: int, at: Tensor):
        def hook(module: object, args: object, out: object) -> object:
            own = out[0] if isinstance(out, tuple) else out
            new = torch.where(at[:, :, None], clean[layer], own)
            return (new, *out[1:]) if isinstance(out, tuple) else new

        return hook

    with torch.no_grad():
        keeping = [part(layer).register_forward_hook(keep(layer)) for layer in restored]
        family.plain(task.inputs, **options)
        for handle in keeping:
            handle.remove()
        handles.append(model.wte.register_forward_hook(lambda module, args, out: out + added))
        handles += [part(layer).register_forward_hook(put(layer, at)) for layer, at in restored.items()]
        logits = family.plain(task.inputs, **options).logits
        for handle in handles:
            handle.remove()
    return logits[last].softmax(dim=-1).gather(1, task.answers[:, None])[:, 0]


@pytest.mark.model
@pytest.mark.parametrize("name", [*NAMES, "bert"])
def test_heads_are_restored_one_at_a_time(name: str):
    family = build(name, dtype=torch.float64)
    task = knowing(family)
    found = la.trace(family.model, task, la.GaussianNoise(draws=1), "head", positions=["last"], progress=False)
    assert found.restored.shape == (1, N_LAYERS * N_HEADS, 24)
    assert found.peak() in [str(site) for site in la.heads(family.model)]
    assert len(found.plot().data) == 1
    with pytest.raises(ValueError, match="take window=1"):
        la.trace(family.model, task, None, "head", window=3, progress=False)


def test_the_effect_and_its_error_are_those_of_the_delta_method():
    generator = torch.Generator().manual_seed(0)
    clean = 0.5 + 0.5 * torch.rand(400, generator=generator)
    corrupted = clean * torch.rand(400, generator=generator) * 1.1
    restored = corrupted + 0.6 * (clean - corrupted) * torch.rand(1, 1, 400, generator=generator)
    model = build("gpt2").model
    found = la.TraceResult(
        restored=restored,
        corrupted=corrupted,
        clean=clean,
        groups=("last",),
        sites=la.attentions(model)[0] if isinstance(la.attentions(model)[0], la.SiteSet) else la.attentions(model)[:1],
        settings={},
    )
    missing = (clean - restored[0, 0]).clamp(min=0).mean()
    lost = clean.mean() - torch.minimum(clean, corrupted).mean()
    assert float(found.effect[0, 0]) == pytest.approx(float(1 - missing / lost), rel=1e-5)
    rng = np.random.default_rng(0)
    drawn = [
        float(replace(found, restored=restored[..., rows], corrupted=corrupted[rows], clean=clean[rows]).effect[0, 0])
        for rows in (torch.from_numpy(rng.integers(0, 400, 400)) for _ in range(400))
    ]
    assert float(found.error[0, 0]) == pytest.approx(np.std(drawn), rel=0.15)


def test_the_learned_vector_loses_less_than_the_mean_embedding_and_noise():
    model = la.load_model("tiny-lm")
    task = la.tasks.facts(model, n=80, split="train")
    ways = [la.OptimalVector(steps=40), la.OptimalVector(steps=1, lr=1e-9), la.GaussianNoise()]
    learned, mean, noise = (la.trace(model, task, way, positions=["last"], progress=False) for way in ways)
    assert learned.lost < mean.lost
    assert learned.lost < noise.lost
    assert len(learned.clean) == len(noise.clean) - int(0.6 * len(noise.clean))


@pytest.mark.parametrize("corruption", [la.GaussianNoise(draws=2), la.OptimalVector(steps=2, lr=1e-3)])
def test_numbers_do_not_depend_on_how_many_rows_a_pass_holds(corruption: la.GaussianNoise | la.OptimalVector):
    family = build("gpt2", dtype=torch.float64)
    task = knowing(family)
    with watched(family.model) as rows:
        # less than the heads, so that they take several passes; more, so that several prompts share one; all at once
        found = [
            la.trace(family.model, task, corruption, "head", positions=["last"], batch_size=size, progress=False)
            for size in (4, 50, 10_000)
        ]
    for other in found[1:]:
        torch.testing.assert_close(other.restored, found[0].restored, atol=1e-6, rtol=0)
    assert max(rows) > 50


@contextmanager
def watched(model: LensModel) -> Iterator[list[int]]:
    """Rows of every forward pass inside."""
    rows: list[int] = []

    def note(module: object, given: tuple[Tensor, ...]) -> None:
        rows.append(len(given[0]))

    handle = model.hook_dict["hook_embed"].register_forward_pre_hook(note)
    try:
        yield rows
    finally:
        handle.remove()


def test_results_are_saved_read_and_drawn(tmp_path: Path):
    family = build("llama")
    found = la.trace(family.model, knowing(family), la.GaussianNoise(draws=1), "mlp", window=3, progress=False)
    read = la.TraceResult.load(found.save(tmp_path / "trace"))
    assert read.to_dataframe().equals(found.to_dataframe())
    assert [line.name for line in found.plot().data if line.name] == ["last", "last subject", "subject"]


def test_bad_requests_say_what_to_do(unchecked):
    family = build("gpt2")
    task = knowing(family)
    bert = build("bert")
    cases = [
        (family, replace(task, spans={}), {}, ValueError, "no span 'subject' to corrupt; it has none"),
        (family, task, {"positions": ["frist"]}, ValueError, "no tokens called 'frist'; groups are 'last', 'subject'"),
        (family, task, {"window": 2}, ValueError, "an odd number of layers"),
        (family, replace(task, answers=(task.answers + 1) % 50), {}, ValueError, "answers 0 of 24 prompts rightly"),
        (bert, knowing(bert), {}, UnsupportedModel, "attn_out"),
    ]
    for one, asked, options, kind, message in cases:
        with pytest.raises(kind, match=message):
            la.trace(one.model, asked, progress=False, **options)
    vit = build("vit")
    with pytest.raises(UnsupportedModel, match="reads images"):
        la.trace(vit.model, la.Task(inputs=vit.inputs(20), answers=torch.zeros(20, dtype=torch.int64)), progress=False)
    with pytest.raises(ValueError, match="scale is 0"):
        la.GaussianNoise(scale=0.0)
    with pytest.raises(ValueError, match="restore must be 'attention'"):
        unchecked(trace).trace(family.model, task, None, "neuron")
