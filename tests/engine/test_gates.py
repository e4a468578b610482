"""Slopes in keep gates against finite differences, on every family."""

import numpy as np
import pytest
import torch

import lens_ablation as la
from lens_ablation.engine.gates import gate_gradients
from lens_ablation.engine.part import Part
from lens_ablation.engine.path import plain
from lens_ablation.engine.proof import path_of
from lens_ablation.sites import SiteSet
from tests.families import FAMILIES, Family, build

pytestmark = pytest.mark.model

KINDS = ("heads", "attention_neurons", "neurons", "patterns", "mlps")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return build(request.param, dtype=torch.float64)


def a_part(family: Family, sets: list[SiteSet], *, shortcuts: bool = True) -> Part:
    inputs = family.inputs(n=3)
    task = la.Task(inputs=inputs, answers=torch.tensor([1, 2, 3]))
    path = path_of(family.model) if shortcuts else plain("test")
    methods = [(sites, la.Constant(0.3)) for sites in sets]
    return Part(family.model, task, methods, "all", torch.arange(3), path, clean_bytes=2**28, gradients=True)


def random_shares(sets: list[SiteSet], n_variants: int = 2) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [(generator.random((n_variants, len(sites))) < 0.3).astype(np.float64) for sites in sets]


@pytest.mark.parametrize("kind", KINDS)
def test_slopes_agree_with_finite_differences(family: Family, kind: str):
    sites = getattr(la, kind)(family.model)
    part, shares = a_part(family, [sites]), random_shares([sites])
    found = gate_gradients(part, shares)
    step = 1e-4
    for site in (0, len(sites) // 2, len(sites) - 1):
        more, less = shares[0].copy(), shares[0].copy()
        more[:, site] += step
        less[:, site] -= step
        difference = gate_gradients(part, [less]).values - gate_gradients(part, [more]).values
        slopes = found.slopes[0][:, :, site].double()
        # some models compute parts in float32 whatever their dtype
        torch.testing.assert_close(slopes, difference.double() / (2 * step), atol=5e-4, rtol=1e-2)


def test_values_are_those_of_ablations_and_both_paths_agree(family: Family):
    sets = [la.heads(family.model), la.neurons(family.model)]
    shares = random_shares(sets)
    short = gate_gradients(a_part(family, sets), shares)
    whole = gate_gradients(a_part(family, sets, shortcuts=False), shares)
    torch.testing.assert_close(short.values, whole.values, atol=1e-9, rtol=1e-9)
    for a, b in zip(short.slopes, whole.slopes, strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-6)
    flags = [rows > 0 for rows in shares]
    torch.testing.assert_close(a_part(family, sets).scores(flags), short.values, atol=1e-9, rtol=1e-9)


def test_weights_ask_for_gradients_again_afterwards(family: Family):
    sites = la.heads(family.model)
    before = [weight.requires_grad for weight in family.model.parameters()]
    gate_gradients(a_part(family, [sites]), random_shares([sites]))
    assert [weight.requires_grad for weight in family.model.parameters()] == before
    assert all(weight.grad is None for weight in family.model.parameters())
