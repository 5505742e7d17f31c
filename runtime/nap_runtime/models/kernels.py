"""Two Triton kernels for what a compiler leaves on the table: storing rotated keys, and the best of a vocabulary.

Both are bound by memory. `rotate_store` turns one matrix of queries, keys and values into rotated queries, laid out as
attention gives its output, and into rows of the K/V store: each number is read once and written once. `best_of` reads
logits once, where argmax, maximum and sum of exponentials apart read them three times, and spreads one row over several
multiprocessors, so that few rows keep the whole GPU busy.

They are custom operations, so `torch.compile` leaves them alone. Triton comes with torch on GPUs; where it is missing,
or a tensor is not on one, `rotates` and `ranks` say so and the caller does the same by other means.

Shapes: B batch, R rows, X heads of queries, keys and values together, E head_dim, N positions, G key heads,
V vocabulary, P parts.
"""

# No `from __future__ import annotations` here: Triton reads `tl.constexpr` from the annotations themselves.

from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for CPUs comes without
    triton = None

_TAKEN = (torch.bfloat16, torch.float16, torch.float32)
_WIDEST_HEADS = 32  # of one program
_BLOCK = 2048
_PARTS = 16  # at most, of one row of logits
_PROGRAMS = 4096  # about so many are wanted: a few rounds on any GPU


def rotates(like: Tensor, head_dim: int) -> bool:
    """Whether `rotate_store` takes matrices of this device and dtype, and heads so wide: a power of two."""
    return _taken(like) and head_dim >= 2 and head_dim & (head_dim - 1) == 0


def ranks(logits_BCV: Tensor) -> bool:
    """Whether `best_of` takes these logits."""
    return _taken(logits_BCV)


def _taken(like: Tensor) -> bool:
    """On a GPU, with Triton there, at most 32 bits a number."""
    return triton is not None and like.is_cuda and like.dtype in _TAKEN


# -- queries, keys and values -------------------------------------------------------------------------------------

if triton is not None:

    @triton.jit(do_not_specialize=["n_rows"])  # type: ignore[untyped-decorator]
    def _rotate_store(  # type: ignore[no-untyped-def]
        qkv, cos, sin, rows, q, k, v, n_rows, q_heads, kv_heads, table,
        q_b, q_h, q_r, k_b, k_g, k_n, v_b, v_g, v_n,
        HEADS: tl.constexpr, HALF: tl.constexpr,
    ):  # fmt: skip
        at = tl.program_id(0).to(tl.int64)
        first = tl.program_id(1) * HEADS
        canvas, row = at // n_rows, at % n_rows
        head = first + tl.arange(0, HEADS)[:, None]
        pair = tl.arange(0, HALF)[None, :]
        source = qkv + at * (q_heads + 2 * kv_heads) * (2 * HALF) + head * (2 * HALF) + pair
        low, high = tl.load(source), tl.load(source + HALF)
        if first < q_heads + kv_heads:
            angle = canvas * table + row * HALF + pair
            c, s = tl.load(cos + angle), tl.load(sin + angle)
            wide_low, wide_high = low.to(tl.float32), high.to(tl.float32)
            low = (wide_low * c - wide_high * s).to(low.dtype)
            high = (wide_high * c + wide_low * s).to(high.dtype)
        if first < q_heads:
            target = q + canvas * q_b + head * q_h + row * q_r + pair
        else:
            place = tl.load(rows + row)
            if first < q_heads + kv_heads:
                target = k + canvas * k_b + (head - q_heads) * k_g + place * k_n + pair
            else:
                target = v + canvas * v_b + (head - q_heads - kv_heads) * v_g + place * v_n + pair
        tl.store(target, low)
        tl.store(target + HALF, high)

    @triton.jit  # type: ignore[untyped-decorator]
    def _best(  # type: ignore[no-untyped-def]
        logits, tops, ids, others, vocab, mask_id, part_size, n_parts,
        BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    ):  # fmt: skip
        row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
        start = part * part_size
        stop = tl.minimum(start + part_size, vocab)
        lane = tl.arange(0, BLOCK)
        top = tl.full((BLOCK,), -float("inf"), tl.float32)
        best = tl.zeros((BLOCK,), tl.int32)
        other = tl.zeros((BLOCK,), tl.float32)  # of a lane: sum of exp(x - top) over all but its top
        for block in range(BLOCKS):
            id = start + block * BLOCK + lane
            x = tl.load(logits + row * vocab + id, mask=id < stop, other=-float("inf")).to(tl.float32)
            x = tl.where(id == mask_id, -float("inf"), x)
            counts = x != -float("inf")  # of NaN too, which makes the score NaN: such a decode has to fail
            better = x > top
            less = tl.where(counts, tl.exp(tl.where(better, top - x, x - top)), 0.0)
            other = tl.where(better, (other + 1.0) * less, other + less)
            best = tl.where(better, id, best)
            top = tl.where(better, x, top)
        peak = tl.max(top, 0)
        safe = tl.where(peak > -float("inf"), peak, 0.0)
        first = tl.min(tl.where(top == peak, best, vocab), 0)  # of equal ones
        total = tl.sum(tl.where(best == first, other, (other + 1.0) * tl.exp(top - safe)), 0)  # an id is of one lane
        tl.store(tops + row * n_parts + part, peak)
        tl.store(ids + row * n_parts + part, first)
        tl.store(others + row * n_parts + part, total)


