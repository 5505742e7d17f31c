"""What `nap decode` says beside its results: that a worker was lost and the decode went on, or that one is slow."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from nap_runtime.executor.coordinator import Batch, Observer, Recovery
from nap_runtime.executor.liveness import Straggler

_SOURCES = {"spare": "by a spare", "peer": "with a living worker's weights", "disk": "with weights from disk"}


class Notes(Observer):
    """One line on stderr for every recovery, and for every worker that has become slow."""

    def on_recovery(self, batch: Batch, recovery: Recovery) -> None:
        """Say it."""
        repair = recovery.repair
        how = _SOURCES.get(repair.weights, "")
        lost = ", ".join(map(str, repair.lost))
        what = f"replaced worker {lost} {how}" if repair.lost else "formed the group again"
        reason = " ".join(recovery.reason.split())
        text = f"{reason}; {what} in {repair.seconds:.1f} s, going on from step {recovery.step}"
        print(f"nap decode: {text}", file=sys.stderr, flush=True)

    def on_straggler(self, batch: Batch, slow: Sequence[Straggler]) -> None:
        """Say it."""
        for one in slow:
            text = f"worker {one.worker} on {one.host} takes {one.factor:.0f} times as long for a step as its peers"
            print(f"nap decode: {text}", file=sys.stderr, flush=True)
