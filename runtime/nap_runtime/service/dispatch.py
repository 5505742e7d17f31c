"""From the queue to worker groups and back: which jobs run where, and what becomes of them when something dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nap_runtime.service import failpoints
from nap_runtime.service.frames import Message
from nap_runtime.service.groups import Group, GroupFailedError
from nap_runtime.service.history import earlier_message
from nap_runtime.service.journal import Journal
from nap_runtime.service.ledger import Ledger, Live
from nap_runtime.service.store import EventKind, Reason
from nap_runtime.service.v1 import decoder_pb2 as pb

_TICK = 0.2
_PURGE_SECONDS = 30.0


@dataclass(slots=True)
class Batch:
    """Jobs that a group decodes together; `open` are those of them that have not ended."""

    number: int
    group: Group
    jobs: list[Live]
    open: set[str] = field(default_factory=set)


class Dispatcher:
    """Worker groups, and the batches they decode. Runs on the server's event loop."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._settings = ledger, ledger.settings
        self._figures, self._log, self._hub = ledger.figures, ledger.log, ledger.hub
        self.groups = [Group(index, self._settings.group, self._hear) for index in range(self._settings.groups)]
        ledger.gate.links = lambda: [group.status.link for group in self.groups if group.status.link is not None]
        self._batches: dict[int, Batch] = {}
        self._numbers = 0
        self._draining = False
        self._tasks: set[asyncio.Task[Any]] = set()
        ledger.on_waiting, ledger.on_ended = self._pump, self._on_ended

    # -- beginning and end ----------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take up what the journal holds, and bring the groups up.

        Raises:
            GroupFailedError, ConnectionError: no group can be started.
        """
        await self._ledger.take_up()
        ready = [asyncio.get_running_loop().create_future() for _ in self.groups]
        for group, future in zip(self.groups, ready, strict=True):
            self._spawn(self._keep(group, future))
        self._spawn(self._tick())
        await asyncio.gather(*ready)

    async def close(self, *, drain: float) -> None:
        """Let running batches end for a while, then stop the groups; what has not ended goes on after a restart."""
        self._draining = True
        self._hub.wake_all()
        deadline = time.monotonic() + drain
        while self._batches and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        if self._batches:
            self._log.warning("drain.cut_short", batches=len(self._batches))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(group.stop(0.0 if self._batches else 10.0) for group in self.groups))

    @property
    def draining(self) -> bool:
        """Whether no new job is taken."""
        return self._draining

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended_task)

    def _ended_task(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._ledger.failed.done():
            self._ledger.failed.set_result(error)

    # -- batches --------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Give every idle group the batch whose turn it is."""
        for group in self.groups:
            if self._draining or group.status.state != "idle":
                continue
            taken = self._ledger.queue.take(time.time(), self._settings.batch)
            if not taken:
                break
            self._numbers += 1
            batch = Batch(self._numbers, group, [self._ledger.live[job.id] for job in taken])
            batch.open = {live.row.id for live in batch.jobs}
            self._batches[batch.number] = batch
            group.status.state = "busy"
            self._spawn(self._begin(batch))
        self._figures.queued.set(len(self._ledger.queue))
        self._figures.running.set(sum(len(batch.open) for batch in self._batches.values()))

    async def _begin(self, batch: Batch) -> None:
        now = time.time()
        ids = [live.row.id for live in batch.jobs]
        rows = await self._ledger.persist(
            lambda j: [j.begin(job_id, now) if job_id in batch.open else None for job_id in ids]
        )
        failpoints.reach("begin.after_journal")
        began = []
        for live, row in zip(batch.jobs, rows, strict=True):
            if row is None:  # it has ended meanwhile
                await self._ledger.forget(live.row.id)
            else:
                live.row = row
                began.append(live)
                self._hub.news(row.id)
                self._log.debug("job.running", job=row.id, attempt=row.attempt, group=batch.group.status.index)
        batch.jobs = began
        batch.open &= {live.row.id for live in began}
        if not batch.open:
            self._release(batch)
            return
        self._figures.batch_began([now - live.row.submitted for live in began if live.row.attempt == 1])
        wanted = self._hub.wants_provisional([live.row.id for live in began])
        await batch.group.send(kind="provisional", on=wanted)
        await batch.group.send(**_run_message(batch))

    def _release(self, batch: Batch) -> None:
        """A batch is over; its group may take the next."""
        self._batches.pop(batch.number, None)
        if batch.group.status.state == "busy":
            batch.group.status.state = "idle"
        self._pump()

    async def provisional_wanted(self, job_id: str) -> None:
        """Somebody wants a job's provisional events from now on."""
        for batch in self._batches.values():
            if job_id in batch.open:
                await batch.group.send(kind="provisional", on=True)

    async def _hear(self, group: Group, message: Message) -> None:
        """What a group says of its batch; what it says of an older one is not listened to."""
        batch = self._batches.get(message.get("batch", -1))
        if batch is None or batch.group is not group:
            return
        kind = message["kind"]
        if kind == "events":
            await self._on_events(batch, message)
        elif kind == "provisional":
            for job, _, body, _ in message["events"]:
                self._hub.provisional(batch.jobs[job].row.id, body)
        elif kind == "result":
            await self._on_result(batch, message)
        elif kind == "failure":
            live = batch.jobs[message["job"]]
            reason = Reason(code=message["code"], message=message["message"], field=message["field"])
            await self._ledger.finish(live.row, live.row.attempt, "failed", reason)
        elif kind == "recovered":
            self._on_recovered(batch, message)
        elif kind == "slow":
            self._on_slow(group, message["workers"])
        elif kind in ("done", "cancelled"):
            await self._return(batch, "the group ended without a result", counts=True)
        elif kind == "broken":
            counts = not message.get("waits")
            await self._return(batch, message["message"], counts=counts, code=message["code"], field=message["field"])

    async def _on_events(self, batch: Batch, message: Message) -> None:
        told: dict[str, tuple[int, list[tuple[EventKind, bytes, bytes]]]] = {}
        for job, kind, body, extra in message["events"]:
            row = batch.jobs[job].row
            if row.id in batch.open:
                told.setdefault(row.id, (row.attempt, []))[1].append((kind, body, extra))
        step, now = message["step"], time.time()

        def write(journal: Journal) -> None:
            for job_id, (attempt, events) in told.items():
                journal.append(job_id, attempt, events, step, now)

        failpoints.reach("report.before_journal")
        await self._ledger.persist(write)
        failpoints.reach("report.after_journal")
        for job_id in told:
            self._hub.news(job_id)

    async def _on_result(self, batch: Batch, message: Message) -> None:
        live = batch.jobs[message["job"]]
        self._figures.result(pb.DecodeResult.FromString(message["result"]), live.accepted.cost, len(batch.jobs))
        none = Reason(code="", message="")
        await self._ledger.finish(live.row, live.row.attempt, "done", none, message["result"], message["record"])

    def _on_recovered(self, batch: Batch, message: Message) -> None:
        status = batch.group.status
        status.recoveries += 1
        status.last_recovery = message["seconds"]
        self._figures.recoveries.inc()
        self._figures.recovery_seconds.observe(message["seconds"])
        self._log.warning(
            "group.recovered",
            **{"group": status.index, "reason": message["reason"], "seconds": round(message["seconds"], 3)},
            **{"lost": message["lost"], "weights": message["weights"], "step": message["step"]},
            jobs=sorted(batch.open),
        )

    def _on_slow(self, group: Group, workers: list[Any]) -> None:
        group.status.slow = [(worker, host, factor) for worker, host, factor in workers]
        self._figures.stragglers.clear()
        for other in self.groups:
            for _, host, _ in other.status.slow:
                self._figures.stragglers.labels(host).inc()
        for worker, host, factor in workers:
            about = {"group": group.status.index, "worker": worker, "host": host, "factor": round(factor, 1)}
            self._log.warning("worker.slow", **about)

    async def _return(
        self, batch: Batch, reason: str, *, counts: bool, code: str = "WORKERS_LOST", field: str = ""
    ) -> None:
        """Jobs of a batch that is over without their end: they wait again, or have been tried often enough."""
        for live in batch.jobs:
            if live.row.id in batch.open:
                await self._ledger.try_again(live, reason, code, field, counts)
        batch.open.clear()
        self._release(batch)

    async def _on_ended(self, job_id: str) -> None:
        """A batch stops when nobody waits for any of its jobs."""
        for batch in self._batches.values():
            if job_id in batch.open:
                batch.open.discard(job_id)
                if not batch.open:
                    await batch.group.send(kind="cancel", batch=batch.number)

    # -- groups and time ------------------------------------------------------------------------------------------

    async def _keep(self, group: Group, ready: asyncio.Future[None]) -> None:
        """Start a group, and start it again whenever it is lost."""
        failures = 0
        while not self._draining:
            try:
                await group.start()
            except (GroupFailedError, ConnectionError, TimeoutError) as error:
                group.forget()
                failures += 1
                no_room = isinstance(error, GroupFailedError) and error.field == "workers"
                if no_room and not ready.done() and any(other.status.places for other in self.groups):
                    ready.set_result(None)  # another group decodes: this one waits for hosts that join
                fatal = isinstance(error, GroupFailedError) or failures >= 3
                if fatal and not ready.done():
                    ready.set_exception(error)
                    return
                self._log.error("group.start_failed", group=group.status.index, reason=str(error))
                await asyncio.sleep(min(2.0**failures, 2.0 if no_room else 30.0))
                continue
            failures = 0
            group.status.state = "idle"
            self._log.info("group.ready", group=group.status.index, processes=group.status.processes)
            if not ready.done():
                ready.set_result(None)
            self._pump()
            await self._lost(group, await group.listen())

    async def _lost(self, group: Group, reason: str) -> None:
        group.status.state, group.status.restarts = "recovering", group.status.restarts + 1
        self._on_slow(group, [])
        self._figures.restarts.inc()
        self._log.warning("group.lost", group=group.status.index, reason=reason)
        group.forget()
        for batch in [batch for batch in self._batches.values() if batch.group is group]:
            await self._return(batch, reason, counts=True)

    async def _tick(self) -> None:
        """Deadlines, retries whose time has come, and what is no longer kept."""
        purged = time.monotonic()
        while True:
            await asyncio.sleep(_TICK)
            await self._ledger.expire()
            self._figures.watchers.set(len(self._hub))
            self._pump()
            if time.monotonic() > purged + _PURGE_SECONDS:
                purged = time.monotonic()
                await self._ledger.purge()

    def batches(self) -> list[Batch]:
        """What is being decoded."""
        return list(self._batches.values())


def _run_message(batch: Batch) -> Message:
    first = batch.jobs[0].accepted
    return {
        "kind": "run",
        "batch": batch.number,
        "config": first.config.to_mapping(),
        "jobs": [
            {
                "question": live.accepted.question,
                "name": live.accepted.name,
                "gold": live.accepted.gold,
                "prompt": np.array(live.accepted.prompt, dtype="<u4").tobytes(),
            }
            for live in batch.jobs
        ],
        "earlier": earlier_message([live.history for live in batch.jobs]),
    }
