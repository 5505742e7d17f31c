"""Which worker computes which rows, as what exchanges are laid out by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nap_runtime.distributed.wire import Wire


def indices(rows: Sequence[Sequence[int]], device: torch.device) -> list[Tensor]:
    """Each as int64 on a device."""
    return [torch.tensor(list(r), dtype=torch.int64, device=device) for r in rows]


class RowShares:
    """Who computes which rows, as index tensors; `widest` is what buffers are padded to."""

    def __init__(self, wire: Wire, rows_by_worker: Sequence[Sequence[int]], device: torch.device) -> None:
        self.wire, self.rank = wire, wire.comm.rank
        self.rows = indices(rows_by_worker, device)
        self.widest = max(len(r) for r in rows_by_worker)

    @property
    def mine(self) -> Tensor:
        """This worker's rows."""
        return self.rows[self.rank]

    @property
    def without_gaps(self) -> bool:
        """Whether padded shares, one after another, are one run of rows: only the last may be shorter than others."""
        return all(len(rows) == self.widest for rows in self.rows[:-1])

    def payload_of(self, buffer: Tensor) -> int:
        """Bytes of a padded buffer that hold this worker's rows."""
        return buffer.nbytes * len(self.mine) // self.widest

    def peers(self) -> list[tuple[int, Tensor]]:
        """Every other worker with its rows."""
        return [(rank, rows) for rank, rows in enumerate(self.rows) if rank != self.rank]
