"""Deaths at every named place and of every process: no acknowledged job is lost, none ends twice, no id changes."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from nap_runtime import api
from nap_runtime.errors import JobFailedError, UnavailableError
from nap_runtime.job import DecodeConfig
from nap_runtime.metrics.verify import verify
from nap_runtime.models.loading import load_model, save_model
from nap_runtime.models.shapes import make_model_dir
from nap_runtime.service.answers import RolledBack, Update
from nap_runtime.service.client import Client
from nap_runtime.service.failpoints import POINTS
from nap_runtime.service.local import LocalServer

pytestmark = pytest.mark.timeout(180)
CONFIG = DecodeConfig(paths=3, path_tokens=12, summary_tokens=4, control_every=4, temperature=1.0)
LONG = CONFIG.with_values(path_tokens=60, eos_weight=0.0, control_every=2)
PROMPTS = ("one two", "two one", "net ten", "ten net")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights; the embedding of the letter x is no number, so that prompts with an x are poison."""
    folder = tmp_path_factory.mktemp("models") / "random"
    make_model_dir("llada-tiny", folder, seed=0, dtype=torch.float64, scale=10.0)
    model = load_model(folder, dtype=torch.float64)
    size = model.config.vocab_size
    embedding, head = (p for p in model.model.parameters() if p.shape[0] == size)
    with torch.no_grad():
        embedding[ord("x") % size] = torch.nan
        head[ord("x") % size] = 0.0  # so that it is never decoded by itself
    save_model(model.model, model.config, folder)
    return folder


@pytest.fixture(scope="module")
def expected(model_dir: Path) -> Callable[[str, DecodeConfig], tuple[int, ...]]:
    known: dict[tuple[str, int], tuple[int, ...]] = {}

    def ids(prompt: str, config: DecodeConfig) -> tuple[int, ...]:
        key = (prompt, int(str(config.path_tokens)))
        if key not in known:
            result = api.decode(prompt, config, model=model_dir, dtype="float64")
            known[key] = tuple(result.record.final_ids.tolist())
        return known[key]

    return ids


def options(model_dir: Path, journal: Path, *more: str) -> list[str]:
    base = ["--model", str(model_dir), "--dtype", "float64", "--threads", "1", "--journal", str(journal)]
    return [*base, "--liveness", "3", *more]


@pytest.fixture(scope="module")
def server(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    journal = tmp_path_factory.mktemp("journal") / "jobs.db"
    with LocalServer(options(model_dir, journal, "--workers", "3", "--simulate")) as started:
        yield started


def check_journal(journal: Path, jobs: set[str]) -> None:
    """Every acknowledged job ended exactly once, and its events are numbered without a gap."""
    with contextlib.closing(sqlite3.connect(journal)) as db:
        rows = db.execute("SELECT row, id, state FROM jobs").fetchall()
        assert jobs <= {job_id for _, job_id, _ in rows}
        for row, job_id, state in rows:
            events = db.execute("SELECT number, kind FROM events WHERE job = ? ORDER BY number", (row,)).fetchall()
            assert [number for number, _ in events] == list(range(1, len(events) + 1))
            assert [kind for _, kind in events].count("finished") == 1, job_id
            assert state == "done"


def test_every_failpoint_kills_once_and_nothing_is_lost(model_dir: Path, tmp_path: Path, expected: Any) -> None:
    """A chain: the server dies at one place, is started again with the next armed, until all have been met."""
    journal = tmp_path / "jobs.db"
    of_server = [point for point in POINTS if not point.startswith("group.")]
    of_group = [point for point in POINTS if point.startswith("group.")]
    environments = [{"NAP_FAILPOINTS": f"{point}=kill"} for point in of_server]
    environments += [{"NAP_FAILPOINTS": ",".join(f"{point}=kill" for point in of_group)}]
    server = LocalServer(options(model_dir, journal))
    server.start(environment=environments[0])
    codes: list[int] = []

    def restart() -> None:
        for environment in environments[1:]:
            codes.append(server.wait(120))
            server.start(environment=environment)

    restarting = threading.Thread(target=restart, daemon=True)
    restarting.start()
    acknowledged: dict[str, str] = {}
    with Client(server.address, patience=60.0) as client:
        for number in count():
            prompt = PROMPTS[number % len(PROMPTS)]
            job = client.submit(prompt, CONFIG, key=f"k{number}")
            acknowledged[job.id] = prompt
            events = list(client.watch(job.id))
            assert [event.number for event in events] == list(range(1, len(events) + 1))
            if len(codes) == len(of_server) and not restarting.is_alive():
                break
        for number in range(2):
            acknowledged[client.submit(PROMPTS[number], CONFIG).id] = PROMPTS[number]
        for job_id, prompt in acknowledged.items():
            result = client.result(job_id, record=True)
            assert result.tokens == expected(prompt, CONFIG)
            verify(result.record)  # type: ignore[arg-type]
        groups = client.cluster().groups
    assert codes == [-signal.SIGKILL] * len(of_server)
    assert groups[0].restarts == len(of_group)
    server.stop()
    check_journal(journal, set(acknowledged))


def struck(server: LocalServer, expected: Any, strike: Callable[[Client], None], at: int = 12) -> list[Any]:
    """Submit long jobs, strike in the middle of the first, and check that all end as if nothing had been."""
    with Client(server.address, patience=60.0) as client:
        jobs = {client.submit(prompt, LONG).id: prompt for prompt in PROMPTS[:2]}
        first, hit, events = next(iter(jobs)), False, []
        for event in client.watch(first):
            events.append(event)
            if not hit and isinstance(event.body, Update) and event.body.last >= at:
                hit = True
                strike(client)
        assert [event.number for event in events] == list(range(1, len(events) + 1))
        for job_id, prompt in jobs.items():
            assert client.result(job_id).tokens == expected(prompt, LONG)
        rolled = [event.body for event in events if isinstance(event.body, RolledBack)]
        assert rolled
        assert all(body.step >= at for body in rolled), "it goes on where all had reported"
    return rolled


def coordinator(client: Client) -> int:
    return int(client.cluster().groups[0].processes[0])


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP], ids=lambda sign: sign.name)
def test_a_coordinator_that_dies_or_freezes(server: LocalServer, expected: Any, sign: signal.Signals) -> None:
    began: list[float] = []

    def strike(client: Client) -> None:
        began.append(time.time())
        os.kill(coordinator(client), sign)

    struck(server, expected, strike)
    lost = server.last("group.lost")
    assert lost is not None
    says = "SIGKILL" if sign == signal.SIGKILL else "not answered for 3 s"
    assert says in lost["reason"]


