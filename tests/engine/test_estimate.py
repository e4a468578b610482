"""What a run is said to cost against what it does cost."""

from typing import Any

import numpy as np
import pytest
import torch

import lens_ablation as la
from lens_ablation.engine import estimate as estimate_module
from lens_ablation.engine import part as part_module
from lens_ablation.engine import variants as variants_module
from lens_ablation.engine.clean import CleanPass
from lens_ablation.engine.estimate import estimate_job
from lens_ablation.engine.options import Engine
from lens_ablation.engine.part import Part
from lens_ablation.engine.removals import Ablation
from lens_ablation.engine.variants import variants_job
from tests.engine.one_at_a_time import a_task, random_flags
from tests.families import D_HEAD, D_MLP, D_MODEL, D_VOCAB, FAMILIES, N_HEADS, N_LAYERS, Family, build

pytestmark = pytest.mark.model
N_POS = 6
# a block: queries, keys and values, output projection, and two maps of the MLP
ATTENTION = 2 * N_POS * 3 * D_MODEL * D_MODEL + 4 * N_POS**2 * N_HEADS * D_HEAD
OUTPUT, MLP = 2 * D_MODEL * D_MODEL, 2 * 2 * D_MODEL * D_MLP
BLOCK = ATTENTION + N_POS * (OUTPUT + MLP)
HEAD = 2 * D_MODEL * D_VOCAB


@pytest.fixture(scope="module")
def gpt2() -> Family:
    return build("gpt2")


def test_work_of_a_sweep_equals_a_count_by_hand(gpt2: Family):
    task = a_task(gpt2, n=2)
    found = la.estimate(gpt2.model, task, la.heads(gpt2.model), la.Zero()).work
    clean = N_LAYERS * BLOCK + N_POS * HEAD
    last = ATTENTION + OUTPUT + MLP  # after attention, the last block runs at one position only
    # what attention gives is known in the block that a head is ablated in
    of_first_layer = [(N_LAYERS - 1 - layer) * BLOCK + last + HEAD - ATTENTION for layer in range(N_LAYERS)]
    assert found == 2 * (clean + N_HEADS * sum(of_first_layer))


def test_work_without_shortcuts_is_that_of_whole_passes(gpt2: Family):
    task = a_task(gpt2, n=2)
    found = la.estimate(gpt2.model, task, la.heads(gpt2.model), la.Zero(), engine=la.Engine(reuse=False)).work
    assert found == 2 * (1 + N_LAYERS * N_HEADS) * (N_LAYERS * BLOCK + N_POS * HEAD)


def test_kept_linear_maps_are_not_work(gpt2: Family, monkeypatch: pytest.MonkeyPatch):
    task, neurons = a_task(gpt2, n=2), la.neurons(gpt2.model)
    before = la.estimate(gpt2.model, task, neurons, la.Zero()).work
    monkeypatch.setattr(estimate_module, "WORTH_KEEPING", 0)
    monkeypatch.setattr(part_module, "WORTH_KEEPING", 0)
    saved = before - la.estimate(gpt2.model, task, neurons, la.Zero()).work
    in_one_block = OUTPUT + MLP // 2  # attention's output projection and the first map of the MLP
    # saved where a row joins; in the last block kept maps are computed at all positions for rows that joined before
    assert saved == 2 * D_MLP * N_LAYERS * in_one_block


@pytest.mark.parametrize("shards", ["one", "several"])
@pytest.mark.parametrize("batch_size", [None, 1, 4, 7])
def test_passes_and_rows_are_those_that_run(
    gpt2: Family, batch_size: int | None, shards: str, monkeypatch: pytest.MonkeyPatch
):
    if shards == "several":
        monkeypatch.setattr(variants_module, "LEAST_VARIANTS", 5)
        monkeypatch.setattr(variants_module, "SHARD_ROWS", 1)
    task, heads = a_task(gpt2, n=5), la.heads(gpt2.model)
    cost = la.estimate(gpt2.model, task, heads, la.Zero(), batch_size=batch_size)
    passes: list[str] = []
    rows: list[int] = []
    clean, scores = CleanPass.__init__, Part.scores

    def counted_clean(self: CleanPass, *args: Any, **kwargs: Any) -> None:
        passes.append("clean")
        clean(self, *args, **kwargs)

    def counted_scores(self: Part, flags: Any) -> torch.Tensor:
        passes.append("ablated")
        rows.append(len(flags[0]) * self.n_examples)
        return scores(self, flags)

    monkeypatch.setattr(CleanPass, "__init__", counted_clean)
    monkeypatch.setattr(Part, "scores", counted_scores)
    la.sweep(gpt2.model, task, heads, la.Zero(), batch_size=batch_size, progress=False)
    assert cost.passes == len(passes)
    assert cost.rows == sum(rows) == 5 * len(heads)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_can_be_estimated(name: str):
    family = build(name)
    task = a_task(family)
    for sites in (la.heads(family.model), la.neurons(family.model)):
        cost = la.estimate(family.model, task, sites, la.Zero())
        assert cost.seconds > 0
        assert cost.work > 0
        assert cost.memory_bytes > 0
        assert cost.rows == 3 * len(sites)


def test_later_layers_cost_less(gpt2: Family):
    task = a_task(gpt2)
    work = [la.estimate(gpt2.model, task, la.heads(gpt2.model)[i], la.Zero()).work for i in range(N_LAYERS)]
    assert work == sorted(work, reverse=True)
    assert len(set(work)) == N_LAYERS


def test_several_ablations_start_at_the_first_of_them(gpt2: Family):
    task = a_task(gpt2)
    heads, mlps = la.heads(gpt2.model), la.mlps(gpt2.model)
    flags, others = random_flags(heads, 9), random_flags(mlps, 9, seed=4)
    options: dict[str, Any] = {"positions": "all", "batch_size": None, "engine": Engine()}
    ablations = [Ablation(heads, flags, la.Zero()), Ablation(mlps, others, la.Zero())]
    both = estimate_job(variants_job(gpt2.model, task, ablations, **options))
    alone = [estimate_job(variants_job(gpt2.model, task, [part], **options)) for part in ablations]
    assert both.rows == 27
    assert both.work >= max(part.work for part in alone)
    first = np.minimum(*(part.removed.first_layers(part.sites, N_LAYERS) for part in ablations))
    assert int((first < N_LAYERS).sum()) > 0


def test_an_estimate_reads_as_a_sentence(gpt2: Family):
    text = str(la.Estimate(passes=1234, rows=56789, work=3.21e12, seconds=45.678, memory_bytes=300 * 2**20))
    assert text == "1,234 passes over 56,789 rows, 3.2e+12 operations, about 45.7 s and 300 MiB"


def test_metrics_that_read_all_logits_cost_all_of_them(gpt2: Family):
    task, heads = a_task(gpt2, n=2), la.heads(gpt2.model)
    whole = task.with_metric(lambda logits, batch: logits.flatten(1).mean(dim=1))
    found = la.estimate(gpt2.model, whole, heads, la.Zero()).work
    of_first_layer = [(N_LAYERS - layer) * BLOCK + N_POS * HEAD for layer in range(N_LAYERS)]
    assert found == 2 * (N_LAYERS * BLOCK + N_POS * HEAD + N_HEADS * sum(of_first_layer))
