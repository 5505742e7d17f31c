"""Canvas deltas on the wire: msgpack `[version, canvas size, [[step, worker, kind, tokens], …]]`.

A token is 8 bytes: u32 id, u16 position, f16 confidence, little-endian. Sizes are checked before anything of that size
is made; nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgpack
import numpy as np

from nap_runtime.decoding.kinds import Kind
from nap_runtime.decoding.record import CanvasDelta
from nap_runtime.errors import RecordError
from nap_runtime.job import MAX_CANVAS

DELTA_VERSION = 1
_TOKEN_BYTES = 8
_MAX_BYTES = 4 << 20
_MAX_DELTAS = 1 << 16
_MAX_WORKERS = 1024


def pack_deltas(deltas: Iterable[CanvasDelta], size: int) -> bytes:
    """The deltas of some steps of a canvas of `size` positions."""
    return bytes(msgpack.packb([DELTA_VERSION, size, [delta.to_wire() for delta in deltas]]))


def unpack_deltas(data: bytes) -> tuple[CanvasDelta, ...]:
    """Inverse of `pack_deltas`; confidences come back as f16 holds them.

    Raises:
        RecordError: it is too long, malformed, of another version, or names a position outside its canvas.
    """
    version, size, entries = _outer(data)
    if version != DELTA_VERSION:
        raise RecordError(f"delta: version {version!r} is not {DELTA_VERSION}")
    if type(size) is not int or not 0 < size <= MAX_CANVAS:
        raise RecordError(f"delta: a canvas of {size!r} positions is not one of 1 to {MAX_CANVAS}")
    if not isinstance(entries, list):
        raise RecordError("delta: no list of deltas")
    return tuple(_checked(entry, size) for entry in entries)


def _outer(data: bytes) -> list[Any]:
    if len(data) > _MAX_BYTES:
        raise RecordError(f"delta: {len(data)} bytes exceed the limit of {_MAX_BYTES}")
    try:
        values = msgpack.unpackb(
            data,
            max_array_len=_MAX_DELTAS,
            max_map_len=0,
            max_str_len=0,
            max_ext_len=0,
            max_bin_len=MAX_CANVAS * _TOKEN_BYTES,
        )
    except Exception as error:  # msgpack raises several unrelated types for malformed input
        raise RecordError(f"delta: not msgpack ({error})") from error
    if not isinstance(values, list) or len(values) != 3:
        raise RecordError("delta: not [version, size, deltas]")
    return values


def _checked(entry: Any, size: int) -> CanvasDelta:
    if not isinstance(entry, list) or len(entry) != 4 or not isinstance(entry[3], bytes):
        raise RecordError("delta: an entry is not [step, worker, kind, tokens]")
    for value, high in zip(entry[:3], (MAX_CANVAS, _MAX_WORKERS, max(Kind)), strict=True):
        if type(value) is not int or not 0 <= value <= high:
            raise RecordError(f"delta: {value!r} is not an integer from 0 to {high}")
    if len(entry[3]) % _TOKEN_BYTES:
        raise RecordError(f"delta: {len(entry[3])} bytes are no whole number of tokens")
    with np.errstate(invalid="ignore"):  # a negative confidence is a damaged one, and shows as not a number
        delta = CanvasDelta.from_wire(entry)
    if (delta.positions >= size).any():
        raise RecordError(f"delta: position {int(delta.positions.max())} lies outside a canvas of {size}")
    return delta


def apply_deltas(ids: np.ndarray[Any, np.dtype[np.int64]], deltas: Sequence[CanvasDelta], mask_id: int = -1) -> None:
    """Put deltas into a canvas's ids, in place.

    Raises:
        RecordError: a delta does not fit the canvas.
    """
    for delta in deltas:
        if len(delta.positions) and int(delta.positions.max()) >= len(ids):
            raise RecordError(f"delta: position {int(delta.positions.max())} lies outside a canvas of {len(ids)}")
        if delta.kind is not Kind.PROVISIONAL:  # which says what a slot would get, and changes nothing
            ids[delta.positions] = mask_id if delta.kind is Kind.REMASK else delta.ids
