"""What a caller of `--sync auto` asks for. Imports no torch: the command line reads it before anything else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from nap_runtime.errors import UsageError
from nap_runtime.policy import SummaryMode, SyncPolicy, Topology
from nap_runtime.traits import PATH_CACHES
from nap_runtime.values import number

OVERHEAD = 0.1  # the share of a decode's time that syncs may take, where none is given


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoSync:
    """A sync that is yet to be chosen.

    Args:
        link: a named link, or a file of `nap cost calibrate` (None: measured once the workers are up).
        overhead: the share of the predicted time that syncs may take, above 0 and below 1.
        topology, summary, top, settle: as in `SyncPolicy`; they are kept, and only what goes with them is chosen.

    Raises:
        UsageError: a value is out of range, or of another kind.
    """

    link: str | None = None
    overhead: float = OVERHEAD
    topology: Topology | None = None
    summary: SummaryMode | None = None
    top: int | None = None
    settle: int | None = None

    def __post_init__(self) -> None:
        number("overhead", self.overhead, float)
        if not (math.isfinite(self.overhead) and 0 < self.overhead < 1):
            raise UsageError(f"overhead: {self.overhead} is no share between 0 and 1", field="overhead")
        if self.link is not None and not (isinstance(self.link, str) and self.link):
            raise UsageError(f"link: {self.link!r} is neither a link's name nor a file", field="link")
        self.stand_in()

    @classmethod
    def from_mapping(cls, sync: Mapping[str, Any], own: Mapping[str, Any]) -> AutoSync:
        """From `sync: {mode: auto, …}` and the keys `link` and `overhead`.

        Raises:
            UsageError: what is chosen is given too.
        """
        known = {f.name for f in fields(cls)}
        kept = {key: value for key, value in sync.items() if key != "mode"}
        for key, value in kept.items():
            if key not in known and value not in (None, False, 0):
                raise UsageError(f"{key}: sync 'auto' chooses it; leave it out, or give a mode", field=key)
        return cls(**{key: value for key, value in {**kept, **own}.items() if key in known and value is not None})

    @property
    def kept(self) -> dict[str, Any]:
        """What every policy that may be chosen shares."""
        names = ("topology", "summary", "top", "settle")
        return {name: getattr(self, name) for name in names}

    def on(self, trained: Topology | None) -> AutoSync:
        """For a model that was trained with a topology, where none is asked for."""
        return self if self.topology is not None or trained in (None, "full") else replace(self, topology=trained)

    def check_cache(self, layout: str | None, cache: str | None) -> None:
        """Refuse a cache of paths: it needs steps without a sync, and what is chosen may have one at every step.

        Raises:
            UsageError: it names the modes that go with the cache.
        """
        if cache in PATH_CACHES and layout in (None, "nap"):
            text = (
                f"cache: sync 'auto' does not go with cache '{cache}', as it may choose a sync at every step, which "
                "spares no rows; give --sync tokens, shared or kv with --every 2 or more, or --sync none, or no --cache"
            )
            raise UsageError(text, field="cache")

    def stand_in(self) -> SyncPolicy:
        """A policy to check the rest of a config with, until one is chosen.

        Raises:
            UsageError: no policy has what is asked for.
        """
        return SyncPolicy("tokens" if self.summary == "consensus" else "exact", **self.kept)
