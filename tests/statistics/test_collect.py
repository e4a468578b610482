"""``collect_statistics`` on every family against NumPy and ``torch.histc`` on captured raw activations."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

import lens_ablation as la
from lens_ablation.errors import BadActivation, HookDidNotFire, StatisticsMismatch, UnknownSite
from lens_ablation.models.capture import align, align_pattern, capture
from lens_ablation.sites import SiteSet
from lens_ablation.statistics import (
    ActivationStatistics,
    Averaged,
    CoarseToFine,
    GlobalRange,
    KernelDensity,
    Mode,
    OwnRange,
    PeakEstimator,
    Smoothed,
    collect,
    collect_statistics,
)
from tests.families import FAMILIES, N_HEADS, TOKEN_FAMILIES, Family, build

pytestmark = pytest.mark.model
N_ROWS, N_POS = 30, 6
SELECTORS = [la.heads, la.neurons, la.attentions, la.mlps]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return build(request.param)


@pytest.fixture(scope="module")
def gpt2() -> Family:
    return build("gpt2")


@pytest.fixture(scope="module", params=[name for name in TOKEN_FAMILIES if name in ("gpt2", "llama", "bert")])
def token_family(request: pytest.FixtureRequest) -> Family:
    return build(request.param)


def collected(family: Family, sites: SiteSet | list[SiteSet], data: object = None, **options) -> ActivationStatistics:
    inputs = family.inputs(N_ROWS, N_POS) if data is None else data
    return collect_statistics(family.model, inputs, sites, **{"batch_size": 13, "progress": False, **options})


def raw(family: Family, name: str, inputs: torch.Tensor | None = None, **options) -> torch.Tensor:
    inputs = family.inputs(N_ROWS, N_POS) if inputs is None else inputs
    return capture(family.model, inputs, [name], **options)[name]


def n_hooks(family: Family) -> list[int]:
    """Hooks at every point; TransformerLens keeps some of its own on certain families."""
    return [len(point.fwd_hooks) for point in family.model.hook_dict.values()]


def padded_task(family: Family, side: str = "right") -> tuple[la.Task, torch.Tensor]:
    """Rows of 3 to 6 tokens, 120 of each length, with their mask."""
    n = 480
    lengths = torch.arange(n) % 4 + 3
    mask = torch.arange(N_POS) < lengths[:, None]
    mask = mask if side == "right" else mask.flip(1)
    tokens = family.inputs(n, N_POS)
    return la.Task(inputs=tokens, answers=torch.ones(n, dtype=torch.int64), attention_mask=mask), mask


def histc_peak(x: torch.Tensor, bins: int = 100) -> torch.Tensor:
    x = x.float()
    a, b = x.min(), x.max()
    winner = int(np.argmax(torch.histc(x, bins, float(a), float(b)).numpy()))
    return a + (b - a) / bins * (winner + 0.5)


def assert_measured(statistics, samples: torch.Tensor) -> None:
    """Statistics of one hook equal those of ``samples`` ``[sample, *coordinate]``, recomputed directly."""
    x = samples.double().numpy()
    np.testing.assert_allclose(statistics.mean, x.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(statistics.variance, x.var(0), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(statistics.skewness, stats.skew(x), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(statistics.kurtosis, stats.kurtosis(x, fisher=False), rtol=1e-3, atol=1e-3)
    assert int(statistics.count.unique().item()) == len(x)


@pytest.mark.parametrize("selector", SELECTORS, ids=lambda selector: selector.__name__)
def test_statistics_equal_recomputation_on_raw_activations(family: Family, selector: Callable[..., SiteSet]):
    sites = selector(family.model)
    found = collected(family, sites, batch_size=N_ROWS)
    assert list(found) == sites.hook_points
    for point in found:
        samples = raw(family, point.name).flatten(0, 1)
        assert found[point].mean.shape == samples.shape[1:]
        assert_measured(found[point], samples)
        np.testing.assert_array_equal(found[point].minimum, samples.amin(0))
        columns = samples.flatten(1).T
        expected = torch.stack([histc_peak(x) for x in columns]).reshape(samples.shape[1:])
        assert torch.equal(found[point].peak, expected)
        counts = torch.stack([torch.histc(x, 100, float(x.min()), float(x.max())) for x in columns])
        assert torch.equal(found[point].histogram.counts.flatten(0, -2), counts.int())


@pytest.mark.parametrize("selector", [*SELECTORS, la.patterns], ids=lambda selector: selector.__name__)
def test_passes_that_end_with_the_last_block_measure_the_same(
    family: Family, selector: Callable[..., SiteSet], monkeypatch: pytest.MonkeyPatch
):
    """As passes to the end do, bit for bit; only the first batch runs what comes behind the blocks."""
    sites = selector(family.model)
    settings = {"data": family.inputs(120, N_POS), "per_position": True, "batch_size": 40}
    with monkeypatch.context() as patch:
        patch.setitem(collect.ACTIVATIONS, "resid_post", "none.{}")
        whole = collected(family, sites, **settings)
    finished = []
    inner = family.model.unembed if family.name == "hooked" else family.model.original_model
    counter = inner.register_forward_hook(lambda *_: finished.append(True))
    before = n_hooks(family)
    short = collected(family, sites, **settings)
    counter.remove()
    assert len(finished) == 1
    assert n_hooks(family) == before
    for point in whole:
        for name in ("mean", "variance", "skewness", "kurtosis", "minimum", "maximum", "peak"):
            torch.testing.assert_close(
                getattr(short[point], name), getattr(whole[point], name), atol=0, rtol=0, equal_nan=True
            )
        assert torch.equal(short[point].histogram.counts, whole[point].histogram.counts)


def test_a_pass_that_ended_early_leaves_the_model_as_it_was(family: Family):
    inputs = family.inputs(N_ROWS, N_POS)
    with torch.no_grad():
        before = family.model(inputs)
        collected(family, la.heads(family.model))
        assert torch.equal(family.model(inputs), before)


def test_a_block_that_runs_twice_is_refused(gpt2: Family):
    last = gpt2.model.blocks[-1]
    inside = []

    def again(block: torch.nn.Module, args: tuple, kwargs: dict, out: object) -> None:
        if not inside:
            inside.append(True)
            block(*args, **kwargs)
            inside.clear()

    handle = last.register_forward_hook(again, with_kwargs=True)
    with pytest.raises(HookDidNotFire, match="2"):
        collected(gpt2, la.heads(gpt2.model))
    handle.remove()


def test_patterns_are_measured_by_query_and_key(family: Family):
    found = collected(family, la.patterns(family.model), data=family.inputs(120, N_POS))
    for point in found:
        samples = raw(family, point.name, family.inputs(120, N_POS))
        assert found[point].mean.shape == samples.shape[1:]
        np.testing.assert_allclose(found[point].mean, samples.double().mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[point].variance, samples.double().var(0, correction=0), rtol=1e-3, atol=1e-9)


def test_future_keys_of_a_causal_model_are_zeros(gpt2: Family):
    found = collected(gpt2, la.patterns(gpt2.model)[1], data=gpt2.inputs(120, N_POS))
    future = torch.triu(torch.ones(N_POS, N_POS, dtype=torch.bool), 1)
    statistics = found["blocks.1.attn.hook_pattern"]
    assert (statistics.zero_share[:, future] == 1).all()
    assert (statistics.peak[:, future] == 0).all()
    assert (statistics.zero_share[:, ~future] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes_are_measured_as_they_are(dtype: torch.dtype):
    family = build("llama", dtype=dtype)
    found = collected(family, la.neurons(family.model), batch_size=N_ROWS)
    for point in found:
        samples = raw(family, point.name).flatten(0, 1)
        torch.testing.assert_close(found[point].mean, samples.double().mean(0), rtol=1e-10, atol=1e-12)
        assert torch.equal(found[point].peak, torch.stack([histc_peak(x) for x in samples.T]))


def test_batching_does_not_matter_in_float64():
    family = build("gpt2", dtype=torch.float64)
    one, many = (collected(family, la.heads(family.model), batch_size=size) for size in (N_ROWS, 4))
    for point in one:
        for name in ("mean", "variance", "skewness", "kurtosis", "peak"):
            a, b = getattr(one[point], name), getattr(many[point], name)
            torch.testing.assert_close(a, b, rtol=1e-10 if name != "peak" else 1e-5, atol=1e-10, check_dtype=False)


@pytest.mark.parametrize("side", ["left", "right"])
def test_masked_tokens_are_never_counted(token_family: Family, side: str):
    task, mask = padded_task(token_family, side)
    found = collected(token_family, la.heads(token_family.model), task, per_position=True, batch_size=480)
    for point in found:
        activation = raw(token_family, point.name, task.inputs, attention_mask=mask)
        assert_measured(found[point], activation[mask])
        aligned, seen = align(activation, mask), torch.arange(N_POS) < mask.sum(1, keepdim=True)
        expected = torch.stack([aligned[seen[:, t], t].double().mean(0) for t in range(N_POS)])
        torch.testing.assert_close(found[point].position_mean, expected, rtol=1e-5, atol=1e-6)
        assert found[point].positions.count.tolist() == [480, 480, 480, 360, 240, 120]


@pytest.mark.parametrize("side", ["left", "right"])
def test_patterns_count_pairs_of_real_tokens_from_the_first(token_family: Family, side: str):
    task, mask = padded_task(token_family, side)
    found = collected(token_family, la.patterns(token_family.model), task, batch_size=480)
    n_real = mask.sum(1)
    for point in found:
        aligned = align_pattern(raw(token_family, point.name, task.inputs, attention_mask=mask), mask)
        for query, key in ((0, 0), (2, 1), (5, 2), (5, 5), (1, 4)):
            rows = n_real > max(query, key)
            statistics = found[point]
            assert int(statistics.count[0, query, key]) == int(rows.sum())
            expected = aligned[rows, :, query, key].double().mean(0)
            torch.testing.assert_close(statistics.mean[:, query, key], expected, rtol=1e-5, atol=1e-6)


def test_positions_of_a_pattern_that_never_occur_have_no_statistics(gpt2: Family):
    tokens = gpt2.inputs(150, N_POS)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 4:] = False
    found = collected(gpt2, la.patterns(gpt2.model)[0], [(tokens, mask)])["blocks.0.attn.hook_pattern"]
    assert (found.count[:, :4, :4] == 150).all()
    assert (found.count[:, 4:] == 0).all()
    for name in ("mean", "variance", "minimum", "peak"):
        value = getattr(found, name)
        assert value[:, 4:].isnan().all()
        assert not value[:, :4, :4].isnan().any()


def test_all_but_first_leaves_the_first_real_token_out(gpt2: Family):
    task, mask = padded_task(gpt2, "left")
    found = collected(gpt2, la.heads(gpt2.model)[1], task, positions="all_but_first", per_position=True, batch_size=480)
    first = torch.zeros_like(mask).scatter_(1, mask.long().argmax(1, keepdim=True), True)
    activation = raw(gpt2, "blocks.1.attn.hook_z", task.inputs, attention_mask=mask)
    assert_measured(found["blocks.1.attn.hook_z"], activation[mask & ~first])
    assert found["blocks.1.attn.hook_z"].position_mean[0].isnan().all()


def test_answer_counts_the_answer_positions_of_a_task(gpt2: Family):
    task, mask = padded_task(gpt2)
    found = collected(gpt2, la.neurons(gpt2.model)[2], task, positions="answer", batch_size=480)
    activation = raw(gpt2, "blocks.2.mlp.hook_post", task.inputs, attention_mask=mask)
    assert_measured(found["blocks.2.mlp.hook_post"], activation[torch.arange(480), mask.sum(1) - 1])


def test_positions_of_images_count_from_the_class_token():
    family = build("vit")
    images = family.inputs(120)
    activation = raw(family, "blocks.1.attn.hook_z", images)
    for positions, samples in (
        ("all", activation.flatten(0, 1)),
        ("all_but_first", activation[:, 1:].flatten(0, 1)),
        ("answer", activation[:, 0]),
    ):
        found = collected(family, la.heads(family.model)[1], images, positions=positions, batch_size=120)
        assert_measured(found["blocks.1.attn.hook_z"], samples)


@pytest.mark.parametrize(
    "estimator",
    [OwnRange(30), GlobalRange(), CoarseToFine(), Averaged(), Smoothed(), KernelDensity(grid=50), Mode()],
    ids=repr,
)
def test_every_estimator_is_found_with_the_same_histogram(gpt2: Family, estimator: PeakEstimator):
    sites = la.heads(gpt2.model)[:2]
    found, paper = collected(gpt2, sites, peaks=estimator), collected(gpt2, sites)
    whole = torch.cat([raw(gpt2, point.name).flatten() for point in paper])
    for point in paper:
        spread = paper[point].variance.sqrt()
        assert ((found[point].peak - paper[point].mean).abs() < 5 * spread).all()
        assert found[point].histogram.bins == estimator.kept_bins
        if estimator.kept_bins == 100:
            assert torch.equal(found[point].histogram.counts, paper[point].histogram.counts)
    if estimator == GlobalRange():
        width = float(whole.max() - whole.min()) / 100
        steps = (found["blocks.0.attn.hook_z"].peak - whole.min()) / width
        torch.testing.assert_close(steps - steps.floor(), torch.full_like(steps, 0.5), atol=1e-3, rtol=0)


def test_moments_alone_take_one_pass(gpt2: Family):
    seen = []
    found = collect_statistics(
        gpt2.model,
        gpt2.inputs(N_ROWS, N_POS),
        la.heads(gpt2.model),
        histograms=False,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (N_ROWS, N_ROWS)
    statistics = found["blocks.0.attn.hook_z"]
    assert statistics.peak is statistics.histogram is statistics.bin_width is statistics.shapes is None
    assert found.shapes() == {}


@pytest.mark.parametrize("estimator", [OwnRange(), CoarseToFine()], ids=repr)
def test_progress_counts_rows_of_all_passes(gpt2: Family, estimator: PeakEstimator):
    seen = []
    collected(gpt2, la.heads(gpt2.model), peaks=estimator, progress=lambda *told: seen.append(told))
    total = N_ROWS * (1 + estimator.n_passes)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_two_kinds_of_sites_are_measured_together(gpt2: Family):
    kinds = [la.heads(gpt2.model)[1], la.neurons(gpt2.model)[0, 3], la.heads(gpt2.model)[0, 2]]
    found = collected(gpt2, kinds)
    names = {point.name for point in found}
    assert names == {"blocks.1.attn.hook_z", "blocks.0.attn.hook_z", "blocks.0.mlp.hook_post"}


def test_the_model_is_left_as_it_was(family: Family):
    inputs = family.inputs()
    before, installed = family.model(inputs), n_hooks(family)
    weights = [parameter.clone() for parameter in family.model.parameters()]
    found = collected(family, la.heads(family.model))
    assert torch.equal(family.model(inputs), before)
    assert all(torch.equal(a, b) for a, b in zip(weights, family.model.parameters(), strict=True))
    assert n_hooks(family) == installed
    assert not found["blocks.0.attn.hook_z"].mean.requires_grad


def test_hooks_do_not_outlive_an_error(gpt2: Family):
    def fails(done: int, total: int) -> None:
        raise KeyboardInterrupt

    installed = n_hooks(gpt2)
    with pytest.raises(KeyboardInterrupt):
        collected(gpt2, la.heads(gpt2.model), progress=fails)
    assert n_hooks(gpt2) == installed


def test_few_tokens_are_refused_unless_meant(gpt2: Family):
    few = gpt2.inputs(11, 9)
    with pytest.raises(ValueError, match=r"hook_z has only 99 values of a coordinate.*want 100.*allow_small=True"):
        collected(gpt2, la.heads(gpt2.model), few)
    assert int(collected(gpt2, la.heads(gpt2.model), few, allow_small=True)["blocks.0.attn.hook_z"].count.max()) == 99
    with pytest.raises(ValueError, match="only 30 values of a position"):
        collected(gpt2, la.heads(gpt2.model), per_position=True)


def test_an_iterator_that_can_be_read_once_is_refused(gpt2: Family):
    with pytest.raises(ValueError, match=r"only once.*pass list\(data\)"):
        collected(gpt2, la.heads(gpt2.model), iter([gpt2.inputs(N_ROWS)]))


def test_data_in_another_order_is_refused(gpt2: Family):
    loader = torch.utils.data.DataLoader(gpt2.inputs(N_ROWS), batch_size=5, shuffle=True)
    with pytest.raises(ValueError, match=r"another order, or changed.*shuffle=False"):
        collected(gpt2, la.heads(gpt2.model), loader)


def test_a_loader_in_order_equals_the_tensor(gpt2: Family):
    loader = torch.utils.data.DataLoader(gpt2.inputs(N_ROWS, N_POS), batch_size=7)
    a, b = (collected(gpt2, la.heads(gpt2.model), data, batch_size=7) for data in (loader, None))
    assert a.provenance == b.provenance
    assert torch.equal(a["blocks.0.attn.hook_z"].mean, b["blocks.0.attn.hook_z"].mean)


def test_patterns_of_several_lengths_are_refused(gpt2: Family):
    with pytest.raises(BadActivation, match=r"shape \[4, 5, 5\] here and had \[4, 6, 6\].*pad all rows"):
        collected(gpt2, la.patterns(gpt2.model), [gpt2.inputs(20, 6), gpt2.inputs(20, 5)])


def test_activations_that_are_not_finite_are_named(gpt2: Family):
    family = build("gpt2")
    with torch.no_grad():
        next(iter(family.model.parameters())).fill_(torch.nan)
    with pytest.raises(BadActivation, match=r"blocks\.0\.attn\.hook_z holds NaN or infinity at coordinate \[0, 0\]"):
        collected(family, la.heads(family.model))


def test_a_hook_that_does_not_fire_is_an_error():
    family = build("vit", attention="sdpa")
    if "blocks.0.attn.hook_pattern" not in family.model.hook_dict:
        pytest.fail("the ViT bridge lost hook_pattern: choose another hook that does not fire under sdpa")
    with pytest.raises((HookDidNotFire, ValueError), match="hook_pattern"):
        collected(family, la.patterns(family.model), allow_small=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": "last"}, "positions must be all, all_but_first, answer; got 'last'"),
        ({"positions": "answer"}, "pass a Task"),
        ({"peaks": "mode"}, r"estimator such as OwnRange\(\)"),
        ({"peaks": OwnRange}, r"estimator such as OwnRange\(\)"),
        ({"peaks": Mode(), "histograms": False}, "histograms=False finds no peaks"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_settings_that_do_not_fit_are_refused(gpt2: Family, options: dict[str, object], message: str):
    with pytest.raises((ValueError, TypeError), match=f"{message}|typechecking parameter"):
        collected(gpt2, la.heads(gpt2.model), **options)


def test_patterns_have_no_choice_of_positions(gpt2: Family):
    with pytest.raises(ValueError, match="collect them with positions='all'"):
        collected(gpt2, la.patterns(gpt2.model), positions="all_but_first")


def test_sites_of_another_model_and_no_sites_are_refused(gpt2: Family):
    with pytest.raises(UnknownSite):
        collected(gpt2, la.heads(gpt2.model).take([]))
    with pytest.raises(UnknownSite):
        collected(gpt2, [])
    with pytest.raises(UnknownSite):
        collected(gpt2, [la.Site("head", 0, head=N_HEADS)])


def test_a_model_in_training_mode_is_refused():
    family = build("gpt2")
    family.model.original_model.train()
    with pytest.raises(ValueError, match="training mode"):
        collected(family, la.heads(family.model))


def shards(family: Family, **options) -> list[ActivationStatistics]:
    parts = family.inputs(120, N_POS).split([50, 70])
    return [collected(family, la.heads(family.model), part, **options) for part in parts]


def test_shards_merge_to_the_whole_in_two_stages():
    family = build("gpt2", dtype=torch.float64)
    first, second = shards(family, histograms=False)
    ranges = first.merge(second)
    one, two = shards(family, ranges=ranges, per_position=True, allow_small=True)
    merged = one.merge(two)
    whole = collected(family, la.heads(family.model), family.inputs(120, N_POS), per_position=True)
    assert merged.provenance.data == first.provenance.data + second.provenance.data
    for point in whole:
        for name in ("mean", "variance", "skewness", "kurtosis", "position_mean"):
            a, b = getattr(merged[point], name), getattr(whole[point], name)
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        assert torch.equal(merged[point].histogram.counts, whole[point].histogram.counts)
        assert torch.equal(merged[point].peak, whole[point].peak)


def test_shards_counted_between_their_own_bounds_are_not_merged(gpt2: Family):
    one, two = shards(gpt2)
    with pytest.raises(StatisticsMismatch, match=r"different bounds.*ranges=merged"):
        one.merge(two)


def test_a_shard_is_not_merged_with_itself_or_with_other_settings(gpt2: Family):
    one, two = shards(gpt2, histograms=False)
    with pytest.raises(StatisticsMismatch, match="counted twice"):
        one.merge(two).merge(two)
    with pytest.raises(StatisticsMismatch, match="positions 'all' and 'all_but_first'"):
        one.merge(shards(gpt2, histograms=False, positions="all_but_first")[1])


def test_peaks_that_need_the_values_again_are_not_merged(gpt2: Family):
    first, second = shards(gpt2, histograms=False)
    one, two = shards(gpt2, ranges=first.merge(second), peaks=Mode())
    with pytest.raises(StatisticsMismatch, match=r"peaks by Mode\(\) cannot be found from merged histograms"):
        one.merge(two)


def test_ranges_of_something_else_are_refused(gpt2: Family):
    ranges = collected(gpt2, la.neurons(gpt2.model))
    with pytest.raises(StatisticsMismatch, match="ranges were measured on something else: hook names"):
        collected(gpt2, la.heads(gpt2.model), ranges=ranges)
