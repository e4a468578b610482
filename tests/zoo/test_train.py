"""Training of the embedded models: resumable to the bit, and clear when it cannot go on."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lens_ablation.zoo import cards, checkpoint
from lens_ablation.zoo.flawed_vits import TinyVitBackdoor, TinyVitSpurious, TinyVitTypographic
from lens_ablation.zoo.recipes import RECIPES
from lens_ablation.zoo.tiny_lm import TinyLm
from lens_ablation.zoo.tiny_vit import TinyVit
from lens_ablation.zoo.train import main, train


@dataclass(frozen=True)
class ShortLm(TinyLm):
    """A few steps of tiny-lm, without its scores."""

    steps: int = 7
    words: int = 200

    def scores(self, folder: Path) -> dict[str, float]:
        return {"files": float(len(list(folder.iterdir())))}


@dataclass(frozen=True)
class ShortVit(TinyVit):
    """A few steps of tiny-vit."""

    steps: int = 7
    rows: int = 8


SHORT = [
    ShortLm(),
    ShortVit(),
    *(replace(recipe(), steps=7, rows=8) for recipe in (TinyVitBackdoor, TinyVitSpurious, TinyVitTypographic)),
]


def interrupt_at(step: int):
    def progress(done: int, total: int) -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress


def train_with_interruptions(recipe, output):
    for step in (3, 6):
        with pytest.raises(KeyboardInterrupt):
            train(recipe, output, checkpoint_every=2, progress=interrupt_at(step))
        assert not output.exists()
    return train(recipe, output, checkpoint_every=2, progress=False)


@pytest.mark.parametrize("recipe", SHORT, ids=lambda recipe: recipe.name)
def test_an_interrupted_training_ends_with_the_same_weights(recipe, tmp_path):
    whole = train(recipe, tmp_path / "whole", progress=False)
    resumed = train_with_interruptions(recipe, tmp_path / "resumed")
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()
    assert cards.read(whole)["sha256"] == cards.read(resumed)["sha256"]


def test_training_moves_the_value_biases_away_from_zero(tmp_path):
    weights = load_file(train(ShortLm(), tmp_path / "model", progress=False) / "model.safetensors")
    biases = weights["transformer.h.0.attn.c_attn.bias"][2 * 128 :]
    assert biases.abs().min() > 0


def test_a_finished_training_leaves_only_the_model(tmp_path):
    train(ShortVit(), tmp_path / "model", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_random_state_is_left_alone(tmp_path):
    before = torch.random.get_rng_state()
    train(ShortVit(), tmp_path / "model", progress=False)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(ShortVit(), tmp_path / "model", checkpoint_every=2, progress=interrupt_at(3))
    with pytest.raises(ValueError, match=r"made by other settings.*remove .* to start again"):
        train(replace(ShortVit(), seed=1), tmp_path / "model", progress=False)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "manifest"])
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    with pytest.raises(KeyboardInterrupt):
        train(ShortVit(), tmp_path / "model", checkpoint_every=2, progress=interrupt_at(3))
    folder = tmp_path / "model.checkpoint"
    (weights,) = folder.glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    if damage == "flipped":
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "truncated":
        weights.write_bytes(content[:-100])
    elif damage == "missing":
        weights.unlink()
    else:
        (folder / checkpoint.MANIFEST).write_text("{")
    with pytest.raises(ValueError, match="to start again"):
        train(ShortVit(), tmp_path / "model", progress=False)


def test_a_checkpoint_written_halfway_does_not_count(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(ShortVit(), tmp_path / "model", checkpoint_every=2, progress=interrupt_at(3))
    folder = tmp_path / "model.checkpoint"
    (folder / "step-000004.safetensors.partial").write_bytes(b"half")
    train(ShortVit(), tmp_path / "model", checkpoint_every=2, progress=False)
    assert cards.read(tmp_path / "model")["steps"] == 7


def test_progress_counts_every_step(tmp_path):
    seen = []
    train(ShortVit(), tmp_path / "model", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (7, 7)


def test_the_card_says_how_the_model_was_made(tmp_path):
    card = cards.read(train(ShortVit(), tmp_path / "model", progress=False))
    assert card["sha256"] == checkpoint.sha256(tmp_path / "model" / "model.safetensors")
    assert (card["steps"], card["seed"], card["rows"]) == (7, 0, 8)
    assert card["versions"]["torch"] == torch.__version__
    assert card["training_seconds"] > 0
    readme = (tmp_path / "model" / "README.md").read_text()
    assert card["sha256"] in readme
    assert f"lens_ablation.zoo.train tiny-vit --threads {torch.get_num_threads()}`" in readme


def test_the_command_trains_and_prints_the_scores(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    assert main(["tiny-vit", "--steps", "2", "--output", str(tmp_path / "vit")]) == 0
    assert "held_out_accuracy" in capsys.readouterr().out
    assert json.loads((tmp_path / "vit" / "config.json").read_text())["model_type"] == "vit"


@pytest.mark.parametrize("arguments", [["tiny-gpt"], ["tiny-vit", "--steps", "0"]])
def test_the_command_refuses_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_the_command_reports_a_foreign_checkpoint_without_a_traceback(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    folder = tmp_path / "vit.checkpoint"
    folder.mkdir()
    (folder / checkpoint.MANIFEST).write_text('{"step": 1}')
    assert main(["tiny-vit", "--steps", "2", "--output", str(tmp_path / "vit")]) == 1
    assert capsys.readouterr().err.startswith("error: the checkpoint in ")


def test_recipes_are_listed_under_their_own_names():
    assert all(recipe.name == name for name, recipe in RECIPES.items())


def test_the_command_names_a_folder_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    (tmp_path / "file").write_text("")
    assert main(["tiny-vit", "--steps", "2", "--output", str(tmp_path / "file" / "vit")]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err
