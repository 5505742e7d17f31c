"""ARness of stored decodes, by `nap_runtime.metrics` itself, and where in time each slot was committed.

Shapes: n canvases, S slots, F figures, Q time bins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from multiprocessing.pool import Pool

import numpy as np

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.decoding.schedule import UnmaskingSchedule
from nap_runtime.job import DecodeConfig
from nap_runtime.metrics.arness import ArnessReport
from nap_runtime.metrics.order import OPEN_STEP, DecodeOrder
from nap_trainer.miniature.decoding import Decoded
from nap_trainer.miniature.problems import Array

FIGURES = (
    "set",
    "set_content",
    "ordered",
    "ordered_content",
    "corrected",
    "corrected_content",
    "path_set",
    "path_ordered",
    "path_corrected",
    "null",
    "null_content",
    "null_ordered_content",
    "content_tokens",
    "steps",
)
BINS = 32
_CHUNK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What the order of one decode is read against: its layout and configuration."""

    layout: CanvasLayout
    config: DecodeConfig

    def order(self, ids_S: Array, step_S: Array, committed_S: Array) -> DecodeOrder:
        """One canvas as `DecodeOrder.from_record` would read it from the decode's record."""
        layout = self.layout
        region = np.repeat(np.arange(len(layout.blocks)), [len(block.slots) for block in layout.blocks])
        content, at = np.zeros(len(ids_S), dtype=np.bool_), 0
        for block in layout.blocks:
            here = slice(at, at + len(block.slots))
            ended = np.cumsum(np.isin(ids_S[here], block.end_ids) & committed_S[here]) > 0
            content[here], at = committed_S[here] & ~ended, here.stop
        return DecodeOrder(
            positions=np.array(layout.slots, dtype=np.int64),
            step=np.where(step_S < 0, OPEN_STEP, step_S.astype(np.int64)),
            committed=committed_S,
            content=content,
            region=region,
            pool=region if self.config.picks_over == "path" else np.zeros_like(region),
            n_paths=layout.n_paths,
        )


def arness(decoded: Decoded, planned: Planned, pool: Pool | None = None) -> Array:
    """The figures of every canvas whose order is kept; NaN where one is undefined. float32 [n, F]."""
    n = len(decoded.step_mS)
    arrays = (decoded.ids_nS[:n], decoded.step_mS, decoded.committed_mS)
    chunks = [tuple(array[at : at + _CHUNK] for array in arrays) for at in range(0, n, _CHUNK)]
    work = zip(chunks, repeat(planned))
    parts = [_figures(*job) for job in work] if pool is None else pool.starmap(_figures, work, chunksize=1)
    return np.concatenate(parts) if parts else np.zeros((0, len(FIGURES)), np.float32)


def _figures(chunk: tuple[Array, ...], planned: Planned) -> Array:
    schedule = UnmaskingSchedule.plan(planned.layout, planned.config)
    left_to_right = DecodeOrder.planned(planned.layout, schedule)
    rows = []
    for ids_S, step_S, committed_S in zip(*chunk, strict=True):
        order = planned.order(ids_S, step_S, committed_S)
        report = ArnessReport.of(order, k=1, planned=left_to_right)
        rows.append([np.nan if value is None else float(value) for value in _values(report)])
    return np.array(rows, dtype=np.float32).reshape(-1, len(FIGURES))


def _values(report: ArnessReport) -> Iterator[float | None]:
    whole, content, null = report.canvas.all, report.canvas.content, report.layout_null
    yield from (whole.set_based, content.set_based, whole.step_ordered, content.step_ordered)
    yield from (whole.set_based_corrected, content.set_based_corrected)
    yield from (report.path_mean[name] for name in ("set_based", "step_ordered", "set_based_corrected"))
    yield None if null.all is None else null.all[0]
    yield from (None, None) if null.content is None else null.content
    yield from (content.tokens, whole.steps)


def heat(decoded: Decoded) -> Array:
    """How often each slot was committed in each bin of the decode's time, over the canvases. uint32 [S, Q]."""
    step_nS, committed_nS = decoded.step_mS.astype(np.int64), decoded.committed_mS
    slots, last = step_nS.shape[1], int(step_nS.max(initial=0)) + 1
    counts = np.zeros((slots, BINS), dtype=np.uint32)
    rows, cols = np.nonzero(committed_nS)
    np.add.at(counts, (cols, step_nS[rows, cols] * BINS // last), 1)
    return counts
