"""The counting behind the limits of the benchmarks."""

import torch

import lens_ablation as la
from tests.benchmarks.products import matmul_rate, operations, products_of
from tests.benchmarks.work import cost_of, loop, one_of_each_layer, prompts, sweep


def test_products_are_counted_by_shape():
    a, b, bias = torch.randn(3, 4), torch.randn(4, 5), torch.randn(5)
    counts = products_of(lambda: [a @ b, torch.addmm(bias, a, b), torch.nn.functional.linear(a, b.T.contiguous())])
    assert sum(n * operations(product) for product, n in counts.items()) == 3 * 2 * 3 * 4 * 5
    batched = products_of(lambda: torch.randn(2, 3, 4) @ torch.randn(2, 4, 5))
    assert [operations(product) for product in batched] == [2 * 2 * 3 * 4 * 5]
    assert matmul_rate(counts) > 0


def test_a_sweep_does_little_more_than_what_is_counted_as_necessary():
    model = la.load_model("tiny-lm")
    task, heads = prompts(model, 4, 16), la.heads(model)
    counts = products_of(lambda: sweep(model, task, heads))
    done = sum(n * operations(product) for product, n in counts.items())
    assert 0.95 <= done / cost_of(model, task, heads).work <= 1.3


def test_the_loop_and_the_sweep_give_the_same_numbers():
    model = la.load_model("tiny-lm")
    task, heads = prompts(model, 2, 8), la.heads(model)
    few = one_of_each_layer(heads)
    assert [heads.addresses[i, 0] for i in few] == [0, 1, 2, 3]
    torch.testing.assert_close(sweep(model, task, heads)[few], loop(model, task, heads.take(few)), atol=1e-4, rtol=1e-4)
