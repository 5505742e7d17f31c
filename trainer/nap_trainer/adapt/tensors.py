"""A safetensors file written again with other rows in some of its matrices; bytes are streamed, never held.

The format: eight bytes with the header's length (little endian), a JSON header that gives dtype, shape and byte range
of every tensor, then the bytes. Shapes: V rows of a matrix, D its width.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from nap_runtime.errors import ModelError

_BLOCK = 1 << 24
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_ALIGNMENT = 8

Rows = Mapping[int, Tensor]


def row_statistics(stored: Any, rows: int, block: int = 8192) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the first `rows` rows, each [D] in float32, read a block at a time.

    `stored` is an open safetensors file's slice of a matrix.
    """
    total_D = squares_D = torch.zeros(stored.get_shape()[1], dtype=torch.float64)
    for start in range(0, rows, block):
        part_BD = stored[start : min(start + block, rows)].double()
        total_D, squares_D = total_D + part_BD.sum(0), squares_D + part_BD.square().sum(0)
    mean_D = total_D / rows
    variance_D = (squares_D - rows * mean_D.square()).clamp(min=0) / max(rows - 1, 1)
    return mean_D.float(), variance_D.sqrt().float()


def data_bytes(file: Path) -> int:
    """Bytes of all tensors of a file, without its header."""
    with file.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
    return file.stat().st_size - 8 - int(size)


def with_rows(source: Path, target: Path, changes: Mapping[str, tuple[int, Rows]]) -> None:
    """Write `target` as `source` with changed matrices.

    Args:
        source: a whole safetensors file.
        target: a file that does not exist.
        changes: of a matrix, by its name: how many rows it has from now on (not fewer), and new values of some rows;
            every row behind the old ones needs a value.

    Raises:
        ModelError: a matrix has another type than floating-point numbers.
    """
    with source.open("rb") as reader, target.open("xb") as writer:
        (size,) = struct.unpack("<Q", reader.read(8))
        old = json.loads(reader.read(size))
        _check(source, old, changes)
        header = _header(old, changes)
        writer.write(struct.pack("<Q", len(header)) + header)
        for name, entry in _in_order(old):
            start, stop = entry["data_offsets"]
            reader.seek(8 + size + start)
            if name in changes:
                _matrix(reader, writer, entry, *changes[name])
            else:
                _copy(reader, writer, stop - start)
    target.chmod(0o644)


def _in_order(header: Mapping[str, Any]) -> list[tuple[str, Any]]:
    tensors = ((name, entry) for name, entry in header.items() if name != "__metadata__")
    return sorted(tensors, key=lambda item: item[1]["data_offsets"][0])


def _check(source: Path, header: Mapping[str, Any], changes: Mapping[str, tuple[int, Rows]]) -> None:
    for name, (count, rows) in changes.items():
        entry = header[name]
        if entry["dtype"] not in _DTYPES:
            raise ModelError(f"{source}: tensor {name!r} is {entry['dtype']}: give an unquantised checkpoint")
        had, width = entry["shape"]
        assert count >= had
        assert set(range(had, count)) <= set(rows) <= set(range(count))
        assert all(tuple(row.shape) == (width,) for row in rows.values())


def _header(old: Mapping[str, Any], changes: Mapping[str, tuple[int, Rows]]) -> bytes:
    """The new header's bytes: offsets moved behind the matrices that grew, padded as safetensors does it."""
    new = {key: value for key, value in old.items() if key == "__metadata__"}
    at = 0
    for name, entry in _in_order(old):
        size, shape = entry["data_offsets"][1] - entry["data_offsets"][0], list(entry["shape"])
        if name in changes:
            size, shape = size // shape[0] * changes[name][0], [changes[name][0], shape[1]]
        new[name] = {"dtype": entry["dtype"], "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(new, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % _ALIGNMENT)


def _matrix(reader: BinaryIO, writer: BinaryIO, entry: Mapping[str, Any], count: int, rows: Rows) -> None:
    had, width = entry["shape"]
    dtype = _DTYPES[entry["dtype"]]
    start, each = reader.tell(), width * dtype.itemsize
    done = 0
    for at in (*sorted(rows), count):
        _copy(reader, writer, (min(at, had) - done) * each)
        if at < count:
            writer.write(rows[at].to(dtype).contiguous().view(torch.uint8).numpy().tobytes())
            done = at + 1
            reader.seek(start + min(done, had) * each)


def _copy(reader: BinaryIO, writer: BinaryIO, size: int) -> None:
    """Copy bytes from where the reader stands; a size below 1 copies none."""
    while size > 0:
        block = reader.read(min(size, _BLOCK))
        assert block, "the file was whole when it was opened"
        writer.write(block)
        size -= len(block)
