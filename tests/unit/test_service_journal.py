"""The job journal: what it returned survives, ends happen once, damage and full disks are said."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nap_runtime.errors import JournalError, KeyConflictError, NoSuchJobError
from nap_runtime.service.journal import Journal, JournalFullError
from nap_runtime.service.store import NewJob, Reason
from nap_runtime.service.writer import AsyncJournal


def new(name: str = "j", *, owner: str = "", key: str | None = None, payload: bytes = b"p", **more: Any) -> NewJob:
    return NewJob(id=name, owner=owner, key=name if key is None else key, payload=payload, spec=b"spec", **more)


@pytest.fixture
def journal(tmp_path: Path) -> Any:
    with Journal(tmp_path / "jobs.db") as opened:
        yield opened


def test_a_key_gives_the_first_job_and_refuses_another_payload(journal: Journal) -> None:
    first, existed = journal.submit(new("a", key="k"), 1.0)
    assert (first.state, first.submitted, first.attempt, existed) == ("queued", 1.0, 0, False)
    assert journal.submit(new("b", key="k"), 2.0) == (first, True)
    with pytest.raises(KeyConflictError, match="idempotency_key"):
        journal.submit(new("b", key="k", payload=b"other"), 3.0)
    assert journal.submit(new("c", key="k", owner="ada", payload=b"other"), 4.0)[1] is False
    assert [row.id for row in journal.unfinished()] == ["a", "c"]


def test_attempts_are_fenced(journal: Journal) -> None:
    journal.submit(new(), 1.0)
    first = journal.begin("j", 2.0)
    assert first is not None
    assert (first.attempt, first.started) == (1, 2.0)
    assert journal.begin("j", 2.0) is None, "it runs already"
    assert [event.number for event in journal.append("j", 1, [("update", b"x", b"")], 8, 3.0)] == [3]
    again = journal.requeue("j", 1, 4.0, failed=True, detail="a worker died")
    assert again is not None
    assert (again.failures, again.step) == (1, 8)
    second = journal.begin("j", 5.0)
    assert second is not None
    assert (second.attempt, second.started) == (2, 2.0)
    assert journal.append("j", 1, [("update", b"late", b"")], 9, 6.0) == []
    assert journal.finish("j", 1, "done", 6.0, result=b"late") is False
    assert journal.requeue("j", 1, 6.0, failed=True) is None
    assert journal.finish("j", 2, "done", 7.0, result=b"r", record=b"t") is True
    assert journal.finish("j", 2, "failed", 8.0) is False
    assert journal.result("j") == (b"r", b"t")
    numbers = [(event.number, event.kind, event.body) for event in journal.events("j", 0)]
    assert [number for number, _, _ in numbers] == list(range(1, 7))
    assert numbers[-1][1] == "finished"
    assert journal.events("j", 4)[0].number == 5


def test_failures_count_only_without_progress(journal: Journal) -> None:
    journal.submit(new(), 0.0)
    counted = []
    for attempt, step in ((1, 0), (2, 8), (3, 8), (4, None), (5, 16)):
        journal.begin("j", 0.0)
        journal.append("j", attempt, [("update", b"", b"")], step, 0.0)
        row = journal.requeue("j", attempt, 0.0, failed=True)
        assert row is not None
        counted.append(row.failures)
    assert counted == [1, 1, 2, 3, 1]
    journal.begin("j", 0.0)
    row = journal.requeue("j", None, 0.0, failed=False)
    assert row is not None
    assert row.failures == 1, "a restart of the server is nobody's fault"


def test_cancelling(journal: Journal) -> None:
    journal.submit(new("a"), 0.0)
    assert journal.ask_cancel("a", "no need", 1.0).state == "cancelled"
    assert journal.ask_cancel("a", "again", 2.0).message == "no need"
    journal.submit(new("b"), 0.0)
    journal.begin("b", 1.0)
    row = journal.ask_cancel("b", "stop", 2.0)
    assert (row.state, row.cancel) == ("running", True)
    assert journal.requeue("b", 1, 3.0, failed=True) is None, "what is cancelled is not tried again"
    assert (journal.get("b").state, journal.get("b").message) == ("cancelled", "stop")


def test_pages_and_filters(journal: Journal) -> None:
    for number in range(7):
        journal.submit(new(f"j{number}", owner="ab"[number % 2], labels={"n": str(number % 3)}), float(number))
    journal.ask_cancel("j6", "", 9.0)
    assert [row.id for row in journal.page(limit=3)] == ["j6", "j5", "j4"]
    assert [row.id for row in journal.page(before=5, limit=9)] == ["j3", "j2", "j1", "j0"]
    assert [row.id for row in journal.page(states=["cancelled"])] == ["j6"]
    assert [row.id for row in journal.page(labels={"n": "0"}, owner="a")] == ["j6", "j0"]
    assert journal.page(labels={"n": "' OR 1=1 --"}) == []
    assert journal.counts() == {"queued": 6, "cancelled": 1}


def test_retention(journal: Journal) -> None:
    for name in "abc":
        journal.submit(new(name), 0.0)
    journal.begin("a", 1.0)
    journal.finish("a", 1, "done", 2.0, result=b"r")
    journal.ask_cancel("b", "", 5.0)
    assert journal.purge(3.0) == 1
    for look in (lambda: journal.get("a"), lambda: journal.events("a", 0)):
        with pytest.raises(NoSuchJobError):
            look()
    assert journal.result("a") is None
    assert [row.id for row in journal.page()] == ["c", "b"]
    assert journal.purge(10.0) == 1
    assert journal.get("c").state == "queued", "what has not ended is never forgotten"


def test_what_was_returned_survives_a_kill(tmp_path: Path) -> None:
    """A child submits, prints each acknowledgement and is killed: every printed job is there."""
    script = """
