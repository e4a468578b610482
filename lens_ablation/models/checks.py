"""Proof, on a small batch, that each hook point of a model is live and means what its name says."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import pandas as pd
import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from lens_ablation.errors import HookHadNoEffect, UnsupportedModel
from lens_ablation.models.anatomy import ACTIVATIONS, Anatomy, anatomy, probe_inputs
from lens_ablation.models.fingerprint import model_name
from lens_ablation.models.forward import forward
from lens_ablation.models.protocol import FwdHook, LensModel, require_evaluation_mode
from lens_ablation.models.rows import GIVEN, require_rows

TOLERANCE = 1e-4
"""Largest relative error at which an identity between activations counts as holding."""

_PROJECTIONS = {
    "hook_attn_out": ("attn_out", "blocks.{}.attn.o.hook_out"),
    "hook_mlp_out": ("mlp_out", "blocks.{}.mlp.out.hook_out"),
}
_ROWS = {"attn_in": "ln1_out", "mlp_in": "ln2_out"} | {of: of for of in GIVEN}
"""Kinds of sites that stand for rows of weights, beside ``z`` and ``neuron``, and their activations."""

_SITE_HOOKS = {
    "hook_z": "z",
    "hook_post": "post",
    "hook_pre_linear": "pre_linear",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
}


@dataclass(frozen=True, kw_only=True)
class SiteReport:
    """What ``check_sites`` found.

    Attributes:
        changes: By hook, the largest change of a logit when the hook's activation of the middle layer is replaced by
            noise of its own size; ``pattern through hook_z`` is the way patterns are ablated here.
        direct_pattern_write: The change when ``hook_pattern`` itself is written; 0 on families that ignore it.
        z_is_pattern_v: Relative error of ``hook_z = pattern @ v``.
        additive_residual: Relative error of ``resid_post = resid_pre + attn_out + mlp_out``.
        projections: Relative error of ``hook_attn_out`` and ``hook_mlp_out`` against their output projections, on
            models that show both.
        d_mlp: Measured width of ``hook_post``, and what the configuration states.
    """

    model: str
    anatomy: Anatomy
    changes: dict[str, float]
    direct_pattern_write: float | None
    z_is_pattern_v: float | None
    additive_residual: float | None
    projections: dict[str, float]
    d_mlp: tuple[int, int]

    @property
    def dead(self) -> list[str]:
        """Hooks whose replacement changed nothing."""
        return [name for name, change in self.changes.items() if not change > 0]

    @property
    def patterns_can_be_replaced(self) -> bool:
        """Whether ``hook_z = pattern @ v`` holds, so that patterns can be replaced through it."""
        return self.z_is_pattern_v is not None and self.z_is_pattern_v <= TOLERANCE

    @property
    def residual_is_additive(self) -> bool:
        """Whether layer outputs add up in the residual stream (post-LN models: no)."""
        return self.additive_residual is not None and self.additive_residual <= TOLERANCE

    def is_layer_output(self, hook: str) -> bool:
        """Whether ``hook_attn_out`` or ``hook_mlp_out`` is what its layer adds, and not the stream after it."""
        return self.residual_is_additive or self.projections.get(hook, 1.0) <= TOLERANCE

    def to_dataframe(self) -> pd.DataFrame:
        """One row to a check: what was measured, the number, the verdict."""
        rows: list[tuple[str, float | None, str]] = [
            (f"{name} replaced: change of logits", change, "live" if change > 0 else "DEAD")
            for name, change in self.changes.items()
        ]
        direct = self.direct_pattern_write
        rows.append(("hook_pattern written directly", direct, "acts" if direct else "ignored by this family"))
        rows.append(("hook_z = pattern @ v", self.z_is_pattern_v, _verdict(self.patterns_can_be_replaced)))
        rows.append(("residual stream additive", self.additive_residual, _verdict(self.residual_is_additive)))
        for hook, error in self.projections.items():
            means = "holds" if self.is_layer_output(hook) else "FAILS: another tensor than its name says"
            rows.append((f"{hook} is its layer's output", error, means))
        measured, stated = self.d_mlp
        agree = "agrees" if measured == stated else f"configuration says {stated}; the measured one is used"
        rows.append(("width of hook_post", measured, agree))
        return pd.DataFrame(rows, columns=["check", "value", "verdict"])

    def __str__(self) -> str:
        return f"sites of {self.model}\n{self.to_dataframe().to_string(index=False)}"


_properties: WeakKeyDictionary[Any, SiteReport] = WeakKeyDictionary()


def check_sites(model: LensModel, *, inputs: Tensor | None = None, throw: bool = True) -> SiteReport:
    """Replace each kind of site once on a small batch and require the output to move.

    Also measures whether ``hook_z = pattern @ v``, whether ``hook_post`` is as wide as stated, and whether the
    residual stream is additive; verbs that need one of these refuse where it fails.

    Args:
        model: A TransformerLens model in evaluation mode.
        inputs: Tokens ``[row, pos]`` or pixels ``[row, channel, height, width]``; random ones by default.
        throw: Raise if a hook is dead; ``False`` only reports it.

    Raises:
        HookHadNoEffect: a hook fired and its replacement changed nothing.
        ValueError: the model is in training mode.

    Example:
        >>> import lens_ablation as la
        >>> la.check_sites(la.load_model("tiny-lm")).patterns_can_be_replaced
        True
    """
    sizes = anatomy(model)
    require_evaluation_mode(model)
    inputs = probe_inputs(model, n_examples=3, n_pos=6) if inputs is None else inputs
    layer = sizes.n_layers // 2
    seen = _record(model, inputs, layer)
    clean = _run(model, inputs, [])
    changes = {
        name: _change(clean, _run(model, inputs, [(_name(of, layer), _noise)]))
        for name, of in _SITE_HOOKS.items()
        if of in seen
    }
    direct = None
    if "pattern" in seen:
        shifted = seen["pattern"].roll(1, dims=0) * 0.5
        through_z = _run(model, inputs, _pattern_through_z(layer, shifted))
        changes["pattern through hook_z"] = _change(clean, through_z)
        direct = _change(clean, _run(model, inputs, [(_name("pattern", layer), lambda a, hook: shifted)]))
    report = SiteReport(
        model=model_name(model),
        anatomy=sizes,
        changes=changes,
        direct_pattern_write=direct,
        z_is_pattern_v=_error_of_z(seen),
        additive_residual=_error_of_residual(seen),
        projections=_errors_of_projections(seen),
        d_mlp=(sizes.d_mlp, int(getattr(model.cfg, "d_mlp", 0) or 0)),
    )
    _properties[model] = report
    if throw and report.dead:
        raise HookHadNoEffect(
            f"{report.dead[0]} of {report.model} fires and a replacement changes nothing, so its sites cannot be "
            "ablated on this model. check_sites(model, throw=False) shows which hooks are live."
        )
    return report


def require_meaning(model: LensModel, kind: str) -> None:
    """Refuse sites whose hook is, on this model, another tensor than its name says.

    Patterns need ``hook_z = pattern @ v``; attention and MLP outputs must be what the layer adds; sites that stand for
    rows of weights must equal them.

    Raises:
        UnsupportedModel: the identity fails, or cannot be measured; the message gives the error.
    """
    if kind in _ROWS:
        require_rows(model, _ROWS[kind])
    if kind not in ("pattern", "attention", "mlp"):
        return
    report = _properties.get(model) or check_sites(model, throw=False)
    if kind == "pattern":
        _require_pattern(report)
        return
    hook = {"attention": "hook_attn_out", "mlp": "hook_mlp_out"}[kind]
    if not report.is_layer_output(hook):
        raise UnsupportedModel(
            f"{hook} of this model is not the output of its layer (it differs from the output projection by "
            f"{report.projections.get(hook, float('nan')):.2g} of its norm, and the residual stream is not additive), "
            "so replacing it would ablate more than the layer. Ablate all heads or all neurons of the layer instead."
        )


def _require_pattern(report: SiteReport) -> None:
    if report.z_is_pattern_v is None:
        raise UnsupportedModel(
            "this model's hook_pattern does not fire, so its patterns cannot be ablated. Load it with eager "
            "attention: load_model(...), or model.set_attn_implementation('eager') on the Hugging Face model."
        )
    if not report.patterns_can_be_replaced:
        raise UnsupportedModel(
            f"hook_z differs from pattern @ v by {report.z_is_pattern_v:.2g} of its norm on this model, so replacing "
            "a pattern through hook_z would not be exact. Ablate heads instead."
        )


def _name(of: str, layer: int) -> str:
    return ACTIVATIONS[of].format(layer)


def _run(model: LensModel, inputs: Tensor, fwd_hooks: Sequence[FwdHook]) -> Tensor:
    with torch.inference_mode(), warnings.catch_warnings():
        # the probe writes hook_pattern on purpose, also where the model says that it ignores it
        warnings.filterwarnings("ignore", message=".*discarded.*")
        return forward(model, inputs, fwd_hooks=fwd_hooks)


def _record(model: LensModel, inputs: Tensor, layer: int) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: object, *, of: str) -> None:
        seen[of] = activation.clone()

    names = {of: _name(of, layer) for of in ACTIVATIONS}
    names.update({hook: name.format(layer) for hook, (_, name) in _PROJECTIONS.items()})
    live = [(name, partial(keep, of=of)) for of, name in names.items() if name in model.hook_dict]
    _run(model, inputs, live)
    return seen


def _noise(activation: Tensor, hook: object) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(activation.shape, generator=generator).to(activation)
    return noise * (activation.float().pow(2).mean().sqrt().to(activation) + 0.1)


def _change(clean: Tensor, other: Tensor) -> float:
    return float((other - clean).abs().max())


def _pattern_through_z(layer: int, pattern: Tensor) -> list[tuple[str, Callable[..., Tensor | None]]]:
    kept: dict[str, Tensor] = {}

    def keep_v(v: Tensor, hook: object) -> None:
        kept["v"] = v

    def write_z(z: Tensor, hook: object) -> Tensor:
        return pattern_at_z(pattern, kept["v"]).to(z)

    return [(_name("v", layer), keep_v), (_name("z", layer), write_z)]


def pattern_at_z(
    pattern: Float[Tensor, "row head query key"], v: Float[Tensor, "row key kv_head d_head"]
) -> Float[Tensor, "row query head d_head"]:
    """``hook_z`` as ``pattern @ v``, each key and value head serving the query heads of its group."""
    grouped = repeat(v, "row key kv d -> row key (kv group) d", group=pattern.shape[1] // v.shape[2])
    return torch.einsum("bhqk,bkhd->bqhd", pattern.to(grouped), grouped)


def _error_of_z(seen: dict[str, Tensor]) -> float | None:
    if not {"z", "pattern", "v"} <= seen.keys():
        return None
    z = seen["z"].float()
    return float((z - pattern_at_z(seen["pattern"].float(), seen["v"].float())).norm() / z.norm().clamp(min=1e-12))


def _error_of_residual(seen: dict[str, Tensor]) -> float | None:
    if not {"resid_pre", "attn_out", "mlp_out", "resid_post"} <= seen.keys():
        return None
    post = seen["resid_post"].float()
    total = seen["resid_pre"].float() + seen["attn_out"].float() + seen["mlp_out"].float()
    return float((post - total).norm() / post.norm().clamp(min=1e-12))


def _errors_of_projections(seen: dict[str, Tensor]) -> dict[str, float]:
    errors = {}
    for hook, (of, _) in _PROJECTIONS.items():
        if of in seen and hook in seen:
            out, projection = seen[of].float().flatten(), seen[hook].float().flatten()
            errors[hook] = float((out - projection).norm() / projection.norm().clamp(min=1e-12))
    return errors


def _verdict(holds: bool) -> str:
    return "holds" if holds else "FAILS"
