"""Small random models of every family, built offline, with the plain Hugging Face model beside each."""

import copy
import importlib
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
import transformers
from torch import Tensor
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

from lens_ablation.models.protocol import LensModel

N_LAYERS, N_HEADS, D_HEAD, D_VOCAB = 3, 4, 8, 50
D_MODEL, D_MLP = N_HEADS * D_HEAD, 48

HAS_HOOKED_TRANSFORMER = version("transformer-lens").startswith("3.")
FAMILIES = ["gpt2", "llama", "vit", "opt", "bert"] + (["hooked"] if HAS_HOOKED_TRANSFORMER else [])
TOKEN_FAMILIES = [family for family in FAMILIES if family != "vit"]

_COMMON: dict[str, Any] = {
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "hidden_size": D_MODEL,
}
_TEXT: dict[str, Any] = {**_COMMON, "vocab_size": D_VOCAB, "max_position_embeddings": 32}


@dataclass(frozen=True, eq=False)
class Family:
    """A model under its TransformerLens surface, and an untouched copy of the Hugging Face model."""

    name: str
    model: LensModel
    plain: torch.nn.Module

    def inputs(self, n: int = 3, n_pos: int = 6, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        if self.name == "vit":
            dtype = next(iter(self.plain.parameters())).dtype
            return torch.randn(n, 1, 8, 8, generator=generator).to(dtype)
        return torch.randint(4, D_VOCAB, (n, n_pos), generator=generator)

    def plain_logits(self, inputs: Tensor, plain: torch.nn.Module | None = None, **options: Any) -> Tensor:
        with torch.no_grad():
            return (plain or self.plain)(inputs, **options).logits

    def block(self, plain: torch.nn.Module, layer: int) -> torch.nn.Module:
        paths = {
            "gpt2": "transformer.h",
            "hooked": "transformer.h",
            "llama": "model.layers",
            "opt": "model.decoder.layers",
            "bert": "bert.encoder.layer",
        }
        if self.name == "vit":
            return next(m for n, m in plain.named_modules() if n.endswith((f"layer.{layer}", f"layers.{layer}")))
        return plain.get_submodule(f"{paths[self.name]}.{layer}")

    def output_projection(self, plain: torch.nn.Module, layer: int) -> torch.nn.Module:
        """The attention output projection of a block of the plain model."""
        wanted = {"gpt2": "attn.c_proj", "hooked": "attn.c_proj", "llama": "o_proj", "opt": "out_proj"}
        ends = (wanted.get(self.name, "attention.output.dense"), "attention.o_proj", "attention.out_proj")
        return _ending(self.block(plain, layer), ends)

    def down_projection(self, plain: torch.nn.Module, layer: int) -> torch.nn.Module:
        """The MLP's second projection of a block of the plain model."""
        block = self.block(plain, layer)
        ends = {"gpt2": "mlp.c_proj", "hooked": "mlp.c_proj", "llama": "down_proj", "opt": "fc2"}
        if self.name in ends:
            return _ending(block, (ends[self.name],))
        return next(m for m in block.modules() if getattr(m, "in_features", None) == D_MLP)

    def weight_rows(self, projection: torch.nn.Module) -> Tensor:
        """The projection's weight as ``[input, output]``: GPT-2 stores it so, Linear stores the transpose."""
        return projection.weight.data if type(projection).__name__ == "Conv1D" else projection.weight.data.T

    def surgery(self) -> torch.nn.Module:
        """A copy of the plain model, to be cut."""
        return copy.deepcopy(self.plain)


def _ending(block: torch.nn.Module, ends: tuple[str, ...]) -> torch.nn.Module:
    return next(module for name, module in block.named_modules() if name.endswith(ends))


def plain_model(name: str, seed: int = 0) -> torch.nn.Module:
    """A random model of a family in evaluation mode, with eager attention and biases that are not zero."""
    torch.manual_seed(seed)
    if name in ("gpt2", "hooked"):
        config = transformers.GPT2Config(
            n_layer=N_LAYERS,
            n_head=N_HEADS,
            n_embd=D_MODEL,
            n_inner=D_MLP,
            vocab_size=D_VOCAB,
            n_positions=32,
        )
        model = transformers.GPT2LMHeadModel(config)
    elif name == "llama":
        config = transformers.LlamaConfig(**_TEXT, num_key_value_heads=2, intermediate_size=D_MLP)
        model = transformers.LlamaForCausalLM(config)
    elif name == "opt":
        config = transformers.OPTConfig(**_TEXT, ffn_dim=D_MLP, word_embed_proj_dim=D_MODEL)
        model = transformers.OPTForCausalLM(config)
    elif name == "bert":
        config = transformers.BertConfig(**_TEXT, intermediate_size=D_MLP)
        model = transformers.BertForMaskedLM(config)
    elif name == "vit":
        config = transformers.ViTConfig(
            **_COMMON, intermediate_size=D_MLP, image_size=8, patch_size=4, num_channels=1, num_labels=5
        )
        model = transformers.ViTForImageClassification(config)
    else:
        raise ValueError(f"no family {name!r}")
    for parameter in model.parameters():
        scale = 0.1 if parameter.ndim == 1 else 0.05
        parameter.data.add_(scale * torch.randn_like(parameter))
    model.eval()
    model.set_attn_implementation("eager")
    return model


def build(name: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, attention: str = "eager") -> Family:
    """A random model of a family, wrapped for TransformerLens."""
    plain = plain_model(name, seed).to(dtype)
    wrapped = copy.deepcopy(plain)
    wrapped.set_attn_implementation(attention)
    if name == "hooked":
        return Family(name, _hooked(wrapped, dtype), plain)
    model = build_bridge_from_module(
        wrapped, type(wrapped).__name__, hf_config=wrapped.config, dtype=dtype, device="cpu"
    )
    return Family(name, model, plain)


def _hooked(plain: torch.nn.Module, dtype: torch.dtype) -> LensModel:
    """The same weights in a ``HookedTransformer``, which only TransformerLens 3 has."""
    lens = importlib.import_module("transformer_lens")
    convert = importlib.import_module("transformer_lens.pretrained.weight_conversions").convert_gpt2_weights
    config = lens.HookedTransformerConfig(
        n_layers=N_LAYERS,
        n_heads=N_HEADS,
        d_head=D_HEAD,
        d_model=D_MODEL,
        d_mlp=D_MLP,
        d_vocab=D_VOCAB,
        n_ctx=32,
        act_fn="gelu_new",
        normalization_type="LN",
        eps=1e-5,
        dtype=dtype,
        device="cpu",
        attention_dir="causal",
        tie_word_embeddings=True,
    )
    model = lens.HookedTransformer(config)
    model.load_and_process_state_dict(
        convert(plain, config),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return model.to(dtype).eval()
