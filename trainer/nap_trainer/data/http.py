"""POST of JSON with a deadline and a limit on the answer's size; redirects are refused.

The standard library does it: proxies and certificates come from the environment as everywhere. A redirect is
refused because it would carry the key to another host.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from nap_runtime import __version__
from nap_runtime.errors import UsageError

# Some servers turn away the library's own User-Agent.
_HEADERS = {"Content-Type": "application/json", "User-Agent": f"nap-runtime/{__version__}"}
_CHUNK = 65536
_LIMIT = 16 * 2**20


class TransportError(Exception):
    """No whole answer came."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Status, seconds to wait as the server asks, and the body."""

    status: int
    retry_after: float | None
    body: bytes


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirect)


def check_url(url: str, field: str) -> str:
    """The URL without its last slash; UsageError unless it is http(s) with a host and without a password."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(f"{field}: '{url}' is no http:// or https:// URL", field=field)
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError(f"{field}: give scheme, host and path only; a key comes from the environment", field=field)
    return url.rstrip("/")


def post_json(url: str, body: Mapping[str, Any], headers: Mapping[str, str], *, timeout: float) -> Reply:
    """Send, and read the whole answer, both within `timeout` seconds.

    Raises:
        TransportError: it could not be done in time.
    """
    deadline = time.monotonic() + timeout
    data = json.dumps(body, allow_nan=False).encode()
    request = urllib.request.Request(url, data, {**_HEADERS, **headers}, method="POST")
    try:
        with _opener.open(request, timeout=timeout) as answer:
            return Reply(answer.status, None, _read(answer, deadline))
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, retry_after(error.headers.get("Retry-After")), _error_body(error, deadline))
    except TimeoutError:
        raise TransportError(f"no answer within {timeout:g} s") from None
    except urllib.error.URLError as error:
        timed_out = isinstance(error.reason, TimeoutError)
        raise TransportError(f"no answer within {timeout:g} s" if timed_out else str(error.reason)) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise TransportError(str(error) or type(error).__name__) from None


def _read(answer: Any, deadline: float) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := answer.read1(_CHUNK):
        parts.append(part)
        size += len(part)
        if size > _LIMIT:
            raise TransportError(f"an answer of more than {_LIMIT} bytes")
        if time.monotonic() > deadline:
            raise TransportError("the answer came too slowly")
    if answer.length:  # bytes that were announced and did not come
        raise TransportError("the answer broke off")
    return b"".join(parts)


def _error_body(error: urllib.error.HTTPError, deadline: float) -> bytes:
    """What an error says; that it says nothing is no second error."""
    try:
        return _read(error.fp, deadline)
    except (TransportError, OSError, http.client.HTTPException, AttributeError):
        return b""


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date; None without one or for nonsense."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value.strip()[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None
