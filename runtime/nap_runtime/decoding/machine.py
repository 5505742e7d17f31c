"""Coordination as a replicated pure state machine: control words in, instructions out, no I/O.

Every worker runs its own replica. Equal plans and equal control words give equal instructions, so workers agree on
what to do next without asking anybody; only the control word itself, read by all at the same step, travels.

::

    Step  Sync Step  Sync Step …  Summarise  Step Step …  Finish
    └ 0 ┘ └── 1…T_p−1, path phase ─────────┘ └ summary ┘

With overlap a `Sync` only begins an exchange, beside the step that follows; `Arrive`, one step later, ends it.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from enum import Enum

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.decoding.placement import Assignment
from nap_runtime.decoding.record import SyncEvent
from nap_runtime.decoding.schedule import UnmaskingSchedule
from nap_runtime.errors import UsageError
from nap_runtime.job import DecodeConfig, SyncMode


class Rows(Enum):
    """Which rows a worker computes in a step."""

    ALL = "all"  # the whole canvas
    OWN = "own"  # its paths' headers and slots
    OPEN = "open"  # of those what a cache of paths does not spare; each canvas its own
    OWN_AND_SHARED = "own and shared"
    OWN_AND_SHARE = "own and its share of the shared"  # `exact`: the workers' rows make up the canvas
    SUMMARY = "summary"  # B_S and S
    BLOCK = "block"  # cache `dual`: a block's slots
    FROM_BLOCK = "from block"  # cache `prefix`: a block's slots and all behind them
    CHANGED = "changed"  # cache `dkv`: masked slots, and those committed one step ago; each canvas its own


class Layerwise(Enum):
    """What is exchanged at every layer, inside a step."""

    NOTHING = "nothing"
    KEYS = "exact"  # K/V of the rows each worker computed
    PARTIALS = "shared"  # partial attention of the shared rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Compute `rows`, then commit.

    Attributes:
        step: global step; also the counter of the noise.
        paths: quota of each path (scope `path`), or None outside the path phase.
        summary: quota of the summary, or None.
        canvas: quota over all slots (scope `canvas`), or None.
        lead_only: only worker 0 takes part; the others are done.
        block: the block that is decoded, where a cache goes block by block.
        live: the summary is scored too, provisionally.
    """

    step: int
    rows: Rows
    layerwise: Layerwise = Layerwise.NOTHING
    paths: tuple[int, ...] | None = None
    summary: int | None = None
    canvas: int | None = None
    lead_only: bool = False
    block: int | None = None
    live: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sync:
    """Exchange before the next step: `tokens` or `kv`. With `overlap` only begin to."""

    step: int
    mode: SyncMode
    overlap: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrive:
    """Wait for the exchange that was begun a step ago, and take in what it brought."""

    step: int
    mode: SyncMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Summarise:
    """The paths are done: tell every worker all their tokens, then decode the summary."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Nothing is left to do."""

    cancelled: bool = False


Instruction = Step | Sync | Arrive | Summarise | Finish


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The control word, the same for all workers at the same step.

    Attributes:
        cancel: the caller wants the decode to stop.
        paths_closed: every path of every canvas of the batch is closed.
        all_closed: the summary too.
        blocks_done: so many of the leftmost blocks of a cached canvas are done on every canvas of the batch.
    """

    cancel: bool = False
    paths_closed: bool = False
    all_closed: bool = False
    blocks_done: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a replica needs to know, fixed before the first step."""

    layout: CanvasLayout
    config: DecodeConfig
    assignment: Assignment
    schedule: UnmaskingSchedule

    @classmethod
    def of(cls, layout: CanvasLayout, config: DecodeConfig, assignment: Assignment) -> Plan:
        """The plan of a resolved config on a layout.

        Raises:
            UsageError: the config does not fit the layout, or the assignment has other paths.
        """
        if len(assignment.worker_of) != layout.n_paths:
            raise UsageError(
                f"assignment: {len(assignment.worker_of)} paths assigned, the layout has {layout.n_paths}",
                field="assignment",
            )
        schedule = UnmaskingSchedule.plan(layout, config)
        return cls(layout=layout, config=config, assignment=assignment, schedule=schedule)

    @property
    def path_steps(self) -> int:
        """T_p, where the summary phase begins; T where there is none."""
        return len(self.schedule.paths) or self.schedule.steps

    @property
    def views_count(self) -> bool:
        """Whether the summary is read as the last sync left it: then none is left out, whatever a batch's others do."""
        return self.config.sync.summary == "consensus" and self.config.sync.mode != "none"


