"""What a worker keeps between batches of equal shape: its tensors, and the graphs that were captured over them."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

from torch import Tensor

from nap_runtime.decoding.machine import Step
from nap_runtime.decoding.state import CanvasState
from nap_runtime.distributed.wire import Clock, Wire
from nap_runtime.worker.padding import Padding, in_columns, padded_ids
from nap_runtime.worker.resources import Resources
from nap_runtime.worker.stepping import DeviceSteps, StepGraphs, Stepper
from nap_runtime.worker.task import Task

if TYPE_CHECKING:
    from nap_runtime.worker.loop import BlockWorker

KEPT = 2  # shapes of a batch whose graphs are kept; each holds keys and values of its canvases


class Station:
    """One batch's canvases and all that is set up over them, for this batch and for others of its shape.

    What a captured step reads and writes stays where it is; `begin` puts another batch into it.
    """

    def __init__(self, worker: BlockWorker, task: Task) -> None:
        self._denoiser, self._compiling = worker.denoiser, worker.compiling
        layout, device = task.plan.layout, worker.device
        self.wire = Wire(worker.comm, Clock(device))
        self.padding = Padding(task.pads, layout.size, device)
        self.state = CanvasState.start(layout, [padded_ids(layout, prompt) for prompt in task.prompts], device)
        self.resources = Resources(
            task.plan, worker.denoiser.config, self.wire, self.state, dtype=worker.dtype, padding=self.padding
        )
        self._steps: DeviceSteps | None = None
        if self._compiling.mode != "none":
            parts = task.plan, self._denoiser, self.resources, self.state
            self._steps = DeviceSteps(*parts, rank=worker.comm.rank, options=self._compiling)
        self._graphs = StepGraphs(self.wire) if self._compiling.mode == "graph" else None
        self._restore(task)

    def begin(self, task: Task) -> None:
        """Put another batch of the same shape in the place of the last."""
        layout = task.plan.layout
        self.wire.restart()
        self.resources.restart()
        initial = [padded_ids(layout, prompt) for prompt in task.prompts]
        self.state.become(CanvasState.start(layout, initial, self.state.ids.device))
        if self._steps is not None:
            self._steps.restart(task.plan.config.seed)
        self._restore(task)

    def _restore(self, task: Task) -> None:
        if task.resume is not None:
            self.state.restore(in_columns(task.resume.deltas, task.pads))

    def stepper(self, by_hand: Callable[[Step, dict[int, int], Tensor], bool]) -> Stepper:
        """What carries out the batch's steps."""
        return Stepper(
            self._denoiser,
            self.resources,
            self.wire,
            by_hand=by_hand,
            device_steps=self._steps,
            graphs=self._graphs,
            unroll=self._compiling.unroll,
        )


class Stations:
    """A worker's stations. Where nothing is captured nothing is kept: each batch has its own."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Station] = {}

    def take(self, worker: BlockWorker, task: Task) -> Station:
        """The station of a batch, its canvases in place."""
        if worker.compiling.mode != "graph":
            return Station(worker, task)
        key = _shape_of(task)
        station = self._kept.pop(key, None)
        if station is None:
            while len(self._kept) >= KEPT:
                del self._kept[next(iter(self._kept))]
            station = Station(worker, task)
        else:
            station.begin(task)
        self._kept[key] = station  # the last one used is the last to go
        return station


def _shape_of(task: Task) -> Hashable:
    """All that tensors and captured steps depend on: everything but prompts of equal lengths, seed and reports."""
    plan = task.plan
    config = {**plan.config.to_mapping(), "seed": 0, "control_every": None}
    return plan.layout, plan.assignment, json.dumps(config, sort_keys=True, default=str), task.pads
