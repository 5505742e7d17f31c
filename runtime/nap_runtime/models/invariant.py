"""Kernels whose bits of a row depend on nothing but that row: not on how many others there are, nor on their order.

A sum in floating point depends on its order, and libraries choose the order by how many rows there are: another tile,
a sum in parts, another algorithm. Here each sum has one order:

- `product` adds over its inputs in blocks of one size, one after another, in float32, whatever the number of rows;
- `rms_norm` and `score` give a row to one program, which adds in one tree;
- `attention` goes through the keys in blocks of one size, counted from the canvas's own first column, so that columns
  of padding before it change nothing; what a block hides counts as exact zeros.

Tiles, warps and blocks are constants of dtype and widths. No argument that follows the number of rows chooses between
compiled variants (`do_not_specialize`), and no multiplication is fused with an addition (`enable_fp_fusion`), which a
compiler may do in one variant and not in another. Everything is rounded where plain operations round: once a product,
norm or attention.

They need Triton and a GPU, or Triton's interpreter, and take at most 32 bits a number. None has run on a GPU yet;
`tests/unit/test_invariant.py` interprets them, and compiles them for compute capability 9.0 and 8.0.

Shared memory of a block, in KiB, of 227 on Hopper (163 on A100): `product` has 3 stages of a tile of rows and one of
weights, 128 · 64 numbers each, 96 in 16 bits (float32: 2 of 64 · 32, 32); `attention` the queries, 64 · E, and 3 stages
of keys and values, 64 · E each, 112 in 16 bits at E = 128 (float32: tiles of 32, 1 stage, 48).

Shapes: X rows of all canvases, I inputs, O outputs, D d_model, F d_ff, B batch, R rows of a canvas, H query heads,
G key heads, E head_dim, M keys, C slots, V vocabulary.
"""

# No `from __future__ import annotations` here: Triton reads `tl.constexpr` from the annotations themselves.

from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from nap_runtime.decoding.confidence import LOWEST
from nap_runtime.errors import UsageError
from nap_runtime.job import Confidence
from nap_runtime.numerics import check_device

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for CPUs comes without
    triton = None

TAKEN = (torch.bfloat16, torch.float16, torch.float32)
_KINDS = get_args(Confidence)
_LOG2_E = 1.4426950408889634
_VOCABULARY_BLOCK = 4096
_GATE_BLOCK = 1024


def check_kernels(device: torch.device) -> None:
    """Whether the kernels can run there.

    Raises:
        UsageError: they need a GPU, and Triton.
    """
    check_device(device.type)
    if triton is None:
        raise UsageError("numerics: 'invariant' needs Triton, which is not installed; use 'fast'", field="numerics")


