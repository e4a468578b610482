"""Whether a tensor is something that a model reads."""

import torch
from torch import Tensor

from lens_ablation.models.anatomy import anatomy, probe_inputs
from lens_ablation.models.protocol import LensModel


def require_tokens(tokens: Tensor, model: LensModel) -> None:
    """Refuse what is no tensor of token ids ``[example, pos]`` of this model.

    Raises:
        ValueError: the model reads images, or shape, type or ids are wrong.
    """
    if anatomy(model).modality != "tokens":
        raise ValueError(
            "this model reads images [example, channel, height, width] and was given a tensor of shape "
            f"{tuple(tokens.shape)}"
        )
    is_whole = not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool)
    if tokens.ndim != 2 or not is_whole:
        fix = "; for one prompt pass tokens[None]" if tokens.ndim == 1 else ""
        raise ValueError(f"tokens must be integers [example, pos], got {tokens.dtype} {tuple(tokens.shape)}{fix}")
    if tokens.numel() == 0:
        raise ValueError(f"the tokens are empty: shape {tuple(tokens.shape)}")
    lowest, highest, d_vocab = int(tokens.min()), int(tokens.max()), int(model.cfg.d_vocab)
    if lowest < 0 or highest >= d_vocab:
        raise ValueError(
            f"token ids lie in {lowest}..{highest} and this model has 0..{d_vocab - 1}; they come from "
            "another tokenizer"
        )
    n_ctx = int(getattr(model.cfg, "n_ctx", tokens.shape[1]))
    if tokens.shape[1] > n_ctx:
        raise ValueError(f"rows have {tokens.shape[1]} tokens and this model takes at most {n_ctx}; cut them")


def require_pixels(pixels: Tensor, model: LensModel) -> None:
    """Refuse what is no tensor of normalised images ``[example, channel, height, width]`` of this model's
    size.

    Raises:
        ValueError: the model reads tokens, or shape or type are wrong.
    """
    if anatomy(model).modality != "pixels":
        raise ValueError(
            "this is a language model, which reads tokens [example, pos], and was given images of shape "
            f"{tuple(pixels.shape)}"
        )
    if not pixels.is_floating_point():
        raise ValueError(
            f"the images are {pixels.dtype}; a model reads normalised floats. Scale them as the model's "
            "image processor does, or use tasks.image_classification(..., processor=...)."
        )
    wanted = list(probe_inputs(model, n_examples=1).shape[1:])
    if pixels.shape[0] == 0 or list(pixels.shape[1:]) != wanted:
        raise ValueError(
            f"the images have shape {tuple(pixels.shape)} and this model reads [example, channel, height, "
            f"width] with {wanted}; resize them, for example with the model's image processor"
        )


def n_outputs(model: LensModel) -> int | None:
    """How many tokens or classes the model tells apart; ``None`` where its configuration does not say."""
    if anatomy(model).modality == "tokens":
        return int(model.cfg.d_vocab)
    config = getattr(getattr(model, "original_model", None), "config", None)
    return getattr(config, "num_labels", None)
