"""What a client gets back: jobs, events and results as plain frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from nap_runtime.decoding.record import CanvasDelta, DecodeRecord
from nap_runtime.errors import JobFailedError
from nap_runtime.service.deltas import unpack_deltas
from nap_runtime.service.v1 import decoder_pb2 as pb

_STATES = {
    pb.JOB_STATE_QUEUED: "queued",
    pb.JOB_STATE_RUNNING: "running",
    pb.JOB_STATE_CANCELLING: "cancelling",
    pb.JOB_STATE_SUCCEEDED: "done",
    pb.JOB_STATE_FAILED: "failed",
    pb.JOB_STATE_CANCELLED: "cancelled",
    pb.JOB_STATE_EXPIRED: "expired",
}
STATES: Mapping[str, Any] = {name: number for number, name in _STATES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInfo:
    """A job as the server describes it.

    Attributes:
        state: queued, running, cancelling, done, failed, cancelled or expired.
        attempt: epoch of the running or last attempt; `failures` how many in a row were lost without progress.
        last_event: number of the newest event; `step` how far the canvas is journaled.
        code, error: why it ended without a result; empty otherwise.
        sync: its mode and K, such as `kv every 8`, the server's choice where it chose; empty where none is named.
        existed: submit only: the key was known, and this is the job that it made.
        chosen: submit only: which sync the server chose, and why; empty where it was given.
    """

    id: str
    key: str
    state: str
    question: str
    name: str
    priority: int
    labels: Mapping[str, str]
    attempt: int
    failures: int
    last_event: int
    step: int
    submitted: datetime
    started: datetime | None
    finished: datetime | None
    deadline: datetime | None
    code: str
    error: str
    sync: str = ""
    existed: bool = False
    chosen: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ("done", "failed", "cancelled", "expired")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """What a job came to. `metrics` are its meters as plain values; `record` is the trace, where it was asked for."""

    job: JobInfo
    answer: str | None
    summary: str
    paths: tuple[str, ...]
    tokens: tuple[int, ...]
    prompt_tokens: int
    unknown_words: tuple[str, ...]
    correct: bool | None
    metrics: Mapping[str, Any]
    record: DecodeRecord | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChanged:
    """The job waits, runs, or is about to stop."""

    state: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LaidOut:
    """The canvas before the first step; what came before it counts no more. Ranges are canvas positions."""

    ids: tuple[int, ...]
    prompt: range
    paths: tuple[range, ...]
    summary: range | None
    steps: int
    assignment: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """Tokens of the steps `first` … `last`. `texts` are whole blocks as they read now, by path; None is the summary.

    `committed` ones are never taken back, others are until a committed update repeats them.
    """

    committed: bool
    first: int
    last: int
    deltas: tuple[CanvasDelta, ...]
    texts: Mapping[int | None, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledBack:
    """Workers were lost: the canvas is what the committed updates up to `step` make it (−1: as laid out)."""

    step: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The last event. `result` is None where the job ended without one."""

    job: JobInfo
    result: JobResult | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveAnswer:
    """The summary, and the answer in it, as the paths stood at a step (summary `live`); revocable, its number is 0."""

    step: int
    answer: str | None
    summary: str


Body = StateChanged | LaidOut | Update | RolledBack | LiveAnswer | Finished


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """An event; `number` is where a broken watch goes on after it, 0 for provisional updates."""

    number: int
    time: datetime
    attempt: int
    body: Body


