"""Which worker decodes which path, and which rows each worker computes."""

from __future__ import annotations

from dataclasses import dataclass

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.errors import UsageError

Rows = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Assignment:
    """Path → worker. Worker 0 leads: it decodes the summary when that is not shared.

    Raises:
        UsageError: a worker has no path.
    """

    worker_of: tuple[int, ...]

    def __post_init__(self) -> None:
        if not all(0 <= worker < len(self.worker_of) for worker in self.worker_of):
            raise UsageError(f"assignment: {self.worker_of} names a worker that cannot be", field="assignment")
        if sorted(set(self.worker_of)) != list(range(self.workers)):
            raise UsageError(f"assignment: {self.worker_of} leaves a worker without a path", field="assignment")

    @classmethod
    def even(cls, paths: int, workers: int) -> Assignment:
        """Neighbouring paths together, as even as it goes.

        Raises:
            UsageError: there are more workers than paths.
        """
        if workers < 1:
            raise UsageError(f"workers: {workers} is not at least 1", field="workers")
        if workers > paths:
            raise UsageError(f"workers: {workers} workers for {paths} paths; use at most {paths}", field="workers")
        return cls(tuple(path * workers // paths for path in range(paths)))

    @property
    def workers(self) -> int:
        """W, the number of workers."""
        return max(self.worker_of, default=-1) + 1

    def paths_of(self, worker: int) -> tuple[int, ...]:
        """Paths that a worker decodes, ascending."""
        return tuple(path for path, owner in enumerate(self.worker_of) if owner == worker)

    def own_rows(self, layout: CanvasLayout, worker: int) -> Rows:
        """Rows of a worker's paths, ascending."""
        return tuple(row for path in self.paths_of(worker) for row in layout.own_rows(path))

    def split_shared(self, layout: CanvasLayout) -> tuple[Rows, ...]:
        """The shared rows cut into consecutive runs, one a worker, so that all workers compute about as many rows."""
        shared = layout.shared_rows()
        own = [len(self.own_rows(layout, worker)) for worker in range(self.workers)]
        shares = _water_fill(own, len(shared))
        ends = [sum(shares[: worker + 1]) for worker in range(self.workers)]
        return tuple(shared[end - share : end] for end, share in zip(ends, shares, strict=True))


def _water_fill(levels: list[int], amount: int) -> list[int]:
    """How much of `amount` to pour on each level so that the highest total is as low as it can be."""
    totals, shares = list(levels), [0] * len(levels)
    for _ in range(amount):
        lowest = min(range(len(totals)), key=totals.__getitem__)
        totals[lowest] += 1
        shares[lowest] += 1
    return shares