if triton is not None:

    @triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
    def _product(  # type: ignore[no-untyped-def]
        a, w, bias, out, rows, inputs, outputs,
        ADD: tl.constexpr, BIAS: tl.constexpr,
        HIGH: tl.constexpr, WIDE: tl.constexpr, DEEP: tl.constexpr, GROUP: tl.constexpr,
    ):  # fmt: skip
        # Programs that run at the same time share tiles of weights: GROUP tiles of rows, then the next outputs.
        number = tl.program_id(0)
        tiles, across = tl.cdiv(rows, HIGH), tl.cdiv(outputs, WIDE)
        first = number // (GROUP * across) * GROUP
        within, size = number % (GROUP * across), tl.minimum(tiles - first, GROUP)
        row = (first + within % size) * HIGH + tl.arange(0, HIGH)
        column = within // size * WIDE + tl.arange(0, WIDE)
        lane = tl.arange(0, DEEP)
        # Rows and outputs beyond the last repeat it; they are not stored.
        a_at = a + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * inputs + lane[None, :]
        w_at = w + tl.minimum(column, outputs - 1).to(tl.int64)[None, :] * inputs + lane[:, None]
        sums = tl.zeros((HIGH, WIDE), tl.float32)
        for block in range(tl.cdiv(inputs, DEEP)):
            inside = lane < inputs - block * DEEP
            x = tl.load(a_at, mask=inside[None, :], other=0.0)
            y = tl.load(w_at, mask=inside[:, None], other=0.0)
            sums = tl.dot(x, y, sums, input_precision="ieee")
            a_at += DEEP
            w_at += DEEP
        stored = (row < rows)[:, None] & (column < outputs)[None, :]
        target = out + row.to(tl.int64)[:, None] * outputs + column[None, :]
        if BIAS:
            sums += tl.load(bias + column, mask=column < outputs, other=0.0).to(tl.float32)[None, :]
        if ADD:
            sums += tl.load(target, mask=stored, other=0.0).to(tl.float32)
        tl.store(target, sums.to(out.dtype.element_ty), mask=stored)

    @triton.jit  # type: ignore[untyped-decorator]
    def _rms_norm(x, weight, out, width, eps, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
        inside = lane < width
        wide = tl.load(x + row * width + lane, mask=inside, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
        rounded = (wide * scale).to(out.dtype.element_ty).to(tl.float32)
        weighed = tl.load(weight + lane, mask=inside, other=0.0).to(tl.float32) * rounded
        tl.store(out + row * width + lane, weighed.to(out.dtype.element_ty), mask=inside)

    @triton.jit  # type: ignore[untyped-decorator]
    def _gate(both, out, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        row, lane = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside, source = lane < width, both + row * 2 * width + lane
        gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(source + width, mask=inside, other=0.0).to(tl.float32)
        silu = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
        tl.store(out + row * width + lane, (silu * up).to(out.dtype.element_ty), mask=inside)

    @triton.jit(do_not_specialize=["rows", "keys"])  # type: ignore[untyped-decorator]
    def _attention(  # type: ignore[no-untyped-def]
        q, k, v, out, mask, first_columns, rows, keys, heads, group, scale,
        q_b, q_h, q_r, k_b, k_g, k_n, v_b, v_g, v_n, mask_b, mask_h, mask_r, mask_n,
        MASKED: tl.constexpr, PADDED: tl.constexpr,
        WIDTH: tl.constexpr, LANES: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        canvas, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
        row, lane = tl.program_id(0) * HIGH + tl.arange(0, HIGH), tl.arange(0, LANES)
        real, own = lane < WIDTH, tl.minimum(row, rows - 1)  # rows beyond the last repeat it; they are not stored
        x = tl.load(q + canvas * q_b + head * q_h + own[:, None] * q_r + lane[None, :], mask=real[None, :], other=0.0)
        k += canvas * k_b + head // group * k_g
        v += canvas * v_b + head // group * v_g
        mask += canvas * mask_b + head * mask_h
        first = 0
        if PADDED:
            first = tl.load(first_columns + canvas).to(tl.int32)
        top = tl.full((HIGH,), -float("inf"), tl.float32)
        total = tl.zeros((HIGH,), tl.float32)
        sums = tl.zeros((HIGH, LANES), tl.float32)
        for begin in range(first, keys, WIDE):
            column = begin + tl.arange(0, WIDE)
            at = tl.minimum(column, keys - 1)  # columns beyond the last repeat it; nobody sees them
            y = tl.load(k + at[None, :] * k_n + lane[:, None], mask=real[:, None], other=0.0)
            seen = (row < rows)[:, None] & (column < keys)[None, :]
            if MASKED:
                seen &= tl.load(mask + own[:, None] * mask_r + at[None, :] * mask_n) != 0
            scores = tl.where(seen, tl.dot(x, y, input_precision="ieee") * scale, -float("inf"))
            higher = tl.maximum(top, tl.max(scores, 1))
            base = tl.where(higher == -float("inf"), 0.0, higher)  # of a row that has seen nothing yet
            shares, shrink = tl.exp2(scores - base[:, None]), tl.exp2(top - base)
            total = total * shrink + tl.sum(shares, 1)
            z = tl.load(v + at[:, None] * v_n + lane[None, :], mask=real[None, :], other=0.0)
            sums = tl.dot(shares.to(z.dtype), z, sums * shrink[:, None], input_precision="ieee")
            top = higher
        mixed = sums / tl.where(total == 0.0, 1.0, total)[:, None]
        target = out + ((canvas * rows + row[:, None]) * heads + head) * WIDTH + lane[None, :]
        tl.store(target, mixed.to(out.dtype.element_ty), mask=(row < rows)[:, None] & real[None, :])

    @triton.jit  # type: ignore[untyped-decorator]
    def _draw(  # type: ignore[no-untyped-def]
        logits, ids, seed, positions, step, vocab, mask_id, temperature, NOISE: tl.constexpr, BLOCK: tl.constexpr
    ):  # fmt: skip
        row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
        top, best = tl.full((BLOCK,), -float("inf"), tl.float64), tl.zeros((BLOCK,), tl.int32)
        for begin in range(0, vocab, BLOCK):
            id = begin + lane
            allowed = (id < vocab) & (id != mask_id)
            x = tl.load(logits + row * vocab + id, mask=allowed, other=-float("inf")).to(tl.float64)
            if NOISE:
                # As `decoding.noise.gumbel` draws: the counter is (id, position, step, 0), the key the seed.
                zero = tl.zeros((BLOCK,), tl.uint32)
                place, now = (tl.load(positions + row) + zero).to(tl.uint32), (tl.load(step) + zero).to(tl.uint32)
                high, low, _, _ = tl.philox(tl.load(seed), id.to(tl.uint32), place, now, zero)
                bits = ((high.to(tl.uint64) << 32) | low.to(tl.uint64)) >> 12
                uniform = (bits.to(tl.float64) + 0.5) * 2.220446049250313e-16
                x -= tl.load(temperature) * tl.log(-tl.log(uniform))
            better = x > top
            best, top = tl.where(better, id, best), tl.where(better, x, top)
        tl.store(ids + row, tl.min(tl.where(top == tl.max(top, 0), best, vocab), 0).to(tl.int64))

    @triton.jit
    def _log1p(x):  # type: ignore[no-untyped-def]
        """Right to the last bits for small x too: the rounding of 1 + x is divided out again."""
        one = 1.0 + x
        return tl.where(one == 1.0, x, tl.log(one) * (x / tl.where(one == 1.0, 1.0, one - 1.0)))

    @triton.jit  # type: ignore[untyped-decorator]
    def _score(  # type: ignore[no-untyped-def]
        logits, ids, scores, vocab, mask_id, lowest, KIND: tl.constexpr, BLOCK: tl.constexpr
    ):  # fmt: skip
        row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
        logits += row * vocab
        top, second = tl.full((BLOCK,), -float("inf"), tl.float32), tl.full((BLOCK,), -float("inf"), tl.float32)
        best = tl.zeros((BLOCK,), tl.int32)
        for begin in range(0, vocab, BLOCK):
            id = begin + lane
            x = tl.load(logits + id, mask=(id < vocab) & (id != mask_id), other=-float("inf")).to(tl.float32)
            better = x > top
            second = tl.where(better, top, tl.where(x > second, x, second))
            best, top = tl.where(better, id, best), tl.where(better, x, top)
        peak = tl.max(top, 0)
        chosen = tl.min(tl.where(top == peak, best, vocab), 0).to(tl.int64)
        if KIND == 0:  # max-prob, of the id that was drawn; else of the best one
            chosen = tl.load(ids + row)
        others, mean = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
        for begin in range(0, vocab, BLOCK):
            id = begin + lane
            allowed = (id < vocab) & (id != mask_id) & (id != chosen)
            below = tl.load(logits + id, mask=allowed, other=-float("inf")).to(tl.float32) - peak
            counts = below != -float("inf")  # of NaN too, which makes the score NaN: such a decode has to fail
            share = tl.where(counts, tl.exp(below), 0.0)
            others += share
            mean += tl.where(counts, share * below, 0.0)
        below = tl.load(logits + chosen).to(tl.float32) - peak
        rest = tl.sum(others, 0)
        score = below - _log1p(rest + (tl.exp(below) - 1.0))
        if KIND == 1:  # log(p1 - p2)
            lanes = tl.sum((top == peak).to(tl.int32), 0)
            next_best = tl.where(lanes > 1, peak, tl.max(tl.where(top == peak, second, top), 0))
            score += _log1p(-tl.exp(next_best - peak))
        if KIND == 2:  # sum of p log p
            score += tl.sum(mean, 0) / (1.0 + rest)
        tl.store(scores + row, tl.where(score < lowest, lowest, score))


# -- products ---------------------------------------------------------------------------------------------------------


def product(a_XI: Tensor, w_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """a wᵀ, and a bias, rounded once. [X, O]."""
    out_XO = a_XI.new_empty((a_XI.shape[0], w_OI.shape[0]))
    _multiply(out_XO, a_XI, w_OI, bias_O, add=False)
    return out_XO


def add_product(x_XO: Tensor, a_XI: Tensor, w_OI: Tensor) -> None:
    """x += a wᵀ, in place; rounded once."""
    assert x_XO.is_contiguous(), "the kernel writes rows one after another"
    _multiply(x_XO, a_XI, w_OI, None, add=True)


def _multiply(out_XO: Tensor, a_XI: Tensor, w_OI: Tensor, bias_O: Tensor | None, *, add: bool) -> None:
    rows, inputs, outputs = *a_XI.shape, w_OI.shape[0]
    if rows == 0:
        return
    short = a_XI.dtype == torch.float32
    high, wide, deep = (64, 64, 32) if short else (128, 128, 64)
    grid = (triton.cdiv(rows, high) * triton.cdiv(outputs, wide),)
    bias, has_bias = (out_XO, False) if bias_O is None else (bias_O, True)
    _product[grid](a_XI.contiguous(), w_OI.contiguous(), bias, out_XO, rows, inputs, outputs,
                   ADD=add, BIAS=has_bias, HIGH=high, WIDE=wide, DEEP=deep, GROUP=8,
                   **_how(8 if not short else 4, 3 if not short else 2))  # fmt: skip


def _how(warps: int, stages: int = 1) -> dict[str, Any]:
    """How every kernel is launched: with one number of warps, and each operation rounded by itself."""
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False}


# -- row by row -------------------------------------------------------------------------------------------------------


def rms_norm(x_XD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """`transformer.rms_norm`, rounded where that is: the normalised row, then the weighed one. [X, D]."""
    x_XD, (rows, width) = x_XD.contiguous(), x_XD.shape
    out_XD, block = torch.empty_like(x_XD), triton.next_power_of_2(width)
    if rows:
        _rms_norm[(rows,)](x_XD, weight_D, out_XD, width, eps, BLOCK=block, **_how(8 if block > 2048 else 4))
    return out_XD


def gated(both_XF: Tensor) -> Tensor:
    """`transformer.gated`: silu(gate) · up of rows that hold both, gate first. [X, F]."""
    both_XF, (rows, width) = both_XF.contiguous(), (both_XF.shape[0], both_XF.shape[1] // 2)
    out_XF = both_XF.new_empty((rows, width))
    if rows:
        grid = (rows, triton.cdiv(width, _GATE_BLOCK))
        _gate[grid](both_XF, out_XF, width, BLOCK=_GATE_BLOCK, **_how(4))
    return out_XF


# -- attention --------------------------------------------------------------------------------------------------------


def attention(
    q_BHRE: Tensor, k_BGME: Tensor, v_BGME: Tensor, mask: Tensor | None = None, first_B: Tensor | None = None
) -> Tensor:
    """`sdpa.grouped_sdpa`, laid out row after row: `transpose(1, 2)` of what it returns is contiguous.

    Args:
        q_BHRE, k_BGME, v_BGME: H a multiple of G; the last dimension contiguous.
        mask: boolean, True where a row sees a key; broadcasts to [B, H, R, M].
        first_B: int64, each canvas's own first column (None: 0). Columns before it are never read.
    """
    batch, heads, rows, width = q_BHRE.shape
    keys, groups = k_BGME.shape[2], k_BGME.shape[1]
    assert q_BHRE.stride(-1) == k_BGME.stride(-1) == v_BGME.stride(-1) == 1, "the kernel reads heads as they stand"
    out_BRHE = q_BHRE.new_empty((batch, rows, heads, width))
    if batch * rows == 0:
        return out_BRHE.transpose(1, 2)
    seen = None if mask is None else mask.expand(batch, heads, rows, keys)
    strides = [stride for held in (q_BHRE, k_BGME, v_BGME) for stride in held.stride()[:3]]
    strides += [0] * 4 if seen is None else list(seen.stride())
    short, lanes = q_BHRE.dtype == torch.float32, max(16, triton.next_power_of_2(width))
    tile = 32 if short else 64
    _attention[(triton.cdiv(rows, tile), batch * heads)](
        q_BHRE, k_BGME, v_BGME, out_BRHE, q_BHRE if seen is None else seen.view(torch.uint8),
        q_BHRE if first_B is None else first_B, rows, keys, heads, heads // groups, width**-0.5 * _LOG2_E, *strides,
        MASKED=seen is not None, PADDED=first_B is not None, WIDTH=width, LANES=lanes,
        HIGH=tile, WIDE=tile, **_how(4, 1 if short or lanes > 128 else 3))  # fmt: skip
    return out_BRHE.transpose(1, 2)


@dataclass(frozen=True, slots=True, eq=False)
class FixedOrder:
    """`attention` as an `Sdpa`, for canvases whose own first columns these are (None: 0)."""

    first_B: Tensor | None

    def __call__(self, q_BHRE: Tensor, k_BGME: Tensor, v_BGME: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `attention`."""
        return attention(q_BHRE, k_BGME, v_BGME, mask, self.first_B)


# -- candidates -------------------------------------------------------------------------------------------------------


@torch.library.custom_op("nap::invariant_candidates", mutates_args=())
def _candidates(
    logits_XV: Tensor, mask_id: int, kind: int, temperature: float, seed: Tensor, positions_X: Tensor, step: Tensor
) -> tuple[Tensor, Tensor]:
    ids_X = _drawn(logits_XV, mask_id, temperature, seed, positions_X, step)
    return ids_X, _scores(logits_XV, ids_X, mask_id, kind)


@_candidates.register_fake
def _(
    logits_XV: Tensor, mask_id: int, kind: int, temperature: float, seed: Tensor, positions_X: Tensor, step: Tensor
) -> tuple[Tensor, Tensor]:
    rows = logits_XV.shape[0]
    return logits_XV.new_empty(rows, dtype=torch.int64), logits_XV.new_empty(rows, dtype=torch.float32)


def _drawn(
    logits_XV: Tensor, mask_id: int, temperature: float, seed: Tensor, positions_X: Tensor, step: Tensor
) -> Tensor:
    rows, vocab = logits_XV.shape
    ids_X = logits_XV.new_empty(rows, dtype=torch.int64)
    if rows:
        heat = seed.new_full((), temperature, dtype=torch.float64)  # a number as it is would be rounded to 32 bits
        _draw[(rows,)](logits_XV, ids_X, seed, positions_X, step, vocab, mask_id, heat,
                       NOISE=temperature != 0, BLOCK=_VOCABULARY_BLOCK, **_how(8))  # fmt: skip
    return ids_X


def _scores(logits_XV: Tensor, ids_X: Tensor, mask_id: int, kind: int) -> Tensor:
    rows, vocab = logits_XV.shape
    scores_X = logits_XV.new_empty(rows, dtype=torch.float32)
    if rows:
        _score[(rows,)](logits_XV, ids_X, scores_X, vocab, mask_id, LOWEST, KIND=kind, BLOCK=_VOCABULARY_BLOCK,
                        **_how(8))  # fmt: skip
    return scores_X


def candidates(
    logits_BCV: Tensor,
    kind: Confidence,
    mask_id: int,
    *,
    temperature: float,
    seed: Tensor,
    positions: Tensor,
    step: Tensor,
) -> tuple[Tensor, Tensor]:
    """`confidence.draw` and `confidence.log_confidence`, `mask_id` left out: int64 and float32, [B, C] each.

    Args:
        positions: of the slots, [C] or [B, C]; `seed` and `step` int64 [], on the device.
    """
    shape, vocab = logits_BCV.shape[:-1], logits_BCV.shape[-1]
    at_X = positions.expand(shape).reshape(-1).contiguous()
    flat_XV = logits_BCV.reshape(-1, vocab).contiguous()
    ids_X, scores_X = _candidates(flat_XV, mask_id, _KINDS.index(kind), temperature, seed, at_X, step)
    return ids_X.view(shape), scores_X.view(shape)


def score(logits_BCV: Tensor, ids_BC: Tensor, kind: Confidence, mask_id: int) -> Tensor:
    """`confidence.log_confidence` of given ids. float32 [B, C]."""
    flat_XV = logits_BCV.reshape(-1, logits_BCV.shape[-1]).contiguous()
    return _scores(flat_XV, ids_BC.reshape(-1).contiguous(), mask_id, _KINDS.index(kind)).view(ids_BC.shape)
