"""A `DecodeResult` as protobuf, and back into plain values for clients."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration

from nap_runtime.decoding.record import VERSION as RECORD_VERSION
from nap_runtime.job import DecodeConfig, DecodeResult
from nap_runtime.metrics.report import MeanMax, RunMetrics
from nap_runtime.service.configs import config_to_proto
from nap_runtime.service.v1 import decoder_pb2 as pb


def result_to_proto(result: DecodeResult) -> pb.DecodeResult:
    """Everything but the record, which travels apart."""
    record = result.record
    message = pb.DecodeResult(
        answer_source=result.answer_source or "",
        summary=result.summary,
        paths=result.paths,
        tokens=record.final_ids.tolist(),
        unknown_words=result.unknown_words,
        metrics=_metrics(result.metrics),
        resolved_config=config_to_proto(DecodeConfig.from_mapping(record.config)),
        workers=record.assignment.workers,
        prompt_tokens=record.layout.prompt_tokens,
        record_version=RECORD_VERSION,
    )
    if result.answer is not None:
        message.answer = result.answer
    if result.correct is not None:
        message.correct = result.correct
    return message


def _metrics(metrics: RunMetrics) -> pb.RunMetrics:
    nfe, sync = metrics.nfe, metrics.sync
    message = pb.RunMetrics(
        steps=metrics.steps,
        nfe_steps=nfe.steps,
        nfe_critical=nfe.critical,
        nfe_total=nfe.total,
        rows_computed=nfe.rows,
        tpf=metrics.tpf or 0.0,
        useful_tokens_per_second=metrics.useful_tokens_per_second or 0.0,
        first_commit=duration(metrics.seconds_first_commit),
        total=duration(metrics.seconds),
        arness=_numbers("", metrics.arness.to_json()),
        sync=pb.SyncMeters(
            syncs=sync.syncs,
            payload_bytes=sync.payload_bytes,
            wire_bytes=sync.wire_bytes,
            rows_recomputed=sync.rows_recomputed,
        ),
    )
    for name in ("blocked_seconds", "overlapped_seconds", "recompute_seconds", "staleness"):
        value: MeanMax | None = getattr(sync, name)
        if value is not None:
            getattr(message.sync, name).CopyFrom(pb.MeanMax(mean=value.mean, max=value.max))
    return message


def _numbers(prefix: str, values: Any) -> dict[str, float]:
    """The numbers of nested mappings and lists, by dotted name."""
    if isinstance(values, bool) or values is None:
        return {}
    if isinstance(values, int | float):
        return {prefix: float(values)}
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    found: dict[str, float] = {}
    for key, value in items:
        found |= _numbers(f"{prefix}.{key}" if prefix else str(key), value)
    return found


def duration(seconds: float) -> Duration:
    """Seconds as protobuf."""
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message
