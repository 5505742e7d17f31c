"""Whether a record is consistent with itself. Its msgpack seal is checked where it is read (`from_bytes`)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise

import numpy as np

from nap_runtime.decoding.layout import Ids, ThinkBlock
from nap_runtime.decoding.machine import Coordination, Finish, Plan
from nap_runtime.decoding.record import CanvasDelta, DecodeRecord, SyncEvent
from nap_runtime.decoding.schedule import UnmaskingSchedule
from nap_runtime.decoding.state import Kind
from nap_runtime.errors import RecordError, UsageError
from nap_runtime.metrics.order import Flags, config_of

_SYNC_KINDS = ("exact", "tokens", "shared", "kv", "gather", "consensus", "refresh")
_NOBODY, _ANYBODY = -2, -1  # who may write a position, beside a worker's number


def verify(record: DecodeRecord) -> None:
    """Check everything a record says against everything else it says.

    Raises:
        RecordError: the first contradiction, in one line.
    """
    by_block = config_of(record).picks_over == "path"
    schedule = _check_frame(record, by_block)
    _check_forwards(record)
    _check_syncs(record)
    _check_deltas(record, by_block)
    _Replay(record, schedule).run()
    _check_end(record)
    _check_coordination(record)


def _check_frame(record: DecodeRecord, by_block: bool) -> UnmaskingSchedule:
    """Layout, prompt, config, assignment and steps fit one another; returns the schedule they ask for."""
    config, layout = config_of(record), record.layout
    if (config.layout, config.n_paths) != (layout.kind, layout.n_paths):
        raise RecordError(f"trace: its layout is not the '{config.layout}' of {config.n_paths} paths of its config")
    if len(record.prompt_ids) != layout.prompt_tokens:
        raise RecordError(f"trace: {len(record.prompt_ids)} prompt ids, the layout has {layout.prompt_tokens}")
    if len(record.assignment.worker_of) != layout.n_paths:
        assigned = len(record.assignment.worker_of)
        raise RecordError(f"trace: the assignment has {assigned} paths where the layout has {layout.n_paths}")
    try:
        schedule = UnmaskingSchedule.plan(layout, config)
    except UsageError as error:
        raise RecordError(f"trace: config: {error}") from error
    path_steps = len(schedule.paths) if by_block else schedule.steps
    if (record.steps, record.path_steps) != (schedule.steps, path_steps):
        raise RecordError(
            f"trace: {record.steps} steps, {record.path_steps} of them for the paths; "
            f"the config asks for {schedule.steps} and {path_steps}"
        )
    return schedule


def _check_forwards(record: DecodeRecord) -> None:
    workers = record.assignment.workers
    if len(record.forwards) != workers:
        raise RecordError(f"trace: forwards of {len(record.forwards)} workers where there are {workers}")
    for worker, steps in enumerate(record.forwards):
        if not _rises(steps) or any(not 0 <= step < record.steps for step in steps):
            raise RecordError(f"trace: forwards of worker {worker} do not ascend within {record.steps} steps")


def _check_coordination(record: DecodeRecord) -> None:
    """The syncs are those that the config asks for, and whoever committed had run the network.

    Syncs may be missing only at the end of a phase, where every path was closed and nobody ran any more.
    """
    patient = config_of(record).sync.settle is not None
    for delta in record.deltas:
        if patient and delta.kind is Kind.FILL and 0 <= delta.worker < len(record.forwards):
            continue  # paths are left as they are by a word of the lead's, whatever a worker does then
        if not 0 <= delta.worker < len(record.forwards) or delta.step not in record.forwards[delta.worker]:
            raise RecordError(f"trace: worker {delta.worker} commits at step {delta.step} without a forward")
    wanted = _planned_syncs(record)
    ran = sorted({step for steps in record.forwards for step in steps})
    for first, last in ((0, record.path_steps), (record.path_steps, record.steps)):
        due = [event for event in wanted if first <= event.step < last]
        told = [event for event in record.syncs if first <= event.step < last]
        late = due[len(told)].step if len(told) < len(due) else last
        if told != due[: len(told)] or any(late <= step < last for step in ran):
            raise RecordError(f"trace: its syncs are not those of its config, between step {first} and {last - 1}")


def _planned_syncs(record: DecodeRecord) -> list[SyncEvent]:
    """The config's syncs; after every refresh those of a decode that was resumed there."""
    plan = Plan.of(record.layout, config_of(record), record.assignment)
    planned: list[SyncEvent] = []
    for begin in (0, *(event.step for event in record.syncs if event.kind == "refresh")):
        machine = Coordination(plan, resume=begin)
        while not isinstance(machine.next(), Finish):
            pass
        planned = [event for event in planned if event.step < begin] + machine.events
    return planned


