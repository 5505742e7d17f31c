"""The bidirectional denoiser: a pre-norm transformer that computes any rows of a canvas.

Shape legend: B batch, R computed rows, N canvas positions, D d_model, H query heads, G key/value
heads, E head_dim, F d_ff, V vocabulary, L layers.

A layer knows neither masks nor caches nor devices. It projects its rows, rotates queries and keys
to their canvas positions, and hands them to an ``Attend`` object, which decides what they see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nap_runtime.models.config import ModelConfig
from nap_runtime.models.sdpa import grouped_sdpa


class Attend(Protocol):
    """Attention of one layer: what the computed rows see is this object's choice."""

    def __call__(self, layer: int, q_BHRE: Tensor, k_BGRE: Tensor, v_BGRE: Tensor) -> Tensor:
        """Take the rows' queries, keys and values (after RoPE); return o_BHRE."""
        ...


@dataclass(frozen=True, slots=True)
class KVStore:
    """Keys and values of a whole canvas in static buffers, keys after RoPE; `quantised.store_of` makes one."""

    k_LBGNE: Tensor
    v_LBGNE: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes held by both buffers."""
        return self.k_LBGNE.nbytes + self.v_LBGNE.nbytes

    def first(self, lanes: int) -> Self:
        """The same buffers, of the first so many canvases only."""
        return type(self)(self.k_LBGNE[:, :lanes], self.v_LBGNE[:, :lanes])

    def write(self, layer: int, rows_R: Tensor, k_BGRE: Tensor, v_BGRE: Tensor) -> None:
        """Overwrite the rows' keys and values of one layer in place (rows_R: int64 positions)."""
        self.put(layer, rows_R, self.pack(k_BGRE), self.pack(v_BGRE))

    def put(self, layer: int, rows_R: Tensor, k_BGRE: Tensor, v_BGRE: Tensor) -> None:
        """The same with keys and values as the store holds them: as `pack` gives them, or as a peer's store does."""
        self.k_LBGNE[layer].index_copy_(2, rows_R, k_BGRE)
        self.v_LBGNE[layer].index_copy_(2, rows_R, v_BGRE)

    def pack(self, x_BGRE: Tensor) -> Tensor:
        """Keys or values as the store holds them: here as they are."""
        return x_BGRE

    def unpack(self, held_BGRX: Tensor, dtype: torch.dtype) -> Tensor:
        """What `pack` gave as numbers again: here as they are, whatever the dtype."""
        return held_BGRX

    def read(self, layer: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer in `dtype`, [B, G, N, E] each: here the store's own, whatever the dtype."""
        return self.k_LBGNE[layer], self.v_LBGNE[layer]


@dataclass(frozen=True, slots=True, eq=False)  # hashed by identity: torch.compile hashes it half-built
class CanvasAttention:
    """Rows attend to each other and to nothing else: the whole-canvas reference and training path."""

    mask: Tensor | None = None

    def __call__(self, layer: int, q_BHRE: Tensor, k_BGRE: Tensor, v_BGRE: Tensor) -> Tensor:
        """Attend within the given rows under the boolean mask."""
        return grouped_sdpa(q_BHRE, k_BGRE, v_BGRE, self.mask)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision of norms, rotations and softmax sums: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True, slots=True)
class Place:
    """Where weights are allocated and in which dtype."""

    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"


class Projection(nn.Linear):
    """A linear map without bias by default, its weights uninitialised: they are always loaded or made."""

    def __init__(self, d_in: int, d_out: int, place: Place, *, bias: bool = False) -> None:
        super().__init__(d_in, d_out, bias=bias, dtype=place.dtype, device=place.device)

    def reset_parameters(self) -> None:
        """Do nothing."""


class TokenEmbedding(nn.Embedding):
    """An embedding, its weights uninitialised: they are always loaded or made."""

    def __init__(self, vocab_size: int, d_model: int, place: Place) -> None:
        super().__init__(vocab_size, d_model, dtype=place.dtype, device=place.device)

    def reset_parameters(self) -> None:
        """Do nothing."""


