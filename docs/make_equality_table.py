"""Print how far the engine is from one plain forward pass to an ablation: ``python -m docs.make_equality_table``.

One row to a family and method: the largest difference over every kind of site and every way of cutting the work into
passes, in float64 and in float32, beside the largest effect of an ablation. Values are losses in nats. Run from the
root of the repository, as the small random models are those of the tests.
"""

import torch

from tests.engine.one_at_a_time import (
    METHODS,
    SELECT,
    a_task,
    alone,
    by_the_engine,
    each_alone,
    effect,
    kinds_of,
    some,
    statistics,
)
from tests.families import FAMILIES, build

SITES, EXAMPLES = 6, 5
"""Sites of each kind, and examples."""

CUTS = [(1, 1), (2, 3), (5, 6)]
"""Examples and variants in a pass. One cut would not do: matrix products of some sizes round every row alike, and the
difference is then exactly 0 by the luck of the size."""


def differences(name: str, dtype: torch.dtype) -> dict[str, tuple[float, float]]:
    """Largest difference and largest effect of each method, in nats."""
    family = build(name, dtype=dtype)
    task = a_task(family, n=EXAMPLES)
    stats = statistics(family, task)
    found: dict[str, tuple[float, float]] = {}
    for label, make in METHODS.items():
        method, pairs = make(task, stats), []
        for kind in kinds_of(name):
            if (kind, label) == ("pattern", "noise"):
                continue
            sites = some(SELECT[kind](family.model), SITES)
            expected = each_alone(family, task, sites, method)
            for examples, variants in CUTS:
                values = by_the_engine(
                    family, task, alone(sites, method), examples_at_once=examples, variants_at_once=variants
                )
                pairs.append((float((values - expected).abs().max()), effect(family, task, expected)))
        found[label] = max(difference for difference, _ in pairs), max(moved for _, moved in pairs)
    return found


def table() -> str:
    """The table, in Markdown."""
    rows = ["| family | method | difference, float64 | difference, float32 | largest effect |", "|---|---|---|---|---|"]
    for name in FAMILIES:
        exact, single = (differences(name, dtype) for dtype in (torch.float64, torch.float32))
        rows += [
            f"| {name} | {label} | {exact[label][0]:.1e} | {single[label][0]:.1e} | {exact[label][1]:.2g} |"
            for label in METHODS
        ]
    return "\n".join(rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table())
