"""Products by the vendor's quickest algorithm, and products added in place, equal plain ones, captured and not."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nap_runtime.models import products

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
tuned = pytest.mark.skipif(find_spec("nvmath") is None, reason="needs nvmath-python")
SIZES = [(330, 4096, 12288), (32, 4096, 4096), (33, 1000, 512)]


def random(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator(device="cuda").manual_seed(seed)
    return torch.randn(shape, generator=draw, device="cuda").to(torch.bfloat16)


def check(got: Tensor, a: Tensor, w: Tensor, start: Tensor | None = None) -> None:
    want = a.float() @ w.float().t()
    want = want if start is None else want + start.float()
    torch.testing.assert_close(got.float(), want, rtol=2**-7, atol=2**-7 * float(want.abs().max()))


@tuned
@pytest.mark.parametrize(("rows", "outputs", "inputs"), SIZES)
@torch.inference_mode()
def test_a_tuned_product(rows: int, outputs: int, inputs: int) -> None:
    for seed in range(2):  # the second time with other operands, by what the first has found
        a, w = random(rows, inputs, seed=seed), random(outputs, inputs, seed=seed + 9)
        got = products.tuned_product(a, w)
        assert got.is_contiguous()
        check(got, a, w)


@tuned
@pytest.mark.parametrize(("rows", "outputs", "inputs"), SIZES)
@torch.inference_mode()
def test_a_tuned_product_added_in_place(rows: int, outputs: int, inputs: int) -> None:
    for seed in range(2):
        a, w, x = random(rows, inputs), random(outputs, inputs, seed=9), 30 * random(rows, outputs, seed=seed)
        start = x.clone()
        products.add_tuned_product(x, a, w)
        check(x, a, w, start)


@tuned
@torch.inference_mode()
def test_a_captured_one_reads_what_its_operands_hold_then() -> None:
    a, w = random(64, 512), random(256, 512, seed=1)
    products.tuned_product(a, w)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = products.tuned_product(a, w)
    a.copy_(random(64, 512, seed=7))
    graph.replay()
    check(got, a, w)
    torch.testing.assert_close(products.tuned_product(a, w), got)  # and it still runs outside


@torch.inference_mode()
def test_a_product_added_in_place_is_rounded_once() -> None:
    a, w, x = random(96, 512), random(256, 512, seed=1), 30 * random(96, 256, seed=2)
    start = x.clone()
    products.add_product(x, a, w)
    want = (start.float() + a.float() @ w.float().t()).to(torch.bfloat16)
    assert (x == want).float().mean() > 0.99  # elsewhere the order of a sum decides a rounding
    assert (x == start + F.linear(a, w)).float().mean() < 0.99
