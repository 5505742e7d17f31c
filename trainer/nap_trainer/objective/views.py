"""What rows see in training: the topology of decoding, and peers as they were some commits ago.

With staleness a canvas is run twice side by side in one forward: as it was when the workers last talked (further slots
of every path hidden), and as it is. Rows of a path see their own path as it is and everything else as it was, which is
what a worker between two `tokens` syncs sees; prompt and summary see the whole canvas as it is, as after a gather.

    rows 0 … N−1 the canvas as it was, rows N … 2N−1 as it is; both at positions 0 … N−1
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nap_trainer.objective.draws import Draws, Use
from nap_trainer.objective.forward import DeviceBatch, Masked
from nap_trainer.settings import ObjectiveSection

FULL, HUB, ISOLATED = range(3)
_KINDS = {"full": FULL, "hub": HUB, "isolated": ISOLATED}


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The network's input: ids_BR at positions_R, what they see, and the row from which the loss is taken.

    `mask` is boolean and broadcasts to [B, 1, R, R]; None where every row sees every other.
    """

    ids_BR: Tensor
    positions_R: Tensor
    mask: Tensor | None
    start: int


class Views:
    """Makes the network's input of masked canvases."""

    def __init__(self, settings: ObjectiveSection, *, mask_id: int, seed: int, fused: bool = False) -> None:
        self.settings, self.mask_id, self.seed, self.fused = settings, mask_id, seed, fused

    def __call__(self, batch: DeviceBatch, masked: Masked, step: int) -> View:
        """The view of a batch at a step."""
        n = masked.noisy_BN.shape[1]
        positions_N = torch.arange(n, device=masked.noisy_BN.device)
        draws = Draws(self.seed, step, self.fused)
        if not self.settings.staleness:
            return View(ids_BR=masked.noisy_BN, positions_R=positions_N, mask=self._mask(batch, draws), start=0)
        visible_BNN = visible(batch, self._kinds(batch, draws))
        was_BN = masked.noisy_BN.masked_fill(self._hidden_then(batch, masked, draws), self.mask_id)
        return View(
            ids_BR=torch.cat((was_BN, masked.noisy_BN), 1),
            positions_R=positions_N.repeat(2),
            mask=_side_by_side(batch, visible_BNN)[:, None],
            start=n,
        )

    def _mask(self, batch: DeviceBatch, draws: Draws) -> Tensor | None:
        if self.settings.topology == "full":
            return None if batch.full else batch.real_BN[:, None, None]
        return visible(batch, self._kinds(batch, draws))[:, None]

    def _kinds(self, batch: DeviceBatch, draws: Draws) -> Tensor:
        """The topology of each canvas, [B]."""
        if self.settings.topology != "mixed":
            return torch.full_like(batch.index_B, _KINDS[self.settings.topology])
        return (draws.canvases(batch.index_B, Use.TOPOLOGY) * len(_KINDS)).long()

    def _hidden_then(self, batch: DeviceBatch, masked: Masked, draws: Draws) -> Tensor:
        """Slots that were masked some commits ago and are not now: `age` of each path in expectation, [B, N]."""
        index_B, n = batch.index_B, masked.noisy_BN.shape[1]
        age_B = (draws.canvases(index_B, Use.AGE) * (self.settings.staleness + 1)).floor()
        stale_B = draws.canvases(index_B, Use.STALE_CANVAS) < self.settings.stale_share
        paths = batch.blocks - int(batch.summary)
        seen_BN = ~masked.hidden_BN & (masked.block_BN > 0) & (masked.block_BN <= paths)
        chance_BN = draws.slots(index_B, n, Use.STALE)
        then_BN = torch.zeros_like(seen_BN)
        for block in range(1, paths + 1):
            here_BN = seen_BN & (masked.block_BN == block)
            rate_B = age_B * stale_B / here_BN.sum(1).clamp(min=1)
            then_BN = then_BN | (here_BN & (chance_BN < rate_B[:, None]))
        return then_BN


def visible(batch: DeviceBatch, kind_B: Tensor) -> Tensor:
    """`CanvasLayout.visible` for canvases of a batch, each with a topology of its own. Bool [B, N, N].

    Rows outside a canvas see themselves, and nobody sees them.
    """
    reader, source, kind = batch.owner_BN[:, :, None], batch.owner_BN[:, None, :], kind_B[:, None, None]
    same_BNN = reader == source
    summary = batch.blocks - 1 if batch.summary else batch.blocks
    hub_BNN = same_BNN | (reader == -1) | (reader == summary) | (source == -1) | (source == summary)
    isolated_BNN = same_BNN | (reader == summary) | ((source == -1) & (reader >= 0))
    sees_BNN = (kind == FULL) | ((kind == HUB) & hub_BNN) | ((kind == ISOLATED) & isolated_BNN)
    itself_NN = torch.eye(batch.owner_BN.shape[1], dtype=torch.bool, device=kind_B.device)
    return (sees_BNN & batch.real_BN[:, None]) | itself_NN


def _side_by_side(batch: DeviceBatch, visible_BNN: Tensor) -> Tensor:
    """Who sees whom when the canvas as it was stands before the canvas as it is. Bool [B, 2N, 2N]."""
    owner_BN = batch.owner_BN
    paths = batch.blocks - int(batch.summary)
    path_BN1 = ((owner_BN >= 0) & (owner_BN < paths))[:, :, None]
    own_BNN = owner_BN[:, :, None] == owner_BN[:, None, :]
    then_BNN = visible_BNN & path_BN1 & ~own_BNN
    now_BNN = visible_BNN & (own_BNN | ~path_BN1)
    was_BNR = torch.cat((visible_BNN, torch.zeros_like(visible_BNN)), 2)
    return torch.cat((was_BNR, torch.cat((then_BNN, now_BNN), 2)), 1)
