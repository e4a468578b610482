"""Which sites a model has: one function to a kind, or to the rows of weights that sites stand for."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from lens_ablation.errors import UnknownSite, UnsupportedModel
from lens_ablation.models.anatomy import anatomy, is_gated
from lens_ablation.models.protocol import LensModel
from lens_ablation.models.rows import require_rows, unhooked_maps
from lens_ablation.sites import READER_KINDS, WRITER_KINDS, Kind, SiteSet, grid


def _all(model: LensModel, kind: Kind) -> SiteSet:
    shape = grid(kind, anatomy(model))
    return SiteSet(kind, np.indices(shape).reshape(len(shape), -1).T.copy(), shape)


def heads(model: LensModel) -> SiteSet:
    """Every attention head, ``[layer, head]``, at ``hook_z``."""
    return _all(model, "head")


def attention_neurons(model: LensModel) -> SiteSet:
    """Every coordinate of ``hook_z``, ``[layer, head, unit]``: the inputs of the attention output projection."""
    return _all(model, "z")


NeuronsAt = Literal["post", "pre_linear"]
"""Which activation of an MLP is the neuron."""


def neurons(model: LensModel, at: NeuronsAt = "post") -> SiteSet:
    """Every MLP neuron, ``[layer, unit]``, at ``hook_post`` or, of gated MLPs, at ``hook_pre_linear``.

    Args:
        model: A TransformerLens model.
        at: ``post``, what the MLP's second projection reads (printed ``L3N17``); or ``pre_linear``, the up projection
            before its product with the gate (``L3.pre_linear17``), which Zhao et al. call the neuron of gated MLPs.
            The two are different quantities: ``post = act(pre) * pre_linear``.

    Raises:
        UnsupportedModel: ``pre_linear`` of a model whose MLPs are not gated.
        ValueError: ``at`` is something else.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> la.neurons(model)[3, 17], len(la.neurons(model))
        (L3N17, 2048)
    """
    if at == "post":
        return _all(model, "neuron")
    if at != "pre_linear":
        raise ValueError(f"neurons are at 'post' or 'pre_linear', got {at!r}")
    if not is_gated(model):
        raise UnsupportedModel(
            "this model's MLPs are not gated, so they have no hook_pre_linear; its neurons are neurons(model), at "
            "hook_post"
        )
    return _all(model, "pre_linear")


def patterns(model: LensModel) -> SiteSet:
    """Every head's attention pattern, ``[layer, head]``, replaced at ``hook_z`` as ``pattern @ v``."""
    return _all(model, "pattern")


def attentions(model: LensModel) -> SiteSet:
    """Every attention layer's output, ``[layer]``, at ``hook_attn_out``."""
    return _all(model, "attention")


def mlps(model: LensModel) -> SiteSet:
    """Every MLP's output, ``[layer]``, at ``hook_mlp_out``."""
    return _all(model, "mlp")


def reader_rows(model: LensModel, kinds: Sequence[Kind] = READER_KINDS) -> list[SiteSet]:
    """The rows of weights on the side of the input, one set of sites for each kind of unit.

    With ``Zero()`` the ablation of a unit equals zeroing the row of weights that reads it: ``attn_in`` and ``mlp_in``
    (what the attention and MLP projections read, ``[layer, unit]``), ``z`` (``[layer, head, unit]``) and ``neuron``
    (``[layer, unit]``), what the output projections read. These are the components of GPT-2 in Shah et al.

    Args:
        model: A TransformerLens model with raw weights.
        kinds: Which of the four; all by default.

    Raises:
        UnsupportedModel: weights were processed, or a hook of this model is not what its linear maps read.

    Reference:
        Shah et al., *Decomposing and Editing Predictions by Modeling Model Computation*, 2024, arXiv:2404.11534

    Example:
        >>> import lens_ablation as la
        >>> [len(sites) for sites in la.reader_rows(la.load_model("tiny-lm"))]
        [512, 512, 512, 2048]
    """
    return _rows(model, kinds, READER_KINDS, "reader_rows")


def writer_rows(model: LensModel, kinds: Sequence[Kind] | None = None) -> list[SiteSet]:
    """The rows of weights on the side of the output, one set of sites for each kind of unit.

    With ``Bias()`` the ablation of a unit equals zeroing the row of weights that gives it: ``q``, ``k``, ``v``
    (``[layer, head, unit]``; under grouped queries ``k`` and ``v`` count key and value heads), ``attn_out``, ``pre``
    (of gated MLPs the gate, and ``pre_linear`` what it multiplies) and ``mlp_out`` (``[layer, unit]``). These are the
    components of the vision transformer in Shah et al.

    Args:
        model: A TransformerLens model with raw weights.
        kinds: Which of them; all that the model has by default.

    Raises:
        UnsupportedModel: weights were processed, a hook of this model is not the output of one linear map, or, with
            all kinds, the output of a linear map shows at no hook.

    Reference:
        Shah et al., *Decomposing and Editing Predictions by Modeling Model Computation*, 2024, arXiv:2404.11534

    Example:
        >>> import lens_ablation as la
        >>> [sites.kind for sites in la.writer_rows(la.load_model("tiny-vit"))]
        ['q', 'k', 'v', 'attn_out', 'pre', 'mlp_out']
    """
    if kinds is not None:
        return _rows(model, kinds, WRITER_KINDS, "writer_rows")
    found = _rows(
        model, [kind for kind in WRITER_KINDS if is_gated(model) or kind != "pre_linear"], WRITER_KINDS, "writer_rows"
    )
    unhooked = unhooked_maps(model)
    if unhooked:
        raise UnsupportedModel(
            f"{unhooked}, so not all rows of weights can be ablated; name those you want with kinds=[...]"
        )
    return found


def _rows(model: LensModel, kinds: Sequence[Kind], known: Sequence[Kind], verb: str) -> list[SiteSet]:
    wrong = [kind for kind in kinds if kind not in known]
    if wrong or not kinds:
        raise UnknownSite(f"kinds of {verb} are {', '.join(known)}; got {', '.join(wrong) or 'none'}")
    refused: dict[Kind, str] = {}
    found = [_all(model, kind) for kind in kinds]
    for kind, sites in zip(kinds, found, strict=True):
        try:
            require_rows(model, sites.hook_points[0].activation)
        except UnsupportedModel as error:
            refused[kind] = str(error)
    if refused:
        served = [kind for kind in kinds if kind not in refused]
        fix = f" {verb}(model, kinds={served}) gives the others." if served else ""
        raise UnsupportedModel(" ".join(dict.fromkeys(refused.values())) + fix)
    return found