class Coordination:
    """A replica of the state machine. `next` gives the next instruction; `events` is what was exchanged so far.

    Args:
        resume: the step to begin with, after a failure: all workers know every commit before it, and compute the whole
            canvas anew.
    """

    def __init__(self, plan: Plan, *, resume: int = 0) -> None:
        self._plan = plan
        self._sync = plan.config.sync
        self._alone = plan.assignment.workers == 1
        self._step = resume
        self._resumed = resume > 0  # the refresh after a failure is still to come
        self._synced = False  # the sync before the current step has been emitted
        self._arrived = False  # the same for the end of the one before
        self._under_way: int | None = None  # the step before which an exchange was begun that has not ended
        self._known = 0  # the step of the canvas that workers know their peers' paths from
        self._summarised = False
        self.events: list[SyncEvent] = []

    @property
    def step(self) -> int:
        """The step that comes next."""
        return self._step

    @property
    def between_steps(self) -> bool:
        """Whether the next instruction begins a step: where control words are read."""
        return not (self._synced or self._arrived)

    def next(self, control: Control | None = None) -> Instruction:
        """The next instruction under this control word."""
        control = control or Control()
        if control.cancel:
            return Finish(cancelled=True)
        if self._step >= self._plan.schedule.steps or control.all_closed:
            return Finish()
        if self._resumed:
            return self._refresh()
        return self._ordinary(control)

    def _ordinary(self, control: Control) -> Instruction:
        if self._plan.schedule.canvas:
            self._skip_blocks(control.blocks_done)
            return Finish() if self._step >= self._plan.schedule.steps else self._canvas_step()
        if control.paths_closed and self._step < self._plan.path_steps and not self._plan.views_count:
            self._step, self._under_way = self._plan.path_steps, None
            return self.next(Control())
        return self._path_step() if self._step < self._plan.path_steps else self._summary_step()

    def _refresh(self) -> Instruction:
        """The first step after a failure: every worker computes every row by itself, and nothing travels.

        In the summary phase of the modes that gather, the others are sent off again first.
        """
        gathers = self._sync.mode in ("tokens", "kv", "none") and self._sync.summary != "consensus"
        gathers = gathers and not self._plan.schedule.canvas
        if gathers and self._step >= self._plan.path_steps and not self._summarised:
            self._summarised = True
            self._fresh(self._step, "refresh")
            return Summarise(step=self._step)
        events = len(self.events)
        if not self._summarised:
            self._fresh(self._step, "refresh")
            events += self._plan.assignment.workers > 1
        self._resumed, self._synced = False, True
        todo = self._ordinary(Control())
        del self.events[events:]  # what would have been exchanged is computed anew
        assert isinstance(todo, Step)
        return replace(todo, rows=Rows.ALL, layerwise=Layerwise.NOTHING)

    def _canvas_step(self) -> Step:
        quota, step = self._plan.schedule.canvas[self._step], self._advance()
        if self._plan.config.cache is not None:
            return self._cached(Step(step=step, rows=Rows.ALL, canvas=quota))
        if self._sync.mode == "exact":
            return self._exact(Step(step=step, rows=Rows.ALL, canvas=quota))
        if step:
            self._fresh(step, "tokens")
        return Step(step=step, rows=Rows.ALL, canvas=quota)

    def _cached(self, step: Step) -> Step:
        """The same step with the rows that its cache spares left out; the first step of a block has them all."""
        kind, begins = self._plan.config.cache, self._plan.schedule.block_steps
        if kind == "dkv":
            refresh = step.step % self._plan.config.refresh_every == 0
            return step if refresh else replace(step, rows=Rows.CHANGED)
        block = bisect_right(begins, step.step) - 1
        rows = Rows.BLOCK if kind == "dual" else Rows.FROM_BLOCK
        return replace(step, block=block, rows=Rows.ALL if step.step in begins else rows)

    def _skip_blocks(self, done: int) -> None:
        """Go on with the first block that is not done everywhere. Of a fixed schedule no step can be left out."""
        begins = (*self._plan.schedule.block_steps, self._plan.schedule.steps)
        self._step = max(self._step, begins[min(done, len(begins) - 1)]) if done else self._step

    def _path_step(self) -> Instruction:
        step, schedule = self._step, self._plan.schedule
        plain = Step(
            step=step,
            rows=Rows.ALL if step == 0 else Rows.OWN if self._plan.config.cache is None else Rows.OPEN,
            paths=schedule.paths[step],
            summary=schedule.summary[0] if schedule.at_once else None,
        )
        if step == 0:
            self._advance()
            return plain
        kind = self._due(step)
        if self._under_way is not None and self._under_way < step:
            return self._arrive(step)
        if kind in ("tokens", "kv") and not self._synced and not self._too_late(step):
            self._synced = True
            return self._begin(step, kind)
        kind = self._arriving(kind)
        self._advance()
        if kind == "exact":
            todo = self._exact(plain)  # in a warm-up step no worker has all of the summary's rows
            return self._live(todo) if self._sync.mode == "exact" else todo
        if kind == "shared":
            self._fresh(step, "shared")
            return self._live(replace(plain, rows=Rows.OWN_AND_SHARED, layerwise=Layerwise.PARTIALS))
        if kind is None:
            return plain
        return self._live(replace(plain, rows=Rows.ALL if kind == "tokens" else Rows.OWN_AND_SHARED))

    def _live(self, step: Step) -> Step:
        """The same step; with summary `live` it scores the summary too."""
        return replace(step, live=self._sync.summary == "live")

    def _begin(self, step: int, kind: SyncMode) -> Sync:
        if self._sync.overlap:
            self._under_way = step
            return Sync(step=step, mode=kind, overlap=True)
        self._remember(step, kind, step - 1 if kind == "kv" else step)
        return Sync(step=step, mode=kind)

    def _arrive(self, step: int) -> Arrive:
        """End the exchange that was begun a step ago: it tells what was known then."""
        began, kind = self._under_way, self._sync.mode
        assert began is not None
        self._arrived, self._under_way = True, None
        self._remember(step, kind, began - 1 if kind == "kv" else began)
        return Arrive(step=step, mode=kind)

    def _too_late(self, step: int) -> bool:
        """An exchange that would end in the summary phase tells nothing that is not gathered there."""
        return self._sync.overlap and step + 1 >= self._plan.path_steps

    def _arriving(self, due: SyncMode | None) -> SyncMode | None:
        """What a step computes for: the sync before it, or with overlap the one that has just arrived."""
        if not self._sync.overlap or due == "exact":
            return due
        return self._sync.mode if self._arrived else None

    def _due(self, step: int) -> SyncMode | None:
        """What is exchanged at a step of the path phase; syncs count from the first step."""
        if self._sync.mode == "exact" or 0 < step <= self._sync.warmup:
            return "exact"
        if self._sync.mode == "none":
            return None
        return self._sync.mode if (step - self._sync.warmup) % self._sync.period == 0 else None

    def _summary_step(self) -> Instruction:
        step, mode = self._step, self._sync.mode
        first = step == self._plan.path_steps
        if self._sync.summary == "consensus":
            return self._consensus_step(first=first)
        if first and not self._summarised and mode in ("tokens", "kv", "none"):
            self._summarised = True
            self._fresh(step, "gather")
            return Summarise(step=step)
        quota = self._plan.schedule.summary[step - self._plan.path_steps]
        refresh = self._sync.refreshes_every_step or first
        self._advance()
        if mode == "exact":
            return self._exact(Step(step=step, rows=Rows.ALL, summary=quota))
        if mode == "shared":
            self._fresh(step, "shared")
            rows = Rows.OWN_AND_SHARED if refresh else Rows.SUMMARY
            return Step(step=step, rows=rows, layerwise=Layerwise.PARTIALS, summary=quota)
        return Step(step=step, rows=Rows.ALL if refresh else Rows.SUMMARY, summary=quota, lead_only=True)

    def _consensus_step(self, *, first: bool) -> Step:
        """Every worker scores the summary from its own view; nothing is gathered."""
        step = self._advance()
        quota = self._plan.schedule.summary[step - self._plan.path_steps]
        self._remember(step, "consensus", self._known)
        return Step(step=step, rows=Rows.OWN_AND_SHARED if first else Rows.SUMMARY, summary=quota)

    def _exact(self, step: Step) -> Step:
        """The same step with its rows split over the workers. The first step of all needs no exchange."""
        if step.step == 0 or self._alone:
            return replace(step, rows=Rows.ALL)
        self._fresh(step.step, "exact")
        return replace(step, rows=Rows.OWN_AND_SHARE, layerwise=Layerwise.KEYS)

    def _advance(self) -> int:
        step = self._step
        self._step, self._synced, self._arrived = step + 1, False, False
        return step

    def _fresh(self, step: int, kind: str) -> None:
        self._remember(step, kind, step)

    def _remember(self, step: int, kind: str, source: int) -> None:
        workers, paths = self._plan.assignment.workers, self._plan.layout.n_paths
        self._known = source
        if workers > 1:
            self.events.append(SyncEvent(step=step, kind=kind, sources=((source,) * paths,) * workers))


def rows_of(rows: Rows, layout: CanvasLayout, assignment: Assignment, worker: int) -> tuple[int, ...]:
    """Canvas rows that a worker computes for a `Rows`, ascending: of paths' caches the most, not for a region's."""
    if rows is Rows.ALL:
        return tuple(range(layout.size))
    if rows is Rows.SUMMARY:
        return () if layout.summary is None else tuple(layout.summary.rows)
    own = assignment.own_rows(layout, worker)
    if rows in (Rows.OWN, Rows.OPEN):
        return own
    shared = layout.shared_rows() if rows is Rows.OWN_AND_SHARED else assignment.split_shared(layout)[worker]
    return tuple(sorted((*own, *shared)))
