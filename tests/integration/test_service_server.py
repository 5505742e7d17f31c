"""A real server process and real clients: jobs, streams, keys, lists, cancels, deadlines, limits, restarts, drain."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nap_runtime import api
from nap_runtime.auto import AutoSync
from nap_runtime.errors import (
    BusyError,
    JobFailedError,
    KeyConflictError,
    NoSuchJobError,
    NotBuiltError,
    UnavailableError,
    UsageError,
)
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.metrics.verify import verify
from nap_runtime.models.shapes import make_model_dir
from nap_runtime.service.answers import Finished, JobEvent, LaidOut, LiveAnswer, RolledBack, StateChanged, Update
from nap_runtime.service.client import AsyncClient, Client
from nap_runtime.service.deltas import apply_deltas
from nap_runtime.service.local import LocalServer
from nap_runtime.service.v1 import decoder_pb2 as pb
from nap_runtime.service.v1 import decoder_pb2_grpc as rpc
from nap_runtime.storage import Storage

pytestmark = pytest.mark.timeout(120)
SMALL = DecodeConfig(paths=3, path_tokens=6, summary_tokens=4, control_every=2)
LONG = DecodeConfig(paths=3, path_tokens=60, summary_tokens=4, control_every=1, eos_weight=0.0)
SHIRT = "A shirt costs $50 and is on sale for 20% off. What is the final price?"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "random"
    make_model_dir("llada-tiny", folder, seed=0, dtype=torch.float64, scale=10.0)
    return folder


@pytest.fixture(scope="module")
def start(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., LocalServer]]:
    """`(*options)` → a server with a journal of its own, on the random model in float64."""
    servers: list[LocalServer] = []

    def make(*options: str, model: str | None = None, **more: Any) -> LocalServer:
        journal = tmp_path_factory.mktemp("journal") / "jobs.db"
        base = ["--model", model or str(model_dir), "--dtype", "float64", "--threads", "1", "--journal", str(journal)]
        server = LocalServer([*base, *options], **more)
        server.start()
        servers.append(server)
        return server

    yield make
    for server in servers:
        if server.running:
            server.kill()


@pytest.fixture(scope="module")
def server(start: Callable[..., LocalServer]) -> LocalServer:
    return start("--workers", "3", "--simulate", "--log-level", "debug")


@pytest.fixture
def client(server: LocalServer) -> Iterator[Client]:
    with Client(server.address, patience=10.0) as opened:
        yield opened


def replay(events: list[JobEvent]) -> list[int]:
    """The canvas that the committed updates give."""
    ids = np.zeros(0, dtype=np.int64)
    for event in events:
        if isinstance(event.body, LaidOut):
            ids = np.array(event.body.ids, dtype=np.int64)
        elif isinstance(event.body, Update) and event.body.committed:
            apply_deltas(ids, event.body.deltas)
    return ids.tolist()


# -- one job ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [SyncPolicy("exact"), SyncPolicy("kv", every=2)], ids=lambda p: p.mode)
def test_a_job_gives_what_decode_gives(client: Client, model_dir: Path, policy: SyncPolicy) -> None:
    config = SMALL.with_values(sync=policy, temperature=1.0, seed=3)
    job = client.submit("one two", config, name="n1", gold="7", labels={"test": "decode"})
    assert (job.state, job.existed, job.name) == ("queued", False, "n1")
    events = list(client.watch(job.id))
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert [e.body.state for e in events if isinstance(e.body, StateChanged)] == ["queued", "running"]
    result = client.result(job.id, record=True)
    local = api.decode("one two", config, model=model_dir, workers=3, simulate=True, dtype="float64")
    assert list(result.tokens) == local.record.final_ids.tolist() == replay(events)
    assert (result.summary, result.paths, result.answer) == (local.summary, local.paths, local.answer)
    assert result.correct is False
    assert result.record is not None
    verify(result.record)
    assert [entry[:4] for entry in result.record.order()] == [entry[:4] for entry in local.record.order()]
    assert result.metrics["nfe_steps"] == local.metrics.nfe.steps
    updates = [event.body for event in events if isinstance(event.body, Update)]
    assert [update.first for update in updates] == [0, *(update.last + 1 for update in updates[:-1])]
    assert isinstance(events[-1].body, Finished)
    assert events[-1].body.result is not None
    assert events[-1].body.result.tokens == result.tokens


def test_a_group_holds_numbers_as_asked(start: Callable[..., LocalServer], model_dir: Path) -> None:
    server, config = start("--weights", "fp8", "--kv", "fp8"), SMALL.with_values(temperature=1.0, seed=3)
    with Client(server.address, patience=10.0) as client:
        result = client.result(client.submit("one two", config).id, record=True)
        (model,) = client.cluster().models
    storage = Storage(weights="fp8", kv="fp8")
    local = api.decode("one two", config, model=model_dir, dtype="float64", storage=storage)
    assert list(result.tokens) == local.record.final_ids.tolist()
    assert result.record is not None
    assert result.record.model == local.record.model
    assert (model.dtype, model.weights, model.kv) == ("float64", "fp8", "fp8")


def test_the_server_chooses_a_sync(
    start: Callable[..., LocalServer], model_dir: Path, nap: Callable[..., tuple[int, str, str]]
) -> None:
    server = start("--workers", "3", "--simulate", "--link", "wan")
    with Client(server.address, patience=10.0) as client:
        job = client.submit("one two", SMALL, key="auto-1", auto=AutoSync(overhead=0.2))
        assert job.chosen.startswith("sync auto: none, 3 workers over link wan: predicted overhead ")
        assert "nothing stays below 20 %" in job.chosen
        config = SMALL.with_values(sync=SyncPolicy("none"))
        local = api.decode("one two", config, model=model_dir, workers=3, simulate=True, dtype="float64")
        assert list(client.result(job.id).tokens) == local.record.final_ids.tolist()
        assert (job.sync, client.get(job.id).sync) == ("none", "none")
        again = client.submit("one two", SMALL, key="auto-1", auto=AutoSync(overhead=0.2))
        assert (again.id, again.existed, again.chosen, again.sync) == (job.id, True, "", "none")
        with pytest.raises(KeyConflictError):
            client.submit("one two", SMALL, key="auto-1")
    line = (server.address, "submit", "--sync", "auto", "--path-tokens", "8", "--idempotency-key", "k", "one two")
    for said in ("sync auto: none, 3 workers over link wan: ", "sync auto: none, chosen when it was first submitted"):
        code, _, err = nap(*line)
        assert code == 0, err
        assert err.startswith(f"nap: {said}")
        assert err.count("\n") == 1


def test_the_stream_begins_with_the_first_commits(client: Client) -> None:
    """The first tokens are there long before the end: after the first step, not after R of them."""
    config = LONG.with_values(control_every=64)
    job = client.submit("one two", config)
    seen = [(event.body.first, event.body.last) for event in client.watch(job.id) if isinstance(event.body, Update)]
    assert seen[:2] == [(0, 0), (1, 1)]


def test_provisional_updates_come_when_asked_for(client: Client) -> None:
    job = client.submit("one two", LONG)
    events = list(client.watch(job.id, provisional=True))
    provisional = [event for event in events if isinstance(event.body, Update) and not event.body.committed]
    assert provisional
    assert {event.number for event in provisional} == {0}
    numbered = [event.number for event in events if event.number]
    assert numbered == list(range(1, numbered[-1] + 1))


def test_live_answers_come_beside_the_updates(client: Client) -> None:
    job = client.submit("one two", LONG.with_values(path_tokens=20, sync=SyncPolicy("tokens", every=4, summary="live")))
    events = list(client.watch(job.id, provisional=True))
    live = [event.body for event in events if isinstance(event.body, LiveAnswer)]
    assert len(live) > 2
    assert [body.step for body in live] == sorted({body.step for body in live})
    assert all(body.step % 4 == 0 for body in live)
    assert replay(events) == list(client.result(job.id).tokens)


def test_watching_goes_on_after_any_event(client: Client) -> None:
    job = client.submit("one two", SMALL)
    whole = list(client.watch(job.id))
    for after in (0, 3, whole[-1].number - 1):
        assert [event.number for event in client.watch(job.id, after=after)] == [
            event.number for event in whole if event.number > after
        ]
    with pytest.raises(UsageError, match="after_event"):
        list(client.watch(job.id, after=10_000))


def test_token_ids_are_a_prompt_too(client: Client) -> None:
    text = client.decode("ab", SMALL)
    ids = client.decode([97 % 96, 98 % 96], SMALL)  # type: ignore[arg-type]
    assert ids.tokens == text.tokens
    with pytest.raises(UsageError, match="below"):
        client.submit([100_000], SMALL)


# -- keys, lists, cancels, deadlines ----------------------------------------------------------------------------------


def test_a_key_runs_once(client: Client, server: LocalServer) -> None:
    first = client.submit("one two", SMALL, key="once")
    assert client.submit("one two", SMALL, key="once").existed
    assert client.submit("one two", SMALL, key="once").id == first.id
    with pytest.raises(KeyConflictError):
        client.submit("two one", SMALL, key="once")
    client.result(first.id)
    assert client.submit("one two", SMALL, key="once").state == "done"
    began = [e for e in server.events if e["event"] == "job.running" and e["job"] == first.id]
    assert len(began) == 1


def test_lists_are_paged_and_filtered(client: Client) -> None:
    ids = [client.submit(f"q{n}", SMALL, labels={"list": "me", "n": str(n % 2)}).id for n in range(5)]
    for job_id in ids:
        client.result(job_id)
    assert [job.id for job in client.list(labels={"list": "me"})] == ids[::-1]
    assert [job.id for job in client.list(labels={"list": "me", "n": "1"})] == [ids[3], ids[1]]
    assert client.list(labels={"list": "me"}, states=["failed"]) == []
    stub = rpc.DecoderStub(grpc.insecure_channel(client.address))
    labels = {"list": "me"}
    page = stub.List(pb.ListRequest(page_size=2, labels=labels))
    assert [job.id for job in page.jobs] == [ids[4], ids[3]]
    page = stub.List(pb.ListRequest(page_size=2, labels=labels, page_token=page.next_page_token))
    assert [job.id for job in page.jobs] == [ids[2], ids[1]]
    for token, filters in ((page.next_page_token, {"other": "x"}), ("rubbish", labels), ("AAAA", labels)):
        with pytest.raises(grpc.RpcError) as caught:
            stub.List(pb.ListRequest(page_token=token, labels=filters))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_running_job_is_cancelled_at_the_next_control_word(client: Client, server: LocalServer) -> None:
    job = client.submit("one two", LONG)
    stream = client.watch(job.id)
    next(event for event in stream if isinstance(event.body, Update))
    began = time.monotonic()
    assert client.cancel(job.id, "changed my mind").state == "cancelled"
    last = list(stream)[-1].body
    assert isinstance(last, Finished)
    assert (last.job.state, last.job.error, last.result) == ("cancelled", "changed my mind", None)
    with pytest.raises(JobFailedError, match="changed my mind") as caught:
        client.result(job.id)
    assert (caught.value.state, caught.value.code) == ("cancelled", "cancelled")
    client.decode("one two", SMALL)  # the workers are free again at once
    assert time.monotonic() - began < 5
    assert client.cancel(job.id).error == "changed my mind"


def test_deadlines_end_jobs_that_run_and_jobs_that_wait(client: Client) -> None:
    running = client.submit("one two", LONG.with_values(path_tokens=155), within=0.4)
    waiting = client.submit("two one", SMALL, within=0.2, priority=-5)
    for job in (waiting, running):
        with pytest.raises(JobFailedError, match="deadline") as caught:
            client.result(job.id)
        assert (caught.value.state, caught.value.code) == ("expired", "deadline-exceeded")
    with pytest.raises(UsageError, match="deadline"):
        client.submit("one two", SMALL, within=-1)
    with pytest.raises(UsageError, match="deadline"):
        client.submit("one two", SMALL, within=1e9)
    for seconds in (float("nan"), float("inf"), -1e300):
        with pytest.raises(UsageError, match=r"within: .* is not a number of seconds"):
            client.submit("one two", SMALL, within=seconds)


def test_unknown_jobs(client: Client) -> None:
    for call in (client.get, client.cancel, client.result):
        with pytest.raises(NoSuchJobError):
            call("no-such-job")


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "config", "field"),
    [
        (" ", SMALL, "prompt"),
        ("x" * 300_000, SMALL, "prompt"),
        ("x" * 20_000, SMALL, "prompt"),
        ("one", SMALL.with_values(path_tokens=100_000), "path_tokens"),
        ("one", SMALL.with_values(paths=2), "workers"),
        ("one", SMALL.with_values(steps=20_000), "steps"),
        ("one", SMALL.with_values(headers="text"), "headers"),
        ("one", DecodeConfig(layout="plain", gen_length=10**6), "gen_length"),
    ],
)
def test_wrong_jobs_name_their_field(client: Client, prompt: str, config: DecodeConfig, field: str) -> None:
    with pytest.raises(UsageError) as caught:
        client.submit(prompt, config)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_a_headers_file_is_not_sent(client: Client) -> None:
    with pytest.raises(UsageError, match="headers"):
        client.submit("one", SMALL.with_values(headers="/etc/passwd"))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda r: r.ClearField("idempotency_key"), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda r: setattr(r, "idempotency_key", "k" * 129), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda r: setattr(r, "priority", 101), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda r: r.labels.update({"k" * 65: ""}), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda r: setattr(r.spec.config, "version", 0), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda r: setattr(r.spec.config, "version", 99), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda r: setattr(r.spec, "model", "/etc"), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda r: setattr(r.spec, "workers", 2), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda r: setattr(r.spec.config, "rule", 77), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda r: setattr(r.spec.config, "temperature", float("nan")), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda r: setattr(r.spec.config, "seed", 2**64 - 1), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda r: r.spec.ClearField("prompt"), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda r: r.spec.config.headers.texts.paths.append("x"), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda r: setattr(r.deadline, "nanos", -1), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda r: setattr(r.deadline, "seconds", 2**62), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda r: setattr(r.spec, "gold", "g" * 5000), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_hostile_requests_are_refused(server: LocalServer, change: Any, code: grpc.StatusCode) -> None:
    stub = rpc.DecoderStub(grpc.insecure_channel(server.address))
    spec = pb.JobSpec(prompt=pb.Prompt(text="one"), config=pb.DecodeConfig(version=1))
    request = pb.SubmitRequest(idempotency_key="hostile", spec=spec)
    change(request)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Submit(request)
    assert caught.value.code() is code


def test_large_messages_are_refused(server: LocalServer) -> None:
    stub = rpc.DecoderStub(grpc.insecure_channel(server.address))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Submit(pb.SubmitRequest(idempotency_key="k", spec=pb.JobSpec(prompt=pb.Prompt(text="x" * (2 << 20)))))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_not_built_is_told_apart(client: Client) -> None:
    assert issubclass(NotBuiltError, UsageError)


# -- batches, queue ---------------------------------------------------------------------------------------------------


def test_compatible_jobs_decode_together_with_unchanged_ids(client: Client, server: LocalServer) -> None:
    prompts = {n: f"q{n}" + " q" * (n % 3) for n in range(6)}  # of three lengths
    alone = {n: client.decode(prompt, SMALL).tokens for n, prompt in prompts.items()}
    blocker = client.submit("one two", LONG)
    jobs = {n: client.submit(prompt, SMALL, labels={"together": "1"}) for n, prompt in prompts.items()}
    client.cancel(blocker.id)
    for n, job in jobs.items():
        result = client.result(job.id, record=True)
        assert result.tokens == alone[n]
    assert int(result.metrics["nfe_steps"]) > 0
    running = {e["job"]: e["time"] for e in server.events if e["event"] == "job.running"}
    assert len({running[job.id][:21] for job in jobs.values()}) <= 2, "they did not begin together"


def test_a_full_queue_says_when_to_come_again(start: Callable[..., LocalServer]) -> None:
    server = start("--queue", "3", "--batch", "1")
    with Client(server.address, patience=0.0) as hasty, Client(server.address, patience=60.0) as patient:
        blocker = hasty.submit("one two", LONG.with_values(path_tokens=155), key="blocker")
        next(event for event in hasty.watch(blocker.id) if isinstance(event.body, Update))
        waiting = [hasty.submit("one two", SMALL, key=f"w{n}") for n in range(3)]
        with pytest.raises(BusyError, match="queue is full") as caught:
            hasty.submit("one two", SMALL, key="w3")
        assert 0 < caught.value.retry_after <= 10
        assert hasty.submit("one two", SMALL, key="w0").existed, "a full queue still knows its jobs"
        threading.Timer(0.5, lambda: patient.cancel(blocker.id)).start()
        assert patient.submit("one two", SMALL, key="w3").state == "queued"
        assert all(patient.result(job.id).tokens for job in waiting)
    server.stop()


def test_two_groups_decode_side_by_side(start: Callable[..., LocalServer]) -> None:
    server = start("--groups", "2", "--batch", "1")
    with Client(server.address, patience=30.0) as client:
        jobs = [client.submit(prompt, LONG) for prompt in ("one two", "two one", "six ten")]
        streams = [client.watch(job.id) for job in jobs[:2]]
        for stream in streams:
            next(event for event in stream if isinstance(event.body, Update))
        assert [len(group.job_ids) for group in client.cluster().groups] == [1, 1]
        assert client.get(jobs[2].id).state == "queued"
        assert [len(client.result(job.id).tokens) for job in jobs]
    server.kill()


# -- restart, drain, health -------------------------------------------------------------------------------------------


def health_of(address: str) -> Any:
    stub = health_pb2_grpc.HealthStub(grpc.insecure_channel(address))
    return stub.Check(health_pb2.HealthCheckRequest(service="nap.v1.Decoder")).status


def test_a_killed_server_goes_on_where_it_was(start: Callable[..., LocalServer], model_dir: Path) -> None:
    """Killed in the middle of a stream: no event is missing or repeated, ids are those of an undisturbed decode."""
    server = start("--workers", "3", "--simulate")
    config = LONG.with_values(temperature=1.0, path_tokens=40, control_every=4)
    with Client(server.address, patience=60.0) as client:
        jobs = [client.submit(prompt, config) for prompt in ("one two", "two one", "six ten")]
        events: list[JobEvent] = []
        killed = False
        for event in client.watch(jobs[0].id):
            events.append(event)
            if not killed and isinstance(event.body, Update) and event.body.last >= 20:
                killed = True
                server.kill()
                server.start()
        assert [event.number for event in events] == list(range(1, len(events) + 1))
        rolled = [event.body.step for event in events if isinstance(event.body, RolledBack)]
        assert rolled
        assert rolled[0] >= 20, "it goes on, it does not begin anew"
        for prompt, job in zip(("one two", "two one", "six ten"), jobs, strict=True):
            result = client.result(job.id, record=True)
            local = api.decode(prompt, config, model=model_dir, workers=3, simulate=True, dtype="float64")
            assert list(result.tokens) == local.record.final_ids.tolist()
            assert result.record is not None
            verify(result.record)
        assert replay(events) == list(client.result(jobs[0].id).tokens)
    assert health_of(server.address) == health_pb2.HealthCheckResponse.SERVING
    assert server.stop() == 0


def test_sigterm_drains(start: Callable[..., LocalServer]) -> None:
    """The running job ends, the waiting one stays journaled and ends after the next start."""
    server = start("--batch", "1")
    with Client(server.address, patience=60.0) as client:
        running = client.submit("one two", LONG)
        next(event for event in client.watch(running.id) if isinstance(event.body, Update))
        waiting = client.submit("one two", SMALL)
        assert server.stop() == 0
        assert server.last("job.done")["job"] == running.id  # type: ignore[index]
        with Client(server.address, patience=0.0) as hasty, pytest.raises(UnavailableError):
            hasty.submit("late", SMALL)
        server.start()
        assert client.result(running.id).tokens
        assert client.result(waiting.id).tokens
    server.stop()


def test_two_servers_do_not_share_a_journal(server: LocalServer, model_dir: Path) -> None:
    journal = server._options[server._options.index("--journal") + 1]
    second = LocalServer(["--model", str(model_dir), "--journal", journal])
    with pytest.raises(UnavailableError, match="another server"):
        second.start()


def test_what_cannot_serve_ends_with_one_line(tmp_path: Path, model_dir: Path) -> None:
    def ends(*options: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "nap_runtime.cli", "serve", "--journal", str(tmp_path / "j.db"), *options]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
        return done.returncode, done.stderr

    code, text = ends("--listen", "0.0.0.0:0")
    assert (code, text.count("\n")) == (2, 1)
    assert "--tls-cert" in text
    assert ends("--model", str(tmp_path / "none"))[0] == 2
    (tmp_path / "bad.db").write_bytes(b"this is no journal" * 1000)
    code, text = ends("--journal", str(tmp_path / "bad.db"), "--listen", "127.0.0.1:0")
    assert (code, text.count("\n")) == (1, 1)
    assert "bad.db is damaged" in text


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def nap(nap: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """`(address, *words)` → exit code, stdout and stderr of a command in this process."""

    def run(address: str, *words: str) -> tuple[int, str, str]:
        monkeypatch.setenv("NAP_SERVER", address)
        return nap(*words)  # type: ignore[no-any-return]

    return run


def press_ctrl_c(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_word_problem_from_the_command_line(
    start: Callable[..., LocalServer], nap: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(model="nap-tiny")
    at = server.address
    code, out, error = nap(at, "submit", "--watch", "--steps", "33", "--label", "cli=1", SHIRT)
    assert code == 0, error
    assert "answer   40" in out
    assert "steps 0 to 0" in out
    (job,) = map(json.loads, nap(at, "jobs", "--json", "--label", "cli=1")[1].splitlines())
    assert job["state"] == "done"
    events = list(map(json.loads, nap(at, "watch", job["id"], "--json")[1].splitlines()))
    assert events[-1]["result"]["answer"] == "40"
    assert "40" in nap(at, "submit", "--wait", "--steps", "33", SHIRT)[1]
    assert job["id"] in nap(at, "jobs")[1]
    assert nap(at, "cancel", job["id"])[1] == f"{job['id']} done\n"
    status = nap(at, "status")[1]
    assert "nap-tiny" in status
    assert "idle" in status
    code, _, error = nap(at, "watch", "nothing")
    assert (code, error.count("\n")) == (1, 1)
    assert nap(at, "submit", "--every", "3", "x")[0] == 2
    (tmp_path / "c.yaml").write_text("prompt: 'A shirt'\nsteps: 5\nworkers: 3\n")
    code, _, error = nap(at, "submit", "--config", str(tmp_path / "c.yaml"))
    assert (code, "the server decides it" in error) == (2, True)
    (tmp_path / "c.yaml").write_text(f"prompt: '{SHIRT}'\nsteps: 33\ngold: '40'\n")
    found = json.loads(nap(at, "submit", "--config", str(tmp_path / "c.yaml"), "--wait", "--json")[1])
    assert (found["answer"], found["correct"], found["job"]["question"]) == ("40", True, SHIRT)
    with monkeypatch.context() as change:
        change.setattr("nap_runtime.cli.follow.follow", press_ctrl_c)
        code, _, error = nap(at, "submit", "--watch", "--steps", "33", SHIRT)
    left = json.loads(nap(at, "jobs", "--json", "--limit", "1")[1])["id"]
    said = f"job {left} goes on: nap watch {left}, or nap cancel {left}\n"
    assert (code, error) == (130, f"{said}nap submit: interrupted\n")
    assert nap(at, "watch", left, "--json")[0] == 0  # it did go on
    assert nap(at, "jobs", "--patience", "nan")[0] == 2  # would go on trying for ever
    server.stop()
    code, _, error = nap(at, "jobs", "--patience", "0")
    assert (code, error.count("\n")) == (1, 1)


# -- load -------------------------------------------------------------------------------------------------------------


def test_a_thousand_jobs_of_fifty_clients(start: Callable[..., LocalServer], model_dir: Path) -> None:
    """Every job ends, with the ids of a decode alone; the full queue refuses and recovers meanwhile."""
    server = start("--queue", "100", "--batch", "32", "--metrics", "127.0.0.1:0")
    config = DecodeConfig(paths=3, path_tokens=4, summary_tokens=2, steps=4)
    prompts = [f"q{n:02d}" for n in range(40)]
    refused = 0

    async def one_client(number: int) -> dict[str, tuple[int, ...]]:
        nonlocal refused
        async with AsyncClient(server.address, patience=100.0) as client:
            jobs: dict[str, str] = {}
            for turn in range(20):
                prompt = prompts[(number * 20 + turn) % len(prompts)]
                jobs[(await client.submit(prompt, config, key=f"{number}-{turn}")).id] = prompt
            return {f"{job}:{prompt}": (await client.result(job)).tokens for job, prompt in jobs.items()}

    async def all_clients() -> list[dict[str, tuple[int, ...]]]:
        return await asyncio.gather(*(one_client(number) for number in range(50)))

    began = time.monotonic()
    answers = [pair for found in asyncio.run(all_clients()) for pair in found.items()]
    print(f"\n1,000 jobs of 50 clients in {time.monotonic() - began:.1f} s")
    assert len({name for name, _ in answers}) == 1000
    expected = {
        prompt: tuple(result.record.final_ids.tolist())
        for prompt, result in zip(prompts, api.decode(prompts, config, model=model_dir, dtype="float64"), strict=True)
    }
    assert all(tokens == expected[name.partition(":")[2]] for name, tokens in answers)
    figures = _figures(server)
    assert figures['nap_jobs_refused_total{reason="full"}'] > 0, "the queue was never full"
    assert figures["nap_jobs_submitted_total"] == figures['nap_jobs_ended_total{state="done"}'] == 1000
    assert figures["nap_jobs_queued"] == 0
    assert figures["nap_tokens_total"] == 1000 * 14
    server.stop()


def _figures(server: LocalServer) -> dict[str, float]:
    import httpx

    address = server.last("server.ready")["metrics"]  # type: ignore[index]
    lines = httpx.get(f"http://{address}/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}
