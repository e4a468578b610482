"""The engine's numbers against one plain forward pass to a variant."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import lens_ablation as la
from lens_ablation.engine import part as part_module
from lens_ablation.engine.path import plain
from lens_ablation.engine.proof import path_of
from lens_ablation.engine.removals import Ablation, OneEach, Packed
from lens_ablation.engine.variants import ROUNDING_SAMPLE, run_variants
from lens_ablation.studies.masks import nested_removals
from tests.engine.one_at_a_time import (
    METHODS,
    SELECT,
    TOLERANCE,
    a_task,
    alone,
    apart,
    by_the_engine,
    each_alone,
    effect,
    hooks_together,
    kinds_of,
    logits_of,
    random_flags,
    some,
    statistics,
    zeroed_by_hand,
)
from tests.families import FAMILIES, TOKEN_FAMILIES, Family, build

pytestmark = pytest.mark.model
DOUBLE, SINGLE = torch.float64, torch.float32
ROUNDED_ALIKE = ("constant", "mean", "peak", "noise around the mean", "counterfactual")
"""Methods that go the way of another one, and are left out in float32."""
IN_FLOAT32 = ("head", "neuron", "pattern")
KINDS = [(name, kind) for name in FAMILIES for kind in kinds_of(name)]
_built: dict[tuple[str, torch.dtype], Family] = {}
_measured: dict[tuple[str, torch.dtype], Any] = {}


def built(name: str, dtype: torch.dtype = DOUBLE) -> Family:
    if (name, dtype) not in _built:
        _built[name, dtype] = build(name, dtype=dtype)
    return _built[name, dtype]


def measured(name: str, dtype: torch.dtype = DOUBLE) -> Any:
    """Statistics of the task that ``a_task`` makes."""
    if (name, dtype) not in _measured:
        family = built(name, dtype)
        _measured[name, dtype] = statistics(family, a_task(family))
    return _measured[name, dtype]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return built(request.param)


@pytest.fixture
def gpt2() -> Family:
    return built("gpt2")


@pytest.mark.parametrize(
    ("name", "kind", "dtype"),
    [(*pair, DOUBLE) for pair in KINDS]
    + [(*pair, SINGLE) for pair in KINDS if pair[1] in ("head", "neuron", "pattern")],
)
def test_every_method_equals_one_at_a_time(name: str, kind: str, dtype: torch.dtype):
    family = built(name, dtype)
    task = a_task(family)
    sites, stats = some(SELECT[kind](family.model), 3), measured(name, dtype)
    for method_name, make in METHODS.items():
        if (kind, method_name) == ("pattern", "noise") or (dtype == SINGLE and method_name in ROUNDED_ALIKE):
            continue
        method = make(task, stats)
        expected = each_alone(family, task, sites, method)
        assert apart(by_the_engine(family, task, alone(sites, method)), expected) < TOLERANCE[dtype], method_name
        assert effect(family, task, expected) > 1e-4, method_name


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_zero_equals_hooks_written_by_hand(name: str, kind: str):
    family = built(name)
    task = a_task(family)
    sites = some(SELECT[kind](family.model), 12)
    expected = zeroed_by_hand(family, task, sites)
    assert apart(by_the_engine(family, task, alone(sites, la.Zero())), expected) < 1e-10
    result = la.sweep(family.model, task, sites, la.Zero(), progress=False)
    assert apart(result.values, expected) < 1e-6  # results are kept in float32
    assert apart(result.baseline, task.score(logits_of(family, task))) < 1e-6


@pytest.mark.parametrize("linears", [True, False], ids=["kept linear maps", "no linear maps"])
@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_linear_maps_answered_from_memory_change_no_number(
    name: str, kind: str, linears: bool, monkeypatch: pytest.MonkeyPatch
):
    family = built(name)
    monkeypatch.setattr(part_module, "WORTH_KEEPING", 0 if linears else 2**20)
    task, sites = a_task(family), SELECT[kind](family.model)
    mixed = [Ablation(sites, random_flags(sites, 8), la.Constant(0.2))]
    assert apart(by_the_engine(family, task, mixed, variants_at_once=8), hooks_together(family, task, mixed)) < 1e-10


@pytest.mark.parametrize("positions", ["all", "all_but_first", "answer", "indices", "one row of indices"])
def test_positions_are_those_of_each_row(family: Family, positions: str):
    task = a_task(family)
    given_positions: Any = {
        "indices": torch.tensor([[0, 2], [3, -1], [4, 1]]),
        "one row of indices": torch.tensor([[0, 3]]),
    }.get(positions, positions)
    for kind in kinds_of(family.name):
        sites = some(SELECT[kind](family.model), 3)
        for method in (la.Constant(0.3), la.Resample(task, match="batch")):
            expected = each_alone(family, task, sites, method, given_positions)
            found = by_the_engine(family, task, alone(sites, method), given_positions)
            assert apart(found, expected) < 1e-10, (kind, method)
            assert effect(family, task, expected) > 1e-6, (kind, method)


@pytest.mark.parametrize("positions", ["all", "all_but_first", "answer"])
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", TOKEN_FAMILIES)
def test_padded_rows_equal_one_at_a_time(name: str, padding: str, positions: str):
    # padding on the left gives NaN inside eager attention in float64
    dtype = SINGLE if padding == "left" else DOUBLE
    family = built(name, dtype)
    task = a_task(family, n=5, padding=padding)
    for kind in kinds_of(name):
        sites = some(SELECT[kind](family.model), 3)
        for method in (la.Constant(0.3), la.Resample(task, match="batch")):
            expected = each_alone(family, task, sites, method, positions)
            found = by_the_engine(family, task, alone(sites, method), positions, examples_at_once=5)
            assert apart(found, expected) < TOLERANCE[dtype], (kind, method)


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("name", TOKEN_FAMILIES)
def test_one_example_equals_one_at_a_time(name: str, padding: str):
    family = built(name, SINGLE)
    task = a_task(family, n=3, padding=padding).select(slice(1, 2))
    sites = some(la.heads(family.model), 6)
    expected = each_alone(family, task, sites, la.Constant(0.3))
    result = la.sweep(family.model, task, sites, la.Constant(0.3), progress=False)
    assert apart(result.values, expected) < 1e-5
    single_rows = la.sweep(family.model, task, sites, la.Constant(0.3), batch_size=1, progress=False)
    assert apart(single_rows.values, expected) < 1e-5


@pytest.mark.parametrize("n", [1, 4, 6])
def test_as_many_examples_as_tokens_or_heads_are_not_taken_for_them(family: Family, n: int):
    task = a_task(family, n=n, n_pos=6 if n != 4 else 4)
    sites = some(la.heads(family.model), 5)
    expected = each_alone(family, task, sites, la.Constant(0.3))
    found = by_the_engine(family, task, alone(sites, la.Constant(0.3)), examples_at_once=n, variants_at_once=5)
    assert apart(found, expected) < 1e-10


@pytest.mark.parametrize("name", TOKEN_FAMILIES)
def test_one_token_equals_one_at_a_time(name: str):
    family = built(name)
    task, sites = a_task(family, n_pos=1), la.mlps(family.model)
    found = by_the_engine(family, task, alone(sites, la.Constant(0.3)))
    assert apart(found, each_alone(family, task, sites, la.Constant(0.3))) < 1e-10


def two_targets(family: Family) -> la.Task:
    return la.Task(
        inputs=family.inputs(3),
        answers=torch.tensor([[1, 2], [3, 4], [-1, 5]]),
        positions=torch.tensor([[1, 5], [0, 2], [-1, 4]]),
    )


def mean_of_all_logits(logits: Tensor, batch: la.Task) -> Tensor:
    """A user's metric that reads every logit."""
    return logits.flatten(1).square().mean(dim=1) + logits.flatten(1)[:, 1]