import sys, itertools
from pathlib import Path
from nap_runtime.service.journal import Journal
from nap_runtime.service.store import NewJob
journal = Journal(Path(sys.argv[1]))
for n in itertools.count():
    journal.submit(NewJob(id=str(n), owner="", key=str(n), payload=b"p", spec=b"s"), 0.0)
    print(n, flush=True)
"""
    file = tmp_path / "jobs.db"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    child = subprocess.Popen([sys.executable, "-c", script, str(file)], stdout=subprocess.PIPE, env=environment)
    assert child.stdout is not None
    for _ in range(50):
        child.stdout.readline()
    child.kill()
    acknowledged = 50 + len(child.stdout.read().split())
    child.wait()
    child.stdout.close()
    with Journal(file) as journal:
        assert len(journal.unfinished()) >= acknowledged


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    with Journal(tmp_path / "jobs.db") as journal:
        journal.submit(new(), 0.0)
        assert {file.stat().st_mode & 0o077 for file in tmp_path.iterdir()} == {0}
    with pytest.raises(JournalError, match="No such file"):
        Journal(tmp_path / "none" / "jobs.db")


# -- damage -----------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_said_and_writes_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path / "jobs.db") as journal:
        journal.submit(new("first"), 0.0)
        journal.limit_pages(30)
        kept = 1
        with pytest.raises(JournalFullError, match=r"jobs\.db.*full"):  # noqa: PT012
            for number in range(1000):
                journal.submit(new(str(number), payload=b"x" * 4000), 0.0)
                kept += 1
        assert len(journal.unfinished()) == kept
        journal.limit_pages(100_000)
        journal.submit(new("later"), 0.0)
        assert journal.get("later").state == "queued"


@pytest.mark.parametrize("damage", ["header", "middle", "text", "empty-tables"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "jobs.db"
    with Journal(file) as journal:
        for number in range(200):
            journal.submit(new(str(number), payload=b"x" * 500), 0.0)
    data = bytearray(file.read_bytes())
    if damage == "header":
        data[:64] = b"\xff" * 64
    elif damage == "middle":
        data[4096 * 3 : 4096 * 9] = b"\x5a" * (4096 * 6)
    elif damage == "text":
        data = bytearray(b"this is no journal at all, but it is long enough to look at\n" * 100)
    file.write_bytes(data)
    if damage == "empty-tables":
        file.unlink()
        sqlite3.connect(file).execute("CREATE TABLE other (x)").connection.close()
    with pytest.raises(JournalError, match=r"jobs\.db") as caught:
        Journal(file)
    assert "\n" not in str(caught.value)


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "jobs.db"
    Journal(file).close()
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(JournalError, match="version 99"):
        Journal(file)


# -- among coroutines -------------------------------------------------------------------------------------------------


def test_operations_that_wait_together_share_a_sync_and_fail_alone(tmp_path: Path) -> None:
    async def run() -> None:
        journal = AsyncJournal(tmp_path / "jobs.db")
        started = time.monotonic()
        asked = [journal.write(lambda j, n=n: j.submit(new(str(n), key=str(n % 100)), 0.0)) for n in range(150)]
        asked.append(journal.write(lambda j: j.submit(new("odd", key="0", payload=b"other"), 0.0)))
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert time.monotonic() - started < 10
        assert [existed for _, existed in outcomes[:-1]] == [False] * 100 + [True] * 50  # type: ignore[misc]
        assert isinstance(outcomes[-1], KeyConflictError)
        assert len(await journal.read(lambda j: j.unfinished())) == 100
        journal.close()

    asyncio.run(run())


def test_a_full_disk_fails_the_whole_commit(tmp_path: Path) -> None:
    async def run() -> None:
        journal = AsyncJournal(tmp_path / "jobs.db")
        await journal.write(lambda j: j.submit(new("first"), 0.0))
        await journal.write(lambda j: j.limit_pages(30))
        asked = [journal.write(lambda j, n=n: j.submit(new(f"n{n}", payload=b"x" * 3000), 0.0)) for n in range(200)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        acknowledged = [n for n, outcome in enumerate(outcomes) if not isinstance(outcome, BaseException)]
        assert all(isinstance(o, JournalFullError) for o in outcomes if isinstance(o, BaseException))
        assert len(acknowledged) < 200
        kept = {row.id for row in await journal.read(lambda j: j.unfinished())}
        assert kept == {"first", *(f"n{n}" for n in acknowledged)}
        journal.close()

    asyncio.run(run())


# -- against a model --------------------------------------------------------------------------------------------------


class JournalMachine(RuleBasedStateMachine):
    """The journal does what a dictionary does, and goes on doing it after it was closed and opened again."""

    @initialize()
    def start(self) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.journal = Journal(Path(self.folder.name) / "jobs.db")
        self.jobs: dict[str, dict[str, Any]] = {}
        self.now = 0.0

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            self.journal.close()
            self.folder.cleanup()

    def pick(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.jobs)))

    @rule(key=st.integers(0, 5), payload=st.sampled_from([b"a", b"b"]))
    def submit(self, key: int, payload: bytes) -> None:
        name = f"j{key}"
        known = self.jobs.get(name)
        if known is not None and known["payload"] != payload:
            with pytest.raises(KeyConflictError):
                self.journal.submit(new(name, payload=payload), self.now)
            return
        row, existed = self.journal.submit(new(name, payload=payload), self.now)
        assert existed == (known is not None)
        if known is None:
            self.jobs[name] = {"payload": payload, "state": "queued", "attempt": 0, "events": 1, "cancel": False}
        assert row.state == self.jobs[name]["state"]

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        name = self.pick(data)
        job = self.jobs[name]
        began = self.journal.begin(name, self.now)
        assert (began is not None) == (job["state"] == "queued")
        if began is not None:
            job.update(state="running", attempt=job["attempt"] + 1, events=job["events"] + 1)
            assert began.attempt == job["attempt"]

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), back=st.integers(0, 1), count=st.integers(1, 3))
    def append(self, data: st.DataObject, back: int, count: int) -> None:
        name = self.pick(data)
        job = self.jobs[name]
        attempt = job["attempt"] - back
        rows = self.journal.append(name, attempt, [("update", b"", b"")] * count, None, self.now)
        if job["state"] == "running" and back == 0:
            assert [row.number for row in rows] == list(range(job["events"] + 1, job["events"] + 1 + count))
            job["events"] += count
        else:
            assert rows == []

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), back=st.integers(0, 1), state=st.sampled_from(["done", "failed", "expired"]))
    def finish(self, data: st.DataObject, back: int, state: Any) -> None:
        name = self.pick(data)
        job = self.jobs[name]
        ended = self.journal.finish(name, job["attempt"] - back, state, self.now, result=b"r")
        assert ended == (job["state"] == "running" and back == 0)
        if ended:
            job.update(state=state, events=job["events"] + 1)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        name = self.pick(data)
        job = self.jobs[name]
        row = self.journal.requeue(name, None, self.now, failed=False)
        assert (row is not None) == (job["state"] == "running" and not job["cancel"])
        if job["state"] == "running":
            job.update(state="cancelled" if job["cancel"] else "queued", events=job["events"] + 1)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = self.pick(data)
        job = self.jobs[name]
        self.journal.ask_cancel(name, "why", self.now)
        if job["state"] == "queued":
            job.update(state="cancelled", events=job["events"] + 1)
        elif job["state"] == "running" and not job["cancel"]:
            job.update(cancel=True, events=job["events"] + 1)

    @rule()
    def reopen(self) -> None:
        self.journal.close()
        self.journal = Journal(self.journal.path)

    @invariant()
    def agrees(self) -> None:
        for name, job in getattr(self, "jobs", {}).items():
            row = self.journal.get(name)
            assert (row.state, row.attempt, row.last_event) == (job["state"], job["attempt"], job["events"])
            assert [event.number for event in self.journal.events(name, 0, 1000)] == list(range(1, job["events"] + 1))
            assert (self.journal.result(name) is not None) == (job["state"] == "done")


TestJournalMachine = JournalMachine.TestCase
TestJournalMachine.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_reasons_are_kept(journal: Journal) -> None:
    journal.submit(new(), 0.0)
    journal.begin("j", 0.0)
    journal.finish("j", 1, "failed", 1.0, reason=Reason(code="USAGE", message="too long", field="prompt"))
    row = journal.get("j")
    assert (row.code, row.message, row.field, row.final) == ("USAGE", "too long", "prompt", True)
