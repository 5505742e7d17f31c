"""The Dockerfile without Docker: hadolint, what it copies, what it pins, the wheel it builds, the health check.

No image is built here: no container runtime, and no registry with the base image.
"""

from __future__ import annotations

import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import nap_runtime

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
IGNORED = (ROOT / ".dockerignore").read_text().splitlines()
HEALTH = ROOT / "scripts" / "container-health.py"


def instructions() -> list[tuple[str, str]]:
    """Instruction and the rest of its line, continuations joined, comments left out."""
    text = re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage, by name, the FROM line first."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for instruction, rest in instructions():
        if instruction == "FROM":
            name = rest.split(" AS ")[1]
            found[name] = []
        if name:
            found[name].append((instruction, rest))
    return found


def copied(stage: str) -> list[tuple[list[str], str]]:
    """Sources in the build context, and where they go."""
    found = []
    for instruction, rest in stages()[stage]:
        if instruction == "COPY" and "--from" not in rest:
            *sources, target = [word for word in rest.split() if not word.startswith("--")]
            found.append((sources, target))
    return found


def test_hadolint_has_nothing_to_say() -> None:
    program = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        pytest.skip("no hadolint here")
    done = subprocess.run([program, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_is_copied_is_there_and_not_ignored() -> None:
    assert IGNORED[0] == "*"
    allowed = {line.removeprefix("!") for line in IGNORED if line.startswith("!")}
    sources = [source for stage in stages() for group, _ in copied(stage) for source in group]
    assert len(sources) >= 8
    for source in sources:
        assert (ROOT / source).exists()
        assert source.split("/")[0] in allowed
    assert {source.split("/")[0] for source in sources} == allowed


def test_versions_are_pinned() -> None:
    base = re.search(r"^ARG PYTHON=(\d+)\.(\d+)\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)
    assert base is not None
    assert (3, 11) <= (int(base[1]), int(base[2])) < (3, 13)
    for name, lines in stages().items():
        source = lines[0][1].split(" AS ")[0]
        assert source in stages() or source == "python:${PYTHON}", name
    installs = [rest for _, rest in instructions() if "pip install" in rest]
    assert len(installs) == 2
    assert all("-c constraints.txt" in rest and "/dist/*.whl" in rest for rest in installs)
    assert set(re.findall(r"nap-runtime:([\d.]+)-\w+", DOCKERFILE)) == {nap_runtime.__version__}


@pytest.mark.parametrize("image", ["cpu", "cuda"])
def test_images_end_as_an_ordinary_user_with_a_health_check(image: str) -> None:
    made = stages()[image]
    assert made[0][1] == f"base AS {image}"
    assert made[-1] == ("USER", "1000:1000")
    assert any(line == ("COPY", f"--from=packages-{image} /install /usr/local") for line in made)
    assert [line for line in stages()["base"] if line[0] in ("HEALTHCHECK", "CMD", "ENTRYPOINT")]


def test_the_wheel_builds_from_what_is_copied_and_runs_without_the_checkout(tmp_path: Path) -> None:
    """The wheel stage, step by step, with the build backend that is installed, and no download."""
    source, dist, place = tmp_path / "src", tmp_path / "dist", tmp_path / "place"
    for sources, target in copied("wheel"):
        for name in sources:
            there = source / (Path(target) if len(sources) == 1 else Path(name))
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, there, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                there.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, there)
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(dist)]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = dist.iterdir()
    assert wheel.name == f"nap_runtime-{nap_runtime.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    code = ("import nap_runtime, sys; from nap_runtime.models.loading import read_card; "
            "print(nap_runtime.__file__, read_card('nap-tiny').fingerprint)")  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(place)}
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert ran.returncode == 0, ran.stderr
    assert str(place) in ran.stdout


# -- the health check ----------------------------------------------------------------------------------------------


class Node(http.server.BaseHTTPRequestHandler):
    """Ray's agent, as far as the health check knows it."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/api/local_raylet_healthz" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def node() -> Iterator[tuple[type[Node], str]]:
    handler = type("OneNode", (Node,), {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield handler, f"127.0.0.1:{server.server_port}"
        server.shutdown()


def check(**environment: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, HEALTH], env=os.environ | environment, capture_output=True, text=True)
    return done.returncode, done.stdout.strip()


def test_health_of_a_server() -> None:
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        assert check(NAP_HEALTH=address) == (0, "healthy")
        servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert check(NAP_HEALTH=address) == (1, "NOT_SERVING")
    finally:
        server.stop(None)


def test_health_of_a_node_where_no_server_runs(node: tuple[type[Node], str]) -> None:
    handler, address = node
    assert check(NAP_HEALTH="127.0.0.1:1", NAP_HEALTH_RAY=address) == (0, "healthy")
    handler.status = 503
    code, text = check(NAP_HEALTH="127.0.0.1:1", NAP_HEALTH_RAY=address)
    assert code == 1
    assert "503" in text
    code, text = check(NAP_HEALTH="127.0.0.1:1", NAP_HEALTH_RAY="127.0.0.1:1")
    assert code == 1
    assert len(text.splitlines()) == 1
