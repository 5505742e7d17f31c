"""`nap.v1.Decoder` over grpc.aio: every call checks who asks, then what is asked, then does it."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError

from nap_runtime.errors import (
    AccessError,
    BusyError,
    JournalError,
    KeyConflictError,
    NoSuchJobError,
    NotBuiltError,
    UnavailableError,
    UsageError,
)
from nap_runtime.service import failpoints, views
from nap_runtime.service.access import LOCAL, Caller, Tokens, bearer
from nap_runtime.service.dispatch import Dispatcher
from nap_runtime.service.gate import Accepted
from nap_runtime.service.journal import PAGE, JournalFullError
from nap_runtime.service.ledger import Ledger
from nap_runtime.service.store import EventRow, JobRow, NewJob
from nap_runtime.service.v1 import decoder_pb2 as pb
from nap_runtime.service.v1 import decoder_pb2_grpc as rpc
from nap_runtime.service.writer import AsyncJournal

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]

_KEY_BYTES, _LABELS, _LABEL_BYTES, _REASON_BYTES = 128, 16, 64, 512
_OPEN_METHODS, _OUR_METHODS = "/grpc.health.v1.Health/", "/nap.v1.Decoder/"
_WAIT_SECONDS = 15.0


class Guard(grpc.aio.ServerInterceptor):
    """Lets nobody without a valid token get further than health, whatever method is called."""

    def __init__(self, tokens: Tokens | None) -> None:
        self._tokens = tokens

    def caller(self, metadata: Any) -> Caller | None:
        """Who calls; everybody where there are no tokens."""
        if self._tokens is None:
            return LOCAL
        values = [value for name, value in metadata or () if name.lower() == "authorization"]
        token = bearer(values[0]) if len(values) == 1 and isinstance(values[0], str) else None
        return None if token is None else self._tokens.caller(token)

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        """See grpc.aio."""
        if details.method.startswith(_OPEN_METHODS) or self.caller(details.invocation_metadata) is not None:
            return await continuation(details)

        async def refuse(_: Any, context: Context) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "a valid bearer token is needed")

        return grpc.unary_unary_rpc_method_handler(refuse)


_MALFORMED = object()


class WellFormed(grpc.aio.ServerInterceptor):
    """Answers what is no protobuf message with INVALID_ARGUMENT; gRPC itself would say UNKNOWN, as if we had failed."""

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        """See grpc.aio."""
        handler = await continuation(details)
        if handler is None or not details.method.startswith(_OUR_METHODS):
            return handler
        inner, read = handler.unary_stream or handler.unary_unary, handler.request_deserializer

        def careful(data: bytes) -> Any:
            try:
                return read(data)
            except DecodeError:
                return _MALFORMED

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            await _check_formed(request, context)
            async for response in inner(request, context):
                yield response

        async def once(request: Any, context: Context) -> Any:
            await _check_formed(request, context)
            return await inner(request, context)

        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, careful, handler.response_serializer)
        return grpc.unary_unary_rpc_method_handler(once, careful, handler.response_serializer)


async def _check_formed(request: Any, context: Context) -> None:
    if request is _MALFORMED:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is no message of this method")


class Decoder(rpc.DecoderServicer):
    """The service. Holds no state of its own."""

    def __init__(self, ledger: Ledger, dispatcher: Dispatcher, journal: AsyncJournal, card: Any, guard: Guard) -> None:
        self._ledger, self._dispatcher, self._journal = ledger, dispatcher, journal
        self.card, self._guard, self._limits = card, guard, ledger.settings.limits
        self._watches = 0
        self._pool = ThreadPoolExecutor(1, "accept")  # a long prompt takes its time, and tokenizers know no threads
        self._kept: set[asyncio.Future[Any]] = set()

    # -- calls ------------------------------------------------------------------------------------------------------

    async def Submit(self, request: pb.SubmitRequest, context: Context) -> pb.SubmitResponse:  # noqa: N802
        """See the interface."""
        response: pb.SubmitResponse = await self._answer(context, "submit", lambda who: self.submit(request, who))
        context.add_done_callback(_acknowledged)  # type: ignore[arg-type]
        return response

    async def Get(self, request: pb.GetRequest, context: Context) -> pb.GetResponse:  # noqa: N802
        """See the interface."""
        return await self._answer(context, None, lambda who: self._get(request, who))

    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListResponse:  # noqa: N802
        """See the interface."""
        return await self._answer(context, None, lambda who: self._list(request, who))

    async def Cancel(self, request: pb.CancelRequest, context: Context) -> pb.CancelResponse:  # noqa: N802
        """See the interface."""
        return await self._answer(context, "submit", lambda who: self.cancel(request, who))

    async def Cluster(self, request: pb.ClusterRequest, context: Context) -> pb.ClusterResponse:  # noqa: N802
        """See the interface."""
        return await self._answer(context, None, lambda _: self._cluster())

    async def Watch(  # noqa: N802
        self, request: pb.WatchRequest, context: Context
    ) -> AsyncIterator[pb.WatchResponse]:
        """See the interface."""
        try:
            async for event in self.watch(request, self._caller(context, None)):
                yield pb.WatchResponse(event=event)
        except Exception as error:
            await _abort(context, error)

    # -- what they do ---------------------------------------------------------------------------------------------

    async def submit(self, request: pb.SubmitRequest, who: Caller) -> pb.SubmitResponse:
        """Check, journal, acknowledge."""
        _check_key(request.idempotency_key)
        _check_labels(request.labels)
        if not -100 <= request.priority <= 100:
            raise UsageError(f"priority: {request.priority} is not from -100 to 100", field="priority")
        deadline = self._deadline(request)
        if self._dispatcher.draining:
            raise UnavailableError("the server is going away; submit again in a moment")
        try:
            self._ledger.check_room(who.name, who.queued)
        except BusyError:
            self._ledger.figures.refused.labels("full").inc()
            if (known := await self._known(request, who)) is not None:
                return known
            raise
        accepted = await self._accept(request)
        job = NewJob(
            id=secrets.token_hex(8),
            owner=who.name,
            key=request.idempotency_key,
            payload=_payload(request),
            spec=accepted.spec.SerializeToString(),
            priority=request.priority,
            deadline=deadline,
            labels=dict(request.labels),
        )
        row, existed = await self._keep(self._ledger.submit(job, accepted))
        chosen = "" if existed else accepted.chosen
        return pb.SubmitResponse(job=views.job_message(row), existed=existed, chosen=chosen)

    async def _accept(self, request: pb.SubmitRequest) -> Accepted:
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, self._ledger.gate.accept, request.spec)
        except UsageError:
            self._ledger.figures.refused.labels("invalid").inc()
            raise

    async def _known(self, request: pb.SubmitRequest, who: Caller) -> pb.SubmitResponse | None:
        """The job of an earlier call with this key: a full queue does not keep it from being told again."""
        row = await self._journal.read(lambda j: j.find(who.name, request.idempotency_key, _payload(request)))
        return None if row is None else pb.SubmitResponse(job=views.job_message(row), existed=True)

    async def job(self, job_id: str, who: Caller, view: int = pb.JOB_VIEW_BASIC) -> pb.Job:
        """A job that the caller may see.

        Raises:
            NoSuchJobError: there is none, or it is another's.
        """
        row = await self._visible(job_id, who)
        result = None
        if row.state == "done" and view in (pb.JOB_VIEW_RESULT, pb.JOB_VIEW_FULL):
            result = await self._journal.read(lambda j: j.result(job_id))
        return views.job_message(row, view, result)

    async def _visible(self, job_id: str, who: Caller) -> JobRow:
        row = await self._journal.read(lambda j: j.get(job_id))
        if not who.sees(row.owner):
            raise NoSuchJobError("job_id: there is no such job, or it is no longer kept")
        return row

    async def _get(self, request: pb.GetRequest, who: Caller) -> pb.GetResponse:
        if request.view not in pb.JobView.values():
            raise UsageError(f"view: {request.view} is no view", field="view")
        return pb.GetResponse(job=await self.job(request.job_id, who, request.view))

    async def _list(self, request: pb.ListRequest, who: Caller) -> pb.ListResponse:
        _check_labels(request.labels)
        size = min(request.page_size or 50, self._limits.page)
        if len(request.states) > 16:
            raise UsageError("states: name each state once", field="states")
        states = [_state(number) for number in request.states]
        labels = dict(request.labels)
        before = views.read_page_token(request.page_token, states, labels)
        owner = None if who.may("read") else who.name
        rows = await self._journal.read(
            lambda j: j.page(before=before, limit=size + 1, states=states, labels=labels, owner=owner)
        )
        response = pb.ListResponse(jobs=[views.job_message(row) for row in rows[:size]])
        if len(rows) > size:
            response.next_page_token = views.page_token(rows[size - 1].row, states, labels)
        return response

    async def cancel(self, request: pb.CancelRequest, who: Caller) -> pb.CancelResponse:
        """Stop a job that the caller may stop."""
        if len(request.reason.encode()) > _REASON_BYTES:
            raise UsageError(f"reason: longer than {_REASON_BYTES} bytes", field="reason")
        row = await self._visible(request.job_id, who)
        if not who.cancels(row.owner):
            raise AccessError("this token may not cancel another's job")
        row = await self._keep(self._ledger.cancel(request.job_id, " ".join(request.reason.split())))
        return pb.CancelResponse(job=views.job_message(row))

    async def _cluster(self) -> pb.ClusterResponse:
        settings = self._ledger.settings
        return views.cluster_message(self._dispatcher, self.card, settings.group, len(self._ledger.queue))

    async def watch(self, request: pb.WatchRequest, who: Caller) -> AsyncIterator[pb.Event]:
        """A job's events, those of the journal first; ends after the last."""
        row = await self._visible(request.job_id, who)
        after = request.after_event
        if after > row.last_event:
            raise UsageError(f"after_event: the job has only {row.last_event} events", field="after_event")
        if self._watches >= self._limits.watches:
            raise BusyError(f"{self._limits.watches} streams are open already; try again later", retry_after=1.0)
        self._watches += 1
        try:
            async for event in self._events(request, after):
                yield event
        finally:
            self._watches -= 1

    async def _events(self, request: pb.WatchRequest, after: int) -> AsyncIterator[pb.Event]:
        job_id, provisional = request.job_id, request.include_provisional
        with self._ledger.hub.watching(job_id, wants_provisional=provisional) as watcher:
            if provisional:
                await self._dispatcher.provisional_wanted(job_id)
            while True:
                since = after
                rows = await self._journal.read(lambda j, since=since: j.events(job_id, since))  # type: ignore[misc]
                for event in rows:
                    after = event.number
                    yield await self._event(job_id, event)
                if rows and rows[-1].kind == "finished":
                    return
                while watcher.provisional:
                    yield pb.Event.FromString(watcher.provisional.popleft())
                if len(rows) == PAGE:
                    continue
                if self._dispatcher.draining:
                    raise UnavailableError("the server is going away; watch again in a moment")
                await watcher.wait(_WAIT_SECONDS)  # what was journaled since the read has set it already

    async def _event(self, job_id: str, event: EventRow) -> pb.Event:
        if event.kind != "finished":
            return views.event_message(event)
        row, result = await self._journal.read(lambda j: (j.get(job_id), j.result(job_id)))
        return views.event_message(event, views.job_message(row, pb.JOB_VIEW_RESULT, result))

    # -- checks ---------------------------------------------------------------------------------------------------

    def _caller(self, context: Context, scope: str | None) -> Caller:
        who = self._guard.caller(context.invocation_metadata())
        if who is None:
            raise AccessError("a valid bearer token is needed")
        if scope is not None and not who.may(scope):
            raise AccessError(f"this token lacks the scope '{scope}'")
        return who

    def _deadline(self, request: pb.SubmitRequest) -> float | None:
        if not request.HasField("deadline"):
            return None
        stamp, now = request.deadline, time.time()
        seconds = stamp.seconds + stamp.nanos / 1e9
        if not 0 <= stamp.nanos < 1e9 or seconds <= now:
            raise UsageError("deadline: it lies in the past", field="deadline")
        if seconds > now + self._limits.wait_seconds:
            days = self._limits.wait_seconds / 86_400
            raise UsageError(f"deadline: it lies more than {days:g} days ahead", field="deadline")
        return seconds

    async def _keep(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it to its end, even if the caller goes: what is half journaled would be forgotten until a restart."""
        task = asyncio.ensure_future(work)
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)
        return await asyncio.shield(task)

    async def _answer(self, context: Context, scope: str | None, work: Callable[[Caller], Awaitable[T]]) -> T:
        try:
            return await work(self._caller(context, scope))
        except Exception as error:
            await _abort(context, error)
            raise AssertionError("abort raises") from error


def _acknowledged(*_: Any) -> None:
    failpoints.reach("submit.after_acknowledgement")


async def _abort(context: Context, error: Exception) -> None:
    """End a call with the status that an error stands for."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    code, text, extra = status_of(error)
    await context.abort(code, text, trailing_metadata=tuple(extra.items()))


def status_of(error: Exception) -> tuple[grpc.StatusCode, str, Mapping[str, str]]:
    """Status, one line, and trailing metadata of an error."""
    code, text = grpc.StatusCode.INTERNAL, "the server failed; its log says how"
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            code, text = status, " ".join(str(error).split())
            break
    extra: dict[str, str] = {}
    if isinstance(error, BusyError):
        extra["retry-after-ms"] = str(round(error.retry_after * 1000))
    if isinstance(error, UsageError) and error.field:
        extra["nap-field"] = error.field
    if isinstance(error, AccessError) and "scope" not in text and "another's" not in text:
        code = grpc.StatusCode.UNAUTHENTICATED
    return code, text[:1000].encode("ascii", "backslashreplace").decode(), extra


_STATUSES: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (NotBuiltError, grpc.StatusCode.UNIMPLEMENTED),
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
    (KeyConflictError, grpc.StatusCode.ALREADY_EXISTS),
    (NoSuchJobError, grpc.StatusCode.NOT_FOUND),
    (BusyError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (AccessError, grpc.StatusCode.PERMISSION_DENIED),
    (UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (JournalFullError, grpc.StatusCode.UNAVAILABLE),
    (JournalError, grpc.StatusCode.DATA_LOSS),
)


def _payload(request: pb.SubmitRequest) -> bytes:
    """What makes two submissions the same: all but key and deadline."""
    same = pb.SubmitRequest(spec=request.spec, priority=request.priority, labels=request.labels)
    return hashlib.sha256(same.SerializeToString(deterministic=True)).digest()


def _check_key(key: str) -> None:
    if not 1 <= len(key.encode()) <= _KEY_BYTES:
        raise UsageError(f"idempotency_key: give 1 to {_KEY_BYTES} bytes", field="idempotency_key")


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > _LABELS or any(len(text.encode()) > _LABEL_BYTES for pair in labels.items() for text in pair):
        text = f"labels: at most {_LABELS}, of at most {_LABEL_BYTES} bytes each"
        raise UsageError(text, field="labels")


def _state(number: int) -> str:
    name = views.STATE_NAMES.get(number)
    if name is None:
        raise UsageError(f"states: {number} is no state", field="states")
    return "running" if name == "cancelling" else name
