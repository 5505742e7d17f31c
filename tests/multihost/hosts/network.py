"""The hosts' network: one bridge, a cable from it to every host, and what can happen to a cable."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

from hosts.probe import find


class Wire:
    """A network namespace, held by a process that ends when its standard input does."""

    def __init__(self, label: str) -> None:
        line = [find("unshare"), "--net", "sh", "-c", "echo ready; read _", "wire", label]
        self._holder = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"
        self.run("ip", "link", "set", "lo", "up")

    @property
    def pid(self) -> int:
        """The process that holds the namespace."""
        return self._holder.pid

    @property
    def path(self) -> Path:
        """The namespace, for `nsenter --net=PATH`."""
        return Path(f"/proc/{self.pid}/ns/net")

    def run(self, command: str, *arguments: str) -> str:
        """Run `ip` or `tc` in the namespace; its output."""
        line = [find("nsenter"), f"--net={self.path}", find(command), *arguments]
        done = subprocess.run(line, capture_output=True, text=True, timeout=30)
        if done.returncode:
            raise RuntimeError(f"{command} {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def close(self) -> None:
        """Let the namespace, and the cables that end in it, go."""
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.stdout.close()
        self._holder.wait(timeout=10)


class Switch:
    """The bridge all hosts are connected to."""

    def __init__(self, label: str) -> None:
        self._wire = Wire(label)
        self._wire.run("ip", "link", "add", "br0", "type", "bridge", "forward_delay", "0")
        self._wire.run("ip", "link", "set", "br0", "up")

    def plug(self, host: Wire, port: str, address: str) -> Cable:
        """Lay a cable to a host: `eth0` there, `port` here."""
        self._wire.run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
        self._wire.run("ip", "link", "set", port, "master", "br0", "up")
        host.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        # Ray and torch find their own address by the way to somewhere else; there need not be anything.
        host.run("ip", "route", "add", "default", "dev", "eth0")
        return Cable(self._wire, port, host)

    def close(self) -> None:
        """Take the network away."""
        self._wire.close()


class Cable:
    """A host's link. It begins whole and as fast as the machine copies memory."""

    def __init__(self, switch: Wire, port: str, host: Wire) -> None:
        self._switch, self._port, self._host = switch, port, host

    def cut(self) -> None:
        """Nothing comes through any more. Neither end is told: the carrier stays, and nobody answers or refuses."""
        self._switch.run("ip", "link", "set", self._port, "nomaster")

    def heal(self) -> None:
        """Undo `cut`."""
        self._switch.run("ip", "link", "set", self._port, "master", "br0")

    def shape(self, rate: str | None, burst: int | None) -> None:
        """A token bucket on either end; None: as fast as can be.

        Args:
            rate: as `tc` takes it: "10gbit", "100mbit".
            burst: bytes that pass at once; None: what a millisecond brings, at least one segment of 64 KiB.
        """
        for wire, device in ((self._host, "eth0"), (self._switch, self._port)):
            with contextlib.suppress(RuntimeError):  # there is none yet
                wire.run("tc", "qdisc", "del", "dev", device, "root")
            if rate is not None:
                size = str(burst or max(70_000, bits_per_second(rate) // 8000))
                bucket = ("root", "tbf", "rate", rate, "burst", size, "latency", "50ms")
                wire.run("tc", "qdisc", "add", "dev", device, *bucket)


def bits_per_second(rate: str) -> int:
    """ "1gbit" → 1_000_000_000."""
    for unit, factor in (("gbit", 10**9), ("mbit", 10**6), ("kbit", 10**3), ("bit", 1)):
        if rate.endswith(unit):
            return int(float(rate.removesuffix(unit)) * factor)
    raise ValueError(f"{rate!r} is not a rate such as 100mbit")
