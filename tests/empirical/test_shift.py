"""Shifted neurons against forward hooks on the plain Hugging Face model, on every family."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lens_ablation as la
from lens_ablation.empirical import shift as shift_module
from lens_ablation.empirical.shift import Shifted
from lens_ablation.empirical.shift_effect import ShiftPlan
from lens_ablation.errors import BadActivation, UnknownSite
from tests.families import FAMILIES, TOKEN_FAMILIES, Family, build

LAYERS = (0, 2)


def some_neurons(family: Family) -> la.SiteSet:
    """Five neurons of two layers, and an amount to each."""
    return la.neurons(family.model).take([1, 7, 20, 2 * 48 + 3, 2 * 48 + 40])


AMOUNTS = torch.tensor([0.5, -1.0, 2.0, 0.3, -0.7], dtype=torch.float64)


def shifted_by_hand(
    family: Family,
    inputs: Tensor,
    sites: la.SiteSet,
    amounts: Tensor,
    convention: str,
    where: Tensor | None,
    **options: Any,
) -> Tensor:
    """Logits of the plain model whose MLPs' second projections are given shifted inputs at some tokens."""
    handles = []
    for layer in sites.layers:
        here = sites.addresses[:, 0] == layer
        units, own = torch.from_numpy(sites.addresses[here, 1]), amounts[torch.from_numpy(here)]

        def write(module: torch.nn.Module, given: tuple, units: Tensor = units, own: Tensor = own) -> tuple:
            flat = given[0].clone()
            # OPT folds rows and tokens into one axis
            read = flat.reshape(len(inputs), -1, flat.shape[-1])
            change = own * read[..., units].sign() if convention == "signed" else own.expand_as(read[..., units])
            if where is not None:
                change = change * where[..., None]
            read[..., units] = read[..., units] + change
            return (read.reshape(given[0].shape), *given[1:])

        handles.append(family.down_projection(family.plain, layer).register_forward_pre_hook(write))
    try:
        return family.plain_logits(inputs, **options)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.model
@pytest.mark.parametrize("convention", ["additive", "signed"])
@pytest.mark.parametrize("name", FAMILIES)
def test_shifts_are_those_of_hooks_on_the_plain_model(name: str, convention: Any):
    family = build(name, dtype=torch.float64)
    inputs, sites = family.inputs(), some_neurons(family)
    before = family.model(inputs, return_type="logits").detach()
    expected = shifted_by_hand(family, inputs, sites, AMOUNTS, convention, None)
    with torch.no_grad(), la.shift(family.model, sites, AMOUNTS, shift=convention):
        found = family.model(inputs, return_type="logits")
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    assert (found - before).abs().max() > 1e-4
    after = family.model(inputs, return_type="logits").detach()
    assert torch.equal(before, after)


@pytest.mark.model
@pytest.mark.parametrize("convention", ["additive", "signed"])
@pytest.mark.parametrize("name", FAMILIES)
def test_only_the_answer_position_is_shifted(name: str, convention: Any):
    family = build(name, dtype=torch.float64)
    inputs, sites = family.inputs(), some_neurons(family)
    n_pos = family.inputs().shape[1] if inputs.ndim == 2 else 5
    mask = None
    if inputs.ndim == 2 and name in TOKEN_FAMILIES:
        mask = torch.arange(n_pos) < torch.tensor([[6], [4], [5]])
    task = la.Task(inputs=inputs, answers=torch.tensor([1, 2, 3]), attention_mask=mask)
    places = torch.zeros(3, dtype=torch.int64) if task.answer_positions is None else task.answer_positions[:, 0]
    where = torch.arange(n_pos) == places[:, None]
    options = {} if mask is None else {"attention_mask": mask.long()}
    expected = shifted_by_hand(family, inputs, sites, AMOUNTS, convention, where, **options)
    with torch.no_grad(), la.shift(family.model, sites, AMOUNTS, shift=convention, positions="answer", task=task):
        found = family.model(inputs, return_type="logits", **options)
    read = (torch.arange(3), places) if inputs.ndim == 2 else slice(None)
    torch.testing.assert_close(found[read], expected[read], atol=1e-10, rtol=1e-10)
    if inputs.ndim == 2 and name != "bert":
        plain = family.plain_logits(inputs, **options)
        torch.testing.assert_close(found[0, :5], plain[0, :5], atol=1e-10, rtol=1e-10)


