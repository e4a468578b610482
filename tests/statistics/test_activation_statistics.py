"""The result of a measurement: table, shapes, saving, loading, and refusals of changed files."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import lens_ablation as la
from lens_ablation.errors import DamagedFile, StatisticsMismatch
from lens_ablation.files import MANIFEST, TENSORS, read_folder, write_folder
from lens_ablation.sites import HookPoint
from lens_ablation.statistics import ActivationStatistics, Averaged, PeakEstimator, collect_statistics
from tests.families import D_HEAD, D_MLP, N_HEADS, Family, build

pytestmark = pytest.mark.model
KIND = "activation-statistics"
PARTS = ("count", "mean", "variance", "minimum", "maximum", "skewness", "kurtosis", "zero_share", "peak", "bin_width")


@pytest.fixture(scope="module")
def gpt2() -> Family:
    return build("gpt2")


@pytest.fixture(scope="module")
def measured(gpt2: Family) -> ActivationStatistics:
    return collect(gpt2, per_position=True)


def collect(family: Family, **options) -> ActivationStatistics:
    sites = [la.heads(family.model)[:2], la.neurons(family.model)[0], la.patterns(family.model)[1]]
    return collect_statistics(family.model, family.inputs(120, 5), sites, progress=False, **options)


def assert_same(a: ActivationStatistics, b: ActivationStatistics) -> None:
    assert a.provenance == b.provenance
    assert list(a) == list(b)
    for point in a:
        for name in (*PARTS, "position_mean"):
            first, second = getattr(a[point], name), getattr(b[point], name)
            assert (first is None) == (second is None)
            if first is not None:
                torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
        if a[point].histogram is not None:
            assert torch.equal(a[point].histogram.counts, b[point].histogram.counts)


@pytest.mark.parametrize("options", [{}, {"histograms": False}, {"per_position": True}, {"peaks": Averaged((10, 20))}])
def test_loading_gives_back_what_was_saved(gpt2: Family, tmp_path: Path, options: dict[str, object]):
    found = collect(gpt2, **options)
    found.save(tmp_path / "statistics")
    again = ActivationStatistics.load(tmp_path / "statistics")
    assert_same(found, again)
    assert again.estimator == found.estimator


def test_a_loaded_shard_still_merges(gpt2: Family, tmp_path: Path):
    heads, parts = la.heads(gpt2.model), gpt2.inputs(120, 5).split(60)
    shards = [collect_statistics(gpt2.model, part, heads, histograms=False, progress=False) for part in parts]
    for number, shard in enumerate(shards):
        shard.save(tmp_path / str(number))
    loaded = [ActivationStatistics.load(tmp_path / str(number)) for number in (0, 1)]
    assert_same(loaded[0].merge(loaded[1]), shards[0].merge(shards[1]))


def test_a_hook_is_found_by_point_and_by_name(measured: ActivationStatistics):
    assert measured["blocks.0.attn.hook_z"] is measured[HookPoint("z", 0)]
    assert len(measured) == 4
    with pytest.raises(StatisticsMismatch, match=r"nothing on blocks.2.attn.hook_z; they hold blocks.0.attn.hook_z"):
        measured["blocks.2.attn.hook_z"]


def test_the_table_has_a_row_to_a_coordinate(measured: ActivationStatistics):
    table = measured.to_dataframe()
    n_pattern = N_HEADS * 5 * 5
    assert len(table) == 2 * N_HEADS * D_HEAD + D_MLP + n_pattern
    z = table[table["hook"] == "blocks.1.attn.hook_z"]
    row = z[(z["head"] == 2) & (z["unit"] == 3)].iloc[0]
    statistics = measured["blocks.1.attn.hook_z"]
    for name in PARTS:
        assert row[name] == pytest.approx(float(getattr(statistics, name)[2, 3]), nan_ok=True)
    assert row["layer"] == 1
    assert row["shape"] == statistics.shapes[2, 3]
    pattern = table[table["hook"] == "blocks.1.attn.hook_pattern"]
    assert set(zip(pattern["query"], pattern["key"], strict=True)) == set(np.ndindex(5, 5))


def test_shapes_are_given_by_hook(measured: ActivationStatistics):
    labels = measured.shapes()
    assert labels[HookPoint("z", 0)].shape == (N_HEADS, D_HEAD)
    future = np.triu(np.ones((5, 5), dtype=bool), 1)
    assert (labels[HookPoint("pattern", 1)][:, future] == "point mass").all()


def test_the_printed_form_is_one_line(measured: ActivationStatistics):
    assert repr(measured).endswith("4 hooks, 212 coordinates, 600 samples, peaks OwnRange(bins=100))")


class _Lowest:
    """An estimator of a user's own."""

    n_passes = 1
    kept_bins = 10

    def measure(self, known):
        yield ()
        return known.own.lowest

    def from_histogram(self, histogram):
        return histogram.lowest

    def __repr__(self) -> str:
        return "Lowest()"


