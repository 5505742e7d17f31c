"""The step loop: ask the state machine, do what it says.

Nothing in a step waits for the device; reports and control words go beside it, every R steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from nap_runtime.decoding.given import given_to
from nap_runtime.decoding.machine import (
    Arrive,
    Control,
    Coordination,
    Finish,
    Layerwise,
    Rows,
    Step,
    Summarise,
    Sync,
)
from nap_runtime.decoding.record import SyncEvent
from nap_runtime.decoding.state import CanvasState, Kind
from nap_runtime.distributed.comm import Communicator, PendingFlags, Solo, merge_flags
from nap_runtime.distributed.exchange import TOKEN_BYTES
from nap_runtime.distributed.wire import Beside, Pace
from nap_runtime.models.compiled import EAGER_STEP, CompileOptions
from nap_runtime.worker.caches import Widths
from nap_runtime.worker.crowd import Crowd
from nap_runtime.worker.denoiser import Denoiser as Denoiser
from nap_runtime.worker.lanes import Lanes
from nap_runtime.worker.padding import in_columns
from nap_runtime.worker.reporting import Report, Reporter
from nap_runtime.worker.resources import Resources
from nap_runtime.worker.selection import Selector
from nap_runtime.worker.settling import Settling
from nap_runtime.worker.station import Stations
from nap_runtime.worker.stepping import Due, Stepper
from nap_runtime.worker.task import Outcome, Task
from nap_runtime.worker.task import Resume as Resume


class BlockWorker:
    """A denoiser on one device, in a group. Kept warm between tasks.

    Args:
        compiling: how steps are carried out; the denoiser is compiled already (`worker.denoiser.prepare`).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        comm: Communicator,
        *,
        dtype: torch.dtype,
        device: torch.device,
        compiling: CompileOptions = EAGER_STEP,
    ) -> None:
        self.denoiser, self.comm, self.dtype, self.device = denoiser, comm, dtype, device
        self.compiling, self.stations = compiling, Stations()
        self.steps = 0  # instructions obeyed, over all batches: whoever watches sees whether it grows
        self.pace: Callable[[], Pace] = Pace  # of the batch under way

    def run(
        self,
        task: Task,
        *,
        on_report: Callable[[Report], None] | None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Outcome:
        """Decode a batch. Without `on_report` no deltas are built; the outcome holds the order as arrays.

        Raises:
            WorkerError: a peer left the group.
        """
        with torch.inference_mode():
            run = _Run(self, task, on_report, cancelled)
            self.pace = run.wire.pace
            while not isinstance(todo := run.machine.next(run.control()), Finish):
                self.steps += 1
                if not run.obey(todo):
                    break
            return run.finish(cancelled=isinstance(todo, Finish) and todo.cancelled)


class _Run:
    """One batch on one worker: its canvases, and what each instruction does to them.

    `state`, `resources`, `stepper` and `selector` are of the canvases that are computed now.
    """

    state: CanvasState
    resources: Resources
    stepper: Stepper
    selector: Selector

    def __init__(
        self,
        worker: BlockWorker,
        task: Task,
        on_report: Callable[[Report], None] | None,
        cancelled: Callable[[], bool],
    ) -> None:
        self.plan, self.layout, self.config = task.plan, task.plan.layout, task.plan.config
        self.denoiser, self.rank, self._numerics = worker.denoiser, worker.comm.rank, worker.compiling.numerics
        begin = 0 if task.resume is None else task.resume.step
        self.machine = Coordination(task.plan, resume=begin)
        self._station = station = worker.stations.take(worker, task)
        self.wire = station.wire
        self._forwards: list[int] = []
        self._take_up()
        self._crowd = Crowd(self.plan, len(task.prompts), narrow=task.narrow)
        self.reporter = Reporter(
            self.state,
            worker=self.rank,
            slots=self.resources.partition[self.rank],
            path_slots=self.resources.path_slots[self.rank],
            on_report=None if on_report is None else self._hand_on,
            begin=begin,
            padding=station.padding,
            blocks=[self.resources.slots_of(block) for block in range(len(self.plan.schedule.block_steps))],
            paths=[self.layout.paths[path].slots for path in self.plan.assignment.paths_of(self.rank)],
        )
        self._widths = Widths(self.plan, self.rank, shift=int(self.denoiser.config.shifted_logits))
        self._on_report = on_report
        self._settling = self._watch_summary(len(task.prompts))
        self.reporter.settling = self._settling
        self._given_up = [0] * len(task.prompts)  # canvases whose summary has settled
        self._told_forwards = self._told_events = 0
        self._paths = self.plan.assignment.paths_of(self.rank)
        self._own_rows = len(self.plan.assignment.own_rows(self.layout, self.rank))
        self._cancelled, self._control_comm = cancelled, worker.comm
        self._pending: PendingFlags | None = None
        self._own_done = False  # the host knows that every own path is closed
        self._report_every = task.report_every or self.config.reports_every
        if self.config.traits.remasks:
            self._report_every = 1  # a report tells of a slot only what was last done to it
        self._report_early = range(1, 3) if task.report_early else range(0)  # a GPU's copy is read one report later
        self._dirty = False  # a row was committed and not computed since
        given = in_columns(task.given, task.pads) if task.given else ()
        self._given = given_to(self.rank, given, over_canvas=bool(task.plan.schedule.canvas))
        self._beside: Beside | None = None  # an exchange under way beside the steps

    def _take_up(self) -> None:
        """Go on with the canvases that are computed now."""
        section = self._station.section()
        self.state, self.resources = section.state, section.resources
        self.stepper = section.stepper(self._commit, self._forwards)
        self.selector = Selector(self.plan, self.denoiser, self.resources, self.state, self.rank, self._numerics)

    def _watch_summary(self, batch: int) -> Settling | None:
        settle, device = self.config.sync.settle, self.state.ids.device
        if settle is None:
            return None
        return Settling(settle, batch=batch, slots=self.layout.summary_budget, device=device)

    # -- instructions -------------------------------------------------------------------------------------------

    def obey(self, todo: Step | Sync | Arrive | Summarise) -> bool:
        """Carry out one instruction. False: this worker's part is over."""
        if (lanes := self._crowd.readmitted(todo.step)) is not None:
            self._move(lanes, todo.step)
        if isinstance(todo, Step):
            self._do_step(todo)
            return True
        if self.wire.comm.world > 1 or isinstance(todo, Summarise):
            self.stepper.flush()
        if isinstance(todo, Sync):
            self._do_sync(todo)
        elif isinstance(todo, Arrive):
            self._do_arrive(todo)
        else:
            return self._do_summarise(todo)
        return True

    def _do_sync(self, sync: Sync) -> None:
        if self.wire.comm.world == 1:
            return  # all paths are here; only the rows of the step that follows differ
        kv, tokens = self.resources.kv, self.resources.tokens
        if not sync.overlap:
            self.wire.syncs += 1
            return kv.run() if sync.mode == "kv" else tokens.run(sync.step)
        self._beside = kv.begin() if sync.mode == "kv" else tokens.begin(sync.step)

    def _do_arrive(self, todo: Arrive) -> None:
        if self._beside is None:
            return  # one worker
        self.wire.syncs += 1
        exchange = self.resources.kv if todo.mode == "kv" else self.resources.tokens
        exchange.arrive(self._beside)
        self._beside = None
        self._regroup(todo.step)

    def _drop(self) -> None:
        """Wait for an exchange that nobody needs any more: its peers wait for it too."""
        if self._beside is not None:
            with self.wire.exchanging():
                self.wire.arrive(self._beside)
            self._beside = None

    def _do_summarise(self, todo: Summarise) -> bool:
        """Gather every path's tokens; from here on the lead goes on alone."""
        self._drop()
        if self.wire.comm.world > 1:
            self.wire.syncs += 1
            self.resources.tokens.run(todo.step)
            if self._pending is not None:
                self._pending.wait()
                self._pending = None
            self._control_comm = Solo()
        return self.rank == 0

    def _do_step(self, step: Step) -> None:
        quotas = self._own_quotas(step)
        width = self._widths.of(step.step, self.reporter.closed_at) if step.rows is Rows.OPEN else 0
        if self._may_skip(step, quotas) or (step.rows is Rows.OPEN and not width):
            return
        computed, views = self.resources.computed(step, width), self.resources.views
        n_rows = computed.count
        self.wire.syncs += self._talks(step)
        due = Due(
            step=step,
            quotas=quotas,
            computed=computed,
            rows=views * n_rows,
            extra_rows=views * self._extra_rows(step, n_rows),
            alone=step.step == 0 and bool(self._given),
        )
        self._dirty = self.stepper.add(due)

    def _commit(self, step: Step, quotas: dict[int, int], hidden_BRD: Tensor) -> bool:
        """Commit what is due; whether a row may have changed by it."""
        if step.step == 0 and self._given:
            self.state.restore(self._given)
            self._commit_due(step, quotas, hidden_BRD)
            return True
        return self._commit_due(step, quotas, hidden_BRD)

    def _commit_due(self, step: Step, quotas: dict[int, int], hidden_BRD: Tensor) -> bool:
        if step.live:
            self._note_summary(step, hidden_BRD)
        if step.canvas is not None:
            self.selector.canvas(step, hidden_BRD)
            return step.canvas > 0
        self.selector.paths(step, quotas, hidden_BRD)
        return self.selector.summary(step, hidden_BRD) or bool(quotas)

    def _note_summary(self, step: Step, hidden_BRD: Tensor) -> None:
        """Report what the summary would be, and see whether it has settled."""
        would_be, own_S = self.selector.provisional(step, hidden_BRD), self.resources.own_places
        if would_be is None:
            return
        slots = self.resources.own_summary_slots
        self.reporter.provisional(step.step, slots, would_be.ids[:, own_S], would_be.scores[:, own_S])
        if self._settling is not None:
            self._settling.note(step.step, would_be.ids)

    def _give_up(self, settled: list[int], step: int) -> None:
        """Leave the paths of canvases whose summary has settled as they are: what they lack is filled."""
        if step >= self.plan.path_steps or not any(settled) or settled == self._given_up:
            return
        self._given_up = settled
        here = [settled[canvas] for canvas in self._station.lanes.canvases]
        canvases_B = torch.tensor(here, dtype=torch.bool, device=self.state.ids.device)
        for path in self._paths:
            self.state.give_up(self.resources.regions[path], canvases_B, self.layout.fill_id, step - 1)
        self._dirty = True

    def _own_quotas(self, step: Step) -> dict[int, int]:
        """Quota of each own path; none once the host knows that they are all closed."""
        if step.paths is None or self._own_done:
            return {}
        return {path: step.paths[path] for path in self._paths if step.paths[path]}

    def _may_skip(self, step: Step, quotas: dict[int, int]) -> bool:
        """Nothing to commit and nothing dirty: computing the rows again would change nothing.

        Never where rows beyond the worker's own are due, or peers wait for an exchange inside the step.
        """
        if self._dirty or step.layerwise is not Layerwise.NOTHING:
            return False
        return (step.rows in (Rows.OWN, Rows.OPEN) and not quotas) or (step.rows is Rows.SUMMARY and not step.summary)

    def _talks(self, step: Step) -> bool:
        """Whether a step has an exchange inside: layer by layer, or of candidates."""
        agree = step.summary is not None and self.config.sync.summary == "consensus"
        inside = step.layerwise is not Layerwise.NOTHING or ((step.canvas is not None or agree) and step.step > 0)
        return inside and self.wire.comm.world > 1

    def _extra_rows(self, step: Step, rows: int) -> int:
        """Rows that only a sync or a refresh asks for."""
        if step.step == 0 or step.layerwise is Layerwise.KEYS or self.config.sync.mode == "exact":
            return 0
        summary = self.layout.summary
        needed = len(summary.rows) if step.summary is not None and summary is not None else self._own_rows
        return max(rows - needed, 0)

    def _regroup(self, step: int) -> None:
        """Leave canvases out that nothing is to be done for; not while an exchange is under way that brings theirs."""
        if self._beside is None and (lanes := self._crowd.narrowed(step)) is not None:
            self._move(lanes, step)

    def _move(self, lanes: Lanes, step: int) -> None:
        self.stepper.flush()
        self._crowd.note(lanes, step, rows=self.wire.rows_computed, extra=self.wire.rows_recomputed)
        self._station.move(lanes, [] if self._settling is None else self._settling.tensors)
        self._take_up()
        self.wire.other_canvases()
        self.reporter.look_at(self.state, lanes.canvases)

    # -- control ------------------------------------------------------------------------------------------------

    def control(self) -> Control | None:
        """Between steps: report where it is due, and every R steps read the control word."""
        step, period = self.machine.step, self.config.reports_every
        if not self.machine.between_steps or step == self.reporter.step:
            return None
        due = step % period == 0 or step % self._report_every == 0 or step in self._report_early
        if due:
            self.stepper.flush()
        elif self.stepper.waits:
            return None  # nobody asks, and reading a report would wait for the device
        self.reporter.collect()
        word = self._control_word(step, as_of=step - period) if step % period == 0 else None
        if due:
            self.reporter.report(step)
        if word is not None:
            self._regroup(step)
        return word

    def _control_word(self, step: int, *, as_of: int) -> Control | None:
        """Read what all told R steps ago, and tell the group what was done R steps ago.

        That far back every device has reported, so the word does not depend on how fast a report arrives.
        """
        word = None
        if self._pending is not None:
            go, paths_closed, all_closed, blocks, *each = merge_flags(self._pending.wait())
            batch = len(self._given_up)
            self._crowd.done = each[:batch]
            self._give_up(each[batch:], step)
            word = Control(
                cancel=not go, paths_closed=bool(paths_closed), all_closed=bool(all_closed), blocks_done=blocks
            )
        paths, everything = self.reporter.paths_done_at, self.reporter.all_done_at
        self._own_done = paths is not None and paths <= as_of
        all_done = everything is not None and everything <= as_of
        blocks_done = self.reporter.blocks_done(as_of)
        settled = self.reporter.settled(as_of)
        if self.rank != 0 and self.config.sync.mode != "exact":
            settled = (1,) * len(settled)  # it does not know, so it has no objection
        done = self.reporter.done(as_of)
        flags = (int(not self._cancelled()), int(self._own_done), int(all_done), blocks_done, *done, *settled)
        self._pending = self._control_comm.start_flags(flags)
        return word

    def _hand_on(self, report: Report) -> None:
        """A report with what the worker did since its last one."""
        assert self._on_report is not None
        forwards = tuple(step for step in self._forwards[self._told_forwards :] if step < report.step)
        self._told_forwards += len(forwards)
        events: tuple[SyncEvent, ...] = ()
        if self.rank == 0:
            events = tuple(event for event in self.machine.events[self._told_events :] if event.step < report.step)
            self._told_events += len(events)
        self._on_report(replace(report, forwards=forwards, events=events))

    def finish(self, *, cancelled: bool) -> Outcome:
        """The last report, and the totals."""
        self.stepper.flush()
        self._drop()
        if self._pending is not None:
            self._pending.wait()
        self.reporter.report(self.plan.schedule.steps, last=True)
        slots, state = np.array(self.resources.partition[self.rank], dtype=np.int64), self._station.canvases
        at, lane_B = torch.from_numpy(slots).to(state.ids.device), self._station.lanes.lane_of()
        self._count_told_tokens()
        return Outcome(
            worker=self.rank,
            slots=slots,
            ids=state.ids[:, at].cpu().numpy()[lane_B],
            step=state.step[:, at].cpu().numpy()[lane_B],
            committed=(state.kind[:, at] == int(Kind.COMMIT)).cpu().numpy()[lane_B],
            meters=self.wire.meters(),
            forwards=tuple(self._forwards),
            events=tuple(self.machine.events),
            cancelled=cancelled,
            away=self._crowd.end(rows=self.wire.rows_computed, extra=self.wire.rows_recomputed),
        )

    def _count_told_tokens(self) -> None:
        """The payload of token exchanges: 8 bytes for each own token that was told, fills too, once."""
        if self.wire.comm.world > 1:
            self.wire.payload_bytes += int(self._station.told.tokens) * TOKEN_BYTES
