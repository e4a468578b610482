"""Which weights a model holds and how they were processed, so that measurements are never mixed up."""

import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lens_ablation.models.protocol import LensModel, modules_in

_digests: WeakKeyDictionary[Any, tuple[tuple[object, ...], str]] = WeakKeyDictionary()


def fingerprint(model: LensModel) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of all weights, in name order.

    Cached per model until a weight is written to or replaced.
    """
    held = list(_parameters(model))
    # tensors made in inference mode count no writes, so for them nothing is kept
    counted = not any(weight.is_inference() for weight in held)
    state = tuple((weight.data_ptr(), weight._version if counted else 0) for weight in held)
    cached = _digests.get(model)
    if counted and cached is not None and cached[0] == state:
        return cached[1]
    digest = hashlib.sha256()
    for name, weight in sorted(named_weights(model)):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    _digests[model] = (state, digest.hexdigest())
    return digest.hexdigest()


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    return tuple((name, version(name)) for name in ("lens-ablation", "transformer-lens", "torch"))


def versions() -> dict[str, str]:
    """Versions of this package and of what it computes with."""
    return dict(_versions())


def weight_processing(model: LensModel) -> str:
    """``raw``, or what was done to the weights on loading, as far as the weights themselves tell.

    ``compatibility`` marks a bridge after ``enable_compatibility_mode()``; ``folded layer norm`` a model whose
    layer norms carry no weights; ``folded value biases`` one whose value biases are all zero although it has them.
    Zero ablation means something else in each (see the page on value biases).
    """
    found = []
    if getattr(model, "compatibility_mode", False):
        found.append("compatibility")
    if str(getattr(model.cfg, "normalization_type", "")).endswith("Pre"):
        found.append("folded layer norm")
    value_biases = list(_value_biases(model))
    if value_biases and all(not bool(bias.any()) for bias in value_biases):
        found.append("folded value biases")
    return ", ".join(found) or "raw"


def model_name(model: LensModel) -> str:
    """The name in the model's configuration, for labels only; identity is the ``fingerprint``."""
    return str(getattr(model.cfg, "model_name", None) or type(model).__name__)


def tokenizer_fingerprint(model: LensModel) -> str:
    """SHA-256 over the tokenizer's vocabulary and special tokens; ``none`` where there is no tokenizer."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return "none"
    digest = hashlib.sha256()
    for token, index in sorted(tokenizer.get_vocab().items()):
        digest.update(f"{index}\t{token}\n".encode())
    for key in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        digest.update(f"{key}={getattr(tokenizer, key, None)}".encode())
    return digest.hexdigest()


def _parameters(model: LensModel) -> Iterator[Tensor]:
    """Every weight, by the module that holds it; far quicker than asking for their names."""
    for module in modules_in(getattr(model, "original_model", model)):
        yield from (weight for weight in module._parameters.values() if weight is not None)


def named_weights(model: LensModel) -> Iterator[tuple[str, Tensor]]:
    """Every weight by each of its names in the checkpoint, and by those that a bridge adds."""
    root: Any = getattr(model, "original_model", model)
    for name, weight in root.named_parameters(remove_duplicate=False):
        # a bridge wraps each module; without the wrapper's name the weights are called as in the checkpoint
        yield name.replace("_original_component.", ""), weight


def _value_biases(model: LensModel) -> Iterator[Tensor]:
    try:
        biases = getattr(model, "b_V", None)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        biases = None
    if isinstance(biases, Tensor):
        yield biases
