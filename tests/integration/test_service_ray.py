"""`nap serve --workers 3` on Ray: workers, coordinator and server die or freeze, and every answer comes unchanged."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nap_runtime import api
from nap_runtime.auto import AutoSync
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.metrics.verify import verify
from nap_runtime.models.shapes import make_model_dir
from nap_runtime.service.answers import JobEvent, RolledBack, Update
from nap_runtime.service.client import Client
from nap_runtime.service.local import LocalServer

# One cluster at a time: with pytest-xdist this wants --dist loadfile.
pytestmark = pytest.mark.timeout(240)
LONG = DecodeConfig(paths=3, path_tokens=60, summary_tokens=4, control_every=2, temperature=1.0, eos_weight=0.0)
PROMPTS = ("one two", "two one")
LIVENESS = 3.0


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "random"
    make_model_dir("llada-tiny", folder, seed=0, dtype=torch.float64, scale=10.0)
    return folder


@pytest.fixture(scope="module")
def server(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    journal = tmp_path_factory.mktemp("journal") / "jobs.db"
    options = ["--model", str(model_dir), "--dtype", "float64", "--workers", "3", "--spares", "1"]
    variables = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 4}', "RAY_ADDRESS": ""}
    with LocalServer([*options, "--journal", str(journal), "--liveness", str(LIVENESS)], environment=variables) as made:
        yield made


def test_a_measured_link_decides(server: LocalServer) -> None:
    """First of the module: the group has measured what its three processes talk over as it came up."""
    with Client(server.address, patience=90.0) as client:
        job = client.submit(PROMPTS[0], LONG, auto=AutoSync())
        assert re.match(r"sync auto: .*, 3 workers measured [\d.]+ ms and \d+ MB/s: predicted overhead ", job.chosen)
        result = client.result(job.id, record=True)
    assert result.record is not None
    mode, _, every = job.sync.partition(" every ")
    found = result.record.config["sync"]
    assert (found["mode"], found.get("every")) == (mode, int(every) if every else None)


@pytest.fixture(scope="module")
def expected(model_dir: Path) -> Callable[[DecodeConfig], list[tuple[int, ...]]]:
    def ids(config: DecodeConfig) -> list[tuple[int, ...]]:
        found = api.decode(
            list(PROMPTS), config, model=model_dir, workers=3, simulate=True, dtype="float64", batch_size=2
        )
        return [tuple(result.record.final_ids.tolist()) for result in found]

    return ids


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def strike(server: LocalServer, config: DecodeConfig, hit: Callable[[list[int]], None], at: int = 20) -> Any:
    """Two jobs; `hit` gets coordinator and workers when the first has come to step `at`. Results and what was seen."""
    with Client(server.address, patience=90.0) as client:
        jobs = [client.submit(prompt, config) for prompt in PROMPTS]
        events: list[JobEvent] = []
        times: list[float] = []
        for event in client.watch(jobs[0].id):
            events.append(event)
            if not times and isinstance(event.body, Update) and event.body.last >= at:
                times.append(time.monotonic())
                hit(list(client.cluster().groups[0].processes))
            if len(times) == 1 and isinstance(event.body, RolledBack):
                times.append(time.monotonic())
        assert [event.number for event in events] == list(range(1, len(events) + 1))
        results = [client.result(job.id, record=True) for job in jobs]
        cluster = client.cluster()
    for result in results:
        verify(result.record)  # type: ignore[arg-type]
    rolled = [event.body for event in events if isinstance(event.body, RolledBack)]
    print(f"\nnoticed, repaired and going on after {times[1] - times[0]:.2f} s: {rolled}")
    return [result.tokens for result in results], rolled, cluster, times[1] - times[0]


CASES = [
    pytest.param([1], signal.SIGKILL, SyncPolicy("exact"), id="one-killed"),
    pytest.param([0, 2], signal.SIGKILL, SyncPolicy("tokens"), id="two-killed"),
    pytest.param([2], signal.SIGSTOP, SyncPolicy("shared"), id="one-frozen"),
]


@pytest.mark.parametrize(("ranks", "sign", "policy"), CASES)
def test_workers_that_die_or_freeze(
    server: LocalServer, expected: Any, ranks: list[int], sign: signal.Signals, policy: SyncPolicy
) -> None:
    config = LONG.with_values(sync=policy)

    def hit(processes: list[int]) -> None:
        for rank in ranks:
            os.kill(processes[1 + rank], sign)

    tokens, rolled, cluster, seconds = strike(server, config, hit)
    assert tokens == expected(config)
    assert rolled[0].step >= 20
    group = cluster.groups[0]
    assert group.restarts == 0
    assert group.last_recovery.ToMilliseconds() > 0
    recovered = server.last("group.recovered")
    assert recovered is not None
    assert recovered["weights"] in ("spare", "peer")
    assert set(ranks) <= set(recovered["lost"])
    assert seconds < 4 * LIVENESS + 5


@pytest.mark.soak  # on threads these are in test_service_faults.py; here each starts a Ray cluster again
@pytest.mark.parametrize("who", ["coordinator", "server"])
def test_who_leads_dies(server: LocalServer, expected: Any, who: str) -> None:
    config = LONG.with_values(sync=SyncPolicy("exact"))
    workers: list[int] = []

    def hit(processes: list[int]) -> None:
        workers.extend(processes[1:])
        if who == "coordinator":
            os.kill(processes[0], signal.SIGKILL)
        else:
            server.kill()
            server.start()

    tokens, rolled, _, _ = strike(server, config, hit)
    assert tokens == expected(config)
    assert rolled[0].step >= 20, "it goes on where it was journaled"
    deadline = time.monotonic() + 15
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers)), "workers of the dead are left"
