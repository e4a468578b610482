"""The same architecture with fresh weights: the control of what training has to do with it."""

import copy
import tempfile
from typing import Any

import torch

from lens_ablation.errors import UnsupportedModel
from lens_ablation.models.fingerprint import model_name
from lens_ablation.models.loading import load_model, quiet
from lens_ablation.models.protocol import LensModel


def random_weights(model: LensModel, seed: int = 0) -> LensModel:
    """A model of the same configuration and tokenizer whose weights were drawn anew, as before training.

    Weights are drawn by the initialiser of the Hugging Face class. Fresh weights of several seeds tell what belongs to
    the architecture and the data alone.

    Args:
        model: A ``TransformerBridge``; left as it is.
        seed: Another seed draws others.

    Raises:
        UnsupportedModel: the model wraps no Hugging Face model.

    Reference:
        Pochinkov et al., 2024, arXiv:2408.17324, the randomly initialised models.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-vit")
        >>> la.random_weights(model, seed=1).cfg.model_name
        'tiny-vit, random weights 1'
    """
    plain: Any = getattr(model, "original_model", None)
    config = getattr(plain, "config", None)
    if config is None:
        raise UnsupportedModel(
            "this model wraps no Hugging Face model whose configuration could be drawn anew; load it with "
            "lens_ablation.load_model(name_or_path)"
        )
    weight = next(iter(model.parameters()))
    tokenizer = getattr(model, "tokenizer", None)
    # loading draws random numbers too
    with tempfile.TemporaryDirectory() as folder, quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        drawn = type(plain)(copy.deepcopy(config))
        drawn.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        fresh = load_model(folder, device=weight.device, dtype=weight.dtype)
    fresh.cfg.model_name = f"{model_name(model)}, random weights {seed}"
    return fresh