def _check_syncs(record: DecodeRecord) -> None:
    paths, workers = record.layout.n_paths, record.assignment.workers
    known, before = np.zeros((workers, paths), dtype=np.int64), 0
    for event in record.syncs:
        where = f"trace: sync at step {event.step}"
        if event.kind not in _SYNC_KINDS:
            raise RecordError(f"{where}: unknown kind '{event.kind}'")
        if not before <= event.step < record.steps:
            raise RecordError(f"{where}: steps do not ascend within {record.steps} steps")
        if [len(row) for row in event.sources] != [paths] * workers:
            raise RecordError(f"{where}: sources are not one step a worker and path ({workers} × {paths})")
        sources = np.array(event.sources, dtype=np.int64)
        if (sources > event.step).any():
            raise RecordError(f"{where}: a source step lies in the future")
        if (sources < known).any():
            raise RecordError(f"{where}: a worker knows less of a path than before")
        known, before = sources, event.step


def _check_deltas(record: DecodeRecord, by_block: bool) -> None:
    """Every delta by itself: shapes, ids, positions, and whether its worker may write there."""
    writer = np.full(record.layout.size, _NOBODY, dtype=np.int64)
    writer[list(record.layout.slots)] = _ANYBODY
    if by_block:
        for path, block in enumerate(record.layout.paths):
            writer[block.slots.start : block.slots.stop] = record.assignment.worker_of[path]
    for delta in record.deltas:
        where = f"trace: step {delta.step}, worker {delta.worker}"
        _check_tokens(record, delta, where)
        outside = (delta.positions < 0) | (delta.positions >= len(writer))
        who = np.where(outside, _NOBODY, writer[np.where(outside, 0, delta.positions)])
        if (who == _NOBODY).any():
            raise RecordError(f"{where}: position {delta.positions[who == _NOBODY][0]} is not a slot")
        wrong = (who != _ANYBODY) & (who != delta.worker)
        if wrong.any():
            position = delta.positions[wrong][0]
            raise RecordError(f"{where}: position {position} is in a path of worker {who[wrong][0]}")


def _check_tokens(record: DecodeRecord, delta: CanvasDelta, where: str) -> None:
    if not 0 <= delta.worker < record.assignment.workers:
        raise RecordError(f"{where}: there are {record.assignment.workers} workers")
    config = config_of(record)
    known = {Kind.COMMIT: True, Kind.FILL: True, Kind.REMASK: config.traits.remasks}
    if not known.get(delta.kind, config.sync.summary == "live" and delta.kind is Kind.PROVISIONAL):
        raise RecordError(f"{where}: kind {int(delta.kind)} is none that its config brings forth")
    if not len(delta.positions) == len(delta.ids) == len(delta.log_confidence):
        raise RecordError(f"{where}: positions, ids and confidences differ in number")
    if not _rises(delta.positions.tolist()):
        raise RecordError(f"{where}: positions do not ascend")
    masks = delta.ids == record.layout.mask_id
    bad = delta.ids[~masks] if delta.kind is Kind.REMASK else delta.ids[(delta.ids < 0) | masks]
    if len(bad) and delta.kind is Kind.REMASK:
        raise RecordError(f"{where}: masks a slot again with id {bad[0]}")
    if len(bad):
        raise RecordError(f"{where}: {bad[0]} is the mask or no id")
    if np.isnan(delta.log_confidence).any():
        raise RecordError(f"{where}: a confidence is not a number")
    if delta.kind is Kind.FILL and (delta.ids != record.layout.fill_id).any():
        raise RecordError(f"{where}: a fill with another id than {record.layout.fill_id}")
    summary = record.layout.summary
    if delta.kind is Kind.PROVISIONAL and (summary is None or not _inside(delta.positions, summary).all()):
        raise RecordError(f"{where}: says what a slot outside the summary would be")


