"""Shaped links (benchmarks/shaped): the relay's rules, what a token bucket and a delay do to bytes, and to a decode."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from shaped import tables
from shaped.group import Group
from shaped.net import Network, Shape, missing
from shaped.relay import Switch

from nap_runtime.job import SyncPolicy
from nap_runtime.study.cost.predict import DEVICES, Link, Machine, Work
from nap_runtime.study.cost.scenario import Scenario

pytestmark = pytest.mark.timeout(240)
A, B, C, ALL = b"aaaaaa", b"bbbbbb", b"cccccc", b"\xff" * 6


def frame(to: bytes, source: bytes, load: bytes = b"") -> bytes:
    return to + source + load


# --- the relay's rules, without a device ---


def test_a_frame_waits_for_its_delay() -> None:
    switch = Switch(2, delay=0.5)
    switch.take(0, frame(B, A, b"x"), now=10.0)
    assert list(switch.due(10.49)) == []
    assert switch.wait(10.2) == pytest.approx(0.3)
    assert list(switch.due(10.5)) == [(1, frame(B, A, b"x"))]
    assert switch.wait(10.5) is None


def test_what_is_known_goes_to_one_port_and_what_is_not_to_all_others() -> None:
    switch = Switch(3)
    switch.take(0, frame(ALL, A), now=0.0)
    assert [port for port, _ in switch.due(0.0)] == [1, 2]
    switch.take(2, frame(A, C), now=0.0)  # A was seen at port 0
    assert [port for port, _ in switch.due(0.0)] == [0]
    switch.take(0, frame(B, A), now=0.0)
    assert [port for port, _ in switch.due(0.0)] == [1, 2]


def test_a_shorter_delay_lets_nothing_overtake() -> None:
    switch = Switch(2, delay=1.0)
    switch.take(0, frame(B, A, b"1"), now=0.0)
    switch.delay = 0.0
    switch.take(0, frame(B, A, b"2"), now=0.1)
    assert list(switch.due(0.9)) == []
    assert [sent[12:] for _, sent in switch.due(1.0)] == [b"1", b"2"]


# --- the section of a page ---


def test_a_section_is_filled_again_and_again(tmp_path: Path) -> None:
    page = tmp_path / "study.md"
    page.write_text("# Study\n\nbefore\n")
    tables.fill(page, "one")
    page.write_text(page.read_text() + "\nafter\n")
    tables.fill(page, "two")
    said = page.read_text()
    assert said == "# Study\n\nbefore\n\n<!-- links:begin -->\ntwo\n<!-- links:end -->\n\nafter\n"


# --- links ---

_SERVE = """
import socket, sys
listener = socket.create_server((sys.argv[1], 9000))
print("up", flush=True)
while True:
    peer, _ = listener.accept()
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while size := int.from_bytes(peer.recv(4), "big"):
        while size:
            size -= len(peer.recv(min(size, 1 << 20)))
        peer.sendall(b"!")
"""
_SEND = """
import socket, sys, time
peer = socket.create_connection((sys.argv[1], 9000))
peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
size, times, taken = int(sys.argv[2]), int(sys.argv[3]), []
for _ in range(times + 1):
    began = time.perf_counter()
    peer.sendall(size.to_bytes(4, "big") + bytes(size))
    assert peer.recv(1) == b"!"
    taken.append(time.perf_counter() - began)
print(min(taken[1:]))
"""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if lacks := missing():
        pytest.skip(f"this machine {lacks}")
    with Network(2) as made:
        yield made


@pytest.fixture(scope="module")
def send(network: Network) -> Iterator[Any]:
    words = network.command(1, sys.executable, "-c", _SERVE, network.address(1))
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stdout.readline() == "up\n"

    def seconds(size: int, times: int = 3) -> float:
        words = network.command(0, sys.executable, "-c", _SEND, network.address(1), str(size), str(times))
        return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

    yield seconds
    server.kill()
    server.wait()


@pytest.mark.parametrize("rate", [1e8, 1e9])
def test_a_token_bucket_lets_through_so_many_bytes_a_second(network: Network, send: Any, rate: float) -> None:
    shape, size = Shape(rate=rate), 2_000_000
    network.shape(shape)
    least = (size - 2 * shape.burst) * 8 / rate  # what a full bucket holds passes at once
    assert 0.9 * least < send(size) < 4 * least + 1.0


def test_a_delay_is_added_each_way(network: Network, send: Any) -> None:
    network.shape(Shape())
    near = send(1)
    network.shape(Shape(delay=0.025))
    assert 0.05 <= send(1) < near + 0.05 + 0.5


# --- a decode over them ---


def decode(group: Group, sync: SyncPolicy) -> tuple[float, float, list[Any], Work]:
    """Seconds of the slowest worker, those of them that it waited, the ids, and what the model counts."""
    scenario = Scenario(
        shape="nap-tiny", paths=2, path_tokens=16, summary_tokens=4, prompt_tokens=24, header_tokens=1, steps=5,
        workers=2, dtype="float32", sync=sync,
    )  # fmt: skip
    told = group.ask(do="decode", scenario=scenario.to_mapping())
    seconds, blocked = (max(rank[name] for rank in told) for name in ("seconds", "blocked"))
    return seconds, blocked, [rank["ids"] for rank in told], Work.of(scenario)


def exchanged(work: Work, latency: float, rate: float) -> float:
    """Seconds that a link alone asks for."""
    link = Link(latency=latency, bandwidth=rate / 8)
    return work.on(Machine(device=DEVICES["cpu"], link=link)).sync_seconds


def test_a_decode_takes_as_much_longer_as_predicted(network: Network) -> None:
    """A slow link and a far one, against the model's exchanges; the ids are those of a fast link."""
    with Group(network, 2) as group:
        exact = SyncPolicy("exact")
        network.shape(Shape(rate=10e9))
        decode(group, exact)
        *_, ids, work = decode(group, exact)
        for shape, latency in ((Shape(rate=10e6), 1e-4), (Shape(rate=1e9, delay=0.02), 0.04)):  # a round trip a round
            network.shape(shape)
            seconds, blocked, found, _ = decode(group, exact)
            assert shape.rate is not None
            predicted = exchanged(work, latency, shape.rate)
            assert predicted > 1.0  # well above what a busy machine adds
            assert 0.6 * predicted < blocked <= seconds < 2.5 * predicted + 10.0, shape.name
            assert found == ids
        _, nothing, *_ = decode(group, SyncPolicy("none"))  # over the far link: one gather
        assert nothing < blocked / 3
