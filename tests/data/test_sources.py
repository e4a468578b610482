"""Rows of local files of every kind, and clear errors for the rest."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, config

from lens_ablation.data.sources import column_names, columns, is_on_hub, is_source, open_rows
from lens_ablation.errors import DamagedFile, UnknownName

pytestmark = [
    # datasets leaves the CSV files that it streams to the garbage collector
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <_io:pytest.PytestUnraisableExceptionWarning"),
]

TEXTS = ["one text", "another, text", "the last"]
TABLE = {"text": TEXTS, "n": [1, 2, 3]}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may reach the hub; ``datasets`` reads this setting when it is asked for a name."""
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)


@pytest.fixture(autouse=True, scope="module")
def _no_open_files() -> Iterator[None]:
    """Files that ``datasets`` left open are closed before another module's tests would be blamed."""
    yield
    gc.collect()


def write(kind: str, folder: Path) -> Path:
    path, dataset = folder / f"file.{kind}", Dataset.from_dict(TABLE)
    if kind == "parquet":
        dataset.to_parquet(path)
    elif kind in ("json", "jsonl"):
        dataset.to_json(path)
    elif kind == "csv":
        dataset.to_csv(path)
    else:
        path.write_text("\n".join(TEXTS))
    return path


@pytest.mark.parametrize("as_string", [True, False])
@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl", "csv", "txt"])
def test_files_give_their_texts(kind, as_string, tmp_path):
    path = write(kind, tmp_path)
    rows = open_rows(str(path) if as_string else path)
    assert [text for (text,) in columns(rows, ("text",))] == TEXTS
    assert "text" in column_names(rows)


def test_a_folder_gives_its_files_by_split(tmp_path):
    for split, texts in (("train", TEXTS[:2]), ("test", TEXTS[2:])):
        Dataset.from_dict({"text": texts}).to_parquet(tmp_path / f"{split}-0.parquet")
    assert [text for (text,) in columns(open_rows(tmp_path), ("text",))] == TEXTS[:2]
    assert [text for (text,) in columns(open_rows(tmp_path, split="test"), ("text",))] == TEXTS[2:]
    with pytest.raises(UnknownName, match="'validation'; nearest"):
        open_rows(tmp_path, split="validation")


def test_folders_of_save_to_disk(tmp_path):
    dataset = Dataset.from_dict(TABLE)
    dataset.save_to_disk(tmp_path / "one")
    DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(tmp_path / "parts")
    assert len(list(columns(open_rows(tmp_path / "one"), ("text",)))) == 3
    assert len(list(columns(open_rows(tmp_path / "parts", split="test"), ("text",)))) == 1


@pytest.mark.parametrize("make", [TEXTS.copy, lambda: Dataset.from_dict(TABLE), lambda: tuple(TEXTS)])
def test_data_in_memory(make):
    source = make()
    assert is_source(source)
    assert [text for (text,) in columns(open_rows(source), ("text",))] == TEXTS


def test_a_stream_is_read_anew_each_time():
    rows = Dataset.from_dict(TABLE).to_iterable_dataset()
    wanted = [(1, TEXTS[0]), (2, TEXTS[1]), (3, TEXTS[2])]
    assert [list(columns(rows, ("n", "text"))) for _ in range(2)] == [wanted, wanted]


def test_a_dataset_of_parts_needs_a_known_split():
    parts = DatasetDict({"train": Dataset.from_dict(TABLE)})
    assert len(list(columns(open_rows(parts), ("text",)))) == 3
    with pytest.raises(UnknownName, match="train"):
        open_rows(parts, split="trian")


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_missing_column_names_the_nearest(kind, tmp_path):
    with pytest.raises(UnknownName, match=r"unknown column 'txt'; nearest: text"):
        list(columns(open_rows(write(kind, tmp_path)), ("txt",)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.parquet", "there is no file or folder"),
        ("./missing", "there is no file or folder"),
        ("nobody/nothing", "the hub did not give it"),
    ],
)
def test_a_missing_source_is_named(name, message):
    with pytest.raises(ValueError, match=message):
        open_rows(name)
    assert is_on_hub(name)


def test_a_file_of_an_unknown_kind_is_refused(tmp_path):
    (tmp_path / "notes.docx").write_text("hello")
    with pytest.raises(ValueError, match=r"must end in one of \.parquet"):
        open_rows(tmp_path / "notes.docx")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no data"):
        open_rows(tmp_path)


def test_an_empty_dataset_is_refused():
    with pytest.raises(ValueError, match="no rows"):
        list(columns(Dataset.from_dict({"text": []}), ("text",)))


def test_lists_of_no_texts_are_refused():
    assert not is_source([])
    assert not is_source([1, 2])
    with pytest.raises(ValueError, match="expected texts"):
        open_rows([])


def test_a_truncated_parquet_file_is_named_damaged(tmp_path):
    path = write("parquet", tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DamagedFile, match="is damaged"):
        list(columns(open_rows(path), ("text",)))
