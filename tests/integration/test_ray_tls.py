"""A Ray cluster under TLS and a token, with certificates of scripts/ray-tls.sh: what it lets in, and a decode on it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "ray-tls.sh"
QUESTION = "A shirt costs $50 and is on sale for 20% off. What is the final price?"
# A head that runs until its standard input closes, as `ray start --head` would, but nobody else's Ray is touched.
HEAD = """
import ray, sys
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a node, exactly as the script prints it, and a token."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run([SCRIPT, "ca", folder / "ca"], check=True)
    subprocess.run([SCRIPT, "node", folder / "ca", folder / "node"], check=True)
    line = subprocess.run([SCRIPT, "env", folder / "node"], check=True, capture_output=True, text=True).stdout
    words = line.removeprefix("export ").split()
    environment = os.environ | dict(word.split("=", 1) for word in words)
    return environment | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def head(secured: dict[str, str]) -> Iterator[str]:
    """Its address."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD], env=secured, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address, "the head did not start"
        yield address
    finally:
        process.stdin.close()
        process.wait(60)


def connect(address: str, context: ssl.SSLContext) -> ssl.SSLSocket:
    host, _, port = address.rpartition(":")
    plain = socket.create_connection((host, int(port)), timeout=10)
    return context.wrap_socket(plain, server_hostname=host)


def of_the_authority(secured: dict[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=secured["RAY_TLS_CA_CERT"])
    context.set_alpn_protocols(["h2"])
    return context


def test_the_head_proves_its_address_and_speaks_nothing_in_the_clear(head: str, secured: dict[str, str]) -> None:
    with connect(head, of_the_authority(secured)) as secure:  # checks authority and address
        assert secure.version() in ("TLSv1.2", "TLSv1.3")
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(head, ssl.create_default_context())  # another authority would not have signed it
    host, _, port = head.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        try:
            answer = plain.recv(64)
        except ConnectionError:
            answer = b""
        assert answer[3:4] != b"\x04", "HTTP/2 settings came back in the clear"


def test_a_decode_on_it(head: str, secured: dict[str, str]) -> None:
    command = [sys.executable, "-m", "nap_runtime.cli", "decode", QUESTION, "--workers", "2", "--steps", "12",
               "--address", head, "--json"]  # fmt: skip
    environment = secured | {"PYTHONPATH": str(ROOT / "runtime")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [worker["worker"] for worker in json.loads(done.stdout)["workers"]] == [0, 1]
