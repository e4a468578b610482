"""Random inputs for resampling."""

import pytest
import torch

import lens_ablation as la
from tests.families import build

pytestmark = pytest.mark.model


@pytest.mark.parametrize("kind", ["characters", "tokens", "sampled"])
def test_texts_have_the_asked_length_and_follow_the_seed(kind):
    model = la.load_model("tiny-lm")
    first = la.random_inputs(model, kind, n_pos=17, seed=1)
    assert first.shape == (1, 17)
    assert first[0, 0] == model.tokenizer.bos_token_id
    assert torch.equal(first, la.random_inputs(model, kind, n_pos=17, seed=1))
    if kind != "characters":  # the embedded tokenizer knows no such words: all are <unk>
        assert not torch.equal(first, la.random_inputs(model, kind, n_pos=17, seed=2))


def test_pixels_are_uniform_whole_numbers_brought_to_the_models_range():
    pixels = la.random_inputs(build("vit").model, "pixels", seed=3)
    levels = (pixels + 1) * 127.5
    torch.testing.assert_close(levels, levels.round())
    assert 0 <= float(levels.min()) <= float(levels.max()) <= 254


def test_kinds_for_other_models_are_refused():
    with pytest.raises(ValueError, match="must be 'pixels'"):
        la.random_inputs(build("vit").model, "tokens")
    with pytest.raises(ValueError, match="n_pos must be 2"):
        la.random_inputs(build("gpt2").model, "sampled", n_pos=1)
