"""A switch that holds every frame back for a while: TAP devices of this process, joined in user space.

    python relay.py TAP0 TAP1 …       prints `ready`; then each line on stdin is a delay in seconds, answered `ok`

The devices are made here and may be moved to other network namespaces: frames still come to this process. A frame goes
to the device behind which its destination was last seen, or to all others. Frames keep their order.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_FRAME = 65_535


def open_tap(name: str) -> int:
    """Make a TAP device; the file descriptor reads and writes Ethernet frames, and does not block."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return device


class Switch:
    """Which frames go where, and when. Knows no device: ports are numbers.

    Args:
        ports: how many.
        delay: seconds that a frame is held back, one way.
    """

    def __init__(self, ports: int, delay: float = 0.0) -> None:
        self.delay, self._ports = delay, ports
        self._behind: dict[bytes, int] = {}
        self._held: deque[tuple[float, int, bytes]] = deque()

    def take(self, port: int, frame: bytes, now: float) -> None:
        """A frame came in."""
        self._behind[frame[6:12]] = port
        self._held.append((now + self.delay, port, frame))

    def due(self, now: float) -> Iterator[tuple[int, bytes]]:
        """Frames to be sent, with their ports. A shorter delay does not let a frame overtake."""
        while self._held and self._held[0][0] <= now:
            _, source, frame = self._held.popleft()
            known = self._behind.get(frame[:6])
            for port in range(self._ports) if known is None else (known,):
                if port != source:
                    yield port, frame

    def wait(self, now: float) -> float | None:
        """Seconds until a frame is due; None where none is held."""
        return max(self._held[0][0] - now, 0.0) if self._held else None


def relay(taps: Sequence[int], control: int) -> None:
    """Until `control` is closed."""
    switch, ports = Switch(len(taps)), {device: port for port, device in enumerate(taps)}
    rest = b""
    while True:
        ready, _, _ = select.select([*taps, control], [], [], switch.wait(time.monotonic()))
        for device in ready:
            if device != control:
                _drain(device, ports[device], switch)
                continue
            read = os.read(control, 4096)
            if not read:
                return
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                switch.delay = float(line)
                print("ok", flush=True)
        for port, frame in switch.due(time.monotonic()):
            with contextlib.suppress(OSError):  # a device that is down, or full: the frame is lost
                os.write(taps[port], frame)


def _drain(device: int, port: int, switch: Switch) -> None:
    """Take in what is there, but not so much that what is due has to wait."""
    now = time.monotonic()
    with contextlib.suppress(BlockingIOError):
        for _ in range(32):
            switch.take(port, os.read(device, _FRAME), now)


def main() -> None:
    """See the module."""
    taps = [open_tap(name) for name in sys.argv[1:]]
    print("ready", flush=True)
    relay(taps, sys.stdin.fileno())


if __name__ == "__main__":
    main()
