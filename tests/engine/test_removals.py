"""What variants remove, and from which layer on."""

import numpy as np
import pytest

import lens_ablation as la
from lens_ablation.engine import removals
from lens_ablation.engine.removals import Ablation, OneEach, Packed

SITES = la.SiteSet("neuron", np.indices((3, 5)).reshape(2, -1).T, (3, 5))
UNORDERED = SITES.take(np.random.default_rng(1).permutation(15))


def random_flags(n_variants: int, share: float = 0.2) -> np.ndarray:
    return np.random.default_rng(0).random((n_variants, 15)) < share


def test_one_each_removes_the_site_of_its_own_number():
    each = OneEach(15)
    assert each.shape == (15, 15)
    assert np.array_equal(each.flags(np.arange(15)), np.eye(15, dtype=bool))
    assert np.array_equal(each.flags(np.array([7, 2])), np.eye(15, dtype=bool)[[7, 2]])


@pytest.mark.parametrize("n_sites", [1, 7, 8, 9, 15])
def test_packed_flags_come_back_as_they_were(n_sites: int):
    flags = np.random.default_rng(n_sites).random((6, n_sites)) < 0.5
    packed = Packed.of(flags)
    assert packed.shape == (6, n_sites)
    assert packed.bits.nbytes == 6 * -(-n_sites // 8)
    assert np.array_equal(packed.flags(np.arange(6)), flags)
    assert np.array_equal(packed.flags(np.array([4, 4, 0])), flags[[4, 4, 0]])


@pytest.mark.parametrize("sites", [SITES, UNORDERED], ids=["in order", "in no order"])
@pytest.mark.parametrize("at_once", [1, 40, 2**26])
def test_first_layer_is_the_lowest_that_is_touched(sites: la.SiteSet, at_once: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(removals, "_AT_ONCE", at_once)
    flags = random_flags(20)
    flags[3] = False
    layers = sites.addresses[:, 0]
    expected = [int(layers[row].min()) if row.any() else 3 for row in flags]
    assert Packed.of(flags).first_layers(sites, 3).tolist() == expected
    assert OneEach(15).first_layers(sites, 3).tolist() == layers.tolist()
    assert Packed.of(np.eye(15, dtype=bool)).first_layers(sites, 3).tolist() == layers.tolist()


def test_digests_tell_other_flags_apart():
    flags = random_flags(6)
    changed = flags.copy()
    changed[5, 14] ^= True
    of_changed = [Packed.of(changed), Packed.of(flags[:5]), Packed.of(flags[:, :14]), OneEach(15), OneEach(14)]
    digests = [Packed.of(flags).digest, *(part.digest for part in of_changed)]
    assert len(set(digests)) == len(digests)
    assert Packed.of(flags.copy()).digest == digests[0]


def test_flags_must_be_as_many_as_the_sites():
    with pytest.raises(ValueError, match="14 columns for 15 sites"):
        Ablation(SITES, OneEach(14), la.Zero())
