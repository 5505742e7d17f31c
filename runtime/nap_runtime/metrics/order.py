"""In which order a canvas was committed: what ARness reads.

The order is by logical step, never by wall-clock. It comes from a `DecodeRecord`, or from a foreign trace in
one of three JSON forms:

    {"slots": 4, "steps": [[0, 1], [3], [2]]}                slots 0 … 3; positions committed at each step
    {"slots": [7, 8, 9, 12], "steps": [[7, 8], [12], [9]]}   slots named one by one
    [[0, 7], [0, 8], [1, 12], [2, 9]]                        [step, position]; also one such pair a line
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nap_runtime.decoding.layout import CanvasLayout, Ids
from nap_runtime.decoding.record import DecodeRecord
from nap_runtime.decoding.schedule import UnmaskingSchedule
from nap_runtime.decoding.state import Kind
from nap_runtime.errors import RecordError, UsageError
from nap_runtime.job import MAX_CANVAS, DecodeConfig

Flags = npt.NDArray[np.bool_]

OPEN_STEP = np.iinfo(np.int64).max // 4  # the step of a slot that was still masked at the end


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecodeOrder:
    """When each slot left the masked set. All arrays have shape [L], one entry per slot, positions ascending.

    Attributes:
        positions: canvas positions of the slots; int64.
        step: logical step at which the slot was committed or filled, `OPEN_STEP` where neither; int64.
        committed: whether it was committed (neither filled nor left open).
        content: whether it holds content (see `content_mask`).
        region: index of its block: paths first, then the summary; non-decreasing.
        pool: index of the group of slots that its quota is drawn from: the block where the schedule gives
            every block its own quota (scope `path`), 0 everywhere where it gives the canvas one;
            non-decreasing.
        n_paths: m; region m is the summary.
    """

    positions: Ids
    step: Ids
    committed: Flags
    content: Flags
    region: Ids
    pool: Ids
    n_paths: int

    @property
    def steps(self) -> tuple[tuple[int, ...], ...]:
        """Positions committed at each step that committed any, both ascending."""
        steps, positions = self.step[self.committed], self.positions[self.committed]
        ends = np.unique(np.sort(steps), return_index=True)[1][1:]
        groups = np.split(positions[np.argsort(steps, kind="stable")], ends)
        return tuple(tuple(group.tolist()) for group in groups if len(group))

    def only(self, keep: Flags) -> DecodeOrder:
        """The order of some slots by themselves, with a masked set of their own. `keep` has shape [L]."""
        names = ("positions", "step", "committed", "content", "region", "pool")
        return replace(self, **{name: getattr(self, name)[keep] for name in names})

    def left_to_right_in_regions(self) -> DecodeOrder:
        """The same commits at the same steps in the same regions, but each region strictly left to right."""
        step = self.step.copy()
        for region in np.unique(self.region):
            here = (self.region == region) & self.committed
            step[here] = np.sort(step[here])
        return replace(self, step=step)

    @classmethod
    def from_record(cls, record: DecodeRecord) -> DecodeOrder:
        """The order of a decode. A slot that was masked again counts with its last commit only.

        Raises:
            RecordError: the config in the record is malformed, or a delta writes beside the canvas.
        """
        step = np.full(record.layout.size, OPEN_STEP, dtype=np.int64)
        committed = np.zeros(record.layout.size, dtype=np.bool_)
        for delta in record.deltas:
            if len(delta.positions) and not 0 <= delta.positions.min() <= delta.positions.max() < len(step):
                raise RecordError(f"trace: step {delta.step} writes outside the {len(step)} positions")
            if delta.kind is not Kind.PROVISIONAL:
                step[delta.positions] = OPEN_STEP if delta.kind is Kind.REMASK else delta.step
                committed[delta.positions] = delta.kind is Kind.COMMIT
        slots = np.array(record.layout.slots, dtype=np.int64)
        return cls._of(
            record.layout,
            step=step[slots],
            committed=committed[slots],
            content=content_mask(record)[slots],
            by_block=config_of(record).picks_over == "path",
        )

    @classmethod
    def planned(cls, layout: CanvasLayout, schedule: UnmaskingSchedule) -> DecodeOrder | None:
        """Every path and the summary strictly left to right on a schedule, nothing filled.

        None where the schedule sets no path's pace: it gives the canvas one quota (scope `canvas`), or its quotas do
        not say when slots are committed for good.
        """
        if schedule.canvas or not schedule.fixed:
            return None
        first = 0 if schedule.at_once else len(schedule.paths)
        steps = [
            np.repeat(np.arange(len(schedule.paths)), [row[path] for row in schedule.paths])
            for path in range(layout.n_paths)
        ]
        summary = np.array(schedule.summary, dtype=np.int64)
        steps.append(first + np.repeat(np.arange(len(summary)), summary))
        every = np.ones(layout.n_slots, dtype=np.bool_)
        return cls._of(layout, step=np.concatenate(steps), committed=every, content=every, by_block=True)

    @classmethod
    def _of(cls, layout: CanvasLayout, *, step: Ids, committed: Flags, content: Flags, by_block: bool) -> DecodeOrder:
        region = np.repeat(np.arange(len(layout.blocks)), [len(block.slots) for block in layout.blocks])
        return cls(
            positions=np.array(layout.slots, dtype=np.int64),
            step=step.astype(np.int64),
            committed=committed,
            content=content,
            region=region,
            pool=region if by_block else np.zeros_like(region),
            n_paths=layout.n_paths,
        )

    @classmethod
    def from_steps(cls, slots: Iterable[int], steps: Sequence[Sequence[int]]) -> DecodeOrder:
        """A foreign order: one region, every committed slot is content, uncommitted slots stay masked.

        Args:
            slots: positions of all slots.
            steps: positions committed at each step.

        Raises:
            RecordError: a position is no slot or is committed twice, or nothing is committed.
        """
        positions = np.array(sorted(set(slots)), dtype=np.int64)
        index = {int(position): at for at, position in enumerate(positions)}
        step = np.full(len(positions), OPEN_STEP, dtype=np.int64)
        for number, committed in enumerate(steps):
            for position in committed:
                if position not in index:
                    raise RecordError(f"order: steps[{number}]: position {position} is not a slot")
                if step[index[position]] != OPEN_STEP:
                    raise RecordError(f"order: steps[{number}]: position {position} was committed before")
                step[index[position]] = number
        done = step != OPEN_STEP
        if not done.any():
            raise RecordError("order: steps: nothing is committed")
        zero = np.zeros(len(positions), dtype=np.int64)
        return cls(positions=positions, step=step, committed=done, content=done, region=zero, pool=zero, n_paths=1)

    @classmethod
    def from_json(cls, text: str) -> DecodeOrder:
        """A foreign trace in one of the forms of the module's docstring.

        Raises:
            RecordError: it is malformed; the message names the line or field.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":
                raise RecordError(f"order: line {error.lineno}: not JSON ({error.msg})") from error
            return _from_pairs(_lines(text))
        except RecursionError as error:
            raise RecordError("order: nested too deeply") from error
        if isinstance(values, dict):
            return _from_object(values)
        if not isinstance(values, list):
            raise RecordError("order: neither an object (slots, steps) nor a list of [step, position]")
        if len(values) == 2 and not any(isinstance(value, list) for value in values):
            values = [values]
        return _from_pairs((f"order: entry {number}", entry) for number, entry in enumerate(values))


