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

    @property
    def tensors(self) -> list[Tensor]:
        """All of it, by canvas."""
        return [self.at, self._times, self._last]

    def note(self, step: int, ids_BS: Tensor) -> None:
        """The provisional summaries of a step; where there are fewer than B, those of the first canvases."""
        at_B, times_B, last_BS = (tensor[: len(ids_BS)] for tensor in self.tensors)
        times_B.copy_(torch.where((ids_BS == last_BS).all(-1), times_B + 1, 1))
        at_B.copy_(torch.where((at_B < 0) & (times_B >= self._patience), step, at_B))
        last_BS.copy_(ids_BS)
