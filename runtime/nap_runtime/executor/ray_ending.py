"""The end of a Ray cluster, or of our part in one, in bounded time: Ray itself waits for a frozen daemon for ever."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

PATIENCE = 10.0  # seconds that each of Ray's calls has at the end; a healthy cluster needs less than two


def within(seconds: float, call: Callable[[], Any]) -> bool:
    """Whether a call came back in time; one that did not goes on in a thread that keeps nothing alive."""

    def quietly() -> None:
        with contextlib.suppress(Exception):
            call()

    thread = threading.Thread(target=quietly, name="nap-ending", daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def leave(seconds: float) -> str:
    """Stop the cluster that this process has started, or leave the one it has joined.

    Daemons of our own that do not end are killed. Returns what is left behind, in one line; empty: nothing.
    """
    ours = _daemons()
    stopping = threading.Thread(target=ray.shutdown, name="nap-ending", daemon=True)
    stopping.start()
    stopping.join(seconds)
    if stopping.is_alive() and ours:
        for process in (*ours, *_below(ours)):
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        stopping.join(seconds)
    if not stopping.is_alive():
        return ""
    atexit.unregister(ray.shutdown)  # it would wait for the same again as this process ends
    if ours:
        return f"the cluster's processes {', '.join(map(str, ours))} were killed, and Ray still waits for them"
    return "the connection to the Ray cluster, whose daemon on this host does not answer"


def _daemons() -> list[int]:
    """Processes that Ray has started for this one; none where it has joined a cluster."""
    from ray._private.worker import _global_node

    started = {} if _global_node is None else _global_node.all_processes
    return [info.process.pid for infos in started.values() for info in infos]


def _below(processes: list[int]) -> list[int]:
    """What runs below them: workers and agents, which only their raylet would end."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found, todo = list[int](), list(processes)
    while todo:
        todo += (below := children.get(todo.pop(), []))
        found += below
    return found
