"""A denoiser whose layers run as compiled regions: everything of a step but attention, which stays a kernel call.

A layer is cut where attention is: `_enter` projects, rotates and stores, `_leave` adds, norms and feeds forward. One
compiled region serves all layers, because no layer's number is in it, and any number of rows after the second. The next
layer's norm stands in `_leave`, so that it is one kernel with the sum before it.

Shapes: B batch, R computed rows, N canvas positions, D d_model, H query heads, G key heads, E head_dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from nap_runtime.errors import UsageError
from nap_runtime.job import COMPILE_MODES as COMPILE_MODES
from nap_runtime.job import CompileMode as CompileMode
from nap_runtime.job import check_compile, one_of
from nap_runtime.models import invariant, kernels, products
from nap_runtime.models.attention import PlacedAttention, StoreAttention
from nap_runtime.models.compilations import COMPILATIONS
from nap_runtime.models.quantised import Packed, PackedAttention, dequantise, join, parted, quantise_rows
from nap_runtime.models.sdpa import grouped_sdpa
from nap_runtime.models.transformer import Attend, Attention, DiffusionTransformer, Layer, Projection, gated, rotate
from nap_runtime.numerics import NUMERICS, Numerics, check_compiled

Gemm = Literal["library", "tuned"]
AttentionKernel = Literal["auto", "flash", "cudnn"]
Rope = tuple[Tensor, Tensor]

_RECOMPILES = 64  # shapes and models a process may see; torch's own limit of 8 would fall back to eager unseen
_KERNELS: dict[AttentionKernel, list[SDPBackend]] = {
    "auto": [],
    "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
    "cudnn": [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileOptions:
    """How a worker's step is compiled.

    Args:
        mode: `none` (every operation by itself), `default` (compiled regions) or `graph` (a step of them is captured
            into a CUDA graph and replayed).
        gemm: matrix products by the algorithm that the vendor's `library` puts first, or by the one of those it
            proposes that is quickest for the sizes at hand, measured when they first occur (`tuned`: graphs on a GPU).
        attention: which kernel is preferred where there is no mask.
        dynamic: None: regions are compiled for the first number of rows and, from the second on, for any. True: for
            any at once. False: for each by itself.
        regions: whether regions are compiled at all; not, it is a graph of every operation by itself.
        unroll: steps in one graph, of mode `graph`.
        kernels: whether hand-written kernels and products in place stand in for compiled ones, where they can.
        numerics: `invariant`: a row's bits do not depend on what is computed with it (`models/invariant.py`). It has
            products, attention and kernels of its own; what is compiled is what comes before and after the layers.

    Raises:
        UsageError: a value is unknown, or these numerics leave it unused.
    """

    mode: CompileMode = "none"
    gemm: Gemm = "library"
    attention: AttentionKernel = "auto"
    dynamic: bool | None = None
    regions: bool = True
    unroll: int = 1
    kernels: bool = True
    numerics: Numerics = "fast"

    def __post_init__(self) -> None:
        one_of("compile", self.mode, COMPILE_MODES)
        one_of("gemm", self.gemm, get_args(Gemm))
        one_of("attention", self.attention, get_args(AttentionKernel))
        one_of("numerics", self.numerics, NUMERICS)
        if self.unroll < 1:
            raise UsageError(f"unroll: {self.unroll} is not at least 1", field="unroll")
        if self.numerics == "invariant":
            self._check_unused()

    def _check_unused(self) -> None:
        for name, value in {"gemm": "library", "attention": "auto", "kernels": True}.items():
            if getattr(self, name) != value:
                text = f"{name}: numerics 'invariant' has products, attention and kernels of its own; leave it out"
                raise UsageError(text, field=name)
        check_compiled(self.mode)

    def check(self, device: torch.device, *, simulated: bool = False) -> None:
        """Whether a worker on this device can run so.

        Raises:
            UsageError: graphs need a GPU, and one worker a process; invariant numerics a GPU, and Triton.
        """
        check_compile(self.mode, device=device.type, simulated=simulated)
        if self.numerics == "invariant":
            invariant.check_kernels(device)
        if self.gemm == "tuned":
            if self.mode != "graph":
                raise UsageError("gemm: 'tuned' pays in graphs only; use compile: graph", field="gemm")
            products.check_tuned()

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A compiled twin of a function, or itself where nothing is compiled."""
        if self.mode == "none" or not self.regions:
            return function
        COMPILATIONS.watch()
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _RECOMPILES)
        return torch.compile(function, dynamic=self.dynamic)

    @contextmanager
    def attending(self) -> Iterator[None]:
        """Prefer the chosen attention kernel within."""
        if not _KERNELS[self.attention]:
            yield
            return
        with sdpa_kernel(_KERNELS[self.attention], set_priority=True):
            yield


