"""Random and mutated messages at every entrance: nothing crashes, hangs, or is let in that should not be."""

from __future__ import annotations

import json
import random
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import msgpack
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nap_runtime.errors import RecordError
from nap_runtime.job import DecodeConfig
from nap_runtime.models.shapes import make_model_dir
from nap_runtime.service.answers import Update
from nap_runtime.service.client import Client
from nap_runtime.service.configs import config_to_proto
from nap_runtime.service.deltas import unpack_deltas
from nap_runtime.service.local import LocalServer
from nap_runtime.service.v1 import decoder_pb2 as pb

SMALL = DecodeConfig(paths=3, path_tokens=2, summary_tokens=2, steps=2)
ANSWERS = {
    # What a server may say to nonsense. Not among them: INTERNAL, UNKNOWN, DEADLINE_EXCEEDED, UNAVAILABLE.
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    folder = tmp_path_factory.mktemp("fuzz")
    make_model_dir("llada-tiny", folder / "random", seed=0, dtype=torch.float32, scale=10.0)
    base = ["--model", str(folder / "random"), "--threads", "1", "--journal", str(folder / "jobs.db"), "--queue", "200"]
    with LocalServer([*base, "--http", "127.0.0.1:0", "--batch", "32", "--keep", "5"]) as started:
        yield started


def mutate(rng: random.Random, data: bytes) -> bytes:
    """A few random edits of a valid message."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[min(at, len(out) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at:at] = rng.randbytes(rng.randint(1, 8))
        elif kind == 2:
            del out[at : at + rng.randint(1, 8)]
        elif kind == 3:
            piece = out[at : at + rng.randint(1, 32)]
            out[at:at] = piece * rng.randint(1, 4)
        elif kind == 4 and out:
            out[min(at, len(out) - 1)] = rng.choice((0, 0x7F, 0x80, 0xFF))
        else:
            out = out[:at]
    return bytes(out)


def submissions(rng: random.Random) -> pb.SubmitRequest:
    """A valid request, whose key is new, so that mutations of it meet as much of the server as they can."""
    prompt = pb.Prompt(text="one two") if rng.random() < 0.7 else pb.Prompt(token_ids=pb.TokenIds(ids=[1, 2, 3]))
    spec = pb.JobSpec(prompt=prompt, config=config_to_proto(SMALL), id="n", gold="7")
    request = pb.SubmitRequest(idempotency_key=str(rng.random()), spec=spec, labels={"a": "b"}, priority=3)
    request.deadline.GetCurrentTime()
    request.deadline.seconds += 30
    return request


def protobufs(rng: random.Random, job_id: str) -> tuple[str, bytes]:
    """A method, and a message for it."""
    requests: dict[str, Any] = {
        "Submit": submissions(rng),
        "Get": pb.GetRequest(job_id=job_id, view=pb.JOB_VIEW_FULL),
        "List": pb.ListRequest(page_size=5, states=[pb.JOB_STATE_QUEUED], labels={"a": "b"}),
        "Cancel": pb.CancelRequest(job_id="no such job", reason="fuzz"),
        "Watch": pb.WatchRequest(job_id=job_id, after_event=1),
        "Cluster": pb.ClusterRequest(),
    }
    method = rng.choice(["Submit"] * 3 + list(requests))
    if rng.random() < 0.2:
        return method, rng.randbytes(rng.randint(0, 200))
    return method, mutate(rng, requests[method].SerializeToString())


def send_protobuf(channel: grpc.Channel, method: str, data: bytes) -> grpc.StatusCode:
    path = f"/nap.v1.Decoder/{method}"
    try:
        if method == "Watch":
            for _ in channel.unary_stream(path)(data, timeout=20.0):
                pass
        else:
            channel.unary_unary(path)(data, timeout=20.0)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def send_http(address: tuple[str, int], rng: random.Random) -> str:
    """A mutated request, head and body, over a socket of its own; the status line, or how it ended."""
    body = json.dumps(
        {"prompt": "one two", "nap": {"steps": 2, "path_tokens": 2, "summary_tokens": 2}, "n": 1}
    ).encode()
    if rng.random() < 0.6:
        body = mutate(rng, body)
    path = rng.choice(("completions", "chat/completions", "models", "../x"))
    head = f"POST /v1/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
    data = head + body if rng.random() < 0.6 else mutate(rng, head + body)
    with socket.create_connection(address, timeout=15.0) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while part := connection.recv(65536):
                answer += part
        except ConnectionError:
            return "reset"
    return answer.split(b"\r\n", 1)[0].decode("ascii", "replace")[:12] or "closed"


def fuzz_msgpack(rng: random.Random, good: bytes) -> None:
    data = rng.randbytes(rng.randint(0, 100)) if rng.random() < 0.2 else mutate(rng, good)
    try:
        unpack_deltas(data)
    except RecordError as error:
        assert "\n" not in str(error)  # noqa: PT017


def resident(process: int) -> float:
    """Resident memory of a process in MB."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def run(server: LocalServer, seed: int, messages: int) -> None:
    rng = random.Random(seed)
    channel = grpc.insecure_channel(server.address)
    host, _, port = server.last("server.ready")["http"].rpartition(":")  # type: ignore[index]
    said: Counter[str] = Counter()
    with Client(server.address, patience=30.0) as client:
        job = client.submit("one two", SMALL)
        client.result(job.id)
        update = next(event.body for event in client.watch(job.id) if isinstance(event.body, Update))
        good = msgpack.packb([1, 50, [delta.to_wire() for delta in update.deltas]])
        before = after_warmup = resident(server.process)
        for number in range(messages):
            kind = rng.random()
            if kind < 0.5:
                code = send_protobuf(channel, *protobufs(rng, job.id))
                assert code in ANSWERS, code
                said[code.name] += 1
            elif kind < 0.75:
                fuzz_msgpack(rng, good)
                said["msgpack"] += 1
            else:
                status = send_http((host, int(port)), rng)
                assert not status.startswith("HTTP/1.1 500"), status
                said[status] += 1
            if number == messages // 4:
                after_warmup = resident(server.process)
            if number % 1000 == 999:  # the first job is kept for a few seconds only
                job = client.submit("one two", SMALL)
                client.result(job.id)
        assert server.running
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10.0)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        assert client.decode("one two", SMALL).tokens
    grown = resident(server.process) - after_warmup
    print(f"\n{messages} messages, seed {seed}: {dict(said.most_common())}")
    print(
        f"resident {before:.0f} MB before, {after_warmup:.0f} MB after a quarter, {grown:+.1f} MB from there to the end"
    )
    assert said["OK"] > messages / 50, "some mutations are still good requests"
    assert said["INVALID_ARGUMENT"] > messages / 50
    assert grown < 15 + messages / 2000, "memory grows"
    assert server.last("server.failed") is None


@pytest.mark.timeout(120)
def test_a_sample_of_mutated_messages(server: LocalServer) -> None:
    run(server, seed=1, messages=600)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_twenty_thousand_mutated_messages(server: LocalServer) -> None:
    run(server, seed=2, messages=20_000)
