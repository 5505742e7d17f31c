"""Who watches a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nap_runtime.errors import NapError

if TYPE_CHECKING:
    from nap_runtime.study.run import Run


class Listener:
    """What a run is watched by; every method may be overridden."""

    def on_plan(self, runs: Sequence[Run], done: int) -> None:
        """What there is, and how many runs are finished already."""

    def on_run(self, run: Run, number: int, total: int) -> None:
        """A run begins."""

    def on_problem(self, run: Run, row: Mapping[str, Any], left: int) -> None:
        """A problem is done; so many of all runs are left."""

    def on_failure(self, run: Run, error: NapError) -> None:
        """A run failed; the others go on."""