EAGER_STEP = CompileOptions()


def own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function with a code object of its own: what torch compiled of its twins, and for what shapes, is not its."""
    assert isinstance(function, FunctionType)
    parts = function.__globals__, function.__name__, function.__defaults__, function.__closure__
    return FunctionType(function.__code__.replace(), *parts)


def _project(attn: Attention, h_BRD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    qkv_BRXE = attn.qkv(h_BRD).unflatten(-1, (-1, attn.head_dim))
    q_BHRE, k_BGRE, v_BGRE = qkv_BRXE.transpose(1, 2).split(attn.heads, dim=1)
    return rotate(q_BHRE, cos, sin), rotate(k_BGRE, cos, sin), v_BGRE


def _enter(attn: Attention, h_BRD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of the rows, for an `Attend` that takes them from there."""
    return _project(attn, h_BRD, cos, sin)


def _enter_store(
    attn: Attention, h_BRD: Tensor, cos: Tensor, sin: Tensor, rows_R: Tensor, k_BGNE: Tensor, v_BGNE: Tensor
) -> Tensor:
    """Queries of the rows; keys and values go straight into the store."""
    q_BHRE, k_BGRE, v_BGRE = _project(attn, h_BRD, cos, sin)
    k_BGNE.index_copy_(2, rows_R, k_BGRE)
    v_BGNE.index_copy_(2, rows_R, v_BGRE)
    return q_BHRE


def _enter_packed(attn: Attention, h_BRD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Packed, Packed]:
    """Queries of the rows; keys and values as FP8 numbers and their scales."""
    q_BHRE, k_BGRE, v_BGRE = _project(attn, h_BRD, cos, sin)
    return q_BHRE, quantise_rows(k_BGRE), quantise_rows(v_BGRE)


