"""`SyncPolicy`: what workers exchange, how often, who sees whom, and how the summary is decoded."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal, get_args

from nap_runtime.errors import UsageError
from nap_runtime.values import at_least, one_of

CONSENSUS_TOP = 32  # ids of a summary slot that each worker names, where `top` is not given

SyncMode = Literal["exact", "tokens", "shared", "kv", "none"]
Topology = Literal["full", "hub", "isolated"]
SummaryMode = Literal["gather", "consensus", "live"]
Placement = Literal["strict-pack", "one-host", "pack", "spread"]


def placement_for(mode: SyncMode) -> Placement:
    """Where workers stand by default: `exact` and `kv` send keys and values, which is for the inside of a host."""
    return "one-host" if mode in ("exact", "kv") else "spread"


@dataclass(frozen=True, slots=True)
class SyncPolicy:
    """What workers exchange, and how often.

    Args:
        mode: what travels (see `docs/architecture.md`, "Sync modes").
        every: K, steps between syncs; `tokens`, `shared` and `kv` only (None: 1).
        warmup: steps that are exact before K applies; `tokens`, `shared` and `kv` only.
        overlap: the exchange runs beside the next step and is waited for one step later (`tokens` and `kv`), or
            at every layer beside attention to the own rows (`exact`, which stays as fresh).
        topology: who sees whom (None: what the model was trained with, where its `decode.json` says so; else `hub` for
            `shared`, `full` for others).
        summary: how the summary is decoded (None: `gather`). `consensus`: by every worker from its own view, their
            log-probabilities averaged. `live`: as `gather`, and at each sync it is also scored from what the paths
            hold so far.
        top: scores of a summary slot that each worker tells the others; `consensus` only (None: 32).
        settle: stop the paths early, once the summary was the same at so many syncs in a row; `live` only (None:
            never). What they left open is filled.

    Raises:
        UsageError: a value is unknown, or the mode does not use it.
    """

    mode: SyncMode = "exact"
    _: KW_ONLY
    every: int | None = None
    warmup: int = 0
    overlap: bool = False
    topology: Topology | None = None
    summary: SummaryMode | None = None
    top: int | None = None
    settle: int | None = None

    def __post_init__(self) -> None:
        one_of("sync", self.mode, get_args(SyncMode))
        if self.summary is not None:
            one_of("summary", self.summary, get_args(SummaryMode))
        if self.topology is not None:
            one_of("topology", self.topology, get_args(Topology))
        if self.every is not None:
            at_least("every", self.every, 1)
        at_least("warmup", self.warmup, 0)
        if not isinstance(self.overlap, bool):
            raise UsageError(f"overlap: {self.overlap!r} is neither true nor false", field="overlap")
        self._check_mode()
        self._check_summary()

    def _check_mode(self) -> None:
        if self.mode in ("exact", "none"):
            for name, given in (("every", self.every is not None), ("warmup", self.warmup > 0)):
                if given:
                    raise UsageError(f"{name}: sync '{self.mode}' does not use it; leave it out", field=name)
        if self.overlap and self.mode not in ("exact", "tokens", "kv"):
            raise UsageError(f"overlap: sync '{self.mode}' does not use it; leave it out", field="overlap")
        if self.mode == "shared" and self.topology not in (None, "hub"):
            raise UsageError(f"topology: sync 'shared' needs 'hub', not '{self.topology}'", field="topology")
        if self.mode == "kv" and self.topology not in (None, "full"):
            raise UsageError(f"topology: sync 'kv' needs 'full', not '{self.topology}'", field="topology")

    def _check_summary(self) -> None:
        if self.summary == "consensus" and self.mode in ("exact", "shared"):
            text = f"summary: under sync '{self.mode}' all workers read the same; 'consensus' needs tokens, kv or none"
            raise UsageError(text, field="summary")
        if self.summary == "live" and self.mode == "none":
            raise UsageError("summary: 'live' reads at each sync, and sync 'none' has none", field="summary")
        if self.top is not None:
            at_least("top", self.top, 1)
            if self.summary != "consensus":
                raise UsageError("top: only summary 'consensus' uses it; leave it out", field="top")
        if self.settle is not None:
            at_least("settle", self.settle, 1)
            if self.summary != "live":
                raise UsageError("settle: only summary 'live' uses it; leave it out", field="settle")

    @property
    def period(self) -> int:
        """K with its default applied."""
        return 1 if self.every is None else self.every

    @property
    def sees(self) -> Topology:
        """The topology with its default applied."""
        return self.topology or ("hub" if self.mode == "shared" else "full")

    @property
    def refreshes_every_step(self) -> bool:
        """Whether every row is recomputed at every step, so that one device is equalled."""
        return self.mode == "exact" or (self.mode in ("tokens", "shared") and self.period == 1 and not self.overlap)
