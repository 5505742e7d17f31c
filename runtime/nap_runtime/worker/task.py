"""What a worker is given for a batch, and how it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nap_runtime.decoding.layout import CanvasLayout, Ids
from nap_runtime.decoding.machine import Plan
from nap_runtime.decoding.meters import WorkerMeters
from nap_runtime.decoding.record import CanvasDelta, SyncEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A batch of canvases of one layout: what a worker is given once per batch.

    Prompts may be shorter than the layout's (`worker/padding.py`). Reports, `resume` and `given` go by each canvas's
    own positions, as if it stood alone.

    A worker reports every R steps of the config, and every `report_every` steps too where that is given, for a view
    that follows closely; nothing else depends on it. `report_early` asks for one after the first commits too.
    `resume` begins in the middle of a decode that lost a worker. `given[canvas]` are tokens that paths get at step 0,
    whatever the network says: fills of path slots, each by the worker that has the path (`decoding/given.py`). From
    there on they travel as commits do. `narrow`: canvases for which nothing is to be done leave the forwards
    (`worker/lanes.py`); no id depends on it.
    """

    plan: Plan
    prompts: tuple[tuple[int, ...], ...]
    report_every: int | None = None
    report_early: bool = False
    resume: Resume | None = None
    given: tuple[tuple[CanvasDelta, ...], ...] = ()
    narrow: bool = True

    @property
    def pads(self) -> tuple[int, ...]:
        """Columns before each canvas's first token."""
        return tuple(self.plan.layout.prompt_tokens - len(prompt) for prompt in self.prompts)

    def layout_of(self, canvas: int) -> CanvasLayout:
        """The layout of a canvas by itself."""
        return replace(self.plan.layout, prompt_tokens=len(self.prompts[canvas]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Where a decode goes on: every commit of the steps before `step`, `deltas[canvas]`."""

    step: int
    deltas: tuple[tuple[CanvasDelta, ...], ...]


@dataclass(frozen=True, slots=True)
class Away:
    """Steps at which a worker computed its batch without a canvas, and the rows that were computed in them."""

    steps: range
    rows: int
    rows_recomputed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a worker ended.

    Attributes:
        slots, ids: the slots this worker answers for, by column, and their ids at the end, [S] and [B, S].
        step, committed: the step at which each of them got its id (−1: never), and whether it was committed and not
            filled, [B, S]. With `ids` they hold all that the deltas say of the order.
        meters, forwards: the batch's, as of a canvas that was there at every step.
        events: syncs it saw; equal on all workers up to where they part.
        away: of each canvas when it was not (nothing: always there); `forwards_of` and `meters_of` leave that out.
    """

    worker: int
    slots: Ids
    ids: Ids
    step: Ids
    committed: npt.NDArray[np.bool_]
    meters: WorkerMeters
    forwards: tuple[int, ...]
    events: tuple[SyncEvent, ...]
    cancelled: bool
    away: tuple[tuple[Away, ...], ...] = ()

    def forwards_of(self, canvas: int, forwards: Sequence[int] | None = None) -> tuple[int, ...]:
        """Those of the steps (None: its own) at which the network ran on a canvas."""
        away = self.away[canvas] if self.away else ()
        steps = self.forwards if forwards is None else forwards
        return tuple(step for step in steps if not any(step in part.steps for part in away))

    def meters_of(self, canvas: int) -> WorkerMeters:
        """The meters with the rows that were computed of a canvas; times and bytes stay the batch's."""
        away = self.away[canvas] if self.away else ()
        return replace(
            self.meters,
            forwards=len(self.forwards_of(canvas)),
            rows_computed=self.meters.rows_computed - sum(part.rows for part in away),
            rows_recomputed=self.meters.rows_recomputed - sum(part.rows_recomputed for part in away),
        )
