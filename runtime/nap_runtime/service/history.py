"""A job's past in the journal: what a next attempt resumes from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import msgpack

from nap_runtime.service.journal import Journal
from nap_runtime.service.v1 import decoder_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Deltas and extras of every journaled update since the canvas was laid out."""

    step: int
    deltas: tuple[bytes, ...]
    extras: tuple[bytes, ...]

    @property
    def digest(self) -> bytes:
        """Equal for jobs that were decoded in the same batches so far, which therefore can go on together."""
        return hashlib.sha256(b"".join(hashlib.sha256(extra).digest() for extra in self.extras)).digest()


def read_history(journal: Journal, job_id: str, fingerprint: str, workers: int) -> History | None:
    """The past of a job, unless there is none, or other weights or another number of workers made it."""
    deltas: list[bytes] = []
    extras: list[bytes] = []
    after, usable = 0, False
    while page := journal.events(job_id, after):
        for event in page:
            if event.kind == "laid-out":
                deltas, extras = [], []
                usable = msgpack.unpackb(event.extra) == [fingerprint, workers]
            elif event.kind == "update":
                deltas.append(pb.Event.FromString(event.body).canvas_update.delta)
                extras.append(event.extra)
        after = page[-1].number
    if not usable or not extras:
        return None
    return History(step=msgpack.unpackb(extras[-1])[1], deltas=tuple(deltas), extras=tuple(extras))


def earlier_message(histories: list[History | None]) -> dict[str, Any] | None:
    """The past of a batch for its group; None where it begins."""
    found = [history for history in histories if history is not None]
    if not found:
        return None
    assert len(found) == len(histories), "jobs of different pasts share no batch"
    return {"step": found[0].step, "extras": list(found[0].extras), "deltas": [list(h.deltas) for h in found]}
