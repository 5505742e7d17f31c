"""Rows that a cache spares, and attention for canvases of a batch that compute different rows.

`prefix` and `dual` (Fast-dLLM) compute the whole canvas at the first step of a block; until the next block begins,
`prefix` computes the block and all behind it, `dual` the block alone. `dkv` (dKV-Cache) computes what is masked and
what was committed one step ago, so that a token's keys and values are kept from one step after its commit; every N
steps it computes the whole canvas. What is not computed stays in the store as it was last computed.

Caches of paths (layout `nap`) spare own rows between two syncs: a sync computes them all, and so does the summary's
first step. `closed` spares the rows of a path of which every slot is decided, `dkv` the row of every token and header;
each from one step after the last commit in question. Which rows these are is found on the device, so no id depends on
when the host learns of it; how many there can be the host knows, from quotas or reports, and rounds up to few widths.

Where logits are shifted (Dream) the row before a slot predicts it, so that row is computed too.

Shapes: B batch, R rows of each canvas, N positions, H query heads, G key heads, E head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from nap_runtime.decoding.machine import Plan
from nap_runtime.decoding.schedule import UnmaskingSchedule, block_of
from nap_runtime.decoding.state import CanvasState
from nap_runtime.job import DecodeConfig
from nap_runtime.models.sdpa import Sdpa, grouped_sdpa
from nap_runtime.models.transformer import KVStore


@dataclass(frozen=True, slots=True, eq=False)
class ScatterAttention:
    """An `Attend` for rows that differ from canvas to canvas: stores them, then attends over the whole store.

    `rows_BR`: int64 canvas positions; a position that stands twice is stored twice, with the same values.
    `mask_B1RN`: boolean, True where a row sees a position (None: all).
    """

    store: KVStore
    rows_BR: Tensor
    mask_B1RN: Tensor | None = None
    sdpa: Sdpa = grouped_sdpa

    def __call__(self, layer: int, q_BHRE: Tensor, k_BGRE: Tensor, v_BGRE: Tensor) -> Tensor:
        """Store, then attend; returns o_BHRE."""
        keys, values = self.store.k_LBGNE[layer], self.store.v_LBGNE[layer]
        k_BGRE, v_BGRE = self.store.pack(k_BGRE), self.store.pack(v_BGRE)
        at_BGRE = self.rows_BR[:, None, :, None].expand_as(k_BGRE)
        keys.scatter_(2, at_BGRE, k_BGRE)
        values.scatter_(2, at_BGRE, v_BGRE)
        return self.sdpa(q_BHRE, *self.store.read(layer, q_BHRE.dtype), self.mask_B1RN)


def block_slots(slots: int, config: DecodeConfig, block: int) -> range:
    """The slots of a block of a cached region, counted from 0; the last block may be shorter."""
    length = config.fast_block if config.traits.adaptive else block_of(slots, config.block_length)
    return range(block * length, min((block + 1) * length, slots))


def changed_rows(state: CanvasState, schedule: UnmaskingSchedule, step: int, *, shift: int) -> Tensor:
    """`dkv`: rows of masked slots and of those committed at the step before, of each canvas. int64 [B, R].

    R is the same for all canvases, because each has committed its quota. With shifted logits the rows before masked
    slots count too, and R is the most these can be; what is left over repeats the first row.
    """
    needed_BN = state.masked | (state.step == step - 1)
    if shift:
        needed_BN[:, :-1] |= state.masked[:, 1:]
    masked = sum(schedule.canvas[step:])
    most = min(masked * (1 + shift) + schedule.canvas[step - 1], needed_BN.shape[1])
    order_BN = needed_BN.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, :most]
    return torch.where(needed_BN.gather(1, order_BN), order_BN, order_BN[:, :1])


# -- caches of paths ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class KeepingAttention:
    """An `Attend` that stores the keys and values of some of its rows and keeps what the store has of the others.

    Args:
        at_X: where the rows of every canvas and key head stand in a layer's keys as one list of B·G·N rows; none twice.
        fresh_X1: bool, which of them are stored.
        mask: what rows see, [R, N] or [B, 1, R, N] (None: all).
    """

    store: KVStore
    at_X: Tensor
    fresh_X1: Tensor
    mask: Tensor | None = None
    sdpa: Sdpa = grouped_sdpa

    @classmethod
    def of(
        cls, store: KVStore, rows_BR: Tensor, fresh_BR: Tensor, mask: Tensor | None, sdpa: Sdpa = grouped_sdpa
    ) -> KeepingAttention:
        """For int64 canvas positions [B, R], none twice, and bool [B, R], which of them are stored."""
        _, batch, heads, positions, _ = store.k_LBGNE.shape
        first_BG1 = (torch.arange(batch * heads, device=rows_BR.device) * positions).view(batch, heads, 1)
        at_BGR = first_BG1 + rows_BR.unsqueeze(1)
        return cls(store, at_BGR.flatten(), fresh_BR.unsqueeze(1).expand_as(at_BGR).reshape(-1, 1), mask, sdpa)

    def __call__(self, layer: int, q_BHRE: Tensor, k_BGRE: Tensor, v_BGRE: Tensor) -> Tensor:
        """Store, then attend; returns o_BHRE."""
        for held_BGNX, new_BGRE in ((self.store.k_LBGNE[layer], k_BGRE), (self.store.v_LBGNE[layer], v_BGRE)):
            held, new = held_BGNX.view(-1, held_BGNX.shape[-1]), self.store.pack(new_BGRE).flatten(0, 2)
            held.index_copy_(0, self.at_X, torch.where(self.fresh_X1, new, held.index_select(0, self.at_X)))
        return self.sdpa(q_BHRE, *self.store.read(layer, q_BHRE.dtype), self.mask)


class OwnRows:
    """A worker's own rows as a cache of paths sees them. O own rows, P own paths.

    Args:
        shift: whether the row before a slot predicts it.
    """

    def __init__(self, plan: Plan, worker: int, device: torch.device, *, shift: int) -> None:
        layout, self._shift, self._by_path = plan.layout, shift, plan.config.cache == "closed"
        paths = plan.assignment.paths_of(worker)
        rows = [layout.own_rows(path) for path in paths]
        self.rows_O = _numbers([row for own in rows for row in own], device)
        self._path_O = _numbers([at for at, own in enumerate(rows) for _ in own], device)
        self._slots = [_numbers(list(layout.paths[path].slots), device) for path in paths]

    def pick(self, state: CanvasState, step: int | Tensor, width: int) -> tuple[Tensor, Tensor]:
        """At least the rows that are to be computed at a step, and which these are: int64 and bool [B, `width`].

        Where `width` is all of them they are in order, the same on every canvas.
        """
        fresh_BN = state.masked | (state.step >= step - 1)
        if self._by_path:
            fresh_BP = torch.stack([fresh_BN[:, slots].any(-1) for slots in self._slots], dim=-1)
            fresh_BO = fresh_BP[:, self._path_O]
        else:
            if self._shift:
                fresh_BN[:, :-1] |= state.masked[:, 1:]
            fresh_BO = fresh_BN[:, self.rows_O]
        if width == len(self.rows_O):
            return self.rows_O.expand(len(fresh_BO), -1), fresh_BO
        order_BO = fresh_BO.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, :width]
        return self.rows_O[order_BO], fresh_BO.gather(1, order_BO)


def _numbers(values: list[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)


class Widths:
    """How many own rows a step has to make room for, on the host.

    With `closed` those of paths that are open on some canvas, as far as reports tell; with `dkv` those that quotas
    leave masked before the last step, in quarters of the own rows.
    """

    def __init__(self, plan: Plan, worker: int, *, shift: int) -> None:
        layout, self._shift, self._by_path = plan.layout, shift, plan.config.cache == "closed"
        paths, self._period = plan.assignment.paths_of(worker), plan.config.reports_every
        self._rows = [len(layout.own_rows(path)) for path in paths]
        quotas = [[row[path] for row in plan.schedule.paths] for path in paths]
        self._left = [
            [layout.budgets[path], *(layout.budgets[path] - done for done in accumulate(of_path))]
            for path, of_path in zip(paths, quotas, strict=True)
        ]

    def of(self, step: int, closed_at: Sequence[Sequence[int | None]]) -> int:
        """Rows of a step (not the first). `closed_at`: of each canvas that is computed and own path, None: open.

        A report counts from one control word after it on: that far back every device has read it.
        """
        if self._by_path:
            as_of = (step // self._period - 1) * self._period
            rows = (
                sum(n for n, at in zip(self._rows, one, strict=True) if at is None or at > as_of) for one in closed_at
            )
            return max(rows)
        needed = sum(
            min(left[step - 1] * (1 + self._shift), rows) for left, rows in zip(self._left, self._rows, strict=True)
        )
        quarter = -(-sum(self._rows) // 4)
        return min(-(-needed // quarter) * quarter, sum(self._rows))