@pytest.mark.model
def test_the_up_projection_of_a_gated_mlp_is_shifted_where_it_is():
    family = build("llama", dtype=torch.float64)
    inputs = family.inputs()
    sites = la.neurons(family.model, at="pre_linear").take([3, 9])
    own = torch.tensor([0.5, -1.0], dtype=torch.float64)

    def write(module: torch.nn.Module, given: tuple, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[..., [3, 9]] += own
        return changed

    handle = family.block(family.plain, 0).get_submodule("mlp.up_proj").register_forward_hook(write)
    expected = family.plain_logits(inputs)
    handle.remove()
    with torch.no_grad(), la.shift(family.model, sites, own):
        found = family.model(inputs, return_type="logits")
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    with torch.no_grad(), la.shift(family.model, la.neurons(family.model).take([3, 9]), own):
        other = family.model(inputs, return_type="logits")
    assert (other - expected).abs().max() > 1e-4


def test_conventions_agree_on_positive_activations_and_signed_leaves_zeros_alone():
    family = build("opt", dtype=torch.float64)  # its ReLU gives exact zeros
    inputs, sites = family.inputs(), la.neurons(family.model)[1]
    kept: list[Tensor] = []
    for convention in ("additive", "signed"):
        with torch.no_grad(), la.shift(family.model, sites, 0.25, shift=convention):
            cached = family.model.run_with_cache(inputs)[1]
        kept.append(cached["blocks.1.mlp.hook_post"])
    with torch.no_grad():
        clean = family.model.run_with_cache(inputs)[1]["blocks.1.mlp.hook_post"]
    is_zero = clean == 0
    assert is_zero.any()
    assert (clean > 0).any()
    torch.testing.assert_close(kept[0], clean + 0.25)
    torch.testing.assert_close(kept[1], torch.where(is_zero, clean, clean + 0.25))


def test_shifts_nest_and_leave_nothing_behind_after_an_error():
    family = build("gpt2", dtype=torch.float64)
    inputs, sites = family.inputs(), some_neurons(family)
    before = family.plain_logits(inputs)
    with torch.no_grad(), la.shift(family.model, sites, 0.5), la.shift(family.model, sites, 0.25):
        twice = family.model(inputs, return_type="logits")
    expected = shifted_by_hand(family, inputs, sites, torch.full((5,), 0.75, dtype=torch.float64), "additive", None)
    torch.testing.assert_close(twice, expected, atol=1e-10, rtol=1e-10)

    def fail() -> None:
        with la.shift(family.model, sites, 0.5):
            family.model(inputs, return_type="logits")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    torch.testing.assert_close(family.model(inputs, return_type="logits").detach(), before, atol=1e-10, rtol=1e-10)


@pytest.mark.model
@pytest.mark.parametrize("name", FAMILIES)
def test_effects_are_those_of_shifting_by_hand(name: str):
    """The engine runs all amounts and random sets; each equals its own block of ``shift``."""
    family = build(name, dtype=torch.float64)
    inputs = family.inputs(6)
    wrong = torch.tensor([4, 3, 2, 1, 0, 1])
    task = la.Task(
        inputs=inputs, answers=torch.tensor([0, 1, 3, 2, 1, 4]), wrong_answers=wrong, metric=la.metrics.logit_difference
    )
    sites, signs = some_neurons(family), torch.tensor([1, -1, 1, 1, -1])
    found = la.shift_effect(family.model, task, sites, signs, amounts=(-1.0, 0.5), n_random=3, progress=False)
    with torch.no_grad():
        clean = task.score(family.model(inputs, return_type="logits"))
        torch.testing.assert_close(found.baseline.double(), clean, atol=1e-5, rtol=1e-5)
        for i, amount in enumerate((-1.0, 0.5)):
            with la.shift(family.model, sites, amount * signs.double(), shift="signed", positions="answer", task=task):
                expected = task.score(family.model(inputs, return_type="logits"))
            torch.testing.assert_close(found.values[i].double(), expected, atol=1e-5, rtol=1e-5)
    plan = ShiftPlan.of(sites, signs, la.neurons(family.model), None, 3, 0)
    for i, flags in enumerate(plan.flags[1:]):
        own = np.flatnonzero(flags)
        amounts = 0.5 * plan.directions[torch.from_numpy(own)]
        with (
            torch.no_grad(),
            la.shift(family.model, plan.sites.take(own), amounts, shift="signed", positions="answer", task=task),
        ):
            expected = task.score(family.model(inputs, return_type="logits"))
        torch.testing.assert_close(found.random_values[i, 1].double(), expected, atol=1e-5, rtol=1e-5)


def test_random_neurons_are_others_of_the_same_layers():
    family = build("gpt2")
    chosen = some_neurons(family)
    signs = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])
    own = torch.ones(3 * 48)
    own[::2], own[5] = -1, 0
    for pool_signs in (None, own):
        plan = ShiftPlan.of(chosen, signs, la.neurons(family.model), pool_signs, 40, 0)
        first = plan.sites.take(np.flatnonzero(plan.flags[0]))
        assert first == chosen
        assert torch.equal(plan.directions[:5], signs.double())
        counts = np.zeros(3 * 48, dtype=int)
        for row in plan.flags[1:]:
            sites = plan.sites.take(np.flatnonzero(row))
            assert sorted(sites.addresses[:, 0]) == sorted(chosen.addresses[:, 0])
            assert not set(sites) & set(chosen)
            counts[sites.addresses @ [48, 1]] += 1
        assert counts.max() < 20  # the sets differ
        if pool_signs is not None:
            flat = torch.from_numpy(plan.sites.addresses[5:] @ [48, 1])
            assert torch.equal(plan.directions[5:], own[flat].double())
            assert counts[5] == 0  # without a direction


