"""Loading models: embedded ones, local folders, and names on the Hugging Face hub."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from lens_ablation import zoo
from lens_ablation.errors import UnknownName, unknown_name
from lens_ablation.models.protocol import LensModel

Processing = Literal["raw", "compatibility"]


def load_model(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    processing: Processing = "raw",
    **options: Any,
) -> LensModel:
    """A ``TransformerBridge`` in evaluation mode, from an embedded model, a local folder or a hub name.

    Weights stay raw unless ``processing="compatibility"``, which folds layer norms and value biases as
    TransformerLens does by default and thereby changes what zero ablation means. A model that you built yourself
    needs no loading: every verb takes it as it is.

    Args:
        name_or_path: ``tiny-lm``, ``tiny-vit`` or another of ``lens_ablation.zoo.names()``; a folder written by
            ``save_pretrained``; or a name such as ``gpt2`` on the hub.
        device: Where to put it.
        dtype: Floating-point type of the weights.
        processing: ``raw``, or ``compatibility`` for TransformerLens's weight processing.
        options: Handed to ``TransformerBridge.boot_transformers``, for example ``revision``.

    Raises:
        UnknownName: it is no embedded model, no folder, and the hub has no such model or did not answer.
        ValueError: ``processing`` is unknown, or the folder holds no model.

    Example:
        >>> import lens_ablation as la
        >>> la.load_model("tiny-lm").cfg.n_layers
        4
    """
    if processing not in ("raw", "compatibility"):
        raise ValueError(f"processing must be 'raw' or 'compatibility', got {processing!r}")
    source = _source(name_or_path)
    from transformer_lens.model_bridge import TransformerBridge

    with quiet():
        try:
            model = TransformerBridge.boot_transformers(source, device=device, dtype=dtype, **options)
        except (OSError, ValueError, SafetensorError) as error:
            raise _explain(name_or_path, source, error) from error
        if processing == "compatibility":
            is_vision = int(getattr(model.cfg, "d_vocab", -1) or -1) <= 0
            model.enable_compatibility_mode(no_processing=is_vision, disable_warnings=True)
    model.eval()
    model.cfg.model_name = str(name_or_path) if not Path(name_or_path).is_dir() else Path(name_or_path).name
    return model


def _source(name_or_path: str | Path) -> str:
    """The folder or hub name to boot from; a folder that is not a model is refused here."""
    if str(name_or_path) in zoo.names():
        return str(zoo.path(str(name_or_path)))
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"{folder} holds no config.json, so it is not a model folder. Write one with "
                "model.save_pretrained(folder) and tokenizer.save_pretrained(folder)."
            )
        return str(folder)
    looks_local = isinstance(name_or_path, Path) or str(name_or_path).startswith((".", "/", "~"))
    if looks_local:
        raise UnknownName(f"there is no folder {folder}; give a folder written by save_pretrained, or a hub name")
    return str(name_or_path)


def _explain(name_or_path: str | Path, source: str, error: Exception) -> ValueError:
    if Path(source).is_dir():
        return ValueError(f"the model in {source} could not be loaded: {_first_line(error)}")
    known = unknown_name("model", name_or_path, zoo.names(), "lens_ablation.zoo.names()")
    return UnknownName(
        f"{known} It is no local folder either, and loading it from the Hugging Face hub failed: {_first_line(error)}"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Without the loader's own progress bars and notes, which are not the caller's."""
    from transformers.utils import logging as hf_logging

    level, shown = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    others = [logging.getLogger(name) for name in ("transformer_lens", "huggingface_hub")]
    levels = [other.level for other in others]
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    for other in others:
        other.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        for other, was in zip(others, levels, strict=True):
            other.setLevel(was)
        if shown:
            hf_logging.enable_progress_bar()
