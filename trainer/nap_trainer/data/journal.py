"""The journal of a curation: every trace as it came, appended and synced, one JSON line each.

A line is there or it is not: what follows the last line break is the rest of a write that was cut short, and is
taken away when the journal is opened again. One process at a time holds it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from nap_runtime.errors import DataError, UsageError
from nap_trainer.data.teachers import Trace

SCHEMA = "nap.curate/1"
_Place = tuple[int, int]  # offset and length of a line


class Journal:
    """Traces by question and number. Texts stay on disk; memory holds where they are."""

    def __init__(self, file: Path, identity: Mapping[str, Any]) -> None:
        """Open or begin; UsageError where it is in use or of another teacher, DataError where it is damaged."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._places = file, dict[str, dict[int, _Place]]()
        self._handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            self._size = self._without_torn_end()
            self._open(json.loads(json.dumps(identity)))
        except BaseException:
            os.close(self._handle)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def numbers(self, key: str) -> tuple[int, ...]:
        """Which traces of a question are there."""
        return tuple(sorted(self._places.get(key, ())))

    def traces(self, key: str) -> dict[int, Trace]:
        """The traces of a question by number."""
        return {number: self._read(place) for number, place in sorted(self._places.get(key, {}).items())}

    def append(self, key: str, number: int, trace: Trace) -> None:
        """Add a trace; it is on disk when this returns. One that is there already stays as it is."""
        if number in self._places.get(key, ()):
            return
        place = self._write({"key": key, "trace": number, "cut": trace.cut, "text": trace.text})
        self._places.setdefault(key, {})[number] = place

    # -- file --------------------------------------------------------------------------------------

    def _lock(self) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"out: another run is using {self._file}", field="out") from None

    def _without_torn_end(self) -> int:
        """Cut off what follows the last line break; returns the size."""
        size = end = os.fstat(self._handle).st_size
        while end > 0:
            start = max(0, end - 65536)
            at = os.pread(self._handle, end - start, start).rfind(b"\n")
            if at >= 0:
                end = start + at + 1
                break
            end = start
        if end != size:
            os.ftruncate(self._handle, end)
        return end

    def _open(self, identity: dict[str, Any]) -> None:
        lines = self._lines()
        first = next(lines, None)
        if first is None:
            self._write({"schema": SCHEMA, **identity})
            return
        self._check(first[1], identity)
        for number, (place, values) in enumerate(lines, start=2):
            try:
                key, trace = str(values["key"]), int(values["trace"])
                Trace(str(values["text"]), bool(values["cut"]))
            except (KeyError, TypeError, ValueError):
                raise self._damaged(number) from None
            self._places.setdefault(key, {}).setdefault(trace, place)

    def _lines(self) -> Iterator[tuple[_Place, dict[str, Any]]]:
        """Place and values of every line."""
        place = 0
        with self._file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    values = json.loads(line)
                except ValueError:
                    values = None
                if not isinstance(values, dict):
                    raise self._damaged(number)
                yield (place, len(line)), values
                place += len(line)

    def _check(self, found: dict[str, Any], identity: dict[str, Any]) -> None:
        if found.pop("schema", None) != SCHEMA:
            raise self._damaged(1)
        for key in sorted(found.keys() | identity.keys()):
            before, now = found.get(key), identity.get(key)
            if before != now:
                shown = f"{key.replace('_', ' ')} {_short(before)}, not {_short(now)}"
                raise UsageError(
                    f"out: {self._file} was begun with {shown}; give another file, or remove it", field="out"
                )

    def _damaged(self, line: int) -> DataError:
        return DataError(f"{self._file}: line {line}: not of a curation's journal; remove the line, or the file")

    def _read(self, place: _Place) -> Trace:
        offset, length = place
        values = json.loads(os.pread(self._handle, length, offset))
        return Trace(values["text"], values["cut"])

    def _write(self, values: Mapping[str, Any]) -> _Place:
        """Append one line and sync; returns its place."""
        data = json.dumps(values).encode() + b"\n"  # ASCII: any text a teacher sends can be written
        left = memoryview(data)
        while left:
            left = left[os.write(self._handle, left) :]
        os.fsync(self._handle)
        place = (self._size, len(data))
        self._size += len(data)
        return place


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:60] + "…"
