"""A teacher behind any OpenAI-compatible `/chat/completions`: retries, backoff with jitter, Retry-After.

Tried again are 408, 409, 425, 429 and 5xx, lost connections, answers that are late, no JSON or empty. 401, 403, 404
and the like end the run: they would repeat for every question. Any other refusal fails its own trace alone.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from nap_runtime.errors import TeacherError, UsageError
from nap_trainer.data.http import Reply, TransportError, check_url, post_json
from nap_trainer.data.teachers import Request, Trace

MAX_WAIT = 300.0  # seconds that one wait takes at most, whatever the server asks
_AGAIN = frozenset({408, 409, 425, 429})
_FATAL = frozenset({401, 402, 403, 404, 405})
_END = "/chat/completions"
_EXCERPT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a teacher is and how patiently it is asked.

    Args:
        base_url: up to, and without, `/chat/completions`.
        model: its name there.
        api_key: sent as a bearer token; never shown.
        temperature, max_tokens, seed: of the request's body.
        arguments: more of the body; they replace the others (None: leave out).
        concurrency: requests at once.
        timeout: seconds for one request.
        retries: tries after the first.
        backoff: seconds before the first retry; doubled for each further one.
    """

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    temperature: float = 1.0
    max_tokens: int = 1024
    seed: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 6
    backoff: float = 1.0

    @property
    def url(self) -> str:
        """Where requests go."""
        base = check_url(self.base_url, "base_url")
        return base if base.endswith(_END) else base + _END


def read_key(variable: str, *, required: bool) -> str | None:
    """The key in an environment variable; UsageError where it is required and missing, or is no key."""
    key = os.environ.get(variable, "").strip()
    if not key and required:
        raise UsageError(f"api_key_env: the variable {variable} is not set", field="api_key_env")
    if not (key.isascii() and key.isprintable()):
        raise UsageError(f"api_key_env: {variable} holds signs that no key has", field="api_key_env")
    return key or None


class _AgainError(Exception):
    """Worth another try, after so many seconds if the server said so."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class OpenAITeacher:
    """Asks an endpoint for one trace a request. Safe to use from several threads."""

    batch_size = 1

    def __init__(self, endpoint: Endpoint) -> None:
        """Connect to nothing yet."""
        self._endpoint = endpoint
        self._url = endpoint.url
        self._headers = {} if endpoint.api_key is None else {"Authorization": f"Bearer {endpoint.api_key}"}
        self._pause = _Pause()
        self._jitter = random.Random()
        self.concurrency = endpoint.concurrency

    @property
    def identity(self) -> Mapping[str, Any]:
        """Model and sampling; the endpoint's address may change."""
        e = self._endpoint
        sampling = {"temperature": e.temperature, "max_tokens": e.max_tokens, "seed": e.seed}
        return {"teacher": "openai", "model": e.model, **sampling, "arguments": dict(e.arguments)}

    def stop(self) -> None:
        """End every wait."""
        self._pause.stop()

    def sample(self, requests: Sequence[Request]) -> list[Trace]:
        """One trace each."""
        return [self._patiently(request) for request in requests]

    def _patiently(self, request: Request) -> Trace:
        e = self._endpoint
        for attempt in range(e.retries + 1):
            self._pause.wait()
            try:
                return self._once(request)
            except _AgainError as again:
                if attempt == e.retries:
                    raise TeacherError(f"{e.model}: {again} ({e.retries + 1} tries)") from None
                self._back_off(attempt, again.after)
        raise AssertionError("unreachable")

    def _back_off(self, attempt: int, after: float | None) -> None:
        """Wait; where the server named a time, every thread keeps to it."""
        if after is not None:
            self._pause.hold(min(after, MAX_WAIT))
        longest = min(self._endpoint.backoff * 2**attempt, MAX_WAIT)
        self._pause.sleep(longest * self._jitter.uniform(0.5, 1.0))

    def _once(self, request: Request) -> Trace:
        try:
            reply = post_json(self._url, self._body(request), self._headers, timeout=self._endpoint.timeout)
        except TransportError as error:
            raise _AgainError(self._shown(str(error))) from None
        if reply.status == HTTPStatus.OK:
            return _trace(_parsed(reply.body), self._shown)
        self._refuse(reply)
        raise AssertionError("unreachable")

    def _refuse(self, reply: Reply) -> None:
        text = f"HTTP {reply.status} {_phrase(reply.status)}{self._excerpt(reply.body)}"
        if reply.status in _AGAIN or reply.status >= 500:
            raise _AgainError(text, reply.retry_after)
        if reply.status == HTTPStatus.NOT_FOUND:
            text += f"; is the base URL right (often it ends with /v1), and the model '{self._endpoint.model}'?"
        fatal = reply.status in _FATAL or 300 <= reply.status < 400
        raise TeacherError(f"{self._url}: {text}", fatal=fatal)

    def _body(self, request: Request) -> dict[str, Any]:
        e = self._endpoint
        body: dict[str, Any] = {
            "model": e.model,
            "messages": [{"role": "user", "content": request.prompt}],
            "temperature": e.temperature,
            "max_tokens": e.max_tokens,
            "seed": None if e.seed is None else request.seed(e.seed),
            **e.arguments,
        }
        return {key: value for key, value in body.items() if value is not None}

    def _excerpt(self, body: bytes) -> str:
        text = self._shown(body.decode(errors="replace"))
        return f": {text}" if text else ""

    def _shown(self, text: str) -> str:
        """A server's words on one line, short, without control signs and without the key."""
        key = self._endpoint.api_key
        text = text.replace(key, "…") if key else text
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return text if len(text) <= _EXCERPT else text[:_EXCERPT] + "…"


class _Pause:
    """Waits that all threads share and that one call ends."""

    def __init__(self) -> None:
        self._until = 0.0
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def hold(self, seconds: float) -> None:
        """Nobody sends for so long."""
        with self._lock:
            self._until = max(self._until, time.monotonic() + seconds)

    def wait(self) -> None:
        """Until nobody is held; TeacherError once stopped."""
        while (left := self._until - time.monotonic()) > 0 and not self._stopped.is_set():
            self._stopped.wait(left)
        if self._stopped.is_set():
            raise TeacherError("stopped")

    def sleep(self, seconds: float) -> None:
        """For this thread alone."""
        self._stopped.wait(seconds)

    def stop(self) -> None:
        """End all waits."""
        self._stopped.set()


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "(unknown status)"


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise _AgainError("the answer is no JSON") from None


def _trace(answer: Any, shown: Any) -> Trace:
    """The text of a completion; an answer of another shape, or an empty one, is worth another try."""
    try:
        choice = answer["choices"][0]
        content, reason = choice["message"]["content"], choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        said = answer.get("error") if isinstance(answer, dict) else None
        raise _AgainError(f"the answer holds no choice{f': {shown(str(said))}' if said else ''}") from None
    cut = reason == "length"
    text = content if isinstance(content, str) else ""
    if not text.strip() and not cut:
        raise _AgainError("the answer is empty")
    return Trace(text, cut)
