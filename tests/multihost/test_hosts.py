"""The hosts that the other tests here stand on: apart from each other, breakable, and gone afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import Cluster, Host, missing, sweep
from hosts.cluster import ROOT

pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")

# Sends 12.5 MB to whoever connects and waits until all of it has arrived.
SERVE = """
import contextlib, socket
server = socket.create_server(("", 7000))
while True:
    peer, _ = server.accept()
    with contextlib.suppress(OSError), peer:
        peer.sendall(bytes(12_500_000))
        peer.recv(1)
"""
FETCH = """
import socket, sys, time
peer = socket.create_connection((sys.argv[1], 7000), timeout=float(sys.argv[2]))
began, left = time.monotonic(), 12_500_000
while left:
    left -= len(peer.recv(1 << 20))
peer.send(b".")
print(time.monotonic() - began)
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Cluster]:
    with Cluster(3, env={"GREETING": "good morning"}) as cluster:
        yield cluster


def fetch(reader: Host, source: Host, patience: float = 10.0) -> float:
    """Seconds that 12.5 MB take from one host to another."""
    line = [sys.executable, "-c", FETCH, source.address, str(patience)]
    return float(reader.run(line, timeout=30).stdout)


@pytest.fixture(scope="module")
def source(hosts: Cluster) -> Host:
    """node1, where 12.5 MB are to be had."""
    hosts[1].popen([sys.executable, "-c", SERVE])
    for _ in range(50):
        if ":1B58 " in hosts[1].run(["cat", "/proc/net/tcp"]).stdout:  # port 7000 is open
            break
        time.sleep(0.1)
    return hosts[1]


def test_every_host_is_its_own(hosts: Cluster) -> None:
    assert [host.run(["hostname"]).stdout.strip() for host in hosts] == ["node0", "node1", "node2"]
    addresses = [host.run(["ip", "-4", "-brief", "address", "show", "dev", "eth0"]).stdout.split()[2] for host in hosts]
    assert addresses == ["10.77.0.1/24", "10.77.0.2/24", "10.77.0.3/24"]
    hosts[0].run("for at in /tmp ~ /dev/shm; do echo mine > $at/note; done; sleep 100 > /dev/null 2>&1 &")
    assert hosts[1].run(["ls", "/tmp/note", "/dev/shm/note"], check=False).returncode
    assert "note" not in hosts[1].run(["ls", str(Path.home())]).stdout
    assert not Path("/tmp/note").exists()
    assert (hosts[0].home / "note").read_text() == (hosts[0].tmp / "note").read_text() == "mine\n"
    assert "sleep" not in hosts[1].run("cat /proc/[0-9]*/comm").stdout
    assert "sleep" in hosts[0].run("cat /proc/[0-9]*/comm").stdout


def test_ssh_goes_everywhere_and_brings_the_environment(hosts: Cluster) -> None:
    for name in ("node2", "10.77.0.3"):
        line = ["ssh", "-o", "BatchMode=yes", name, "hostname; echo $GREETING; which python3"]
        assert hosts[0].run(line).stdout.split("\n")[:2] == ["node2", "good morning"]
    login = hosts[1].run(["ssh", "node0", "bash --login -i -c 'echo $GREETING'"]).stdout
    assert login == hosts[1].run("echo $GREETING").stdout == "good morning\n"


def test_the_machine_and_the_outside_are_out_of_reach(hosts: Cluster) -> None:
    script = "import socket; socket.create_connection(('192.0.2.1', 53), timeout=1)"
    assert hosts[0].run([sys.executable, "-c", script], check=False).returncode == 1
    links = hosts[0].run(["ip", "-brief", "link"]).stdout
    assert sorted(line.partition("@")[0].split()[0] for line in links.splitlines()) == ["eth0", "lo"]


def test_a_cut_link_is_silent_and_heals(hosts: Cluster, source: Host) -> None:
    assert fetch(hosts[0], source) < 5
    source.cut()
    try:
        with pytest.raises(RuntimeError, match=r"timed out|No route to host"):
            fetch(hosts[0], source, patience=1.5)
        with pytest.raises(RuntimeError, match=r"timed out|No route to host"):
            fetch(source, source=hosts[0], patience=1.5)
    finally:
        source.heal()
    assert fetch(hosts[0], source) < 5


