"""Rows of JSONL and parquet files, one at a time, each with its number; errors name file, row and field."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nap_runtime.errors import DataError, UsageError
from nap_trainer.data.schema import MAX_ROW_BYTES, BadRow, FieldError, NapExample, Row

_PARQUET = ".parquet"
_BATCH = 256
_BOM = b"\xef\xbb\xbf"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RawRow:
    """An object as it stands in the file, and its number from 1."""

    number: int
    values: Mapping[str, Any]


def read_rows(file: Path) -> Iterator[Row | BadRow]:
    """Every row of a file, good or bad.

    Raises:
        UsageError: the file cannot be opened.
        DataError: it is damaged as a whole, or has no rows.
    """
    for number, item in built_rows(file, NapExample.from_mapping):
        yield item if isinstance(item, BadRow) else Row(number, item)


def read_examples(file: Path) -> Iterator[NapExample]:
    """Every row of a file; DataError at the first bad one."""
    for row in read_rows(file):
        yield good(file, row).example


def good(file: Path, row: Row | BadRow) -> Row:
    """The row; DataError where it is bad."""
    if isinstance(row, BadRow):
        raise DataError(f"{file}: {place(file)} {row.number}: {row.text}")
    return row


def place(file: Path) -> str:
    """What the numbers count: `line` of a text file, `row` of a table."""
    return "row" if file.suffix == _PARQUET else "line"


def built_rows(file: Path, build: Callable[[Mapping[str, Any]], T]) -> Iterator[tuple[int, T | BadRow]]:
    """Every row's number, and what `build` makes of it or why it cannot."""
    rows = 0
    for raw in _raw_rows(file):
        rows += 1
        if isinstance(raw, BadRow):
            yield raw.number, raw
            continue
        try:
            item: T | BadRow = build(raw.values)
        except FieldError as error:
            item = BadRow(raw.number, error.field, error.complaint)
        yield raw.number, item
    if not rows:
        raise DataError(f"{file}: it has no rows")


def _raw_rows(file: Path) -> Iterator[RawRow | BadRow]:
    if not file.is_file():
        reason = "is a folder; give a file" if file.is_dir() else "No such file"
        raise UsageError(f"{file}: {reason}")
    return _parquet_rows(file) if file.suffix == _PARQUET else _jsonl_rows(file)


# -- JSONL -----------------------------------------------------------------------------------------


def _jsonl_rows(file: Path) -> Iterator[RawRow | BadRow]:
    """Lines that are not blank. A line beyond the limit is never held in memory as a whole."""
    with file.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_ROW_BYTES + 1):
            number += 1
            if len(line) > MAX_ROW_BYTES:
                while line and not line.endswith(b"\n"):
                    line = stream.readline(MAX_ROW_BYTES)
                yield BadRow(number, "", f"is longer than {MAX_ROW_BYTES} bytes")
            elif (line.removeprefix(_BOM) if number == 1 else line).strip():
                yield _parsed(number, line.removeprefix(_BOM) if number == 1 else line)


def _parsed(number: int, line: bytes) -> RawRow | BadRow:
    try:
        values = json.loads(line, parse_constant=_no_constant)
    except UnicodeDecodeError:
        return BadRow(number, "", "not UTF-8")
    except (ValueError, RecursionError):
        return BadRow(number, "", "not JSON")
    if not isinstance(values, dict):
        return BadRow(number, "", "not a JSON object")
    return RawRow(number, values)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


# -- parquet ---------------------------------------------------------------------------------------


def _parquet_rows(file: Path) -> Iterator[RawRow]:
    """Rows of a table. A struct's or a row's missing members are null there: they are left out."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError(f"{file} is parquet: pip install 'nap-runtime[train]', or give JSONL") from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=_BATCH):
                for values in batch.to_pylist(maps_as_pydicts="strict"):
                    number += 1
                    yield RawRow(number, _without_nulls(values))
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{file}: cannot be read as parquet ({str(error).splitlines()[0][:200]})") from None


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in values.items() if value is not None}
    if isinstance(kept.get("paths"), dict):
        kept["paths"] = {key: path for key, path in kept["paths"].items() if path is not None}
    return kept
