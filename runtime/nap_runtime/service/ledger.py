"""The jobs that have not ended: journaled, waiting for their turn, and ended exactly once.

Everything here runs on the server's event loop. A job's end is journaled before anybody hears of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from nap_runtime.errors import BusyError, JournalError, NapError
from nap_runtime.models.loading import ModelCard
from nap_runtime.service import failpoints
from nap_runtime.service.fair import FairQueue, Waiting
from nap_runtime.service.figures import Figures
from nap_runtime.service.gate import Accepted, Chooser, Gate
from nap_runtime.service.history import History, read_history
from nap_runtime.service.hub import Hub
from nap_runtime.service.journal import Journal, JournalFullError
from nap_runtime.service.logs import Log
from nap_runtime.service.settings import ServerSettings
from nap_runtime.service.store import JobRow, NewJob, Reason, State
from nap_runtime.service.v1 import decoder_pb2 as pb
from nap_runtime.service.writer import AsyncJournal

T = TypeVar("T")
_BACKOFF = 0.25


@dataclass(slots=True)
class Live:
    """A job that has not ended."""

    row: JobRow
    accepted: Accepted
    history: History | None = None


class Ledger:
    """See the module.

    Attributes:
        trouble: why the journal takes nothing at present; empty where it does.
        failed: set when the journal is of no use any more.
        on_waiting, on_ended: called when a job begins to wait, and with the id of one that has ended.
    """

    def __init__(
        self,
        settings: ServerSettings,
        card: ModelCard,
        journal: AsyncJournal,
        figures: Figures,
        log: Log,
        chooser: Chooser | None = None,
    ) -> None:
        self.settings, self.hub, self.figures, self.log = settings, Hub(), figures, log
        self.gate = Gate(card, settings.group, settings.limits, chooser)
        limits = settings.limits
        self.queue = FairQueue(capacity=limits.queued, per_owner=limits.queued_per_token)
        self.live: dict[str, Live] = {}
        self.trouble = ""
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self.on_waiting: Callable[[], None] = lambda: None
        self.on_ended: Callable[[str], Awaitable[None]] = _nothing
        self._card, self._journal = card, journal
        self._deadlines: dict[str, float] = {}
        self._coming = 0
        self._pace = 1.0  # seconds between two ends of jobs, smoothed
        self._last_end = time.monotonic()

    async def take_up(self) -> None:
        """Take up what the journal holds."""
        rows = await self._journal.read(lambda j: j.unfinished())
        for row in rows:
            await self._take_up(row)
        if rows:
            self.log.info("journal.taken_up", jobs=len(self.live))

    async def _take_up(self, row: JobRow) -> None:
        if row.state == "running":
            detail = "the server was restarted"
            again = await self.persist(lambda j: j.requeue(row.id, None, time.time(), failed=False, detail=detail))
            if again is None:
                return
            row = again
        try:
            accepted = self.gate.accept(pb.JobSpec.FromString(row.spec))
        except NapError as error:
            reason = Reason(code="USAGE", message=str(error), field=getattr(error, "field", None) or "")
            await self.finish(row, None, "failed", reason)
            return
        await self.wait(Live(row, accepted))

    # -- journal --------------------------------------------------------------------------------------------------

    async def persist(self, work: Callable[[Journal], T]) -> T:
        """Write, whatever it takes: nothing that happened is dropped because a disk is full."""
        while True:
            try:
                value = await self._journal.write(work)
            except JournalFullError as error:
                self._note_trouble(str(error))
                await asyncio.sleep(0.5)
                continue
            except JournalError as error:
                self._note_trouble(str(error))
                if not self.failed.done():
                    self.failed.set_result(error)
                raise
            if self.trouble:
                self.trouble = ""
                self.log.info("journal.recovered")
            return value

    def _note_trouble(self, text: str) -> None:
        self.figures.journal_errors.inc()
        if text != self.trouble:
            self.log.error("journal.trouble", reason=text)
        self.trouble = text

    # -- jobs come and go -----------------------------------------------------------------------------------------

    def check_room(self, owner: str, quota: int | None) -> None:
        """Refuse a job before anything is done for it.

        Raises:
            BusyError: the queue or the owner's quota is full; with a hint when to come again.
        """
        try:
            self.queue.check_room(owner, quota, self._coming)
        except BusyError as error:
            hint = min(max(self._pace * self.settings.batch, 0.05), 10.0)
            raise BusyError(str(error), retry_after=hint) from None

    async def submit(self, job: NewJob, accepted: Accepted) -> tuple[JobRow, bool]:
        """Journal a job, then let it wait for its turn.

        Raises:
            KeyConflictError: the key belongs to another job. JournalError: it could not be journaled.
        """
        self._coming += 1
        try:
            failpoints.reach("submit.before_journal")
            row, existed = await self._write(lambda j: j.submit(job, time.time()))
            failpoints.reach("submit.after_journal")
            if not existed:
                self.figures.submitted.inc()
                await self.wait(Live(row, accepted))
        finally:
            self._coming -= 1
        self.log.debug("job.submitted", job=row.id, owner=row.owner or None, existed=existed)
        return row, existed

    async def _write(self, work: Callable[[Journal], T]) -> T:
        """Write for a caller, who is told when it fails."""
        try:
            value = await self._journal.write(work)
        except JournalFullError as error:
            self._note_trouble(str(error))
            raise
        except JournalError as error:
            self._note_trouble(str(error))
            if not self.failed.done():
                self.failed.set_result(error)
            raise
        self.trouble = ""
        return value

    async def wait(self, live: Live, delay: float = 0.0) -> None:
        """Put a job into the queue."""
        row = live.row
        if row.step:
            print_ = self._card.fingerprint
            live.history = await self._journal.read(
                lambda j: read_history(j, row.id, print_, self.settings.group.workers)
            )
        past = b"" if live.history is None else live.history.digest
        self.live[row.id] = live
        if row.deadline is not None:
            self._deadlines[row.id] = row.deadline
        self.queue.add(
            Waiting(
                id=row.id,
                row=row.row,
                owner=row.owner,
                priority=row.priority,
                cost=live.accepted.cost,
                shape=(live.accepted.shape, past),
                alone=row.failures >= 2,
                since=row.submitted,
                not_before=time.time() + delay if delay else 0.0,
            )
        )
        self.on_waiting()

    async def cancel(self, job_id: str, reason: str) -> JobRow:
        """Stop a job, wherever it stands; one that has ended stays as it is.

        Raises:
            NoSuchJobError: there is none.
        """

        def write(journal: Journal) -> JobRow:
            row = journal.ask_cancel(job_id, reason, time.time())
            if row.state == "running":
                why = Reason(code="CANCELLED", message=reason)
                journal.finish(job_id, row.attempt, "cancelled", time.time(), reason=why)
            return journal.get(job_id)

        row = await self._write(write)
        if job_id in self.live:
            self._count_end(row)
            await self.forget(job_id)
        return row

    async def finish(
        self, row: JobRow, attempt: int | None, state: State, reason: Reason, result: bytes = b"", record: bytes = b""
    ) -> None:
        """Journal a job's end, then let it be known."""
        failpoints.reach("finish.before_journal")
        now = time.time()
        ended = await self.persist(
            lambda j: j.finish(row.id, attempt, state, now, reason=reason, result=result, record=record)
        )
        failpoints.reach("finish.after_journal")
        if ended:
            self._count_end(replace(row, state=state, finished=now), reason)
        await self.forget(row.id)

    def _count_end(self, row: JobRow, reason: Reason | None = None) -> None:
        self.figures.ended.labels(row.state).inc()
        self.figures.total.observe((row.finished or time.time()) - row.submitted)
        now = time.monotonic()
        self._pace, self._last_end = 0.9 * self._pace + 0.1 * min(now - self._last_end, 60.0), now
        level = "info" if row.state in ("done", "cancelled") else "warning"
        self.log.write(level, f"job.{row.state}", job=row.id, attempt=row.attempt, reason=reason and reason.message)

    async def forget(self, job_id: str) -> None:
        """A job has ended: out of the queue, and out of its batch, which stops when nobody waits for it."""
        live = self.live.pop(job_id, None)
        self._deadlines.pop(job_id, None)
        self.queue.remove(job_id)
        self.hub.news(job_id)
        if live is not None:
            await self.on_ended(job_id)

    async def try_again(self, live: Live, reason: str, code: str, field: str, counts: bool) -> None:
        attempt, now = live.row.attempt, time.time()
        again = await self.persist(lambda j: j.requeue(live.row.id, attempt, now, failed=counts, detail=reason))
        self.figures.lost.inc()
        if again is None:
            await self.forget(live.row.id)
            return
        self.log.warning("job.attempt_lost", job=again.id, attempt=attempt, failures=again.failures, reason=reason)
        final = code in ("USAGE", "MODEL")
        if final or again.failures >= self.settings.tries:
            tried = "" if final else f" ({again.failures} attempts without progress)"
            why = Reason(code=code, message=f"{reason}{tried}", field=field)
            await self.finish(again, None, "failed", why)
            return
        self.hub.news(again.id)
        await self.wait(Live(again, live.accepted), delay=_BACKOFF * 2**again.failures)

    # -- time -----------------------------------------------------------------------------------------------------

    async def expire(self) -> None:
        """End the jobs whose deadline has passed."""
        now = time.time()
        for job_id in [job_id for job_id, deadline in self._deadlines.items() if deadline <= now]:
            if job_id in self.live:
                reason = Reason(code="DEADLINE_EXCEEDED", message="its deadline passed")
                await self.finish(self.live[job_id].row, None, "expired", reason)

    async def purge(self) -> None:
        """Forget what is no longer kept."""
        before = time.time() - self.settings.keep_seconds
        with contextlib.suppress(JournalFullError):
            while await self._journal.write(lambda j: j.purge(before)) >= 500:
                await asyncio.sleep(0)


async def _nothing(_: str) -> None:
    """Nobody listens yet."""
