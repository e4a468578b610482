"""What a model is made of, measured on a small forward pass rather than read from its configuration."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_ablation.errors import UnsupportedModel
from lens_ablation.models.forward import forward
from lens_ablation.models.protocol import LensModel, input_device, require_lens_model

ACTIVATIONS = {
    "z": "blocks.{}.attn.hook_z",
    "pattern": "blocks.{}.attn.hook_pattern",
    "q": "blocks.{}.attn.hook_q",
    "k": "blocks.{}.attn.hook_k",
    "v": "blocks.{}.attn.hook_v",
    "ln1_out": "blocks.{}.ln1.hook_out",
    "ln2_out": "blocks.{}.ln2.hook_out",
    "pre": "blocks.{}.mlp.hook_pre",
    "pre_linear": "blocks.{}.mlp.hook_pre_linear",
    "post": "blocks.{}.mlp.hook_post",
    "attn_out": "blocks.{}.hook_attn_out",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_post": "blocks.{}.hook_resid_post",
}
"""TransformerLens hook names by layer."""


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Sizes of a model as its activations show them.

    ``d_mlp`` is the measured width of ``hook_post`` (the configuration of some bridges states another).
    ``n_weights`` counts parameters, ``image_tokens`` what the blocks see of an image (0 for language models).
    ``bidirectional`` tells whether an earlier token sees a later one, ``fires_pattern_first`` whether
    ``hook_pattern`` fires before ``hook_z``.
    """

    modality: Literal["tokens", "pixels"]
    n_layers: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_mlp: int
    d_model: int
    image_tokens: int
    n_weights: int
    bidirectional: bool
    has_pattern: bool
    fires_pattern_first: bool

    def coordinates(self, activation: str) -> tuple[int, ...]:
        """Size of an activation without rows and positions; of a pattern, the number of heads."""
        match activation:
            case "z" | "q":
                return (self.n_heads, self.d_head)
            case "k" | "v":
                return (self.n_key_value_heads, self.d_head)
            case "pattern":
                return (self.n_heads,)
            case "pre" | "pre_linear" | "post":
                return (self.d_mlp,)
            case _:
                return (self.d_model,)

    def kv_group(self, head: int) -> range:
        """Query heads that share the key and value head of query head ``head``."""
        size = self.n_heads // self.n_key_value_heads
        return range(head // size * size, head // size * size + size)


_measured: WeakKeyDictionary[Any, Anatomy] = WeakKeyDictionary()


def anatomy(model: LensModel) -> Anatomy:
    """Sizes of ``model``, measured once on a two-token (or one-image) forward pass.

    Raises:
        ValueError: ``model`` is not a TransformerLens model.
        UnsupportedModel: its blocks have no ``hook_z`` that fires.
    """
    found = _known(model)
    if found is None:
        require_lens_model(model)
        found = _measured[model] = _measure(model)
    return found


def is_gated(model: LensModel) -> bool:
    """Whether the MLPs multiply an up projection by a gate, as those of Llama do."""
    return ACTIVATIONS["pre_linear"].format(0) in model.hook_dict


def _known(model: object) -> Anatomy | None:
    try:
        return _measured.get(model)
    except TypeError:  # no model at all
        return None


def probe_inputs(model: LensModel, n_examples: int = 2, n_pos: int = 4, seed: int = 0) -> Tensor:
    """Random tokens ``[n_examples, n_pos]`` or pixels ``[n_examples, channel, height, width]`` for the model.

    Raises:
        UnsupportedModel: the configuration states neither a vocabulary nor an image size.
    """
    generator = torch.Generator().manual_seed(seed)
    device = input_device(model)
    d_vocab = int(getattr(model.cfg, "d_vocab", -1) or -1)
    if d_vocab > 0:
        tokens: Int[Tensor, "example pos"] = torch.randint(0, d_vocab, (n_examples, n_pos), generator=generator)
        return tokens.to(device)
    config = getattr(getattr(model, "original_model", None), "config", None)
    size = getattr(config, "image_size", None)
    if size is None:
        raise UnsupportedModel(
            "the model's configuration states neither a vocabulary (cfg.d_vocab) nor an image size, so it is "
            "neither a language model nor a vision transformer this package knows how to run."
        )
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    channels = int(getattr(config, "num_channels", 3))
    pixels: Float[Tensor, "example channel height width"] = torch.randn(
        n_examples, channels, height, width, generator=generator
    )
    dtype = next(iter(model.parameters())).dtype
    return pixels.to(device=device, dtype=dtype)


def _measure(model: LensModel) -> Anatomy:
    n_layers = int(model.cfg.n_layers)
    shapes: dict[str, torch.Size] = {}
    order: list[str] = []

    def record(activation: Tensor, hook: object, *, of: str) -> None:
        shapes[of] = activation.shape
        order.append(of)

    names = {of: template.format(0) for of, template in ACTIVATIONS.items()}
    live = {of: name for of, name in names.items() if name in model.hook_dict}
    inputs = probe_inputs(model)
    with torch.inference_mode():
        forward(model, inputs, fwd_hooks=[(name, partial(record, of=of)) for of, name in live.items()])
    if "z" not in shapes or len(shapes["z"]) != 4:
        raise UnsupportedModel(
            f"{names['z']} did not fire with shape [row, pos, head, d_head] "
            f"(got {tuple(shapes['z']) if 'z' in shapes else 'no firing'}); this model's heads cannot be ablated."
        )
    _, n_pos, n_heads, d_head = shapes["z"]
    kv_heads = shapes["v"][2] if "v" in shapes and len(shapes["v"]) == 4 else n_heads
    return Anatomy(
        modality="tokens" if inputs.ndim == 2 else "pixels",
        n_weights=sum(weight.numel() for weight in model.parameters()),
        image_tokens=n_pos if inputs.ndim == 4 else 0,
        bidirectional=inputs.ndim == 4 or _first_sees_last(model, inputs),
        n_layers=n_layers,
        n_heads=n_heads,
        n_key_value_heads=kv_heads,
        d_head=d_head,
        d_mlp=shapes["post"][-1] if "post" in shapes else 0,
        d_model=shapes["resid_pre"][-1] if "resid_pre" in shapes else int(model.cfg.d_model),
        has_pattern="pattern" in shapes,
        fires_pattern_first="pattern" in order and order.index("pattern") < order.index("z"),
    )


def _first_sees_last(model: LensModel, tokens: Int[Tensor, "example pos"]) -> bool:
    """Whether the logits at the first token move with the last one."""
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % int(model.cfg.d_vocab)
    with torch.inference_mode():
        first, other = (forward(model, rows)[:, 0].float() for rows in (tokens, changed))
    return not torch.allclose(first, other, rtol=1e-5, atol=1e-6)
