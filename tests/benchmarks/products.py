"""The matrix products that some work runs, and how fast this machine does these very products on their own."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.benchmarks.table import seconds_of

Layout = tuple[tuple[int, ...], tuple[int, ...]]
Product = tuple[str, tuple[Layout, ...]]

_NAMES = ("mm", "addmm", "bmm", "baddbmm", "linear")
LEAST_SECONDS = 0.02
"""Each product is repeated for about this long."""


class Products(TorchDispatchMode):
    """Counts matrix products by shapes and strides while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _NAMES:
            layouts = tuple((tuple(x.shape), tuple(x.stride())) for x in args if isinstance(x, Tensor))
            self.counts[name, layouts] += 1
        return func(*args, **(kwargs or {}))


def products_of(work: Callable[[], object]) -> Counter[Product]:
    """The matrix products that ``work`` runs."""
    with Products() as seen:
        work()
    return seen.counts


def operations(product: Product) -> float:
    """Two to a multiplication and addition."""
    name, layouts = product
    a, b = layouts[1:3] if name in ("addmm", "baddbmm") else layouts[:2]
    total = 1
    for size in a[0]:
        total *= size
    return 2.0 * total * (b[0][0] if name == "linear" else b[0][-1])


def matmul_rate(counts: Counter[Product], device: str = "cpu") -> float:
    """Operations in a second of all these products, each timed alone and weighted by its share of the work."""
    total, seconds = 0.0, 0.0
    with torch.inference_mode():
        for product, n in counts.items():
            total += n * operations(product)
            seconds += n * _seconds_of_one(product, device)
    return total / seconds


def _seconds_of_one(product: Product, device: str) -> float:
    name, layouts = product
    tensors = [torch.empty_strided(shape, stride, device=device).normal_() for shape, stride in layouts]
    run = getattr(torch.nn.functional if name == "linear" else torch, name)

    def many(n: int) -> None:
        for _ in range(n):
            run(*tensors)

    once = min(seconds_of(lambda: many(1), device) for _ in range(2))
    n = max(1, int(LEAST_SECONDS / 3 / once))
    return sorted(seconds_of(lambda: many(n), device) / n for _ in range(3))[1]
