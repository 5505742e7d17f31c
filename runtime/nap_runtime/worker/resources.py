"""What a worker sets up once per batch: K/V store, index tensors, attention objects, exchange buffers.

Everything is made when it is first needed and then stays where it is, so that steps allocate nothing and can be
captured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nap_runtime.decoding.machine import Layerwise, Plan, Rows, rows_of
from nap_runtime.decoding.state import CanvasState, Region
from nap_runtime.distributed.exchange import CandidateExchange, KVExchange, LayerKeys, Partials, TokenExchange
from nap_runtime.distributed.wire import Wire
from nap_runtime.models.attention import StoreAttention
from nap_runtime.models.config import ModelConfig
from nap_runtime.models.transformer import Attend, KVStore


@dataclass(frozen=True, slots=True)
class ComputedRows:
    """Rows of a step and what they see: `rows_R` int64 canvas positions, ascending."""

    rows_R: Tensor
    attend: Attend


@dataclass(frozen=True, slots=True)
class ScoredSlots:
    """Slots and where their logits come from: `head_S` indexes the computed rows."""

    slots_S: Tensor
    head_S: Tensor


class Resources:
    """One worker's tensors for one batch.

    Args:
        plan: the decode; `model` the network's shape.
        wire: what exchanges go through.
        state: the worker's canvases.
        dtype: of the K/V store.
    """

    def __init__(self, plan: Plan, model: ModelConfig, wire: Wire, state: CanvasState, *, dtype: torch.dtype) -> None:
        self._plan, self._layout, self._assignment = plan, plan.layout, plan.assignment
        self.text_ends_E = torch.tensor(model.end_ids, device=state.ids.device)
        self._wire, self._state = wire, state
        self._rank, self._workers = wire.comm.rank, range(wire.comm.world)
        self._device, self._shift = state.ids.device, int(model.shifted_logits)
        batch, positions = state.ids.shape
        self._store = KVStore.allocate(model, batch=batch, positions=positions, dtype=dtype, device=self._device)
        self._computed: dict[tuple[Rows, Layerwise], ComputedRows] = {}
        self._scored: dict[tuple[Rows, tuple[int, ...]], ScoredSlots] = {}
        self._candidates: dict[tuple[int, ...], CandidateExchange] = {}

    @cached_property
    def regions(self) -> list[Region]:
        """The blocks' slots, the summary's last."""
        return [Region.of(block, self._device) for block in self._layout.blocks]

    @cached_property
    def all_slots(self) -> Region:
        """Every slot of the canvas as one region."""
        return Region(torch.cat([r.positions_S for r in self.regions]), self.regions[-1].end_ids_E)

    @cached_property
    def path_slots(self) -> list[list[int]]:
        """Slots of each worker's paths."""
        return [
            [slot for path in self._assignment.paths_of(worker) for slot in self._layout.paths[path].slots]
            for worker in range(self._assignment.workers)
        ]

    @cached_property
    def partition(self) -> list[tuple[int, ...]]:
        """Which slots each worker answers for: its paths', and of the summary what it scores.

        Under `exact` (and in scope `canvas`) those whose logits come from rows it computes; else the lead has all.
        """
        summary = self._layout.summary
        split = self._plan.config.sync.mode == "exact" or bool(self._plan.schedule.canvas)
        parts = [tuple(slots) for slots in self.path_slots]
        if summary is None:
            return parts
        shares = [set(share) for share in self._assignment.split_shared(self._layout)]
        for worker, share in enumerate(shares):
            parts[worker] += tuple(s for s in summary.slots if (s - self._shift in share if split else not worker))
        return parts

    @cached_property
    def kv(self) -> KVExchange:
        """The exchange of `kv`."""
        own = [self._assignment.own_rows(self._layout, worker) for worker in self._workers]
        return KVExchange(self._wire, own, self._store)

    @cached_property
    def tokens(self) -> TokenExchange:
        """The exchange of `tokens` and `gather`."""
        return TokenExchange(self._wire, self.path_slots, self._state)

    def candidates(self, slots: tuple[int, ...]) -> CandidateExchange:
        """The exchange of candidates for a region that several workers score."""
        if slots not in self._candidates:
            wanted = set(slots)
            shares = [[slot for slot in share if slot in wanted] for share in self.partition]
            batch = len(self._state.ids)
            self._candidates[slots] = CandidateExchange(self._wire, shares, slots, batch, self._device)
        return self._candidates[slots]

    def scored(self, rows: Rows, slots: tuple[int, ...]) -> ScoredSlots:
        """Where the logits of `slots` come from when `rows` are computed."""
        if (rows, slots) not in self._scored:
            place = {row: index for index, row in enumerate(self._rows(rows, self._rank))}
            head = [place[slot - self._shift] for slot in slots]
            self._scored[rows, slots] = ScoredSlots(self._tensor(slots), self._tensor(head))
        return self._scored[rows, slots]

    def computed(self, rows: Rows, layerwise: Layerwise) -> ComputedRows:
        """The rows of a step with their attention."""
        if (rows, layerwise) not in self._computed:
            mine = self._rows(rows, self._rank)
            self._computed[rows, layerwise] = ComputedRows(self._tensor(mine), self._attend(rows, layerwise, mine))
        return self._computed[rows, layerwise]

    def _rows(self, rows: Rows, worker: int) -> tuple[int, ...]:
        return rows_of(rows, self._layout, self._assignment, worker)

    def _attend(self, rows: Rows, layerwise: Layerwise, mine: tuple[int, ...]) -> Attend:
        if layerwise is Layerwise.NOTHING:
            return StoreAttention(self._store, self._tensor(mine), self._mask(mine))
        if layerwise is Layerwise.KEYS:
            by_worker = [self._rows(rows, worker) for worker in self._workers]
            return LayerKeys(self._wire, by_worker, self._store, self._mask(mine))
        own_keys = self._assignment.own_rows(self._layout, self._rank)
        own = [row for row in mine if row in set(own_keys)]
        return Partials(
            self._wire,
            self._store,
            rows=mine,
            own=own,
            own_keys=own_keys,
            shared_keys=self._layout.shared_rows(),
            mask_RN=self._visible(own),
        )

    def _mask(self, rows: Sequence[int]) -> Tensor | None:
        return None if self._plan.config.sync.sees == "full" else self._visible(rows)

    def _visible(self, rows: Sequence[int]) -> Tensor:
        visible = self._layout.visible(self._plan.config.sync.sees)[list(rows)]
        return torch.from_numpy(visible).to(self._device)

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.int64, device=self._device)
