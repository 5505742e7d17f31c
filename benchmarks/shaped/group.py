"""A group of workers, each in a host of a `Network`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from shaped.net import Network

_QUIET = {"PYTHONWARNINGS": "ignore", "TORCH_CPP_LOG_LEVEL": "ERROR"}
_RANK = Path(__file__).with_name("rank.py")


class Group:
    """Workers 0 … W−1 in hosts 0 … W−1, joined by gloo over their links."""

    def __init__(self, network: Network, workers: int, model: str = "nap-tiny") -> None:
        self.workers = workers
        env = {**os.environ, "GLOO_SOCKET_IFNAME": "host0", "OMP_NUM_THREADS": "1", **_QUIET}
        self._ranks = []
        for rank in range(workers):
            words = (str(_RANK), model, str(rank), str(workers), network.address(rank))
            command, pipe = network.command(rank, sys.executable, *words), subprocess.PIPE
            self._ranks.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env))
        port, *_ = [self._hear(rank)["port"] for rank in range(workers)]
        self.ask(do="join", port=port, host=network.address(0))

    def ask(self, **command: Any) -> list[dict[str, Any]]:
        """What every rank answers to a command that all get."""
        for rank in range(self.workers):
            self._tell(rank, command)
        return [self._hear(rank) for rank in range(self.workers)]

    def ask_one(self, rank: int, **command: Any) -> dict[str, Any]:
        """What one rank answers; the others know nothing of it."""
        self._tell(rank, command)
        return self._hear(rank)

    def _tell(self, rank: int, command: dict[str, Any]) -> None:
        stdin = self._ranks[rank].stdin
        assert stdin is not None
        stdin.write(json.dumps(command) + "\n")
        stdin.flush()

    def _hear(self, rank: int) -> dict[str, Any]:
        stdout = self._ranks[rank].stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"worker {rank} ended with {self._ranks[rank].wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End the workers."""
        for process in self._ranks:
            process.kill()
            process.wait()

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
