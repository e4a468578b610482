"""Mean, peak and noise against recomputation on raw activations, and what they do in folded models."""

import numpy as np
import pytest
import torch

import lens_ablation as la
from lens_ablation.errors import BadActivation, StatisticsMismatch
from lens_ablation.models.fingerprint import weight_processing
from tests.families import D_HEAD, FAMILIES, HAS_HOOKED_TRANSFORMER, N_HEADS, Family, build

pytestmark = pytest.mark.model
LAYER, HEAD = 1, 2
N = 40


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return build(request.param, dtype=torch.float64)


@pytest.fixture(scope="module")
def gpt2() -> Family:
    return build("gpt2", dtype=torch.float64)


def statistics_of(family: Family, sites, **options) -> la.ActivationStatistics:
    return la.collect_statistics(family.model, family.inputs(N), sites, allow_small=True, progress=False, **options)


def raw_z(family: Family, inputs: torch.Tensor) -> np.ndarray:
    """What enters the output projection of the plain Hugging Face model, ``[row, pos, head, d_head]``."""
    kept = {}

    def keep(module: torch.nn.Module, args: tuple) -> None:
        kept["z"] = args[0]

    handle = family.output_projection(family.plain, LAYER).register_forward_pre_hook(keep)
    family.plain_logits(inputs)
    handle.remove()
    return kept["z"].reshape(*kept["z"].shape[:2], N_HEADS, D_HEAD).numpy()


def with_head_set_to(family: Family, inputs: torch.Tensor, value: np.ndarray) -> torch.Tensor:
    """Logits of the plain model with one head's part of the projection's input overwritten."""

    def write(module: torch.nn.Module, args: tuple) -> tuple[torch.Tensor]:
        z = args[0].clone()
        z[..., HEAD * D_HEAD : (HEAD + 1) * D_HEAD] = torch.from_numpy(value).to(z)
        return (z,)

    handle = family.output_projection(family.plain, LAYER).register_forward_pre_hook(write)
    logits = family.plain_logits(inputs)
    handle.remove()
    return logits


def ablated(family: Family, method, inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), la.ablate(family.model, la.heads(family.model)[LAYER, HEAD], method):
        return family.model(inputs)


def test_mean_is_the_numpy_mean_written_into_the_plain_model(family: Family):
    stats = statistics_of(family, la.heads(family.model))
    mean = raw_z(family, family.inputs(N))[:, :, HEAD].reshape(-1, D_HEAD).mean(axis=0)
    inputs = family.inputs(3, seed=9)
    expected = with_head_set_to(family, inputs, mean)
    torch.testing.assert_close(ablated(family, la.Mean(stats), inputs), expected, atol=1e-9, rtol=0)


def test_mean_per_position_is_the_numpy_mean_at_each_position(family: Family):
    stats = statistics_of(family, la.heads(family.model), per_position=True)
    mean = raw_z(family, family.inputs(N))[:, :, HEAD].mean(axis=0)
    inputs = family.inputs(3, seed=9)
    expected = with_head_set_to(family, inputs, mean)
    found = ablated(family, la.Mean(stats, per_position=True), inputs)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_peak_is_the_fullest_bin_of_torch_histc(family: Family):
    stats = statistics_of(family, la.heads(family.model))
    raw = torch.from_numpy(raw_z(family, family.inputs(N))[:, :, HEAD].reshape(-1, D_HEAD)).float()
    peaks = []
    for values in raw.T:
        low, high = values.min(), values.max()
        fullest = int(torch.histc(values, bins=100, min=float(low), max=float(high)).argmax())
        peaks.append(float(low + (high - low) / 100 * (fullest + 0.5)))
    inputs = family.inputs(3, seed=9)
    expected = with_head_set_to(family, inputs, np.array(peaks))
    torch.testing.assert_close(ablated(family, la.Peak(stats), inputs), expected, atol=1e-6, rtol=0)


def test_noise_has_the_stated_size_and_is_each_examples_own(gpt2: Family):
    site, stats = la.heads(gpt2.model)[LAYER, HEAD], statistics_of(gpt2, la.heads(gpt2.model))
    inputs, seen = gpt2.inputs(400), {}

    def keep(z: torch.Tensor, hook: object) -> None:
        seen["z"] = z[:, :, HEAD].clone()

    gpt2.model.run_with_hooks(inputs, fwd_hooks=[(site.hook_name, keep)])
    clean = seen["z"]
    with la.ablate(gpt2.model, site, la.Noise(stats, scale=2.0, seed=4)):
        gpt2.model.run_with_hooks(inputs, fwd_hooks=[(site.hook_name, keep)])
    added = (seen["z"] - clean).flatten(0, 1)
    spread = stats[site.hook_name].variance[HEAD].sqrt() * 2
    torch.testing.assert_close(added.std(dim=0), spread, rtol=0.06, atol=0)
    assert not torch.allclose(added[0], added[6])


def test_noise_does_not_depend_on_the_batch(gpt2: Family):
    stats, inputs = statistics_of(gpt2, la.heads(gpt2.model)), gpt2.inputs(5)
    task = la.Task(inputs=inputs, answers=inputs[:, 0])
    sweeps = [
        la.sweep(gpt2.model, task, la.heads(gpt2.model), la.Noise(stats), batch_size=size, progress=False).values
        for size in (2, 100)
    ]
    torch.testing.assert_close(sweeps[0], sweeps[1], atol=1e-6, rtol=1e-6)


