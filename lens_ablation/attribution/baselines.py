"""Baselines that COAR is compared with: leave-one-out, gradients, and chance."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lens_ablation.attribution.attribution import Attribution
from lens_ablation.attribution.outputs import BACKWARD_COST, Setting, mask_outputs
from lens_ablation.attribution.strategy import Attributor, finished, require_slopes
from lens_ablation.engine.removals import Ablation, OneEach
from lens_ablation.engine.variants import run_variants


@dataclass(frozen=True)
class LeaveOneOut(Attributor):
    """How much the output falls when a component is ablated alone: ``f(all kept) - f(all but one)``.

    Costs a forward pass for each component.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> found = la.attribute(model, la.tasks.ioi(model, n=8), la.heads(model), la.LeaveOneOut(), progress=False)
        >>> found.n_passes
        33
    """

    @property
    def settings(self) -> Mapping[str, object]:
        return {}

    def rows(self, setting: Setting) -> int:
        return len(setting.components) * setting.task.n_examples

    def attribute(self, setting: Setting, advance: Callable[[int], None]) -> Attribution:
        effects: list[Tensor] = []
        baseline = torch.zeros(setting.task.n_examples)
        for place, (sites, method) in enumerate(zip(setting.components.sets, setting.methods, strict=True)):
            scores = run_variants(
                setting.model,
                setting.task,
                [Ablation(sites, OneEach(len(sites)), method)],
                positions=setting.positions,
                batch_size=setting.batch_size,
                engine=setting.engine.part(f"set-{place}"),
                advance=advance,
            )
            baseline = scores.baseline
            effects.append(scores.baseline - scores.values)
        weights = torch.cat(effects).T.contiguous()
        return finished(self, setting, weights=weights, baseline=baseline, n_passes=1 + len(setting.components))


@dataclass(frozen=True)
class GradientTimesMask(Attributor):
    """Slope of the output in each component's keep gate, at the untouched model.

    With zero ablation this is activation times gradient, and for a component that is a row of weights the same as
    gradient times parameter. Costs one forward and one backward pass.

    Reference:
        Shah, Ilyas, Madry, 2024, arXiv:2404.11534, the baseline called gradient times parameter.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task = la.tasks.ioi(model, n=8)
        >>> la.attribute(model, task, la.heads(model), la.GradientTimesMask(), progress=False).n_passes
        3
    """

    @property
    def settings(self) -> Mapping[str, object]:
        return {}

    def rows(self, setting: Setting) -> int:
        return setting.task.n_examples

    def attribute(self, setting: Setting, advance: Callable[[int], None]) -> Attribution:
        require_slopes(setting)
        nothing = np.zeros((1, len(setting.components)), dtype=bool)
        outputs = mask_outputs(setting, nothing, 1, advance)
        assert outputs.slopes is not None
        return finished(self, setting, weights=outputs.slopes.kept, baseline=outputs.baseline, n_passes=BACKWARD_COST)


@dataclass(frozen=True)
class RandomAttribution(Attributor):
    """Weights drawn from a normal distribution: what chance reaches.

    Attributes:
        seed: Draws the weights.

    Example:
        >>> import lens_ablation as la
        >>> model = la.load_model("tiny-lm")
        >>> task = la.tasks.ioi(model, n=8)
        >>> la.attribute(model, task, la.heads(model), la.RandomAttribution(), progress=False).weights.shape
        torch.Size([8, 32])
    """

    seed: int = 0

    @property
    def name(self) -> str:
        return "Random"

    @property
    def settings(self) -> Mapping[str, object]:
        return {"seed": self.seed}

    def rows(self, setting: Setting) -> int:
        return setting.task.n_examples

    def attribute(self, setting: Setting, advance: Callable[[int], None]) -> Attribution:
        nothing = np.zeros((1, len(setting.components)), dtype=bool)
        baseline = mask_outputs(setting, nothing, 0, advance).baseline
        generator = torch.Generator().manual_seed(self.seed)
        weights = torch.randn(len(baseline), len(setting.components), generator=generator)
        return finished(self, setting, weights=weights, baseline=baseline, n_passes=0)