def content_mask(record: DecodeRecord) -> Flags:
    """Which positions hold content: committed (not filled) before the first end id committed in their block.

    The end id itself is no content. Shape [N].
    """
    ids, committed = record.canvas(), np.zeros(record.layout.size, dtype=np.bool_)
    for delta in record.commits:
        committed[delta.positions] = True
    content = np.zeros_like(committed)
    for block in record.layout.blocks:
        here = slice(block.slots.start, block.slots.stop)
        ended = np.cumsum(np.isin(ids[here], block.end_ids) & committed[here]) > 0
        content[here] = committed[here] & ~ended
    return content


def config_of(record: DecodeRecord) -> DecodeConfig:
    """How a record was decoded.

    Raises:
        RecordError: its config is malformed.
    """
    try:
        return DecodeConfig.from_mapping(record.config)
    except (TypeError, UsageError) as error:
        raise RecordError(f"trace: config: {error}") from error


def _lines(text: str) -> Iterator[tuple[str, Any]]:
    """Where it stands and what it holds, of every line that is not empty."""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                yield f"order: line {number}", json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise RecordError(f"order: line {number}: not JSON ({error})") from error


def _from_pairs(entries: Iterable[tuple[str, Any]]) -> DecodeOrder:
    """`[step, position]` entries in any order, each with where it stands. Their positions are the slots."""
    by_step: dict[int, list[int]] = {}
    seen: set[int] = set()
    for where, entry in entries:
        if not isinstance(entry, list) or len(entry) != 2 or not all(map(_is_index, entry)):
            raise RecordError(f"{where}: {json.dumps(entry)[:60]} is not [step, position] from 0")
        step, position = entry
        if position in seen:
            raise RecordError(f"{where}: position {position} was committed before")
        seen.add(position)
        by_step.setdefault(step, []).append(position)
    return DecodeOrder.from_steps(seen, [by_step[step] for step in sorted(by_step)])


def _from_object(values: dict[str, Any]) -> DecodeOrder:
    for key in values:
        if key not in ("slots", "steps"):
            raise RecordError(f"order: {key}: unknown field; known are slots, steps")
    slots: Any = values.get("slots")
    steps: Any = values.get("steps")
    if _is_index(slots) and slots <= MAX_CANVAS:
        slots = list(range(slots))
    if not _is_index_list(slots) or len(set(slots)) != len(slots):
        raise RecordError(f"order: slots: neither a number up to {MAX_CANVAS} nor a list of positions, each once")
    if not isinstance(steps, list):
        raise RecordError("order: steps: not a list with one list of positions a step")
    for number, positions in enumerate(steps):
        if not _is_index_list(positions):
            raise RecordError(f"order: steps[{number}]: not a list of integers from 0")
    return DecodeOrder.from_steps(slots, steps)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < OPEN_STEP


def _is_index_list(values: Any) -> bool:
    return isinstance(values, list) and all(map(_is_index, values))
