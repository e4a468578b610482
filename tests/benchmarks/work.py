"""The work that is timed: models, and the loops that one writes with TransformerLens alone."""

from collections.abc import Iterable
from typing import Any

import torch
import transformers
from torch import Tensor
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

import lens_ablation as la
from lens_ablation.data.task import Task
from lens_ablation.engine.estimate import Estimate, estimate_job
from lens_ablation.engine.options import Engine
from lens_ablation.engine.removals import Ablation, OneEach
from lens_ablation.engine.variants import VariantsJob, variants_job
from lens_ablation.models.protocol import LensModel
from lens_ablation.sites import Site, SiteSet


def gpt2(device: str = "cpu", **config: Any) -> LensModel:
    """A model of the shape of GPT-2 small with random weights, or of another of its kind."""
    torch.manual_seed(0)
    settings = transformers.GPT2Config(attn_implementation="eager", **config)
    plain = transformers.GPT2LMHeadModel(settings).eval()
    plain.set_attn_implementation("eager")
    model = build_bridge_from_module(plain, "GPT2LMHeadModel", hf_config=settings, dtype=torch.float32, device="cpu")
    return model.to(device)


def prompts(model: LensModel, n: int, n_pos: int) -> Task:
    """Random prompts with an answer at their last token."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, int(model.cfg.d_vocab), (n, n_pos), generator=generator)
    return Task(inputs=tokens, answers=torch.randint(4, int(model.cfg.d_vocab), (n,), generator=generator))


def loop(model: LensModel, task: Task, sites: Iterable[Site]) -> Tensor:
    """The metric ``[site, example]``, with one forward pass for each site."""
    on = next(iter(model.parameters())).device
    inputs, mask = task.inputs.to(on), task.attention_mask
    padded = {} if mask is None or bool(mask.all()) else {"attention_mask": mask.to(on)}
    rows = []
    with torch.inference_mode():
        for site in sites:
            index = site.head if site.kind == "head" else site.unit

            def remove(activation: Tensor, hook: object, index: int = index) -> Tensor:
                activation = activation.clone()
                activation[:, :, index] = 0
                return activation

            logits = model.run_with_hooks(inputs, fwd_hooks=[(site.hook_name, remove)], **padded)
            rows.append(task.score(logits).cpu())
    return torch.stack(rows)


def sweep(model: LensModel, task: Task, sites: SiteSet, **options: Any) -> Tensor:
    """The same numbers by this package."""
    return la.sweep(model, task, sites, la.Zero(), progress=False, **options).values


def one_of_each_layer(sites: SiteSet) -> list[int]:
    """Places of one site of each layer among the sites: another one in each."""
    layers = sites.addresses[:, 0].tolist()
    by_layer = [[i for i, layer in enumerate(layers) if layer == wanted] for wanted in sites.layers]
    return [places[layer % len(places)] for layer, places in enumerate(by_layer)]


def job_of(model: LensModel, task: Task, sites: SiteSet, engine: Engine | None = None, **options: Any) -> VariantsJob:
    """What ``sweep`` runs."""
    ablations = [Ablation(sites, OneEach(len(sites)), la.Zero())]
    settings = {"positions": "all", "batch_size": None, "engine": engine or Engine(), **options}
    return variants_job(model, task, ablations, **settings)


def cost_of(model: LensModel, task: Task, sites: SiteSet) -> Estimate:
    """What a sweep over these sites costs."""
    return estimate_job(job_of(model, task, sites))


def flags_cost(model: LensModel, task: Task, ablations: list[Ablation]) -> Estimate:
    """What a run of these ablations costs."""
    return estimate_job(variants_job(model, task, ablations, positions="all", batch_size=None, engine=Engine()))
