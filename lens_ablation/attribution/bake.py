"""An ablation folded into weights and biases: an ordinary Hugging Face model that needs no hooks."""

import json
import shutil
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from lens_ablation.ablation import hooks
from lens_ablation.attribution.folding import (
    Folded,
    fold,
    linear_maps,
    module_path,
    put,
    writes,
)
from lens_ablation.attribution.plain import (
    Difference,
    bias_switches,
    difference,
    plain_copy,
    rounding,
    skeleton,
    wrapped_model,
)
from lens_ablation.errors import UnsupportedModel
from lens_ablation.files import FORMAT, VERSION, publish
from lens_ablation.methods.method import Method
from lens_ablation.models.anatomy import probe_inputs
from lens_ablation.models.fingerprint import fingerprint, model_name, versions, weight_processing
from lens_ablation.models.loading import quiet
from lens_ablation.models.protocol import LensModel, require_evaluation_mode, require_lens_model
from lens_ablation.sites import Site, SiteSet, as_site_set, check_sites_exist

RECORD = "ablation.json"
"""Beside the checkpoint: what was baked into it."""

KIND = "baked-model"

Ablations = Sequence[tuple[Site | SiteSet | Iterable[Site], Method]]
"""Pairs of sites and method, all baked together."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Baked:
    """A Hugging Face model with an ablation in its weights.

    Attributes:
        model: The new model; it shares no memory with the one it was made from.
        parts: What was ablated, and how.
        source: The model it was made from.
        settings: What was baked, and of which model, as plain JSON values.
    """

    model: PreTrainedModel
    parts: tuple[tuple[SiteSet, Method], ...]
    source: LensModel
    settings: dict[str, Any]

    @property
    def sites(self) -> tuple[SiteSet, ...]:
        """The sites of each part."""
        return tuple(sites for sites, _ in self.parts)

    def check(
        self,
        inputs: Int[Tensor, "row pos"] | Float[Tensor, "row channel height width"],
        attention_mask: Bool[Tensor, "row pos"] | Int[Tensor, "row pos"] | None = None,
    ) -> float:
        """Largest difference of logits between this model and the source under ``lens_ablation.ablate``.

        Args:
            inputs: Tokens or pixels.
            attention_mask: True where a token is real; other tokens are not compared.

        Raises:
            BadActivation: a logit is not finite.

        Example:
            >>> import lens_ablation as la
            >>> from lens_ablation.attribution.bake import bake
            >>> model = la.load_model("tiny-lm")
            >>> baked = bake(model, la.heads(model)[2, 1], la.Zero())
            >>> baked.check(la.tasks.ioi(model, n=4).inputs) < 1e-4
            True
        """
        return _apart(self, inputs, attention_mask).largest

    def save(self, folder: str | Path) -> Path:
        """Write a checkpoint that ``lens_ablation.load_model`` and ``from_pretrained`` read, and ``ablation.json``.

        The tokenizer goes with it, if the source has one. All of it is written under a temporary name that is
        renamed at the end. A model that was baked there before is replaced.

        Args:
            folder: A new folder; missing parents are made.

        Raises:
            FileExistsError: the folder holds something that was not written here.
            OSError: it cannot be written.

        Example:
            >>> import tempfile, lens_ablation as la
            >>> from lens_ablation.attribution.bake import bake
            >>> model = la.load_model("tiny-vit")
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     where = bake(model, la.mlps(model)[2], la.Zero()).save(f"{folder}/without-mlp")
            ...     la.load_model(where).cfg.n_layers
            4
        """
        target = Path(folder).expanduser().absolute()
        if target.is_dir() and any(target.iterdir()) and not (target / RECORD).is_file():
            raise FileExistsError(f"{target} holds things that bake did not write. Choose a new folder")
        new = target.with_name(f".{target.name}.{uuid.uuid4().hex}.new")
        try:
            new.mkdir(parents=True)
            self._write(new)
            publish(new, target, own={path.name for path in new.iterdir()})
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return target

    def _write(self, folder: Path) -> None:
        with quiet():
            self.model.save_pretrained(folder)
        tokenizer = getattr(self.source, "tokenizer", None)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        record = {"format": FORMAT, "version": VERSION, "kind": KIND, "settings": self.settings}
        (folder / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")


def bake(
    model: LensModel,
    sites: Site | SiteSet | Iterable[Site] | Ablations,
    method: Method | None = None,
) -> Baked:
    """Fold an ablation to constants into weights and biases, and give back an ordinary Hugging Face model.

    Heads, z coordinates and neurons: the rows of the output projection that read them become zero, and what the
    constant would have added goes into its bias. Attention and MLP outputs: the whole projection becomes zero, and
    the constant its bias. The result is compared with the hooked model on a small batch before it is given back.

    Args:
        model: A ``TransformerBridge`` in evaluation mode; it is left as it is.
        sites: What to ablate, of one kind; or pairs ``(sites, method)``, each with its own kind and method.
        method: What stands in the place of the activation: ``Zero``, ``Constant``, ``Mean``, ``Peak``, ``Optimal``, or
            another that gives each coordinate one value; left out if ``sites`` are pairs.

    Raises:
        ValueError: the method gives no constants; the sites are patterns; two methods write to one site.
        UnsupportedModel: the model is no bridge, its weights were processed, or it has no place for a bias that
            the constant needs.

    Example:
        >>> import lens_ablation as la
        >>> from lens_ablation.attribution.bake import bake
        >>> model = la.load_model("tiny-lm")
        >>> type(bake(model, la.heads(model)[2, 1], la.Zero()).model).__name__
        'GPT2LMHeadModel'
    """
    require_lens_model(model)
    wrapped_model(model)
    require_evaluation_mode(model)
    parts = tuple(_checked(model, *part) for part in _pairs(sites, method))
    folded = _folded(model, parts)
    switches = bias_switches(model, [path for path, new in folded.items() if new.bias is not None])
    plain = plain_copy(model, switches)
    for path, new in folded.items():
        put(plain.get_submodule(path), new)
    baked = Baked(model=plain, parts=parts, source=model, settings=_settings(model, parts, switches))
    _prove(baked)
    return baked


def _pairs(sites: Any, method: Method | None) -> list[tuple[Any, Method]]:
    if method is not None:
        return [(sites, method)]
    pairs = [] if isinstance(sites, Site | SiteSet) else list(sites)
    if not pairs or not all(isinstance(p, tuple) and len(p) == 2 and isinstance(p[1], Method) for p in pairs):
        raise ValueError(
            "give sites and a method, bake(model, sites, Zero()), or pairs, bake(model, [(sites, Zero())])"
        )
    return pairs


def _checked(model: LensModel, sites: Any, method: Method) -> tuple[SiteSet, Method]:
    chosen = check_sites_exist(as_site_set(sites), model)
    if chosen.kind == "pattern":
        raise ValueError(
            "a pattern cannot be baked: under a constant pattern a head still mixes values that depend on the "
            "input, and weights have no place for the pattern itself. Bake the head, or run the model under "
            "lens_ablation.ablate(...)."
        )
    return chosen, method


def _folded(model: LensModel, parts: Sequence[tuple[SiteSet, Method]]) -> dict[str, Folded]:
    """By path in the plain model, the new linear map."""
    written = writes(model, parts)
    for sites, method in parts:
        hooks(model, sites, method)  # refuses sites whose hook means something else on this model
    maps = linear_maps(model, list(written))
    plain = skeleton(model)
    found = {}
    for linear in dict.fromkeys(maps.values()):
        here = {point: write for point, write in written.items() if maps[point] is linear}
        found[module_path(model, linear, plain)] = fold(linear, here)
    return found


def _apart(baked: Baked, inputs: Tensor, attention_mask: Tensor | None) -> Difference:
    pairs = [
        pair
        for sites, method in baked.parts
        for pair in hooks(baked.source, sites, method, attention_mask=attention_mask)
    ]
    return difference(baked.source, baked.model, inputs, attention_mask, pairs)


def _prove(baked: Baked) -> None:
    found, limit = _apart(baked, probe_inputs(baked.source), None), rounding(baked.source)
    if found.relative > limit:
        raise UnsupportedModel(
            f"the baked model differs from the ablated one by {found.largest:.2g} in its logits, {found.relative:.2g} "
            f"of the largest, where rounding allows {limit:.0e} (weight processing: "
            f"{weight_processing(baked.source)}). Processed weights do this: load the model with "
            "lens_ablation.load_model(name_or_path), which leaves them; or a method that gives other values each time."
        )


def _settings(model: LensModel, parts: Sequence[tuple[SiteSet, Method]], switches: Sequence[str]) -> dict[str, Any]:
    return {
        "model": model_name(model),
        "model_fingerprint": fingerprint(model),
        "weight_processing": weight_processing(model),
        "dtype": str(next(iter(model.parameters())).dtype),
        "ablations": [
            {
                "kind": sites.kind,
                "sites": [str(site) for site in sites],
                "method": method.name,
                "settings": dict(method.settings),
            }
            for sites, method in parts
        ],
        "added_biases": list(switches),
        "versions": versions(),
    }
