"""A worker group as its server sees it: a child process, what it says, and whether it still lives."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nap_runtime.distributed.probe import LinkProbe
from nap_runtime.service import failpoints
from nap_runtime.service.frames import FrameError, Message, encode, receive
from nap_runtime.service.settings import GroupSettings

START_SECONDS = 300.0


@dataclass(slots=True)
class GroupStatus:
    """What is known of a group. `state` is starting, idle, busy, recovering or failed."""

    index: int
    workers: int
    state: str = "starting"
    restarts: int = 0
    recoveries: int = 0
    last_recovery: float | None = None
    processes: list[int] = field(default_factory=list)
    places: list[list[str]] = field(default_factory=list)
    slow: list[tuple[int, str, float]] = field(default_factory=list)  # worker, host, factor
    link: LinkProbe | None = None  # as last measured


class GroupFailedError(Exception):
    """A group could not be started: the model or the settings are at fault, and trying again would not help."""

    def __init__(self, code: str, message: str, field: str) -> None:
        super().__init__(message)
        self.code, self.field = code, field


class Group:
    """One child process.

    Args:
        hear: takes every message but signs of life, one after another; awaited, so that a slow journal slows the group.
    """

    module = "nap_runtime.service.group"  # what the process runs; benchmarks/scale.py puts another in its place

    def __init__(self, index: int, settings: GroupSettings, hear: Callable[[Group, Message], Awaitable[None]]) -> None:
        self.settings, self._hear = settings, hear
        self.status = GroupStatus(index=index, workers=settings.workers)
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._heard = 0.0
        self._handling = False  # the server is busy with what the group said last

    async def start(self) -> None:
        """Bring the process up.

        Raises:
            GroupFailedError: it cannot decode.
            ConnectionError: it died or froze while it started.
        """
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", self.module, str(theirs.fileno()), str(os.getpid())]
        self._process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            start_new_session=True,  # Ctrl-C on the server's terminal is for the server, which drains
            env=_environment(self.status.index, self.status.restarts, self.settings),
        )
        theirs.close()
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        await self.send(kind="start", settings=asdict(self.settings))
        async with asyncio.timeout(START_SECONDS):
            while (message := await receive(self._reader)) is not None:
                if message["kind"] == "ready":
                    self._placed(message)
                    if message.get("link"):
                        self.status.link = LinkProbe(**message["link"])
                    self._heard = time.monotonic()
                    return
                if message["kind"] == "failed":
                    raise GroupFailedError(message["code"], message["message"], message["field"])
        raise ConnectionError(f"group {self.status.index} died while it started ({await self._ending()})")

    async def listen(self) -> str:
        """Hand on what the group says until it is gone; why it is gone."""
        watch = asyncio.ensure_future(self._watch())
        try:
            while (message := await receive(self._reader)) is not None:
                self._heard = time.monotonic()
                if message["kind"] in ("placed", "recovered"):
                    self._placed(message)
                if message["kind"] != "beat":
                    self._handling = True  # waiting for the journal is not the group's silence
                    await self._hear(self, message)
                    self._heard, self._handling = time.monotonic(), False
        except FrameError as error:
            return f"its coordinator sent {error}"
        finally:
            watch.cancel()
        if watch.done() and not watch.cancelled():
            return watch.result()
        return f"its coordinator died ({await self._ending()})"

    def _placed(self, message: Message) -> None:
        self.status.processes, self.status.places = message["processes"], message["places"]

    async def _watch(self) -> str:
        while self._handling or time.monotonic() < self._heard + self.settings.liveness:
            await asyncio.sleep(0.25)
        self.kill()
        return f"its coordinator has not answered for {self.settings.liveness:g} s"

    async def _ending(self) -> str:
        """How the process ended."""
        assert self._process is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                while self._process.poll() is None:
                    await asyncio.sleep(0.02)
        code = self._process.poll()
        if code is None:
            return "it still runs"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    async def send(self, **message: Any) -> None:
        """Tell the group something; what a dead one is told is lost."""
        if self._writer is not None:
            with contextlib.suppress(ConnectionError, RuntimeError):
                self._writer.write(encode(message))
                await self._writer.drain()

    def kill(self) -> None:
        """End the process and, where it holds workers as processes of its own, those too."""
        if self._process is None or self._process.poll() is not None:
            return
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _kill_frozen_workers(self) -> None:
        """Ray's workers end with their cluster or driver, but one that is frozen does not notice."""
        if not self.settings.on_ray:
            return
        workers, places, self.status.processes = self.status.processes[1:], self.status.places, []
        for process, (host, _) in zip(workers, places, strict=False):
            with contextlib.suppress(OSError):
                ours = Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"ray::WorkerActor")
                if host == socket.gethostname() and ours:
                    os.kill(process, signal.SIGKILL)

    async def stop(self, seconds: float) -> None:
        """Ask the process to end, then end it."""
        await self.send(kind="stop")
        deadline = time.monotonic() + seconds
        while self._process is not None and self._process.poll() is None and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        self.forget()

    def forget(self) -> None:
        """Let go of a process that is gone, or make it so."""
        self.kill()
        self._kill_frozen_workers()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5.0)
            self._process = None


def _environment(index: int, restarts: int, settings: GroupSettings) -> dict[str, str]:
    """A group's environment. Each restart uses up one failpoint, so that a list of them is met one after another.

    Groups that decode in their own process take the GPUs in turn; Ray gives its workers theirs.
    """
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if settings.device == "cuda" and not settings.on_ray:
        import torch

        given = variables.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        devices = given.split(",")
        variables["CUDA_VISIBLE_DEVICES"] = devices[index % len(devices)]
    points = variables.pop(failpoints.VARIABLE, "").split(",")
    kept = [point for index, point in enumerate(points) if index >= restarts or "~" in point]
    return {**variables, failpoints.VARIABLE: ",".join(kept)}
