"""The report: one file that loads nothing, in which text is text."""

import re
from pathlib import Path

import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

from lens_ablation.plots import sweep_heatmap
from lens_ablation.report.html import Section, write_report
from lens_ablation.report.sections import sweep_section
from tests.plots.results import a_sweep

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def own_part(report: Path) -> str:
    """The page without plotly.js, which must be there exactly once."""
    page, library = report.read_text(encoding="utf-8"), get_plotlyjs()
    assert page.count(library) == 1
    return page.replace(library, "")


def test_it_holds_figures_tables_text_and_settings(tmp_path: Path):
    result = a_sweep()
    section = Section("Heads", ["Some words.", sweep_heatmap(result), result.to_dataframe(), {"seed": 0}])
    page = own_part(write_report(tmp_path, "Report", [section]))
    assert page.count("Plotly.newPlot") == 1
    for words in ("<p>Some words.</p>", '<td class="text">L2H3</td>', "&quot;seed&quot;: 0", "<h2>Heads</h2>"):
        assert words in page


def test_it_loads_nothing_from_anywhere(tmp_path: Path):
    results = [a_sweep(), a_sweep(method="Peak")]
    page = own_part(write_report(tmp_path, "Report", [sweep_section("Heads", results, "About.")]))
    assert not re.search(r"https?:|//[a-z]|\bsrc=|<link|@import|url\(", page)
    assert "default-src 'none'" in page


def test_text_is_never_markup(tmp_path: Path):
    hostile = a_sweep(method=HOSTILE, model=HOSTILE, task=HOSTILE)
    table = pd.DataFrame({HOSTILE: [HOSTILE]})
    section = Section(HOSTILE, [HOSTILE, table, {HOSTILE: HOSTILE}, sweep_heatmap(hostile)])
    page = own_part(write_report(tmp_path, HOSTILE, [section, section]))
    assert "<img" not in page
    assert "<script>alert" not in page
    assert page.count("<script") == page.count("</script>")


def test_a_folder_or_a_file_can_be_named(tmp_path: Path):
    assert write_report(tmp_path / "new", "Report", []) == tmp_path / "new" / "report.html"
    assert write_report(tmp_path / "own.html", "Report", []).name == "own.html"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["new", "own.html"]


def test_the_same_results_make_the_same_file(tmp_path: Path):
    files = [write_report(tmp_path / name, "Report", [Section("A", [sweep_heatmap(a_sweep())])]) for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_an_old_report_survives_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    report = write_report(tmp_path, "Old", [])
    monkeypatch.setattr("os.replace", lambda *names: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(OSError, match="no room"):
        write_report(tmp_path, "New", [])
    assert "<h1>Old</h1>" in report.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [report]
