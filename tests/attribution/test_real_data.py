"""What the page on attribution says of GPT-2 and ImageNet runs on local checkpoints and files, word for word."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from lens_ablation.data import corpus
from lens_ablation.zoo.word_tokenizer import save_tokenizer, word_tokenizer
from tests.test_docs import ROOT, Block, blocks, run

pytestmark = pytest.mark.model

PAGE = ROOT / "docs" / "attribution.md"
CLASSES = ("cat", "dog", "fox", "hen", "owl", "pig")
SMALLER = {"500": "4", "512": "80", ', executor="processes", workers=8': ""}
"""Fewer examples and masks, and no worker processes, which take longer to start than this takes to run."""


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def the_block_with(name: str) -> Block:
    (found,) = [block for block in blocks(PAGE) if block.language == "py" and name in block.text]
    return found


def run_with(block: Block, changes: dict[str, str]) -> dict[str, Any]:
    """The names that a block defines when it runs with names of the hub and sizes replaced."""
    text = block.text
    for old, new in changes.items():
        assert old in text, f"the page no longer says {old}"
        text = text.replace(old, new)
    namespace: dict[str, Any] = {"__name__": "page"}
    run(Block(block.language, text, block.line), PAGE, namespace)
    return namespace


def written(folder: Path) -> dict[str, int]:
    """When each file below a folder was written."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def save_trained(model: Any, folder: Path) -> None:
    """A checkpoint whose biases are not all zero, which says that weights were folded."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.normal_(std=0.1)
    model.save_pretrained(folder)


def save_gpt2(folder: Path) -> None:
    tokenizer = word_tokenizer(corpus.vocabulary(), longest=64)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
    )
    save_trained(transformers.GPT2LMHeadModel(config), folder)
    save_tokenizer(tokenizer, folder)


def save_stories(folder: Path) -> None:
    folder.mkdir()
    lines = [json.dumps({"text": text}) + "\n" for text in corpus.documents("prose", 10, split="held_out")]
    (folder / "validation.jsonl").write_text("".join(lines), encoding="utf-8")


def save_vit(folder: Path) -> None:
    """A vision transformer of colour pictures, with its image processor."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=8,
        patch_size=4,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: index for index, name in enumerate(CLASSES)},
    )
    save_trained(transformers.ViTForImageClassification(config), folder)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")


def save_pictures(folder: Path, image: Any) -> None:
    """Ten pictures of each class, in a folder to a class."""
    random = np.random.default_rng(0)
    for name in CLASSES:
        (folder / "validation" / name).mkdir(parents=True)
        for i in range(10):
            pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            image.fromarray(pixels).save(folder / "validation" / name / f"{i}.png")


def test_gpt2_on_stories_as_the_page_says_and_the_store_continues(tmp_path: Path):
    save_gpt2(tmp_path / "gpt2")
    save_stories(tmp_path / "stories")
    block = the_block_with("TinyStories")
    changes = SMALLER | {'load_model("gpt2")': 'load_model("gpt2/")', "roneneldan/TinyStories": "stories"}
    whole = run_with(block, changes)
    assert whole["task"].n_examples == 4
    assert whole["found"].weights.shape == (4, 2 * (32 + 32 + 32 + 128))
    assert whole["found"].settings["masks"] == 80
    assert bool(torch.isfinite(whole["judged"].mean).all())

    shards = sorted((tmp_path / "runs" / "gpt2" / "gradients-64-80" / "shards").iterdir())
    for file in shards[-1].iterdir():
        file.unlink()
    shards[-1].rmdir()
    before = written(tmp_path / "runs")
    again = run_with(block, changes)
    after = written(tmp_path / "runs")
    assert {path: after[path] for path in before} == before
    assert {Path(path).parent for path in set(after) - set(before)} == {shards[-1]}
    assert torch.equal(again["found"].weights, whole["found"].weights)


def test_a_vision_transformer_on_folders_of_pictures_as_the_page_says(tmp_path: Path):
    image = pytest.importorskip("PIL.Image", reason="until Pillow is among the packages of the test environment")
    save_vit(tmp_path / "vit")
    save_pictures(tmp_path / "pictures", image)
    changes = SMALLER | {"google/vit-base-patch16-224": "vit", "ILSVRC/imagenet-1k": "pictures"}
    found = run_with(the_block_with("imagenet"), changes)
    assert found["task"].answers.tolist() == [0, 1, 2, 3]
    assert found["found"].weights.shape == (4, 2 * (4 * 32 + 48 + 32))
    assert len(list((tmp_path / "runs" / "vit").iterdir())) == 2
