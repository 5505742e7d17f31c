"""The canvas on the device: ids, what is still masked, and when each slot was committed.

Everything is a static tensor and nothing here reads a value back to the host, so a step can run ahead of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nap_runtime.decoding.kinds import Kind
from nap_runtime.decoding.layout import CanvasLayout, Ids, ThinkBlock

if TYPE_CHECKING:
    from nap_runtime.decoding.record import CanvasDelta

__all__ = ["NEVER", "CanvasState", "Kind", "Region"]

NEVER = -1


@dataclass(frozen=True, slots=True)
class Region:
    """A block's slots as tensors on the device: `positions_S` int64 [S], `end_ids_E` the ids that close it."""

    positions_S: Tensor
    end_ids_E: Tensor

    @classmethod
    def of(cls, block: ThinkBlock, device: torch.device) -> Region:
        """The slots of a layout's block."""
        positions_S = torch.arange(block.slots.start, block.slots.stop, device=device)
        return cls(positions_S, torch.tensor(block.end_ids, dtype=torch.int64, device=device))


@dataclass(slots=True)
class CanvasState:
    """Canvases of one layout. All tensors have shape [B, N].

    Attributes:
        ids: token ids; the mask id where nothing is committed.
        masked: slots still to commit.
        step: step of the commit, −1 where there was none.
        kind: a `Kind`.
        score: log-confidence of the commit; float64.
    """

    ids: Tensor
    masked: Tensor
    step: Tensor
    kind: Tensor
    score: Tensor

    @classmethod
    def start(cls, layout: CanvasLayout, initial: Sequence[Ids], device: torch.device) -> CanvasState:
        """The state before the first step, one canvas per row of `initial`."""
        ids_BN = torch.stack([torch.from_numpy(ids) for ids in initial]).to(device)
        masked_BN = torch.zeros_like(ids_BN, dtype=torch.bool)
        masked_BN[:, list(layout.slots)] = True
        return cls(
            ids=ids_BN,
            masked=masked_BN,
            step=torch.full_like(ids_BN, NEVER),
            kind=torch.zeros_like(ids_BN, dtype=torch.uint8),
            score=torch.zeros_like(ids_BN, dtype=torch.float64),
        )

    def first(self, lanes: int) -> CanvasState:
        """The first so many canvases: the same memory."""
        return CanvasState(*(tensor[:lanes] for tensor in self.tensors))

    @property
    def tensors(self) -> list[Tensor]:
        """All of it, by canvas."""
        return [getattr(self, field.name) for field in fields(self)]

    def become(self, other: CanvasState) -> None:
        """Take over another state's values; the tensors stay where they are."""
        for mine, its in zip(self.tensors, other.tensors, strict=True):
            mine.copy_(its)

    def restore(self, deltas: Sequence[Sequence[CanvasDelta]]) -> None:
        """Put back what was decided before; `deltas[canvas]` ordered by step."""
        for canvas, of_canvas in enumerate(deltas):
            for delta in of_canvas:
                if delta.kind is Kind.PROVISIONAL:
                    continue
                at = torch.from_numpy(delta.positions).to(self.ids.device)
                self.ids[canvas, at] = torch.from_numpy(delta.ids).to(self.ids.device)
                self.masked[canvas, at] = delta.kind is Kind.REMASK
                self.step[canvas, at] = delta.step
                self.kind[canvas, at] = int(delta.kind)
                self.score[canvas, at] = torch.from_numpy(delta.log_confidence).to(self.ids.device)

    def commit(self, positions_S: Tensor, picked_BS: Tensor, ids_BS: Tensor, score_BS: Tensor, step: int) -> None:
        """Fix the picked candidates."""
        self._put(positions_S, picked_BS, ids_BS, score_BS, step, Kind.COMMIT)

    def remask(self, positions_S: Tensor, where_BS: Tensor, mask_id: int, score_BS: Tensor, step: int) -> None:
        """Mask slots again; `score_BS` is what they were masked for."""
        self._put(
            positions_S, where_BS, torch.full_like(where_BS, mask_id, dtype=torch.int64), score_BS, step, Kind.REMASK
        )

    def _put(
        self, positions_S: Tensor, where_BS: Tensor, ids_BS: Tensor, score_BS: Tensor, step: int, kind: Kind
    ) -> None:
        def write(target_BN: Tensor, values: Tensor | float) -> None:
            target_BN[:, positions_S] = torch.where(where_BS, values, target_BN[:, positions_S]).to(target_BN.dtype)

        write(self.ids, ids_BS)
        write(self.score, score_BS.double())
        write(self.step, step)
        write(self.kind, int(kind))
        masked_BS = self.masked[:, positions_S]
        self.masked[:, positions_S] = masked_BS | where_BS if kind is Kind.REMASK else masked_BS & ~where_BS

    def close(self, region: Region, fill_id: int, step: int) -> None:
        """Fill what is left of a block once an end id and every slot before it are committed.

        The fill counts in no metric; it only keeps closed text from costing further steps.
        """
        masked_BS = self.masked[:, region.positions_S]
        fill_BS = masked_BS & self.closed(region).unsqueeze(-1)
        none_BS = torch.zeros_like(masked_BS, dtype=torch.int64)
        self._put(region.positions_S, fill_BS, none_BS + fill_id, none_BS, step, Kind.FILL)

    def give_up(self, region: Region, canvases_B: Tensor, fill_id: int, step: int) -> None:
        """Fill what is left of a block on some canvases (bool [B])."""
        fill_BS = self.masked[:, region.positions_S] & canvases_B.unsqueeze(-1)
        none_BS = torch.zeros_like(fill_BS, dtype=torch.int64)
        self._put(region.positions_S, fill_BS, none_BS + fill_id, none_BS, step, Kind.FILL)

    def closed(self, region: Region) -> Tensor:
        """Whether the block has an end id with no masked slot before it. Bool [B]."""
        ids_BS, masked_BS = self.ids[:, region.positions_S], self.masked[:, region.positions_S]
        end_BS = torch.isin(ids_BS, region.end_ids_E) & ~masked_BS
        open_before_BS = masked_BS.cumsum(-1) > 0
        return (end_BS & ~open_before_BS).any(-1)

    def adopt(self, positions_S: Tensor, ids_BS: Tensor, mask_id: int) -> None:
        """Take over a peer's slots; `NEVER` marks those that are masked there."""
        known_BS = ids_BS != NEVER
        self.ids[:, positions_S] = torch.where(known_BS, ids_BS, mask_id)
        self.masked[:, positions_S] = ~known_BS

    def committed_ids(self, positions_S: Tensor) -> Tensor:
        """Ids at `positions_S`, `NEVER` where still masked: what `adopt` takes. Shape [B, S]."""
        return torch.where(self.masked[:, positions_S], NEVER, self.ids[:, positions_S])
