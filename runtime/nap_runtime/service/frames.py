"""Messages between a server and its groups: length-prefixed msgpack maps over a socket pair of one machine."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from typing import Any

import msgpack

MAX_BYTES = 64 << 20
_LENGTH = struct.Struct("<I")
Message = dict[str, Any]


class FrameError(Exception):
    """The other end sent what is no message."""


def encode(message: Message) -> bytes:
    """A message as it travels."""
    body = msgpack.packb(message)
    if len(body) > MAX_BYTES:
        raise FrameError(f"a message of {len(body)} bytes")
    return _LENGTH.pack(len(body)) + bytes(body)


def _decode(body: bytes) -> Message:
    try:
        message = msgpack.unpackb(body, max_ext_len=0)
    except Exception as error:  # msgpack raises several unrelated types for malformed input
        raise FrameError(f"not msgpack ({error})") from error
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise FrameError("a message without a kind")
    return message


def _length(head: bytes) -> int:
    (length,) = _LENGTH.unpack(head)
    if length > MAX_BYTES:
        raise FrameError(f"a message of {length} bytes")
    return int(length)


async def receive(reader: asyncio.StreamReader) -> Message | None:
    """The next message; None at the end."""
    try:
        return _decode(await reader.readexactly(_length(await reader.readexactly(_LENGTH.size))))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


class Channel:
    """The group's end; any thread may send."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._lock = sock, threading.Lock()
        self._file = sock.makefile("rb")

    def send(self, **message: Any) -> None:
        """Send a message."""
        data = encode(message)
        with self._lock:
            self._sock.sendall(data)

    def receive(self) -> Message | None:
        """The next message; None at the end."""
        try:
            head = self._file.read(_LENGTH.size)
            if len(head) < _LENGTH.size:
                return None
            length = _length(head)
            body = self._file.read(length)
        except OSError:
            return None
        return _decode(body) if len(body) == length else None
