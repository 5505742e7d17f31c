"""What Prometheus is told. A registry of its own, so that several servers can live in one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from nap_runtime.service.v1 import decoder_pb2 as pb

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class Figures:
    """Counters, gauges and histograms of one server; `nap_` names, seconds and bytes."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        to: dict[str, Any] = {"registry": self.registry}
        self.submitted = Counter("nap_jobs_submitted", "Jobs acknowledged", **to)
        self.refused = Counter("nap_jobs_refused", "Submissions refused", ["reason"], **to)
        self.ended = Counter("nap_jobs_ended", "Jobs ended", ["state"], **to)
        self.queued = Gauge("nap_jobs_queued", "Jobs that wait", **to)
        self.running = Gauge("nap_jobs_running", "Jobs being decoded", **to)
        self.watchers = Gauge("nap_watchers", "Watch streams open", **to)
        self.batch = Histogram("nap_batch_jobs", "Jobs decoded together", buckets=(1, 2, 4, 8, 16, 32, 64), **to)
        self.waited = Histogram("nap_queue_seconds", "From submission to first attempt", buckets=_SECONDS, **to)
        self.first = Histogram("nap_first_commit_seconds", "Decode to its first commit", buckets=_SECONDS, **to)
        self.decode = Histogram("nap_decode_seconds", "Decode, of its batch", buckets=_SECONDS, **to)
        self.total = Histogram("nap_job_seconds", "From submission to end", buckets=_SECONDS, **to)
        self.tokens = Counter("nap_tokens", "Slots decoded", **to)
        self.syncs = Counter("nap_syncs", "Exchanges between workers", **to)
        self.sync_seconds = Counter("nap_sync_blocked_seconds", "Workers blocked by exchanges, mean over them", **to)
        self.sync_bytes = Counter("nap_sync_bytes", "Bytes that workers sent", ["kind"], **to)
        self.staleness = Histogram(
            "nap_staleness_steps", "Mean age of what workers read of peers", buckets=(0, 1, 2, 4, 8, 16, 32), **to
        )
        self.lost = Counter("nap_attempts_lost", "Attempts of jobs that were lost", **to)
        self.restarts = Counter("nap_group_restarts", "Coordinators started again", **to)
        self.recoveries = Counter("nap_worker_recoveries", "Groups repaired in the middle of a decode", **to)
        self.stragglers = Gauge("nap_stragglers", "Workers much slower than their peers", ["host"], **to)
        self.recovery_seconds = Histogram("nap_recovery_seconds", "Repair of a group", buckets=_SECONDS, **to)
        self.journal_errors = Counter("nap_journal_errors", "Writes that the journal could not do", **to)

    def result(self, result: pb.DecodeResult, slots: int, batch: int) -> None:
        """A job is done; what its batch did together is shared out."""
        metrics = result.metrics
        sync = metrics.sync
        self.first.observe(metrics.first_commit.ToNanoseconds() / 1e9)
        self.decode.observe(metrics.total.ToNanoseconds() / 1e9)
        self.tokens.inc(slots)
        self.syncs.inc(sync.syncs / batch)
        self.sync_seconds.inc(sync.blocked_seconds.mean / batch)
        for kind, sizes in (("payload", sync.payload_bytes), ("wire", sync.wire_bytes)):
            self.sync_bytes.labels(kind).inc(sum(sizes) / batch)
        if sync.HasField("staleness"):
            self.staleness.observe(sync.staleness.mean)

    def serve(self, host: str, port: int) -> int:
        """Answer Prometheus on a thread; the port that was taken."""
        server, _ = start_http_server(port, host, registry=self.registry)
        return int(server.server_port)

    def batch_began(self, waited: Sequence[float]) -> None:
        """A batch began; how long each job whose first attempt this is had waited."""
        self.batch.observe(max(len(waited), 1))
        for seconds in waited:
            self.waited.observe(max(seconds, 0.0))
