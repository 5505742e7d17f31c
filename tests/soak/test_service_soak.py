"""Hours of a service's life in minutes: processes killed or frozen at random moments, and ten thousand jobs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from nap_runtime import api
from nap_runtime.errors import ServiceError
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.models.shapes import make_model_dir
from nap_runtime.service.client import AsyncClient, Client
from nap_runtime.service.local import LocalServer
from nap_runtime.service.v1 import decoder_pb2 as pb

pytestmark = [pytest.mark.soak, pytest.mark.timeout(0)]
PROMPTS = ("one two", "two one", "net ten", "ten net")
POLICIES = (SyncPolicy("exact"), SyncPolicy("tokens"), SyncPolicy("shared"))
SEED = 20261124
OUTSTANDING = 6


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "random"
    make_model_dir("llada-tiny", folder, seed=0, dtype=torch.float64, scale=10.0)
    return folder


def config_of(policy: SyncPolicy) -> DecodeConfig:
    return DecodeConfig(
        paths=3, path_tokens=24, summary_tokens=4, control_every=4, temperature=1.0, eos_weight=0.0, sync=policy
    )


class Load:
    """Submits jobs without end, compares every result, and keeps going whatever dies."""

    def __init__(self, address: str, expected: dict[tuple[str, str], tuple[int, ...]]) -> None:
        self._address, self._expected = address, expected
        self._stop = threading.Event()
        self.acknowledged: dict[str, tuple[str, str]] = {}
        self.ended: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Submit no more, wait for what was acknowledged."""
        self._stop.set()
        self._thread.join(300)
        assert not self._thread.is_alive(), "jobs are left"

    async def _run(self) -> None:
        async with AsyncClient(self._address, patience=240.0) as client:
            await asyncio.gather(*(self._one(client, number) for number in range(OUTSTANDING)))

    async def _one(self, client: AsyncClient, number: int) -> None:
        turn = 0
        while not self._stop.is_set():
            prompt, policy = PROMPTS[(turn + number) % len(PROMPTS)], POLICIES[turn % len(POLICIES)]
            turn += 1
            try:
                job = await client.submit(prompt, config_of(policy), key=f"{number}-{turn}")
                self.acknowledged[job.id] = (prompt, policy.mode)
                numbers = []
                async for event in client.watch(job.id):
                    numbers.append(event.number)
                if numbers != list(range(1, len(numbers) + 1)):
                    self.wrong.append(f"{job.id}: events {numbers}")
                tokens = (await client.result(job.id)).tokens
                self.ended[job.id] += 1
                if tokens != self._expected[prompt, policy.mode]:
                    self.wrong.append(f"{job.id}: other ids")
            except ServiceError as error:
                self.wrong.append(f"{type(error).__name__}: {error}")


def rounds_of(server: LocalServer, rng: random.Random, rounds: int, *, on_ray: bool) -> Counter[str]:
    """Strike so many times at random moments."""
    victims = ["server", "coordinator", "coordinator frozen"]
    victims += ["one worker", "one worker", "two workers", "worker frozen"] if on_ray else []
    struck: Counter[str] = Counter()
    with Client(server.address, patience=240.0) as client:
        while sum(struck.values()) < rounds:
            time.sleep(rng.uniform(0.2, 3.0))
            victim = rng.choice(victims)
            processes = busy_group(client)
            if victim == "server":
                server.kill()
                server.start()
            else:
                ranks = {"one worker": 1, "two workers": 2, "worker frozen": 1}.get(victim, 0)
                chosen = rng.sample(processes[1:], ranks) if ranks else processes[:1]
                sign = signal.SIGSTOP if "frozen" in victim else signal.SIGKILL
                if not all(hit(process, sign) for process in chosen):
                    continue
            struck[victim] += 1
    return struck


def busy_group(client: Client) -> list[int]:
    """Coordinator and workers of the group, once it is decoding."""
    while True:
        group = client.cluster().groups[0]
        if group.state == pb.GROUP_STATE_BUSY:
            return list(group.processes)
        time.sleep(0.05)


