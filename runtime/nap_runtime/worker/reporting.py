"""How commits leave the device: copied beside the step loop, handed on as deltas."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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


class Reporter:
    """Copies what was committed to the host and hands it on as deltas.

    Args:
        state: the worker's canvases.
        slots: slots the worker answers for; `path_slots` those of them that belong to its paths.
        on_report: takes each report; must not block. None: nobody listens, no deltas are built, and what is copied
            only tells when everything is done.
        begin: the step that comes first; what was committed before it is known already.
        padding: how far canvases stand to the right; `slots` are columns, reports go by positions.
        blocks: slots of the blocks of a canvas that is decoded block by block.

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
    ) -> None:
        self._state, self._worker, self._on_report = state, worker, on_report
        self._positions, self._padding = np.array(slots, dtype=np.int64), padding
        self._positions_S = torch.from_numpy(self._positions).to(state.ids.device)
        self._is_path = np.isin(self._positions, list(path_slots))
        self._in_block = [np.isin(self._positions, list(block)) for block in blocks]
        self._waiting: tuple[int, dict[str, Tensor], torch.cuda.Event | None] | None = None
        self._provisional: list[tuple[int, npt.NDArray[np.int64], Tensor, Tensor]] = []
        self._copied: list[tuple[int, npt.NDArray[np.int64]]] = []  # whose ids and scores are under way
        self._blocks_done_at: list[int | None] = [None] * len(blocks)
        self.settling: Settling | None = None
        self._settled_at: list[int] = []
        self._reported = self.step = begin
        self.paths_done_at: int | None = None  # the canvas step from which no own path slot is masked
        self.all_done_at: int | None = None  # the same for every slot the worker answers for

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
        done = (at is not None and at <= as_of for at in self._blocks_done_at)
        return sum(1 for _ in takewhile(bool, done))

    def settled(self, as_of: int) -> tuple[int, ...]:
        """For each canvas 1 where its summary had settled by a step that is reported; nothing where nobody watches."""
        if self.settling is None:
            return ()
        return tuple(int(0 <= at < as_of) for at in self._settled_at or [-1] * len(self._state.ids))

    def provisional(self, step: int, slots: Sequence[int], ids_BS: Tensor, scores_BS: Tensor) -> None:
        """Report what some slots would get at a step, with the next report."""
        if self._on_report is not None:
            self._provisional.append((step, np.array(slots, dtype=np.int64), ids_BS, scores_BS.double()))

    def _copy(self, step: int, cuda: bool) -> tuple[int, dict[str, Tensor], torch.cuda.Event | None]:
        state, at = self._state, self._positions_S
        fields = {"step": state.step, "masked": state.masked}
        if self._on_report is not None:
            fields |= {"ids": state.ids, "kind": state.kind, "score": state.score}
        sources = {name: tensor[:, at] for name, tensor in fields.items()}
        for number, (_, _, ids, scores) in enumerate(self._provisional):
            sources |= {f"ids {number}": ids, f"score {number}": scores}
        self._copied = [(at_step, slots) for at_step, slots, _, _ in self._provisional]
        self._provisional = []
        if self.settling is not None:
            sources["settled"] = self.settling.at
        if not cuda:
            return step, sources, None
        copies = {}
        for name, source in sources.items():
            copies[name] = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
            copies[name].copy_(source, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return step, copies, event

    def collect(self) -> None:
        """Read the last report, if it has not been read."""
        if self._waiting is None:
            return
        step, tensors, event = self._waiting
        self._waiting = None
        if event is not None:
            event.synchronize()
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        masked = arrays["masked"]
        self.paths_done_at = _done_at(masked[:, self._is_path], arrays["step"][:, self._is_path])
        self.all_done_at = _done_at(masked, arrays["step"])
        self._blocks_done_at = [_done_at(masked[:, here], arrays["step"][:, here]) for here in self._in_block]
        self._settled_at = arrays["settled"].tolist() if "settled" in arrays else []
        first, self._reported = self._reported, step
        if self._on_report is not None:
            deltas = tuple(self._deltas(arrays, canvas, first, step - 1) for canvas in range(len(masked)))
            self._on_report(Report(worker=self._worker, step=step, deltas=deltas))

    def _deltas(
        self, arrays: Mapping[str, npt.NDArray[Any]], canvas: int, first: int, last: int
    ) -> tuple[CanvasDelta, ...]:
        """What one canvas committed at the steps first … last, and what it would have put into its summary."""
        mine = {name: array[canvas] for name, array in arrays.items()}
        positions = self._on_canvas(self._positions, canvas)
        decided = deltas_between(mine, positions, worker=self._worker, first=first, last=last)
        return (*decided, *self._would_be(mine, canvas))

    def _on_canvas(self, columns: npt.NDArray[np.int64], canvas: int) -> npt.NDArray[np.int64]:
        return columns if self._padding is None else self._padding.host_positions(columns, canvas)

    def _would_be(self, mine: Mapping[str, npt.NDArray[Any]], canvas: int) -> Iterator[CanvasDelta]:
        for number, (step, slots) in enumerate(self._copied):
            yield CanvasDelta(
                step=step,
                worker=self._worker,
                kind=Kind.PROVISIONAL,
                positions=self._on_canvas(slots, canvas),
                ids=mine[f"ids {number}"],
                log_confidence=mine[f"score {number}"],
            )


def _done_at(masked: npt.NDArray[np.bool_], steps: npt.NDArray[np.int64]) -> int | None:
    """The step after the last commit, or None while a slot is masked."""
    return None if masked.any() else int(steps.max(initial=-1)) + 1
