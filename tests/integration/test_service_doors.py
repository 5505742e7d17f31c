"""Who gets in: tokens, scopes, TLS, mTLS; and the OpenAI-compatible door with its streams and refusals."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from nap_runtime.errors import AccessError, NoSuchJobError, UnavailableError, UsageError
from nap_runtime.job import DecodeConfig
from nap_runtime.models.shapes import make_model_dir
from nap_runtime.service.access import new_token
from nap_runtime.service.answers import Update
from nap_runtime.service.client import Client
from nap_runtime.service.local import LocalServer
from nap_runtime.service.v1 import decoder_pb2 as pb
from nap_runtime.service.v1 import decoder_pb2_grpc as rpc

# One server for all of them, in one process: what it logged is looked through at the end.
pytestmark = pytest.mark.timeout(120)
SMALL = DecodeConfig(paths=3, path_tokens=6, summary_tokens=4, control_every=2)
LONG = DecodeConfig(paths=3, path_tokens=80, summary_tokens=4, control_every=1, eos_weight=0.0)
SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "random"
    make_model_dir("llada-tiny", folder, seed=0, dtype=torch.float64, scale=10.0)
    return folder


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server and a client of it, and another authority with a client of its own."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    (folder / "san").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
    for authority, members in (("ca", ("server", "client")), ("other", ("stranger",))):
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={authority}",
                "-keyout", f"{authority}.key", "-out", f"{authority}.pem")  # fmt: skip
        for name in members:
            openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}",
                    "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
            openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key",
                    "-CAcreateserial", "-days", "2", "-extfile", "san", "-out", f"{name}.pem")  # fmt: skip
    return folder


class Guarded:
    """A server with tokens, and one token of each scope."""

    def __init__(self, folder: Path, model_dir: Path, *options: str) -> None:
        names = {"reader": "read", "ada": "submit", "bob": "submit", "root": "admin"}
        self.tokens = {name: new_token(folder / "tokens", name, [scope]) for name, scope in names.items()}
        self.tokens["small"] = new_token(folder / "tokens", "small", ["submit"], queued=1)
        base = ["--model", str(model_dir), "--dtype", "float64", "--threads", "1", "--batch", "1"]
        journal = ["--journal", str(folder / "jobs.db"), "--tokens", str(folder / "tokens"), "--log-level", "debug"]
        self.server = LocalServer([*base, *journal, "--http", "127.0.0.1:0", *options])
        self.server.start()
        self.http = f"http://{self.server.last('server.ready')['http']}"  # type: ignore[index]

    def client(self, name: str, **options: Any) -> Client:
        return Client(self.server.address, token=self.tokens[name], **{"patience": 5.0, **options})


@pytest.fixture(scope="module")
def guarded(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    made = Guarded(tmp_path_factory.mktemp("guarded"), model_dir)
    yield made
    made.server.kill()
    logged = json.dumps(made.server.events) + "".join(made.server.noise)
    assert not [name for name, token in made.tokens.items() if token in logged], "a token stands in the log"
    assert "job.done" in logged


def refused(call: Callable[[], Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    code: grpc.StatusCode = caught.value.code()
    return code


# -- tokens and scopes ------------------------------------------------------------------------------------------------


WRONG = [
    (),
    (("authorization", ""),),
    (("authorization", "Bearer "),),
    (("authorization", "Bearer nap_wrong"),),
    (("authorization", "Basic bmFwOng="),),
    (("authorization", "Bearer " + "x" * 4000),),
]


@pytest.mark.parametrize("metadata", WRONG, ids=range(len(WRONG)))
def test_without_a_token_there_is_health_and_nothing_else(guarded: Guarded, metadata: Any) -> None:
    channel = grpc.insecure_channel(guarded.server.address)
    stub, health = rpc.DecoderStub(channel), health_pb2_grpc.HealthStub(channel)
    assert health.Check(health_pb2.HealthCheckRequest(), metadata=metadata).status == SERVING
    unauthenticated = grpc.StatusCode.UNAUTHENTICATED
    spec = pb.JobSpec(prompt=pb.Prompt(text="one"), config=pb.DecodeConfig(version=1))
    requests: dict[str, Any] = {
        "Submit": pb.SubmitRequest(idempotency_key="k", spec=spec),
        "Get": pb.GetRequest(job_id="x"),
        "List": pb.ListRequest(),
        "Cancel": pb.CancelRequest(job_id="x"),
        "Cluster": pb.ClusterRequest(),
    }
    for name, request in requests.items():
        assert refused(lambda n=name, r=request: getattr(stub, n)(r, metadata=metadata)) is unauthenticated
    assert refused(lambda: list(stub.Watch(pb.WatchRequest(job_id="x"), metadata=metadata))) is unauthenticated
    listing = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    reflect = reflection_pb2_grpc.ServerReflectionStub(channel)
    assert refused(lambda: list(reflect.ServerReflectionInfo(listing, metadata=metadata))) is unauthenticated
    for method in ("/nap.v1.Decoder/Nothing", "/nap.v1.Other/Get", "/grpc.health.v1.Healthy/Check"):
        assert refused(lambda m=method: channel.unary_unary(m)(b"", metadata=metadata)) is unauthenticated


def test_two_tokens_are_none(guarded: Guarded) -> None:
    stub = rpc.DecoderStub(grpc.insecure_channel(guarded.server.address))
    twice = tuple(("authorization", f"Bearer {guarded.tokens[name]}") for name in ("reader", "root"))
    assert refused(lambda: stub.List(pb.ListRequest(), metadata=twice)) is grpc.StatusCode.UNAUTHENTICATED


def test_scopes(guarded: Guarded) -> None:
    with guarded.client("ada") as ada, guarded.client("bob") as bob, guarded.client("reader") as reader:
        mine = ada.submit("one two", SMALL, key="same")
        theirs = bob.submit("two one", SMALL, key="same")
        assert mine.id != theirs.id, "keys belong to their token"
        assert ada.result(mine.id).tokens
        for call in (ada.get, ada.cancel, ada.result, lambda job_id: list(ada.watch(job_id))):
            with pytest.raises(NoSuchJobError):
                call(theirs.id)
        assert {job.id for job in ada.list()} == {mine.id}
        assert {mine.id, theirs.id} <= {job.id for job in reader.list()}
        assert reader.result(theirs.id).tokens
        for call in (lambda: reader.submit("one", SMALL), lambda: reader.cancel(mine.id)):
            with pytest.raises(AccessError, match="lacks the scope 'submit'"):
                call()
        with guarded.client("root") as root:
            long = ada.submit("one two", LONG)
            assert root.cancel(long.id).state == "cancelled"
    stub = rpc.DecoderStub(grpc.insecure_channel(guarded.server.address))
    reading = (("authorization", f"Bearer {guarded.tokens['reader']}"),)
    code = refused(lambda: stub.Cancel(pb.CancelRequest(job_id=mine.id), metadata=reading))
    assert code is grpc.StatusCode.PERMISSION_DENIED


def test_a_quota_is_a_tokens_own(guarded: Guarded) -> None:
    with guarded.client("ada") as ada, guarded.client("small", patience=0.0) as small:
        blocker = ada.submit("one two", LONG)
        next(event for event in ada.watch(blocker.id) if isinstance(event.body, Update))
        waiting = small.submit("one two", SMALL)
        with pytest.raises(Exception, match="1 jobs of this token"):
            small.submit("two one", SMALL)
        other = ada.submit("two one", SMALL)
        ada.cancel(blocker.id)
        assert ada.result(other.id).tokens
        assert small.result(waiting.id).tokens


def test_reflection_names_the_services(guarded: Guarded) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(grpc.insecure_channel(guarded.server.address))
    listing = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    metadata = (("authorization", f"Bearer {guarded.tokens['reader']}"),)
    (answer,) = list(stub.ServerReflectionInfo(listing, metadata=metadata))
    names = {service.name for service in answer.list_services_response.service}
    assert {"nap.v1.Decoder", "grpc.health.v1.Health"} <= names


def test_a_token_is_not_sent_in_the_clear() -> None:
    with pytest.raises(UsageError, match="in the clear"):
        Client("example.org:1", token="secret")


# -- TLS --------------------------------------------------------------------------------------------------------------


def test_tls_and_mutual_tls(model_dir: Path, certificates: Path, tmp_path: Path) -> None:
    at = certificates
    server = Guarded(
        tmp_path, model_dir, "--listen", "127.0.0.1:0",
        "--tls-cert", str(at / "server.pem"), "--tls-key", str(at / "server.key"), "--client-ca", str(at / "ca.pem"),
    )  # fmt: skip
    own = {"cert": at / "client.pem", "key": at / "client.key"}
    with server.client("ada", ca=at / "ca.pem", **own) as client:
        assert client.decode("one two", SMALL).tokens
    wrong = [
        {"ca": at / "other.pem", **own},  # the wrong authority
        {"ca": at / "ca.pem"},  # no certificate of its own
        {"ca": at / "ca.pem", "cert": at / "stranger.pem", "key": at / "stranger.key"},
        {},  # plaintext
    ]
    for options in wrong:
        with server.client("ada", patience=0.0, **options) as client, pytest.raises(UnavailableError):
            client.list()
    address = server.http.replace("http://", "https://")
    context = ssl.create_default_context(cafile=str(at / "ca.pem"))
    context.load_cert_chain(at / "client.pem", at / "client.key")
    headers = {"Authorization": f"Bearer {server.tokens['ada']}"}
    assert httpx.get(f"{address}/v1/models", headers=headers, verify=context).status_code == 200
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{address}/v1/models", headers=headers, verify=ssl.create_default_context(cafile=at / "other.pem"))
    server.server.kill()


def test_tokens_are_made_on_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nap_runtime.cli", "serve", "--tokens", str(tmp_path / "t"), "--new-token"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([*command, "ada:read+submit"], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith("nap_")
    assert json.loads((tmp_path / "t").read_text())["scopes"] == ["read", "submit"]
    wrong = subprocess.run([*command, "eve:root"], capture_output=True, text=True, env=environment, check=False)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


# -- the HTTP door ----------------------------------------------------------------------------------------------------

NAP = {"paths": 3, "path_tokens": 6, "summary_tokens": 4, "control_every": 2}


def ask(guarded: Guarded, path: str, body: Any, *, token: str | None = "ada", **more: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {guarded.tokens[token]}"} if token else {}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{guarded.http}/v1/{path}", content=content, headers=headers, timeout=30.0, **more)


def test_completions_are_the_same_jobs(guarded: Guarded) -> None:
    with guarded.client("ada") as client:
        expected = client.decode("one two", SMALL)
    answer = ask(guarded, "completions", {"model": "random", "prompt": "one two", "nap": NAP, "n": 1, "user": "me"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["object"], body["model"]) == ("text_completion", "random")
    assert body["choices"][0]["text"] == expected.summary
    assert body["usage"]["total_tokens"] == len(expected.tokens)
    assert body["nap"]["paths"] == list(expected.paths)
    messages = [{"role": "system", "content": "one"}, {"role": "user", "content": [{"type": "text", "text": "two"}]}]
    chat = ask(guarded, "chat/completions", {"messages": messages, "nap": NAP}).json()
    assert chat["object"] == "chat.completion"
    with guarded.client("ada") as client:
        assert chat["choices"][0]["message"]["content"] == client.decode("one\n\ntwo", SMALL).summary
    models = httpx.get(f"{guarded.http}/v1/models", headers={"Authorization": f"Bearer {guarded.tokens['reader']}"})
    assert [model["id"] for model in models.json()["data"]] == ["random"]


def test_streams_give_the_same_text(guarded: Guarded) -> None:
    for path, prompt in (
        ("completions", {"prompt": "one two"}),
        ("chat/completions", {"messages": [{"role": "user", "content": "one two"}]}),
    ):
        whole = ask(guarded, path, {**prompt, "nap": NAP}).json()["choices"][0]
        body = {**prompt, "nap": NAP, "stream": True, "stream_options": {"include_usage": True}}
        streamed = ask(guarded, path, body)
        assert streamed.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line]
        assert lines[-1] == "[DONE]"
        chunks = [json.loads(line) for line in lines[:-1]]
        pieces = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
        chat = path.startswith("chat")
        text = "".join((p["delta"].get("content", "") if chat else p["text"]) for p in pieces)
        assert text == (whole["message"]["content"] if chat else whole["text"])
        assert pieces[-1]["finish_reason"] == "stop"
        assert chunks[-1]["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", "body"),
        (b"[]", "body"),
        (b'{"prompt": ' + b"[" * 100_000, "body"),
        (b"\xff", "body"),
        (b'"' + b"x" * (2 << 20) + b'"', "body"),
        ({}, "prompt"),
        ({"prompt": ["one", "two"]}, "prompt"),
        ({"prompt": [1, -2]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": "one", "n": 2}, "n"),
        ({"prompt": "one", "logprobs": 5}, "logprobs"),
        ({"prompt": "one", "stop": ["x"]}, "stop"),
        ({"prompt": "one", "whatever": 1}, "whatever"),
        ({"prompt": "one", "stream": "yes"}, "stream"),
        ({"prompt": "one", "temperature": -1}, "temperature"),
        ({"prompt": "one", "temperature": "hot"}, "temperature"),
        ({"prompt": "one", "model": "gpt"}, "model"),
        ({"prompt": "one", "max_tokens": 10**9}, "path_tokens"),
        ({"prompt": "one", "nap": {"headers": "/etc/passwd"}}, "headers"),
        ({"prompt": "one", "nap": {"paths": "three"}}, "paths"),
        ({"prompt": "one", "nap": {"unknown": 1}}, "unknown"),
        ({"prompt": "one", "nap": []}, None),
    ],
)
def test_wrong_bodies_are_refused(guarded: Guarded, body: Any, param: str | None) -> None:
    if body == {"prompt": "one", "nap": []}:
        body = {"prompt": "one", "nap": [1]}
        param = "nap"
    answer = ask(guarded, "completions", body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_the_door_asks_for_tokens_too(guarded: Guarded) -> None:
    body = {"prompt": "one", "nap": NAP}
    assert ask(guarded, "completions", body, token=None).status_code == 401
    assert ask(guarded, "completions", body, token="reader").status_code == 403
    assert httpx.get(f"{guarded.http}/v1/models").status_code == 401
    assert httpx.get(f"{guarded.http}/health").json() == {"status": "ok"}
    assert httpx.get(f"{guarded.http}/openapi.json").status_code == 404


def test_who_hangs_up_cancels(guarded: Guarded) -> None:
    nap = {"paths": 3, "path_tokens": 155, "summary_tokens": 4, "control_every": 1, "eos_weight": 0.0}
    for stream in (False, True):
        body = {"prompt": "one two", "nap": nap, "stream": stream}
        headers = {"Authorization": f"Bearer {guarded.tokens['bob']}", "Idempotency-Key": f"hang up {stream}"}
        url = f"{guarded.http}/v1/completions"
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json=body, headers=headers, timeout=0.8)
        with guarded.client("bob") as client:
            job = next(job for job in client.list(limit=20) if job.key == f"hang up {stream}")
            deadline = time.monotonic() + 5
            while client.get(job.id).state == "running" and time.monotonic() < deadline:
                time.sleep(0.1)
            assert client.get(job.id).state == "cancelled"
