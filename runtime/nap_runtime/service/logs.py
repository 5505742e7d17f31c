"""Structured logs: one line an event, with the job it belongs to. No prompt, no result and no token is ever logged."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any, TextIO

LEVELS = ("debug", "info", "warning", "error")


class Log:
    """Writes events as JSON lines, or as text for a terminal.

    Args:
        level: the least that is written.
    """

    def __init__(self, *, out: TextIO | None = None, as_json: bool = True, level: str = "info") -> None:
        self._out, self._json, self._lowest = out or sys.stderr, as_json, LEVELS.index(level)
        self._lock = threading.Lock()

    def write(self, level: str, event: str, **fields: Any) -> None:
        """One event; fields that are None are left out."""
        if LEVELS.index(level) >= self._lowest:
            self._write(level, event, fields)

    def announce(self, event: str, **fields: Any) -> None:
        """What is written at any level, because others wait for it."""
        self._write("info", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        given = {name: value for name, value in fields.items() if value is not None}
        now = time.time()
        if self._json:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
            line = json.dumps({"time": stamp, "level": level, "event": event, **given}, default=str)
        else:
            shown = " ".join(f"{name}={_short(value)}" for name, value in given.items())
            line = f"{time.strftime('%H:%M:%S', time.localtime(now))} {level:<7} {event} {shown}".rstrip()
        with self._lock:
            print(line, file=self._out, flush=True)

    def debug(self, event: str, **fields: Any) -> None:
        """What only somebody who looks for a fault wants."""
        self.write("debug", event, **fields)

    def info(self, event: str, **fields: Any) -> None:
        """What happens anyway."""
        self.write("info", event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        """What was mended."""
        self.write("warning", event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        """What needs somebody."""
        self.write("error", event, **fields)


def _short(value: Any) -> str:
    text = str(value).replace("\n", " ")
    return json.dumps(text) if " " in text else text
