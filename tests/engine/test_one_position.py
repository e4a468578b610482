"""Variants as tokens behind the row against variants as rows, and where they may not stand so."""

import pytest
import torch

import lens_ablation as la
from lens_ablation.engine import one_position
from lens_ablation.engine.one_position import Single, can_stand_as_tokens
from lens_ablation.engine.part import Part
from lens_ablation.engine.proof import path_of
from lens_ablation.methods.zero import Zero
from lens_ablation.models.protocol import LensModel
from lens_ablation.sites import HookPoint
from tests.families import TOKEN_FAMILIES, build

CAUSAL_BRIDGES = [name for name in TOKEN_FAMILIES if name not in ("bert", "hooked")]


def part_of(model: LensModel, inputs: torch.Tensor, padding: str = "none") -> Part:
    places, lengths = torch.arange(6), torch.tensor([[4], [6], [5]])
    masks = {"none": None, "right": places < lengths, "left": places >= 6 - lengths}
    task = la.Task(
        inputs=inputs,
        answers=torch.zeros(3, dtype=torch.int64),
        attention_mask=masks[padding],
        positions=torch.tensor([3, 4, 2]) if padding == "none" else None,
        metric=la.metrics.probability,
    )
    sets = [(la.neurons(model), Zero())]
    return Part(model, task, sets, "answer", torch.arange(3), path_of(model), clean_bytes=2**28)


@pytest.mark.model
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("name", CAUSAL_BRIDGES)
def test_variants_as_tokens_give_the_logits_of_variants_as_rows(name: str, padding: str):
    # padding on the left gives NaN inside eager attention in float64
    dtype = torch.float32 if padding == "left" else torch.float64
    family = build(name, dtype=dtype)
    units, amounts = torch.tensor([3, 5, 3, 0]), torch.tensor([0.5, -1.0, 2.0, 0.0])
    with torch.inference_mode():
        part = part_of(family.model, family.inputs(), padding)
        assert can_stand_as_tokens(family.model, part)
        for layer in range(part.sizes.n_layers):
            point = HookPoint("post", layer)
            found, expected = (
                torch.cat(list(Single(part, as_tokens=way).logits(point, units, amounts, signed=False)), dim=1)
                for way in (True, False)
            )
            tolerance = 1e-12 if dtype == torch.float64 else 2e-6
            # the attention of some families rounds to float32
            torch.testing.assert_close(found, expected, atol=max(tolerance, 1e-7 if name != "gpt2" else 0), rtol=0)
            assert float((found[:, 2] - found[:, 3]).abs().max()) > 1e-4


@pytest.mark.model
@pytest.mark.parametrize("name", [name for name in TOKEN_FAMILIES if name not in CAUSAL_BRIDGES])
def test_where_later_tokens_are_seen_or_masks_are_made_inside_variants_stand_as_rows(name: str):
    family = build(name)
    with torch.inference_mode():
        assert not can_stand_as_tokens(family.model, part_of(family.model, family.inputs()))


def test_a_way_that_gives_other_logits_is_not_taken(monkeypatch: pytest.MonkeyPatch):
    """The proof can fail: without the mask of the new tokens they see each other."""
    family = build("gpt2", seed=3)
    given = Single._mask_with

    def leaky(self: Single, mask: torch.Tensor, n: int) -> torch.Tensor:
        return torch.zeros_like(given(self, mask, n))

    monkeypatch.setattr(one_position.Single, "_mask_with", leaky)
    with torch.inference_mode():
        assert not can_stand_as_tokens(family.model, part_of(family.model, family.inputs()))
