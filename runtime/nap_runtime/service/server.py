"""A server: journal, worker groups, gRPC with health and reflection, and optionally the HTTP door and figures."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from nap_runtime import __version__
from nap_runtime.errors import ModelError, NapError, UsageError, WorkerError
from nap_runtime.models.loading import read_card
from nap_runtime.service.access import Tokens
from nap_runtime.service.dispatch import Dispatcher
from nap_runtime.service.figures import Figures
from nap_runtime.service.gate import Chooser
from nap_runtime.service.groups import GroupFailedError
from nap_runtime.service.ledger import Ledger
from nap_runtime.service.logs import Log
from nap_runtime.service.rpc import Decoder, Guard, WellFormed
from nap_runtime.service.settings import ServerSettings, split_address
from nap_runtime.service.v1 import decoder_pb2 as pb
from nap_runtime.service.v1 import decoder_pb2_grpc as rpc
from nap_runtime.service.writer import AsyncJournal

_SERVICE = pb.DESCRIPTOR.services_by_name["Decoder"].full_name
_RESULT_BYTES = 64 << 20
_HEALTH_SECONDS = 0.5


class Server:
    """See the module. `start`, then `wait`, then `stop`.

    Raises:
        UsageError, ModelError: the settings do not fit this machine or the model.
        JournalError: the journal cannot be used.
    """

    def __init__(self, settings: ServerSettings, log: Log, chooser: Chooser | None = None) -> None:
        self.settings, self.log, self.figures, self._chooser = settings, log, Figures(), chooser
        self.address = self.http_address = self.metrics_address = ""
        self._stop = asyncio.Event()
        self._lock: int | None = None
        self._journal: AsyncJournal | None = None
        self._server: grpc.aio.Server | None = None
        self._dispatcher: Dispatcher | None = None
        self._door: Any = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the journal, bring the groups up, listen."""
        settings = self.settings
        tokens = None if settings.tokens is None else Tokens.read(settings.tokens)
        credentials = _credentials(settings)
        card = read_card(settings.group.model).stored(settings.group.storage)
        self._lock = _lock(settings.journal)
        self._journal = AsyncJournal(settings.journal)
        self._ledger = Ledger(settings, card, self._journal, self.figures, self.log, self._chooser)
        self._dispatcher = Dispatcher(self._ledger)
        guard = Guard(tokens)
        decoder = Decoder(self._ledger, self._dispatcher, self._journal, card, guard)
        self._health = health.HealthServicer()
        self._server = _make_server(settings, decoder, self._health, guard)
        self.address = _bind(self._server, settings.listen, credentials)
        await self._set_health(serving=False)
        try:
            await self._dispatcher.open()
        except GroupFailedError as error:
            raise _as_ours(error) from error
        except (ConnectionError, TimeoutError) as error:
            raise WorkerError(f"no worker group could be started: {error}") from error
        await self._server.start()
        await self._open_doors(decoder, guard)
        self._watch = asyncio.ensure_future(self._keep_health())
        self.log.announce(
            "server.ready",
            **{"address": self.address, "http": self.http_address or None, "metrics": self.metrics_address or None},
            **{"tls": credentials is not None, "tokens": tokens and len(tokens), "version": __version__},
            **{"pid": os.getpid(), "journal": str(settings.journal)},
        )

    async def _open_doors(self, decoder: Decoder, guard: Guard) -> None:
        if self.settings.metrics is not None:
            host, port = split_address("metrics", self.settings.metrics)
            try:
                self.metrics_address = f"{host}:{self.figures.serve(host, port)}"
            except OSError as error:
                raise UsageError(f"metrics: {self.settings.metrics}: {error.strerror}", field="metrics") from error
        if self.settings.http is not None:
            from nap_runtime.service.door import Door

            self._door = Door(self.settings, decoder, guard, self.log)
            self.http_address = await self._door.start()

    def stop_soon(self) -> None:
        """Let `wait` return."""
        self._stop.set()

    async def wait(self) -> None:
        """Until `stop_soon`, SIGTERM or SIGINT.

        Raises:
            JournalError: the journal is of no use any more.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self.stop_soon)
        self._ledger.failed.add_done_callback(lambda _: self.stop_soon())
        await self._stop.wait()
        if self._ledger.failed.done():
            self.log.error("server.failed", reason=str(self._ledger.failed.result()))

    async def stop(self) -> None:
        """Drain, then end: no new jobs, running batches may end, streams are told to come again.

        Raises:
            NapError: what made the server fail, if anything did.
        """
        failure = self._ledger.failed.result() if self._ledger.failed.done() else None
        drain = 0.0 if failure is not None else self.settings.drain_seconds
        self.log.info("server.draining", seconds=drain)
        if self._watch is not None:
            self._watch.cancel()
        await self._set_health(serving=False)
        assert self._dispatcher is not None
        assert self._server is not None
        await self._dispatcher.close(drain=drain)
        if self._door is not None:
            await self._door.stop()
        await self._server.stop(grace=2.0)
        await self.abandon()
        self.log.info("server.stopped")
        if failure is not None:
            raise failure if isinstance(failure, NapError) else NapError(f"{type(failure).__name__}: {failure}")

    async def abandon(self) -> None:
        """Give back what was opened; for a start that failed, too."""
        if self._dispatcher is not None:
            for group in self._dispatcher.groups:
                group.forget()
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # -- health ---------------------------------------------------------------------------------------------------

    async def _set_health(self, *, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", _SERVICE):
            await self._health.set(name, status)

    async def _keep_health(self) -> None:
        """Serving means: the journal takes jobs, and a group could decode them."""
        before: bool | None = None
        assert self._dispatcher is not None
        while True:
            able = any(group.status.state in ("idle", "busy") for group in self._dispatcher.groups)
            serving = able and not self._ledger.trouble
            if serving != before:
                await self._set_health(serving=serving)
                before = serving
            await asyncio.sleep(_HEALTH_SECONDS)


def _as_ours(error: GroupFailedError) -> NapError:
    if error.code == "USAGE":
        return UsageError(str(error), field=error.field or None)
    return ModelError(str(error)) if error.code == "MODEL" else WorkerError(str(error))


def _lock(journal: Path) -> int:
    """Hold the journal against other servers, as long as this process lives."""
    try:
        handle = os.open(journal.with_name(journal.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UsageError(f"journal: {journal}: {error.strerror}", field="journal") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise UsageError(f"journal: {journal} is another server's; give another --journal", field="journal") from None
    return handle


def _credentials(settings: ServerSettings) -> grpc.ServerCredentials | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    read: dict[str, bytes | None] = {}
    for name in ("tls_cert", "tls_key", "client_ca"):
        file: Path | None = getattr(settings, name)
        try:
            read[name] = None if file is None else file.read_bytes()
        except OSError as error:
            raise UsageError(f"{name}: {file}: {error.strerror}", field=name) from error
        if file is not None and b"-----BEGIN" not in (read[name] or b""):
            raise UsageError(f"{name}: {file} is no PEM file", field=name)
    return grpc.ssl_server_credentials(
        [(read["tls_key"] or b"", read["tls_cert"] or b"")],
        root_certificates=read["client_ca"],
        require_client_auth=settings.client_ca is not None,
    )


def _make_server(settings: ServerSettings, decoder: Decoder, healthy: Any, guard: Guard) -> grpc.aio.Server:
    options = [
        ("grpc.max_receive_message_length", settings.limits.message_bytes),
        ("grpc.max_send_message_length", _RESULT_BYTES),
        ("grpc.max_metadata_size", 16 << 10),
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ]
    server = grpc.aio.server(
        interceptors=[guard, WellFormed()], options=options, maximum_concurrent_rpcs=settings.limits.calls
    )
    rpc.add_DecoderServicer_to_server(decoder, server)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    reflection.enable_server_reflection((_SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
                                         reflection.SERVICE_NAME), server)  # fmt: skip
    return server


def _bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> str:
    host, _ = split_address("listen", address)
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        text = f"listen: {address} cannot be used; is another server there, or is the certificate wrong?"
        raise UsageError(text, field="listen") from error
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
