"""Sites and ordered sets of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lens_ablation as la
from lens_ablation.errors import DamagedFile, UnknownSite
from tests.families import D_HEAD, D_MLP, N_HEADS, N_LAYERS, build

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def model():
    return build("llama").model


@pytest.fixture(scope="module")
def heads(model):
    return la.heads(model)


def test_selectors_hold_every_site_of_the_model(model):
    sizes = {
        la.heads: N_LAYERS * N_HEADS,
        la.patterns: N_LAYERS * N_HEADS,
        la.attention_neurons: N_LAYERS * N_HEADS * D_HEAD,
        la.neurons: N_LAYERS * D_MLP,
        la.attentions: N_LAYERS,
        la.mlps: N_LAYERS,
    }
    assert {select: len(select(model)) for select in sizes} == sizes


def test_printed_names_and_hook_names(model):
    printed = [
        str(la.heads(model)[2, 1]),
        str(la.attention_neurons(model)[2, 1, 5]),
        str(la.neurons(model)[1, 17]),
        str(la.mlps(model)[2]),
        str(la.attentions(model)[2]),
        str(la.patterns(model)[2, 1]),
    ]
    assert printed == ["L2H1", "L2H1.z5", "L1N17", "L2.mlp", "L2.attn", "L2H1.pattern"]
    assert la.heads(model)[2, 1].hook_name == "blocks.2.attn.hook_z"
    assert la.neurons(model)[1, 17].hook_name == "blocks.1.mlp.hook_post"


def test_slices_and_negative_indices(heads):
    assert [str(site) for site in heads[-1]] == ["L2H0", "L2H1", "L2H2", "L2H3"]
    assert [str(site) for site in heads[1:, 0]] == ["L1H0", "L2H0"]
    assert heads[-1, -1] == la.Site("head", 2, 3)
    assert heads[1:3, :2] == heads[1:][:, :2]


def test_a_part_keeps_the_models_addresses(heads):
    part = heads[1:]
    assert str(part[1, 2]) == "L1H2"
    with pytest.raises(UnknownSite, match="does not hold"):
        part[0, 0]


@given(
    st.lists(st.integers(0, N_LAYERS * N_HEADS - 1), unique=True),
    st.lists(st.integers(0, N_LAYERS * N_HEADS - 1), unique=True),
)
def test_set_algebra_is_that_of_python_sets(left, right):
    grid = np.indices((N_LAYERS, N_HEADS)).reshape(2, -1).T
    everything = la.SiteSet("head", grid, (N_LAYERS, N_HEADS))
    a, b = everything.take(left), everything.take(right)
    assert set(a | b) == set(a) | set(b)
    assert set(a - b) == set(a) - set(b)
    assert set(a & b) == set(a) & set(b)
    assert list(a | b)[: len(a)] == list(a)
    assert a.places(a & b).tolist() == [left.index(place) for place in left if place in right]
    assert (b | a).take((b | a).places(a)) == a


def test_sites_join_to_sets(heads):
    joined = heads[0, 1] | heads[2, 3] | heads[0, 1]
    assert [str(site) for site in joined] == ["L0H1", "L2H3"]
    assert heads[0, 1] in joined
    assert heads[1, 1] not in joined


def test_places_are_those_of_sites_in_the_set_and_of_no_others(heads):
    part = heads[2] | heads[0]
    assert part.places(heads[0, 1] | heads[2, 3]).tolist() == [5, 3]
    assert part.places(heads[2, 0]).tolist() == [0]
    assert part.places(heads.take([])).tolist() == []
    with pytest.raises(UnknownSite, match=r"set of 8 head sites does not hold SiteSet\(1 head sites: L1H2\)"):
        part.places(heads[0, 0] | heads[1, 2])


def test_kinds_do_not_mix(model, heads):
    with pytest.raises(ValueError, match=r"one kind.*nesting"):
        heads | la.neurons(model)


@pytest.mark.parametrize("fraction", [0, 0.3, 0.5, 1])
def test_sample_is_seeded_ordered_and_of_the_right_size(heads, fraction):
    sample = heads.sample(fraction, seed=1)
    assert len(sample) == int(fraction * len(heads))
    assert sample == heads.sample(fraction, seed=1)
    assert set(sample) <= set(heads)


def test_sample_refuses_percentages(heads):
    with pytest.raises(ValueError, match=r"0\.\.1"):
        heads.sample(50, seed=0)


def test_addresses_outside_the_model_are_named(heads):
    with pytest.raises(UnknownSite, match=r"head 9 does not exist: this model has 4, numbered 0\.\.3"):
        heads[0, 9]
    with pytest.raises(UnknownSite, match="addressed \\[layer, head\\]"):
        heads[0, 1, 2]


def test_a_site_needs_the_address_of_its_kind():
    with pytest.raises(UnknownSite, match="needs head"):
        la.Site("head", 1)
    with pytest.raises(UnknownSite, match="has no unit"):
        la.Site("mlp", 1, unit=3)


def test_stored_sets_are_checked():
    with pytest.raises(DamagedFile, match="outside its own shape"):
        la.SiteSet.from_stored("head", np.array([[5, 0]]), [2, 2])
    with pytest.raises(DamagedFile):
        la.SiteSet.from_stored("nonsense", np.array([[5, 0]]), [2, 2])
