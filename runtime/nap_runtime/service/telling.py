"""What a group tells its server: events as protobuf, results, and enough to resume from when it dies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np

from nap_runtime.decoding.kinds import Kind
from nap_runtime.decoding.record import CanvasDelta, SyncEvent
from nap_runtime.executor.base import WorkerPlace
from nap_runtime.executor.coordinator import Batch, Coordinator, JobFailure, Observer, Recovery
from nap_runtime.executor.liveness import Straggler
from nap_runtime.executor.progress import Common, Earlier
from nap_runtime.job import DecodeResult
from nap_runtime.metrics.answers import extract_boxed
from nap_runtime.service import failpoints
from nap_runtime.service.deltas import DELTA_VERSION, apply_deltas, pack_deltas, unpack_deltas
from nap_runtime.service.frames import Channel
from nap_runtime.service.results import result_to_proto
from nap_runtime.service.v1 import decoder_pb2 as pb
from nap_runtime.worker import Report

MASKED = "░"
_Told = list[Any]  # [job, kind, body, extra]


class Teller:
    """Says on a channel what a batch does.

    Attributes:
        provisional: also tell what is not common to all workers yet.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.provisional = False

    def begin(self, number: int, coordinator: Coordinator) -> Observer:
        """The observer of a batch."""
        return _BatchTeller(self, self._channel, number, coordinator)

    def result(self, number: int, job: int, result: DecodeResult | JobFailure) -> None:
        """How one job ended."""
        if isinstance(result, JobFailure):
            field = getattr(result.error, "field", None) or ""
            code = "USAGE" if field else "DECODE"
            self._channel.send(kind="failure", batch=number, job=job, code=code, message=str(result.error), field=field)
            return
        message, record = result_to_proto(result), result.record.to_bytes()
        self._channel.send(kind="result", batch=number, job=job, result=message.SerializeToString(), record=record)


def placed(places: Sequence[WorkerPlace]) -> dict[str, Any]:
    """Where a group is: the coordinator's process and the workers', and the workers' hosts and devices."""
    return {
        "processes": [os.getpid(), *(place.process for place in places)],
        "places": [[place.host, place.device] for place in places],
    }


class _BatchTeller(Observer):
    report_early = True  # a stream begins with the first commits, not with the first report of every R steps

    def __init__(self, teller: Teller, channel: Channel, number: int, coordinator: Coordinator) -> None:
        self._teller, self._channel, self._number, self._coordinator = teller, channel, number, coordinator
        self._views: list[_View] = []

    def on_batch(self, batch: Batch) -> None:
        self._views = [_View(batch, canvas, self._coordinator) for canvas in range(len(batch.jobs))]
        if batch.earlier is not None:
            for view, deltas in zip(self._views, batch.earlier.deltas, strict=True):
                view.take(deltas)
            self._rolled_back(batch, batch.earlier.step, "the decode goes on where it was journaled")
            return
        plan = batch.task.plan
        extra = msgpack.packb([self._coordinator.card.fingerprint, plan.assignment.workers])
        told = [[job, "laid-out", _laid_out(batch, job).SerializeToString(), extra] for job in range(len(batch.jobs))]
        self._channel.send(kind="events", batch=self._number, step=0, events=told)

    def on_report(self, batch: Batch, report: Report) -> None:
        failpoints.reach("group.before_report")
        if not self._teller.provisional or batch.task.plan.assignment.workers == 1:
            return
        told: list[_Told] = []
        for job, deltas in enumerate(report.deltas):
            if deltas:
                update = self._update(batch, job, deltas, pb.COMMITMENT_PROVISIONAL)
                event = pb.Event(canvas_update=update)
                told.append([job, "update", event.SerializeToString(), b""])
        if told:
            self._channel.send(kind="provisional", batch=self._number, events=told)

    def on_common(self, batch: Batch, common: Common) -> None:
        extra = pack_past(common)
        told: list[_Told] = []
        for job, deltas in enumerate(common.deltas):
            update = self._update(batch, job, deltas, pb.COMMITMENT_COMMITTED)
            update.first_step, update.last_step = common.since, common.step - 1
            update.texts.extend(self._views[job].take(deltas))
            told.append([job, "update", pb.Event(canvas_update=update).SerializeToString(), extra])
        self._channel.send(kind="events", batch=self._number, step=common.step, events=told)
        if self._teller.provisional:
            live = [
                (job, view.live(deltas))
                for job, (view, deltas) in enumerate(zip(self._views, common.deltas, strict=True))
            ]
            events = [[job, "", answer.SerializeToString(), b""] for job, answer in live if answer is not None]
            self._channel.send(kind="provisional", batch=self._number, events=events)

    def on_recovery(self, batch: Batch, recovery: Recovery) -> None:
        self._rolled_back(batch, recovery.step, recovery.reason)
        repair = recovery.repair
        self._channel.send(
            kind="recovered",
            **{"batch": self._number, "step": recovery.step, "reason": recovery.reason},
            **{"seconds": repair.seconds, "lost": list(repair.lost), "weights": repair.weights},
            **placed(self._coordinator.executor.places),
        )

    def on_straggler(self, batch: Batch, slow: Sequence[Straggler]) -> None:
        workers = [[one.worker, one.host, one.factor] for one in slow]
        self._channel.send(kind="slow", batch=self._number, workers=workers)

    def _rolled_back(self, batch: Batch, step: int, reason: str) -> None:
        assignment = batch.task.plan.assignment.worker_of
        body = pb.Event(rolled_back=pb.RolledBack(step=step - 1, reason=reason, assignment=assignment))
        told = [[job, "rolled-back", body.SerializeToString(), b""] for job in range(len(batch.jobs))]
        self._channel.send(kind="events", batch=self._number, step=None, events=told)

    def _update(self, batch: Batch, job: int, deltas: Sequence[CanvasDelta], commitment: Any) -> pb.CanvasUpdate:
        steps = [delta.step for delta in deltas] or [0]
        return pb.CanvasUpdate(
            commitment=commitment,
            first_step=min(steps),
            last_step=max(steps),
            delta_version=DELTA_VERSION,
            delta=pack_deltas(deltas, batch.task.layout_of(job).size),
        )


