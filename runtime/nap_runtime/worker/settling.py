"""Summary `live` with patience: when a provisional summary has stopped changing. Shapes: B canvases, S slots."""

from __future__ import annotations

import torch
from torch import Tensor


class Settling:
    """Counts, on the device, at how many syncs in a row each canvas's provisional summary was the same.

    Attributes:
        at: int64 [B], the step at which a summary was the same for the `patience`-th time; −1 before.
    """

    def __init__(self, patience: int, *, batch: int, slots: int, device: torch.device) -> None:
        self._patience = patience
        self._last = torch.full((batch, slots), -1, dtype=torch.int64, device=device)
        self._times = torch.zeros(batch, dtype=torch.int64, device=device)
        self.at = torch.full((batch,), -1, dtype=torch.int64, device=device)

    def note(self, step: int, ids_BS: Tensor) -> None:
        """The provisional summaries of a step."""
        same_B = (ids_BS == self._last).all(-1)
        self._times = torch.where(same_B, self._times + 1, 1)
        self.at = torch.where((self.at < 0) & (self._times >= self._patience), step, self.at)
        self._last = ids_BS