@pytest.mark.parametrize("metric", [*la.metrics.names(), mean_of_all_logits], ids=lambda m: getattr(m, "__name__", m))
def test_every_metric_equals_one_at_a_time(family: Family, metric: Any):
    task = a_task(family).with_metric(la.metrics.get(metric) if isinstance(metric, str) else metric)
    sites = some(la.heads(family.model), 5)
    expected = each_alone(family, task, sites, la.Constant(0.3))
    assert apart(by_the_engine(family, task, alone(sites, la.Constant(0.3))), expected) < 1e-10


@pytest.mark.parametrize("kind", ["head", "neuron", "mlp"])
@pytest.mark.parametrize("metric", ["loss", "probability", "kl_from_clean"])
@pytest.mark.parametrize("name", TOKEN_FAMILIES)
def test_several_targets_to_an_example_equal_one_at_a_time(name: str, metric: str, kind: str):
    family = built(name)
    task, sites = two_targets(family).with_metric(la.metrics.get(metric)), some(SELECT[kind](family.model), 5)
    expected = each_alone(family, task, sites, la.Constant(0.3))
    assert apart(by_the_engine(family, task, alone(sites, la.Constant(0.3))), expected) < 1e-10
    assert effect(family, task, expected) > 1e-6


@pytest.mark.parametrize("bytes_of_logits", [1, 2000])
@pytest.mark.parametrize("metric", ["kl_from_clean", mean_of_all_logits], ids=lambda m: getattr(m, "__name__", m))
def test_logits_made_in_parts_change_no_number(
    family: Family, metric: Any, bytes_of_logits: int, monkeypatch: pytest.MonkeyPatch
):
    task = a_task(family, n=5).with_metric(la.metrics.get(metric) if isinstance(metric, str) else metric)
    sites = some(la.heads(family.model), 5)
    expected = each_alone(family, task, sites, la.Constant(0.3))
    monkeypatch.setattr(part_module, "LOGITS", {"cpu": bytes_of_logits, "cuda": bytes_of_logits})
    found = by_the_engine(family, task, alone(sites, la.Constant(0.3)), examples_at_once=5, variants_at_once=4)
    assert apart(found, expected) < 1e-10


