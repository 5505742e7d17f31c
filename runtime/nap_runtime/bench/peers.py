"""Published loops, re-stated plainly on our own network: what ours are compared with.

`llada`: LLaDA's `generate`: a full forward, logits of every row, softmax in float64, top-k canvas by canvas on counts
read from the device. `branches`: branch parallelism after LoPA: the anchor commits a step's quota; each branch commits
one of the next-surest slots besides; all go through the network as one batch, and the branch that is surest of its
masked slots is gone on with, its scores serving the next step. Simplified: the original commits by a threshold, and
puts branches on devices of their own; here they share one.

Both decode a plain region of as many slots as the canvas has behind its prompt. Shapes: B branches, N positions, V
vocabulary.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from nap_runtime.bench.roofline import wait
from nap_runtime.decoding.schedule import llada as llada_quotas
from nap_runtime.models.transformer import CanvasAttention
from nap_runtime.worker import Denoiser


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRun:
    """What a peer's decode gave: final ids [N], steps and rows computed, seconds to its end and to its first commit."""

    ids: Tensor
    steps: int
    rows: int
    seconds: float
    first_commit: float
    committed: int


def canvas_of(prompt: tuple[int, ...], slots: int, mask_id: int, device: torch.device) -> Tensor:
    """Prompt and masks, [1, N]."""
    ids = torch.full((1, len(prompt) + slots), mask_id, dtype=torch.int64, device=device)
    ids[0, : len(prompt)] = torch.tensor(prompt)
    return ids


@torch.inference_mode()
def llada(model: Denoiser, prompt: tuple[int, ...], *, slots: int, steps: int, device: torch.device) -> PeerRun:
    """LLaDA's `generate` with one block, temperature 0 and `low_confidence`."""
    mask_id = model.config.mask_id
    wait(device)
    began = time.perf_counter()
    x = canvas_of(prompt, slots, mask_id, device)
    rows = torch.arange(x.shape[1], device=device)
    shift = int(model.config.shifted_logits)
    quotas = torch.tensor([llada_quotas(slots, steps)], device=device)
    first = 0.0
    for step in range(steps):
        mask_index = x == mask_id
        logits = model.logits(model.forward_rows(x, rows, CanvasAttention()))
        if shift:
            logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
        logits[..., mask_id] = -torch.inf
        x0 = logits.argmax(-1)
        p = logits.to(torch.float64).softmax(-1)
        x0_p = p.gather(-1, x0.unsqueeze(-1)).squeeze(-1)
        x0 = torch.where(mask_index, x0, x)
        confidence = torch.where(mask_index, x0_p, -torch.inf)
        transfer = torch.zeros_like(mask_index)
        for canvas in range(len(x)):
            count = int(quotas[canvas, step])  # read from the device, as the original does
            chosen = confidence[canvas].topk(count).indices
            transfer[canvas, chosen] = True
        x[transfer] = x0[transfer]
        if step == 0:
            wait(device)
            first = time.perf_counter() - began
    wait(device)
    seconds = time.perf_counter() - began
    return PeerRun(ids=x[0], steps=steps, rows=steps * x.shape[1], seconds=seconds, first_commit=first, committed=slots)


@torch.inference_mode()
def branches(
    model: Denoiser, prompt: tuple[int, ...], *, slots: int, steps: int, branches: int, device: torch.device
) -> PeerRun:
    """Whole-canvas branches in a batch; a step commits the anchor's quota and the winner's one more."""
    mask_id, start = model.config.mask_id, len(prompt)
    wait(device)
    began = time.perf_counter()
    x_1N = canvas_of(prompt, slots, mask_id, device)
    rows = torch.arange(x_1N.shape[1], device=device)
    quota = max(round(slots / steps), 1)
    ids_1S, scores_1S = _scored(model, x_1N, rows, start)  # of the canvas that is gone on with
    computed, ran, first = x_1N.shape[1], 1, 0.0
    left = slots
    while left > 0:
        x_BN = _branched(x_1N, ids_1S, scores_1S, start, quota, min(branches, max(left - quota, 0)), mask_id)
        left -= min(quota + (len(x_BN) > 1), left)
        if ran == 1:
            wait(device)
            first = time.perf_counter() - began
        if left == 0 and len(x_BN) == 1:
            x_1N = x_BN
            break
        ids_BS, scores_BS = _scored(model, x_BN, rows, start)
        computed, ran = computed + x_BN.numel(), ran + 1
        best = _surest(x_BN[:, start:] == mask_id, scores_BS)
        x_1N, ids_1S, scores_1S = x_BN[best], ids_BS[best], scores_BS[best]
    wait(device)
    seconds = time.perf_counter() - began
    return PeerRun(ids=x_1N[0], steps=ran, rows=computed, seconds=seconds, first_commit=first, committed=slots)


def _scored(model: Denoiser, x_BN: Tensor, rows: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Candidates of every slot and their log-probabilities, [B, S]."""
    shift = int(model.config.shifted_logits)
    hidden = model.forward_rows(x_BN, rows, CanvasAttention())[:, start - shift : x_BN.shape[1] - shift]
    logits = model.logits(hidden).float()
    logits[..., model.config.mask_id] = -torch.inf
    best = logits.max(-1)
    return best.indices, best.values - logits.logsumexp(-1)


def _branched(
    x_1N: Tensor, ids_1S: Tensor, scores_1S: Tensor, start: int, quota: int, branches: int, mask_id: int
) -> Tensor:
    """The anchor's canvas with one of the next-surest slots committed besides, each in turn; or without, it alone."""
    masked_1S = x_1N[:, start:] == mask_id
    ranks = torch.where(masked_1S, scores_1S, -torch.inf)
    order_S = ranks[0].sort(descending=True, stable=True).indices
    anchor = x_1N.clone()
    anchor[0, start + order_S[:quota]] = torch.where(
        masked_1S[0, order_S[:quota]], ids_1S[0, order_S[:quota]], anchor[0, start + order_S[:quota]]
    )
    if not branches:
        return anchor
    x_BN = anchor.repeat(branches, 1)
    more = order_S[quota : quota + branches]
    x_BN[torch.arange(branches, device=x_BN.device), start + more] = ids_1S[0, more]
    return x_BN


def _surest(masked_BS: Tensor, scores_BS: Tensor) -> Tensor:
    """The branch with the best mean log-probability of its masked slots, as an index [1]; no masked slot counts 0."""
    total = torch.where(masked_BS, scores_BS, 0.0).sum(-1) / masked_BS.sum(-1).clamp_min(1)
    return total.argmax(keepdim=True)
