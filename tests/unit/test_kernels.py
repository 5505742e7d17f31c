"""Kernels of our own equal what they stand for: interpreted on a CPU where Triton is installed, compiled on a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch

from nap_runtime.models import kernels
from nap_runtime.models.transformer import rotate

ON_GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and kernels.triton is not None
DEVICE = "cuda" if ON_GPU else "cpu"
needs_triton = pytest.mark.skipif(not (ON_GPU or INTERPRETED), reason="needs Triton, on a GPU or interpreted")


@pytest.mark.skipif(find_spec("triton") is None or ON_GPU, reason="needs Triton, without a GPU")
def test_interpreted(interpreted: Callable[[str], None]) -> None:
    """The tests below in a process that interprets kernels."""
    interpreted(__file__)


def logits(rows: int, vocab: int, dtype: torch.dtype) -> torch.Tensor:
    draw = torch.Generator().manual_seed(rows)
    return (6 * torch.randn((1, rows, vocab), generator=draw)).to(dtype)


def check_best(x: torch.Tensor, mask_id: int) -> None:
    wide = x.double()
    wide[..., mask_id] = -torch.inf
    ids, scores = kernels.best_of(x.to(DEVICE), mask_id)
    assert torch.equal(ids.cpu(), wide.argmax(-1))
    want = wide.log_softmax(-1).amax(-1)
    torch.testing.assert_close(scores.cpu().double(), want, atol=1e-6, rtol=1e-5)


@needs_triton
@pytest.mark.parametrize(
    ("rows", "vocab", "dtype"),
    [(3, 50, torch.float32), (5, 9001, torch.bfloat16), (2, 40000, torch.bfloat16), (1, 31616, torch.float16)],
    ids=str,
)
def test_best_of_a_vocabulary(rows: int, vocab: int, dtype: torch.dtype) -> None:
    check_best(logits(rows, vocab, dtype), mask_id=7)


@needs_triton
@pytest.mark.parametrize("best", [0, 7, 8, 4095, 4096, 39999])
def test_the_best_is_found_wherever_it_stands_but_at_the_mask(best: int) -> None:
    x = logits(2, 40000, torch.float32)
    x[..., best] = 90.0
    check_best(x, mask_id=8)


@needs_triton
def test_of_equal_logits_the_first_is_best() -> None:
    x = torch.full((1, 3, 20000), -3.0)
    x[0, 1, 19000] = x[0, 1, 400] = 2.5  # of two parts
    x[0, 2, 17] = x[0, 2, 2048 + 17] = 2.5  # of one lane of a block
    ids, _ = kernels.best_of(x.to(DEVICE), mask_id=0)
    assert ids.tolist() == [[1, 400, 17]]


@needs_triton
def test_close_to_certain_a_score_keeps_its_digits() -> None:
    """log p = −3e−18: a probability would be 1 in float32, and in float64 too."""
    x = torch.full((1, 1, 5000), -1e4)
    x[0, 0, 9], x[0, 0, 11] = 20.0, -20.0 - 0.25
    _, scores = kernels.best_of(x.to(DEVICE), mask_id=0)
    assert float(scores) == pytest.approx(-torch.tensor(-40.25).double().exp().item(), rel=1e-5)


@needs_triton
def test_a_row_with_nan_has_nan_as_its_score() -> None:
    """It must not pass for a sure candidate: such a decode fails (`Coordinator`)."""
    x = logits(3, 20000, torch.float32)
    x[0, 0, 15000] = x[0, 1, 7] = torch.nan  # id 7 is the mask
    x[0, 2] = torch.nan
    _, scores = kernels.best_of(x.to(DEVICE), mask_id=7)
    assert scores.isnan().tolist() == [[True, False, True]]


@needs_triton
def test_logits_that_are_no_block_of_memory() -> None:
    x = logits(4, 9100, torch.float32)
    want = x[..., :9001].argmax(-1)
    for strided in (x[..., :9001], x[..., :9001].transpose(1, 2).contiguous().transpose(1, 2)):
        ids, _ = kernels.best_of(strided.to(DEVICE), mask_id=9000)
        assert torch.equal(ids.cpu(), want)


@needs_triton
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)])
def test_the_operations_are_what_they_say_they_are(heads: int, kv_heads: int) -> None:
    """Schemas, and shapes and strides without data: what `torch.compile` goes by."""
    qkv, rope = torch.randn((2, 3, (heads + 2 * kv_heads) * 8)), torch.randn((3, 4))
    store, at = torch.zeros((2, 2, kv_heads, 11, 8)), torch.tensor([1, 5, 9])
    stored = (tensor.to(DEVICE) for tensor in (qkv, rope, rope, at, *store))
    torch.library.opcheck(kernels._rotate_store_op, (*stored, heads, kv_heads))
    torch.library.opcheck(kernels._best_parts, (torch.randn((heads, 9001)).to(DEVICE), 7))


@needs_triton
@pytest.mark.parametrize("row_by_row", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "batch", "rows", "slots"),
    [(4, 4, 16, 2, 9, 30), (6, 2, 8, 2, 5, 11), (28, 4, 128, 1, 3, 7), (32, 32, 128, 1, 4, 9)],
)
def test_rotating_and_storing(
    heads: int, kv_heads: int, width: int, batch: int, rows: int, slots: int, row_by_row: bool
) -> None:
    draw = torch.Generator().manual_seed(heads)
    qkv = torch.randn((batch, rows, (heads + 2 * kv_heads) * width), generator=draw)
    angles = 6 * torch.rand((rows, width // 2), generator=draw)
    rope, at = (angles.cos(), angles.sin()), torch.randperm(slots, generator=draw)[:rows]
    store = torch.zeros((3, 2, batch, kv_heads, slots, width))  # layers, keys and values
    own = store.clone().to(DEVICE)
    if row_by_row:  # as what `exact` sends lies in memory
        own = own.permute(4, 0, 1, 2, 3, 5).contiguous().permute(1, 2, 3, 4, 0, 5)
    q, k, v = qkv.unflatten(-1, (-1, width)).transpose(1, 2).split([heads, kv_heads, kv_heads], dim=1)
    store[1, 0].index_copy_(2, at, rotate(k, *rope))
    store[1, 1].index_copy_(2, at, v)

    there = (tensor.to(DEVICE) for tensor in rope)
    got = kernels.rotate_store(
        qkv.to(DEVICE), tuple(there), at.to(DEVICE), (own[1, 0], own[1, 1]), heads=heads, kv_heads=kv_heads
    )  # type: ignore[arg-type]
    torch.testing.assert_close(got.cpu(), rotate(q, *rope), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(own.cpu(), store, atol=1e-6, rtol=1e-6)
    laid_out = got.transpose(1, 2) if heads == kv_heads else got
    assert laid_out.is_contiguous()


def test_elsewhere_they_are_not_used() -> None:
    x = torch.zeros((1, 2, 64))
    assert not kernels.ranks(x)
    assert not kernels.rotates(x, 16)