def mixture(family: Family, task: la.Task, n_variants: int = 7) -> list[Ablation]:
    """Heads by their mean, neurons by zero, whole MLPs, patterns and single coordinates, some in one layer."""
    model = family.model
    mean = la.Mean(measured(family.name))
    first, rest = la.heads(model)[:, :1], la.heads(model)[:, 1:2]
    coordinates = la.attention_neurons(model)[:, 2:3]
    patterns = la.patterns(model)[:, 3:]
    parts = [
        (first | rest, mean),
        (coordinates, la.Resample(task, match="batch")),
        (patterns, la.Resample(task.inputs[:1])),
        (la.neurons(model), la.Zero()),
        (la.mlps(model)[1:], la.Constant(0.1)),
    ]
    return [Ablation(sites, random_flags(sites, n_variants, seed=i), m) for i, (sites, m) in enumerate(parts)]


def test_several_ablations_together_equal_their_hooks_in_one_pass(family: Family):
    task = a_task(family)
    ablations = mixture(family, task)
    expected = hooks_together(family, task, ablations)
    assert apart(by_the_engine(family, task, ablations, variants_at_once=7), expected) < 1e-10
    assert apart(run_variants(family.model, task, ablations).values, expected) < 1e-6
    assert effect(family, task, expected) > 1e-3


def test_pruning_curves_equal_their_hooks_in_one_pass(family: Family):
    task, sites = a_task(family), la.neurons(family.model)
    flags = Packed.of(nested_removals(sites, (0, 0.4, 1), "random_per_layer", 7))
    curve = la.pruning_curve(
        family.model, task, sites, la.Constant(0.2), fractions=(0, 0.4, 1), seeds=(7,), progress=False
    )
    expected = hooks_together(family, task, [Ablation(sites, flags, la.Constant(0.2))])
    assert apart(curve.values[0, 0], expected) < 1e-6


def test_variants_that_remove_nothing_are_the_baseline_bit_for_bit(family: Family):
    task, sites = a_task(family), la.heads(family.model)
    flags = np.zeros((5, len(sites)), dtype=bool)
    flags[1, 3] = flags[4, 11] = True
    for values in (
        run_variants(family.model, task, [Ablation(sites, Packed.of(flags), la.Constant(9.0))]),
        run_variants(family.model, task, [Ablation(sites, Packed.of(flags[[0, 2]]), la.Constant(9.0))]),
    ):
        assert torch.equal(values.values[0], values.baseline)
        assert torch.equal(values.values[2 if len(values.values) > 2 else 1], values.baseline)


