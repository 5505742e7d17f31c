"""Rows in a JSONL file that survive a kill: written one by one, read again, never repeated.

A line that was cut short by a kill is dropped when the file is opened again. The file is locked while it is open.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from nap_runtime import places
from nap_runtime.errors import DataError, UsageError


def digest_of(values: Any) -> str:
    """Twelve hex digits of plain values: equal values have equal ones."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class RowFile:
    """The rows of a run, by key; new ones are appended and flushed to disk at once.

    Args:
        file: where (None: in memory only).
        key: the column that tells rows apart.
        run: digest of what the rows depend on; rows of another one are refused (None: any).
    """

    def __init__(self, file: Path | None, *, key: str, run: str | None = None) -> None:
        self._file, self._key, self._run = file, key, run
        self._stream: IO[bytes] | None = None
        self.rows: dict[Any, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        if self._file is not None:
            self._open(self._file)
        return self

    def _open(self, file: Path) -> None:
        """Lock and read.

        Raises:
            UsageError: the file cannot be opened, another process has it, or another run wrote it.
            DataError: a line within it is malformed, or a row stands there twice.
        """
        places.prepare(file, "out")
        try:
            self._stream = file.open("a+b")
        except OSError as error:
            raise UsageError(f"out: {file}: {error.strerror}", field="out") from error
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._stream.close()
            raise UsageError(f"out: {file} is being written by another process", field="out") from None
        try:
            self._read(self._stream, file)
        except BaseException:
            self._stream.close()
            raise

    def _read(self, stream: IO[bytes], file: Path) -> None:
        stream.seek(0)
        whole = 0
        for number, line in enumerate(stream.readlines(), start=1):
            if not line.endswith(b"\n"):
                break  # cut short by a kill
            self._add(line, f"{file}: line {number}", file)
            whole += len(line)
        stream.truncate(whole)
        stream.seek(0, os.SEEK_END)

    def _add(self, line: bytes, where: str, file: Path) -> None:
        try:
            values = json.loads(line)
            key = values[self._key]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{where}: not a row with '{self._key}'; move the file away") from None
        if self._run is not None and values.get("run") != self._run:
            text = f"out: {file} holds rows of another model, set or configuration; give another file"
            raise UsageError(text, field="out")
        if key in self.rows:
            raise DataError(f"{where}: the row {key!r} stands there twice")
        self.rows[key] = values

    def add(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Append a row; it is on disk when this returns."""
        values = dict(row) if self._run is None else {"run": self._run, **row}
        key = values[self._key]
        assert key not in self.rows, f"row {key!r} is there already"
        if self._stream is not None:
            self._stream.write(json.dumps(values, ensure_ascii=True, allow_nan=False).encode() + b"\n")
            self._stream.flush()
            os.fsync(self._stream.fileno())
        self.rows[key] = values
        return values

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()
