"""What a worker sets up once per batch: K/V store, index tensors, attention objects, exchange buffers.

Everything is made when it is first needed and then stays where it is, so that steps allocate nothing and can be
captured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nap_runtime.decoding.machine import Layerwise, Plan, Rows, Step, rows_of
from nap_runtime.decoding.state import CanvasState, Region
from nap_runtime.distributed.consensus import ConsensusExchange
from nap_runtime.distributed.exchange import CandidateExchange, KVExchange, TokenExchange, Told
from nap_runtime.distributed.layerwise import Partials, layer_keys
from nap_runtime.distributed.wire import Wire
from nap_runtime.errors import UsageError
from nap_runtime.models.attention import StoreAttention
from nap_runtime.models.config import ModelConfig
from nap_runtime.models.invariant import FixedOrder
from nap_runtime.models.quantised import PackedAttention, PackedStore
from nap_runtime.models.sdpa import Sdpa, grouped_sdpa
from nap_runtime.models.transformer import Attend, KVStore
from nap_runtime.numerics import Numerics, check_sync
from nap_runtime.policy import CONSENSUS_TOP
from nap_runtime.worker.caches import KeepingAttention, OwnRows, ScatterAttention, block_slots, changed_rows
from nap_runtime.worker.padding import Padding


@dataclass(frozen=True, slots=True)
class ComputedRows:
    """Rows of a step and what they see: `rows` int64 columns, [R] ascending, or [B, R] where they differ.

    `positions` are theirs on each canvas: the rows themselves, or [B, R] where prompts are padded.
    """

    rows: Tensor
    positions: Tensor
    attend: Attend

    @property
    def count(self) -> int:
        """R."""
        return self.rows.shape[-1]

    @property
    def width(self) -> int:
        """R where the rows are found at the step itself; here 0."""
        return 0

    def at(self, step: int | Tensor) -> ComputedRows:
        """The same at every step."""
        return self


@dataclass(frozen=True, slots=True)
class FoundRows:
    """Own rows that a cache of paths does not spare, `count` of each canvas: which they are is found on the device."""

    count: int
    find: Callable[[int | Tensor, int], ComputedRows]

    @property
    def width(self) -> int:
        """R: another one is another shape."""
        return self.count

    def at(self, step: int | Tensor) -> ComputedRows:
        """The rows of a step, whose number may stand on the device."""
        return self.find(step, self.count)


@dataclass(frozen=True, slots=True)
class ScoredSlots:
    """Slots and where their logits come from: `head` indexes the computed rows, [S], or [B, S] where they differ.

    `positions` are theirs on each canvas, which noise goes by: [S], or [B, S] where prompts are padded.
    """

    slots_S: Tensor
    head: Tensor
    positions: Tensor


def views_of(plan: Plan) -> int:
    """How often each canvas goes through the network: with guidance twice, later without its prompt."""
    return 2 if plan.config.cfg else 1


class Resources:
    """One worker's tensors for one batch, or for its first canvases.

    Args:
        plan: the decode; `model` the network's shape.
        wire: what exchanges go through.
        state: the worker's canvases.
        store: keys and values of those canvases; with guidance each stands in it twice.
        padding: how far canvases with shorter prompts stand to the right.
        told: what token exchanges count in.
        numerics: of attention.

    Raises:
        UsageError: these numerics have no attention for the sync, or for such a store.
    """

    def __init__(
        self,
        plan: Plan,
        model: ModelConfig,
        wire: Wire,
        state: CanvasState,
        *,
        store: KVStore,
        padding: Padding,
        told: Told,
        numerics: Numerics = "fast",
    ) -> None:
        self.padding = padding
        self._plan, self._layout, self._assignment = plan, plan.layout, plan.assignment
        self.text_ends_E = torch.tensor(model.end_ids, device=state.ids.device)
        self._wire, self._state = wire, state
        self._rank, self._workers = wire.comm.rank, range(wire.comm.world)
        self._device, self._shift = state.ids.device, int(model.shifted_logits)
        self._views, self._store, self._told = views_of(plan), store, told
        self._ordered = self._fixed_order(numerics)
        self._sdpa: Sdpa = self._ordered or grouped_sdpa
        self._computed: dict[tuple[Rows, Layerwise, int | None], ComputedRows] = {}
        self._scored: dict[tuple[Rows, int | None, tuple[int, ...]], ScoredSlots] = {}
        self._blocks: dict[int, Region] = {}
        self._candidates: dict[tuple[tuple[int, ...], int], CandidateExchange] = {}
        self._consensus: ConsensusExchange | None = None
        self._slots: dict[tuple[int, ...], Tensor] = {}
        self._changed: Tensor | None = None  # the rows of the step, where each canvas has its own

    def _fixed_order(self, numerics: Numerics) -> FixedOrder | None:
        """Attention whose sums have one order, where that is asked for."""
        check_sync(numerics, self._plan.config.sync)
        if numerics == "fast":
            return None
        if isinstance(self._store, PackedStore):
            raise UsageError("numerics: 'invariant' has no FP8 keys and values; use kv 'native'", field="numerics")
        return FixedOrder(self.padding.first_columns(views=self._views))

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
        return TokenExchange(self._wire, self.path_slots, self._state, self._layout.mask_id, self._told)

    @cached_property
    def own_summary_slots(self) -> tuple[int, ...]:
        """Summary slots that this worker answers for."""
        summary = self._layout.summary
        return () if summary is None else tuple(s for s in self.partition[self._rank] if s in summary.slots)

    @cached_property
    def own_places(self) -> Tensor:
        """The same, counted from the summary's first."""
        summary = self._layout.summary
        return self._tensor([] if summary is None else [slot - summary.slots.start for slot in self.own_summary_slots])

    def candidates(self, slots: tuple[int, ...], values: int) -> CandidateExchange:
        """The exchange of candidates, of so many values each, for a region that several workers score."""
        if (slots, values) not in self._candidates:
            wanted = set(slots)
            shares = [[slot for slot in share if slot in wanted] for share in self.partition]
            self._candidates[slots, values] = CandidateExchange(
                self._wire, shares, slots, values=values, batch=len(self._state.ids), device=self._device
            )
        return self._candidates[slots, values]

    def consensus(self, slots: int, vocabulary: int) -> ConsensusExchange:
        """The exchange of opinions about the summary."""
        if self._consensus is None:
            top = min(self._plan.config.sync.top or CONSENSUS_TOP, vocabulary)
            batch = len(self._state.ids)
            self._consensus = ConsensusExchange(self._wire, batch=batch, slots=slots, top=top, device=self._device)
        return self._consensus

    def slots_of(self, block: int) -> tuple[int, ...]:
        """Slots of a block of a cached canvas."""
        slots = self._layout.slots
        return tuple(slots[at] for at in block_slots(len(slots), self._plan.config, block))

    def block(self, block: int) -> Region:
        """The same as a region."""
        if block not in self._blocks:
            self._blocks[block] = Region(self._tensor(self.slots_of(block)), self.all_slots.end_ids_E)
        return self._blocks[block]

    def scored(self, step: Step, slots: tuple[int, ...]) -> ScoredSlots:
        """Where the logits of `slots` come from in a step."""
        key = step.rows, step.block, slots
        if step.rows in (Rows.CHANGED, Rows.OPEN):
            slots_S = self.all_slots.positions_S if step.rows is Rows.CHANGED else self._slots_tensor(slots)
            return ScoredSlots(slots_S, self.places(slots_S), self.padding.positions(slots_S))
        if key not in self._scored:
            place = {row: index for index, row in enumerate(self._rows(step.rows, self._rank, step.block))}
            at_S, head = self._tensor(slots), [place[slot - self._shift] for slot in slots]
            self._scored[key] = ScoredSlots(at_S, self._tensor(head), self.padding.positions(at_S))
        return self._scored[key]

    def _slots_tensor(self, slots: tuple[int, ...]) -> Tensor:
        if slots not in self._slots:
            self._slots[slots] = self._tensor(slots)
        return self._slots[slots]

    def places(self, slots_S: Tensor) -> Tensor:
        """Where the rows that predict slots stand among those found for this step; 0 for one that does not. [B, S]."""
        assert self._changed is not None
        batch, computed = self._changed.shape
        place_BN = self._changed.new_zeros((batch, self._layout.size))
        order_BR = torch.arange(computed, device=self._device).expand(batch, -1)
        return place_BN.scatter(1, self._changed, order_BR)[:, slots_S - self._shift]

    def computed(self, step: Step, width: int = 0) -> ComputedRows | FoundRows:
        """The rows of a step with their attention; `width` of them where a cache of paths finds them."""
        if step.rows is Rows.CHANGED:
            return self._changed_rows(step.step)
        if step.rows is Rows.OPEN:
            return FoundRows(width, self._open_rows)
        key = step.rows, step.layerwise, step.block
        if key not in self._computed:
            mine = self._rows(step.rows, self._rank, step.block)
            rows, attend = self._tensor(mine), self._attend(step.rows, step.layerwise, mine)
            self._computed[key] = ComputedRows(rows, self.padding.positions(rows, views=self._views), attend)
        return self._computed[key]

    def _changed_rows(self, step: int) -> ComputedRows:
        self._changed = changed_rows(self._state, self._plan.schedule, step, shift=self._shift)
        rows_BR = self._changed.repeat(self._views, 1)
        return self._found(rows_BR, ScatterAttention(self._store, rows_BR, self._seen(rows_BR), self._sdpa))

    def _open_rows(self, step: int | Tensor, width: int) -> ComputedRows:
        own = self._own_rows
        self._changed, fresh_BR = own.pick(self._state, step, width)
        rows_BR, fresh_BR = (found.repeat(self._views, 1) for found in (self._changed, fresh_BR))
        rows = (
            own.rows_O if width == len(own.rows_O) else rows_BR
        )  # as a step without a cache has them, or each its own
        return self._found(rows, KeepingAttention.of(self._store, rows_BR, fresh_BR, self._seen(rows), self._sdpa))

    def _found(self, rows: Tensor, attend: Attend) -> ComputedRows:
        return ComputedRows(rows, self.padding.positions(rows, views=self._views), attend)

    def _seen(self, rows: Tensor) -> Tensor | None:
        """What rows see: [R, N], or where they differ from canvas to canvas [B, 1, R, N]."""
        mask_NN = self._mask_of_all
        mask = None if mask_NN is None else mask_NN[rows] if rows.dim() == 1 else mask_NN[rows].unsqueeze(1)
        return self.padding.mask(mask, views=self._views)

    @cached_property
    def _own_rows(self) -> OwnRows:
        return OwnRows(self._plan, self._rank, self._device, shift=self._shift)

    @cached_property
    def _mask_of_all(self) -> Tensor | None:
        sees = self._plan.config.sync.sees
        return None if sees == "full" else self._visible(range(self._layout.size))

    def inputs(self, rows: Tensor) -> Tensor:
        """Ids of the rows, [B, R]; with guidance [2B, R], later once more with a masked prompt."""
        ids_BN = self._state.ids
        if self._views == 2:
            without_BN = ids_BN.clone()
            without_BN[:, : self._layout.prompt_tokens] = self._layout.mask_id
            ids_BN = torch.cat([ids_BN, without_BN])
        return ids_BN[:, rows] if rows.dim() == 1 else ids_BN.gather(1, rows)

    @property
    def views(self) -> int:
        """How often each canvas goes through the network."""
        return self._views

    def _rows(self, rows: Rows, worker: int, block: int | None = None) -> tuple[int, ...]:
        if block is None or rows is Rows.ALL:
            return rows_of(rows, self._layout, self._assignment, worker)
        slots = self.slots_of(block)
        last = slots[-1] + 1 if rows is Rows.BLOCK else self._layout.size
        return tuple(range(slots[0] - self._shift, last))

    def _attend(self, rows: Rows, layerwise: Layerwise, mine: tuple[int, ...]) -> Attend:
        if layerwise is Layerwise.NOTHING:
            if isinstance(self._store, PackedStore):
                return PackedAttention(self._store, self._tensor(mine), self._mask(mine))
            return StoreAttention(self._store, self._tensor(mine), self._mask(mine), self._sdpa)
        if layerwise is Layerwise.KEYS:
            by_worker = [self._rows(rows, worker) for worker in self._workers]
            sync = self._plan.config.sync
            how = {"overlap": sync.overlap, "kept": sync.mode != "exact"}  # a warm-up's keys are what `kv` goes on with
            return layer_keys(self._wire, by_worker, self._store, self._mask(mine), **how, ordered=self._ordered)
        own_keys = self._assignment.own_rows(self._layout, self._rank)
        own = [row for row in mine if row in set(own_keys)]
        return Partials(
            self._wire,
            self._store,
            rows=mine,
            own=own,
            own_keys=own_keys,
            shared_keys=self._layout.shared_rows(),
            mask_RN=self.padding.mask(self._visible(own), views=self._views),
            real=lambda keys_M: self.padding.mask(None, views=self._views, columns=keys_M),
        )

    def _mask(self, rows: Sequence[int]) -> Tensor | None:
        visible = None if self._plan.config.sync.sees == "full" else self._visible(rows)
        return self.padding.mask(visible, views=self._views)

    def _visible(self, rows: Sequence[int]) -> Tensor:
        visible = self._layout.visible(self._plan.config.sync.sees)[list(rows)]
        return torch.from_numpy(visible).to(self._device)

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.int64, device=self._device)
