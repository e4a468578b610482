"""Stores of shards: of one job only, whole or not at all, and checked when they are read."""

import json
import logging
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

import lens_ablation as la
from lens_ablation.engine import store as stores
from lens_ablation.engine.store import PLAN, SHARDS, open_store
from lens_ablation.errors import DamagedFile, StoreMismatch
from lens_ablation.files import MANIFEST, TENSORS
from tests.engine.jobs import ToyJob
from tests.families import build


@pytest.fixture
def job(tmp_path: Path) -> ToyJob:
    (tmp_path / "marks").mkdir()
    return ToyJob(rows=(2, 3, 1), marks=tmp_path / "marks")


def test_shards_are_kept_and_found_again(tmp_path: Path, job: ToyJob):
    store = open_store(tmp_path / "deep" / "store", job)
    store.write(1, job.run(1))
    again = open_store(tmp_path / "deep" / "store", job)
    assert again == store
    assert again.listed() == {1}
    assert torch.equal(again.read(1)["values"], job.run(1)["values"])
    assert again.find(0) is None
    with pytest.raises(FileNotFoundError):
        again.read(0)
    assert sorted(os.listdir(store.path)) == [PLAN, SHARDS]


def test_an_empty_folder_becomes_a_store(tmp_path: Path, job: ToyJob):
    (tmp_path / "store").mkdir()
    assert open_store(tmp_path / "store", job).listed() == set()


def test_a_store_is_found_from_the_home_folder(tmp_path: Path, job: ToyJob, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/store", job).path == tmp_path / "store"


def test_another_plan_is_refused_and_the_difference_named(tmp_path: Path, job: ToyJob):
    store = open_store(tmp_path / "store", job)
    store.write(0, job.run(0))
    before = {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()}
    other = ToyJob(rows=(2, 3, 1, 4), marks=job.marks, seed=7)
    with pytest.raises(StoreMismatch) as caught:
        open_store(store.path, other)
    text = str(caught.value)
    assert "identity.seed was 0 and is 7" in text
    assert "shards was [2, 3, 1] and is [2, 3, 1, 4]" in text
    assert "method" not in text
    assert "Choose another folder, or delete this one" in text
    assert before == {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()}


def test_another_version_is_refused(tmp_path: Path, job: ToyJob, monkeypatch: pytest.MonkeyPatch):
    open_store(tmp_path / "store", job)
    monkeypatch.setattr(stores, "version", lambda name: "99.0")
    with pytest.raises(StoreMismatch, match=r'lens_ablation was "0.*" and is "99.0"'):
        open_store(tmp_path / "store", job)
    monkeypatch.undo()
    monkeypatch.setattr(stores, "VERSION", 2)
    with pytest.raises(StoreMismatch, match="version was 1 and is 2"):
        open_store(tmp_path / "store", job)


class Described(ToyJob):
    """A job of any identity."""

    description: dict[str, object]

    @property
    def identity(self) -> dict[str, object]:
        return self.description


def described(tmp_path: Path, identity: dict[str, object]) -> Described:
    made = Described(rows=(1,), marks=tmp_path)
    object.__setattr__(made, "description", identity)
    return made


def test_long_values_are_shown_where_they_differ(tmp_path: Path):
    open_store(tmp_path / "store", described(tmp_path, {"layers": [*range(500), 1], "gone": 1}))
    with pytest.raises(StoreMismatch) as caught:
        open_store(tmp_path / "store", described(tmp_path, {"layers": [*range(500), 2], "new": 2}))
    text = str(caught.value)
    assert "498, 499, 1]" in text
    assert "498, 499, 2]" in text
    assert "identity.gone was 1 and is absent" in text
    assert "identity.new was absent and is 2" in text
    assert len(text) < 600


def test_many_differences_are_counted(tmp_path: Path):
    open_store(tmp_path / "store", described(tmp_path, {f"f{n}": 0 for n in range(20)}))
    with pytest.raises(StoreMismatch, match="12 more fields differ"):
        open_store(tmp_path / "store", described(tmp_path, {f"f{n}": 1 for n in range(20)}))


@pytest.mark.parametrize("identity", [{"peak": float("nan")}, {"pair": (1, 2)}, {"ä": {"deep": {}}}, {}])
def test_an_identity_equals_itself(tmp_path: Path, identity: dict[str, object]):
    first = open_store(tmp_path / "store", described(tmp_path, identity))
    assert open_store(tmp_path / "store", described(tmp_path, identity)) == first


def test_an_identity_that_is_not_json_leaves_nothing_behind(tmp_path: Path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        open_store(tmp_path / "store", described(tmp_path, {"model": object()}))
    assert not (tmp_path / "store").exists()


def test_foreign_folders_are_refused_untouched(tmp_path: Path, job: ToyJob):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("all my work")
    with pytest.raises(StoreMismatch, match=r"thesis holds other things \(chapter.tex\) and no plan.json"):
        open_store(tmp_path / "thesis", job)
    assert os.listdir(tmp_path / "thesis") == ["chapter.tex"]
    with pytest.raises(StoreMismatch, match=r"chapter.tex is a file"):
        open_store(tmp_path / "thesis" / "chapter.tex", job)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON"),
        ("[" * 200_000, "is not JSON"),
        ("[]", "not written by lens_ablation"),
        ('{"format": "roadmap"}', "not written by lens_ablation"),
        ("\udcff", "is not JSON"),
    ],
)
def test_foreign_and_damaged_plans_are_refused_untouched(tmp_path: Path, job: ToyJob, content: str, says: str):
    plan = tmp_path / "store" / PLAN
    plan.parent.mkdir()
    plan.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(StoreMismatch, match=says):
        open_store(plan.parent, job)
    assert plan.read_bytes() == content.encode(errors="surrogateescape")


