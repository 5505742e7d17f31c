"""LLaDA's published decoding loop, restated: the baseline of `step.py`.

As published (GSAI-ML/LLaDA, `generate.py` and the model code of its checkpoints): the whole canvas and the full
vocabulary at every step, query, key and value (and gate and up) multiplied apart, every operation by itself, softmax in
float64, top-k a canvas with its k read back by the host. Restated so that one run can time it on the same weights.

Where logits are shifted (Dream's shape) they are moved by one row before they are used, and all else is LLaDA's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nap_runtime.models.transformer import DiffusionTransformer, Layer
from nap_runtime.worker import Task


class PublishedLoop:
    """The loop over the canvas of a plain task, a step at a time.

    Attributes:
        held: ids, step of the commit (-1: none) and log-confidence of each position, [1, N] each.
    """

    def __init__(self, model: DiffusionTransformer, task: Task) -> None:
        self._model, self._layout = model, task.plan.layout
        device = model.embed.weight.device
        ids = torch.from_numpy(self._layout.initial_ids(task.prompts[0]))
        self._x = ids.unsqueeze(0).to(device)
        self._at, self._steps = 0, task.plan.schedule.steps
        step = torch.full_like(self._x, -1)
        self.held = (self._x, step, torch.zeros_like(self._x, dtype=torch.float64))
        mask_index = self._x == self._layout.mask_id
        self._quotas = transfer_tokens(mask_index, self._steps)
        self._temperature = task.plan.config.temperature
        assert self._temperature == 0, "noise here is not this project's, so ids would differ"

    @torch.no_grad()
    def step(self) -> None:
        """One step: forward, argmax, confidence, top-k, commit."""
        x, mask_id = self._x, self._layout.mask_id
        mask_index = x == mask_id
        logits = forward(self._model, x)
        if self._model.config.shifted_logits:
            logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
        x0 = torch.argmax(logits, dim=-1)
        p = F.softmax(logits.to(torch.float64), dim=-1)
        x0_p = torch.gather(p, dim=-1, index=x0.unsqueeze(-1)).squeeze(-1)
        x0 = torch.where(mask_index, x0, x)
        confidence = torch.where(mask_index, x0_p, -torch.inf)
        transfer = torch.zeros_like(x0, dtype=torch.bool)
        for j in range(confidence.shape[0]):
            _, chosen = torch.topk(confidence[j], k=int(self._quotas[j, self._at]))
            transfer[j, chosen] = True
        x[transfer] = x0[transfer]
        self.held[1][transfer] = self._at
        self.held[2][transfer] = confidence[transfer].log()
        self._at += 1


def transfer_tokens(mask_index: Tensor, steps: int) -> Tensor:
    """How many tokens each canvas commits at each step, on the device. [B, T]."""
    mask_num = mask_index.sum(dim=1, keepdim=True)
    base, remainder = mask_num // steps, mask_num % steps
    quotas = base.expand(-1, steps).clone()
    for i in range(mask_num.size(0)):
        quotas[i, : int(remainder[i])] += 1
    return quotas


def forward(model: DiffusionTransformer, ids_BN: Tensor) -> Tensor:
    """Logits of every position, by separate operations on the model's weights."""
    x = F.embedding(ids_BN, model.embed.weight)
    cos, sin = model.rope(torch.arange(ids_BN.shape[1], device=ids_BN.device))
    cos, sin = torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
    for layer in model.layers:
        assert isinstance(layer, Layer)
        x = _layer(layer, x, cos, sin)
    return F.linear(_norm(x, model.norm), model.embed.weight if model.config.tied_head else model.head.weight)


def _norm(x: Tensor, norm: torch.nn.Module) -> Tensor:
    wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    variance = wide.pow(2).mean(-1, keepdim=True)
    wide = wide * torch.rsqrt(variance + norm.eps)  # type: ignore[operator]
    return norm.weight * wide.to(x.dtype)  # type: ignore[operator, no-any-return]


def _rotate(t: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide = t.to(cos.dtype)
    low, high = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-high, low), dim=-1) * sin).to(t.dtype)


def _layer(layer: Layer, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    attn, mlp = layer.attn, layer.mlp
    widths = [heads * attn.head_dim for heads in attn.heads]
    weights = attn.qkv.weight.split(widths)
    biases = (None,) * 3 if attn.qkv.bias is None else attn.qkv.bias.split(widths)
    h = _norm(x, layer.attn_norm)
    batch, rows, _ = h.shape
    q, k, v = (
        F.linear(h, w, b).view(batch, rows, heads, attn.head_dim).transpose(1, 2)
        for w, b, heads in zip(weights, biases, attn.heads, strict=True)
    )
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    if attn.heads[0] != attn.heads[1]:
        groups = attn.heads[0] // attn.heads[1]
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False)
    x = x + F.linear(o.transpose(1, 2).contiguous().view(batch, rows, -1), attn.out.weight)
    h = _norm(x, layer.mlp_norm)
    gate, up = mlp.gate_up.weight.chunk(2)
    return x + F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), mlp.down.weight)
