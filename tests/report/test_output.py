"""Output folders: whole or not at all, and never in the place of somebody's files."""

from pathlib import Path

import pytest

from lens_ablation.report.output import MARKER, whole_folder


def test_the_folder_appears_when_the_block_ends(tmp_path: Path):
    target = tmp_path / "a" / "run"
    with whole_folder(target) as folder:
        (folder / "x").write_text("1")
        assert not target.exists()
    assert sorted(file.name for file in target.iterdir()) == [MARKER, "x"]
    assert list(target.parent.iterdir()) == [target]


def test_an_earlier_output_is_replaced_as_a_whole(tmp_path: Path):
    for name in ("x", "y"):
        with whole_folder(tmp_path / "run") as folder:
            (folder / name).write_text(name)
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == [MARKER, "y"]
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_whatever_stops_the_block_leaves_the_earlier_output(tmp_path: Path, stop: type[BaseException]):
    with whole_folder(tmp_path / "run") as folder:
        (folder / "x").write_text("old")

    def stopped() -> None:
        with whole_folder(tmp_path / "run") as folder:
            (folder / "x").write_text("half")
            raise stop

    with pytest.raises(stop):
        stopped()
    assert (tmp_path / "run" / "x").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]


def test_an_empty_folder_is_filled(tmp_path: Path):
    (tmp_path / "run").mkdir()
    with whole_folder(tmp_path / "run"):
        pass
    assert (tmp_path / "run" / MARKER).exists()


def entered(target: Path) -> None:
    with whole_folder(target):
        pytest.fail("the block was entered")


def test_a_folder_with_other_things_is_refused_before_any_work(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match=r"thesis\.tex.*Choose a new folder"):
        entered(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "thesis.tex"]


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        entered(tmp_path / "file")
    with pytest.raises(OSError, match="cannot write"):
        entered(tmp_path / "file" / "run")
