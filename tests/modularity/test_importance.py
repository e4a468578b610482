"""Scores of importance against NumPy on the activations of the plain Hugging Face model."""

from typing import Any

import numpy as np
import pytest
import torch

import lens_ablation as la
from lens_ablation.errors import StatisticsMismatch, UnknownName
from lens_ablation.modularity import use
from tests.families import FAMILIES, Family, build


def seen_by_hand(family: Family, inputs: torch.Tensor, mask: torch.Tensor | None, attention: bool) -> np.ndarray:
    """What the output projections of the plain model read, ``[token, layer * unit]``."""
    found: dict[int, torch.Tensor] = {}
    handles = []
    for layer in range(3):
        of = family.output_projection if attention else family.down_projection

        def keep(module: torch.nn.Module, given: tuple, layer: int = layer) -> None:
            found[layer] = given[0].reshape(len(inputs), -1, given[0].shape[-1])

        handles.append(of(family.plain, layer).register_forward_pre_hook(keep))
    family.plain_logits(inputs, **({} if mask is None else {"attention_mask": mask.long()}))
    for handle in handles:
        handle.remove()
    together = torch.stack([found[layer] for layer in range(3)], dim=2).flatten(2)
    return (together.flatten(0, 1) if mask is None else together[mask]).numpy()


def scores_by_hand(z: np.ndarray) -> dict[str, np.ndarray]:
    variance = z.var(axis=0, ddof=1)
    return {
        "abs": np.abs(z).mean(axis=0),
        "freq": (z > 0).mean(axis=0),
        "rms": np.sqrt((z**2).mean(axis=0)),
        "std": z.std(axis=0),
        "sqrt": np.sqrt(np.abs(z)).mean(axis=0),
        "std_taker": variance,
        "rms_taker": np.sqrt(variance**2 + z.mean(axis=0) ** 2),
    }


@pytest.mark.model
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_those_of_numpy_on_the_plain_model(name: str, attention: bool):
    family = build(name, dtype=torch.float64)
    sites = la.attention_neurons(family.model) if attention else la.neurons(family.model)
    inputs = [family.inputs(n=5, seed=seed) for seed in (0, 1)]
    used = [la.neuron_use(family.model, part, sites, batch_size=2, progress=False) for part in inputs]
    z = [seen_by_hand(family, part, None, attention) for part in inputs]
    by_hand = [scores_by_hand(part) for part in z]
    assert used[0].count == len(z[0])
    eps = 1e-4 if attention else 1e-3
    for kind in by_hand[0]:
        alone = la.importance(used[0], kind)
        np.testing.assert_allclose(alone.values, by_hand[0][kind], rtol=1e-9, atol=1e-12)
        ratio = la.importance(used[0], kind, retain=used[1])
        np.testing.assert_allclose(ratio.values, by_hand[0][kind] / (by_hand[1][kind] + eps), rtol=1e-9, atol=1e-12)
        assert ratio.dominated_share == (by_hand[1][kind] < eps).mean()
    moved = la.importance(used[0], "mean_difference", retain=used[1])
    np.testing.assert_allclose(moved.values, np.abs(z[0].mean(0) - z[1].mean(0)), atol=1e-10)


@pytest.mark.model
@pytest.mark.parametrize("positions", ["answer", "all_but_first"])
def test_of_images_the_class_token_is_the_answer_and_the_first(positions: Any):
    family = build("vit", dtype=torch.float64)
    inputs = family.inputs(n=4)
    task = la.Task(inputs=inputs, answers=torch.zeros(4, dtype=torch.int64))
    z = seen_by_hand(family, inputs, None, False).reshape(4, -1, 3 * 48)
    z = z[:, 0] if positions == "answer" else z[:, 1:].reshape(-1, 3 * 48)
    found = la.neuron_use(family.model, task, positions=positions, progress=False)
    assert found.count == len(z)
    np.testing.assert_allclose(found.mean_abs, np.abs(z).mean(axis=0), atol=1e-12)


