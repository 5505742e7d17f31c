"""Which canvas of a batch stands in which lane, and how many lanes are computed.

A batch's tensors have a lane for each canvas. Canvases that nothing is to be done for (their paths are closed while
others' are not, or all of them is decided) make room at the front: the first `size` lanes are computed, the others keep
what they hold. Sizes are powers of two, so that shapes stay few; a lane that a bucket leaves over is computed on, which
changes nothing, because nothing on it is masked.

Host arithmetic only; the tensors are moved by `rearrange`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

_AT_LEAST = 16  # one lane of so many is computed in any case

Place = tuple[int, int]  # a canvas, and which view of it


class Lanes:
    """The canvases of a batch by lane.

    Attributes:
        order: the canvas in each lane, all B of them.
        size: lanes that are computed, from the first on.
    """

    def __init__(self, batch: int) -> None:
        self.order = list(range(batch))
        self.size = batch

    @property
    def canvases(self) -> tuple[int, ...]:
        """Canvases that are computed, by lane."""
        return tuple(self.order[: self.size])

    @property
    def away(self) -> frozenset[int]:
        """Canvases that are not."""
        return frozenset(self.order[self.size :])

    def narrowed(self, needed: Collection[int]) -> Lanes | None:
        """Fewer lanes with all `needed` canvases in them, moving as few as possible; None where no bucket is spared."""
        least = len(self.order) // _AT_LEAST  # a step of all again is no sign of a stuck worker (executor/liveness.py)
        size = bucket(max(len(needed), least), self.size) if needed else self.size
        if size == self.size:
            return None
        behind = [lane for lane in range(size, self.size) if self.order[lane] in needed]
        room = [lane for lane in range(size) if self.order[lane] not in needed]
        lanes = Lanes(len(self.order))
        lanes.order, lanes.size = list(self.order), size
        for one, other in zip(room, behind, strict=False):
            lanes.order[one], lanes.order[other] = self.order[other], self.order[one]
        return lanes

    def widened(self) -> Lanes:
        """All lanes, each canvas where it stands."""
        lanes = Lanes(len(self.order))
        lanes.order = list(self.order)
        return lanes

    def lane_of(self) -> list[int]:
        """The lane of each canvas."""
        return sorted(range(len(self.order)), key=self.order.__getitem__)

    def places(self, views: int) -> list[Place]:
        """Canvas and view of each lane of tensors that hold every canvas `views` times.

        The computed canvases' views come first, view after view, so that the first `views`·`size` lanes are theirs.
        """
        front, back = self.order[: self.size], self.order[self.size :]
        return [(canvas, view) for part in (front, back) for view in range(views) for canvas in part]


def bucket(needed: int, most: int) -> int:
    """The least power of two that holds so many canvases, at most `most`."""
    return min(1 << (needed - 1).bit_length(), most)


def sources(before: Lanes, after: Lanes, views: int = 1) -> list[int]:
    """For each lane the lane that its content comes from."""
    at = {place: lane for lane, place in enumerate(before.places(views))}
    return [at[place] for place in after.places(views)]


def rearrange(tensors: Sequence[Tensor], source: Sequence[int]) -> None:
    """Move lanes (the first axis of each tensor) in place; `source` as of `sources`."""
    moved = [lane for lane, origin in enumerate(source) if lane != origin]
    if not moved or not tensors:
        return
    to, origin = (_on(tensors[0].device, lanes) for lanes in (moved, [source[lane] for lane in moved]))
    for tensor in tensors:
        tensor.index_copy_(0, to, tensor.index_select(0, origin))


def _on(device: torch.device, lanes: Sequence[int]) -> Tensor:
    """Lane numbers on a device; the host does not wait for it."""
    numbers = torch.tensor(lanes, dtype=torch.int64)
    return numbers if device.type == "cpu" else numbers.pin_memory().to(device, non_blocking=True)
