"""A server of one's own as a child process: for notebooks, examples and tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

from nap_runtime.errors import UnavailableError

_START_SECONDS = 120.0


class LocalServer:
    """`nap serve` on a free loopback port; started on entry, drained on exit. Its log is read, line by line.

    Args:
        options: further options of `nap serve`.
        environment: variables put over this process's.

    Attributes:
        address: HOST:PORT; stays the same over restarts.
        events: what it has logged.
    """

    def __init__(self, options: Sequence[str] = (), *, environment: Mapping[str, str] | None = None) -> None:
        self._options, self._environment = list(options), dict(environment or {})
        self.address = "127.0.0.1:0"
        self.events: list[dict[str, Any]] = []
        self.noise: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._ready, self._up = threading.Event(), False
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, *, environment: Mapping[str, str] | None = None) -> None:
        """Start, and wait until it listens.

        Raises:
            UnavailableError: it ended instead; the message is its last line.
        """
        self._ready.clear()
        self._up = False
        listen = [] if "--listen" in self._options else ["--listen", self.address]
        command = [sys.executable, "-m", "nap_runtime.cli", "serve", "--log", "json", *listen, *self._options]
        paths = os.pathsep.join(filter(None, sys.path))
        variables = {**os.environ, "PYTHONPATH": paths, **self._environment, **(environment or {})}
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=variables
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        if not self._ready.wait(_START_SECONDS) or not self._up:
            self._process.kill()
            self._process.wait()
            last = self.noise[-1] if self.noise else "it said nothing"
            raise UnavailableError(f"the server did not start: {last}")

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            try:
                event = json.loads(line)
                self.events.append(event)
            except ValueError:
                self.noise.append(line.rstrip())
                continue
            if isinstance(event, dict) and event.get("event") == "server.ready":
                self.address, self._up = event["address"], True
                self._ready.set()
        process.stderr.close()
        self._ready.set()

    @property
    def process(self) -> int:
        """Its process id."""
        assert self._process is not None, "start was not called"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    def last(self, event: str) -> dict[str, Any] | None:
        """The newest log entry of a kind."""
        return next((entry for entry in reversed(self.events) if entry.get("event") == event), None)

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Send a signal, wait for the end; the exit code."""
        assert self._process is not None, "start was not called"
        self._process.send_signal(number)
        return self.wait()

    def wait(self, seconds: float = 60.0) -> int:
        """Wait for the end; the exit code.

        Raises:
            subprocess.TimeoutExpired: it goes on.
        """
        assert self._process is not None, "start was not called"
        code = self._process.wait(seconds)
        if self._reader is not None:
            self._reader.join(5.0)
        return code

    def stop(self) -> int:
        """Drain and end."""
        return self.kill(signal.SIGTERM) if self.running else self.wait()
