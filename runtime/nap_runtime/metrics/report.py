"""Every meter of one decode: what it cost, what it said, how old what it read was, in which order it went."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nap_runtime.decoding.meters import RunMeters, WorkerMeters
from nap_runtime.decoding.record import DecodeRecord
from nap_runtime.job import SyncPolicy
from nap_runtime.metrics.arness import ArnessReport
from nap_runtime.metrics.order import config_of, content_mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Nfe:
    """Runs of the network (function evaluations).

    Attributes:
        steps: logical steps at which any worker ran it.
        critical: most runs of one worker.
        total: runs of all workers.
        rows: rows that went through it, over all workers and runs.
    """

    steps: int
    critical: int
    total: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanMax:
    """A quantity's mean and largest value."""

    mean: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> MeanMax | None:
        """Over some values; None over none."""
        return cls(mean=float(np.mean(values)), max=float(max(values))) if values else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncMetrics:
    """What the talking cost. Bytes are per worker, ordered by rank; seconds are mean and max over workers.

    Attributes:
        mode, every: the sync and its K (None where the mode has no K).
        syncs: exchanges that each worker took part in (the largest count of any).
        payload_bytes: content each worker had to tell; `wire_bytes` what it sent in fact.
        blocked_seconds, overlapped_seconds, recompute_seconds, compute_seconds: see `WorkerMeters`.
        rows_recomputed: rows that only syncs and refreshes asked for, over all workers.
        staleness: age in steps of what workers read of peers' paths (see `staleness`); None where none was
            read.
    """

    mode: str
    every: int | None
    syncs: int
    payload_bytes: tuple[int, ...]
    wire_bytes: tuple[int, ...]
    blocked_seconds: MeanMax | None
    overlapped_seconds: MeanMax | None
    recompute_seconds: MeanMax | None
    compute_seconds: MeanMax | None
    rows_recomputed: int
    staleness: MeanMax | None

    @classmethod
    def of(cls, record: DecodeRecord, workers: Sequence[WorkerMeters]) -> SyncMetrics:
        """From a record and its workers' meters."""
        policy = config_of(record).sync
        return cls(
            mode=policy.mode,
            every=None if policy.mode in ("exact", "none") else policy.period,
            syncs=max((worker.syncs for worker in workers), default=0),
            payload_bytes=tuple(worker.payload_bytes for worker in workers),
            wire_bytes=tuple(worker.wire_bytes for worker in workers),
            blocked_seconds=MeanMax.of([worker.blocked_seconds for worker in workers]),
            overlapped_seconds=MeanMax.of([worker.overlapped_seconds for worker in workers]),
            recompute_seconds=MeanMax.of([worker.recompute_seconds for worker in workers]),
            compute_seconds=MeanMax.of([worker.compute_seconds for worker in workers]),
            rows_recomputed=sum(worker.rows_recomputed for worker in workers),
            staleness=staleness(record, policy),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMetrics:
    """Every meter of one canvas's decode.

    Attributes:
        nfe: runs of the network.
        tpf: content tokens per logical step that ran the network, never multiplied by workers; None without
            one.
        useful_tokens: content tokens: no end tag or EOS, nothing after it, no fill, no padding.
        useful_tokens_per_second: those over the batch's seconds: the sum over its canvases is the batch's
            throughput. None where no time passed.
        arness: how far it went from left to right.
        sync: what the talking cost (the batch's times and bytes).
        seconds: from the first step to the last report; `seconds_first_commit` to the first commit.
        steps: T, logical steps of the schedule.
        batch: canvases decoded together, among which times and bytes are to be shared out.
    """

    nfe: Nfe
    tpf: float | None
    useful_tokens: int
    useful_tokens_per_second: float | None
    arness: ArnessReport
    sync: SyncMetrics
    seconds: float
    seconds_first_commit: float
    steps: int
    batch: int

    @classmethod
    def of(cls, record: DecodeRecord, meters: RunMeters, *, k: int = 1) -> RunMetrics:
        """From a record and what its run metered; `k` is ARness's. Records from outside want `verify` first.

        Raises:
            RecordError: the record's config is malformed.
        """
        nfe = Nfe(
            steps=record.nfe_steps,
            critical=max(map(len, record.forwards), default=0),
            total=sum(map(len, record.forwards)),
            rows=sum(worker.rows_computed for worker in meters.workers),
        )
        content = content_mask(record)
        useful = int((content & (record.canvas() != record.layout.fill_id)).sum())
        return cls(
            nfe=nfe,
            tpf=int(content.sum()) / nfe.steps if nfe.steps else None,
            useful_tokens=useful,
            useful_tokens_per_second=useful / meters.seconds if meters.seconds > 0 else None,
            arness=ArnessReport.of_record(record, k=k),
            sync=SyncMetrics.of(record, meters.workers),
            seconds=meters.seconds,
            seconds_first_commit=meters.seconds_first_commit,
            steps=record.steps,
            batch=meters.batch,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values under the keys that `nap decode --json` prints."""
        return {
            "nfe": asdict(self.nfe),
            "tpf": self.tpf,
            "arness": self.arness.to_json(),
            "sync": _listed(asdict(self.sync)),
            "seconds": {"first_commit": self.seconds_first_commit, "total": self.seconds},
            "steps": self.steps,
            "batch": self.batch,
            "useful_tokens": self.useful_tokens,
            "useful_tokens_per_second": self.useful_tokens_per_second,
        }


def staleness(record: DecodeRecord, policy: SyncPolicy) -> MeanMax | None:
    """Age in steps of peers' paths when workers read them, over the path phase.

    One pair is a step at which a worker ran the network and a path of another worker; its age is that step −
    the step of the canvas that the worker's view of the path was computed from. Under `full` the worker's own
    rows read the path, under `hub` its shared rows do. Under `isolated`, and on one worker, nothing is read:
    None. The first step counts for nothing: every worker computes the masked canvas itself.
    """
    if policy.sees == "isolated":
        return None
    return MeanMax.of(list(_ages(record)))


def _ages(record: DecodeRecord) -> Iterator[int]:
    told = {event.step: event.sources for event in record.syncs}
    at_start = ((0,) * record.layout.n_paths,) * record.assignment.workers
    for worker, forwards in enumerate(record.forwards):
        peers = [path for path, owner in enumerate(record.assignment.worker_of) if owner != worker]
        ran, known = set(forwards), at_start
        for step in range(record.path_steps):
            known = told.get(step, known)
            if step > 0 and step in ran:
                yield from (step - min(known[worker][path], step) for path in peers)


def _listed(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
