"""One host."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hosts.network import Cable, Wire
from hosts.probe import find

INIT = Path(__file__).with_name("init.py")
HOME = Path.home()


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a host is made of.

    Args:
        name: hostname.
        address: IPv4 address.
        folder: where the host's own files lie on the machine.
        mnt: what its /mnt is.
        etc: files of the machine → the host's replacement.
        visible: paths inside private folders that the host sees all the same.
        sshd: the command of its ssh server.
        env: its environment, at login and for `Host.run`.
    """

    name: str
    address: str
    folder: Path
    mnt: Path
    etc: Mapping[str, Path]
    visible: Sequence[Path]
    sshd: Sequence[str]
    env: Mapping[str, str]

    def spec(self) -> str:
        """The argument of `init.py`."""
        private = {"/tmp": self.folder / "tmp", str(HOME): self.folder / "home", "/mnt": self.mnt}
        return json.dumps({
            "name": self.name, "etc": {file: str(own) for file, own in self.etc.items()},
            "private": {folder: str(own) for folder, own in private.items()}, "memory": ["/run", "/dev/shm"],
            "visible": [str(path) for path in self.visible], "stage": str(self.folder / "stage"),
            "sshd": list(self.sshd),
        })  # fmt: skip


class HostProcess(subprocess.Popen[str]):
    """A process on a host. Signals reach it and its children: it leads a process group."""

    def send_signal(self, sig: int) -> None:
        """Signal the whole group; `terminate` and `kill` come here too."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, sig)


class Host:
    """A running host; made by `Cluster`.

    Attributes:
        name: its hostname, which every host resolves.
        address: its IPv4 address.
        home, tmp: where its home and its /tmp lie on the machine, to be read and written from outside.
    """

    def __init__(self, machine: Machine, wire: Wire, cable: Cable) -> None:
        self.name, self.address = machine.name, machine.address
        self.home, self.tmp = machine.folder / "home", machine.folder / "tmp"
        self._machine, self._wire, self._cable = machine, wire, cable
        self._processes: list[HostProcess] = []
        self._init: subprocess.Popen[str] | None = None
        self._pid = 0
        self.start()

    def __repr__(self) -> str:
        return f"Host({self.name} {self.address})"

    # -- power --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Boot: at first, or again after `kill`. Its disk is as it was, its memory and its processes are gone."""
        stage = self._machine.folder / "stage"
        for left in stage.iterdir():
            left.rmdir()
        space = ("--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child")
        line = [find("nsenter"), f"--net={self._wire.path}", find("unshare"), *space]
        with (self._machine.folder / "init.log").open("w") as log:
            self._init = subprocess.Popen(
                [*line, sys.executable, "-I", "-S", str(INIT), self._machine.spec()], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True, env=dict(self._machine.env),
            )  # fmt: skip
        assert self._init.stdout is not None
        if self._init.stdout.readline() != "ready\n":
            raise RuntimeError(f"{self.name} did not start: {(self._machine.folder / 'init.log').read_text()}")
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text()
        self._pid = int(children.split()[0])

    @property
    def alive(self) -> bool:
        """Whether the host runs."""
        return self._init is not None and self._init.poll() is None

    def kill(self) -> None:
        """End every process at once. The kernel closes their connections, so peers are told."""
        if self._init is None:
            return
        if self.alive:
            os.kill(self._pid, signal.SIGKILL)
        for pipe in (self._init.stdin, self._init.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self._init.wait(timeout=20)
        for process in self._processes:
            process.wait(timeout=20)
        self._init, self._processes = None, []

    def power_off(self) -> None:
        """End every process, and no peer is told. Boot it again with `start`, after `heal`."""
        self.cut()
        self.kill()

    def close(self) -> None:
        """Take the host away."""
        self.kill()
        self._wire.close()

    # -- what can happen to it ----------------------------------------------------------------------------------

    def cut(self) -> None:
        """Lose every packet from and to this host; nobody is told."""
        self._cable.cut()

    def heal(self) -> None:
        """Undo `cut`."""
        self._cable.heal()

    def shape(self, rate: str | None, burst: int | None = None) -> None:
        """Limit the link both ways, as in `Cable.shape`; None lifts the limit."""
        self._cable.shape(rate, burst)

    def freeze(self) -> None:
        """Halt every process of the host; its kernel goes on answering."""
        self._order("stop")

    def thaw(self) -> None:
        """Undo `freeze`."""
        self._order("cont")
        for process in self._processes:
            process.send_signal(signal.SIGCONT)  # nsenter halts together with what it started

    @contextlib.contextmanager
    def slowed(self, share: float, period: float = 0.1) -> Iterator[None]:
        """Let the host's processes run a share (0 < share < 1) of the time only, in turns of `period` seconds."""
        over = threading.Event()

        def alternate() -> None:
            while not over.is_set():
                self.freeze()
                over.wait(period * (1 - share))
                self.thaw()
                over.wait(period * share)

        turn = threading.Thread(target=alternate)
        turn.start()
        try:
            yield
        finally:
            over.set()
            turn.join()

    def _order(self, word: str) -> None:
        assert self._init is not None
        assert self._init.stdin is not None
        assert self._init.stdout is not None
        self._init.stdin.write(f"{word}\n")
        self._init.stdin.flush()
        assert self._init.stdout.readline() == "done\n"

    # -- work ---------------------------------------------------------------------------------------------------

    def popen(
        self,
        command: Sequence[str | Path] | str,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = HOME,
        stdin: int | IO[str] | None = subprocess.DEVNULL,
        stdout: int | IO[str] | None = None,
        stderr: int | IO[str] | None = None,
    ) -> HostProcess:
        """Start a process on the host, with the host's environment and `env`; a string goes to a login shell.

        It ends with the host at the latest.
        """
        asked = ["bash", "--login", "-c", command] if isinstance(command, str) else list(map(str, command))
        line = [find("nsenter"), f"--target={self._pid}", "--mount", "--net", "--pid", "--uts", "--ipc"]
        line += ["--", "sh", "-c", 'cd "$0" && exec "$@"', str(cwd)]  # `nsenter --wd` would look outside
        environment = dict(self._machine.env) | dict(env or {})
        process = HostProcess(
            [*line, *asked], stdin=stdin, stdout=stdout, stderr=stderr, text=True, env=environment,
            start_new_session=True,
        )  # fmt: skip
        self._processes = [one for one in self._processes if one.poll() is None] + [process]
        return process

    def run(
        self,
        command: Sequence[str | Path] | str,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = HOME,
        stdin: str = "",
        timeout: float = 60.0,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host to its end; as `popen`.

        Raises:
            RuntimeError: with `check`, it failed; the message has all that it printed.
            subprocess.TimeoutExpired: it took too long, and was killed.
        """
        pipe = subprocess.PIPE
        process = self.popen(command, env=env, cwd=cwd, stdin=pipe, stdout=pipe, stderr=pipe)
        try:
            out, err = process.communicate(stdin, timeout=timeout)
        finally:
            process.kill()
            process.wait()
        if check and process.returncode:
            raise RuntimeError(f"{self.name}: {command!r} ended with {process.returncode}\n{out}\n{err}")
        return subprocess.CompletedProcess(command, process.returncode, out, err)
