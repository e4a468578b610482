"""From the residual stream after the last block to the logits that a metric reads."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module

from lens_ablation.data.metrics import at_positions
from lens_ablation.engine.clean import CleanPass, Residual
from lens_ablation.models.forward import forward
from lens_ablation.models.protocol import LensModel

Tail = Literal["head", "model_at_positions", "model"]
"""``head``: final norm and unembedding at the wanted positions. ``model_at_positions``: the model's own code after
the blocks, given the wanted positions only. ``model``: given all of them."""

AnswerLogits = Float[Tensor, "row target d_vocab"]


def answer_logits_of(
    tail: Tail,
    model: LensModel,
    clean: CleanPass,
    residual: Residual,
    inputs: Tensor,
    positions: Int[Tensor, "row target"] | None,
    attention_mask: Tensor | None,
) -> AnswerLogits:
    """Logits ``[row, target, d_vocab]`` at ``positions``, or ``[row, pos, d_vocab]`` for ``None``.

    Images have one target, their class logits.

    Args:
        tail: Which way.
        model: A TransformerLens model.
        clean: The clean pass whose blocks answer from memory while the model's own code runs.
        residual: What left the last block.
        inputs: Inputs of these rows, embedded and thrown away by the model's own code.
        positions: Wanted positions of each row.
        attention_mask: Attention mask of these rows.
    """
    is_image = inputs.ndim == 4
    if tail != "model" and positions is not None:
        residual = at_positions(residual, positions)
    if tail == "head":
        return head_logits(model, residual)
    with answering(clean, residual):
        logits = forward(model, inputs, attention_mask=attention_mask)
    if is_image:
        return logits[:, None]
    return at_positions(logits, positions) if tail == "model" and positions is not None else logits


@contextmanager
def answering(clean: CleanPass, residual: Float[Tensor, "row pos d_model"]) -> Iterator[None]:
    """Inside, the model's blocks compute nothing: the last residual is what they all give."""
    with ExitStack() as restored:
        for layer, block in enumerate(clean.blocks):
            rest = clean.rest(layer)
            answer = residual if rest is None else (residual, *rest)
            # past the module's own attribute handling: a bridge would hand the assignment to the module it wraps
            object.__setattr__(block, "forward", _constant(answer))
            restored.callback(object.__delattr__, block, "forward")
        yield


def _constant(answer: Any) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return answer

    return forward


def head_logits(model: Any, residual: Residual) -> AnswerLogits:
    """Logits of a residual by the final norm and the unembedding, as a model with ``tail`` ``head`` computes them."""
    norm: Module | None = getattr(model, "ln_final", None)
    return model.unembed(residual if norm is None else norm(residual))
