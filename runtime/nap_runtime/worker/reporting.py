"""How commits leave the device: copied beside the step loop, handed on as deltas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nap_runtime.decoding.record import CanvasDelta, SyncEvent, deltas_between
from nap_runtime.decoding.state import CanvasState, Kind
from nap_runtime.worker.padding import Padding
from nap_runtime.worker.settling import Settling


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a worker committed since its last report: `deltas[canvas]`. Steps before `step` are complete.

    `forwards` are the steps at which it ran the network since then, `events` the syncs (worker 0 alone tells them).
    """

    worker: int
    step: int
    deltas: tuple[tuple[CanvasDelta, ...], ...]
    forwards: tuple[int, ...] = ()
    events: tuple[SyncEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class _Scored:
    """What some slots would have got at a step, on the canvases that were computed then, by lane."""

    step: int
    canvases: tuple[int, ...]
    slots: npt.NDArray[np.int64]
    ids_BS: Tensor
    scores_BS: Tensor


@dataclass(frozen=True, slots=True)
class _Copied:
    """What is on its way to the host: of which canvases, by lane, as of which step; and what was only scored."""

    step: int
    canvases: tuple[int, ...]
    tensors: dict[str, Tensor]
    scored: tuple[_Scored, ...]
    event: torch.cuda.Event | None


class Reporter:
    """Copies what was committed to the host and hands it on as deltas.

    Args:
        state: the worker's canvases, one a lane; `look_at` says when there are others.
        slots: slots the worker answers for; `path_slots` those of them that belong to its paths.
        on_report: takes each report; must not block. None: nobody listens, no deltas are built, and what is copied
            only tells when everything is done.
        begin: the step that comes first; what was committed before it is known already.
        padding: how far canvases stand to the right; `slots` are columns, reports go by positions.
        blocks: slots of the blocks of a canvas that is decoded block by block.
        paths: slots of each own path, where somebody asks for `closed_at`.

    On a GPU the copy of one control point is read at the next, when it has long arrived; on a CPU at once.
    """

    def __init__(
        self,
        state: CanvasState,
        *,
        worker: int,
        slots: Sequence[int],
        path_slots: Sequence[int],
        on_report: Callable[[Report], None] | None,
        begin: int = 0,
        padding: Padding | None = None,
        blocks: Sequence[Sequence[int]] = (),
        paths: Sequence[Sequence[int]] = (),
    ) -> None:
        self._state, self._worker, self._on_report = state, worker, on_report
        self._canvases = tuple(range(len(state.ids)))
        self._positions, self._padding = np.array(slots, dtype=np.int64), padding
        self._positions_S = torch.from_numpy(self._positions).to(state.ids.device)
        self._is_path = np.isin(self._positions, list(path_slots))
        self._in_block = [np.isin(self._positions, list(block)) for block in blocks]
        self._in_path = [np.isin(self._positions, list(path)) for path in paths]
        self._waiting: _Copied | None = None
        self._provisional: list[_Scored] = []
        self._blocks_done_at: list[int | None] = [None] * len(blocks)
        self.settling: Settling | None = None
        batch = len(state.ids)
        self._settled_at = [-1] * batch
        self._paths_done_at: list[int | None] = [None] * batch
        self._all_done_at: list[int | None] = [None] * batch
        self._closed_at: list[list[int | None]] = [[None] * len(paths)] * batch
        self._reported = self.step = begin
        self.paths_done_at: int | None = None  # the canvas step from which no own path slot is masked
        self.all_done_at: int | None = None  # the same for every slot the worker answers for

    def look_at(self, state: CanvasState, canvases: tuple[int, ...]) -> None:
        """From here on report these canvases, one a lane; of the others nothing is to be told."""
        self._state, self._canvases = state, canvases

    def report(self, step: int, *, last: bool = False) -> None:
        """Send off the state as of `step`. On a CPU, and at the end, it arrives at once."""
        self.step = step
        cuda = self._state.ids.device.type == "cuda"
        self.collect()
        self._waiting = self._copy(step, cuda)
        if last or not cuda:
            self.collect()

    def blocks_done(self, as_of: int) -> int:
        """How many of the leftmost blocks were done on every canvas at a step that is reported."""
        return sum(1 for _ in takewhile(bool, (_by(at, as_of) for at in self._blocks_done_at)))

    def done(self, as_of: int) -> tuple[int, ...]:
        """For each canvas 1 where its own paths were done at a step that is reported, 2 where all was, else 0."""
        both = zip(self._paths_done_at, self._all_done_at, strict=True)
        return tuple(2 if _by(everything, as_of) else int(_by(paths, as_of)) for paths, everything in both)

    @property
    def closed_at(self) -> list[list[int | None]]:
        """Of each canvas that is looked at and own path the step from which no slot is masked; None: there is one."""
        return [self._closed_at[canvas] for canvas in self._canvases]

    def settled(self, as_of: int) -> tuple[int, ...]:
        """For each canvas 1 where its summary had settled by a step that is reported; nothing where nobody watches."""
        if self.settling is None:
            return ()
        return tuple(int(0 <= at < as_of) for at in self._settled_at)

    def provisional(self, step: int, slots: Sequence[int], ids_BS: Tensor, scores_BS: Tensor) -> None:
        """Report what some slots would get at a step, with the next report."""
        if self._on_report is not None:
            at = np.array(slots, dtype=np.int64)
            self._provisional.append(_Scored(step, self._canvases, at, ids_BS, scores_BS.double()))

    def _copy(self, step: int, cuda: bool) -> _Copied:
        state, at = self._state, self._positions_S
        fields = {"step": state.step, "masked": state.masked}
        if self._on_report is not None:
            fields |= {"ids": state.ids, "kind": state.kind, "score": state.score}
        sources = {name: tensor[:, at] for name, tensor in fields.items()}
        scored, self._provisional = tuple(self._provisional), []
        for number, one in enumerate(scored):
            sources |= {f"ids {number}": one.ids_BS, f"score {number}": one.scores_BS}
        if self.settling is not None:
            sources["settled"] = self.settling.at[: len(self._canvases)]
        if not cuda:
            return _Copied(step, self._canvases, sources, scored, None)
        copies = {}
        for name, source in sources.items():
            copies[name] = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
            copies[name].copy_(source, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return _Copied(step, self._canvases, copies, scored, event)

    def collect(self) -> None:
        """Read the last report, if it has not been read."""
        copied, self._waiting = self._waiting, None
        if copied is None:
            return
        if copied.event is not None:
            copied.event.synchronize()
        arrays = {name: tensor.numpy() for name, tensor in copied.tensors.items()}
        self._see(copied, arrays)
        first, self._reported = self._reported, copied.step
        if self._on_report is None:
            return
        deltas: list[list[CanvasDelta]] = [[] for _ in self._all_done_at]
        for lane, canvas in enumerate(copied.canvases):
            mine = {name: arrays[name][lane] for name in ("ids", "step", "kind", "score")}
            at = self._on_canvas(self._positions, canvas)
            deltas[canvas].extend(deltas_between(mine, at, worker=self._worker, first=first, last=copied.step - 1))
        for number, scored in enumerate(copied.scored):
            for lane, canvas in enumerate(scored.canvases):
                found = arrays[f"ids {number}"][lane], arrays[f"score {number}"][lane]
                deltas[canvas].append(self._would_be(scored, canvas, *found))
        self._on_report(Report(worker=self._worker, step=copied.step, deltas=tuple(map(tuple, deltas))))

    def _see(self, copied: _Copied, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Note what is done, of the canvases that were copied."""
        masked, steps = arrays["masked"], arrays["step"]
        for lane, canvas in enumerate(copied.canvases):
            self._paths_done_at[canvas] = _done_at(masked[lane, self._is_path], steps[lane, self._is_path])
            self._all_done_at[canvas] = _done_at(masked[lane], steps[lane])
            self._closed_at[canvas] = [_done_at(masked[lane, here], steps[lane, here]) for here in self._in_path]
            self._settled_at[canvas] = int(arrays["settled"][lane]) if "settled" in arrays else -1
        self.paths_done_at = _done_at(masked[:, self._is_path], steps[:, self._is_path])
        self.all_done_at = _done_at(masked, steps)
        self._blocks_done_at = [_done_at(masked[:, here], steps[:, here]) for here in self._in_block]

    def _on_canvas(self, columns: npt.NDArray[np.int64], canvas: int) -> npt.NDArray[np.int64]:
        return columns if self._padding is None else self._padding.host_positions(columns, canvas)

    def _would_be(
        self, scored: _Scored, canvas: int, ids: npt.NDArray[np.int64], scores: npt.NDArray[np.float64]
    ) -> CanvasDelta:
        """What a canvas would have put into its summary."""
        positions = self._on_canvas(scored.slots, canvas)
        return CanvasDelta(
            step=scored.step,
            worker=self._worker,
            kind=Kind.PROVISIONAL,
            positions=positions,
            ids=ids,
            log_confidence=scores,
        )


def _by(at: int | None, as_of: int) -> bool:
    return at is not None and at <= as_of


def _done_at(masked: npt.NDArray[np.bool_], steps: npt.NDArray[np.int64]) -> int | None:
    """The step after the last commit, or None while a slot is masked."""
    return None if masked.any() else int(steps.max(initial=-1)) + 1