def test_effects_are_summed_up_with_intervals_and_shares_of_random_sets():
    values = torch.tensor([[1.0, 2.0, 3.0, 2.0]])
    random_values = torch.tensor([[[0.1, 0.0, 0.1, 0.0]], [[-4.0, -2.0, -4.0, -2.0]], [[0.2, 0.2, 0.2, 0.2]]])
    effect = la.ShiftEffect(
        values=values,
        random_values=random_values,
        baseline=torch.zeros(4),
        amounts=(1.0,),
        sites=la.neurons(build("gpt2").model)[0].take([0, 1]),
        settings={"model": "none", "task": "none", "metric": "loss", "unit": "nats", "shift": "signed"},
    )
    assert effect.mean.tolist() == [2.0]
    assert effect.beyond_random.tolist() == [0.5]  # one of three random sets, and the chosen one itself, of four
    row = effect.to_dataframe().iloc[0]
    assert row["effect_low"] < 2 < row["effect_high"]
    assert row["random_low"] == pytest.approx(-3.0)
    figure = effect.plot()
    lines = {trace.name: trace for trace in figure.data if trace.mode == "lines+markers"}
    assert list(lines["chosen neurons"].x) == [0.0, 1.0]
    assert list(lines["chosen neurons"].y) == [0.0, 2.0]


def test_bad_requests_say_what_to_do(unchecked: Callable[[ModuleType], Any]):
    family = build("gpt2")
    model, sites = family.model, some_neurons(family)
    plain = unchecked(shift_module)
    task = la.Task(inputs=family.inputs(), answers=torch.tensor([1, 2, 3]))
    wrong: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (ValueError, "head sites are no neurons", lambda: plain.Shifted.of(la.heads(model), 1.0)),
        (ValueError, "one to each of 5 sites", lambda: plain.Shifted.of(sites, torch.ones(4))),
        (ValueError, "'additive' or 'signed'", lambda: plain.Shifted.of(sites, 1.0, "relative")),
        (BadActivation, "not finite", lambda: plain.Shifted.of(sites, float("nan"))),
        (ValueError, "holds no amounts", lambda: Shifted.of(sites[0], 1.0).prepare(model, sites.hook_points)),
        (ValueError, "polarities are 1, -1 or 0", lambda: la.shift_effect(model, task, sites, [1, 1])),
        (ValueError, "n_random of 1", lambda: la.shift_effect(model, task, sites, n_random=0)),
        (ValueError, "finite amounts", lambda: la.shift_effect(model, task, sites, amounts=())),
        (
            ValueError,
            "48 chosen neurons and 0 others",
            lambda: la.shift_effect(model, task, la.neurons(model)[0], n_random=1, progress=False),
        ),
    ]
    for kind, message, call in wrong:
        with pytest.raises(kind, match=message):
            call()
    with pytest.raises(UnknownSite), la.shift(model, [la.Site("neuron", 9, unit=1)], 1.0):
        pass
    with pytest.raises(ValueError, match="needs to know the task"), la.shift(model, sites, 1.0, positions="answer"):
        pass
