"""Constants fitted to an edit, on tiny-vit and against the loss written out by hand."""

from dataclasses import replace

import pytest
import torch

import lens_ablation as la
from lens_ablation.attribution.edit_constants import _marked, _purpose
from lens_ablation.data.task import Task


@pytest.fixture(scope="module")
def setup() -> tuple[object, la.Edit, Task, Task]:
    model = la.load_model("tiny-vit")
    task = la.tasks.digits(model, n=160, split="train").with_metric(la.metrics.correct_margin)
    parts = [la.attention_neurons(model), la.neurons(model)]
    found = la.attribute(model, task, parts, la.Coar(n_masks=32, ablated_fraction=0.2), progress=False)
    is_four = task.answers == 4
    rows = {"target": is_four.nonzero()[:, 0], "reference": (~is_four).nonzero()[:, 0]}
    edit = la.edit(found, model, task, **rows, direction="lower", k=50, progress=False)
    everything = la.tasks.digits(model, n=900, split="train").with_metric(la.metrics.correct_margin)
    four = everything.answers == 4
    return model, edit, everything.select(four.nonzero()[:, 0]), everything.select((~four).nonzero()[:, 0])


def test_fitted_constants_forget_as_much_and_lose_fewer_others(setup):
    model, edit, target, reference = setup
    fitted = la.fit_edit_constants(edit, model, target, reference, steps=100, progress=False)
    assert fitted.names == [name for name in edit.components.names if name in set(edit.names)]
    held_out = la.tasks.digits(model, n=450).with_metric(la.metrics.correct_margin)
    is_four = held_out.answers == 4
    groups = [held_out.select(flags.nonzero()[:, 0]) for flags in (is_four, ~is_four)]
    four, others = (fitted.measure(model, group) for group in groups)
    by_zeros = [edit.measure(model, group) for group in groups]
    assert four.share_after <= min(0.1, by_zeros[0].share_after)
    assert others.share_after >= max(others.share_before - 0.02, by_zeros[1].share_after)


def test_what_is_reported_is_what_the_baked_model_does(setup):
    model, edit, target, reference = setup
    fitted = la.fit_edit_constants(edit, model, target, reference, k=20, steps=10, progress=False)
    plain = la.bake(model, fitted.ablations).model
    with torch.no_grad():
        right = plain(target.inputs).logits.argmax(dim=1) == target.answers
    assert fitted.effects["target"].share_after == pytest.approx(float(right.float().mean()), abs=1e-6)
    assert fitted.k == 20
    assert len(fitted.plot().data) == 2


def test_of_several_numbers_the_one_that_spares_most_is_taken(setup):
    model, edit, target, reference = setup
    target, reference = target.select(slice(40)), reference.select(slice(120))
    seen: list[tuple[int, int]] = []
    options = {"k": [30, 5, 12], "steps": 20}
    chosen = la.fit_edit_constants(
        edit, model, target, reference, enough=0.5, progress=lambda done, total: seen.append((done, total)), **options
    )
    alone = {
        k: la.fit_edit_constants(edit, model, target, reference, k=k, steps=20, progress=False) for k in (5, 12, 30)
    }
    assert chosen.scan["k"].tolist() == [0, 5, 12, 30]
    for k, one in alone.items():
        row = chosen.scan[chosen.scan["k"] == k].iloc[0]
        assert (row["target"], row["reference"]) == tuple(
            one.effects[name].share_after for name in ("target", "reference")
        )
    left = {k: one.effects["target"].share_after for k, one in alone.items()}
    enough = [k for k in alone if left[k] <= 0.5]
    assert 0 < len(enough) < 3
    best = max(enough, key=lambda k: (alone[k].effects["reference"].share_after, -k))
    assert (chosen.k, chosen.settings["k_chosen_on"]) == (best, "attributed")
    assert seen[-1] == (60, 60)
    # none gets there: the one that moves most
    most = min(alone, key=lambda k: (left[k], -alone[k].effects["reference"].share_after))
    assert la.fit_edit_constants(edit, model, target, reference, enough=0.0, progress=False, **options).k == most


@pytest.mark.parametrize("lowered", [True, False])
def test_the_loss_is_kl_of_references_and_the_answer_or_all_else_of_targets(lowered: bool):
    generator = torch.Generator().manual_seed(0)
    scores, clean = (torch.randn(5, 1, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    inputs = torch.zeros(5, 1, 2, 2)
    whole = Task(inputs=inputs, answers=torch.tensor([3, 0, 6, 0, 2]))
    marked = _marked(whole.select(slice(2)), whole.select(slice(2, None)))
    batch = replace(marked, clean_logits=clean)
    found = _purpose(lowered, 1.5).fn(scores, batch)[:, 0]
    p, q = scores[:, 0].softmax(dim=1), clean[:, 0].softmax(dim=1)
    own = p[torch.arange(5), whole.answers]
    expected = (q * (q.log() - p.log())).sum(dim=1)
    expected[:2] = -1.5 * torch.log(1 - own[:2] if lowered else own[:2])
    torch.testing.assert_close(found, expected)


def test_bad_requests_say_what_to_do(setup):
    model, edit, target, reference = setup
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.768, got 0"):
        la.fit_edit_constants(edit, model, target, reference, k=0, progress=False)
    with pytest.raises(ValueError, match="empty sequence"):
        la.fit_edit_constants(edit, model, target, reference, k=[], progress=False)
    with pytest.raises(ValueError, match="enough is a share"):
        la.fit_edit_constants(edit, model, target, reference, enough=5, progress=False)
    few = [task.select(slice(10)) for task in (target, reference)]
    with pytest.raises(ValueError, match="50 examples or more"):
        la.fit_edit_constants(edit, model, *few, progress=False)
