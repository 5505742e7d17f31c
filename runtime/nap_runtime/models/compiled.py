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
from torch.nn.attention import SDPBackend, sdpa_kernel

from nap_runtime.errors import UsageError
from nap_runtime.job import COMPILE_MODES as COMPILE_MODES
from nap_runtime.job import CompileMode as CompileMode
from nap_runtime.job import check_compile
from nap_runtime.models.attention import StoreAttention
from nap_runtime.models.compilations import COMPILATIONS
from nap_runtime.models.sdpa import grouped_sdpa
from nap_runtime.models.transformer import Attend, Attention, DiffusionTransformer, Layer, gated, rotate

Gemm = Literal["library", "tuned", "tuned-tma"]
AttentionKernel = Literal["auto", "flash", "cudnn"]
Rope = tuple[Tensor, Tensor]

_RECOMPILES = 64  # shapes and models a process may see; torch's own limit of 8 would fall back to eager unseen
_GEMM_OPTIONS: dict[Gemm, dict[str, Any]] = {
    "library": {},
    "tuned": {"max_autotune_gemm": True},
    "tuned-tma": {"max_autotune_gemm": True, "triton.enable_persistent_tma_matmul": True},
}
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
        gemm: matrix products by the vendor's `library`, or by what is fastest of it and Triton's, measured while
            compiling (`tuned`; `tuned-tma` with persistent kernels too).
        attention: which kernel is preferred where there is no mask.
        dynamic: None: regions are compiled for the first number of rows and, from the second on, for any. True: for
            any at once. False: for each by itself.
        regions: whether regions are compiled at all; not, it is a graph of every operation by itself.
        unroll: steps in one graph, of mode `graph`.
        pieces: rows of one product into the residual stream; what is more goes apart (0: all rows in one product). A
            product of 1,152 rows and 4,096 outputs is 144 tiles of 128 x 256, two rounds on 132 multiprocessors where
            1,024 rows are one.

    Raises:
        UsageError: a value is unknown.
    """

    mode: CompileMode = "none"
    gemm: Gemm = "library"
    attention: AttentionKernel = "auto"
    dynamic: bool | None = None
    regions: bool = True
    unroll: int = 1
    pieces: int = 0

    def __post_init__(self) -> None:
        known = {"compile": COMPILE_MODES, "gemm": get_args(Gemm), "attention": get_args(AttentionKernel)}
        for name, value in (("compile", self.mode), ("gemm", self.gemm), ("attention", self.attention)):
            if value not in known[name]:
                raise UsageError(f"{name}: unknown value '{value}'; use one of {', '.join(known[name])}", field=name)
        if self.pieces < 0:
            raise UsageError(f"pieces: {self.pieces} is not at least 0", field="pieces")
        if self.unroll < 1:
            raise UsageError(f"unroll: {self.unroll} is not at least 1", field="unroll")

    def check(self, device: torch.device, *, simulated: bool = False) -> None:
        """Whether a worker on this device can run so.

        Raises:
            UsageError: graphs need a GPU, and one worker a process.
        """
        check_compile(self.mode, device=device.type, simulated=simulated)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A compiled twin of a function, or itself where nothing is compiled."""
        if self.mode == "none" or not self.regions:
            return function
        COMPILATIONS.watch()
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _RECOMPILES)
        options = _GEMM_OPTIONS[self.gemm] or None
        return torch.compile(function, dynamic=self.dynamic, options=options)

    @contextmanager
    def kernels(self) -> Iterator[None]:
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


def _in_pieces(linear: nn.Module, x_BRX: Tensor, pieces: int) -> Tensor:
    if not 0 < pieces < x_BRX.shape[1]:
        return linear(x_BRX)  # type: ignore[no-any-return]
    return torch.cat([linear(x_BRX[:, :pieces]), linear(x_BRX[:, pieces:])], dim=1)


def _leaver(pieces: int) -> Callable[..., tuple[Tensor, Tensor]]:
    def leave(layer: Layer, x_BRD: Tensor, o_BHRE: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
        """The residual stream after a layer, and what the next one (or the head) reads of it."""
        x_BRD = x_BRD + _in_pieces(layer.attn.out, o_BHRE.transpose(1, 2).flatten(2), pieces)
        mlp = layer.mlp
        x_BRD = x_BRD + _in_pieces(mlp.down, gated(mlp.gate_up(layer.mlp_norm(x_BRD))), pieces)
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
        # Each denoiser has functions of its own, so that dynamo does not count one model's variants for another's.
        self._begin, self._enter, self._enter_store, self._leave = (
            options.compiled(own_code(function)) for function in (_begin, _enter, _enter_store, _leaver(options.pieces))
        )

    def forward_rows(self, ids_BR: Tensor, rows_R: Tensor, attend: Attend) -> Tensor:
        """Hidden states, after the final norm, of the rows at canvas positions `rows_R`. See the transformer's."""
        model = self.model
        rope: Rope = model.rope(rows_R)
        layers: list[Layer] = list(model.layers)  # type: ignore[arg-type]
        norms: list[nn.Module] = [*(layer.attn_norm for layer in layers[1:]), model.norm]
        with self.options.kernels():
            x_BRD, h_BRD = self._begin(model.embed, layers[0].attn_norm, ids_BR)
            for layer, norm in zip(layers, norms, strict=True):
                o_BHRE = self._attention(layer, h_BRD, rope, attend)
                x_BRD, h_BRD = self._leave(layer, x_BRD, o_BHRE, norm)
        return h_BRD  # type: ignore[no-any-return]

    def _attention(self, layer: Layer, h_BRD: Tensor, rope: Rope, attend: Attend) -> Tensor:
        if not isinstance(attend, StoreAttention):
            return attend(layer.index, *self._enter(layer.attn, h_BRD, *rope))
        keys, values = attend.store.k_LBGNE[layer.index], attend.store.v_LBGNE[layer.index]
        q_BHRE = self._enter_store(layer.attn, h_BRD, *rope, attend.rows_R, keys, values)
        return grouped_sdpa(q_BHRE, keys, values, attend.mask_RN)

    def logits(self, hidden_BRD: Tensor) -> Tensor:
        """Vocabulary scores, logits_BRV, in the model's dtype."""
        return self.model.logits(hidden_BRD)