def _unpack(keys: Packed, values: Packed, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return dequantise(*keys, dtype), dequantise(*values, dtype)


def in_place(linear: nn.Module, x: Tensor) -> bool:
    """Whether a product is added to the residual stream where it stands: not one of FP8, nor where fusing is better."""
    return isinstance(linear, Projection) and linear.bias is None and x.is_cuda


class _Products:
    """A layer's matrix products, as the options want them."""

    def __init__(self, options: CompileOptions) -> None:
        self.tuned, self.kernels = options.gemm == "tuned", options.kernels

    def of(self, linear: nn.Module, x_BRI: Tensor) -> Tensor:
        """The linear map of the rows."""
        if not self.tuned or not isinstance(linear, Projection):
            return linear(x_BRI)  # type: ignore[no-any-return]
        y_BRO = self.by(linear.weight, x_BRI)
        return y_BRO if linear.bias is None else y_BRO + linear.bias

    def by(self, w_OI: Tensor, x_BRI: Tensor) -> Tensor:
        """x wᵀ of the rows."""
        if not self.tuned:
            return F.linear(x_BRI, w_OI)
        y_XO: Tensor = products.tuned_product(x_BRI.flatten(0, 1), w_OI)
        return y_XO.view(*x_BRI.shape[:2], -1)

    def add(self, x_BRD: Tensor, linear: nn.Module, a_BRI: Tensor) -> Tensor:
        """The residual stream and a map of the rows: itself where that is added in place."""
        if not (self.kernels or self.tuned) or not in_place(linear, x_BRD):
            return x_BRD + linear(a_BRI)  # type: ignore[no-any-return]
        add = products.add_tuned_product if self.tuned else products.add_product
        add(x_BRD.view(-1, x_BRD.shape[-1]), a_BRI.flatten(0, 1), linear.weight)
        return x_BRD


def _leaver(product: _Products) -> Callable[..., tuple[Tensor, Tensor]]:
    def leave(layer: Layer, x_BRD: Tensor, o_BHRE: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
        """The residual stream after a layer, and what the next one (or the head) reads of it."""
        x_BRD = product.add(x_BRD, layer.attn.out, o_BHRE.transpose(1, 2).flatten(2))
        mlp = layer.mlp
        x_BRD = product.add(x_BRD, mlp.down, gated(product.of(mlp.gate_up, layer.mlp_norm(x_BRD))))
        return x_BRD, norm(x_BRD)

    return leave


def _begin(embed: nn.Module, norm: nn.Module, ids_BR: Tensor) -> tuple[Tensor, Tensor]:
    x_BRD = embed(ids_BR)
    return x_BRD, norm(x_BRD)


class CompiledDenoiser:
    """A `Denoiser` with the weights of a `DiffusionTransformer`, its layers compiled. Nothing is copied.

    Rows [R] and [B, R], and any `Attend`, are taken as the transformer takes them. One that exchanges inside a layer
    runs between the regions.
    """

    def __init__(self, model: DiffusionTransformer, options: CompileOptions) -> None:
        self.model, self.config, self.options = model, model.config, options
        self._product = _Products(options)
        parts = (_begin, _enter, _enter_store, _enter_packed, _unpack, _leaver(self._product))
        # Each denoiser has functions of its own, so that dynamo does not count one model's variants for another's.
        self._begin, self._enter, self._enter_store, self._enter_packed, self._unpack, self._leave = (
            options.compiled(own_code(function)) for function in parts
        )

    def forward_rows(self, ids_BR: Tensor, rows_R: Tensor, attend: Attend) -> Tensor:
        """Hidden states, after the final norm, of the rows at canvas positions `rows_R`. See the transformer's."""
        model = self.model
        rope: Rope = model.rope(rows_R)
        layers: list[Layer] = list(model.layers)  # type: ignore[arg-type]
        norms: list[nn.Module] = [*(layer.attn_norm for layer in layers[1:]), model.norm]
        with self.options.attending():
            x_BRD, h_BRD = self._begin(model.embed, layers[0].attn_norm, ids_BR)
            for layer, norm in zip(layers, norms, strict=True):
                o_BHRE = self._attention(layer, h_BRD, rope, attend)
                x_BRD, h_BRD = self._leave(layer, x_BRD, o_BHRE, norm)
        return h_BRD  # type: ignore[no-any-return]

    def _attention(self, layer: Layer, h_BRD: Tensor, rope: Rope, attend: Attend) -> Tensor:
        if isinstance(attend, PlacedAttention) and self._rotates(layer.attn, h_BRD):
            q_BHRE = self._rotate_store(layer.attn, h_BRD, rope, *attend.place(layer.index))
            return attend.placed(layer.index, q_BHRE)
        if isinstance(attend, StoreAttention):
            rows_R, store = attend.place(layer.index)
            q_BHRE = self._enter_store(layer.attn, h_BRD, *rope, rows_R, *store)
            return attend.placed(layer.index, q_BHRE)
        if isinstance(attend, PackedAttention):
            q_BHRE, keys, values = self._enter_packed(layer.attn, h_BRD, *rope)
            attend.store.put(layer.index, attend.rows_R, join(*keys), join(*values))
            held = attend.store.k_LBGNE[layer.index], attend.store.v_LBGNE[layer.index]
            keys, values = self._unpack(parted(held[0]), parted(held[1]), q_BHRE.dtype)
            return grouped_sdpa(q_BHRE, keys, values, attend.mask_RN)
        return attend(layer.index, *self._enter(layer.attn, h_BRD, *rope))

    def _rotates(self, attn: Attention, h_BRD: Tensor) -> bool:
        """Whether one kernel rotates, and puts keys and values where they go."""
        wanted = self.options.kernels and isinstance(attn.qkv, Projection)
        return wanted and kernels.rotates(h_BRD, attn.head_dim)

    def _rotate_store(
        self, attn: Attention, h_BRD: Tensor, rope: Rope, columns_R: Tensor, held: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Queries of the rows; their keys and values are put there."""
        qkv_BRX = self._product.of(attn.qkv, h_BRD)
        return kernels.rotate_store(qkv_BRX, rope, columns_R, held, heads=attn.heads[0], kv_heads=attn.heads[1])

    def logits(self, hidden_BRD: Tensor) -> Tensor:
        """Vocabulary scores, logits_BRV, in the model's dtype."""
        return self._product.by(self.model.head_weight, hidden_BRD)
