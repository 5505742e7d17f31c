"""How a worker carries out steps: one operation after another, compiled, or captured in CUDA graphs.

A step that only ranks candidates and commits quotas (most do) is the same work whatever its number: its rows, the head
over the open slots, `advance.decide`. Its number and quotas stand on the device, so such a step can be captured once a
`StepShape` and replayed. Everything else goes through the `Selector`, operation by operation.

With `unroll` steps in a graph a step waits here until so many are due, or until somebody needs the result: a sync, a
report, a step that is done by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from nap_runtime.decoding.machine import Layerwise, Plan, Rows, Step
from nap_runtime.decoding.schedule import block_of
from nap_runtime.decoding.state import CanvasState
from nap_runtime.distributed.wire import Traffic, Wire
from nap_runtime.models.compiled import CompileOptions
from nap_runtime.worker.advance import Canvas, Choice, Slots, decider, gatherer
from nap_runtime.worker.denoiser import Denoiser
from nap_runtime.worker.resources import ComputedRows, FoundRows, Resources

WIDEST = 4096  # slots of one step that are ranked by counting; more would cost too much memory
_HEAD_SIZES = 4  # into so many buffers of the head the slots of a kind are divided
_HEAD_MULTIPLE, _HEAD_LEAST = 32, 8

Part = Literal["paths", "summary", "canvas"]


class Kind(NamedTuple):
    """Steps that compute the same rows, or as many (`width`) that the device finds, and pick from the same slots."""

    part: Part
    rows: Rows
    layerwise: Layerwise
    width: int = 0


class StepShape(NamedTuple):
    """What a captured step is known by: its kind, and rows of the head (0: nothing can be committed)."""

    kind: Kind
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A step to carry out, and what is counted for it.

    Attributes:
        quotas: of own paths; `computed` what its rows are and see.
        rows: how many, over all views; `extra_rows` those of them for a sync's or refresh's sake.
        alone: it may not be captured (tokens are given at it).
    """

    step: Step
    quotas: dict[int, int]
    computed: ComputedRows | FoundRows
    rows: int
    extra_rows: int
    alone: bool = False

    @property
    def committed(self) -> bool:
        """Whether this worker commits at the step, as its first-commit meter sees it."""
        return bool(self.quotas) or self.step.canvas is not None


