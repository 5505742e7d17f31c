"""What a client makes of a call that failed: one of this package's errors, and whether to try again."""

from __future__ import annotations

import asyncio
import random
import time

import grpc

from nap_runtime.errors import (
    AccessError,
    BusyError,
    KeyConflictError,
    NapError,
    NoSuchJobError,
    NotBuiltError,
    ServiceError,
    UnavailableError,
    UsageError,
)

_FIRST_WAIT, _LONGEST_WAIT = 0.1, 2.0


class Patience:
    """How long to go on trying."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        """Something came through."""
        self._until, self._wait = time.monotonic() + self._seconds, _FIRST_WAIT

    async def wait(self, error: NapError) -> None:
        """Wait before the next try, or raise the error where trying again is of no use, or patience has ended."""
        if not isinstance(error, UnavailableError | BusyError) or time.monotonic() > self._until:
            raise error
        hint = error.retry_after if isinstance(error, BusyError) else 0.0
        await asyncio.sleep(max(self._wait, hint) * random.uniform(0.7, 1.3))
        self._wait = min(self._wait * 1.6, _LONGEST_WAIT)


def error_of(error: grpc.aio.AioRpcError) -> NapError:
    """A status as one of this package's errors."""
    code, text = error.code(), error.details() or error.code().name
    trailing = dict(tuple(error.trailing_metadata() or ()))
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        hint = trailing.get("retry-after-ms", "1000")
        return BusyError(text, retry_after=int(hint) / 1000 if str(hint).isdigit() else 1.0)
    field = trailing.get("nap-field")
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return UsageError(text, field=field if isinstance(field, str) else None)
    if code is grpc.StatusCode.UNIMPLEMENTED and field:
        return NotBuiltError(text, field=field if isinstance(field, str) else None)
    return _ERRORS.get(code, ServiceError)(f"{text}" if code in _ERRORS else f"{code.name}: {text}")


_ERRORS: dict[grpc.StatusCode, type[ServiceError]] = {
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: UnavailableError,
    grpc.StatusCode.UNAUTHENTICATED: AccessError,
    grpc.StatusCode.PERMISSION_DENIED: AccessError,
    grpc.StatusCode.NOT_FOUND: NoSuchJobError,
    grpc.StatusCode.ALREADY_EXISTS: KeyConflictError,
}
