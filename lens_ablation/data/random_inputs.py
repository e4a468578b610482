"""Inputs that mean nothing, for resampling: what a part of the network does when it is told nothing."""

import random
import string
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_ablation.data.tokens import bos_ids, tokenizer_of
from lens_ablation.models.anatomy import anatomy, probe_inputs
from lens_ablation.models.forward import forward
from lens_ablation.models.protocol import LensModel, input_device

Kind = Literal["characters", "tokens", "sampled", "pixels"]


def random_inputs(
    model: LensModel, kind: Kind, n_pos: int = 24, seed: int = 0
) -> Int[Tensor, "1 pos"] | Float[Tensor, "1 channel height width"]:
    """One random input, for ``Resample(source, match="position")``; the paper's three for text, and its one for images.

    ``characters`` are random letters and digits; ``tokens`` are random token ids, decoded to text and read again;
    ``sampled`` is a text that the model itself writes at temperature 1; ``pixels`` are uniform whole numbers 0..254
    brought to -1..1.

    Args:
        model: The model that is to read it.
        kind: What it is made of.
        n_pos: Tokens, the BOS token included.
        seed: Draws it.

    Raises:
        ValueError: ``kind`` is unknown or not for this kind of model, or ``n_pos`` is less than 2.

    Reference:
        Pochinkov et al., *Investigating Neuron Ablation in Attention Heads*, 2024, arXiv:2408.17322, section 3.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> la.random_inputs(model, "tokens", n_pos=12).shape
        torch.Size([1, 12])
    """
    kinds = {"tokens": ("characters", "tokens", "sampled"), "pixels": ("pixels",)}[anatomy(model).modality]
    if kind not in kinds:
        raise ValueError(f"kind must be {' or '.join(repr(k) for k in kinds)} for this model, got {kind!r}")
    if kind == "pixels":
        shape = probe_inputs(model, n_examples=1).shape
        drawn = torch.randint(0, 255, shape, generator=torch.Generator().manual_seed(seed))
        return (drawn / 127.5 - 1).to(next(iter(model.parameters())).dtype)
    if n_pos < 2:
        raise ValueError(f"n_pos must be 2 or more, got {n_pos}")
    start = bos_ids(model)
    if kind == "sampled":
        return _sampled(model, start or [0], n_pos, seed)
    tokenizer = tokenizer_of(model)
    draw = random.Random(seed)
    ids: list[int] = []
    # decoded and read again, a piece of text may give fewer tokens than it was made of
    while len(ids) < n_pos - len(start):
        ids += tokenizer.encode(_piece(kind, tokenizer, draw), add_special_tokens=False)
    return torch.tensor([[*start, *ids[: n_pos - len(start)]]])


def _piece(kind: Kind, tokenizer: Any, draw: random.Random) -> str:
    if kind == "characters":
        return " ".join("".join(draw.choices(string.ascii_letters + string.digits, k=6)) for _ in range(8))
    special = set(tokenizer.all_special_ids)
    ids = [i for i in draw.choices(range(len(tokenizer)), k=64) if i not in special]
    return tokenizer.decode(ids)


def _sampled(model: LensModel, start: list[int], n_pos: int, seed: int) -> Int[Tensor, "1 pos"]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor([start])
    with torch.inference_mode():
        while tokens.shape[1] < n_pos:
            logits = forward(model, tokens.to(input_device(model)))[0, -1].float().cpu()
            tokens = torch.cat([tokens, torch.multinomial(logits.softmax(-1), 1, generator=generator)[None]], dim=1)
    return tokens.clone()
