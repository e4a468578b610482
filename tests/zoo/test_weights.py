"""The embedded models as they are shipped: measured again, not only loaded."""

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, ViTForImageClassification

from lens_ablation import zoo
from lens_ablation.data import corpus
from lens_ablation.errors import UnknownName
from lens_ablation.zoo.checkpoint import sha256
from lens_ablation.zoo.recipes import RECIPES

MEGABYTE = 1_000_000
AT_LEAST = {
    "tiny-lm": {
        "ioi_accuracy": 0.95,
        "greater_than_probability_difference": 0.8,
        "facts_top1": 0.95,
        "pronouns_accuracy": 0.95,
        "agreement_accuracy": 0.95,
    },
    "tiny-vit": {"held_out_accuracy": 0.97},
    "tiny-vit-backdoor": {"clean_accuracy": 0.95, "attack_success": 0.95},
    "tiny-vit-spurious": {"low_left_accuracy": 0.97, "high_right_accuracy": 0.97},
    "tiny-vit-typographic": {"unlabelled_accuracy": 0.9, "right_label_accuracy": 0.97},
}
AT_MOST = {
    "tiny-lm": {"induction_loss_ratio": 0.25},
    "tiny-vit": {},
    "tiny-vit-backdoor": {"triggered_accuracy": 0.05},
    "tiny-vit-spurious": {"worst_group_accuracy": 0.7},
    "tiny-vit-typographic": {"wrong_label_accuracy": 0.3},
}
LARGEST = {"tiny-lm": 4 * MEGABYTE}
"""Bytes of the weights of the models that may have more than a megabyte."""
TOLERANCE = 1e-3
"""Another processor may round differently; one prompt of 512 is 2e-3."""


@pytest.fixture(scope="module")
def measured():
    return {name: zoo.scores(name) for name in AT_LEAST}


@pytest.mark.parametrize("name", AT_LEAST)
def test_the_shipped_weights_reach_their_targets(name, measured):
    scores = measured[name]
    assert not {score: scores[score] for score, least in AT_LEAST[name].items() if scores[score] < least}
    assert not {score: scores[score] for score, most in AT_MOST[name].items() if scores[score] > most}


@pytest.mark.parametrize("name", AT_LEAST)
def test_the_card_tells_the_scores_of_the_shipped_weights(name, measured):
    assert measured[name] == pytest.approx(zoo.card(name)["scores"], abs=2 * TOLERANCE)


@pytest.mark.parametrize("name", AT_LEAST)
def test_the_card_tells_the_checksum_and_the_recipe(name):
    card, folder = zoo.card(name), zoo.path(name)
    assert sha256(folder / "model.safetensors") == card["sha256"]
    assert card["bytes"] == (folder / "model.safetensors").stat().st_size
    assert (card["steps"], card["seed"]) == (RECIPES[name].steps, RECIPES[name].seed)
    assert card["sha256"] in (folder / "README.md").read_text()


def test_all_embedded_models_are_listed_and_small():
    assert zoo.names() == sorted(AT_LEAST)
    sizes = [path.stat().st_size for name in zoo.names() for path in zoo.path(name).rglob("*")]
    assert sum(sizes) <= 6 * MEGABYTE
    assert not [name for name in zoo.names() if zoo.card(name)["bytes"] > LARGEST.get(name, MEGABYTE)]


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UnknownName, match=r"'tiny-ml'.*tiny-lm.*zoo\.names\(\)"):
        zoo.path("tiny-ml")


def test_no_weights_are_pickled():
    files = [path for name in zoo.names() for path in zoo.path(name).rglob("*")]
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"}]


def test_tiny_lm_has_the_shape_of_a_small_gpt2():
    config = AutoModelForCausalLM.from_pretrained(zoo.path("tiny-lm")).config
    assert (config.n_layer, config.n_head, config.n_embd, config.n_inner) == (4, 8, 128, 512)
    assert config.vocab_size == len(corpus.vocabulary())


def test_value_biases_of_tiny_lm_are_not_zero():
    weights = load_file(zoo.path("tiny-lm") / "model.safetensors")
    for layer in range(4):
        assert weights[f"transformer.h.{layer}.attn.c_attn.bias"][2 * 128 :].abs().mean() > 1e-3


@pytest.mark.parametrize("name", [name for name in AT_LEAST if name.startswith("tiny-vit")])
def test_vision_transformers_have_at_least_three_layers_of_four_heads(name):
    config = ViTForImageClassification.from_pretrained(zoo.path(name)).config
    assert config.num_hidden_layers >= 3
    assert config.num_attention_heads == 4


def test_the_shipped_tokenizer_knows_the_corpus_word_for_word():
    tokenizer = AutoTokenizer.from_pretrained(zoo.path("tiny-lm"))
    assert tokenizer.get_vocab() == corpus.vocabulary()
    for text in corpus.documents("prose", 5) + corpus.documents("code", 5):
        assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == text.split()
