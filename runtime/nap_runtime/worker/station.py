"""What a worker keeps between batches of equal shape: its tensors, and the graphs that were captured over them."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nap_runtime.decoding.machine import Step
from nap_runtime.decoding.state import CanvasState
from nap_runtime.distributed.exchange import Told
from nap_runtime.distributed.wire import Clock, Wire
from nap_runtime.models.quantised import store_of
from nap_runtime.worker.lanes import Lanes, rearrange, sources
from nap_runtime.worker.padding import Padding, in_columns, padded_ids
from nap_runtime.worker.resources import Resources, views_of
from nap_runtime.worker.stepping import DeviceSteps, StepGraphs, Stepper
from nap_runtime.worker.task import Task

if TYPE_CHECKING:
    from nap_runtime.worker.loop import BlockWorker

KEPT = 2  # shapes of a batch whose graphs are kept; each holds keys and values of its canvases
_SECTIONS = 8  # of a batch: one a size, more only where prompts are padded


class Section:
    """The first lanes of a station, and all that steps over just these need.

    Attributes:
        state: the canvases in these lanes, in the station's memory; `resources` what computes them.
    """

    def __init__(self, station: Station, worker: BlockWorker, task: Task, pads: Sequence[int]) -> None:
        lanes, layout = len(pads), task.plan.layout
        self._station, self._worker = station, worker
        self.state = station.canvases.first(lanes)
        self.resources = Resources(
            task.plan,
            worker.denoiser.config,
            station.wire,
            self.state,
            store=station.store.first(lanes * views_of(task.plan)),
            padding=Padding(tuple(pads), layout.size, worker.device),
            told=station.told.first(lanes),
            numerics=worker.compiling.numerics,
        )
        self._steps: DeviceSteps | None = None
        if worker.compiling.mode != "none":
            parts = task.plan, worker.denoiser, self.resources, self.state
            self._steps = DeviceSteps(*parts, rank=worker.comm.rank, options=worker.compiling)
        graphs = worker.compiling.mode == "graph"
        self.graphs = StepGraphs(station.wire, station.graphs) if graphs else None

    def restart(self, seed: int) -> None:
        """Another batch of the same shape."""
        if self._steps is not None:
            self._steps.restart(seed)

    def stepper(self, by_hand: Callable[[Step, dict[int, int], Tensor], bool], forwards: list[int]) -> Stepper:
        """What carries out steps; it adds their numbers to `forwards`."""
        return Stepper(
            self._worker.denoiser,
            self.resources,
            self._station.wire,
            by_hand=by_hand,
            device_steps=self._steps,
            graphs=self.graphs,
            unroll=self._worker.compiling.unroll,
            forwards=forwards,
        )


class Station:
    """One batch's canvases and all that is set up over them, for this batch and for others of its shape.

    What a captured step reads and writes stays where it is; `begin` puts another batch into it.

    Attributes:
        canvases, store: of the whole batch, by lane; `lanes` says whose they are and how many are computed.
        padding: of the whole batch, by canvas.
    """

    def __init__(self, worker: BlockWorker, task: Task) -> None:
        self._worker, self._task, layout = worker, task, task.plan.layout
        self.wire = Wire(worker.comm, Clock(worker.device))
        self.padding = Padding(task.pads, layout.size, worker.device)
        self.canvases = _canvases(task, worker.device)
        self.store = store_of(
            worker.denoiser.config,
            batch=len(task.prompts) * views_of(task.plan),
            positions=layout.size,
            dtype=worker.dtype,
            device=worker.device,
        )
        self.told = Told.nothing(len(task.prompts), worker.device)
        self.graphs: StepGraphs | None = None  # those of the first section, whose memory the others use too
        self._sections: dict[tuple[int, ...], Section] = {}
        self.lanes = Lanes(len(task.prompts))
        self._restore(task)

    def begin(self, task: Task) -> None:
        """Put another batch of the same shape in the place of the last."""
        self._task = task
        self.wire.restart()
        self.told.restart()
        for section in self._sections.values():
            section.restart(task.plan.config.seed)
        self.canvases.become(_canvases(task, self._worker.device))
        self.lanes = Lanes(len(task.prompts))
        self._restore(task)

    def _restore(self, task: Task) -> None:
        if task.resume is not None:
            self.canvases.restore(in_columns(task.resume.deltas, task.pads))

    def section(self) -> Section:
        """What computes the lanes that are computed now. By their padding: equal prompts give one a size."""
        pads = tuple(self._task.pads[canvas] for canvas in self.lanes.canvases)
        if pads not in self._sections:
            while len(self._sections) >= _SECTIONS:
                del self._sections[list(self._sections)[1]]  # never the whole batch's
            self._sections[pads] = Section(self, self._worker, self._task, pads)
            self.graphs = self.graphs or self._sections[pads].graphs
        return self._sections[pads]

    def move(self, lanes: Lanes, others: Sequence[Tensor]) -> None:
        """Put the canvases into other lanes, and `others` (by canvas) too. Nobody may be in the middle of a step."""
        views = views_of(self._task.plan)
        keys = [half[layer] for half in (self.store.k_LBGNE, self.store.v_LBGNE) for layer in range(len(half))]
        rearrange(keys, sources(self.lanes, lanes, views))  # layer by layer: what is copied is small
        rearrange([*self.canvases.tensors, self.told.before_B, *others], sources(self.lanes, lanes))
        self.lanes = lanes


def _canvases(task: Task, device: torch.device) -> CanvasState:
    layout = task.plan.layout
    return CanvasState.start(layout, [padded_ids(layout, prompt) for prompt in task.prompts], device)


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
