"""Folders of tensors: whole or absent, and checked on reading."""

import hashlib
import json
import multiprocessing
import os
import pickle
from pathlib import Path

import pytest
import torch

from lens_ablation.errors import DamagedFile
from lens_ablation.files import MANIFEST, TENSORS, read_folder, write_folder

KIND = "example"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.int32)}
    return write_folder(tmp_path / "parent" / "result", KIND, tensors, {"seed": 3, "names": ["x", "y"]})


def test_reading_gives_back_what_was_written(folder: Path):
    tensors, settings = read_folder(folder, KIND)
    assert torch.equal(tensors["a"], torch.arange(6.0).reshape(2, 3))
    assert tensors["b"].dtype == torch.int32
    assert settings == {"seed": 3, "names": ["x", "y"]}
    assert sorted(os.listdir(folder)) == [MANIFEST, TENSORS]
    assert os.listdir(folder.parent) == ["result"]


def test_views_of_one_tensor_are_written_apart(tmp_path: Path):
    whole = torch.arange(4.0)
    write_folder(tmp_path / "views", KIND, {"front": whole[:2], "turned": whole.reshape(2, 2).T}, {})
    tensors, _ = read_folder(tmp_path / "views", KIND)
    assert tensors["turned"].tolist() == [[0, 2], [1, 3]]


def test_a_folder_written_here_is_replaced(folder: Path):
    write_folder(folder, KIND, {"c": torch.ones(1)}, {})
    assert list(read_folder(folder, KIND)[0]) == ["c"]
    assert os.listdir(folder.parent) == ["result"]


