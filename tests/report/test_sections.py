"""Results as tables, lines and folders that load again."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from lens_ablation.report.html import write_report
from lens_ablation.report.sections import (
    curve_lines,
    file_name,
    pruning_section,
    save_curve,
    save_statistics,
    save_sweep,
    statistics_section,
    strongest,
    sweep_lines,
)
from lens_ablation.statistics.activation_statistics import ActivationStatistics
from lens_ablation.studies.pruning import PruningCurve
from lens_ablation.studies.sweep import SweepResult
from tests.plots.results import a_curve, a_measurement, a_sweep


def test_the_strongest_sites_come_first_whatever_their_sign():
    effects = torch.zeros(12)
    effects[5], effects[7], effects[0] = -3.0, 2.0, torch.nan
    found = strongest(a_sweep(effects=effects), 2)
    assert [effect.site for effect in found] == ["L1H1", "L1H3"]
    assert found[0].low <= found[0].effect <= found[0].high < 0
    assert str(found[0]).startswith("L1H1 −3.00 [−3.")
    assert str(found[1]).startswith("L1H3 +2.00 [+1.9")


def test_lines_for_a_terminal():
    assert sweep_lines(a_sweep(), 3)[0] == "Zero: change of logit difference (logits), with its 95 % interval"
    assert len(sweep_lines(a_sweep(), 3)) == 4
    lines = curve_lines(a_curve())
    assert lines[1].split() == ["removed", "Zero", "Peak"]
    assert [line.split()[0] for line in lines[2:]] == ["0%", "23%", "50%", "100%"]


def test_saved_results_load_again_and_have_their_tables(tmp_path: Path):
    sweep, curve, statistics = a_sweep(), a_curve(), a_measurement()
    save_sweep(tmp_path, "tiny ioi", sweep)
    save_curve(tmp_path, "tiny ioi pruning", curve)
    save_statistics(tmp_path, "statistics", statistics)
    results, tables = tmp_path / "results", tmp_path / "tables"
    assert torch.equal(SweepResult.load(results / "tiny-ioi-zero").values, sweep.values)
    assert torch.equal(PruningCurve.load(results / "tiny-ioi-pruning").values, curve.values)
    assert len(ActivationStatistics.load(results / "statistics")) == 1
    assert list(pd.read_csv(tables / "tiny-ioi-zero.csv")["site"][:2]) == ["L0H0", "L0H1"]
    assert len(pd.read_csv(tables / "tiny-ioi-pruning.csv")) == curve.values[..., 0].numel()
    assert len(pd.read_csv(tables / "statistics.csv")) == 6


def test_a_statistics_section_shows_where_mean_and_peak_lie_furthest_apart(tmp_path: Path):
    statistics = a_measurement()
    section = statistics_section("Activations", statistics)
    table = next(part for part in section.parts if isinstance(part, pd.DataFrame))
    assert table["site"][0] == "L1H0.z2"
    distances = table.iloc[:, -1]
    assert list(distances) == sorted(distances, reverse=True)
    assert write_report(tmp_path, "Report", [section]).exists()


def test_a_pruning_section_has_means_over_seeds():
    curve = a_curve()
    table = next(part for part in pruning_section("Pruning", curve, "").parts if isinstance(part, pd.DataFrame))
    assert list(table.columns) == ["removed (%)", "removed", "Zero", "Peak"]
    assert table["Peak"].tolist() == pytest.approx(curve.mean[1].mean(dim=0).tolist())


def test_file_names_are_plain():
    assert file_name("sweep Resample (other examples)/../x") == "sweep-resample-other-examples-x"
