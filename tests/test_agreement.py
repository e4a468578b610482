"""HookedTransformer and TransformerBridge give the same numbers on the same weights."""

import pytest
import torch

import lens_ablation as la
from tests.families import HAS_HOOKED_TRANSFORMER, build

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4 has no HookedTransformer"),
]


@pytest.mark.parametrize(
    "select",
    [la.heads, la.attention_neurons, la.neurons, la.patterns, la.attentions, la.mlps],
    ids=lambda f: f.__name__,
)
def test_sweeps_agree(select):
    sweeps = []
    for name in ("gpt2", "hooked"):
        family = build(name, dtype=torch.float64)
        inputs = family.inputs(40)
        task = la.Task(
            inputs=inputs, answers=inputs[:, 0], wrong_answers=inputs[:, 1], metric=la.metrics.logit_difference
        )
        sites = select(family.model)
        stats = la.collect_statistics(family.model, task, sites, allow_small=True, progress=False)
        methods = [la.Zero(), la.Mean(stats), la.Resample(task, match="batch")]
        if select is not la.patterns:  # peaks of pattern entries near a bin's edge may fall into the next bin
            methods.append(la.Peak(stats))
        sweeps.append(torch.stack([la.sweep(family.model, task, sites, m, progress=False).values for m in methods]))
    torch.testing.assert_close(*sweeps, atol=1e-5, rtol=1e-5)
