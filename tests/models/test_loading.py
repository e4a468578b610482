"""Loading models from folders that save_pretrained wrote, and what identifies them."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

import lens_ablation as la
from lens_ablation.errors import UnknownName
from lens_ablation.models.fingerprint import fingerprint, tokenizer_fingerprint, weight_processing
from tests.families import D_VOCAB, build, plain_model

pytestmark = pytest.mark.model
SAVED = ["gpt2", "llama", "opt", "bert", "vit"]


def save_tokenizer(folder: Path) -> None:
    words = {"<bos>": 0, "<pad>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, D_VOCAB)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<bos>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)


def saved(name: str, folder: Path) -> torch.nn.Module:
    plain = plain_model(name)
    plain.save_pretrained(folder)
    if name != "vit":
        save_tokenizer(folder)
    return plain


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_folder_gives_the_logits_of_the_plain_model(name: str, tmp_path: Path):
    plain = saved(name, tmp_path)
    model = la.load_model(tmp_path)
    inputs = build(name).inputs()
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), plain(inputs).logits, atol=1e-5, rtol=1e-5)
    assert not model.training
    assert weight_processing(model) == "raw"
    assert model.cfg.model_name == tmp_path.name
    assert la.check_sites(model).dead == []


def test_compatibility_processing_is_asked_for_and_recorded(tmp_path: Path):
    saved("gpt2", tmp_path)
    model = la.load_model(tmp_path, processing="compatibility")
    assert "compatibility" in weight_processing(model)
    assert "folded value biases" in weight_processing(model)


def test_embedded_models_load_like_any_folder():
    model = la.load_model("tiny-lm")
    logits = model("When Mary and John went to the store , John gave a drink to")
    assert logits.shape == (1, 15, model.cfg.d_vocab)  # fourteen words after <bos>
    assert model.to_string(logits[0, -1].argmax()).strip() == "Mary"
    assert la.load_model("tiny-vit")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_dtype_is_the_one_asked_for(tmp_path: Path):
    saved("gpt2", tmp_path)
    model = la.load_model(tmp_path, dtype=torch.bfloat16)
    assert next(iter(model.parameters())).dtype == torch.bfloat16


def test_what_cannot_be_loaded_says_what_to_do(tmp_path: Path):
    with pytest.raises(UnknownName, match=r"nearest: tiny-lm.*hub failed"):
        la.load_model("tiny-lmm")
    with pytest.raises(UnknownName, match="there is no folder"):
        la.load_model(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"no config\.json"):
        la.load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nonsense"}))
    with pytest.raises(ValueError, match="could not be loaded"):
        la.load_model(tmp_path)


def test_fingerprint_follows_the_weights_and_nothing_else(tmp_path: Path):
    saved("gpt2", tmp_path)
    first, again = la.load_model(tmp_path), la.load_model(tmp_path)
    assert fingerprint(first) == fingerprint(again)
    assert tokenizer_fingerprint(first) == tokenizer_fingerprint(again) != "none"
    with torch.no_grad():
        next(iter(again.parameters()))[0] += 1e-3
    assert fingerprint(first) != fingerprint(again)


def test_fingerprint_is_that_of_the_checkpoint_not_of_its_wrapping(tmp_path: Path):
    saved("gpt2", tmp_path)
    assert fingerprint(la.load_model(tmp_path)) == fingerprint(build("gpt2").model)


def test_a_model_made_in_inference_mode_is_read_anew_each_time():
    with torch.inference_mode():
        model = build("gpt2").model
        before = fingerprint(model)
        next(iter(model.parameters()))[0] += 1e-3
        assert fingerprint(model) != before