def test_the_server_is_killed_and_its_groups_go_with_it(server: LocalServer, expected: Any) -> None:
    orphans: list[int] = []

    def strike(client: Client) -> None:
        orphans.append(coordinator(client))
        server.kill()
        server.start()

    struck(server, expected, strike)
    assert not Path(f"/proc/{orphans[0]}").exists()


# -- poison -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("action", "says"), [("kill", "died (SIGKILL)"), ("memory", "MemoryError")])
def test_a_poison_job_fails_alone(model_dir: Path, tmp_path: Path, expected: Any, action: str, says: str) -> None:
    """It crashes whatever decodes it, each time; the jobs that share its first batches end as they should."""
    poison = {"NAP_FAILPOINTS": f"group.before_run={action}~bad"}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(LocalServer(options(model_dir, tmp_path / "jobs.db"), environment=poison))
        with Client(server.address, patience=60.0) as client:
            blocker = client.submit("one two", LONG)
            good = {client.submit(prompt, CONFIG).id: prompt for prompt in PROMPTS[:2]}
            bad = client.submit("bad one", CONFIG)
            good |= {client.submit(prompt, CONFIG).id: prompt for prompt in PROMPTS[2:]}
            client.cancel(blocker.id)
            with pytest.raises(JobFailedError) as caught:
                client.result(bad.id)
            assert says in str(caught.value)
            assert "3 attempts without progress" in str(caught.value)
            assert client.get(bad.id).attempt == 3
            for job_id, prompt in good.items():
                assert client.result(job_id).tokens == expected(prompt, CONFIG)


def test_scores_that_are_no_numbers_say_so(server: LocalServer, expected: Any) -> None:
    with Client(server.address, patience=60.0) as client:
        blocker = client.submit("one two", LONG)
        jobs = [client.submit(prompt, CONFIG) for prompt in ("one two", "six xxx", "two one")]
        client.cancel(blocker.id)
        with pytest.raises(JobFailedError, match="NaN logits"):
            client.result(jobs[1].id)
        assert client.result(jobs[0].id).tokens == expected("one two", CONFIG)
        assert client.result(jobs[2].id).tokens == expected("two one", CONFIG)
        assert client.get(jobs[1].id).attempt == 1, "to try again would change nothing"


# -- the journal's disk -----------------------------------------------------------------------------------------------


def test_a_full_disk_refuses_and_recovers(model_dir: Path, expected: Any) -> None:
    """A journal on a file system of 8 MiB that something else fills up."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(small_disk())
        server = stack.enter_context(LocalServer(options(model_dir, folder / "jobs.db")))
        client = stack.enter_context(Client(server.address, patience=0.0))
        patient = stack.enter_context(Client(server.address, patience=60.0))
        running = client.submit("one two", LONG)
        next(event for event in client.watch(running.id) if isinstance(event.body, Update))
        filler = folder / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        with pytest.raises(UnavailableError, match=r"jobs\.db.*full"):  # noqa: PT012
            for number in range(200):
                client.submit("one two", CONFIG, key=f"full {number}")
        assert server.running
        deadline = time.monotonic() + 30  # its log is read beside it
        while server.last("journal.trouble") is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(4.0)  # longer than the group may be silent
        assert client.get(running.id).state == "running", "its reports wait for room"
        assert server.last("group.lost") is None
        filler.unlink()
        assert patient.submit("two one", CONFIG).state == "queued"
        assert patient.result(running.id).tokens == expected("one two", LONG)


@contextlib.contextmanager
def small_disk() -> Iterator[Path]:
    import ctypes
    import tempfile

    libc = ctypes.CDLL(None, use_errno=True)
    folder = tempfile.mkdtemp()
    if libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, b"size=8m") != 0:
        os.rmdir(folder)
        pytest.skip("a file system of its own can be mounted by root only")
    try:
        yield Path(folder)
    finally:
        libc.umount2(folder.encode(), 2)
        os.rmdir(folder)


def test_a_frozen_coordinator_does_not_outlive_its_server(server: LocalServer) -> None:
    with Client(server.address, patience=60.0) as client:
        process = coordinator(client)
        os.kill(process, signal.SIGSTOP)
        server.kill()
        deadline = time.monotonic() + 10
        while Path(f"/proc/{process}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not Path(f"/proc/{process}").exists()
    server.start()
