"""Linear fits against closed forms, scikit-learn, and each other."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from lens_ablation.attribution import large_regression, packed_masks, regression
from lens_ablation.attribution.packed_masks import column_chunks, column_square, keep_mean, row_chunks
from lens_ablation.attribution.regression import fit_lasso, fit_ridge, predicted
from lens_ablation.components import draw_removals
from lens_ablation.engine.removals import Packed
from lens_ablation.studies.correlations import pearson


def linear(n_masks: int, n_components: int, noise: float = 0.0, n_examples: int = 3, fraction: float = 0.2):
    """Masks, and outputs that are linear in them."""
    generator = torch.Generator().manual_seed(0)
    removed = draw_removals(n_masks, n_components, fraction, "bernoulli", seed=1)
    weights = torch.randn(n_examples, n_components, generator=generator)
    kept = torch.from_numpy(~removed).float()
    outputs = kept @ weights.T + 2.0 + noise * torch.randn(n_masks, n_examples, generator=generator)
    return Packed.of(removed), outputs, weights


@pytest.mark.parametrize(("n_masks", "n_components"), [(300, 40), (90, 40)])
def test_an_exactly_linear_output_is_recovered_in_its_own_unit(n_masks: int, n_components: int):
    removed, outputs, weights = linear(n_masks, n_components)
    fit = fit_ridge(removed, outputs)
    torch.testing.assert_close(fit.weights, weights, atol=5e-2, rtol=0)
    torch.testing.assert_close(predicted(removed, fit.weights, fit.intercept), outputs, atol=2e-2, rtol=0)
    assert float(pearson(fit.held_out, outputs, dim=0).min()) > 0.999


def test_weights_and_intercept_to_1e_4_as_the_penalty_vanishes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(regression, "PENALTIES", (1e-9,))
    for n_masks in (200, 80):
        removed, outputs, weights = linear(n_masks, 40)
        fit = fit_ridge(removed, outputs)
        torch.testing.assert_close(fit.weights, weights, atol=1e-4, rtol=0)
        torch.testing.assert_close(fit.intercept, torch.full((3,), 2.0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("n_masks", [30, 59, 61, 200])
def test_both_sides_agree_with_scikit_learn(n_masks: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(regression, "PENALTIES", (0.3,))
    removed, outputs, _ = linear(n_masks, 60, noise=1.0)
    fit = fit_ridge(removed, outputs)
    kept = 1.0 - removed.flags(np.arange(n_masks)).astype(np.float64)
    for example in range(3):
        penalty = float(fit.penalties[example])
        expected = Ridge(alpha=penalty).fit(kept, outputs[:, example].double().numpy())
        np.testing.assert_allclose(fit.weights[example].numpy(), expected.coef_, atol=2e-5)
        np.testing.assert_allclose(float(fit.intercept[example]), expected.intercept_, atol=2e-4)


@pytest.mark.parametrize("n_masks", [30, 100])
def test_held_out_predictions_are_those_of_fits_without_the_mask(n_masks: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(regression, "PENALTIES", (1.0,))
    removed, outputs, _ = linear(n_masks, 50, noise=1.0)
    fit = fit_ridge(removed, outputs)
    kept = 1.0 - removed.flags(np.arange(n_masks)).astype(np.float64)
    penalty = float(fit.penalties[0])
    for left_out in (0, 7, n_masks - 1):
        others = np.delete(np.arange(n_masks), left_out)
        model = Ridge(alpha=penalty).fit(kept[others], outputs[others, 0].double().numpy())
        found = model.predict(kept[left_out : left_out + 1])[0]
        np.testing.assert_allclose(float(fit.held_out[left_out, 0]), found, atol=1e-3)


@pytest.mark.parametrize("n_masks", [40, 200])
def test_scaling_an_output_scales_weights_and_a_constant_moves_the_intercept_only(n_masks: int):
    removed, outputs, _ = linear(n_masks, 60, noise=0.5)
    plain, scaled, moved = (fit_ridge(removed, y) for y in (outputs, 10 * outputs, outputs + 7))
    torch.testing.assert_close(scaled.weights, 10 * plain.weights, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(moved.weights, plain.weights, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(moved.intercept, plain.intercept + 7, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(
        *(pearson(fit.held_out, outputs, dim=0) for fit in (scaled, plain)), atol=1e-3, rtol=1e-3
    )


def test_least_squares_dips_where_masks_are_as_many_as_components_and_ridge_does_not(
    monkeypatch: pytest.MonkeyPatch,
):
    fresh, fresh_outputs, _ = linear(400, 100, noise=2.0)

    def correlation(n_masks: int) -> float:
        removed, outputs, _ = linear(n_masks, 100, noise=2.0)
        fit = fit_ridge(removed, outputs)
        return float(pearson(predicted(fresh, fit.weights, fit.intercept), fresh_outputs, dim=0).mean())

    ridge = [correlation(n) for n in (50, 101, 200)]
    assert ridge[0] < ridge[1] < ridge[2]
    monkeypatch.setattr(regression, "PENALTIES", (1e-9,))
    plain = [correlation(n) for n in (50, 101)]
    assert plain[1] < plain[0]


def test_standard_errors_have_the_size_of_the_spread_over_draws(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(regression, "PENALTIES", (1e-6,))
    removed, _, weights = linear(400, 20)
    kept = torch.from_numpy(~removed.flags(np.arange(400))).float()
    generator = torch.Generator().manual_seed(3)
    fits = [fit_ridge(removed, kept @ weights.T + torch.randn(400, 3, generator=generator)) for _ in range(60)]
    spread = torch.stack([fit.weights for fit in fits]).std(dim=0)
    stated = torch.stack([fit.errors for fit in fits if fit.errors is not None]).mean(dim=0)
    torch.testing.assert_close(stated, spread, atol=0, rtol=0.4)


def test_lasso_finds_the_few_components_that_matter():
    removed, _, _ = linear(150, 40)
    kept = torch.from_numpy(~removed.flags(np.arange(150))).float()
    truth = torch.zeros(2, 40)
    truth[0, 3], truth[1, [5, 8]] = 2.0, torch.tensor([1.0, -3.0])
    noise = 0.1 * torch.randn(150, 2, generator=torch.Generator().manual_seed(0))
    fit = fit_lasso(removed, kept @ truth.T + noise)
    torch.testing.assert_close(fit.weights, truth, atol=0.15, rtol=0)
    assert float(pearson(fit.held_out, kept @ truth.T, dim=0).min()) > 0.98


@pytest.mark.parametrize(("n_masks", "n_components"), [(400, 120), (150, 260), (200, 200)])
@pytest.mark.parametrize("share", [0.003, 1.0])
def test_what_is_too_large_to_factorise_has_the_same_weights_by_iteration(
    n_masks: int, n_components: int, share: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(regression, "PENALTIES", (share,))
    removed, outputs, _ = linear(n_masks, n_components, noise=1.0, n_examples=5)
    whole = fit_ridge(removed, outputs)
    monkeypatch.setattr(regression, "LARGEST_SIDE", 100)
    # two examples to a group
    monkeypatch.setattr(large_regression, "GROUP_BYTES", 2 * (80 * n_components + 40 * n_masks))
    large = fit_ridge(removed, outputs)
    for name in ("weights", "intercept", "penalties"):
        found, expected = getattr(large, name), getattr(whole, name)
        assert float((found - expected).norm() / expected.norm()) < 1e-4
    assert large.errors is None


def test_by_iteration_each_example_has_the_penalty_of_its_noise(monkeypatch: pytest.MonkeyPatch):
    """Examples of which one is all noise, one without any; what they predict is of the masks held out only."""
    removed, outputs, _ = linear(500, 100)
    generator = torch.Generator().manual_seed(5)
    outputs[:, 0] = torch.randn(500, generator=generator)
    outputs[:, 1] += 5 * torch.randn(500, generator=generator)
    whole = fit_ridge(removed, outputs)
    monkeypatch.setattr(regression, "LARGEST_SIDE", 50)
    large = fit_ridge(removed, outputs)
    assert float(large.penalties[0]) > float(large.penalties[1]) > float(large.penalties[2])
    chosen, best = ((fit.penalties.log() / np.log(3)) for fit in (large, whole))
    assert float((chosen - best)[1:].abs().max()) < 2.5  # two steps of the grid
    held = np.arange(500) % 5 == 4
    assert bool(torch.isfinite(large.held_out[held]).all())
    assert bool(torch.isnan(large.held_out[~held]).all())
    seen, left_out = (pearson(fit.held_out[held], outputs[held], dim=0) for fit in (large, whole))
    torch.testing.assert_close(seen, left_out, atol=0.1, rtol=0)
    training = Packed(removed.bits[~held], 100)
    monkeypatch.undo()
    monkeypatch.setattr(regression, "PENALTIES", (float(large.penalties[1]) / column_square(500, keep_mean(removed)),))
    apart = fit_ridge(training, outputs[~held])
    expected = predicted(Packed(removed.bits[held], 100), apart.weights, apart.intercept)
    torch.testing.assert_close(large.held_out[held][:, 1], expected[:, 1], atol=2e-3, rtol=0)


def test_by_iteration_a_component_that_no_mask_ablates_and_an_output_that_never_changes_weigh_nothing(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(regression, "LARGEST_SIDE", 20)
    removed, outputs, _ = linear(100, 40)
    flags = removed.flags(np.arange(100))
    flags[:, 7] = False
    outputs[:, 1] = 3.0
    fit = fit_ridge(Packed.of(flags), outputs)
    torch.testing.assert_close(fit.weights[:, 7], torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(fit.weights[1], torch.zeros(40), atol=1e-6, rtol=0)
    torch.testing.assert_close(fit.intercept[1], torch.tensor(3.0))


def test_an_iteration_that_does_not_converge_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(regression, "LARGEST_SIDE", 20)
    monkeypatch.setattr(large_regression, "_MOST_STEPS", 1)
    monkeypatch.setattr(large_regression, "_ROUNDS", 1)
    removed, outputs, _ = linear(60, 40, noise=1.0)
    with pytest.raises(ValueError, match="expected_gradient"):
        fit_ridge(removed, outputs)


def test_masks_in_chunks_of_rows_and_columns_are_the_masks(monkeypatch: pytest.MonkeyPatch):
    removed, _, _ = linear(50, 43)
    kept = 1.0 - torch.from_numpy(removed.flags(np.arange(50))).float()
    torch.testing.assert_close(keep_mean(removed), kept.mean(dim=0))
    monkeypatch.setattr(packed_masks, "AT_ONCE", 50 * 16 * 4)
    by_rows = [x for _, x in row_chunks(removed)]
    by_columns = [x for _, x in column_chunks(removed, keep_mean(removed))]
    assert [x.shape[1] for x in by_columns] == [16, 16, 11]
    assert len(by_rows) == 3
    assert torch.equal(torch.cat(by_rows), kept)
    torch.testing.assert_close(torch.cat(by_columns, dim=1), kept - kept.mean(dim=0))


def test_too_few_masks_are_refused():
    removed, outputs, _ = linear(3, 10)
    with pytest.raises(ValueError, match="too few"):
        fit_ridge(removed, outputs)


def test_masks_have_their_fraction_their_size_and_their_seed():
    n, p, fraction = 640, 50, 0.1
    drawn = draw_removals(n, p, fraction, "bernoulli", seed=0)
    assert abs(drawn.mean() - fraction) < 4 * (fraction * (1 - fraction) / (n * p)) ** 0.5
    fixed = draw_removals(n, p, fraction, "fixed", seed=0)
    assert set(fixed.sum(axis=1)) == {5}
    assert abs(fixed.mean(axis=0) - fraction).max() < 5 * (fraction * (1 - fraction) / n) ** 0.5
    np.testing.assert_array_equal(drawn, draw_removals(n, p, fraction, "bernoulli", seed=0))
    np.testing.assert_array_equal(drawn[:100], draw_removals(100, p, fraction, "bernoulli", seed=0))
    assert (drawn != draw_removals(n, p, fraction, "bernoulli", seed=1)).any()
    for wrong in (0.0, 1.0, 1.5):
        with pytest.raises(ValueError, match="between 0 and 1"):
            draw_removals(10, p, wrong, "bernoulli", seed=0)
    with pytest.raises(ValueError, match="another fraction"):
        draw_removals(10, 4, 0.05, "fixed", seed=0)