def test_noise_around_the_mean_forgets_the_activation(gpt2: Family):
    site, stats = la.heads(gpt2.model)[LAYER, HEAD], statistics_of(gpt2, la.heads(gpt2.model))
    seen = []

    def keep(z: torch.Tensor, hook: object) -> None:
        seen.append(z[:, :, HEAD].clone())

    for seed in (0, 1):
        with la.ablate(gpt2.model, site, la.Noise(stats, around="mean")):
            gpt2.model.run_with_hooks(gpt2.inputs(3, seed=seed), fwd_hooks=[(site.hook_name, keep)])
    torch.testing.assert_close(*seen)
    with pytest.raises(ValueError, match="around='mean'"):
        la.hooks(gpt2.model, la.patterns(gpt2.model), la.Noise(statistics_of(gpt2, la.patterns(gpt2.model))))


def test_statistics_of_another_model_or_another_hook_are_refused(gpt2: Family):
    stats, other = statistics_of(gpt2, la.heads(gpt2.model)), build("gpt2", dtype=torch.float64, seed=1)
    with pytest.raises(StatisticsMismatch, match="Collect again"):
        la.hooks(other.model, la.heads(other.model), la.Mean(stats))
    with pytest.raises(StatisticsMismatch, match="hook_post"):
        la.hooks(gpt2.model, la.neurons(gpt2.model), la.Peak(stats))
    with pytest.raises(StatisticsMismatch, match="per_position=True"):
        la.hooks(gpt2.model, la.heads(gpt2.model), la.Mean(stats, per_position=True))


def test_texts_longer_than_the_measured_ones_are_refused_by_position(gpt2: Family):
    stats = statistics_of(gpt2, la.heads(gpt2.model), per_position=True)
    with pytest.raises(ValueError, match="covers 6 positions and this text has 9"):
        ablated(gpt2, la.Mean(stats, per_position=True), gpt2.inputs(2, n_pos=9))
    patterns = statistics_of(gpt2, la.patterns(gpt2.model))
    with (
        pytest.raises(ValueError, match="covers 6 positions and this text has 9"),
        la.ablate(gpt2.model, la.patterns(gpt2.model), la.Mean(patterns)),
    ):
        gpt2.model(gpt2.inputs(2, n_pos=9))


def test_mean_pattern_of_shorter_texts_is_defined_where_rows_had_both_tokens(gpt2: Family):
    inputs = gpt2.inputs(N)
    mask = torch.ones_like(inputs)
    mask[::2, 4:] = 0
    task = la.Task(inputs=inputs, answers=inputs[:, 0], attention_mask=mask)
    stats = la.collect_statistics(gpt2.model, task, la.patterns(gpt2.model), allow_small=True, progress=False)
    count = stats["blocks.1.attn.hook_pattern"].count[0]
    assert count[0, 0] == N
    assert count[5, 0] == N // 2
    row_sums = stats["blocks.1.attn.hook_pattern"].mean.sum(dim=-1)
    torch.testing.assert_close(row_sums, torch.ones_like(row_sums))
    with la.ablate(gpt2.model, la.patterns(gpt2.model), la.Mean(stats), task=task):
        assert bool(torch.isfinite(gpt2.model(inputs, attention_mask=mask)).all())


@pytest.mark.skipif(HAS_HOOKED_TRANSFORMER, reason="the folding of bridges is tested on the newest release only")
def test_folded_value_biases_change_zero_and_leave_mean_and_peak():
    raw, folded = build("gpt2", dtype=torch.float64), build("gpt2", dtype=torch.float64)
    folded.model.enable_compatibility_mode(disable_warnings=True)
    assert weight_processing(raw.model) == "raw"
    assert "folded value biases" in weight_processing(folded.model)
    inputs = raw.inputs(3, seed=9)

    def log_probabilities(family: Family, method) -> torch.Tensor:
        return ablated(family, method, inputs).log_softmax(dim=-1)

    def measured(family: Family) -> la.ActivationStatistics:
        return statistics_of(family, la.heads(family.model))

    zero = [log_probabilities(f, la.Zero()) for f in (raw, folded)]
    assert (zero[0] - zero[1]).abs().max() > 1e-3
    for method, tolerance in ((la.Mean, 1e-5), (la.Peak, 2e-2)):
        pair = [log_probabilities(f, method(measured(f))) for f in (raw, folded)]
        torch.testing.assert_close(*pair, atol=tolerance, rtol=0)
    shift = measured(raw)["blocks.1.attn.hook_z"].mean - measured(folded)["blocks.1.attn.hook_z"].mean
    constant = log_probabilities(folded, la.Constant({"blocks.1.attn.hook_z": -shift}))
    torch.testing.assert_close(constant, zero[0], atol=1e-5, rtol=0)
    with pytest.raises(StatisticsMismatch, match="weight processing"):
        la.hooks(folded.model, la.heads(folded.model), la.Mean(measured(raw)))


def test_constants_need_the_shape_of_their_hook(gpt2: Family):
    with pytest.raises(ValueError, match="has shape"):
        ablated(gpt2, la.Constant(torch.zeros(3)), gpt2.inputs())
    with pytest.raises(ValueError, match="holds no values for blocks"):
        ablated(gpt2, la.Constant({"blocks.0.mlp.hook_post": torch.zeros(48)}), gpt2.inputs())


def test_unmeasured_pattern_entries_are_refused(gpt2: Family):
    inputs = gpt2.inputs(N)
    mask = torch.ones_like(inputs)
    mask[:, 4:] = 0
    task = la.Task(inputs=inputs, answers=inputs[:, 0], attention_mask=mask)
    stats = la.collect_statistics(gpt2.model, task, la.patterns(gpt2.model), allow_small=True, progress=False)
    with (
        pytest.raises(BadActivation, match="was not measured"),
        la.ablate(gpt2.model, la.patterns(gpt2.model), la.Mean(stats)),
    ):
        gpt2.model(inputs)
