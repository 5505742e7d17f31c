"""Products as operations of their own: what they add up to, and what a tuned one is kept for. GPU parts: tests/gpu."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nap_runtime.models import products


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_product_is_added_where_the_stream_stands(dtype: torch.dtype) -> None:
    x, a, w = (torch.randn(shape).to(dtype) for shape in ((5, 8), (5, 4), (8, 4)))
    want, place = x + a @ w.t(), x.data_ptr()
    torch.library.opcheck(products.add_product, (x.clone(), a, w))
    products.add_product(x, a, w)
    torch.testing.assert_close(x, want, rtol=0.02, atol=1e-12 if dtype == torch.float64 else 0.05)
    assert x.data_ptr() == place


def test_a_tuned_product_serves_one_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models of one shape in one process: a plan for bfloat16 reads float32 operands as something else."""

    class Plan:
        def __init__(self, x: Tensor, a: Tensor, w: Tensor, *, add: bool) -> None:
            self.dtype = a.dtype

        def __call__(self, x: Tensor, a: Tensor, w: Tensor) -> None:
            assert x.dtype == a.dtype == w.dtype == self.dtype

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)  # no question for torch without CUDA
    known: dict[Any, Any] = {}
    monkeypatch.setattr(products, "_tuned", known)
    monkeypatch.setattr(products, "_Tuned", Plan)
    for dtype in (torch.bfloat16, torch.float32, torch.bfloat16):
        products.tuned_product(torch.ones((3, 4), dtype=dtype), torch.ones((2, 4), dtype=dtype))
    assert len(known) == 2