def test_no_row_leaks_into_another(family: Family):
    class Poison(la.Method):
        @property
        def settings(self) -> dict[str, object]:
            return {}

        def prepare(self, model: Any, points: Any, examples: Any = None) -> Any:
            return lambda request: torch.tensor(float("nan"))

    task, heads, neurons = a_task(family), la.heads(family.model), la.neurons(family.model)
    poisoned = np.zeros((6, len(heads)), dtype=bool)
    poisoned[[1, 4], [0, 7]] = True
    others = random_flags(neurons, 6)
    found = by_the_engine(
        family,
        task,
        [Ablation(heads, Packed.of(poisoned), Poison()), Ablation(neurons, others, la.Zero())],
        variants_at_once=6,
    )
    expected = hooks_together(family, task, [Ablation(neurons, others, la.Zero())])
    clean = [0, 2, 3, 5]
    assert bool(found[[1, 4]].isnan().all())
    assert apart(found[clean], expected[clean]) < 1e-10


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(FAMILIES),
    batch_size=st.sampled_from([None, 1, 2, 3, 5, 8, 13, 40]),
    clean_bytes=st.sampled_from([0, 1, 3000, 20_000, 2**30]),
    order=st.permutations(range(9)),
    cut=st.integers(1, 8),
    reuse=st.booleans(),
)
def test_batch_size_order_memory_and_splitting_change_no_number(
    name: str, batch_size: int | None, clean_bytes: int, order: list[int], cut: int, reuse: bool
):
    family = built(name, SINGLE)
    task, sites = a_task(family, n=4), la.attention_neurons(family.model)
    flags = random_flags(sites, 9).flags(np.arange(9))
    method = la.Resample(task, match="batch")

    def values(chosen: list[int], engine: la.Engine, rows: int | None) -> Tensor:
        ablation = Ablation(sites, Packed.of(flags[chosen]), method)
        return run_variants(family.model, task, [ablation], batch_size=rows, engine=engine).values

    expected = values(list(range(9)), la.Engine(reuse=False), 36)
    engine = la.Engine(clean_bytes=clean_bytes, reuse=reuse)
    found = torch.cat([values(order[:cut], engine, batch_size), values(order[cut:], engine, batch_size)])
    torch.testing.assert_close(found, expected[order], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("clean_bytes", [0, 1, 4000, 12_000, 40_000])
def test_activations_computed_again_change_no_number(family: Family, clean_bytes: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(part_module, "WORTH_KEEPING", 0)
    task, sites = a_task(family), la.heads(family.model)
    expected = zeroed_by_hand(family, task, sites)
    found = by_the_engine(family, task, alone(sites, la.Zero()), clean_bytes=clean_bytes, variants_at_once=12)
    assert apart(found, expected) < 1e-10


@pytest.mark.parametrize("name", ["gpt2", "llama", "vit"])
def test_sdpa_attention_equals_one_at_a_time(name: str):
    family = build(name, dtype=DOUBLE, attention="sdpa")
    for padding in ("none", "right")[: 1 if name == "vit" else 2]:
        task = a_task(family, padding=padding)
        assert path_of(family.model).prefix
        for kind in ("head", "neuron"):
            sites = some(SELECT[kind](family.model), 3)
            expected = zeroed_by_hand(family, task, sites)
            assert apart(by_the_engine(family, task, alone(sites, la.Zero())), expected) < 1e-10 or padding != "none"
            again = each_alone(family, task, sites, la.Zero())
            assert apart(by_the_engine(family, task, alone(sites, la.Zero())), again) < 1e-10


def test_path_without_shortcuts_gives_the_same_numbers(family: Family):
    task = a_task(family)
    ablations = mixture(family, task)
    found = by_the_engine(family, task, ablations, path=plain("asked for"), variants_at_once=7)
    assert apart(found, by_the_engine(family, task, ablations)) < 1e-10


@pytest.mark.parametrize("name", ["gpt2", "vit"])
def test_bfloat16_is_near_and_its_rounding_is_measured(name: str):
    family = build(name)
    weights = {key: value.clone() for key, value in family.model.state_dict().items()}
    task, sites = a_task(family, n=20), la.heads(family.model)
    largest = float(logits_of(family, task).abs().max())
    own = la.sweep(family.model, task, sites, la.Constant(0.3), progress=False)
    half = la.sweep(family.model, task, sites, la.Constant(0.3), engine=la.Engine(dtype=torch.bfloat16), progress=False)
    assert 0 < float((half.values - own.values).abs().max()) < 0.05 * largest
    how: Any = half.settings["engine"]
    assert how["dtype"] == "torch.bfloat16"
    variants = np.linspace(0, len(sites) - 1, min(ROUNDING_SAMPLE, len(sites))).astype(int)
    sample = (half.values - own.values)[variants][:, :ROUNDING_SAMPLE].abs()
    assert how["rounding"]["largest difference"] == pytest.approx(float(sample.max()), abs=2e-6)
    assert how["rounding"]["mean difference"] == pytest.approx(float(sample.mean()), abs=2e-6)
    assert (how["rounding"]["variants"], how["rounding"]["examples"]) == sample.shape
    assert how["rounding"]["unit"] == "nats"
    left = family.model.state_dict()
    assert left.keys() == weights.keys()
    assert all(torch.equal(left[key], value) and left[key].dtype == value.dtype for key, value in weights.items())


def test_the_models_own_dtype_has_no_rounding_to_report(gpt2: Family):
    result = la.sweep(gpt2.model, a_task(gpt2), la.mlps(gpt2.model), la.Zero(), progress=False)
    assert "rounding" not in result.settings["engine"]


def test_no_variants_are_refused(gpt2: Family):
    sites = la.heads(gpt2.model)
    none = Ablation(sites, Packed.of(np.zeros((0, len(sites)), dtype=bool)), la.Zero())
    with pytest.raises(ValueError, match="no variants"):
        run_variants(gpt2.model, a_task(gpt2), [none])


def test_ablations_must_fit_together(gpt2: Family):
    heads, mlps = la.heads(gpt2.model), la.mlps(gpt2.model)
    with pytest.raises(ValueError, match="no ablations"):
        run_variants(gpt2.model, a_task(gpt2), [])
    both = [Ablation(heads, OneEach(12), la.Zero()), Ablation(mlps, OneEach(3), la.Zero())]
    with pytest.raises(ValueError, match=r"\[3, 12\]"):
        run_variants(gpt2.model, a_task(gpt2), both)
    with pytest.raises(ValueError, match="batch_size"):
        run_variants(gpt2.model, a_task(gpt2), alone(heads, la.Zero()), batch_size=0)
