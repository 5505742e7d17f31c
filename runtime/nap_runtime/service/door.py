"""The HTTP door: OpenAI's `/v1/completions`, `/v1/chat/completions` and `/v1/models` on the same jobs.

Off unless asked for. The same tokens as gRPC, as OpenAI's clients send them; the same limits; TLS as configured.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from nap_runtime.errors import (
    AccessError,
    BusyError,
    JobFailedError,
    JournalError,
    KeyConflictError,
    NoSuchJobError,
    UnavailableError,
    UsageError,
)
from nap_runtime.service import openai
from nap_runtime.service.access import Caller
from nap_runtime.service.answers import result_of
from nap_runtime.service.configs import config_to_proto
from nap_runtime.service.logs import Log
from nap_runtime.service.rpc import Decoder, Guard
from nap_runtime.service.settings import ServerSettings, split_address
from nap_runtime.service.v1 import decoder_pb2 as pb

_STATUSES: tuple[tuple[type[Exception], int, str], ...] = (
    (UsageError, 400, "invalid_request_error"),
    (AccessError, 403, "permission_error"),
    (NoSuchJobError, 404, "not_found_error"),
    (KeyConflictError, 409, "conflict_error"),
    (BusyError, 429, "rate_limit_error"),
    (UnavailableError, 503, "server_error"),
    (JournalError, 503, "server_error"),
    (JobFailedError, 500, "server_error"),
)


class Door:
    """Listens beside gRPC, on the same event loop."""

    def __init__(self, settings: ServerSettings, decoder: Decoder, guard: Guard, log: Log) -> None:
        self._settings, self._decoder, self._guard, self._log = settings, decoder, guard, log
        self._server: _Uvicorn | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Listen; HOST:PORT that was taken.

        Raises:
            UsageError: the address or the certificate cannot be used.
        """
        host, port = split_address("http", str(self._settings.http))
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            listening.close()
            raise UsageError(f"http: {self._settings.http}: {error.strerror}", field="http") from error
        self._server = _Uvicorn(uvicorn.Config(self.app(), **_uvicorn_options(self._settings)))
        self._task = asyncio.ensure_future(self._server.serve(sockets=[listening]))
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0.01)
        return f"{host}:{listening.getsockname()[1]}"

    async def stop(self) -> None:
        """Let requests end for a moment, then close."""
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._task), 3.0)
            self._server.force_exit = True
            await asyncio.wait([self._task], timeout=2.0)

    def app(self) -> FastAPI:
        """The routes."""
        app = FastAPI(title="nap-runtime", docs_url=None, redoc_url=None, openapi_url=None)

        @app.exception_handler(Exception)
        async def failed(_: Request, error: Exception) -> Response:
            return _refusal(error)

        @app.get("/health")
        async def health() -> dict[str, str]:
            return {"status": "ok"}

        @app.get("/v1/models")
        async def models(request: Request) -> Response:
            try:
                self._caller(request, None)
            except Exception as error:
                return _refusal(error)
            entry = {"id": self._model, "object": "model", "created": 0, "owned_by": "nap-runtime"}
            return JSONResponse({"object": "list", "data": [entry]})

        @app.post("/v1/completions")
        async def completions(request: Request) -> Response:
            return await self._complete(request, chat=False)

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            return await self._complete(request, chat=True)

        return app

    @property
    def _model(self) -> str:
        return str(self._decoder.card.name)

    # -- one request --------------------------------------------------------------------------------------------------

    async def _complete(self, request: Request, *, chat: bool) -> Response:
        try:
            who = self._caller(request, "submit")
            wanted = openai.parse(await self._body(request), chat=chat)
            job = (await self._decoder.submit(_submission(request, wanted), who)).job
            answer = openai.Answer(job.id, self._model, chat=chat)
            if wanted.stream:
                return StreamingResponse(self._stream(job.id, answer, wanted, who), media_type="text/event-stream")
            return JSONResponse(answer.whole(result_of(await self._finished(request, job.id, who))))
        except Exception as error:
            if not any(isinstance(error, kind) for kind, _, _ in _STATUSES):
                self._log.error("http.failed", reason=f"{type(error).__name__}: {error}")
            return _refusal(error)

    def _caller(self, request: Request, scope: str | None) -> Caller:
        headers = [("authorization", value) for value in request.headers.getlist("authorization")]
        who = self._guard.caller(headers)
        if who is None:
            raise AccessError("a valid bearer token is needed")
        if scope is not None and not who.may(scope):
            raise AccessError(f"this token lacks the scope '{scope}'")
        return who

    async def _body(self, request: Request) -> bytes:
        """The body, as far as the limit goes: not a byte more is kept."""
        body, most = bytearray(), self._settings.limits.message_bytes
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise UsageError(f"body: longer than {most} bytes", field="body")
        return bytes(body)

    async def _finished(self, request: Request, job_id: str, who: Caller) -> pb.Job:
        """Wait for a job's end; a caller who hangs up no longer wants it."""
        watching = asyncio.ensure_future(self._last_event(job_id, who))
        while not watching.done():
            await asyncio.wait([watching], timeout=0.5)
            if not watching.done() and await request.is_disconnected():
                watching.cancel()
                await self._hang_up(job_id, who)
                raise UnavailableError("the caller hung up")
        return await watching

    async def _last_event(self, job_id: str, who: Caller) -> pb.Job:
        async for event in self._decoder.watch(pb.WatchRequest(job_id=job_id), who):
            if event.WhichOneof("body") == "finished":
                return event.finished.job
        raise UnavailableError("the server is going away; ask again in a moment")

    async def _stream(
        self, job_id: str, answer: openai.Answer, wanted: openai.Wanted, who: Caller
    ) -> AsyncIterator[str]:
        ended = False
        try:
            for chunk in filter(None, [answer.first()]):
                yield _sse(chunk)
            async for event in self._decoder.watch(pb.WatchRequest(job_id=job_id), who):
                for chunk in _grown(answer, event):
                    yield _sse(chunk)
                if event.WhichOneof("body") == "finished":
                    ended = True
                    for chunk in _ending(answer, event.finished.job, wanted):
                        yield _sse(chunk)
            yield "data: [DONE]\n\n"
        except Exception as error:
            ended = True
            yield _sse(_error_body(error)[1])
        finally:
            if not ended:
                await self._hang_up(job_id, who)

    async def _hang_up(self, job_id: str, who: Caller) -> None:
        cancel = self._decoder.cancel(pb.CancelRequest(job_id=job_id, reason="the caller hung up"), who)
        with contextlib.suppress(Exception):
            await asyncio.shield(asyncio.ensure_future(cancel))


