"""Which canvases of a batch are computed: pure bookkeeping, the same on all workers.

A canvas is left out of the path phase once all its paths are closed, and comes back for the summary, as it would go on
to the summary at once if it stood alone; it is left out for good once everything is decided. All workers read who is
done in the same control word, so they leave out the same canvases before the same step.
"""

from __future__ import annotations

from collections.abc import Sequence

from nap_runtime.decoding.machine import Plan
from nap_runtime.worker.lanes import Lanes
from nap_runtime.worker.task import Away

_PATHS, _ALL = 1, 2  # what is done of a canvas


class Crowd:
    """The canvases of one batch on one worker.

    Args:
        narrow: whether canvases may be left out at all.

    Attributes:
        done: of each canvas 0, 1 where its paths are closed on every worker, 2 where all is decided.
    """

    def __init__(self, plan: Plan, batch: int, *, narrow: bool) -> None:
        self._plan, self._narrow = plan, narrow and batch > 1
        self._lanes = Lanes(batch)
        self.done: Sequence[int] = [0] * batch
        self._left: dict[int, tuple[int, int, int]] = {}
        self._away: list[list[Away]] = [[] for _ in range(batch)]

    def narrowed(self, step: int) -> Lanes | None:
        """Lanes without canvases that nothing is to be done for from `step` on; None where they stay as they are."""
        if not self._narrow:
            return None
        enough = _PATHS if self._in_paths(step) and not self._plan.views_count else _ALL
        return self._lanes.narrowed({canvas for canvas in self._lanes.canvases if self.done[canvas] < enough})

    def readmitted(self, step: int) -> Lanes | None:
        """All lanes, where canvases that were left out of the path phase are due again."""
        if self._plan.schedule.canvas or self._in_paths(step):
            return None
        waiting = any(first < self._plan.path_steps for first, *_ in self._left.values())
        return self._lanes.widened() if waiting else None

    def _in_paths(self, step: int) -> bool:
        return not self._plan.schedule.canvas and step < self._plan.path_steps

    def note(self, lanes: Lanes, step: int, *, rows: int, extra: int) -> None:
        """From `step` on these lanes are computed; `rows` were so far, `extra` of them for a sync's sake."""
        for canvas in lanes.away - self._lanes.away:
            self._left[canvas] = (step, rows, extra)
        for canvas in self._lanes.away - lanes.away:
            self._return(canvas, step, rows, extra)
        self._lanes = lanes

    def _return(self, canvas: int, step: int, rows: int, extra: int) -> None:
        first, rows_then, extra_then = self._left.pop(canvas)
        self._away[canvas].append(Away(range(first, step), rows - rows_then, extra - extra_then))

    def end(self, *, rows: int, extra: int) -> tuple[tuple[Away, ...], ...]:
        """When each canvas was left out, at the end of the batch."""
        for canvas in list(self._left):
            self._return(canvas, self._plan.schedule.steps, rows, extra)
        return tuple(map(tuple, self._away))