def hit(process: int, sign: signal.Signals) -> bool:
    """Signal a process; whether it was there and running, not dead or frozen by a round before."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        if state in ("T", "Z"):
            return False
        os.kill(process, sign)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return True


@pytest.mark.parametrize(("kind", "rounds"), [("threads", 70), ("ray", 30)])
def test_random_deaths_lose_nothing(model_dir: Path, tmp_path: Path, kind: str, rounds: int) -> None:
    rounds = int(os.environ.get("NAP_SOAK_ROUNDS", rounds))
    expected = {}
    for policy in POLICIES:
        found = api.decode(
            list(PROMPTS), config_of(policy), model=model_dir, workers=3, simulate=True, dtype="float64", batch_size=4
        )
        for prompt, result in zip(PROMPTS, found, strict=True):
            expected[prompt, policy.mode] = tuple(result.record.final_ids.tolist())
    journal = tmp_path / "jobs.db"
    options = ["--model", str(model_dir), "--dtype", "float64", "--threads", "1", "--workers", "3"]
    options += ["--spares", "1"] if kind == "ray" else ["--simulate"]
    options += ["--journal", str(journal), "--liveness", "4", "--tries", "6"]
    variables = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 4}', "RAY_ADDRESS": ""}
    began = time.monotonic()
    with LocalServer(options, environment=variables) as server:
        load = Load(server.address, expected)
        struck = rounds_of(server, random.Random(SEED), rounds, on_ray=kind == "ray")
        load.finish()
        recoveries = [e for e in server.events if e.get("event") == "group.recovered"]
        lost = [e for e in server.events if e.get("event") == "group.lost"]
    check_journal(journal, set(load.acknowledged))
    print(f"\n{kind}: {sum(struck.values())} rounds (seed {SEED}) in {time.monotonic() - began:.0f} s: {dict(struck)}")
    print(f"{len(load.acknowledged)} jobs acknowledged, {sum(load.ended.values())} ended, {len(load.wrong)} wrong")
    print(f"coordinators lost {len(lost)}, groups repaired {len(recoveries)} in {seconds_of(recoveries)}")
    assert load.wrong == []
    assert set(load.ended) == set(load.acknowledged)


def seconds_of(recoveries: list[dict[str, Any]]) -> str:
    times = sorted(entry["seconds"] for entry in recoveries)
    return f"{times[len(times) // 2]:.2f} s (median), {times[-1]:.2f} s (longest)" if times else "no time"


def check_journal(journal: Path, acknowledged: set[str]) -> None:
    """No acknowledged job is missing, none is unfinished, none has ended twice, no event number is."""
    with contextlib.closing(sqlite3.connect(journal)) as db:
        rows = db.execute("SELECT row, id, state FROM jobs").fetchall()
        assert acknowledged <= {job_id for _, job_id, _ in rows}
        for row, job_id, state in rows:
            events = db.execute("SELECT number, kind FROM events WHERE job = ? ORDER BY number", (row,)).fetchall()
            assert [number for number, _ in events] == list(range(1, len(events) + 1)), job_id
            assert [kind for _, kind in events].count("finished") == 1, job_id
            assert state == "done", (job_id, state)


# -- memory -----------------------------------------------------------------------------------------------------------


def resident(process: int) -> float:
    text = Path(f"/proc/{process}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def test_ten_thousand_jobs_do_not_fill_the_memory(model_dir: Path, tmp_path: Path) -> None:
    jobs = int(os.environ.get("NAP_SOAK_JOBS", 10_000))
    config = DecodeConfig(paths=3, path_tokens=3, summary_tokens=2, steps=3)
    options = ["--model", str(model_dir), "--threads", "1", "--journal", str(tmp_path / "jobs.db")]
    with LocalServer([*options, "--batch", "32", "--keep", "20", "--log-level", "warning"]) as server:

        async def run() -> list[tuple[float, float]]:
            sizes = []
            async with AsyncClient(server.address, patience=240.0) as client:
                coordinator = (await client.cluster()).groups[0].processes[0]
                for _ in range(jobs // 1000):
                    gate = asyncio.Semaphore(64)

                    async def one(number: int, gate: asyncio.Semaphore = gate) -> None:
                        async with gate:
                            await client.decode(f"q{number % 100:02d}", config)

                    await asyncio.gather(*(one(number) for number in range(1000)))
                    sizes.append((resident(server.process), resident(coordinator)))
            return sizes

        began = time.monotonic()
        sizes = asyncio.run(run())
    print(f"\n{jobs} jobs in {time.monotonic() - began:.0f} s; MB after each 1,000 (server, coordinator):")
    print(" ".join(f"{server:.0f}+{coordinator:.0f}" for server, coordinator in sizes))
    thousands = max(len(sizes) - 1, 1)
    for which, name in enumerate(("server", "coordinator")):
        grown = (sizes[-1][which] - sizes[0][which]) / thousands
        print(f"{name}: {grown:+.2f} MB per 1,000 jobs after the first 1,000")
        assert grown < 2.0
