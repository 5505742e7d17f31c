"""Figures: what a result adds, and that the Grafana dashboard asks for nothing that is not counted."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client import generate_latest

from nap_runtime.service.figures import Figures
from nap_runtime.service.results import duration
from nap_runtime.service.v1 import decoder_pb2 as pb

DASHBOARD = Path(__file__).resolve().parents[2] / "cluster_configs" / "grafana" / "nap-runtime.json"


def test_a_result_is_counted_with_its_share_of_the_batch() -> None:
    figures = Figures()
    sync = pb.SyncMeters(syncs=8, payload_bytes=[100, 300], wire_bytes=[1000, 1000])
    sync.blocked_seconds.mean, sync.staleness.mean = 2.0, 3.0
    metrics = pb.RunMetrics(first_commit=duration(0.25), total=duration(4.0), sync=sync)
    figures.result(pb.DecodeResult(metrics=metrics), slots=24, batch=4)

    def value(name: str, **labels: str) -> float | None:
        return figures.registry.get_sample_value(name, labels)

    assert value("nap_tokens_total") == 24
    assert value("nap_syncs_total") == 2
    assert value("nap_sync_blocked_seconds_total") == 0.5
    assert value("nap_sync_bytes_total", kind="payload") == 100
    assert value("nap_sync_bytes_total", kind="wire") == 500
    assert (value("nap_first_commit_seconds_sum"), value("nap_decode_seconds_sum")) == (0.25, 4.0)
    assert value("nap_staleness_steps_bucket", le="4.0") == 1
    assert value("nap_staleness_steps_bucket", le="2.0") == 0


def test_the_dashboard_asks_for_what_is_counted() -> None:
    figures = Figures()
    figures.ended.labels("done").inc(0)
    figures.refused.labels("full").inc(0)
    figures.sync_bytes.labels("wire").inc(0)
    counted = set(re.findall(r"^(nap_\w+)", generate_latest(figures.registry).decode(), re.MULTILINE))
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = {name for panel in panels for t in panel["targets"] for name in re.findall(r"nap_\w+", t["expr"])}
    assert asked - counted == set()
    assert len(panels) >= 12
