"""Scores of a language model of the generated corpus, computed with plain transformers."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lens_ablation.data.corpus import (
    DOMAINS,
    Example,
    agreement,
    documents,
    facts,
    greater_than,
    induction,
    ioi,
    pronouns,
)

SEED = 0
PROMPTS = 512
TEXTS = 64
REPEATED_LENGTH = 24
BATCH = 64


class _Reader:
    """A saved language model and its tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def ids(self, words: Sequence[str]) -> list[int]:
        return self.tokenizer.convert_tokens_to_ids(list(words))

    def tokens(self, texts: Sequence[str]) -> Int[Tensor, "text pos"]:
        """Token ids of texts of equal length, ``<bos>`` in front."""
        rows = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        return torch.tensor([[self.tokenizer.bos_token_id, *row] for row in rows])

    def last_logits(self, texts: Sequence[str]) -> Float[Tensor, "text word"]:
        """Logits after the last word of texts of any lengths."""
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, text in enumerate(texts):
            by_length[len(text.split())].append(index)
        logits = torch.empty(len(texts), self.model.config.vocab_size)
        with torch.no_grad():
            for indices in by_length.values():
                for start in range(0, len(indices), BATCH):
                    rows = indices[start : start + BATCH]
                    logits[rows] = self.model(self.tokens([texts[row] for row in rows])).logits[:, -1]
        return logits

    def losses(self, texts: Sequence[str]) -> tuple[Float[Tensor, "text pos"], Float[Tensor, "text pos"]]:
        """Loss in nats, and whether the likeliest word is right, at each word of texts of equal length."""
        tokens = self.tokens(texts)
        with torch.no_grad():
            logits = torch.cat([self.model(rows).logits for rows in tokens.split(BATCH)])[:, :-1]
        losses = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
        return losses, (logits.argmax(-1) == tokens[:, 1:]).float()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _preferred(reader: _Reader, examples: Sequence[Example]) -> tuple[float, float]:
    """Share of prompts whose answer beats the first wrong one, and whose answer is the likeliest word."""
    logits = reader.last_logits([example.prompt for example in examples])
    right = torch.tensor(reader.ids([example.answer for example in examples]))
    wrong = torch.tensor(reader.ids([example.wrong_answers[0] for example in examples]))
    rows = torch.arange(len(examples))
    preferred = (logits[rows, right] > logits[rows, wrong]).double().mean().item()
    return preferred, (logits.argmax(-1) == right).double().mean().item()


def _probability_difference(reader: _Reader, examples: Sequence[Example]) -> float:
    """Mean over prompts of the probability of all right words less that of all wrong ones."""
    probabilities = reader.last_logits([example.prompt for example in examples]).double().softmax(-1)
    return _mean(
        [
            (row[reader.ids(example.answers)].sum() - row[reader.ids(example.wrong_answers)].sum()).item()
            for row, example in zip(probabilities, examples, strict=True)
        ]
    )


def lm_scores(folder: Path) -> dict[str, float]:
    """Scores of a saved model on held-out prompts and texts.

    ``*_accuracy`` is the share of prompts whose answer is preferred to the wrong one, ``*_top1`` the share
    whose answer is the likeliest word; ``greater_than_probability_difference`` is the probability of all
    right years less that of all wrong ones; ``induction_loss_ratio`` is the loss on the second copy of a
    random sequence over that on the first; ``loss_*`` and ``top1_*`` are over all words of a domain. Losses
    are in nats per token.

    Args:
        folder: Folder written by ``save_pretrained``, with the corpus's tokenizer.
    """
    reader = _Reader(folder)
    found: dict[str, float] = {}

    for name, skill in {"ioi": ioi, "pronouns": pronouns, "agreement": agreement}.items():
        accuracy, top1 = _preferred(reader, skill.examples(PROMPTS, seed=SEED))
        found[f"{name}_accuracy"] = accuracy
        found[f"{name}_top1"] = top1
    found["facts_top1"] = _preferred(reader, facts.examples(len(facts.FACTS), seed=SEED))[1]
    years = greater_than.examples(PROMPTS, seed=SEED)
    found["greater_than_probability_difference"] = _probability_difference(reader, years)
    losses, _ = reader.losses(induction.repeated(TEXTS, REPEATED_LENGTH, seed=SEED))
    first, second = losses.double().mean(0).split(REPEATED_LENGTH)
    found["induction_first_loss"] = first.mean().item()
    found["induction_second_loss"] = second.mean().item()
    found["induction_loss_ratio"] = (second.mean() / first.mean()).item()
    for name in DOMAINS:
        losses, right = reader.losses(documents(name, TEXTS, seed=SEED))
        found[f"loss_{name}"] = losses.double().mean().item()
        found[f"top1_{name}"] = right.double().mean().item()
    return found
