"""Network namespaces joined twice: by a bridge at the kernel's speed, and by a relay that delays every frame.

Each host has one address, on an interface of its own, so that a connection outlives a change of the way below it:
`Network.shape` moves the routes to the bridge or to the relay, and puts a token bucket on the way out of each host.
Needs root, iproute2 and /dev/net/tun.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MTU = 9000  # jumbo frames: the relay is Python, and spends its time on frames, not on bytes
_RELAY = Path(__file__).with_name("relay.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A link: bits/s out of each host (None: as fast as it goes) and seconds of added delay, one way (0: none)."""

    rate: float | None = None
    delay: float = 0.0

    @property
    def name(self) -> str:
        """As it is said."""
        rate = "unshaped" if self.rate is None else f"{self.rate / 1e9:g} Gbit/s"
        return rate if not self.delay else f"{rate} + {1e3 * self.delay:g} ms"

    @property
    def burst(self) -> int:
        """Bytes of the token bucket: a fifth of a millisecond, and room for what the kernel sends at once."""
        return max(64 * 1024, int((self.rate or 0) / 8 * 2e-4))


def missing() -> str:
    """What this machine lacks for a `Network`; empty where it has everything."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs Linux and root"
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"needs {tool} (iproute2)"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "needs /dev/net/tun"
    name = f"nlt{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"makes no network namespace: {made.stderr.strip()}"
    bucket = "tc qdisc add dev lo root tbf rate 1gbit burst 256kb latency 50ms"
    shaped = subprocess.run(["ip", "netns", "exec", name, *bucket.split()], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", name], check=False)
    return "" if shaped.returncode == 0 else f"has no token bucket: {shaped.stderr.strip()}"


class Network:
    """Hosts 0 … n−1, which all reach each other.

    Args:
        hosts: n.
    """

    def __init__(self, hosts: int) -> None:
        self.hosts, self._tag = hosts, f"nl{os.getpid()}"
        self._relay: subprocess.Popen[str] | None = None

    def namespace(self, host: int) -> str:
        """Its name, for `ip netns exec`."""
        return f"{self._tag}-{host}"

    def address(self, host: int) -> str:
        """Its address, whatever way leads to it."""
        return f"10.78.0.{host + 1}"

    def command(self, host: int, *words: str) -> list[str]:
        """A command line that runs in a host."""
        return ["ip", "netns", "exec", self.namespace(host), *words]

    def __enter__(self) -> Network:
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make(self) -> None:
        switch = f"{self._tag}-sw"
        _ip(f"netns add {switch}")
        _ip(f"-n {switch} link add br0 type bridge")
        _ip(f"-n {switch} link set br0 mtu {MTU} up")
        taps = self._start_relay()
        for host in range(self.hosts):
            name, port = self.namespace(host), f"{self._tag}p{host}"
            _ip(f"netns add {name}")
            _ip(f"link add {port} type veth peer name eth0 netns {name}")
            _ip(f"link set {port} netns {switch}")
            _ip(f"-n {switch} link set {port} master br0 mtu {MTU} up")
            _ip(f"link set {taps[host]} netns {name} name tap0")
            _ip(f"-n {name} link add host0 type bridge")  # where the address is; a dummy would do where there is one
            for device, address in (("host0", "78.0"), ("eth0", "79.0"), ("tap0", "80.0")):
                mask = 32 if device == "host0" else 24
                _ip(f"-n {name} addr add 10.{address}.{host + 1}/{mask} dev {device}")
                _ip(f"-n {name} link set {device} mtu {MTU} up")
            _ip(f"-n {name} link set lo up")
            _quietly(self.command(host, "sysctl", "-qw", "net.ipv4.tcp_congestion_control=cubic"))
        self.shape(Shape())

    def _start_relay(self) -> list[str]:
        names = [f"{self._tag}t{host}" for host in range(self.hosts)]
        words = [sys.executable, str(_RELAY), *names]
        self._relay = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._relay.stdout is not None
        if self._relay.stdout.readline().strip() != "ready":
            raise RuntimeError("the relay did not start")
        return names

    def shape(self, shape: Shape) -> None:
        """Let every link be so from now on; connections stay."""
        assert self._relay is not None, "shape is for a network that is there"
        assert self._relay.stdin is not None
        assert self._relay.stdout is not None
        self._relay.stdin.write(f"{shape.delay}\n")
        self._relay.stdin.flush()
        assert self._relay.stdout.readline().strip() == "ok"
        for host in range(self.hosts):
            self._shape(host, shape)

    def _shape(self, host: int, shape: Shape) -> None:
        name = self.namespace(host)
        device, net = ("tap0", "80.0") if shape.delay else ("eth0", "79.0")
        for peer in range(self.hosts):
            if peer != host:
                way = f"via 10.{net}.{peer + 1} dev {device} src {self.address(host)}"
                _ip(f"-n {name} route replace {self.address(peer)}/32 {way}")
        for each in ("tap0", "eth0"):
            _quietly(["tc", "-n", name, *f"qdisc del dev {each} root".split()])
        if shape.rate is not None:
            bucket = f"tbf rate {int(shape.rate)}bit burst {shape.burst} latency 50ms"
            _run(["tc", "-n", name, *f"qdisc add dev {device} root {bucket}".split()])

    def close(self) -> None:
        """Take everything down again."""
        if self._relay is not None:
            self._relay.kill()
            self._relay.wait()
        for name in (*(self.namespace(host) for host in range(self.hosts)), f"{self._tag}-sw"):
            _quietly(["ip", "netns", "del", name])


@contextlib.contextmanager
def network(hosts: int) -> Iterator[Network]:
    """A network that is there, and gone afterwards."""
    with Network(hosts) as made:
        yield made


def _ip(line: str) -> None:
    _run(["ip", *line.split()])


def _run(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")


def _quietly(words: list[str]) -> None:
    subprocess.run(words, capture_output=True, check=False)
