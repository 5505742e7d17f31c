"""FP8: the layers' matrices, and keys and values, in float8 e4m3 with a scale a row. Made from a loaded model.

A number is a 1-4-3 float up to 448 times its row's float32 scale, amax / 448: of a weight matrix a row is an output,
of activations a canvas row, of keys and values one head of one position. Activations are quantised where they are used,
so a product is FP8 times FP8. Embedding, norms and head stay in the model's dtype: confidences and ids are read off the
head.

On a GPU of compute capability 8.9 or more products run through `torch._scaled_mm`. Elsewhere the same FP8 numbers are
multiplied in the precision that norms have: products of two e4m3 numbers are exact in float32, so the two differ only
in the order of the sums and in the rounding of the output. That is for tests and for measuring accuracy, not for speed.

Shapes: B batch, R rows, I inputs, O outputs, D any width, G key heads, N positions, E head_dim, P = E + 4 packed bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nap_runtime.errors import UsageError
from nap_runtime.models.config import ModelConfig
from nap_runtime.models.sdpa import grouped_sdpa
from nap_runtime.models.transformer import DiffusionTransformer, KVStore, Layer, accumulate_dtype
from nap_runtime.storage import Storage

Packed = tuple[Tensor, Tensor]  # FP8 numbers and their scales

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
_SMALLEST_SCALE = 2.0**-100  # of a row of zeros
_SCALE_BYTES = 4
_ADA = (8, 9)  # the first compute capability with FP8 products


def check_storage(storage: Storage, *, device: torch.device | str, dtype: torch.dtype) -> None:
    """Whether a worker there can hold numbers so.

    Raises:
        UsageError: it cannot.
    """
    if storage.weights == "fp8":
        check_fp8("weights", device=device, dtype=dtype)


def check_fp8(field: str, *, device: torch.device | str, dtype: torch.dtype) -> None:
    """Whether FP8 products can run there.

    Raises:
        UsageError: the GPU has none, or they would have to give something else than bfloat16.
    """
    if torch.device(device).type != "cuda":
        return
    found = torch.cuda.get_device_capability()
    if found < _ADA:
        text = f"{field}: 'fp8' needs a GPU of compute capability 8.9 or more; this one has {found[0]}.{found[1]}"
        raise UsageError(text, field=field)
    if dtype != torch.bfloat16:
        raise UsageError(f"{field}: 'fp8' on a GPU gives bfloat16; use dtype bfloat16", field=field)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 numbers of the shape of `x` [..., D], and float32 scales [..., 1]: x ≈ numbers · scale.

    Each number is off by at most 1/16 of itself, or 2⁻¹⁰ of its row's scale where it is below 2⁻⁶ of it.
    """
    wide = x.to(accumulate_dtype(x.dtype))
    scale = (wide.abs().amax(-1, keepdim=True) / LARGEST).clamp_min(_SMALLEST_SCALE).float()
    return (wide / scale).clamp(-LARGEST, LARGEST).to(FP8), scale