def _submission(request: Request, wanted: openai.Wanted) -> pb.SubmitRequest:
    spec = pb.JobSpec(model=wanted.model, config=config_to_proto(wanted.config))
    if isinstance(wanted.prompt, str):
        try:
            spec.prompt.text = wanted.prompt
        except (UnicodeError, ValueError):
            raise UsageError("prompt: it is not valid Unicode text", field="prompt") from None
    else:
        spec.prompt.token_ids.ids.extend(wanted.prompt)
    key = request.headers.get("idempotency-key") or secrets.token_hex(16)
    return pb.SubmitRequest(idempotency_key=key, spec=spec, labels={"door": "http"})


def _grown(answer: openai.Answer, event: pb.Event) -> Iterator[dict[str, Any]]:
    if event.WhichOneof("body") == "canvas_update":
        for text in event.canvas_update.texts:
            if text.WhichOneof("place") == "summary" and (chunk := answer.grown(text.text)) is not None:
                yield chunk


def _ending(answer: openai.Answer, job: pb.Job, wanted: openai.Wanted) -> Iterator[dict[str, Any]]:
    result = result_of(job)
    if (chunk := answer.rest(result)) is not None:
        yield chunk
    yield answer.last()
    if wanted.usage:
        yield answer.counts(result)


def _sse(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk)}\n\n"


def _error_body(error: Exception) -> tuple[int, dict[str, Any]]:
    status, kind, text = 500, "server_error", "the server failed; its log says how"
    for wanted, number, name in _STATUSES:
        if isinstance(error, wanted):
            status, kind, text = number, name, " ".join(str(error).split())
            break
    if isinstance(error, AccessError) and "scope" not in text:
        status, kind = 401, "authentication_error"
    field = getattr(error, "field", None)
    return status, {"error": {"message": text[:1000], "type": kind, "param": field, "code": None}}


def _refusal(error: Exception) -> Response:
    status, body = _error_body(error)
    headers = {"Retry-After": str(max(1, round(error.retry_after)))} if isinstance(error, BusyError) else None
    return JSONResponse(body, status_code=status, headers=headers)


class _Uvicorn(uvicorn.Server):
    """Leaves the signals to the server that it is part of."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def _uvicorn_options(settings: ServerSettings) -> dict[str, Any]:
    options: dict[str, Any] = {
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "lifespan": "off",
        "limit_concurrency": settings.limits.calls,
        "timeout_keep_alive": 5,
        "timeout_graceful_shutdown": 2,
        "h11_max_incomplete_event_size": 64 << 10,
        "http": "h11",
        "ws": "none",
    }
    if settings.tls_cert is not None:
        options |= {"ssl_certfile": str(settings.tls_cert), "ssl_keyfile": str(settings.tls_key)}
    if settings.client_ca is not None:
        options |= {"ssl_ca_certs": str(settings.client_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return options
