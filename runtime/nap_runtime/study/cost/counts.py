"""Rows and bytes of a decode, from its plan: the machine is walked, no network runs.

What is counted is what workers meter (`WorkerMeters`): rows, syncs, payload and wire bytes, where every slot is
committed. A path that closes early leaves steps out and tells fills; that is not known beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from nap_runtime.decoding.machine import (
    Arrive,
    Coordination,
    Finish,
    Layerwise,
    Plan,
    Rows,
    Step,
    Summarise,
    Sync,
    rows_of,
)
from nap_runtime.distributed.exchange import TOKEN_BYTES
from nap_runtime.errors import UsageError
from nap_runtime.models.config import ModelConfig
from nap_runtime.policy import CONSENSUS_TOP
from nap_runtime.storage import NATIVE, Storage

_FP8_SCALE_BYTES = 4  # a float32 for each head and position (`models/quantised.py`)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """One run of the network on one worker: rows of each canvas (with guidance twice), and slots whose logits it takes.

    `extra_rows` are those that only a sync or refresh asks for.
    """

    step: int
    rows: int
    extra_rows: int
    scored: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Collectives of one kind at one place.

    Attributes:
        kind: `kv`, `tokens`, `keys`, `partials`, `candidates` or `consensus`.
        times: collectives, one a layer for `keys` and `partials`.
        buffer_bytes: what a worker sends to each peer in one of them, padding included.
        payload_bytes: of each worker, over all of them.
    """

    step: int
    kind: str
    times: int
    buffer_bytes: int
    payload_bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What happens between two waits: forwards by worker (None: it skips or is done), then exchanges.

    `begins`: the exchange runs beside what follows; `arrives`: the one that was begun is waited for.
    """

    forwards: tuple[Forward | None, ...]
    exchanges: tuple[Exchange, ...] = ()
    begins: bool = False
    arrives: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """All moments of a decode; the sums are each worker's, ordered by rank."""

    workers: int
    moments: tuple[Moment, ...]
    syncs: tuple[int, ...]

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """In order."""
        return tuple(exchange for moment in self.moments for exchange in moment.exchanges)

    def forwards_of(self, worker: int) -> tuple[Forward, ...]:
        """In order."""
        found = (moment.forwards[worker] for moment in self.moments)
        return tuple(forward for forward in found if forward is not None)

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows through the network."""
        return tuple(sum(f.rows for f in self.forwards_of(w)) for w in range(self.workers))

    @property
    def extra_rows(self) -> tuple[int, ...]:
        """Rows that only syncs ask for."""
        return tuple(sum(f.extra_rows for f in self.forwards_of(w)) for w in range(self.workers))

    @property
    def payload_bytes(self) -> tuple[int, ...]:
        """Content each worker tells."""
        return tuple(sum(e.payload_bytes[w] for e in self.exchanges) for w in range(self.workers))

    @property
    def wire_bytes(self) -> int:
        """What each worker sends, padding included, to all its peers; the same for all."""
        return (self.workers - 1) * sum(e.times * e.buffer_bytes for e in self.exchanges)


def head_bytes(model: ModelConfig, item_bytes: int, storage: Storage) -> int:
    """Of one head's key, or value, at one position, as a worker holds and sends it."""
    return model.head_dim + _FP8_SCALE_BYTES if storage.kv == "fp8" else model.head_dim * item_bytes


def count(plan: Plan, model: ModelConfig, *, item_bytes: int, batch: int = 1, storage: Storage = NATIVE) -> Counts:
    """Walk the machine of a plan.

    Args:
        item_bytes: of the dtype: 2, 4, 8 (8: log-sum-exp and partial attention travel in float64, else float32).
        storage: whether keys and values are held, and so exchanged, in FP8.

    Raises:
        UsageError: the plan's steps are not known beforehand (adaptive rules, remasking) or a cache spares rows.
    """
    config = plan.config
    if not plan.schedule.fixed or config.cache is not None:
        raise UsageError("rule: costs are counted for rules with fixed quotas and without a cache", field="rule")
    return _Walk(plan, model, item_bytes, batch, head_bytes(model, item_bytes, storage)).run()


