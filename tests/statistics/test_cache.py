"""Statistics on disk: found again by what they were measured on, refused for anything else."""

import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
import torch

import lens_ablation as la
from lens_ablation.errors import DamagedFile, StatisticsMismatch
from lens_ablation.files import TENSORS
from lens_ablation.statistics import (
    ActivationStatistics,
    Provenance,
    Smoothed,
    StatisticsCache,
    collect_statistics,
)
from tests.families import Family, build

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def gpt2() -> Family:
    return build("gpt2")


def collect(family: Family, folder: Path, seed: int = 0, **options) -> tuple[ActivationStatistics, int]:
    """Statistics by way of the cache, and how many rows were run for them."""
    told = []
    inputs = family.inputs(120, 5, seed=seed)
    found = collect_statistics(
        family.model,
        inputs,
        la.heads(family.model),
        cache=folder,
        progress=lambda done, total: told.append(done),
        **options,
    )
    return found, max(told, default=0)


def test_the_second_time_nothing_is_run(gpt2: Family, tmp_path: Path):
    first, n_first = collect(gpt2, tmp_path / "cache")
    second, n_second = collect(gpt2, tmp_path / "cache")
    assert (n_first, n_second) == (240, 0)
    for point in first:
        assert torch.equal(first[point].peak, second[point].peak)
        assert torch.equal(first[point].mean, second[point].mean)


def test_the_same_model_built_again_finds_its_statistics(gpt2: Family, tmp_path: Path):
    collect(gpt2, tmp_path)
    assert collect(build("gpt2"), tmp_path)[1] == 0


def test_another_batch_size_finds_them_too(gpt2: Family, tmp_path: Path):
    collect(gpt2, tmp_path)
    assert collect(gpt2, tmp_path, batch_size=3)[1] == 0


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 1},
        {"positions": "all_but_first"},
        {"peaks": Smoothed()},
        {"per_position": True},
        {"histograms": False},
    ],
    ids=str,
)
def test_other_data_or_settings_are_measured_anew(gpt2: Family, tmp_path: Path, options: dict[str, object]):
    collect(gpt2, tmp_path)
    assert collect(gpt2, tmp_path, **options)[1] > 0
    assert len(os.listdir(tmp_path)) == 2


def test_other_weights_dtype_and_processing_are_measured_anew(gpt2: Family, tmp_path: Path):
    collect(gpt2, tmp_path)
    changed = build("gpt2")
    with torch.no_grad():
        next(iter(changed.model.original_model.parameters())).mul_(1.001)
    others = [changed, build("gpt2", dtype=torch.float64)]
    if hasattr(gpt2.model, "enable_compatibility_mode"):
        folded = build("gpt2")
        folded.model.enable_compatibility_mode(disable_warnings=True)
        others.append(folded)
    for other in others:
        assert collect(other, tmp_path)[1] > 0
    assert len(os.listdir(tmp_path)) == 1 + len(others)


def test_a_small_entry_is_refused_where_small_is_not_allowed(gpt2: Family, tmp_path: Path):
    tokens, heads = gpt2.inputs(4, 5), la.heads(gpt2.model)
    collect_statistics(gpt2.model, tokens, heads, cache=tmp_path, allow_small=True, progress=False)
    with pytest.raises(ValueError, match="only 20 values"):
        collect_statistics(gpt2.model, tokens, heads, cache=tmp_path, progress=False)


def test_a_damaged_entry_is_an_error_that_names_it(gpt2: Family, tmp_path: Path):
    found, _ = collect(gpt2, tmp_path)
    path = StatisticsCache(tmp_path).path(found.provenance)
    (path / TENSORS).write_bytes((path / TENSORS).read_bytes()[:100])
    with pytest.raises(DamagedFile, match=path.name):
        collect(gpt2, tmp_path)


def test_an_entry_under_another_name_is_refused(gpt2: Family, tmp_path: Path):
    one, _ = collect(gpt2, tmp_path)
    two, _ = collect(gpt2, tmp_path, seed=1)
    cache = StatisticsCache(tmp_path)
    shutil.rmtree(cache.path(one.provenance))
    shutil.copytree(cache.path(two.provenance), cache.path(one.provenance))
    with pytest.raises(StatisticsMismatch, match=r"holds statistics of something else.*data"):
        cache.get(one.provenance)


def test_an_unwritable_cache_is_named(gpt2: Family, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file"):
        collect(gpt2, tmp_path / "file")


def _collect_in_a_process(folder: Path) -> None:
    family = build("gpt2")
    for seed in range(2):
        collect(family, folder, seed)


def test_two_processes_fill_one_cache_at_once(gpt2: Family, tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_collect_in_a_process, args=(tmp_path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(os.listdir(tmp_path)) == 2
    for seed in range(2):
        assert collect(gpt2, tmp_path, seed)[1] == 0


def test_statistics_of_another_model_are_refused_on_this_one(gpt2: Family, tmp_path: Path):
    found, _ = collect(gpt2, tmp_path)
    found.provenance.require_model(gpt2.model)
    with pytest.raises(StatisticsMismatch, match=r"measured on .* with model '[0-9a-f]{12}', and this model"):
        found.provenance.require_model(build("gpt2", seed=1).model)
    with pytest.raises(StatisticsMismatch, match=r"Collect again on this model"):
        found.provenance.require_model(build("llama").model)


def test_another_weight_processing_is_named_as_the_reason(gpt2: Family, tmp_path: Path):
    found, _ = collect(gpt2, tmp_path)
    folded = build("gpt2")
    folded.model.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(StatisticsMismatch, match=r"weight processing 'raw', and this model is .* with 'compatibility"):
        found.provenance.require_model(folded.model)


def test_a_provenance_comes_back_from_json(gpt2: Family, tmp_path: Path):
    provenance = collect(gpt2, tmp_path)[0].provenance
    again = Provenance.from_json(provenance.to_json())
    assert again == provenance
    assert again.digest == provenance.digest
    assert provenance.differences(again) == {}
