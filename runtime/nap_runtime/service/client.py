"""Clients of the service: `AsyncClient` for coroutines, `Client` for everybody else.

Both try again, within `patience` seconds, what is safe to try again: a job that is submitted twice under one key runs
once, and a stream that breaks goes on after the last event seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc

from nap_runtime.auto import AutoSync
from nap_runtime.errors import (
    UnavailableError,
    UsageError,
)
from nap_runtime.job import DecodeConfig
from nap_runtime.service.answers import STATES, Finished, JobEvent, JobInfo, JobResult, event_of, job_of, result_of
from nap_runtime.service.configs import config_to_proto
from nap_runtime.service.patience import Patience, error_of
from nap_runtime.service.settings import is_loopback, split_address
from nap_runtime.service.v1 import decoder_pb2 as pb
from nap_runtime.service.v1 import decoder_pb2_grpc as rpc
from nap_runtime.values import number

T = TypeVar("T")
DEFAULT_ADDRESS = "127.0.0.1:50051"
TOKEN_VARIABLE, ADDRESS_VARIABLE = "NAP_TOKEN", "NAP_SERVER"
_CALL_SECONDS = 30.0
_LONGEST_SECONDS = 100 * 366 * 86400  # a deadline after it is no timestamp of protobuf's
_OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


class AsyncClient:
    """A client for coroutines.

    Args:
        address: HOST:PORT (None: $NAP_SERVER, else 127.0.0.1:50051).
        token: bearer token (None: $NAP_TOKEN).
        ca: PEM file of the authority that signed the server's certificate; turns TLS on.
        cert, key: PEM files of a certificate of one's own, for mTLS.
        patience: seconds to go on trying while nobody answers, or the queue is full.

    Raises:
        UsageError: the arguments contradict each other, or would send a token in the clear to another machine.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        ca: str | Path | None = None,
        cert: str | Path | None = None,
        key: str | Path | None = None,
        patience: float = 60.0,
    ) -> None:
        self.address = address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
        token = token or os.environ.get(TOKEN_VARIABLE)
        host, _ = split_address("server", self.address)
        if ca is None and (cert or key):
            raise UsageError("cert: only TLS has certificates; give ca too", field="cert")
        if ca is None and token and not is_loopback(host):
            raise UsageError("token: it would travel in the clear; give ca for TLS", field="token")
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._patience = _seconds("patience", patience)
        if ca is None:
            self._channel = grpc.aio.insecure_channel(self.address, options=_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(self.address, _credentials(ca, cert, key), options=_OPTIONS)
        self._stub: Any = rpc.DecoderStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    # -- jobs -----------------------------------------------------------------------------------------------------

    async def submit(
        self,
        prompt: str | Sequence[int],
        config: DecodeConfig | None = None,
        *,
        key: str | None = None,
        name: str = "",
        gold: str | None = None,
        priority: int = 0,
        within: float | None = None,
        labels: Mapping[str, str] | None = None,
        model: str = "",
        auto: AutoSync | None = None,
    ) -> JobInfo:
        """Submit a job; when this returns, the server has journaled it.

        Args:
            prompt: a question as text, or token ids.
            config: how to decode it (None: the model's defaults).
            key: idempotency key; the same key with the same content is the same job (None: a random one).
            name, gold: come back with the result; with a gold answer it says whether it was met.
            priority: higher runs first, −100 to 100.
            within: seconds after which the result is of no use; the job then expires.
            labels: marks of your own, to list by.
            auto: a sync that the server chooses, in place of the config's; what comes back names it.

        Raises:
            UsageError: a value is wrong. BusyError: the queue stayed full. KeyConflictError: the key is another job's.
            UnavailableError: nobody answered. AccessError: no valid token, or not its scope.
        """
        spec = pb.JobSpec(model=model, id=name, config=config_to_proto(config or DecodeConfig(), auto))
        if isinstance(prompt, str):
            spec.prompt.text = _encodable(prompt)
        else:
            spec.prompt.token_ids.ids.extend(prompt)
        if gold is not None:
            spec.gold = gold
        request = pb.SubmitRequest(
            idempotency_key=key or secrets.token_hex(16), spec=spec, priority=priority, labels=dict(labels or {})
        )
        if within is not None:
            request.deadline.FromNanoseconds(round((time.time() + _seconds("within", within)) * 1e9))
        response = await self._call(self._stub.Submit, request)
        return job_of(response.job, existed=response.existed, chosen=response.chosen)

    async def get(self, job_id: str) -> JobInfo:
        """A job as it stands.

        Raises:
            NoSuchJobError: there is none.
        """
        return job_of((await self._call(self._stub.Get, pb.GetRequest(job_id=job_id))).job)

    async def list(
        self, *, states: Sequence[str] = (), labels: Mapping[str, str] | None = None, limit: int = 1000
    ) -> list[JobInfo]:
        """Jobs, newest first, that are in one of `states` and carry all of `labels`."""
        for state in states:
            if state not in STATES:
                raise UsageError(f"states: '{state}' is none of {', '.join(STATES)}", field="states")
        found: list[JobInfo] = []
        token = ""
        while len(found) < limit:
            request = pb.ListRequest(
                page_size=min(limit - len(found), 200),
                page_token=token,
                states=[STATES[state] for state in states],
                labels=dict(labels or {}),
            )
            response = await self._call(self._stub.List, request)
            found += [job_of(job) for job in response.jobs]
            token = response.next_page_token
            if not token:
                break
        return found

    async def cancel(self, job_id: str, reason: str = "") -> JobInfo:
        """Stop a job. One that has ended stays as it is: look at the state of what comes back."""
        return job_of((await self._call(self._stub.Cancel, pb.CancelRequest(job_id=job_id, reason=reason))).job)

    async def cluster(self) -> pb.ClusterResponse:
        """What the service runs on."""
        response: pb.ClusterResponse = await self._call(self._stub.Cluster, pb.ClusterRequest())
        return response

    async def watch(self, job_id: str, *, after: int = 0, provisional: bool = False) -> AsyncIterator[JobEvent]:
        """A job's events in order, none missing and none twice, over however many connections; ends after the last.

        Args:
            after: only events with a greater number.
            provisional: also what is not common to all workers yet; these are revocable and have number 0.
        """
        patience = Patience(self._patience)
        while True:
            request = pb.WatchRequest(job_id=job_id, after_event=after, include_provisional=provisional)
            call = self._stub.Watch(request, metadata=self._metadata)
            try:
                async for response in call:
                    patience.renew()
                    event = event_of(response.event)
                    if response.event.number and response.event.number <= after:
                        continue
                    after = response.event.number or after
                    if event is None:
                        continue
                    yield event
                    if isinstance(event.body, Finished):
                        return
                await patience.wait(UnavailableError("the stream ended before the job did"))
            except grpc.aio.AioRpcError as error:
                await patience.wait(error_of(error))
            finally:
                call.cancel()

    async def result(self, job_id: str, *, record: bool = False) -> JobResult:
        """Wait for a job's end, and give its result.

        Args:
            record: with its trace.

        Raises:
            JobFailedError: it failed, expired or was cancelled.
        """
        async for event in self.watch(job_id):
            if isinstance(event.body, Finished) and event.body.result is not None and not record:
                return event.body.result
        view = pb.JOB_VIEW_FULL if record else pb.JOB_VIEW_RESULT
        return result_of((await self._call(self._stub.Get, pb.GetRequest(job_id=job_id, view=view))).job)

    async def decode(self, prompt: str, config: DecodeConfig | None = None, **more: Any) -> JobResult:
        """Submit and wait: `submit`, then `result`."""
        return await self.result((await self.submit(prompt, config, **more)).id)

    async def _call(self, method: Callable[..., Awaitable[T]], request: Any) -> T:
        patience = Patience(self._patience)
        while True:
            try:
                return await method(request, metadata=self._metadata, timeout=_CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                await patience.wait(error_of(error))


class Client:
    """The same for plain code: every method of `AsyncClient`, waiting. One client may serve many threads."""

    def __init__(self, address: str | None = None, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="nap client", daemon=True)
        self._thread.start()
        try:
            self._client = self._do(_make(address, options))
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def address(self) -> str:
        """HOST:PORT of the server."""
        return self._client.address

    def close(self) -> None:
        """Close the connection."""
        if self._thread.is_alive():
            self._do(self._client.close())
            self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def submit(self, prompt: str | Sequence[int], config: DecodeConfig | None = None, **more: Any) -> JobInfo:
        """See `AsyncClient.submit`."""
        return self._do(self._client.submit(prompt, config, **more))

    def get(self, job_id: str) -> JobInfo:
        """See `AsyncClient.get`."""
        return self._do(self._client.get(job_id))

    def list(self, **filters: Any) -> list[JobInfo]:
        """See `AsyncClient.list`."""
        return self._do(self._client.list(**filters))

    def cancel(self, job_id: str, reason: str = "") -> JobInfo:
        """See `AsyncClient.cancel`."""
        return self._do(self._client.cancel(job_id, reason))

    def cluster(self) -> pb.ClusterResponse:
        """See `AsyncClient.cluster`."""
        return self._do(self._client.cluster())

    def result(self, job_id: str, *, record: bool = False) -> JobResult:
        """See `AsyncClient.result`."""
        return self._do(self._client.result(job_id, record=record))

    def decode(self, prompt: str, config: DecodeConfig | None = None, **more: Any) -> JobResult:
        """See `AsyncClient.decode`."""
        return self._do(self._client.decode(prompt, config, **more))

    def watch(self, job_id: str, *, after: int = 0, provisional: bool = False) -> Iterator[JobEvent]:
        """See `AsyncClient.watch`."""
        stream: Any = self._client.watch(job_id, after=after, provisional=provisional)
        try:
            while (event := self._do(_next(stream))) is not None:
                yield event
        finally:
            with contextlib.suppress(RuntimeError):  # interrupted while it waited, it ends by itself
                self._do(stream.aclose())


async def _make(address: str | None, options: Mapping[str, Any]) -> AsyncClient:
    return AsyncClient(address, **options)


async def _next(stream: AsyncIterator[JobEvent]) -> JobEvent | None:
    return await anext(stream, None)


def _credentials(ca: str | Path, cert: str | Path | None, key: str | Path | None) -> grpc.ChannelCredentials:
    if (cert is None) != (key is None):
        raise UsageError("cert: give certificate and key, or neither", field="cert")
    read: list[bytes | None] = []
    for name, file in (("ca", ca), ("key", key), ("cert", cert)):
        try:
            read.append(None if file is None else Path(file).read_bytes())
        except OSError as error:
            raise UsageError(f"{name}: {file}: {error.strerror}", field=name) from error
    return grpc.ssl_channel_credentials(root_certificates=read[0], private_key=read[1], certificate_chain=read[2])


def _seconds(name: str, value: float) -> float:
    number(name, value, float)
    if not abs(value) <= _LONGEST_SECONDS:  # NaN too
        raise UsageError(f"{name}: {value} is not a number of seconds up to a hundred years", field=name)
    return value


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError("prompt: it is not valid Unicode text", field="prompt") from None
    return text
