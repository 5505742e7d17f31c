"""Prometheus and Grafana files. With Debian's `prometheus` installed: promtool, and a real Prometheus that scrapes."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest

from nap_runtime.service.figures import Figures

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "cluster_configs"
DASHBOARD = json.loads((CONFIGS / "grafana" / "nap-runtime.json").read_text())
EXPRESSIONS = sorted({target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]})
RULES = [rule for group in yaml.safe_load((CONFIGS / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
needs_prometheus = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("prometheus") is None,
    reason="no Prometheus here (Debian: apt-get install prometheus)",
)


def test_alerts_ask_for_what_is_counted() -> None:
    figures = Figures()
    figures.refused.labels("full").inc(0)
    counted = set(re.findall(r"^(nap_\w+)", generate_latest(figures.registry).decode(), re.MULTILINE))
    asked = {name for rule in RULES for name in re.findall(r"nap_\w+", rule["expr"])}
    assert asked
    assert asked <= counted


def test_every_alert_has_a_severity_a_summary_and_a_line_in_the_page() -> None:
    page = (ROOT / "docs" / "cluster" / "monitoring.md").read_text()
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
        assert rule["alert"] in page


def test_grafana_finds_the_source_and_the_dashboard() -> None:
    """The keys are those that Grafana's provisioning documents; Grafana itself is not run here."""
    sources = yaml.safe_load((CONFIGS / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    boards = yaml.safe_load((CONFIGS / "grafana/provisioning/dashboards/nap.yaml").read_text())
    assert sources["apiVersion"] == boards["apiVersion"] == 1
    (source,), (provider,) = sources["datasources"], boards["providers"]
    assert {"name", "type", "access", "url"} <= set(source)
    assert source["url"] == "http://127.0.0.1:9090"
    assert provider["options"]["path"] == "$NAP_GRAFANA"
    assert all(panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for panel in DASHBOARD["panels"])


@needs_prometheus
@pytest.mark.parametrize(
    "command",
    [
        "promtool check config cluster_configs/prometheus.yml",
        "promtool test rules tests/data/alerts.test.yml",  # alerts fire when they should, and not before
    ],
)
def test_promtool_agrees(command: str) -> None:
    done = subprocess.run(command.split(), cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


Ask = Callable[[str], Any]


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Ask]:
    """A Prometheus under our configuration, but for the server's port and the pace; a function that queries it."""
    figures = Figures()
    figures.queued.set(7)
    port, own = figures.serve("127.0.0.1", 0), free_port()
    config = yaml.safe_load((CONFIGS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "200ms"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    config["rule_files"] = [str(CONFIGS / "alerts.yml")]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = ["prometheus", f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}",
               f"--web.listen-address=127.0.0.1:{own}"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ask(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{own}/api/v1/{path}", timeout=5) as answer:
            return json.load(answer)["data"]

    try:
        yield ask
    finally:
        process.terminate()
        process.wait(20)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def eventually(ask: Callable[[], Any], seconds: float = 20.0) -> Any:
    """The first true answer; connections that are refused meanwhile do not count."""
    end = time.monotonic() + seconds
    while True:
        try:
            if found := ask():
                return found
        except OSError:
            pass
        assert time.monotonic() < end, "no answer in time"
        time.sleep(0.1)


@needs_prometheus
def test_prometheus_scrapes_the_server_and_answers_every_panel(prometheus: Ask) -> None:
    waiting = eventually(lambda: prometheus("query?query=nap_jobs_queued")["result"])
    assert waiting[0]["value"][1] == "7"
    assert waiting[0]["metric"]["job"] == "nap"
    for expression in EXPRESSIONS:
        assert prometheus(f"query?query={urllib.parse.quote(expression)}")["resultType"] == "vector"
    rules = eventually(lambda: prometheus("rules")["groups"])[0]["rules"]
    assert {rule["name"] for rule in rules} == {rule["alert"] for rule in RULES}
    assert all(rule["health"] != "err" for rule in rules)