def rms_norm(x_BRD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm, float32 inside (float64 in float64), weight applied in the model's dtype."""
    wide_BRD = x_BRD.to(accumulate_dtype(x_BRD.dtype))
    scale_BR1 = torch.rsqrt(wide_BRD.square().mean(-1, keepdim=True) + eps)
    return weight_D * (wide_BRD * scale_BR1).to(x_BRD.dtype)


def rotate(x_BHRE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, half-rotate convention, in the tables' precision."""
    low, high = x_BHRE.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x_BHRE.dtype)


def gated(both_BRX: Tensor) -> Tensor:
    """silu(gate) * up of a matrix that holds both, gate first."""
    gate_BRF, up_BRF = both_BRX.chunk(2, dim=-1)
    return F.silu(gate_BRF) * up_BRF


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """The element-wise parts of a layer, bound by memory and not by arithmetic: what may be fused without the rest."""

    norm: Callable[[Tensor, Tensor, float], Tensor] = rms_norm
    rotate: Callable[[Tensor, Tensor, Tensor], Tensor] = rotate
    gate: Callable[[Tensor], Tensor] = gated


EAGER = Kernels()


def compiled_kernels() -> Kernels:
    """The same, each compiled by itself: for layers whose weights come and go between calls (ZeRO stage 3)."""
    return Kernels(norm=torch.compile(rms_norm), rotate=torch.compile(rotate), gate=torch.compile(gated))


class RMSNorm(nn.Module):
    """Root-mean-square norm of the last dimension."""

    kernels = EAGER

    def __init__(self, d_model: int, eps: float, place: Place) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_model, dtype=place.dtype, device=place.device))
        self.eps = eps

    def forward(self, x_BRD: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return self.kernels.norm(x_BRD, self.weight, self.eps)


class RotaryTable(nn.Module):
    """Cosines and sines of every canvas position and frequency, [max_positions, E / 2].

    The tables are always computed on the CPU, so that every device rotates by the same bits, and
    stay in float32 when the model becomes bfloat16 (float64 when it becomes float64).
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, max_positions: int, theta: float, place: Place) -> None:
        super().__init__()
        self.head_dim, self.max_positions, self.theta = head_dim, max_positions, theta
        cos, sin = self._tables(accumulate_dtype(place.dtype))
        self.register_buffer("cos", cos.to(place.device), persistent=False)
        self.register_buffer("sin", sin.to(place.device), persistent=False)

    def _tables(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        exponents = torch.arange(0, self.head_dim, 2, dtype=dtype, device="cpu") / self.head_dim
        positions = torch.arange(self.max_positions, dtype=dtype, device="cpu")
        angles = torch.outer(positions, 1.0 / self.theta**exponents)
        return angles.cos(), angles.sin()

    def _apply(self, fn, recurse: bool = True) -> Self:  # type: ignore[no-untyped-def]
        """Follow the model to another device or dtype without losing precision."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        cos, sin = self._tables(accumulate_dtype(self.cos.dtype))
        self.cos, self.sin = cos.to(self.cos.device), sin.to(self.sin.device)
        return self

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin at int64 positions [R] or [B, R]: [R, E/2], or [B, 1, R, E/2]."""
        cos, sin = self.cos[positions], self.sin[positions]
        return (cos, sin) if positions.dim() == 1 else (cos.unsqueeze(1), sin.unsqueeze(1))


class Attention(nn.Module):
    """Projections around an ``Attend`` object; queries, keys and values share one matrix."""

    kernels = EAGER

    def __init__(self, config: ModelConfig, place: Place) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.heads = [config.n_heads, config.n_kv_heads, config.n_kv_heads]
        width = sum(self.heads) * config.head_dim
        self.qkv = Projection(config.d_model, width, place, bias=config.qkv_bias)
        self.out = Projection(config.n_heads * config.head_dim, config.d_model, place)

    def forward(self, x_BRD: Tensor, rope: tuple[Tensor, Tensor], layer: int, attend: Attend) -> Tensor:
        """Attention output of the rows, [B, R, D]."""
        qkv_BRXE = self.qkv(x_BRD).unflatten(-1, (-1, self.head_dim))
        q_BHRE, k_BGRE, v_BGRE = qkv_BRXE.transpose(1, 2).split(self.heads, dim=1)
        turn = self.kernels.rotate
        o_BHRE = attend(layer, turn(q_BHRE, *rope), turn(k_BGRE, *rope), v_BGRE)
        return self.out(o_BHRE.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)); gate and up share one matrix, gate first."""

    kernels = EAGER

    def __init__(self, config: ModelConfig, place: Place) -> None:
        super().__init__()
        self.gate_up = Projection(config.d_model, 2 * config.d_ff, place)
        self.down = Projection(config.d_ff, config.d_model, place)

    def forward(self, x_BRD: Tensor) -> Tensor:
        """Feed-forward of the rows, [B, R, D]."""
        return self.down(self.kernels.gate(self.gate_up(x_BRD)))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """One pre-norm block: attention, then feed-forward, each added to its input."""

    def __init__(self, config: ModelConfig, index: int, place: Place) -> None:
        super().__init__()
        self.index = index
        self.attn_norm = RMSNorm(config.d_model, config.norm_eps, place)
        self.attn = Attention(config, place)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps, place)
        self.mlp = SwiGLU(config, place)

    def forward(self, x_BRD: Tensor, rope: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        """The rows' residual stream after this layer, [B, R, D]."""
        x_BRD = x_BRD + self.attn(self.attn_norm(x_BRD), rope, self.index, attend)
        return x_BRD + self.mlp(self.mlp_norm(x_BRD))  # type: ignore[no-any-return]


class DiffusionTransformer(nn.Module):
    """The denoiser. Its weights are uninitialised memory: get one from ``load_model`` or ``make_model``.

    With ``config.shifted_logits`` (Dream) the logits of row i - 1 score canvas position i: nothing
    here shifts them, the caller picks the row.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = gradient_checkpointing
        place = Place(dtype, device)
        self.embed = TokenEmbedding(config.vocab_size, config.d_model, place)
        self.rope = RotaryTable(config.head_dim, config.max_positions, config.rope_theta, place)
        self.layers = nn.ModuleList(Layer(config, i, place) for i in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps, place)
        if not config.tied_head:
            self.head = Projection(config.d_model, config.vocab_size, place)

    def use_kernels(self, kernels: Kernels) -> None:
        """Run the element-wise parts of every layer by these."""
        for module in self.modules():
            if isinstance(module, RMSNorm | Attention | SwiGLU):
                module.kernels = kernels

    def forward_rows(self, ids_BR: Tensor, rows_R: Tensor, attend: Attend) -> Tensor:
        """Hidden states, after the final norm, of the rows at canvas positions rows_R (int64).

        rows_R may also be [B, R] if ``attend`` can place such rows. Returns hidden_BRD.
        """
        rope = self.rope(rows_R)
        x_BRD = self.embed(ids_BR)
        for layer in self.layers:
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x_BRD = checkpoint(layer, x_BRD, rope, attend, use_reentrant=False)
            else:
                x_BRD = layer(x_BRD, rope, attend)
        return self.norm(x_BRD)  # type: ignore[no-any-return]

    @property
    def head_weight(self) -> Tensor:
        """The matrix from hidden states to the vocabulary, [V, D]: the embedding's where the two are tied."""
        return self.embed.weight if self.config.tied_head else self.head.weight

    def logits(self, hidden_BRD: Tensor) -> Tensor:
        """Vocabulary scores of each row, logits_BRV, in the model's dtype."""
        return F.linear(hidden_BRD, self.head_weight)

    def forward(self, ids_BN: Tensor, attn_mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Logits of a whole canvas, logits_BNV: the reference and the training path.

        ``attn_mask``: boolean, True where a row sees a key, broadcastable to [B, H, N, N].
        ``positions``: int64 canvas positions, [N] or [B, N]; 0..N-1 by default.
        """
        if positions is None:
            positions = torch.arange(ids_BN.shape[1], device=ids_BN.device)
        return self.logits(self.forward_rows(ids_BN, positions, CanvasAttention(attn_mask)))