@torch.library.custom_op("nap::rotate_store", mutates_args=("k_BGNE", "v_BGNE"))
def _rotate_store_op(
    qkv_BRX: Tensor, cos: Tensor, sin: Tensor, rows_R: Tensor, k_BGNE: Tensor, v_BGNE: Tensor, heads: int, kv_heads: int
) -> Tensor:
    assert k_BGNE.stride(-1) == v_BGNE.stride(-1) == 1, "the kernel writes heads as they stand in memory"
    qkv_BRX, rows_R = qkv_BRX.contiguous(), rows_R.contiguous()
    q_BHRE = _queries(qkv_BRX, heads, kv_heads)
    batch, rows, half = qkv_BRX.shape[0], qkv_BRX.shape[1], q_BHRE.shape[-1] // 2
    together = 1
    while together < _WIDEST_HEADS and heads % (2 * together) == 0 and kv_heads % (2 * together) == 0:
        together *= 2
    grid = (batch * rows, (heads + 2 * kv_heads) // together)
    strides = (*q_BHRE.stride()[:3], *k_BGNE.stride()[:3], *v_BGNE.stride()[:3])
    tables = cos.float().contiguous(), sin.float().contiguous()
    table = rows * half if cos.dim() > 2 else 0  # of each canvas
    # Products and sums are rounded one by one, as plain operations do, whatever variant is compiled.
    _rotate_store[grid](qkv_BRX, *tables, rows_R, q_BHRE, k_BGNE, v_BGNE, rows, heads, kv_heads, table, *strides,
                        HEADS=together, HALF=half, enable_fp_fusion=False)  # fmt: skip
    return q_BHRE


@_rotate_store_op.register_fake
def _(
    qkv_BRX: Tensor, cos: Tensor, sin: Tensor, rows_R: Tensor, k_BGNE: Tensor, v_BGNE: Tensor, heads: int, kv_heads: int
) -> Tensor:
    return _queries(qkv_BRX, heads, kv_heads)


def _queries(qkv_BRX: Tensor, heads: int, kv_heads: int) -> Tensor:
    """Room for queries: row after row where attention takes heads as they are, else head after head (grouped)."""
    batch, rows, width = qkv_BRX.shape
    head_dim = width // (heads + 2 * kv_heads)
    if heads == kv_heads:
        return qkv_BRX.new_empty((batch, rows, heads, head_dim)).transpose(1, 2)
    return qkv_BRX.new_empty((batch, heads, rows, head_dim))


def rotate_store(
    qkv_BRX: Tensor,
    rope: tuple[Tensor, Tensor],
    rows_R: Tensor,
    store: tuple[Tensor, Tensor],
    *,
    heads: int,
    kv_heads: int,
) -> Tensor:
    """Rotated queries q_BHRE; rotated keys, and values, go into the store at `rows_R`.

    Args:
        qkv_BRX: of each row queries, keys and values, head after head.
        rope: cosines and sines of the rows, [R, E / 2] each, or [B, 1, R, E / 2] where canvases differ.
        rows_R: int64 columns of the store.
        store: keys and values of one layer, [B, G, N, E] each, written in place; the last dimension contiguous.
        heads, kv_heads: of queries, and of keys.
    """
    q_BHRE: Tensor = _rotate_store_op(qkv_BRX, *rope, rows_R, *store, heads, kv_heads)
    return q_BHRE


# -- the best of a vocabulary -------------------------------------------------------------------------------------


@torch.library.custom_op("nap::best_parts", mutates_args=())
def _best_parts(logits_XV: Tensor, mask_id: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, vocab = logits_XV.shape
    parts = _parts(rows, vocab)
    tops, ids, others = _parts_of(logits_XV, parts)
    size = -(-vocab // parts)
    block = min(_BLOCK, triton.next_power_of_2(size))
    _best[rows, parts](logits_XV, tops, ids, others, vocab, mask_id, size, parts,
                      BLOCK=block, BLOCKS=-(-size // block), num_warps=8)  # fmt: skip
    return tops, ids, others


@_best_parts.register_fake
def _(logits_XV: Tensor, mask_id: int) -> tuple[Tensor, Tensor, Tensor]:
    return _parts_of(logits_XV, _parts(*logits_XV.shape))


def _parts(rows: int, vocab: int) -> int:
    """As many as keep a GPU busy, each of a few blocks."""
    most = min(_PARTS, max(1, vocab // (2 * _BLOCK)))
    return max(1, min(most, -(-_PROGRAMS // max(rows, 1))))


def _parts_of(logits_XV: Tensor, parts: int) -> tuple[Tensor, Tensor, Tensor]:
    shape: Any = (logits_XV.shape[0], parts)
    new = logits_XV.new_empty
    return new(shape, dtype=torch.float32), new(shape, dtype=torch.int32), new(shape, dtype=torch.float32)


def best_of(logits_BCV: Tensor, mask_id: int) -> tuple[Tensor, Tensor]:
    """The most probable id of each row, `mask_id` left out, and its log-probability: int64 and float32, [B, C] each.

    Of equal logits the first; a row with NaN in it has NaN as its score. With Σ over all ids but the best,
    log p = −log(1 + Σ exp(l − l_best)): exact where p is within rounding of 1.
    """
    shape, vocab = logits_BCV.shape[:-1], logits_BCV.shape[-1]
    tops_XP, ids_XP, others_XP = _best_parts(logits_BCV.reshape(-1, vocab).contiguous(), mask_id)
    top_X1 = tops_XP.amax(-1, keepdim=True)
    part_X1 = (tops_XP == top_X1).int().argmax(-1, keepdim=True)  # the first of equal ones
    number_P = torch.arange(tops_XP.shape[1], device=tops_XP.device)
    inside_XP = others_XP + (number_P != part_X1)  # the bests of other parts are others
    sum_X = (inside_XP * (tops_XP - top_X1).exp()).sum(-1)
    ids_X = ids_XP.gather(-1, part_X1).squeeze(-1).long()
    return ids_X.reshape(shape), -sum_X.log1p().reshape(shape)
