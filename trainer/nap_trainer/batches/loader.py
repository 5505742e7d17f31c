"""Which rows make up which step: a function of seed and step alone, so that a run can go on anywhere.

The global batch of a step is the same however many ranks and micro-steps share it. Its canvases are sorted by length
before they are dealt out, so that those of one micro-batch are padded little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from nap_runtime.errors import UsageError
from nap_trainer.batches.collate import HostBatch, collate
from nap_trainer.batches.formats import Marks
from nap_trainer.batches.segments import SegmentTable, Test, kept
from nap_trainer.settings import Budget, DataSection

Rows = npt.NDArray[np.int64]
_EPOCHS = 2**62  # apart from the numbers of steps, in the generators' keys


class Loader:
    """Batches of a formed table.

    Args:
        table: rows as they are laid out (`formats.formed`); those that fit no budget are dropped, counted in `dropped`.
        data: budgets, path counts, seed.
        marks: what frames the texts.
        global_batch, micro_batch: canvases of a step and of a forward.
        rank, world: whose share to yield.

    Raises:
        UsageError: nothing is left of the table.
    """

    def __init__(
        self,
        table: SegmentTable,
        data: DataSection,
        marks: Marks,
        *,
        global_batch: int,
        micro_batch: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._data, self._marks, self._global, self._micro = data, marks, global_batch, micro_batch
        self._rank, self._world = rank, world
        self.table, self.dropped = kept(table, self._tests())
        if not len(self.table):
            counts = ", ".join(f"{count} by {name}" for name, count in self.dropped.items())
            raise UsageError(f"data: no row fits ({counts}); raise the budgets", field="data")
        if self.table.path_counts_n.max() < max(self._m_choices):
            text = f"{max(self._m_choices)} where no row has more than {self.table.path_counts_n.max()}"
            raise UsageError(f"data.paths: {text}", field="data.paths")
        self._sizes = self.table.prompt_lengths_n + self.table.path_lengths_nm.sum(1)

    def _tests(self) -> list[tuple[str, Test]]:
        """What a row must pass, by the setting that drops it."""
        data, marks, plain = self._data, self._marks, self._data.plain
        most = data.gen_length if plain else high(data.path_tokens)
        closer = 0 if plain else max(map(len, marks.ends))
        room = 0 if plain else high(data.summary_tokens) - len(marks.summary_end)
        fewest = min(self._m_choices)
        return [
            ("max_prompt", lambda t: (t.prompt_lengths_n >= 1) & (t.prompt_lengths_n <= data.max_prompt)),
            ("paths", lambda t: t.path_counts_n >= fewest),
            ("gen_length" if plain else "path_tokens", lambda t: t.path_lengths_nm.max(1) + closer <= most),
            ("summary_tokens", lambda t: t.summary_lengths_n <= room),
        ]

    @property
    def width(self) -> int:
        """The largest N that a batch can have."""
        data, marks = self._data, self._marks
        m = 1 if data.plain else max(self._m_choices)
        budgets = (data.gen_length,) if data.plain else (high(data.path_tokens),) * m
        layout = marks.layout(budgets, 0 if data.plain else high(data.summary_tokens), 1)
        return -(-(int(self.table.prompt_lengths_n.max()) - 1 + layout.size) // 8) * 8

    def steps(self, start: int, stop: int) -> Iterator[list[HostBatch]]:
        """This rank's micro-batches of steps `start` … `stop` − 1, the next step's made beside the current one."""
        with ThreadPoolExecutor(1, thread_name_prefix="collate") as pool:
            waiting = pool.submit(self.step, start) if start < stop else None
            for step in range(start, stop):
                assert waiting is not None
                batches = waiting.result()
                waiting = pool.submit(self.step, step + 1) if step + 1 < stop else None
                yield batches

    def step(self, step: int) -> list[HostBatch]:
        """This rank's micro-batches of one step."""
        rng = np.random.Generator(np.random.Philox(key=[self._data.seed, step]))
        m, budgets, summary = self._shape(rng)
        rows = self._rows(step, m)
        rows = rows[np.argsort(self._sizes[rows], kind="stable")]
        paths = self._paths(rows, m, rng)
        budgets, summary = self._enlarged(rows, paths, budgets, summary)
        starts = range(self._rank * self._micro, self._global, self._world * self._micro)
        return [self._collated(slice(at, at + self._micro), rows, paths, budgets, summary) for at in starts]

    def _collated(self, part: slice, rows: Rows, paths: Rows, budgets: Sequence[int], summary: int) -> HostBatch:
        index = np.arange(part.start, part.stop)
        return collate(
            self.table,
            rows[part],
            paths[part],
            budgets=budgets,
            summary_budget=summary,
            marks=self._marks,
            index_B=index,
        )

    @property
    def _m_choices(self) -> tuple[int, ...]:
        """Numbers of paths that a batch may have; one text is one path."""
        return self._data.paths if self._data.format == "nap" and not self._data.plain else (1,)

    def _shape(self, rng: np.random.Generator) -> tuple[int, list[int], int]:
        """m, budgets of the paths and of the summary, drawn for a whole step."""
        data = self._data
        if data.plain:
            return 1, [data.gen_length], 0
        m = int(rng.choice(self._m_choices))
        path, summary = (_draw(budget, rng) for budget in (data.path_tokens, data.summary_tokens))
        return m, [path] * m, summary

    def _enlarged(self, rows: Rows, paths: Rows, budgets: list[int], summary: int) -> tuple[list[int], int]:
        """Drawn budgets, at least as large as the step's longest texts need."""
        if self._data.plain:
            return budgets, summary
        longest = int(np.take_along_axis(self.table.path_lengths_nm[rows], paths, 1).max())
        path = max(budgets[0], longest + max(map(len, self._marks.ends)))
        needed = int(self.table.summary_lengths_n[rows].max()) + len(self._marks.summary_end)
        return [path] * len(budgets), max(summary, needed)

    def _rows(self, step: int, m: int) -> Rows:
        """The global batch's rows: the order of its epochs, each a permutation of its own."""
        n = len(self.table)
        at = step * self._global + np.arange(self._global)
        rows = np.empty(self._global, dtype=np.int64)
        for epoch in np.unique(at // n):
            here = at // n == epoch
            rows[here] = self._order(int(epoch))[at[here] % n]
        short = self.table.path_counts_n[rows] < m
        if short.any():  # rows with fewer paths give way to others, drawn for this step
            enough = np.flatnonzero(self.table.path_counts_n >= m)
            rng = np.random.Generator(np.random.Philox(key=[self._data.seed + 1, step]))
            rows[short] = rng.choice(enough, int(short.sum()))
        return rows

    def _order(self, epoch: int) -> Rows:
        if getattr(self, "_held", (None,))[0] != epoch:
            rng = np.random.Generator(np.random.Philox(key=[self._data.seed, _EPOCHS + epoch]))
            self._held = (epoch, rng.permutation(len(self.table)))
        return self._held[1]

    def _paths(self, rows: Rows, m: int, rng: np.random.Generator) -> Rows:
        """Which of its paths each row shows, and where. Shape [G, m]."""
        has = self.table.path_lengths_nm[rows] > 0
        order = rng.random(has.shape) if self._data.shuffle_paths else np.arange(has.shape[1]) / has.shape[1]
        return np.argsort(np.where(has, order, 2.0), axis=1, kind="stable")[:, :m]


def high(budget: Budget) -> int:
    """The largest budget that may be drawn."""
    return budget[1] if isinstance(budget, tuple) else budget


def _draw(budget: Budget, rng: np.random.Generator) -> int:
    return int(rng.integers(budget[0], budget[1] + 1)) if isinstance(budget, tuple) else budget
