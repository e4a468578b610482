"""A model of two halves that know nothing of each other: what is planted is found."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sklearn.metrics import adjusted_rand_score
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

import lens_ablation as la
from lens_ablation.data.task import joined
from lens_ablation.models.protocol import LensModel

D, WIDTH, N_WORDS = 32, 64, 20
HALVES = {"a": range(N_WORDS), "b": range(N_WORDS, 2 * N_WORDS)}
HALF_OF = np.arange(WIDTH) % 2
"""Which half each neuron belongs to."""


@pytest.fixture(scope="module")
def halves() -> LensModel:
    """Words of either half fill half of the residual stream, which half of the neurons read and write."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=D, n_inner=WIDTH, vocab_size=2 * N_WORDS, n_positions=16, activation_function="relu"
    )
    plain: Any = transformers.GPT2LMHeadModel(config).eval()
    plain.set_attn_implementation("eager")
    stream = torch.arange(D) // (D // 2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        plain.transformer.wpe.weight.zero_()
        words = torch.randn(2 * N_WORDS, D, generator=generator)
        for word in range(2 * N_WORDS):
            own = stream == word // N_WORDS
            words[word, ~own] = 0
            # of mean 0, so that layer norm leaves the other half at 0
            words[word, own] -= words[word, own].mean()
        plain.transformer.wte.weight.copy_(words)
        for block in plain.transformer.h:
            block.attn.c_attn.weight.zero_()
            block.attn.c_proj.weight.zero_()
            for half in (0, 1):
                here, mine = stream == half, torch.from_numpy(half == HALF_OF)
                common = torch.randn(D // 2, 1, generator=generator)
                noise = 0.5 * torch.randn(D // 2, WIDTH // 2, generator=generator)
                into, out = torch.zeros(D, WIDTH // 2), torch.zeros(WIDTH // 2, D)
                into[here] = common + noise
                written = 0.3 * torch.randn(WIDTH // 2, D // 2, generator=generator)
                out[:, here] = written - written.mean(dim=1, keepdim=True)
                block.mlp.c_fc.weight[:, mine] = into
                block.mlp.c_proj.weight[mine] = out
    wrapped = copy.deepcopy(plain)
    return build_bridge_from_module(
        wrapped, type(wrapped).__name__, hf_config=wrapped.config, dtype=torch.float32, device="cpu"
    )


def task(words: range, seed: int, n: int = 40) -> la.Task:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.tensor(words)[torch.randint(len(words), (n, 6), generator=generator)]
    return la.Task(inputs=inputs, answers=inputs[:, -1], name="words")


def both(end: int) -> dict[str, la.Task]:
    """Two tasks of either half, of other words each."""
    return {
        f"{half}{part}": task(words[10 * part : 10 * part + 10], 10 * end + 2 * i + part)
        for i, (half, words) in enumerate(HALVES.items())
        for part in (0, 1)
    }


def test_tasks_of_different_halves_share_no_neurons_beyond_chance(halves: LensModel):
    sets = la.selective_neurons(halves, both(0), fraction=0.2, progress=False)
    for name, chosen in sets.items():
        assert set(HALF_OF[chosen.addresses[:, 1]]) == {"ab".index(name[0])}
    found = la.overlap(sets)
    apart = np.array([[a[0] != b[0] for b in sets] for a in sets])
    assert (found.overlap[apart] == 0).all()
    assert (found.overlap[apart] <= found.chance_in_layers[apart]).all()
    data = both(0)
    against = joined([data["b0"], data["b1"]])
    same = la.overlap(
        la.selective_neurons(halves, {n: data[n] for n in ("a0", "a1")}, retain=against, fraction=0.2, progress=False)
    )
    assert same.z[0, 1] > 4


def test_pruning_for_one_half_leaves_the_other_as_it_is(halves: LensModel):
    found = la.cross_pruning(
        halves,
        {half: task(words, i) for i, (half, words) in enumerate(HALVES.items())},
        {half: task(words, 10 + i) for i, (half, words) in enumerate(HALVES.items())},
        fraction=0.4,
        metric=la.metrics.loss,
        progress=False,
    )
    assert np.abs(found.change[[0, 1], [1, 0]]).max() < 1e-6
    assert np.abs(found.change[[0, 1], [0, 1]]).min() > 0.1


@pytest.mark.parametrize("split", ["weights", "activations"])
def test_experts_recover_the_halves(halves: LensModel, split: str):
    data = torch.cat([task(words, 30 + i).inputs for i, words in enumerate(HALVES.values())])
    way = la.ParameterClustering(n_init=3) if split == "weights" else la.CoActivation(data, n_init=3)
    experts = la.split_into_experts(halves, None, 2, way, progress=False)
    assert all(adjusted_rand_score(HALF_OF, labels) >= 0.95 for labels in experts.labels)
    sets = la.selective_neurons(halves, both(0), fraction=0.2, progress=False)
    found = la.enrichment(sets, experts, n_permutations=500)
    assert (found.z_overall > 10).all()
    random = la.split_into_experts(halves, None, 2, la.RandomSplit(), progress=False)
    assert np.abs(la.enrichment(sets, random, n_permutations=500).z_overall).max() < 4


def test_either_half_needs_its_own_expert_alone(halves: LensModel):
    experts = la.split_into_experts(halves, None, 2, la.ParameterClustering(n_init=3), progress=False)
    random = la.split_into_experts(halves, None, 2, la.RandomSplit(), progress=False)
    asked = task(HALVES["a"], 40).with_metric(la.metrics.loss)
    found = la.routed_quality(halves, asked, {"found": experts, "random": random}, kept=(1,), progress=False)
    assert float((found.values[0, 0] - found.baseline).abs().max()) < 1e-5
    assert float((found.values[1, 0] - found.baseline).abs().mean()) > 0.05