@pytest.mark.parametrize(("rate", "seconds"), [("100mbit", 1.0), ("1gbit", 0.1)])
def test_a_shaped_link_has_its_rate(hosts: Cluster, source: Host, rate: str, seconds: float) -> None:
    source.shape(rate)
    try:
        took = fetch(hosts[0], source)
    finally:
        source.shape(None)
    assert 0.9 * seconds < took < 2 * seconds + 0.2  # headers cost 4%; the machine may be busy


def test_a_frozen_host_answers_pings_but_does_nothing(hosts: Cluster, source: Host) -> None:
    clock = hosts[1].popen("while :; do date +%s.%N > /tmp/clock; sleep 0.02; done")
    time.sleep(0.3)
    hosts[1].freeze()
    try:
        frozen = (hosts[1].tmp / "clock").read_text()
        time.sleep(0.5)
        assert (hosts[1].tmp / "clock").read_text() == frozen
        with pytest.raises(RuntimeError, match="timed out"):  # connects (the kernel does that), and gets nothing
            fetch(hosts[0], source, patience=1)
    finally:
        hosts[1].thaw()
    time.sleep(0.5)
    assert (hosts[1].tmp / "clock").read_text() != frozen
    assert fetch(hosts[0], source) < 5
    clock.terminate()
    assert clock.wait(timeout=10) == -signal.SIGTERM


def test_a_slowed_host_gets_its_share(hosts: Cluster) -> None:
    busy = "import time\nend = time.time() + 2\nwhile time.time() < end: pass\nprint(time.process_time() / 2)"
    with hosts[0].slowed(0.2):
        share = float(hosts[0].run([sys.executable, "-c", busy]).stdout)
    assert 0.02 < share < 0.4


def test_a_killed_host_comes_back_with_its_disk(hosts: Cluster) -> None:
    hosts[2].run("echo kept > ~/disk; echo lost > /dev/shm/memory; nohup sleep 1000 > /dev/null 2>&1 &")
    running = hosts[2].popen(["sleep", "1000"])
    hosts[2].kill()
    assert not hosts[2].alive
    assert running.poll() is not None
    assert hosts[0].run(["ssh", "-o", "ConnectTimeout=1", "node2", "true"], check=False).returncode == 255
    hosts[2].start()
    assert hosts[0].run(["ssh", "node2", "cat ~/disk; ls /dev/shm; cat /proc/[0-9]*/comm"]).stdout.startswith("kept\n")
    assert "sleep" not in hosts[2].run("ls /dev/shm; cat /proc/[0-9]*/comm").stdout


def test_a_host_joins_later(hosts: Cluster) -> None:
    late = hosts.add()
    assert (late.name, late.address, len(hosts)) == ("node3", "10.77.0.4", 4)
    assert hosts[0].run(["ssh", "node3", "hostname"]).stdout == "node3\n"


def test_a_command_that_fails_or_hangs_says_so(hosts: Cluster) -> None:
    with pytest.raises(RuntimeError, match=r"node0: 'echo reason >&2; exit 3' ended with 3\n\nreason"):
        hosts[0].run("echo reason >&2; exit 3")
    with pytest.raises(subprocess.TimeoutExpired):
        hosts[0].run(["sleep", "987"], timeout=0.5)
    assert "987" not in hosts[0].run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout


def test_nothing_outlives_a_killed_owner() -> None:
    script = "from hosts import Cluster; import time\nwith Cluster(2):\n print('up', flush=True)\n time.sleep(1000)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "up\n"
    folder = ROOT / f"{owner.pid}-0"
    assert folder.is_dir()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _processes_of(folder):
        time.sleep(0.1)
    assert _processes_of(folder) == []
    sweep()
    assert not folder.exists()


def _processes_of(folder: Path) -> list[str]:
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    return [line.decode(errors="replace") for line in lines if str(folder).encode() in line]