def test_positions_that_do_not_exist_are_refused(unchecked: Any):
    family = build("gpt2")
    with pytest.raises(ValueError, match="positions must be all, all_but_first, answer; got 'last'"):
        unchecked(use).neuron_use(family.model, family.inputs(), positions="last", progress=False)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_masked_tokens_never_count(name: str):
    family = build(name, dtype=torch.float64)
    inputs = family.inputs(n=4)
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[1, 4:], mask[2, 2:] = False, False
    task = la.Task(inputs=inputs, answers=inputs[:, 0], attention_mask=mask)
    used = la.neuron_use(family.model, task, batch_size=3, progress=False)
    z = seen_by_hand(family, inputs, mask, False)
    assert used.count == int(mask.sum())
    np.testing.assert_allclose(la.importance(used).values, np.abs(z).mean(axis=0), rtol=1e-9)
    later = la.neuron_use(family.model, task, positions="all_but_first", progress=False)
    first = (mask.long().cumsum(1) == 1) & mask
    np.testing.assert_allclose(
        la.importance(later).values, np.abs(z[~first[mask].numpy()]).mean(axis=0), rtol=1e-9, atol=1e-12
    )
    answers = la.neuron_use(family.model, task, positions="answer", progress=False)
    assert answers.count == 4


@pytest.mark.model
@pytest.mark.parametrize("kind", ["rms", "std", "std_taker", "rms_taker"])
def test_collected_statistics_give_the_same_scores(kind: Any):
    family = build("gpt2", dtype=torch.float64)
    data = family.inputs(n=30)
    for sites in (la.neurons(family.model), la.attention_neurons(family.model)):
        stats = la.collect_statistics(family.model, data, sites, histograms=False, progress=False)
        used = la.neuron_use(family.model, data, sites, progress=False)
        found = la.importance(stats, kind)
        assert found.sites == used.sites
        torch.testing.assert_close(found.values, la.importance(used, kind).values, rtol=1e-9, atol=1e-12)
        with pytest.raises(ValueError, match="neuron_use"):
            la.importance(stats, "abs")


def test_the_top_is_exact_reproducible_and_without_dead_neurons():
    family = build("opt")  # ReLU: many neurons are 0 on a few tokens
    used = la.neuron_use(family.model, family.inputs(n=1, n_pos=2), progress=False)
    assert 0 < int(used.dead.sum()) < len(used.sites)
    found = la.importance(used, "random")
    top = found.top(0.25)
    assert len(top) == int(0.25 * len(used.sites))
    assert top == la.importance(used, "random").top(0.25)
    alive = int((~used.dead).sum()) / len(used.sites)
    assert not (found.top(alive) & used.sites.take(np.flatnonzero(used.dead))).addresses.size
    rest = found.top(0.25, without=top)
    assert len(rest) == len(top)
    assert len(rest & top) == 0
    with pytest.raises(ValueError, match="left"):
        found.top(0.8, without=top)
    with pytest.raises(ValueError, match="one neuron"):
        found.top(1e-6)


def test_use_can_be_measured_while_neurons_are_ablated():
    family = build("gpt2", dtype=torch.float64)
    cut = la.neurons(family.model).take([3, 50])
    inputs = family.inputs()
    used = la.neuron_use(family.model, inputs, without=(cut, la.Zero()), progress=False)
    plain = family.surgery()
    z = {}
    with torch.no_grad():
        family.weight_rows(family.down_projection(plain, 0))[3] = 0
        family.weight_rows(family.down_projection(plain, 1))[2] = 0
    handle = family.down_projection(plain, 2).register_forward_pre_hook(lambda m, given: z.update(last=given[0]))
    family.plain_logits(inputs, plain)
    handle.remove()
    np.testing.assert_allclose(used.mean[96:], z["last"].flatten(0, 1).mean(0), atol=1e-12)
    assert used.dead.nonzero()[:, 0].tolist() == [3, 50]


def test_what_does_not_fit_is_refused():
    one, other = build("gpt2"), build("gpt2", seed=1)
    inputs = one.inputs()
    a, b = (la.neuron_use(family.model, inputs, progress=False) for family in (one, other))
    with pytest.raises(StatisticsMismatch, match="not measured alike"):
        la.importance(a, retain=b)
    z = la.neuron_use(one.model, inputs, la.attention_neurons(one.model), progress=False)
    with pytest.raises(StatisticsMismatch, match="other neurons"):
        la.importance(a, retain=z)
    with pytest.raises(ValueError, match="retain"):
        la.importance(a, "mean_difference")
    with pytest.raises(ValueError, match="epsilon"):
        la.importance(a, retain=a, epsilon=0.0)
    with pytest.raises(ValueError, match="no neurons"):
        la.neuron_use(one.model, inputs, la.heads(one.model), progress=False)


def test_an_unknown_kind_names_the_nearest(unchecked: Any):
    from lens_ablation.modularity import importance

    model = build("gpt2")
    used = la.neuron_use(model.model, model.inputs(), progress=False)
    with pytest.raises(UnknownName, match="freq"):
        unchecked(importance).importance(used, "frequency")