class _Replay:
    """Walks through the steps: commits of a step first, then its fills."""

    def __init__(self, record: DecodeRecord, schedule: UnmaskingSchedule) -> None:
        self.record, self.schedule, self.blocks = record, schedule, record.layout.blocks
        config = config_of(record)
        self.traits, self.patient = config.traits, config.sync.settle is not None
        self.ids = record.layout.initial_ids(record.prompt_ids)
        self.masked = np.zeros(record.layout.size, dtype=np.bool_)
        self.masked[list(record.layout.slots)] = True

    def run(self) -> None:
        before = -1
        for step, group in groupby(self.record.deltas, key=lambda delta: delta.step):
            deltas = list(group)
            if not before < step < self.record.steps:
                raise RecordError(f"trace: step {step} does not ascend within {self.record.steps} steps")
            self._check_quotas(step, deltas)
            self._check_remasks(deltas)
            for kind in (Kind.COMMIT, Kind.FILL, Kind.REMASK):
                for delta in deltas:
                    if delta.kind is kind:
                        self._put(delta)
            before = step

    def _check_quotas(self, step: int, deltas: Sequence[CanvasDelta]) -> None:
        commits, remasks = (_positions(deltas, kind) for kind in (Kind.COMMIT, Kind.REMASK))
        if self.schedule.canvas:
            masked = int(self.masked.sum())
            self._check_quota(f"step {step}", "slots", (len(commits), len(remasks)), self.schedule.canvas[step], masked)
            return
        for index, (block, quota) in enumerate(zip(self.blocks, self._quotas(step), strict=True)):
            name = f"path {index}" if index < self.record.layout.n_paths else "the summary"
            counts = int(_inside(commits, block).sum()), int(_inside(remasks, block).sum())
            masked = int(self.masked[block.slots.start : block.slots.stop].sum())
            self._check_quota(f"step {step}", f"slots of {name}", counts, quota, masked)

    def _check_quota(self, where: str, what: str, counts: tuple[int, int], quota: int, masked: int) -> None:
        """A quota is kept: by a rule that masks again, on balance; by one that commits early, unless it takes all."""
        commits, remasks = counts
        if self.traits.remasks and commits - remasks != quota:
            balance = f"commits {commits} {what} and masks {remasks} again"
            raise RecordError(f"trace: {where} {balance}, its quota is {quota}")
        if commits <= quota or self.traits.remasks or (self.traits.commits_early and commits == masked):
            return
        raise RecordError(f"trace: {where} commits {commits} {what}, its quota is {quota}")

    def _check_remasks(self, deltas: Sequence[CanvasDelta]) -> None:
        """Only what was committed at an earlier step can be masked again."""
        never = [position for position in _positions(deltas, Kind.REMASK) if self.masked[position]]
        if never:
            raise RecordError(f"trace: step {deltas[0].step} masks position {never[0]} again, which is masked")

    def _quotas(self, step: int) -> tuple[int, ...]:
        """Quota of every block at a step, the summary's (if there is one) last."""
        plan = self.schedule
        paths = plan.paths[step] if step < len(plan.paths) else (0,) * self.record.layout.n_paths
        if not plan.summary:
            return paths
        at = step if plan.at_once else step - len(plan.paths)
        return (*paths, plan.summary[at] if at >= 0 else 0)

    def _put(self, delta: CanvasDelta) -> None:
        where = f"trace: step {delta.step}, worker {delta.worker}"
        remask = delta.kind is Kind.REMASK
        again = delta.positions[~self.masked[delta.positions]]
        if len(again) and not remask:
            raise RecordError(f"{where}: position {again[0]} was committed before")
        if delta.kind is Kind.FILL:
            # Once the summary has settled, paths are left as they are, closed or not.
            must_be_closed = self.blocks[-1:] if self.patient else self.blocks
            for block in must_be_closed:
                if _inside(delta.positions, block).any() and not self._closed(block):
                    raise RecordError(f"{where}: fills the block at {block.slots.start}, which is not closed")
        self.ids[delta.positions], self.masked[delta.positions] = delta.ids, remask

    def _closed(self, block: ThinkBlock) -> bool:
        """Whether an end id is committed and nothing before it is masked."""
        here = slice(block.slots.start, block.slots.stop)
        ends = np.isin(self.ids[here], block.end_ids) & ~self.masked[here]
        return bool((ends & (np.cumsum(self.masked[here]) == 0)).any())


def _check_end(record: DecodeRecord) -> None:
    canvas = record.canvas()
    left = [position for position in record.layout.slots if canvas[position] == record.layout.mask_id]
    if left:
        raise RecordError(f"trace: {len(left)} slots are never committed, the first at position {left[0]}")
    if record.final_ids.shape != canvas.shape:
        raise RecordError(f"trace: {len(record.final_ids)} final ids, the canvas has {len(canvas)} positions")
    differ = np.flatnonzero(record.final_ids != canvas)
    if len(differ):
        raise RecordError(f"trace: the final ids are not what the deltas give, first at position {differ[0]}")


def _positions(deltas: Sequence[CanvasDelta], kind: Kind) -> Ids:
    """Positions of one kind of delta."""
    return np.concatenate([np.zeros(0, np.int64), *(delta.positions for delta in deltas if delta.kind is kind)])


def _inside(positions: Ids, block: ThinkBlock) -> Flags:
    return (positions >= block.slots.start) & (positions < block.slots.stop)


def _rises(values: Sequence[int]) -> bool:
    return all(a < b for a, b in pairwise(values))
