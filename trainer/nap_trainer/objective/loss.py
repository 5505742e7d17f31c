"""The network's part of the objective: cross-entropy of slots, weighed and summed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nap_runtime.models.transformer import CanvasAttention, DiffusionTransformer
from nap_trainer.objective.forward import Masked
from nap_trainer.settings import ObjectiveSection


class DiffusionLoss(nn.Module):
    """Σ weight · cross-entropy over a micro-batch, and every position's cross-entropy.

    Args:
        model: the denoiser; with shifted logits (Dream) row i − 1 scores position i.
        head_chunk: rows that go through the vocabulary's head at once; more are recomputed in the backward pass.
    """

    def __init__(self, model: DiffusionTransformer, *, head_chunk: int) -> None:
        super().__init__()
        self.model, self.head_chunk = model, head_chunk
        self.shift = int(model.config.shifted_logits)

    def forward(
        self,
        ids_BR: Tensor,
        positions_R: Tensor,
        mask: Tensor | None,
        start: int,
        targets_BN: Tensor,
        weight_BN: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The weighted sum, and losses_BN (detached; 0 at positions that no row scores)."""
        hidden_BRD = self.model.forward_rows(ids_BR, positions_R, CanvasAttention(mask))[:, start:]
        n = targets_BN.shape[1]
        rows_XD = hidden_BRD[:, : n - self.shift].flatten(0, 1)
        losses_X = self._losses(rows_XD, targets_BN[:, self.shift :].flatten())
        losses_BN = F.pad(losses_X.view(len(targets_BN), n - self.shift), (self.shift, 0))
        return (losses_BN * weight_BN).sum(), losses_BN.detach()

    def _losses(self, rows_XD: Tensor, targets_X: Tensor) -> Tensor:
        """Cross-entropy of each row in float32, [X]."""
        if len(rows_XD) <= self.head_chunk:
            return self._head(rows_XD, targets_X)
        parts = zip(rows_XD.split(self.head_chunk), targets_X.split(self.head_chunk), strict=True)
        return torch.cat([checkpoint(self._head, rows, targets, use_reentrant=False) for rows, targets in parts])

    def _head(self, rows_XD: Tensor, targets_X: Tensor) -> Tensor:
        return F.cross_entropy(self.model.logits(rows_XD).float(), targets_X, reduction="none")


def shares(masked: Masked, settings: ObjectiveSection) -> tuple[Tensor, Tensor]:
    """Weights before division, and this micro-batch's part of the divisor (a scalar tensor).

    The divisor is summed over micro-steps and ranks: `nap` counts masked slots; `llada` counts canvases, each of whose
    slots weigh 1 / (its number of slots).
    """
    if settings.normalisation == "nap":
        return masked.weight_BN, masked.hidden_BN.sum().float()
    weight_BN = masked.weight_BN / masked.slots_B[:, None].clamp(min=1)
    return weight_BN, torch.full((), float(len(weight_BN)), device=weight_BN.device)


def region_sums(losses_BN: Tensor, masked: Masked, blocks: int, *, summary: bool) -> Tensor:
    """(Σ loss, slots) of hidden slots of the paths, and of the summary: a vector of four."""
    summary_BN = masked.hidden_BN & (masked.block_BN == blocks) if summary else torch.zeros_like(masked.hidden_BN)
    path_BN = masked.hidden_BN & ~summary_BN
    losses_BN = losses_BN.float()
    return torch.stack(
        [
            (losses_BN * path_BN).sum(),
            path_BN.sum().float(),
            (losses_BN * summary_BN).sum(),
            summary_BN.sum().float(),
        ]
    )
