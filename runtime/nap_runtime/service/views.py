"""Rows of the journal as protobuf."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from nap_runtime import __version__
from nap_runtime.decoding.record import VERSION as RECORD_VERSION
from nap_runtime.errors import UsageError
from nap_runtime.models.loading import ModelCard
from nap_runtime.service.configs import CONFIG_VERSION
from nap_runtime.service.deltas import DELTA_VERSION
from nap_runtime.service.dispatch import Dispatcher
from nap_runtime.service.results import duration
from nap_runtime.service.settings import GroupSettings
from nap_runtime.service.store import EventRow, JobRow
from nap_runtime.service.v1 import decoder_pb2 as pb

STATES: dict[str, Any] = {
    "queued": pb.JOB_STATE_QUEUED,
    "running": pb.JOB_STATE_RUNNING,
    "cancelling": pb.JOB_STATE_CANCELLING,
    "done": pb.JOB_STATE_SUCCEEDED,
    "failed": pb.JOB_STATE_FAILED,
    "cancelled": pb.JOB_STATE_CANCELLED,
    "expired": pb.JOB_STATE_EXPIRED,
}
STATE_NAMES: dict[int, str] = {number: name for name, number in STATES.items()}
_GROUP_STATES: dict[str, Any] = {
    "starting": pb.GROUP_STATE_STARTING,
    "idle": pb.GROUP_STATE_IDLE,
    "busy": pb.GROUP_STATE_BUSY,
    "recovering": pb.GROUP_STATE_RECOVERING,
}


def timestamp(seconds: float) -> Timestamp:
    """Seconds since 1970 as protobuf."""
    message = Timestamp()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def job_message(row: JobRow, view: int = pb.JOB_VIEW_BASIC, result: tuple[bytes, bytes] | None = None) -> pb.Job:
    """A job; `result` is what the journal holds of it, where the view asks for it."""
    state = "cancelling" if row.cancel and row.state == "running" else row.state
    message = pb.Job(
        id=row.id,
        idempotency_key=row.key,
        spec=pb.JobSpec.FromString(row.spec),
        priority=row.priority,
        labels=row.labels,
        state=STATES[state],
        attempt=row.attempt,
        last_event=row.last_event,
        submitted_at=timestamp(row.submitted),
        failures=row.failures,
        step=row.step,
    )
    for name, value in (("deadline", row.deadline), ("started_at", row.started), ("finished_at", row.finished)):
        if value is not None:
            getattr(message, name).CopyFrom(timestamp(value))
    if row.final and row.state != "done":
        code: Any = pb.ErrorCode.Value(f"ERROR_CODE_{row.code or 'INTERNAL'}")
        message.error.CopyFrom(pb.JobError(code=code, message=row.message, field=row.field))
    if result is not None and view in (pb.JOB_VIEW_RESULT, pb.JOB_VIEW_FULL):
        message.result.ParseFromString(result[0])
        if view == pb.JOB_VIEW_FULL:
            message.result.record_version, message.result.record = RECORD_VERSION, result[1]
    return message


def event_message(event: EventRow, finished: pb.Job | None = None) -> pb.Event:
    """A journaled event; the last one carries the job."""
    message = pb.Event()
    if event.kind == "state":
        word, _, detail = event.body.decode().partition(" ")
        message.state_changed.CopyFrom(pb.StateChanged(state=STATES[word], detail=detail))
    elif event.kind == "finished":
        assert finished is not None
        message.finished.job.CopyFrom(finished)
    else:
        message.ParseFromString(event.body)
    message.number, message.attempt = event.number, event.attempt
    message.time.CopyFrom(timestamp(event.time))
    return message


# -- pages ------------------------------------------------------------------------------------------------------------


def page_token(row: int, states: Sequence[str], labels: Mapping[str, str]) -> str:
    """Where the next page begins, tied to the filters it was made with."""
    return base64.urlsafe_b64encode(f"{row}:{_filters(states, labels)}".encode()).decode()


def read_page_token(token: str, states: Sequence[str], labels: Mapping[str, str]) -> int | None:
    """Inverse of `page_token`; None of an empty one.

    Raises:
        UsageError: it is none of ours, or its filters were others.
    """
    if not token:
        return None
    try:
        row, _, filters = base64.urlsafe_b64decode(token.encode()).decode().partition(":")
        number = int(row)
    except ValueError:
        raise UsageError("page_token: it is none of this server's", field="page_token") from None
    if filters != _filters(states, labels) or not 0 < number < 2**63:
        raise UsageError("page_token: it was made with other filters", field="page_token")
    return number


def _filters(states: Sequence[str], labels: Mapping[str, str]) -> str:
    text = json.dumps([sorted(states), sorted(labels.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# -- the cluster ------------------------------------------------------------------------------------------------------


def cluster_message(dispatcher: Dispatcher, card: ModelCard, group: GroupSettings, queued: int) -> pb.ClusterResponse:
    """What the service runs on."""
    batches = {batch.group.status.index: sorted(batch.open) for batch in dispatcher.batches()}
    message = pb.ClusterResponse(
        jobs_queued=queued,
        jobs_running=sum(map(len, batches.values())),
        version=__version__,
        config_version=CONFIG_VERSION,
        delta_version=DELTA_VERSION,
        models=[_model(card, group)],
    )
    nodes: dict[str, pb.Node] = {}
    for one in dispatcher.groups:
        status = one.status
        shown = message.groups.add(
            index=status.index,
            state=_GROUP_STATES[status.state],
            workers=status.workers,
            job_ids=batches.get(status.index, []),
            restarts=status.restarts,
            recoveries=status.recoveries,
            processes=status.processes,
            hosts=[host for host, _ in status.places],
        )
        for worker, host, factor in status.slow:
            shown.stragglers.add(worker=worker, host=host, factor=factor)
        if status.last_recovery is not None:
            shown.last_recovery.CopyFrom(duration(status.last_recovery))
        busy = pb.DEVICE_STATE_BUSY if status.state == "busy" else pb.DEVICE_STATE_IDLE
        for host, device in status.places:
            node = nodes.setdefault(host, pb.Node(id=host, host=host, alive=True))
            node.devices.add(name=device, state=busy)
    message.nodes.extend(nodes.values())
    return message


def _model(card: ModelCard, group: GroupSettings) -> pb.ModelInfo:
    config = card.config
    return pb.ModelInfo(
        name=card.name,
        architecture=config.family,
        vocabulary=config.vocab_size,
        max_canvas=config.max_positions,
        dtype=group.dtype,
        weights=group.weights,
        kv=group.kv,
    )