def dequantise(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """numbers · scale in `dtype`."""
    wide = accumulate_dtype(dtype)
    return (numbers.to(wide) * scale.to(wide)).to(dtype)


def scaled_product(
    x_RI: Tensor, scale_R1: Tensor, w_OI: Tensor, scale_O1: Tensor, dtype: torch.dtype, one: Tensor | None = None
) -> Tensor:
    """(x · scale) (w · scale)ᵀ of FP8 numbers, [R, O] in `dtype` (bfloat16 on a GPU).

    The numbers are multiplied as they are and the scales come after: the vendor's kernels that scale rows and columns
    themselves are slower at few rows (docs/bench.md), and compiled, scaling is part of what reads it. The product is
    rounded to `dtype` once more for it. `one`: a float32 one on the device, so that none has to be made.
    """
    wide = accumulate_dtype(dtype)
    if x_RI.is_cuda:
        one = torch.ones((), dtype=torch.float32, device=x_RI.device) if one is None else one
        product_RO = torch._scaled_mm(x_RI, w_OI.t(), scale_a=one, scale_b=one, out_dtype=dtype, use_fast_accum=True)
    else:
        product_RO = (x_RI.to(wide) @ w_OI.to(wide).t()).to(dtype)
    return (product_RO.to(wide) * scale_R1.to(wide) * scale_O1.to(wide).t()).to(dtype)


class QuantisedProjection(nn.Module):
    """A linear map of FP8 weights, activations quantised row by row as they come. `weight` [O, I], `scale` [O, 1]."""

    one: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        numbers_OI, scale_O1 = quantise_rows(linear.weight.detach())
        self.weight = nn.Parameter(numbers_OI, requires_grad=False)
        self.scale = nn.Parameter(scale_O1, requires_grad=False)
        self.register_buffer("one", torch.ones((), dtype=torch.float32, device=scale_O1.device), persistent=False)
        bias = None if linear.bias is None else linear.bias.detach()
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """The map of the last dimension, in the dtype of `x`."""
        numbers, scale = quantise_rows(x.reshape(-1, x.shape[-1]))
        out = scaled_product(numbers, scale, self.weight, self.scale, x.dtype, self.one)
        out = out if self.bias is None else out + self.bias
        return out.view(*x.shape[:-1], out.shape[-1])


def quantise(model: DiffusionTransformer) -> DiffusionTransformer:
    """Put the matrices of every layer into FP8, in place; the first weights are freed one by one. Returns the model."""
    for layer in model.layers:
        assert isinstance(layer, Layer)
        for owner, name in _matrices(layer):
            setattr(owner, name, QuantisedProjection(getattr(owner, name)))
    return model.requires_grad_(False)


def _matrices(layer: Layer) -> Iterator[tuple[nn.Module, str]]:
    yield from ((layer.attn, "qkv"), (layer.attn, "out"), (layer.mlp, "gate_up"), (layer.mlp, "down"))


def is_quantised(model: DiffusionTransformer) -> bool:
    """Whether the layers' matrices are FP8."""
    return any(isinstance(module, QuantisedProjection) for module in model.modules())


# -- keys and values -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PackedStore(KVStore):
    """A `KVStore` of bytes: E numbers of FP8 and the float32 scale of each head and position, uint8 [L, B, G, N, P].

    Exchanges move its rows as they are, so a sync's bytes shrink with it: E + 4 in place of 2·E in bfloat16.
    """

    def pack(self, x_BGRE: Tensor) -> Tensor:
        """Keys or values as the store holds them, [B, G, R, P]."""
        return join(*quantise_rows(x_BGRE))

    def unpack(self, held_BGRX: Tensor, dtype: torch.dtype) -> Tensor:
        """Keys or values of `pack` in `dtype`, [B, G, R, E]."""
        return _unpack(held_BGRX, dtype)

    def read(self, layer: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer in `dtype`, [B, G, N, E] each."""
        return _unpack(self.k_LBGNE[layer], dtype), _unpack(self.v_LBGNE[layer], dtype)


def join(numbers: Tensor, scale: Tensor) -> Tensor:
    """FP8 numbers [..., E] and their float32 scales [..., 1] as bytes, uint8 [..., P]."""
    return torch.cat((numbers.view(torch.uint8), scale.view(torch.uint8)), dim=-1)


def parted(bytes_BGNP: Tensor) -> Packed:
    """What `join` joined: views, no copies."""
    numbers, scale = bytes_BGNP[..., :-_SCALE_BYTES], bytes_BGNP[..., -_SCALE_BYTES:]
    return numbers.view(FP8), scale.view(torch.float32)


def _unpack(bytes_BGNP: Tensor, dtype: torch.dtype) -> Tensor:
    return dequantise(*parted(bytes_BGNP), dtype)


@dataclass(frozen=True, slots=True, eq=False)
class PackedAttention:
    """`StoreAttention` over a packed store: rows see every key, their own too, as FP8 holds it."""

    store: PackedStore
    rows_R: Tensor
    mask_RN: Tensor | None = None

    def __call__(self, layer: int, q_BHRE: Tensor, k_BGRE: Tensor, v_BGRE: Tensor) -> Tensor:
        """Store, then attend; returns o_BHRE."""
        self.store.write(layer, self.rows_R, k_BGRE, v_BGRE)
        return grouped_sdpa(q_BHRE, *self.store.read(layer, q_BHRE.dtype), self.mask_RN)


def store_of(
    config: ModelConfig, *, batch: int, positions: int, dtype: torch.dtype, device: torch.device | str
) -> KVStore:
    """Zeroed keys and values of `batch` canvases in `dtype`; float8 e4m3 gives a `PackedStore`.

    Raises:
        UsageError: FP8 wants heads whose width is a multiple of 4.
    """
    if dtype == FP8 and config.head_dim % 4:
        raise UsageError(f"kv: 'fp8' needs heads of a multiple of 4 numbers, not {config.head_dim}", field="kv")
    kind, width, held = KVStore, config.head_dim, dtype
    if dtype == FP8:
        kind, width, held = PackedStore, config.head_dim + _SCALE_BYTES, torch.uint8
    shape = (config.n_layers, batch, config.n_kv_heads, positions, width)
    return kind(*(torch.zeros(shape, dtype=held, device=device) for _ in range(2)))