def test_an_estimator_of_ones_own_works_and_is_not_rebuilt_from_a_file(gpt2: Family, tmp_path: Path):
    own = _Lowest()
    assert isinstance(own, PeakEstimator)
    found = collect(gpt2, peaks=own)
    for point in found:
        assert torch.equal(found[point].peak, found[point].minimum.float())
        assert (found[point].histogram.counts.sum(-1) == found[point].count).all()
    found.save(tmp_path / "own")
    loaded = ActivationStatistics.load(tmp_path / "own")
    assert_same(found, loaded)
    assert loaded.estimator is None


def rewritten(folder: Path, change) -> None:
    """Write the folder again, well formed, after changing what is in it."""
    tensors, settings = read_folder(folder, KIND)
    tensors, settings = dict(tensors), json.loads(json.dumps(settings))
    change(tensors, settings)
    write_folder(folder, KIND, tensors, settings)


HOOK = "blocks.0.attn.hook_z"
CHANGES = {
    "a tensor missing": lambda t, s: t.pop(f"{HOOK}/moments/m3"),
    "all tensors missing": lambda t, s: t.clear(),
    "a tensor too small": lambda t, s: t.update({f"{HOOK}/moments/m2": torch.zeros(2, dtype=torch.float64)}),
    "a tensor of another type": lambda t, s: t.update({f"{HOOK}/peak": torch.zeros(4, 8, dtype=torch.int64)}),
    "counts in float": lambda t, s: t.update({f"{HOOK}/histogram/counts": t[f"{HOOK}/histogram/counts"].float()}),
    "a count of no axes": lambda t, s: t.update({f"{HOOK}/moments/count": torch.tensor(3)}),
    "points missing": lambda t, s: s.pop("points"),
    "points a number": lambda t, s: s.update(points=3),
    "points of text": lambda t, s: s.update(points=["z0"]),
    "an unknown hook": lambda t, s: s.update(points=[["../../etc/passwd", 0]]),
    "a layer of text": lambda t, s: s.update(points=[["z", "0"]]),
    "no provenance": lambda t, s: s.update(provenance=None),
    "provenance with more": lambda t, s: s["provenance"].update(extra=1),
    "provenance of lists": lambda t, s: s["provenance"].update(model=["x"]),
    "an estimator of text": lambda t, s: s.update(estimator="OwnRange"),
    "an estimator with wrong settings": lambda t, s: s.update(estimator=["OwnRange", {"bins": -5}]),
    "an estimator with other settings": lambda t, s: s.update(estimator=["OwnRange", {"shell": "rm"}]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_well_formed_file_with_other_content_is_refused(measured: ActivationStatistics, tmp_path: Path, change):
    measured.save(tmp_path / "statistics")
    rewritten(tmp_path / "statistics", change)
    with pytest.raises(DamagedFile, match="statistics"):
        ActivationStatistics.load(tmp_path / "statistics")


def test_a_result_of_another_kind_is_refused(tmp_path: Path):
    write_folder(tmp_path / "sweep", "sweep", {}, {})
    with pytest.raises(DamagedFile, match="holds 'sweep', not 'activation-statistics'"):
        ActivationStatistics.load(tmp_path / "sweep")


def test_a_truncated_file_is_refused(measured: ActivationStatistics, tmp_path: Path):
    folder = measured.save(tmp_path / "statistics")
    data = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(data[: len(data) // 2])
    with pytest.raises(DamagedFile, match="it was cut"):
        ActivationStatistics.load(folder)


def test_files_are_plain_safetensors_and_json(measured: ActivationStatistics, tmp_path: Path):
    folder = measured.save(tmp_path / "statistics")
    tensors = safetensors.torch.load_file(folder / TENSORS)
    assert tensors[f"{HOOK}/peak"].shape == (N_HEADS, D_HEAD)
    provenance = json.loads((folder / MANIFEST).read_text())["settings"]["provenance"]
    assert provenance["positions"] == "all"
    assert "torch" in provenance["versions"]