@dataclass(slots=True)
class _Walk:
    plan: Plan
    model: ModelConfig
    item: int
    batch: int
    head: int  # bytes of one head's key at one position
    told: list[int] = field(default_factory=list)
    committed: list[int] = field(default_factory=list)
    dirty: list[bool] = field(default_factory=list)
    syncs: list[int] = field(default_factory=list)
    alone: bool = False  # only the lead is left
    sizes: dict[tuple[Rows, int], int] = field(default_factory=dict)
    parts: list[set[int]] = field(default_factory=list)

    @property
    def world(self) -> int:
        return self.plan.assignment.workers

    @property
    def views(self) -> int:
        return 2 if self.plan.config.cfg else 1

    def run(self) -> Counts:
        self.told, self.committed, self.syncs = ([0] * self.world for _ in range(3))
        self.dirty = [False] * self.world
        machine, moments = Coordination(self.plan), list[Moment]()
        while not isinstance(todo := machine.next(), Finish):
            moments.append(self._moment(todo))
        return Counts(workers=self.world, moments=tuple(moments), syncs=tuple(self.syncs))

    def _moment(self, todo: Step | Sync | Arrive | Summarise) -> Moment:
        if isinstance(todo, Step):
            return self._step(todo)
        nobody = (None,) * self.world
        if self.world == 1:
            return Moment(forwards=nobody)
        if isinstance(todo, Arrive):
            self._talked()
            return Moment(forwards=nobody, arrives=True)
        overlap = isinstance(todo, Sync) and todo.overlap
        if not overlap:
            self._talked()
        kv = isinstance(todo, Sync) and todo.mode == "kv"
        exchange = self._kv(todo.step) if kv else self._tokens(todo.step)
        self.alone = self.alone or isinstance(todo, Summarise)
        return Moment(forwards=nobody, exchanges=(exchange,), begins=overlap)

    def _talked(self) -> None:
        self.syncs = [syncs + 1 for syncs in self.syncs]

    # -- steps --------------------------------------------------------------------------------------------------

    def _step(self, step: Step) -> Moment:
        taking_part = [0] if self.alone or step.lead_only else range(self.world)
        forwards: list[Forward | None] = [None] * self.world
        for worker in taking_part:
            forwards[worker] = self._forward(step, worker)
        exchanges = tuple(self._inside(step)) if self.world > 1 else ()
        if exchanges and self._talks(step):
            self._talked()
        return Moment(forwards=tuple(forwards), exchanges=exchanges)

    def _forward(self, step: Step, worker: int) -> Forward | None:
        quotas = self._quotas(step, worker)
        if self._may_skip(step, worker, quotas):
            return None
        rows = self._rows(step.rows, worker)
        extra = self._extra_rows(step, worker, rows)
        forward = Forward(
            step=step.step, rows=self.views * rows, extra_rows=self.views * extra, scored=self._scored(step, worker)
        )
        self.committed[worker] += sum(quotas)
        self.dirty[worker] = self._dirties(step, worker, quotas)
        return forward

    def _rows(self, rows: Rows, worker: int) -> int:
        """How many rows; steps ask for the same ones again and again."""
        if (rows, worker) not in self.sizes:
            self.sizes[rows, worker] = len(rows_of(rows, self.plan.layout, self.plan.assignment, worker))
        return self.sizes[rows, worker]

    def _quotas(self, step: Step, worker: int) -> list[int]:
        if step.paths is None:
            return []
        return [step.paths[path] for path in self.plan.assignment.paths_of(worker)]

    def _may_skip(self, step: Step, worker: int, quotas: Sequence[int]) -> bool:
        if self.dirty[worker] or step.layerwise is not Layerwise.NOTHING:
            return False
        return (step.rows is Rows.OWN and not any(quotas)) or (step.rows is Rows.SUMMARY and not step.summary)

    def _dirties(self, step: Step, worker: int, quotas: Sequence[int]) -> bool:
        if step.canvas is not None:
            return step.canvas > 0
        return any(quotas) or (bool(step.summary) and self._decodes_summary(worker))

    def _decodes_summary(self, worker: int) -> bool:
        return worker == 0 or self._together or self._agrees

    @property
    def _together(self) -> bool:
        return self.plan.config.sync.mode in ("exact", "shared")

    @property
    def _agrees(self) -> bool:
        return self.plan.config.sync.summary == "consensus"

    def _extra_rows(self, step: Step, worker: int, rows: int) -> int:
        layout, mode = self.plan.layout, self.plan.config.sync.mode
        if step.step == 0 or step.layerwise is Layerwise.KEYS or mode == "exact":
            return 0
        due = step.summary is not None and layout.summary is not None
        needed = len(layout.summary.rows) if due and layout.summary else None
        own = self._rows(Rows.OWN, worker)
        return max(rows - (own if needed is None else needed), 0)

    def _scored(self, step: Step, worker: int) -> int:
        """Slots whose logits a worker takes."""
        layout = self.plan.layout
        if step.canvas is not None:
            return len(self._share(worker, layout.slots, step)) * self.views
        paths = self.plan.assignment.paths_of(worker)
        slots = sum(layout.budgets[p] for p in paths if step.paths is not None and step.paths[p])
        summary = () if layout.summary is None else tuple(layout.summary.slots)
        exact = self.plan.config.sync.mode == "exact"
        if step.live:
            slots += len(self._share(worker, summary, step)) if exact else len(summary) * (worker == 0)
        if step.summary and self._decodes_summary(worker):
            slots += len(self._share(worker, summary, step)) if self._together else len(summary)
        return slots * self.views

    def _share(self, worker: int, slots: Sequence[int], step: Step) -> list[int]:
        if self.world == 1 or step.step == 0:
            return list(slots)
        mine = self._partition()[worker]
        return [slot for slot in slots if slot in mine]

    def _partition(self) -> list[set[int]]:
        """Which slots each worker answers for, as `Resources.partition`."""
        self.parts = self.parts or self._parted()
        return self.parts

    def _parted(self) -> list[set[int]]:
        layout, assignment = self.plan.layout, self.plan.assignment
        parts = [
            {slot for path in assignment.paths_of(w) for slot in layout.paths[path].slots} for w in range(self.world)
        ]
        if layout.summary is None:
            return parts
        split = self.plan.config.sync.mode == "exact" or bool(self.plan.schedule.canvas)
        shift = int(self.model.shifted_logits)
        for worker, rows in enumerate(assignment.split_shared(layout)):
            share = set(rows)
            parts[worker] |= {s for s in layout.summary.slots if (s - shift in share if split else worker == 0)}
        return parts

    # -- exchanges ----------------------------------------------------------------------------------------------

    def _talks(self, step: Step) -> bool:
        agree = step.summary is not None and self._agrees
        return step.layerwise is not Layerwise.NOTHING or ((step.canvas is not None or agree) and step.step > 0)

    def _inside(self, step: Step) -> Iterator[Exchange]:
        """What is exchanged inside a step of several workers."""
        layout, live = self.plan.layout, step.live and self.plan.config.sync.mode == "exact"
        summary = () if layout.summary is None else tuple(layout.summary.slots)
        if step.layerwise is Layerwise.KEYS:
            yield self._keys(step)
        if step.layerwise is Layerwise.PARTIALS:
            yield self._partials(step)
        if step.step == 0:
            return
        if live:
            yield self._candidates(step.step, summary)
        if step.canvas is not None:
            yield self._candidates(step.step, layout.slots)
        elif step.summary and self._together:
            yield self._candidates(step.step, summary)
        elif step.summary and self._agrees:
            yield self._consensus(step.step, len(summary))

    def _row_bytes(self) -> int:
        """Of one row's keys, or values, in one layer of the batch."""
        return self.views * self.batch * self.model.n_kv_heads * self.head

    def _kv(self, step: int) -> Exchange:
        own = [len(self.plan.assignment.own_rows(self.plan.layout, w)) for w in range(self.world)]
        row = 2 * self.model.n_layers * self._row_bytes()
        return Exchange(
            step=step,
            kind="kv",
            times=1,
            buffer_bytes=row * max(own),
            payload_bytes=tuple(row * rows for rows in own),
        )

    def _keys(self, step: Step) -> Exchange:
        rows = [self._rows(step.rows, worker) for worker in range(self.world)]
        row, layers = 2 * self._row_bytes(), self.model.n_layers
        return Exchange(
            step=step.step,
            kind="keys",
            times=layers,
            buffer_bytes=row * max(rows),
            payload_bytes=tuple(layers * row * each for each in rows),
        )

    def _partials(self, step: Step) -> Exchange:
        """Output and log-sum-exp of the shared rows, in the precision of the log-sum-exp."""
        layout = self.plan.layout
        shared = len(layout.shared_rows())
        if step.rows is Rows.SUMMARY and layout.summary is not None:
            shared = len(layout.summary.rows)
        values = self.views * self.batch * self.model.n_heads * shared * (self.model.head_dim + 1)
        buffer, layers = values * max(self.item, 4), self.model.n_layers
        payload = (layers * buffer,) * self.world
        return Exchange(step=step.step, kind="partials", times=layers, buffer_bytes=buffer, payload_bytes=payload)

    def _tokens(self, step: int) -> Exchange:
        layout, assignment = self.plan.layout, self.plan.assignment
        slots = [sum(layout.budgets[p] for p in assignment.paths_of(w)) for w in range(self.world)]
        new = [done - before for done, before in zip(self.committed, self.told, strict=True)]
        self.told = list(self.committed)
        return Exchange(
            step=step,
            kind="tokens",
            times=1,
            buffer_bytes=2 * self.batch * max(slots) * 4,
            payload_bytes=tuple(self.batch * tokens * TOKEN_BYTES for tokens in new),
        )

    def _candidates(self, step: int, slots: Sequence[int]) -> Exchange:
        """Id and score of each slot, 8 bytes each."""
        wanted = set(slots)
        mine = [len(wanted & part) for part in self._partition()]
        return Exchange(
            step=step,
            kind="candidates",
            times=1,
            buffer_bytes=2 * self.batch * max(mine) * 8,
            payload_bytes=tuple(2 * self.batch * each * 8 for each in mine),
        )

    def _consensus(self, step: int, slots: int) -> Exchange:
        top = min(self.plan.config.sync.top or CONSENSUS_TOP, self.model.vocab_size)
        buffer = self.batch * slots * (2 * top + 1) * 8
        return Exchange(step=step, kind="consensus", times=1, buffer_bytes=buffer, payload_bytes=(buffer,) * self.world)
