"""w of a masked slot, the weightings of LLaDA, the released NAP trainer, and Dream."""

from __future__ import annotations

import torch
from torch import Tensor

from nap_trainer.settings import Weighting


def slot_weights(weighting: Weighting, t_BN: Tensor, hidden_BN: Tensor, real_BN: Tensor, *, cart_p: float) -> Tensor:
    """Weights of the hidden slots, 0 elsewhere. Shape [B, N], float32.

    `constant` 1; `original` 1/t; `linear` 1 − t; `cart` ½ Σ_{m seen, m ≠ n} p(1 − p)^{|n−m|−1} over the positions m of
    the canvas that are not hidden, prompt included.
    """
    if weighting == "cart":
        weight_BN = cart_weights(hidden_BN, real_BN, cart_p)
    elif weighting == "original":
        weight_BN = 1 / t_BN
    elif weighting == "linear":
        weight_BN = 1 - t_BN
    else:
        weight_BN = torch.ones_like(t_BN)
    return weight_BN.float().masked_fill(~hidden_BN, 0.0)


def cart_weights(hidden_BN: Tensor, real_BN: Tensor, p: float) -> Tensor:
    """Dream's context-adaptive weights at every position. Shape [B, N], float32."""
    at_N = torch.arange(hidden_BN.shape[1], device=hidden_BN.device)
    distance_NN = (at_N[:, None] - at_N[None]).abs()
    kernel_NN = 0.5 * p * (1 - p) ** (distance_NN - 1).float()
    kernel_NN = kernel_NN.masked_fill(distance_NN == 0, 0.0)
    return (real_BN & ~hidden_BN).float() @ kernel_NN