class DeviceSteps:
    """Steps whose commits need no host: which they are, of which shape, and the work itself.

    Args:
        options: how the two halves around the head are compiled.
    """

    def __init__(
        self,
        plan: Plan,
        denoiser: Denoiser,
        resources: Resources,
        state: CanvasState,
        *,
        rank: int,
        options: CompileOptions,
    ) -> None:
        self._plan, self._layout, self._config = plan, plan.layout, plan.config
        self._denoiser, self._resources, self._rank = denoiser, resources, rank
        self._alone = plan.assignment.workers == 1
        self._own = plan.assignment.paths_of(rank)
        self._canvas = Canvas(state.ids, state.masked, state.step, state.kind, state.score)
        self._device = state.ids.device
        self.number = torch.zeros((), dtype=torch.int64, device=self._device)
        self._seed = torch.tensor(plan.config.seed, dtype=torch.int64, device=self._device)
        self._slots: dict[Kind, Slots] = {}
        self._done = _committed_before(plan)
        self._options = replace(options, mode="default", unroll=1)  # what is compiled is the same in graphs
        self._gather = gatherer(self._options)

    def restart(self, seed: int) -> None:
        """Another batch of the same shape, with noise of its own."""
        self._seed.fill_(seed)

    # -- which steps --------------------------------------------------------------------------------------------

    @property
    def able(self) -> bool:
        """Whether any step of the plan can be one: its rule ranks and takes quotas, without guidance."""
        config, traits = self._config, self._config.traits
        quotas = not (traits.adaptive or traits.remasks or config.picks_by == "prophet")
        spared = config.cache is not None and self._layout.kind == "plain"
        return quotas and not config.cfg and not spared and self._layout.n_slots <= WIDEST

    def shape(self, due: Due) -> StepShape | None:
        """The shape of a step, or None where the `Selector` has to do it."""
        step, part = due.step, self._part(due.step)
        if not self.able or step.live or step.block is not None or part is None:
            return None
        kind = Kind(part, step.rows, step.layerwise, due.computed.width)
        return StepShape(kind, self._head_size(kind, self._open(step, due.quotas, part)))

    def _part(self, step: Step) -> Part | None:
        if step.canvas is not None:
            return "canvas" if self._alone or step.step == 0 else None
        if step.paths is not None:
            return "paths" if step.summary is None else None
        agreed = self._config.sync.mode in ("exact", "shared") or self._config.sync.summary == "consensus"
        return "summary" if self._rank == 0 and (self._alone or not agreed) else None

    def _open(self, step: Step, quotas: dict[int, int], part: Part) -> int:
        """The most slots that can be committed at a step: those masked, of blocks with a quota."""
        if part == "paths":
            return sum(self._layout.budgets[path] - self._done[path][step.step] for path in quotas)
        if part == "summary":
            left = self._layout.summary_budget - self._done[-1][step.step]
            return left if step.summary else 0
        return self._layout.n_slots - self._done[0][step.step] if step.canvas else 0

    def _head_size(self, kind: Kind, needed: int) -> int:
        total = len(self._slot_numbers(kind.part))
        quarter = -(-total // (_HEAD_SIZES * _HEAD_MULTIPLE)) * _HEAD_MULTIPLE
        # Compilers make a case of its own of one row, and one did not get it right; more rows than slots do no harm.
        return max(_HEAD_LEAST, min(total, -(-needed // quarter) * quarter)) if needed else 0

    def _slot_numbers(self, part: Part) -> tuple[int, ...]:
        if part == "paths":
            return tuple(slot for path in self._own for slot in self._layout.paths[path].slots)
        if part == "canvas":
            return self._layout.slots
        assert self._layout.summary is not None
        return tuple(self._layout.summary.slots)

    # -- the work -----------------------------------------------------------------------------------------------

    def work(self, step: Step, rows: ComputedRows | FoundRows, shape: StepShape) -> None:
        """Compute the rows and commit, for the step whose number stands in `number`, which becomes the next."""
        computed = rows.at(self.number)
        ids_BR = self._resources.inputs(computed.rows)
        hidden_BRD = self._denoiser.forward_rows(ids_BR, computed.positions, computed.attend)
        if shape.size:
            self._commit(step, shape, hidden_BRD)
        self.number += 1

    def _commit(self, step: Step, shape: StepShape, hidden_BRD: Tensor) -> None:
        slots = self._slots_of(step, shape.kind)
        if shape.kind.width:
            slots = slots._replace(rows=self._resources.places(slots.columns_S))
        open_BCD, chosen_BC = self._gather(hidden_BRD, self._canvas.masked, slots, self.number, shape.size)
        decide = decider(self._choice(shape.kind.part), self._options)
        logits_BCV = self._denoiser.logits(open_BCD)
        ends_E = self._resources.text_ends_E
        decide(logits_BCV, chosen_BC, self._canvas, slots, self.number, self._seed, ends_E)

    def _choice(self, part: Part) -> Choice:
        config, own = self._config, self._options.numerics == "invariant"
        best = config.temperature == 0 and config.confidence == "max-prob"
        return Choice(
            rule=config.picks_by,
            confidence=config.confidence,
            temperature=config.temperature,
            eos_weight=1.0 if config.eos_weight is None else config.eos_weight,
            mask_id=self._layout.mask_id,
            fill_id=self._layout.fill_id,
            closes=self._layout.kind == "nap",
            always=part == "canvas",
            kernel=self._options.kernels and best and not own,
            invariant=own,
        )

    def _slots_of(self, step: Step, kind: Kind) -> Slots:
        if kind not in self._slots:
            self._slots[kind] = self._make_slots(step, kind.part)
        return self._slots[kind]

    def _make_slots(self, step: Step, part: Part) -> Slots:
        numbers, blocks = self._slot_numbers(part), self._layout.blocks
        scored = self._resources.scored(step, numbers)
        block_of_slot = {slot: at for at, block in enumerate(blocks) for slot in block.slots}
        block_S = [block_of_slot[slot] for slot in numbers]
        most = max(len(block.end_ids) for block in blocks)
        ends_SE = [(*blocks[at].end_ids, *(-1,) * (most - len(blocks[at].end_ids))) for at in block_S]
        return Slots(
            columns_S=scored.slots_S,
            rows=scored.head,
            positions=scored.positions,
            group_S=self._tensor(block_S if part == "paths" else [0] * len(numbers)),
            block_S=self._tensor(block_S),
            turn_S=self._tensor(self._turns(block_S, part)),
            ends_SE=self._tensor(ends_SE),
            quota_TG=self._tensor(_quota_table(self._plan, part)),
        )

    def _turns(self, block_S: list[int], part: Part) -> list[int]:
        """`blockwise`: a slot's place within its region, in blocks; else 0."""
        if self._config.picks_by != "blockwise":
            return [0] * len(block_S)
        region_S = block_S if part == "paths" else [0] * len(block_S)
        place_S = [region_S[:at].count(region) for at, region in enumerate(region_S)]
        sizes = [region_S.count(region) for region in region_S]
        return [at // block_of(size, self._config.block_length) for at, size in zip(place_S, sizes, strict=True)]

    def _tensor(self, values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


def _quota_table(plan: Plan, part: Part) -> list[tuple[int, ...]]:
    """Quotas by global step: of each path, or of the one region that is picked from."""
    schedule, steps = plan.schedule, plan.schedule.steps
    if part == "canvas":
        return [(quota,) for quota in schedule.canvas]
    nothing = (0,) * plan.layout.n_paths
    if part == "paths":
        return [schedule.paths[step] if step < len(schedule.paths) else nothing for step in range(steps)]
    first = plan.path_steps
    return [(schedule.summary[step - first] if step >= first else 0,) for step in range(steps)]


def _committed_before(plan: Plan) -> list[list[int]]:
    """Of each path, then the summary (scope `canvas`: of all slots): what its quotas add up to before each step."""
    parts: list[Part] = ["canvas"] if plan.schedule.canvas else ["paths", "summary"]
    columns = [column for part in parts for column in zip(*_quota_table(plan, part), strict=True)]
    return [[0, *accumulate(column)] for column in columns]


class StepGraphs:
    """CUDA graphs of steps, by shape. What a graph computes in between stands in memory that all graphs share.

    Args:
        wire: counts what a captured step sends, at each replay; how long it waits inside is not known.
        beside: graphs that are never replayed at the same time, with whom memory is shared too.
    """

    def __init__(self, wire: Wire, beside: StepGraphs | None = None) -> None:
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Traffic]] = {}
        self._seen: set[Hashable] = set()
        self._wire = wire
        self._pool: Any = torch.cuda.graph_pool_handle() if beside is None else beside._pool

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Do the work: the first time as it is, which compiles; the second time it is captured; then replayed."""
        if key not in self._seen:
            self._seen.add(key)
            return work()
        if key not in self._graphs:
            self._graphs[key] = self._capture(work)
        graph, traffic = self._graphs[key]
        graph.replay()
        self._wire.replayed(traffic)

    def _capture(self, work: Callable[[], None]) -> tuple[torch.cuda.CUDAGraph, Traffic]:
        graph = torch.cuda.CUDAGraph()
        # Only what this thread does counts: NCCL's watchdog asks for events in one of its own.
        within = torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local")
        with self._wire.capturing() as traffic, within:
            work()
        return graph, traffic


class Stepper:
    """Carries out a worker's steps in order, and counts them.

    Args:
        by_hand: commits a step from its hidden states, operation by operation, and says whether it may have.
        device_steps, graphs: None where they are not used.
        forwards: the steps that were carried out; others may have added to it before.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        resources: Resources,
        wire: Wire,
        *,
        by_hand: Callable[[Step, dict[int, int], Tensor], bool],
        device_steps: DeviceSteps | None = None,
        graphs: StepGraphs | None = None,
        unroll: int = 1,
        forwards: list[int],
    ) -> None:
        self._denoiser, self._resources, self._wire, self._by_hand = denoiser, resources, wire, by_hand
        self._device_steps, self._graphs, self._unroll = device_steps, graphs, unroll
        self._waiting: list[tuple[Due, StepShape]] = []
        self._number = -1  # what stands in the device's `number`
        self.forwards = forwards

    @property
    def waits(self) -> bool:
        """Whether a step has been added and not been carried out."""
        return bool(self._waiting)

    def add(self, due: Due) -> bool:
        """Carry out a step, now or with those that follow; whether it may have committed something."""
        self.forwards.append(due.step.step)
        steps = self._device_steps
        shape = None if steps is None or due.alone else steps.shape(due)
        if shape is None:
            self.flush()
            return self._run_by_hand(due)
        if self._waiting and due.step.step != self._waiting[-1][0].step.step + 1:
            self.flush()
        self._waiting.append((due, shape))
        if self._graphs is None or len(self._waiting) == self._unroll:
            self.flush()
        return shape.size > 0

    def flush(self) -> None:
        """Carry out what waits: together where it is as many steps as a graph holds."""
        waiting, self._waiting = self._waiting, []
        if self._graphs is not None and len(waiting) == self._unroll > 1:
            heads = {shape.kind: 0 for _, shape in waiting}
            for _, shape in waiting:
                heads[shape.kind] = max(heads[shape.kind], shape.size)
            return self._run_on_device([(due, StepShape(shape.kind, heads[shape.kind])) for due, shape in waiting])
        for one in waiting:
            self._run_on_device([one])

    def _run_by_hand(self, due: Due) -> bool:
        self._wire.begin_step(rows=due.rows, extra_rows=due.extra_rows)
        computed = due.computed.at(due.step.step)
        ids_BR = self._resources.inputs(computed.rows)
        hidden_BRD = self._denoiser.forward_rows(ids_BR, computed.positions, computed.attend)
        changed = self._by_hand(due.step, due.quotas, hidden_BRD)
        self._wire.end_step(committed=due.committed)
        return changed

    def _run_on_device(self, some: list[tuple[Due, StepShape]]) -> None:
        steps, first = self._device_steps, some[0][0].step.step
        assert steps is not None
        rows, extra = sum(due.rows for due, _ in some), sum(due.extra_rows for due, _ in some)
        self._wire.begin_step(rows=rows, extra_rows=extra, steps=len(some))
        if self._number != first:
            steps.number.fill_(first)
        self._number = first + len(some)

        def work() -> None:
            for due, shape in some:
                steps.work(due.step, due.computed, shape)

        if self._graphs is None:
            work()
        else:
            self._graphs.run(tuple(shape for _, shape in some), work)
        self._wire.end_step(committed=any(due.committed for due, _ in some))
