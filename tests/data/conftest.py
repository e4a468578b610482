"""Small models with tokenizers, built offline and loaded as a user would load them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lens_ablation.data import corpus
from lens_ablation.models.loading import load_model
from lens_ablation.models.protocol import LensModel
from lens_ablation.zoo.word_tokenizer import word_tokenizer
from tests import families

BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BERT_WORDS = tuple(f"w{i}" for i in range(families.D_VOCAB - len(BERT_SPECIAL)))


@pytest.fixture(scope="session")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LensModel:
    """A random GPT-2 with the corpus's word tokenizer, of the sizes of tiny-lm's vocabulary and context."""
    words = corpus.vocabulary()
    return _gpt2(word_tokenizer(words, longest=64), 64, tmp_path_factory)


@pytest.fixture(scope="session")
def bpe_lm(tmp_path_factory: pytest.TempPathFactory) -> LensModel:
    """A random GPT-2 with a BPE tokenizer like GPT-2's: no pad token, one token for BOS, EOS and UNK."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    texts = [text for name in corpus.MIXTURE for text in corpus.documents(name, 100, split="train")]
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=end, eos_token=end, unk_token=end)
    return _gpt2(tokenizer, 128, tmp_path_factory)


@pytest.fixture(scope="session")
def bert() -> LensModel:
    """A random BERT with a word tokenizer that puts [CLS] and [SEP] around a text."""
    vocabulary = {word: index for index, word in enumerate(BERT_SPECIAL + BERT_WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    model: Any = families.build("bert").model
    model.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    return model


@pytest.fixture(scope="session")
def vit() -> LensModel:
    """A random vision transformer for images [1, 8, 8] of five classes."""
    return families.build("vit").model


@pytest.fixture(scope="session")
def digit_vit(image_vit: Callable[[int, int], LensModel]) -> LensModel:
    """A random vision transformer for images [1, 8, 8] of ten classes."""
    return image_vit(8, 10)


@pytest.fixture(scope="session")
def image_vit(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], LensModel]:
    """Makes a random vision transformer for grey images of this width and height and so many classes."""

    def make(size: int, n_classes: int) -> LensModel:
        folder = tmp_path_factory.mktemp("vit")
        config = transformers.ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            image_size=size,
            patch_size=2,
            num_channels=1,
            id2label={index: str(index) for index in range(n_classes)},
            label2id={str(index): index for index in range(n_classes)},
        )
        transformers.ViTForImageClassification(config).save_pretrained(folder)
        return load_model(folder)

    return make


def _gpt2(tokenizer: PreTrainedTokenizerFast, n_ctx: int, folders: pytest.TempPathFactory) -> LensModel:
    folder = folders.mktemp("gpt2")
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=n_ctx,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(folder)
