"""tiny-lm: a GPT-2 of four layers and eight heads, trained on the generated corpus."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from lens_ablation.data.corpus import MIXTURE, facts, training_documents, vocabulary
from lens_ablation.zoo.lm_scores import lm_scores
from lens_ablation.zoo.word_tokenizer import save_tokenizer, word_tokenizer


@dataclass(frozen=True)
class TinyLm:
    """How tiny-lm is trained.

    Attributes:
        steps: Number of optimizer steps.
        seed: Seed of the first weights and of the training text.
        words: Tokens of a step; as many documents as fit.
        short_share: Share of the steps, the first ones, that show short documents. Attention finds what to look
            at much sooner there.
        short_length: Tokens of a short document.
        length: Tokens of the other documents, which is also the longest input.
        peak_learning_rate: Learning rate of AdamW after the warm-up.
        weight_decay: Weight decay of AdamW, on matrices only.
        initializer_range: Standard deviation of the first weights.
    """

    name: str = "tiny-lm"
    steps: int = 5000
    seed: int = 0
    words: int = 2560
    short_share: float = 0.5
    short_length: int = 24
    length: int = 64
    peak_learning_rate: float = 3e-3
    weight_decay: float = 0.05
    initializer_range: float = 0.05

    @property
    def about(self) -> str:
        """What the model is and what it was trained on, in Markdown."""
        shares = ", ".join(f"{name.replace('_', ' ')} {share} %" for name, share in MIXTURE.items())
        return f"""\
A language model of the GPT-2 architecture (4 layers, 8 heads, width 128, learned positions, LayerNorm, GELU,
biases) with a vocabulary of {len(vocabulary())} whole words, for `<bos>` and up to {self.length - 1} words.

Trained on text that `lens_ablation.data.corpus` writes: short sentences that test one skill each, and three
domains. Shares of the documents: {shares}.
There are {len(facts.FACTS)} facts. The held-out side never occurs in training: pairs of names, templates,
phrasings of subjects, persons with frames, subjects with distractors, years, sequences, whole sentences."""

    def build(self) -> PreTrainedModel:
        """The untrained model; the same weights every time."""
        words = vocabulary()
        config = GPT2Config(
            vocab_size=len(words),
            n_positions=self.length,
            n_embd=128,
            n_layer=4,
            n_head=8,
            n_inner=512,
            activation_function="gelu_new",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            initializer_range=self.initializer_range,
            bos_token_id=words["<bos>"],
            eos_token_id=words["<eos>"],
            pad_token_id=words["<pad>"],
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return GPT2LMHeadModel(config)

    def loss(self, model: PreTrainedModel, step: int) -> Float[Tensor, ""]:
        """Mean loss over all words of the documents of a step, in nats per token."""
        ids = vocabulary()
        length = self.short_length if step < self.short_share * self.steps else self.length
        batch = training_documents(step, rows=self.words // length, length=length, seed=self.seed)
        tokens = torch.tensor([[ids[word] for word in document] for document in batch])
        logits = model(input_ids=tokens).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Write model and tokenizer for ``from_pretrained``."""
        model.save_pretrained(folder)
        save_tokenizer(word_tokenizer(vocabulary(), longest=self.length), folder)

    def scores(self, folder: Path) -> dict[str, float]:
        """Scores of a saved model on held-out text."""
        return lm_scores(folder)