class _View:
    """One canvas as text."""

    def __init__(self, batch: Batch, canvas: int, coordinator: Coordinator) -> None:
        self._layout, self._coordinator = batch.task.layout_of(canvas), coordinator
        self._ids = self._layout.initial_ids(batch.task.prompts[canvas])

    def take(self, deltas: Sequence[CanvasDelta]) -> list[pb.PathText]:
        """Put deltas in; the texts of the blocks that they changed."""
        apply_deltas(self._ids, deltas, self._layout.mask_id)
        changed = {int(position) for delta in deltas for position in delta.positions}
        texts = []
        for number, block in enumerate(self._layout.blocks):
            if not changed.isdisjoint(block.slots):
                text = self._text(block.slots, block.end_ids)
                is_path = number < self._layout.n_paths
                texts.append(pb.PathText(path=number, text=text) if is_path else pb.PathText(summary=True, text=text))
        return texts

    def live(self, deltas: Sequence[CanvasDelta]) -> pb.Event | None:
        """The answer as the paths stood at the last of some steps, where the summary was scored then."""
        would_be = [delta for delta in deltas if delta.kind is Kind.PROVISIONAL]
        block = self._layout.summary
        if not would_be or block is None:
            return None
        step, ids = max(delta.step for delta in would_be), self._ids.copy()
        for delta in would_be:
            if delta.step == step:
                ids[delta.positions] = delta.ids
        summary = self._coordinator.text(ids[block.slots.start : block.slots.stop], block.end_ids)
        body = pb.LiveAnswer(step=step, summary=summary)
        if (answer := extract_boxed(summary)) is not None:
            body.answer = answer
        return pb.Event(live_answer=body)

    def _text(self, slots: range, end_ids: tuple[int, ...]) -> str:
        """A block up to its end, with a sign for every slot that is masked."""
        ids = self._ids[slots.start : slots.stop]
        ends = np.flatnonzero(np.isin(ids, end_ids))
        ids = ids[: ends[0]] if len(ends) else ids
        masked = ids == self._layout.mask_id
        runs = np.split(ids, np.flatnonzero(masked[1:] != masked[:-1]) + 1)
        return " ".join(
            MASKED * len(run) if run[0] == self._layout.mask_id else self._coordinator.text(run, ())
            for run in runs
            if len(run)
        )


def _laid_out(batch: Batch, canvas: int) -> pb.Event:
    plan = batch.task.plan
    layout = batch.task.layout_of(canvas)
    body = pb.CanvasLaidOut(
        ids=layout.initial_ids(batch.task.prompts[canvas]).tolist(),
        prompt=pb.Range(start=0, stop=layout.prompt_tokens),
        paths=[pb.Range(start=block.slots.start, stop=block.slots.stop) for block in layout.paths],
        steps=plan.schedule.steps,
        assignment=plan.assignment.worker_of,
    )
    if layout.summary is not None:
        body.summary.CopyFrom(pb.Range(start=layout.summary.slots.start, stop=layout.summary.slots.stop))
    return pb.Event(canvas_laid_out=body)


# -- what a later coordinator needs -----------------------------------------------------------------------------------


def pack_past(common: Common) -> bytes:
    """Steps, forwards and syncs of what has become common; the tokens stand in the event itself."""
    events = [[event.step, event.kind, [list(row) for row in event.sources]] for event in common.events]
    return bytes(msgpack.packb([common.since, common.step, [list(steps) for steps in common.forwards], events]))


def earlier_of(past: dict[str, Any]) -> Earlier:
    """A decode's past from journaled events: `step`, `extras`, and of each job its `deltas`."""
    forwards: list[list[int]] = []
    events: list[SyncEvent] = []
    for packed in past["extras"]:
        _, _, steps, syncs = msgpack.unpackb(packed)
        forwards = forwards or [[] for _ in steps]
        for known, new in zip(forwards, steps, strict=True):
            known.extend(new)
        events += [
            SyncEvent(step=step, kind=kind, sources=tuple(tuple(row) for row in sources))
            for step, kind, sources in syncs
        ]
    deltas = (tuple(delta for packed in packs for delta in unpack_deltas(packed)) for packs in past["deltas"])
    return Earlier(
        step=past["step"],
        deltas=tuple(deltas),
        forwards=tuple(tuple(steps) for steps in forwards),
        events=tuple(events),
    )
