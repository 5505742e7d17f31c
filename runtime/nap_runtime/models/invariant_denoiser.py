"""A denoiser whose rows do not depend on each other's number: every operation of a layer is a kernel of `invariant`.

Nothing in it is compiled: it launches nine kernels a layer, which graphs take off the host. What rows see is the
`Attend`'s choice, as elsewhere; it has to attend by `invariant.FixedOrder`, which `worker.resources` sees to.

Shapes: B batch, R computed rows, X all rows of a batch, D d_model, H query heads, G key heads, E head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nap_runtime.errors import UsageError
from nap_runtime.models import invariant, kernels
from nap_runtime.models.attention import PlacedAttention
from nap_runtime.models.quantised import is_quantised
from nap_runtime.models.transformer import Attend, Attention, DiffusionTransformer, Layer, RMSNorm

Rope = tuple[Tensor, Tensor]


class InvariantDenoiser:
    """A `Denoiser` with the weights of a `DiffusionTransformer`. Nothing is copied.

    Raises:
        UsageError: the kernels do not take its numbers or heads.
    """

    def __init__(self, model: DiffusionTransformer) -> None:
        self.model, self.config = model, model.config
        dtype, width = model.embed.weight.dtype, model.config.head_dim
        if dtype not in invariant.TAKEN:
            text = f"numerics: 'invariant' takes at most 32 bits a number, not {dtype}; use 'fast'"
            raise UsageError(text.replace("torch.", ""), field="numerics")
        if is_quantised(model):
            raise UsageError("numerics: 'invariant' has no FP8 products; use weights 'native'", field="numerics")
        if width & (width - 1):
            text = f"numerics: 'invariant' needs heads of a power of two numbers, not {width}; use 'fast'"
            raise UsageError(text, field="numerics")

    def forward_rows(self, ids_BR: Tensor, rows_R: Tensor, attend: Attend) -> Tensor:
        """Hidden states, after the final norm, of the rows at canvas positions `rows_R`. See the transformer's."""
        model, (batch, rows) = self.model, ids_BR.shape
        rope: Rope = model.rope(rows_R)
        x_XD = model.embed(ids_BR).flatten(0, 1)
        for layer in model.layers:
            assert isinstance(layer, Layer)
            h_BRD = _norm(layer.attn_norm, x_XD).view(batch, rows, -1)
            o_BHRE = _attention(layer, h_BRD, rope, attend)
            _add(x_XD, layer.attn.out, o_BHRE.transpose(1, 2).reshape(len(x_XD), -1))
            both_XF = _linear(layer.mlp.gate_up, _norm(layer.mlp_norm, x_XD))
            _add(x_XD, layer.mlp.down, invariant.gated(both_XF))
        return _norm(model.norm, x_XD).view(batch, rows, -1)

    def logits(self, hidden_BRD: Tensor) -> Tensor:
        """Vocabulary scores, logits_BRV, in the model's dtype."""
        logits_XV = invariant.product(hidden_BRD.flatten(0, 1), self.model.head_weight)
        return logits_XV.view(*hidden_BRD.shape[:2], logits_XV.shape[-1])


def _norm(norm: RMSNorm, x_XD: Tensor) -> Tensor:
    return invariant.rms_norm(x_XD, norm.weight, norm.eps)


def _linear(linear: nn.Linear, a_XI: Tensor) -> Tensor:
    return invariant.product(a_XI, linear.weight, linear.bias)


def _add(x_XD: Tensor, linear: nn.Linear, a_XI: Tensor) -> None:
    assert linear.bias is None, "no family has a bias here"
    invariant.add_product(x_XD, a_XI, linear.weight)


def _attention(layer: Layer, h_BRD: Tensor, rope: Rope, attend: Attend) -> Tensor:
    attn: Attention = layer.attn
    heads, kv_heads, _ = attn.heads
    qkv_BRX = _linear(attn.qkv, h_BRD.flatten(0, 1)).view(*h_BRD.shape[:2], -1)
    if isinstance(attend, PlacedAttention):
        columns_R, place = attend.place(layer.index)
        q_BHRE = kernels.rotate_store(qkv_BRX, rope, columns_R, place, heads=heads, kv_heads=kv_heads)
        return attend.placed(layer.index, q_BHRE)
    batch, rows = qkv_BRX.shape[:2]
    k_BGRE, v_BGRE = qkv_BRX.new_empty((2, batch, kv_heads, rows, attn.head_dim))
    in_order_R = torch.arange(rows, device=qkv_BRX.device)
    q_BHRE = kernels.rotate_store(qkv_BRX, rope, in_order_R, (k_BGRE, v_BGRE), heads=heads, kv_heads=kv_heads)
    return attend(layer.index, q_BHRE, k_BGRE, v_BGRE)
