"""What a neuron's own write adds to the log-probability of the answer, read off by the final norm and unembedding."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_ablation.empirical.estimators import Advance, GradientEstimator
from lens_ablation.empirical.gradients import Shift
from lens_ablation.empirical.question import Question, Slopes, at_sites, probabilities_of
from lens_ablation.engine.proof import path_of
from lens_ablation.engine.size import LOGITS
from lens_ablation.engine.tail import head_logits
from lens_ablation.errors import UnsupportedModel
from lens_ablation.models.checks import check_sites
from lens_ablation.models.protocol import LensModel
from lens_ablation.models.rows import row_maps, weight_of
from lens_ablation.sites import HookPoint


@dataclass(frozen=True)
class LogProbIncrease(GradientEstimator):
    """By how much a neuron's write raises the answer's log-probability, if the model ended at its layer.

    ``log p(answer | r + A w) - log p(answer | r)``, with ``r`` the residual stream before the MLP at the position that
    is read, ``A`` what the neuron holds at ``hook_post`` (of gated MLPs too: that is what is written), ``w`` the row of
    weights that it writes, and ``p`` by final norm and unembedding. In nats, not a slope: it is compared with slopes as
    the paper does, in the ``signed`` convention, since it grows with ``|A|`` and not with ``A``.

    Reference:
        Yu, Ananiadou, *Neuron-Level Knowledge Attribution in Large Language Models*, 2024, arXiv:2312.12141.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task = la.tasks.facts(model, n=4)
        >>> la.neuron_gradients(model, task, None, la.LogProbIncrease(), progress=False).values.shape
        torch.Size([4, 2, 2048])
    """

    bibtex: ClassVar[str] = """@inproceedings{yu2024neuron,
  title     = {Neuron-Level Knowledge Attribution in Large Language Models},
  author    = {Yu, Zeping and Ananiadou, Sophia},
  booktitle = {Conference on Empirical Methods in Natural Language Processing},
  year      = {2024},
  note      = {arXiv:2312.12141}
}"""

    @property
    def name(self) -> str:
        return "Log-probability increase"

    @property
    def convention(self) -> Shift:
        return "signed"

    def parts(self, question: Question, advance: Advance) -> Iterator[tuple[slice, Slopes]]:
        model = question.running
        _require_readable(model)
        layers = question.sites.layers
        writes = {layer: written_rows(model, layer) for layer in layers}
        post = {layer: HookPoint("post", layer) for layer in layers}
        ends = {layer: (HookPoint("resid_post", layer), HookPoint("mlp_out", layer)) for layer in layers}
        both = [end for pair in ends.values() for end in pair]
        wanted = list(dict.fromkeys([*question.sites.hook_points, *post.values(), *both]))
        for rows in question.parts(gradients=False):
            clean, probabilities = question.clean(rows, wanted)
            activations = at_sites(question.sites, {point: clean[point] for point in question.sites.hook_points})
            values = torch.empty(*probabilities.shape, len(question.sites), dtype=probabilities.dtype)
            for layer in layers:
                here = np.flatnonzero(question.sites.addresses[:, 0] == layer)
                units = torch.from_numpy(question.sites.addresses[here, 1])
                before = clean[ends[layer][0]] - clean[ends[layer][1]]
                written = clean[post[layer]][:, units, None] * writes[layer][units]
                candidates = question.candidates[rows]
                values[..., torch.from_numpy(here)] = _increase(model, before, written, candidates).cpu()
            yield rows, Slopes(values=values, activations=activations, probabilities=probabilities)
            advance(rows.stop - rows.start)


def _increase(
    model: LensModel,
    before: Float[Tensor, "example d_model"],
    written: Float[Tensor, "example neuron d_model"],
    candidates: Tensor,
) -> Float[Tensor, "example candidate neuron"]:
    ids = candidates[:, None].to(before.device)
    with torch.inference_mode():
        first = head_logits(model, before[:, None])
        start = probabilities_of(first, ids).log()
        held = len(before) * first.shape[-1] * first.element_size()
        step = max(1, LOGITS.get(before.device.type, LOGITS["cuda"]) // held)
        found: list[Tensor] = []
        for part in written.split(step, dim=1):
            logits = head_logits(model, before[:, None] + part)
            found.append(probabilities_of(logits, ids.expand(-1, part.shape[1], -1)).log() - start)
    return torch.cat(found, dim=1).transpose(1, 2)


def written_rows(model: LensModel, layer: int) -> Float[Tensor, "unit d_model"]:
    """What each unit of ``hook_post`` adds to the MLP's output, to a unit of its activation.

    Raises:
        UnsupportedModel: no single linear map reads it.
    """
    readers = row_maps(model).readers.get(("post", layer), ())
    if len(readers) == 1:
        return weight_of(readers[0])
    blocks = getattr(model, "blocks", None)
    own = dict(blocks[layer].named_parameters()).get("mlp.W_out") if isinstance(blocks, torch.nn.ModuleList) else None
    if own is None:
        raise UnsupportedModel(
            f"hook_post of layer {layer} is read by no single linear map, so it is not known what its neurons write; "
            "take NeurGrad()"
        )
    return own.detach()


def _require_readable(model: LensModel) -> None:
    if not check_sites(model, throw=False).residual_is_additive or path_of(model).tail != "head":
        raise UnsupportedModel(
            "LogProbIncrease reads the residual stream before an MLP by the final norm and unembedding, and this "
            "model's layers do not add up to what those read (those of post-LN encoders do not); take "
            "NeurGrad()"
        )
