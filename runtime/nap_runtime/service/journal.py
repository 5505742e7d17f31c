"""The job journal: SQLite in WAL mode with full syncs. What it has returned is on the disk.

One `Journal` is one connection and belongs to one thread; `service/writer.py` shares it among coroutines. It knows
no protobuf, no network and no clock: times come from the caller, payloads are bytes.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from nap_runtime.errors import JournalError, KeyConflictError, NoSuchJobError
from nap_runtime.service.store import FINAL, SCHEMA, VERSION, EventKind, EventRow, JobRow, NewJob, Reason, State

PAGE = 64  # events that are read at once
_COLUMNS = (
    *("row", "id", "owner", "key", "spec", "priority", "deadline", "state", "attempt", "failures", "failed_at", "step"),
    *("last_event", "cancel", "submitted", "started", "finished", "code", "message", "field"),
)
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM jobs"


class JournalFullError(JournalError):
    """The disk, or the journal's own limit, is full: nothing was written, trying again later may succeed."""


def _make_private(path: Path) -> None:
    """Make the file for its owner alone, as SQLite's own files beside it will be: it holds prompts and answers."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise JournalError(f"journal: {path}: {error.strerror}: give another --journal") from error


class Journal:
    """See the module. Every method is one transaction, unless it is called inside `transaction`.

    Raises:
        JournalError: the file is no journal, is damaged, or was written by a newer release.
        JournalFullError: there is no room; nothing was written.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._nested = False
        if not read_only:
            _make_private(path)
        with self._errors():
            self._db = sqlite3.connect(path, isolation_level=None, timeout=30.0, check_same_thread=False)
            self._db.execute("PRAGMA foreign_keys = ON")
            if read_only:
                self._db.execute("PRAGMA query_only = ON")
                return
            self._check()
            self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA journal_size_limit = 16777216")
            self._make_schema()

    def _check(self) -> None:
        """Find damage before anything is trusted."""
        found = [str(line[0]) for line in self._db.execute("PRAGMA quick_check(1)")]
        if found != ["ok"]:
            raise sqlite3.DatabaseError(found[0].splitlines()[0])

    def _make_schema(self) -> None:
        version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if version not in (0, VERSION):
            raise JournalError(
                f"journal: {self.path} has version {version}, this release reads {VERSION}: use the release that wrote "
                f"it, or another --journal"
            )
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version == 0 and tables:
            raise JournalError(f"journal: {self.path} is a database of something else: give another --journal")
        if version == 0:
            with self.transaction():
                for statement in SCHEMA.split(";"):
                    if statement.strip():
                        self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {VERSION}")

    def close(self) -> None:
        """Give the file back."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- transactions -------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing; inside another one, a savepoint."""
        begin, end, undo = "BEGIN IMMEDIATE", "COMMIT", "ROLLBACK"
        if self._nested:
            begin, end, undo = "SAVEPOINT part", "RELEASE part", "ROLLBACK TO part; RELEASE part"
        outer, self._nested = self._nested, True
        try:
            with self._errors():
                self._db.execute(begin)
                try:
                    yield
                    self._db.execute(end)
                except BaseException:
                    self._undo(undo)
                    raise
        finally:
            self._nested = outer

    def _undo(self, statements: str) -> None:
        if not self._db.in_transaction:
            return  # a full disk may have rolled back already
        for statement in statements.split(";"):
            self._db.execute(statement)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE):
                raise JournalFullError(f"journal: {self.path}: {error}: make room on its disk") from error
            raise JournalError(f"journal: {self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            text = f"journal: {self.path} is damaged ({error}): restore a copy, or move it away to begin anew"
            raise JournalError(text) from error

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self._db.in_transaction

    def limit_pages(self, pages: int) -> None:
        """Let the file grow to so many pages at most (4 KiB each); beyond, it is full."""
        self._db.execute(f"PRAGMA max_page_count = {pages:d}")

    # -- writing ------------------------------------------------------------------------------------------------

    def submit(self, job: NewJob, now: float) -> tuple[JobRow, bool]:
        """Keep a job as queued; the second value says that its key was known, and then the first is the known job.

        Raises:
            KeyConflictError: the key was used by the same owner for another payload.
        """
        with self.transaction():
            known = self._db.execute(
                "SELECT id, payload FROM jobs WHERE owner = ? AND key = ?", (job.owner, job.key)
            ).fetchone()
            if known is not None:
                if known[1] != job.payload:
                    raise KeyConflictError("idempotency_key: it was used for another job; choose a new one")
                return self.get(known[0]), True
            done = self._db.execute(
                "INSERT INTO jobs (id, owner, key, payload, spec, priority, deadline, state, submitted)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, 'queued', ?)",
                (job.id, job.owner, job.key, job.payload, job.spec, job.priority, job.deadline, now),
            )
            self._db.executemany(
                "INSERT INTO labels VALUES (?, ?, ?)", [(done.lastrowid, *pair) for pair in job.labels.items()]
            )
            self._add_event(job.id, 0, "state", b"queued", b"", now)
            return self.get(job.id), False

    def begin(self, job_id: str, now: float) -> JobRow | None:
        """Queued → running under a new epoch; None where the job is no longer queued."""
        with self.transaction():
            changed = self._db.execute(
                "UPDATE jobs SET state = 'running', attempt = attempt + 1, started = coalesce(started, ?)"
                " WHERE id = ? AND state = 'queued' AND NOT cancel",
                (now, job_id),
            ).rowcount
            if not changed:
                return None
            self._add_event(job_id, None, "state", b"running", b"", now)
            return self.get(job_id)

    def append(
        self, job_id: str, attempt: int, events: Sequence[tuple[EventKind, bytes, bytes]], step: int | None, now: float
    ) -> list[EventRow]:
        """Add events (kind, body, extra) of the running attempt; none where that attempt is over.

        Args:
            step: up to where the canvas is now journaled; None: no further than before.
        """
        with self.transaction():
            found = self._db.execute(
                "UPDATE jobs SET step = coalesce(?, step), last_event = last_event + ?"
                " WHERE id = ? AND attempt = ? AND state = 'running' RETURNING row, last_event",
                (step, len(events), job_id, attempt),
            ).fetchone()
            if found is None:
                return []
            first = found[1] - len(events) + 1
            rows = [
                EventRow(number=number, time=now, attempt=attempt, kind=kind, body=body, extra=extra)
                for number, (kind, body, extra) in enumerate(events, first)
            ]
            self._insert(found[0], rows)
            return rows

    def finish(
        self,
        job_id: str,
        attempt: int | None,
        state: State,
        now: float,
        *,
        reason: Reason | None = None,
        result: bytes = b"",
        record: bytes = b"",
    ) -> bool:
        """End a job once. False where it has ended already, or another attempt than this one (None: any) holds it."""
        assert state in FINAL
        reason = reason or Reason(code="", message="")
        with self.transaction():
            held = "" if attempt is None else " AND attempt = :attempt AND state = 'running'"
            changed = self._db.execute(
                "UPDATE jobs SET state = :state, finished = :now, code = :code, message = :message, field = :field"
                f" WHERE id = :id AND state IN ('queued', 'running'){held}",
                {
                    **{"state": state, "now": now, "id": job_id, "attempt": attempt},
                    **{"code": reason.code, "message": reason.message, "field": reason.field},
                },
            ).rowcount
            if not changed:
                return False
            if state == "done":
                insert = "INSERT INTO results SELECT row, ?, ? FROM jobs WHERE id = ?"
                self._db.execute(insert, (result, record, job_id))
            self._add_event(job_id, None, "finished", b"", b"", now)
            return True

    def requeue(self, job_id: str, attempt: int | None, now: float, *, failed: bool, detail: str = "") -> JobRow | None:
        """Running → queued: its attempt (None: any) is over. `failed` counts it, from 1 again if it had progressed.

        None where another attempt holds the job, or it has ended.
        """
        with self.transaction():
            row = self.get(job_id)
            if row.state != "running" or attempt not in (None, row.attempt):
                return None
            if row.cancel:
                self.finish(job_id, None, "cancelled", now, reason=Reason(code="CANCELLED", message=row.message))
                return None
            failures = row.failures
            if failed:
                failures = 1 if row.step > row.failed_at else failures + 1
            self._db.execute(
                "UPDATE jobs SET state = 'queued', failures = ?, failed_at = ? WHERE id = ?",
                (failures, row.step if failed else row.failed_at, job_id),
            )
            self._add_event(job_id, None, "state", f"queued {detail}".strip().encode(), b"", now)
            return self.get(job_id)

    def ask_cancel(self, job_id: str, reason: str, now: float) -> JobRow:
        """Ask for a stop: a queued job ends at once, a running one is marked. An ended one stays as it is."""
        with self.transaction():
            row = self.get(job_id)
            if row.state == "queued":
                self.finish(job_id, None, "cancelled", now, reason=Reason(code="CANCELLED", message=reason))
            elif row.state == "running" and not row.cancel:
                self._db.execute("UPDATE jobs SET cancel = 1, message = ? WHERE id = ?", (reason, job_id))
                self._add_event(job_id, None, "state", f"cancelling {reason}".strip().encode(), b"", now)
            return self.get(job_id)

    def purge(self, before: float, limit: int = 500) -> int:
        """Forget jobs that ended before a time, oldest first; how many. Call it again while it returns `limit`."""
        with self.transaction():
            gone = self._db.execute(
                "DELETE FROM jobs WHERE row IN (SELECT row FROM jobs WHERE finished < ? ORDER BY finished LIMIT ?)",
                (before, limit),
            ).rowcount
        if gone:
            self._db.execute("PRAGMA incremental_vacuum").fetchall()
        return gone

    def _add_event(
        self, job_id: str, attempt: int | None, kind: EventKind, body: bytes, extra: bytes, now: float
    ) -> EventRow:
        row, number, epoch = self._db.execute(
            "UPDATE jobs SET last_event = last_event + 1 WHERE id = ? RETURNING row, last_event, attempt", (job_id,)
        ).fetchone()
        event = EventRow(
            number=number, time=now, attempt=epoch if attempt is None else attempt, kind=kind, body=body, extra=extra
        )
        self._insert(row, [event])
        return event

    def _insert(self, job: int, events: Sequence[EventRow]) -> None:
        self._db.executemany(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(job, e.number, e.time, e.attempt, e.kind, e.body, e.extra) for e in events],
        )

    # -- reading ------------------------------------------------------------------------------------------------

    def get(self, job_id: str) -> JobRow:
        """A job.

        Raises:
            NoSuchJobError: there is none.
        """
        with self._errors():
            found = self._db.execute(f"{_SELECT} WHERE id = ?", (job_id,)).fetchone()
            if found is None:
                raise NoSuchJobError("job_id: there is no such job, or it is no longer kept")
            return self._row(found)

    def find(self, owner: str, key: str, payload: bytes) -> JobRow | None:
        """The job that an owner made with this key and payload."""
        with self._errors():
            found = self._db.execute(
                f"{_SELECT} WHERE owner = ? AND key = ? AND payload = ?", (owner, key, payload)
            ).fetchone()
            return None if found is None else self._row(found)

    def result(self, job_id: str) -> tuple[bytes, bytes] | None:
        """Result and record of a done job."""
        with self._errors():
            found = self._db.execute(
                "SELECT result, record FROM results WHERE job = (SELECT row FROM jobs WHERE id = ?)", (job_id,)
            ).fetchone()
            return None if found is None else (found[0], found[1])

    def events(self, job_id: str, after: int, limit: int = PAGE) -> list[EventRow]:
        """Events with greater numbers than `after`, in order.

        Raises:
            NoSuchJobError: there is no such job.
        """
        with self._errors():
            found = self._db.execute(
                "SELECT number, time, attempt, kind, body, extra FROM events"
                " WHERE job = (SELECT row FROM jobs WHERE id = ?) AND number > ? ORDER BY number LIMIT ?",
                (job_id, after, limit),
            ).fetchall()
        if not found:
            self.get(job_id)
        names = ("number", "time", "attempt", "kind", "body", "extra")
        return [EventRow(**dict(zip(names, values, strict=True))) for values in found]

    def page(
        self,
        *,
        before: int | None = None,
        limit: int = 50,
        states: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        owner: str | None = None,
    ) -> list[JobRow]:
        """Jobs newest first, from below row `before` on, that pass every filter."""
        terms: list[str] = []
        values: list[Any] = []
        if before is not None:
            terms, values = [*terms, "row < ?"], [*values, before]
        if owner is not None:
            terms, values = [*terms, "owner = ?"], [*values, owner]
        if states:
            terms, values = [*terms, f"state IN ({', '.join('?' * len(states))})"], [*values, *states]
        for name, value in (labels or {}).items():
            terms.append("EXISTS (SELECT 1 FROM labels WHERE job = jobs.row AND name = ? AND value = ?)")
            values += [name, value]
        where = f" WHERE {' AND '.join(terms)}" if terms else ""
        with self._errors():
            found = self._db.execute(f"{_SELECT}{where} ORDER BY row DESC LIMIT ?", (*values, limit)).fetchall()
            return [self._row(values) for values in found]

    def unfinished(self) -> list[JobRow]:
        """Queued and running jobs, oldest first."""
        with self._errors():
            found = self._db.execute(f"{_SELECT} WHERE state IN ('queued', 'running') ORDER BY row").fetchall()
            return [self._row(values) for values in found]

    def counts(self) -> dict[str, int]:
        """Jobs by state."""
        with self._errors():
            return dict(self._db.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())

    def _row(self, values: Sequence[Any]) -> JobRow:
        named = dict(zip(_COLUMNS, values, strict=True))
        named["cancel"] = bool(named["cancel"])
        labels = dict(self._db.execute("SELECT name, value FROM labels WHERE job = ?", (named["row"],)).fetchall())
        return JobRow(labels=labels, **named)
