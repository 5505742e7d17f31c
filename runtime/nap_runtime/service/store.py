"""What the journal holds: rows of jobs and events, job states, and the SQLite schema.

::

    queued ──► running ──► done | failed
      │  ▲        │ ├────► cancelled   (asked for)
      │  └────────┘ └────► expired     (the deadline has passed)
      └──────────────────► cancelled | expired | failed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

State = Literal["queued", "running", "done", "failed", "cancelled", "expired"]
FINAL: frozenset[str] = frozenset({"done", "failed", "cancelled", "expired"})
OPEN: frozenset[str] = frozenset({"queued", "running"})

EventKind = Literal["state", "laid-out", "update", "rolled-back", "finished"]

VERSION = 1
SCHEMA = """
CREATE TABLE jobs (
  row INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  owner TEXT NOT NULL,
  key TEXT NOT NULL,
  payload BLOB NOT NULL,
  spec BLOB NOT NULL,
  priority INTEGER NOT NULL,
  deadline REAL,
  state TEXT NOT NULL,
  attempt INTEGER NOT NULL DEFAULT 0,
  failures INTEGER NOT NULL DEFAULT 0,
  failed_at INTEGER NOT NULL DEFAULT -1,
  step INTEGER NOT NULL DEFAULT 0,
  last_event INTEGER NOT NULL DEFAULT 0,
  cancel INTEGER NOT NULL DEFAULT 0,
  submitted REAL NOT NULL,
  started REAL,
  finished REAL,
  code TEXT NOT NULL DEFAULT '',
  message TEXT NOT NULL DEFAULT '',
  field TEXT NOT NULL DEFAULT '',
  UNIQUE (owner, key)
) STRICT;
CREATE INDEX jobs_open ON jobs (state) WHERE state IN ('queued', 'running');
CREATE INDEX jobs_finished ON jobs (finished) WHERE finished IS NOT NULL;
CREATE TABLE labels (
  job INTEGER NOT NULL REFERENCES jobs (row) ON DELETE CASCADE,
  name TEXT NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (job, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE events (
  job INTEGER NOT NULL REFERENCES jobs (row) ON DELETE CASCADE,
  number INTEGER NOT NULL,
  time REAL NOT NULL,
  attempt INTEGER NOT NULL,
  kind TEXT NOT NULL,
  body BLOB NOT NULL,
  extra BLOB NOT NULL,
  PRIMARY KEY (job, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE results (
  job INTEGER PRIMARY KEY REFERENCES jobs (row) ON DELETE CASCADE,
  result BLOB NOT NULL,
  record BLOB NOT NULL
) STRICT;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job as it is submitted. `payload` is a digest of everything that makes two submissions the same."""

    id: str
    owner: str
    key: str
    payload: bytes
    spec: bytes
    priority: int = 0
    deadline: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """A job as the journal knows it. Times are seconds since 1970.

    Attributes:
        row: order of submission, from 1.
        attempt: epoch of the running or last attempt; 0 while none has begun.
        failures: attempts in a row that ended with workers or a coordinator lost and without progress.
        failed_at: step that the last of those attempts had reached; −1 where none failed.
        step: T's part that is common to all workers and journaled: where a next attempt resumes.
        cancel: somebody asked for a stop.
        code, message, field: why it ended without a result.
    """

    row: int
    id: str
    owner: str
    key: str
    spec: bytes
    priority: int
    deadline: float | None
    state: State
    attempt: int
    failures: int
    failed_at: int
    step: int
    last_event: int
    cancel: bool
    submitted: float
    started: float | None
    finished: float | None
    code: str
    message: str
    field: str
    labels: Mapping[str, str]

    @property
    def final(self) -> bool:
        """Whether it has ended."""
        return self.state in FINAL


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """An event of a job. `extra` is the server's own part, which no client sees."""

    number: int
    time: float
    attempt: int
    kind: EventKind
    body: bytes
    extra: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a job ended without a result: an error code's name, a line for people, the option at fault."""

    code: str
    message: str
    field: str = ""