def test_a_plan_without_fields_is_another_one(tmp_path: Path, job: ToyJob):
    store = open_store(tmp_path / "store", job)
    (store.path / PLAN).write_text(json.dumps({"format": stores.FORMAT}))
    with pytest.raises(StoreMismatch, match="version was absent and is 1"):
        open_store(store.path, job)


@pytest.mark.parametrize("how", ["truncated", "flipped", "gone", "no manifest", "another job", "another shard"])
def test_damaged_shards_are_told_and_computed_again(
    tmp_path: Path, job: ToyJob, how: str, caplog: pytest.LogCaptureFixture
):
    store = open_store(tmp_path / "store", job)
    store.write(1, job.run(1))
    tensors = store.folder(1) / TENSORS
    match how:
        case "truncated":
            tensors.write_bytes(tensors.read_bytes()[:-9])
        case "flipped":
            data = bytearray(tensors.read_bytes())
            data[-5] ^= 4
            tensors.write_bytes(data)
        case "gone":
            tensors.unlink()
        case "no manifest":
            (store.folder(1) / MANIFEST).unlink()
        case "another job":
            other = ToyJob(rows=job.rows, marks=job.marks, seed=5)
            stranger = open_store(tmp_path / "other", other)
            stranger.write(1, other.run(1))
            shutil.rmtree(store.folder(1))
            shutil.copytree(stranger.folder(1), store.folder(1))
        case "another shard":
            store.write(0, job.run(0))
            shutil.rmtree(store.folder(1))
            shutil.copytree(store.folder(0), store.folder(1))
    with pytest.raises(DamagedFile):
        store.read(1)
    assert store.find(1) is None
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert store.find(1, warn=True) is None
    assert "shard 1 is computed again" in caplog.text
    store.write(1, job.run(1))
    assert torch.equal(store.read(1)["values"], job.run(1)["values"])


def test_leftovers_of_killed_writers_go_and_those_of_live_ones_stay(tmp_path: Path, job: ToyJob):
    store = open_store(tmp_path / "store", job)
    store.write(0, job.run(0))
    old, young = store.path / SHARDS / ".000001.aa.new", store.path / SHARDS / ".000002.bb.new"
    for folder in (old, young):
        folder.mkdir()
        (folder / TENSORS).write_bytes(b"half")
    past = time.time() - 2 * stores.STALE_SECONDS
    os.utime(old, (past, past))
    assert open_store(store.path, job).listed() == {0}
    assert not old.exists()
    assert young.exists()


def test_a_plan_that_was_never_finished_is_no_obstacle(tmp_path: Path, job: ToyJob):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / f".{PLAN}.cc.new").write_text("{")
    assert open_store(tmp_path / "store", job).listed() == set()


def test_an_unwritable_place_is_named(tmp_path: Path, job: ToyJob):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*Choose a folder that may be written"):
        open_store(tmp_path / "file" / "store", job)


@pytest.mark.model
def test_another_function_of_the_same_name_is_another_metric(tmp_path: Path):
    family = build("gpt2")
    task = la.Task(inputs=family.inputs(n=2), answers=torch.tensor([1, 2]))
    heads, engine = la.heads(family.model), la.Engine(store=tmp_path / "store")

    def sweep(metric) -> la.SweepResult:
        return la.sweep(family.model, task, heads, la.Zero(), metric=metric, engine=engine, progress=False)

    def logit_of(token: int):
        return lambda logits, batch: logits[:, -1, token]

    first = sweep(logit_of(0))
    assert torch.equal(sweep(logit_of(0)).values, first.values)
    with pytest.raises(StoreMismatch, match="metric"):
        sweep(lambda logits, batch: logits[:, -1, 0] * 2)
    with pytest.raises(StoreMismatch, match="metric"):
        sweep(logit_of(1))


def test_a_store_is_refused_while_other_hooks_are_on_the_model(tmp_path: Path):
    """Two runs under other hooks have one identity, so the second would find the numbers of the first."""
    family = build("gpt2")
    task = la.Task(inputs=family.inputs(n=2), answers=torch.arange(2))
    heads, store = la.heads(family.model), la.Engine(store=tmp_path / "store")
    with la.ablate(family.model, heads[0, 0], la.Zero()), pytest.raises(ValueError, match=r"at blocks.0.attn.hook_z"):
        la.sweep(family.model, task, heads[1], la.Zero(), engine=store, progress=False)
    la.sweep(family.model, task, heads[1], la.Zero(), engine=store, progress=False)