def test_other_peoples_folders_and_files_are_left_alone(tmp_path: Path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("all my work")
    with pytest.raises(FileExistsError, match=r"thesis holds other things \(chapter.tex\).*Choose a new folder"):
        write_folder(tmp_path / "thesis", KIND, {}, {})
    (tmp_path / "note").write_text("a file")
    with pytest.raises(FileExistsError, match="note is a file"):
        write_folder(tmp_path / "note", KIND, {}, {})
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "all my work"
    assert sorted(os.listdir(tmp_path)) == ["note", "thesis"]


def test_an_unwritable_place_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file/result: .*Choose a folder that may be written"):
        write_folder(tmp_path / "file" / "result", KIND, {}, {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; runs wherever the user is another")
def test_a_folder_without_permission_is_named(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=r"cannot write .*result: Permission denied"):
        write_folder(tmp_path / "result", KIND, {}, {})


@pytest.mark.parametrize("exists", [False, True])
def test_an_interrupt_while_writing_leaves_what_was_there(folder: Path, exists: bool, monkeypatch: pytest.MonkeyPatch):
    target = folder if exists else folder.parent / "other"

    def interrupted(source: object, destination: object) -> None:
        if destination == target:
            raise KeyboardInterrupt
        moved(source, destination)

    moved = os.rename
    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_folder(target, KIND, {"c": torch.ones(1)}, {})
    monkeypatch.undo()
    assert os.listdir(folder.parent) == ["result"]
    assert "a" in read_folder(folder, KIND)[0]


def test_settings_that_are_not_json_leave_nothing_behind(tmp_path: Path):
    with pytest.raises(TypeError):
        write_folder(tmp_path / "result", KIND, {}, {"model": object()})
    assert os.listdir(tmp_path) == []


def _write_many(folder: Path, number: int, rounds: int) -> None:
    for _ in range(rounds):
        write_folder(folder, KIND, {"n": torch.full((1000,), float(number))}, {"n": number})


def test_processes_that_write_and_read_at_once_never_see_a_mixture(tmp_path: Path):
    target = write_folder(tmp_path / "shared", KIND, {"n": torch.zeros(1000)}, {"n": 0})
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(target, n, 40)) for n in (1, 2)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        tensors, settings = read_folder(target, KIND)
        assert set(tensors["n"].tolist()) == {float(settings["n"])}
        seen.add(settings["n"])
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen & {1, 2}
    assert os.listdir(tmp_path) == ["shared"]


def _manifest(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / MANIFEST).read_text()) | changes
    (folder / MANIFEST).write_text(json.dumps(manifest))


def _damage(folder: Path, how: str) -> None:
    tensors = (folder / TENSORS).read_bytes()
    header = len(tensors) - 8
    match how:
        case "truncated":
            (folder / TENSORS).write_bytes(tensors[:-4])
        case "a byte flipped":
            (folder / TENSORS).write_bytes(tensors[:-1] + bytes([tensors[-1] ^ 1]))
        case "no tensors":
            (folder / TENSORS).unlink()
        case "no manifest":
            (folder / MANIFEST).unlink()
        case "manifest truncated":
            (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes()[:-20])
        case "manifest not text":
            (folder / MANIFEST).write_bytes(b"\xff\xfe\x00")
        case "manifest nested":
            (folder / MANIFEST).write_text("[" * 200_000)
        case "manifest a list":
            (folder / MANIFEST).write_text("[]")
        case "another format":
            _manifest(folder, format="something else")
        case "a newer version":
            _manifest(folder, version=2)
        case "another kind":
            _manifest(folder, kind="sweep")
        case "settings a list":
            _manifest(folder, settings=[1])
        case "size a truth value":
            _manifest(folder, bytes=True)
        case "tensors a link":
            (folder / TENSORS).rename(folder / "elsewhere")
            (folder / TENSORS).symlink_to(folder / "elsewhere")
        case "tensors a pipe":
            (folder / TENSORS).unlink()
            os.mkfifo(folder / TENSORS)
        case "header too long":
            _replace_tensors(folder, (2**62).to_bytes(8, "little") + tensors[8 : 8 + header])
        case "header not JSON":
            _replace_tensors(folder, (4).to_bytes(8, "little") + b"{{{{")
        case "offsets outside":
            head = json.dumps({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}).encode()
            _replace_tensors(folder, len(head).to_bytes(8, "little") + head)
        case "a pickle":
            _replace_tensors(folder, pickle.dumps({"a": _Explodes()}))
        case _:
            raise AssertionError(how)


class _Explodes:
    def __reduce__(self):
        return (os._exit, (1,))


def _replace_tensors(folder: Path, data: bytes) -> None:
    (folder / TENSORS).write_bytes(data)
    _manifest(folder, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "it was cut"),
        ("a byte flipped", "sha256"),
        ("no tensors", "tensors.safetensors is missing"),
        ("no manifest", "manifest.json is missing"),
        ("manifest truncated", "is not JSON"),
        ("manifest not text", "is not JSON"),
        ("manifest nested", "is not JSON"),
        ("manifest a list", "was not written by lens_ablation"),
        ("another format", "was not written by lens_ablation"),
        ("a newer version", "format version 2 and this lens_ablation reads 1"),
        ("another kind", "holds 'sweep', not 'example'"),
        ("settings a list", "no proper 'settings'"),
        ("size a truth value", "no proper 'bytes'"),
        ("tensors a link", "is a link or a device"),
        ("tensors a pipe", "is a link or a device"),
        ("header too long", "is no safetensors file"),
        ("header not JSON", "is no safetensors file"),
        ("offsets outside", "is no safetensors file"),
        ("a pickle", "is no safetensors file"),
    ],
)
def test_a_damaged_or_hostile_folder_is_refused_and_named(folder: Path, how: str, message: str):
    _damage(folder, how)
    with pytest.raises(DamagedFile, match=message) as refusal:
        read_folder(folder, KIND)
    assert str(folder) in str(refusal.value)


def test_a_field_that_is_missing_is_a_damaged_file(folder: Path):
    tensors, settings = read_folder(folder, KIND)
    with pytest.raises(DamagedFile, match="has no 'values'"):
        tensors["values"]
    with pytest.raises(DamagedFile, match="has no 'model'"):
        settings["model"]


def test_a_folder_that_is_not_there_is_not_found(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        read_folder(tmp_path / "nowhere", KIND)
