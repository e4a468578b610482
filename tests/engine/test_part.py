"""What a pass leaves behind, and gradients through it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lens_ablation as la
from lens_ablation.engine.part import Part
from lens_ablation.engine.path import plain
from lens_ablation.engine.proof import path_of
from lens_ablation.engine.removals import Packed
from lens_ablation.engine.variants import run_variants
from tests.engine.one_at_a_time import a_task, alone, random_flags
from tests.families import FAMILIES, Family, build

pytestmark = pytest.mark.model


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return build(request.param, dtype=torch.float64)


class Spoiled(RuntimeError):
    pass


class Breaks(la.Method):
    """Raises in the middle of a pass."""

    @property
    def settings(self) -> Mapping[str, object]:
        return {}

    def prepare(self, model: Any, points: Any, examples: Any = None) -> Any:
        def replacement(request: Any) -> Tensor:
            raise Spoiled(request.point.name)

        return replacement


def breaking_metric(logits: Tensor, batch: la.Task) -> Tensor:
    if len(logits) > 3:
        raise Spoiled("metric")
    return logits.flatten(1)[:, 0]


def hooks_and_forwards(family: Family) -> list[object]:
    """Every hook of every module, and every method that stands in an instance instead of its class."""
    seen: list[object] = []
    roots = [family.model, getattr(family.model, "original_model", family.model)]
    for module in {id(m): m for root in roots for m in root.modules()}.values():
        seen += [list(module._forward_hooks), list(module._forward_pre_hooks), list(module._backward_hooks)]
        seen += ["forward" in vars(module)]
    for point in family.model.hook_dict.values():
        seen += [len(point.fwd_hooks), len(point.bwd_hooks)]
    return seen


@pytest.mark.parametrize("spoiled", ["no", "method", "metric"])
@pytest.mark.parametrize("clean_bytes", [0, 2**30])
def test_nothing_outlives_a_run(family: Family, clean_bytes: int, spoiled: str):
    task, heads = a_task(family), la.heads(family.model)
    before = hooks_and_forwards(family)
    states = {name: value.clone() for name, value in family.model.state_dict().items()}
    task = task.with_metric(breaking_metric) if spoiled == "metric" else task
    method = Breaks() if spoiled == "method" else la.Zero()
    engine = la.Engine(clean_bytes=clean_bytes)

    def run() -> None:
        run_variants(family.model, task, alone(heads, method), engine=engine)

    if spoiled == "no":
        run()
    else:
        with pytest.raises(Spoiled):
            run()
    assert path_of(family.model).prefix
    assert hooks_and_forwards(family) == before
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    left = family.model.state_dict()
    assert all(torch.equal(left[name], value) for name, value in states.items())


@dataclass(frozen=True, eq=False)
class Leaf(la.Method):
    """A tensor that is learned, at one hook."""

    values: Tensor

    @property
    def settings(self) -> Mapping[str, object]:
        return {}

    def prepare(self, model: Any, points: Sequence[Any], examples: Any = None) -> Any:
        return lambda request: self.values


@pytest.mark.parametrize("shortcuts", [True, False], ids=["shortcuts", "plain"])
def test_gradients_of_a_replacement_agree_with_finite_differences(family: Family, shortcuts: bool):
    task, sites = a_task(family), la.heads(family.model)[1]
    assert isinstance(sites, la.SiteSet)
    values = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    path = path_of(family.model) if shortcuts else plain("asked for")
    assert path.prefix == shortcuts
    part = Part(
        *(family.model, task, [(sites, Leaf(values))], "all", torch.arange(3), path),
        clean_bytes=2**28,
        gradients=True,
    )
    flags = [np.array([[True, False, True, False], [False, False, True, True]])]
    (found,) = torch.autograd.grad(part.scores(flags).sum(), values)
    # some families compute norms and attention in float32 whatever their dtype
    step, rel, small = (2e-3, 1e-2, 5e-4) if family.name in ("llama", "vit", "opt") else (1e-4, 1e-6, 1e-8)
    for place in [(0, 0), (0, 7), (2, 3), (3, 5), (1, 1)]:
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                values[place] += sign * step
                ends.append(float(part.scores(flags).sum().detach()))
                values[place] -= sign * step
        expected = (ends[0] - ends[1]) / (2 * step)
        assert float(found[place]) == pytest.approx(expected, rel=rel, abs=small), place
        assert (abs(float(found[place])) > 1e-6) == (place != (1, 1))  # no variant removes head 1


def test_gradients_pass_through_other_methods_that_act_beside(family: Family):
    task, heads, neurons = a_task(family), la.heads(family.model), la.neurons(family.model)
    values = torch.zeros(4, 8, dtype=torch.float64, requires_grad=True)
    sets = [(heads, Leaf(values)), (neurons, la.Resample(task, match="batch"))]
    part = Part(
        *(family.model, task, sets, "all", torch.arange(3), path_of(family.model)), clean_bytes=0, gradients=True
    )
    removed = np.arange(5)
    flags = [random_flags(heads, 5, seed=1).flags(removed), random_flags(neurons, 5).flags(removed)]
    (found,) = torch.autograd.grad(part.scores(flags).sum(), values)
    assert bool(torch.isfinite(found).all())
    assert float(found.abs().max()) > 0


def test_values_without_gradients_hold_no_graph(family: Family):
    task, heads = a_task(family), la.heads(family.model)
    part = Part(
        *(family.model, task, [(heads, la.Zero())], "all", torch.arange(3), path_of(family.model)), clean_bytes=2**28
    )
    assert not part.scores([Packed.of(np.eye(12, dtype=bool)).flags(np.arange(12))]).requires_grad
    assert not part.baseline.requires_grad