def job_of(message: pb.Job, *, existed: bool = False, chosen: str = "") -> JobInfo:
    """A job from its message."""
    name = pb.ErrorCode.Name(message.error.code) if message.HasField("error") else ""
    return JobInfo(
        id=message.id,
        key=message.idempotency_key,
        state=_STATES.get(message.state, f"state {message.state}"),
        question=message.spec.prompt.text,
        name=message.spec.id,
        priority=message.priority,
        labels=dict(message.labels),
        attempt=message.attempt,
        failures=message.failures,
        last_event=message.last_event,
        step=message.step,
        submitted=_time(message.submitted_at),
        started=_time(message.started_at) if message.HasField("started_at") else None,
        finished=_time(message.finished_at) if message.HasField("finished_at") else None,
        deadline=_time(message.deadline) if message.HasField("deadline") else None,
        code=name.removeprefix("ERROR_CODE_").lower().replace("_", "-"),
        error=message.error.message,
        sync=_sync_of(message.spec.config.sync),
        existed=existed,
        chosen=chosen,
    )


def _sync_of(message: pb.SyncPolicy) -> str:
    if message.mode == pb.SYNC_MODE_UNSPECIFIED:
        return ""
    every = f" every {message.every}" if message.HasField("every") else ""
    return pb.SyncMode.Name(message.mode).removeprefix("SYNC_MODE_").lower() + every


def result_of(message: pb.Job) -> JobResult:
    """The result of a job that has ended.

    Raises:
        JobFailedError: it ended without one. RecordError: its trace is damaged.
    """
    job, result = job_of(message), message.result
    if job.state != "done":
        text = job.error or "it has not ended"
        raise JobFailedError(f"job {job.id} {job.state}: {text}", job_id=job.id, state=job.state, code=job.code)
    return JobResult(
        job=job,
        answer=result.answer if result.HasField("answer") else None,
        summary=result.summary,
        paths=tuple(result.paths),
        tokens=tuple(result.tokens),
        prompt_tokens=result.prompt_tokens,
        unknown_words=tuple(result.unknown_words),
        correct=result.correct if result.HasField("correct") else None,
        metrics=MessageToDict(result.metrics, preserving_proto_field_name=True),
        record=DecodeRecord.from_bytes(result.record) if result.record else None,
    )


def event_of(message: pb.Event) -> JobEvent | None:
    """An event; None for a kind that this release does not know.

    Raises:
        RecordError: its deltas are malformed.
    """
    kind = message.WhichOneof("body")
    body: Body
    if kind == "state_changed":
        changed = message.state_changed
        body = StateChanged(state=_STATES.get(changed.state, f"state {changed.state}"), detail=changed.detail)
    elif kind == "canvas_laid_out":
        body = _laid_out(message.canvas_laid_out)
    elif kind == "canvas_update":
        body = _update(message.canvas_update)
    elif kind == "rolled_back":
        body = RolledBack(step=message.rolled_back.step, reason=message.rolled_back.reason)
    elif kind == "live_answer":
        live = message.live_answer
        answer = live.answer if live.HasField("answer") else None
        body = LiveAnswer(step=live.step, answer=answer, summary=live.summary)
    elif kind == "finished":
        job = message.finished.job
        done = job.state == pb.JOB_STATE_SUCCEEDED
        body = Finished(job=job_of(job), result=result_of(job) if done else None)
    else:
        return None
    return JobEvent(number=message.number, time=_time(message.time), attempt=message.attempt, body=body)


def _laid_out(message: pb.CanvasLaidOut) -> LaidOut:
    return LaidOut(
        ids=tuple(message.ids),
        prompt=range(message.prompt.start, message.prompt.stop),
        paths=tuple(range(path.start, path.stop) for path in message.paths),
        summary=range(message.summary.start, message.summary.stop) if message.HasField("summary") else None,
        steps=message.steps,
        assignment=tuple(message.assignment),
    )


def _update(message: pb.CanvasUpdate) -> Update:
    return Update(
        committed=message.commitment == pb.COMMITMENT_COMMITTED,
        first=message.first_step,
        last=message.last_step,
        deltas=unpack_deltas(message.delta),
        texts={t.path if t.WhichOneof("place") == "path" else None: t.text for t in message.texts},
    )


def _time(stamp: Timestamp) -> datetime:
    return datetime.fromtimestamp(stamp.seconds + stamp.nanos / 1e9, tz=UTC)
