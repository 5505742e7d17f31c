"""How a server is set up, and what it refuses before it allocates anything."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from nap_runtime.errors import UsageError
from nap_runtime.job import DEVICES, DTYPES, MAX_CANVAS, MAX_PATHS, CompileMode, at_least, check_compile, one_of
from nap_runtime.numerics import Numerics, check_numerics
from nap_runtime.policy import Placement
from nap_runtime.storage import Storage, Stored


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most that one call, one job, or all jobs together may ask for.

    Args:
        message_bytes: a request; prompt_bytes: a prompt as text; prompt_tokens: a prompt as ids.
        paths: m; canvas: positions of a canvas, prompt and headers included; steps: T.
        queued: jobs that wait; queued_per_token: of one token.
        calls: calls under way at once; watches: Watch streams among them.
        page: jobs on a page of List.
        wait_seconds: how far in the future a deadline may lie.
    """

    message_bytes: int = 1 << 20
    prompt_bytes: int = 256 << 10
    prompt_tokens: int = 16_384
    paths: int = MAX_PATHS
    canvas: int = 16_384
    steps: int = 16_384
    queued: int = 10_000
    queued_per_token: int = 10_000
    calls: int = 2_000
    watches: int = 1_000
    page: int = 200
    wait_seconds: float = 30 * 86_400.0

    def __post_init__(self) -> None:
        for name in ("message_bytes", "prompt_bytes", "prompt_tokens", "paths", "canvas", "steps", "queued", "calls"):
            at_least(name, getattr(self, name), 1)
        for name in ("queued_per_token", "watches", "page"):
            at_least(name, getattr(self, name), 1)
        if self.canvas > MAX_CANVAS:
            raise UsageError(f"canvas: at most {MAX_CANVAS}, positions travel as u16", field="canvas")


STRAGGLERS = ("replace", "report", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSettings:
    """What every worker group is made of.

    Args:
        model: a bundled model's name or a checkpoint folder.
        workers: W of each group; 1 decodes in the group's own process, more run on Ray, or with `simulate` as threads.
        device, dtype: where and in what precision.
        compile: whether steps are compiled, or captured in CUDA graphs too.
        numerics: whether bits may depend on what is computed together (`nap_runtime.numerics`).
        weights, kv: numbers of the layers' matrices, and of keys and values (`Storage`).
        address: a Ray cluster that runs already (None: each group starts a local one).
        spares: warm workers that wait for another to die; on Ray only.
        liveness: seconds of silence after which a worker, or a group's process, counts as lost.
        threads: torch threads of a group (None: torch's choice).
        stragglers: what happens to workers that are much slower than their peers, on Ray: `replace` gives their place
            to a spare on another host, where there is one; `report` shows them only; `off` looks for none.
        placement: on which hosts of the cluster a group stands (None: `pack`); on Ray only.
    """

    model: str = "nap-tiny"
    workers: int = 1
    simulate: bool = False
    device: str = "cpu"
    dtype: str = "float32"
    compile: CompileMode = "none"
    numerics: Numerics = "fast"
    weights: Stored = "native"
    kv: Stored = "native"
    address: str | None = None
    spares: int = 0
    liveness: float = 5.0
    threads: int | None = None
    stragglers: str = "replace"
    placement: Placement | None = None

    def __post_init__(self) -> None:
        one_of("device", self.device, DEVICES)
        one_of("dtype", self.dtype, DTYPES)
        check_compile(self.compile, device=self.device, simulated=self.simulate)
        self.storage.check(device=self.device, dtype=self.dtype)
        how = {"compile": self.compile, "device": self.device, "dtype": self.dtype}
        check_numerics(self.numerics, **how, storage=self.storage)
        one_of("stragglers", self.stragglers, STRAGGLERS)
        at_least("workers", self.workers, 1)
        at_least("spares", self.spares, 0)
        if self.threads is not None:
            at_least("threads", self.threads, 1)
        if self.simulate and self.workers == 1:
            raise UsageError("simulate: one worker needs no simulation; give --workers too", field="simulate")
        if self.placement is not None:
            one_of("placement", self.placement, get_args(Placement))
        for name in ("address", "spares", "placement"):
            if getattr(self, name) and not self.on_ray:
                raise UsageError(f"{name}: only several workers run on Ray; give --workers too", field=name)
        if not self.liveness >= 1:
            raise UsageError("liveness: give at least 1 second", field="liveness")

    @property
    def storage(self) -> Storage:
        """How workers hold numbers."""
        return Storage(weights=self.weights, kv=self.kv)

    @property
    def on_ray(self) -> bool:
        """Whether the workers are Ray actors."""
        return self.workers > 1 and not self.simulate


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Everything that decides how a server runs.

    Args:
        listen: HOST:PORT of gRPC; port 0 takes a free one.
        http, metrics: HOST:PORT of the OpenAI-compatible door and of Prometheus' figures (None: off).
        journal: the job journal's file.
        group, groups: what a worker group is, and how many there are.
        batch: jobs that a group decodes together.
        tries: attempts in a row that may end without progress before a job fails.
        keep_seconds: how long ended jobs are kept.
        drain_seconds: how long running jobs may go on after SIGTERM.
        tokens: tokens file; tls_cert, tls_key: PEM files; client_ca: PEM file, asks clients for certificates (mTLS).
        limits: see `Limits`.

    Raises:
        UsageError: the settings contradict each other, or would serve other machines without TLS and a token.
    """

    listen: str = "127.0.0.1:50051"
    http: str | None = None
    metrics: str | None = None
    journal: Path = Path("nap-jobs.db")
    group: GroupSettings = field(default_factory=GroupSettings)
    groups: int = 1
    batch: int = 8
    tries: int = 3
    keep_seconds: float = 86_400.0
    drain_seconds: float = 30.0
    tokens: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name in ("groups", "batch", "tries"):
            at_least(name, getattr(self, name), 1)
        for name in ("keep_seconds", "drain_seconds"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name}: not a number of at least 0", field=name)
        group = self.group
        if self.groups > 1 and group.on_ray and group.device == "cuda" and group.address is None:
            text = "groups: several groups share GPUs on one Ray cluster only; start one and give --address"
            raise UsageError(text, field="groups")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("tls_cert: give certificate and key, or neither", field="tls_cert")
        if self.client_ca is not None and self.tls_cert is None:
            raise UsageError("client_ca: only TLS has client certificates; give --tls-cert too", field="client_ca")
        for name in ("listen", "http", "metrics"):
            if getattr(self, name) is not None:
                self._check_address(name, getattr(self, name))

    def _check_address(self, name: str, address: str) -> None:
        host, _ = split_address(name, address)
        if is_loopback(host):
            return
        if name == "metrics":
            text = f"metrics: '{host}' is not loopback, and the figures have no token; use 127.0.0.1"
            raise UsageError(text, field=name)
        if self.tls_cert is None or self.tokens is None:
            raise UsageError(
                f"{name}: '{host}' can be reached from other machines: give --tls-cert, --tls-key and --tokens, or "
                "listen on 127.0.0.1",
                field=name,
            )


def split_address(name: str, address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT or [HOST]:PORT.

    Raises:
        UsageError: it is neither.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535 or (":" in host and not host.startswith("[")):
        raise UsageError(f"{name}: '{address}' is not HOST:PORT", field=name)
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host's address. Names other than localhost count as others'."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
