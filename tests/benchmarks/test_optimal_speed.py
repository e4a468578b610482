"""Optimal constants of every head and MLP at once, against training one site after another; run with ``make bench``."""

import time

import torch
from torch import Tensor

import lens_ablation as la
from lens_ablation.engine.gates import frozen_weights
from lens_ablation.optimal.problems import spreads
from lens_ablation.optimal.split import Split, split_task
from tests.benchmarks.table import Row, Table

STEPS, BATCH, LR = 100, 4, 0.02


def one_after_another(
    model, split: Split, sites: list[la.Site], starts: dict[str, Tensor], rates: dict[str, float]
) -> list[Tensor]:
    """What one would write: for each site a hook with a parameter, AdamW, and KL at the last token."""
    found = []
    batches = torch.arange(split.training.n_examples).split(BATCH)
    with frozen_weights(model):
        for site in sites:
            start = starts[site.hook_name]
            constant = (start if site.head is None else start[site.head]).clone().requires_grad_(True)
            optimizer = torch.optim.AdamW([constant], lr=rates[site.hook_name], weight_decay=0.0)

            def replace(activation: Tensor, hook, constant=constant, head=site.head) -> Tensor:
                changed = activation.clone()
                if head is None:
                    changed[:, 1:] = constant
                else:
                    changed[:, 1:, head] = constant
                return changed

            for step in range(STEPS):
                epoch, place = divmod(step, len(batches))
                order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(epoch))
                batch = split.training.select(batches[int(order[place])])
                mask = None if batch.attention_mask is None else batch.attention_mask.long()
                options = {} if mask is None or bool(mask.all()) else {"attention_mask": mask}
                rows = torch.arange(batch.n_examples)
                last = batch.answer_positions[:, 0]
                with torch.no_grad():
                    clean = model(batch.inputs, **options)[rows, last].log_softmax(dim=-1)
                hooks = [(site.hook_name, replace)]
                ablated = model.run_with_hooks(batch.inputs, fwd_hooks=hooks, **options)[rows, last].log_softmax(dim=-1)
                loss = (clean.exp() * (clean - ablated)).sum(dim=-1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            found.append(constant.detach())
    return found


def test_every_head_and_mlp_of_tiny_lm(benchmark, table: Table):
    """The same steps on the same batches, same constants; the loop runs a head and the MLP of each layer, scaled."""
    model = la.load_model("tiny-lm")
    task = la.tasks.ioi(model, n=128, split="train").with_metric(la.metrics.kl_from_clean)
    split = split_task(task, None, 0, allow_small=False)
    sets = [la.heads(model), la.mlps(model)]
    n_sites = sum(len(sites) for sites in sets)
    few = [site for sites in sets for site in sites if site.head in (None, 3)]
    stats = la.collect_statistics(
        model, split.training, sets, positions="all_but_first", histograms=False, allow_small=True, progress=False
    )
    starts = {point.name: stats[point].mean.float() for point in stats}
    rates = {point.name: LR * spread for point, spread in spreads(stats).items()}

    def together() -> la.OptimalConstants:
        return la.fit_optimal(
            model, task, sets, steps=STEPS, batch_size=BATCH, lr=LR, evaluate_every=STEPS, progress=False
        )

    alone, constants = one_after_another(model, split, few, starts, rates), together()
    for site, expected in zip(few, alone, strict=True):
        own = constants[site.hook_name]
        if int(constants.best_step[constants.problems.index(str(site))]) == STEPS:
            torch.testing.assert_close(own if site.head is None else own[site.head], expected, atol=2e-3, rtol=1e-2)
    table.compare(
        benchmark,
        together,
        lambda: one_after_another(model, split, few, starts, rates),
        scale=n_sites / len(few),
        work=f"optimal constants of {n_sites} heads and MLPs, tiny-lm, {STEPS} steps of {BATCH} prompts",
        against=f"training one site after another ({len(few)} of them, scaled)",
        floor=5,
        device="cpu",
        rounds=3,
    )


def test_all_sites_of_tiny_lm_within_three_minutes(benchmark, table: Table):
    model = la.load_model("tiny-lm")
    task = la.tasks.ioi(model, n=256, split="train")
    seconds: list[float] = []

    def fit() -> None:
        start = time.perf_counter()
        la.fit_optimal(model, task, [la.heads(model), la.mlps(model)], progress=False)
        seconds.append(time.perf_counter() - start)

    benchmark.pedantic(fit, rounds=1)
    row = Row(
        work="optimal constants of all heads and MLPs, tiny-lm, default schedule to its end",
        against="three minutes",
        device="cpu",
        ours=seconds[0],
        theirs=180.0,
        ratio=seconds[0] / 180.0,
        bound="at most",
        floor=1.0,
    )
    table.keep(row)
