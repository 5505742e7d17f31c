"""How sure the denoiser is of a candidate.

Every confidence is kept as its logarithm: close to 1 probabilities saturate long before their logarithms do, and
saturated scores would turn the order of commits into an accident of rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from nap_runtime.decoding.noise import gumbel
from nap_runtime.job import Confidence

LOWEST = -1e30  # a finite stand-in for log 0: such candidates come last, but before nothing


def draw(
    logits_BSV: Tensor, *, temperature: float, seed: int | Tensor, positions: Tensor, step: int | Tensor
) -> Tensor:
    """Candidate ids: the argmax, of logits with Gumbel noise where temperature > 0 (LLaDA `add_gumbel_noise`).

    `positions` of the slots: [S], or [B, S] where canvases differ.

    LLaDA's exp(l)/(−log u)^T has the argmax of l + T·g, g = −log(−log u). Returns int64 [B, S].
    """
    if temperature == 0:
        return logits_BSV.argmax(-1)
    noise = gumbel(seed, vocab=logits_BSV.shape[-1], positions=positions, step=step)
    return (logits_BSV.double() + temperature * noise).argmax(-1)


def log_confidence(kind: Confidence, logits_BSV: Tensor, ids_BS: Tensor) -> Tensor:
    """Log-confidence of the candidates under the un-noised logits. Shape [B, S].

    `max-prob`: log p(id). `margin`: log(p₁ − p₂). `entropy`: Σ p·log p, which is the log of exp(−H).
    """
    if kind == "max-prob":
        return _log_prob(logits_BSV, ids_BS)
    if kind == "margin":
        top = logits_BSV.topk(2, dim=-1)  # log(p₁ − p₂) = log p₁ + log(1 − p₂/p₁)
        gap_BS = top.values[..., 1] - top.values[..., 0]
        return (_log_prob(logits_BSV, top.indices[..., 0]) + torch.log1p(-gap_BS.exp())).clamp_min(LOWEST)
    log_p_BSV = logits_BSV.log_softmax(-1)
    return torch.where(log_p_BSV > LOWEST, log_p_BSV.exp() * log_p_BSV, 0.0).sum(-1)


def top_gap(logits_BSV: Tensor) -> Tensor:
    """How far the best logit is above the second best (Prophet). Shape [B, S]."""
    best_BS2 = logits_BSV.topk(2, dim=-1).values
    return best_BS2[..., 0] - best_BS2[..., 1]


def _log_prob(logits_BSV: Tensor, ids_BS: Tensor) -> Tensor:
    """log p(id) = −softplus(lse(others) − l(id)): exact where p is within rounding of 1."""
    chosen_BS1 = ids_BS.unsqueeze(-1)
    others_BS = _without(logits_BSV, chosen_BS1).logsumexp(-1)
    gap_BS = others_BS - logits_BSV.gather(-1, chosen_BS1).squeeze(-1)
    return -torch.where(gap_BS > 0, gap_BS + F.softplus(-gap_BS), torch.log1p(gap_BS.exp())).clamp_max(-LOWEST)


def _without(logits_BSV: Tensor, chosen_BS1: Tensor) -> Tensor:
    """The logits with −∞ at the chosen ids; compiled, it is no copy but a part of what reads it."""
    if torch.compiler.is_compiling():
        ids_V = torch.arange(logits_BSV.shape[-1], device=logits_BSV.device)
        return torch.where(ids_V == chosen_BS1, -torch.inf, logits_BSV)
    return logits_BSV.scatter(-1, chosen_BS1, -torch.inf)


def weigh_ends(scores_BS: Tensor, ids_BS: Tensor, end_ids_E: Tensor, weight: float) -> Tensor:
    """Multiply the confidence of end-of-text candidates by `weight` (0: after all others)."""
    if weight == 1.0:
        return scores_BS
    ends_BS = torch.isin(ids_BS, end_ids_E)
    shift = math.log(weight) if weight > 0 else LOWEST
    return torch.where(ends_BS, scores_BS + shift, scores_BS).clamp_min(LOWEST)
