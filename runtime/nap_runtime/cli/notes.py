"""What `nap decode` says beside its results: that a worker was lost, and that the decode went on."""

from __future__ import annotations

import sys

from nap_runtime.executor.coordinator import Batch, Observer, Recovery

_SOURCES = {"spare": "by a spare", "peer": "with a living worker's weights", "disk": "with weights from disk"}


class Notes(Observer):
    """One line on stderr for every recovery."""

    def on_recovery(self, batch: Batch, recovery: Recovery) -> None:
        """Say it."""
        repair = recovery.repair
        how = _SOURCES.get(repair.weights, "")
        lost = ", ".join(map(str, repair.lost))
        what = f"replaced worker {lost} {how}" if repair.lost else "formed the group again"
        reason = " ".join(recovery.reason.split())
        text = f"{reason}; {what} in {repair.seconds:.1f} s, going on from step {recovery.step}"
        print(f"nap decode: {text}", file=sys.stderr, flush=True)
