"""What measured numbers are kept by the scripts that measure for the pages."""

import json
from pathlib import Path

import pytest


def test_a_part_is_measured_anew_and_others_are_kept(docs_script, tmp_path: Path):
    measure, path = docs_script("measured.py")["measure"], tmp_path / "found.json"
    makers = {"one": lambda: [1.5], "two": lambda: {"a": None}}
    measure(path, makers, [], {"n": 3})
    measure(path, makers | {"one": lambda: [2.5]}, ["one"], {"n": 4})
    found = json.loads(path.read_text())
    assert (found["one"], found["two"], found["settings"]["n"]) == ([2.5], {"a": None}, 4)
    assert set(found["settings"]["minutes"]) == {"one", "two"}
    assert path.read_text().count("\n") == 1


def test_what_was_measured_is_there_after_a_later_part_failed(docs_script, tmp_path: Path):
    path = tmp_path / "found.json"

    def failing() -> None:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        docs_script("measured.py")["measure"](path, {"one": lambda: [1], "two": failing}, [], {})
    assert json.loads(path.read_text())["one"] == [1]


def test_a_word_measures_the_rows_that_have_it_and_keeps_the_others(docs_script, tmp_path: Path):
    measure, path = docs_script("measured.py")["measure"], tmp_path / "found.json"

    def edits(word: str = "", value: int = 1) -> list[dict]:
        return [{"task": task, "value": value} for task in ("digit 1", "digit 2", "label") if word in task]

    measure(path, {"edits": edits}, [], {}, labels={"edits": "task"}, indent=1)
    measure(path, {"edits": lambda word: edits(word, 2)}, ["edits=digit"], {}, labels={"edits": "task"}, indent=1)
    rows = json.loads(path.read_text())["edits"]
    assert {row["task"]: row["value"] for row in rows} == {"label": 1, "digit 1": 2, "digit 2": 2}
    assert path.read_text().startswith('{\n "edits"')


def test_parts_that_are_not_there_are_refused_before_anything_is_measured(docs_script, tmp_path: Path):
    path = tmp_path / "found.json"
    for asked, wrong in (["one", "three"], "three"), (["one=word"], "one"):
        with pytest.raises(ValueError, match=f"cannot measure {wrong}; parts are one"):
            docs_script("measured.py")["measure"](path, {"one": lambda: [1]}, asked, {})
    assert not path.exists()
