"""A training set as padded arrays of token ids: prompts, paths, summaries.

Shapes: n rows, P longest prompt, m most paths of a row, L longest path, S longest summary. Padding is -1; a segment
begins at column 0. A row with fewer than m paths has empty ones last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]
Lengths = npt.NDArray[np.int64]
PAD = -1
_CHUNK = 65_536


@dataclass(frozen=True, kw_only=True)
class SegmentTable:
    """Rows as token ids: prompt_nP, paths_nmL, summary_nS (int32, padded by -1)."""

    prompt_nP: Ids
    paths_nmL: Ids
    summary_nS: Ids

    def __post_init__(self) -> None:
        assert len(self.prompt_nP) == len(self.paths_nmL) == len(self.summary_nS)

    def __len__(self) -> int:
        return len(self.prompt_nP)

    @cached_property
    def prompt_lengths_n(self) -> Lengths:
        """Tokens of each prompt."""
        return lengths(self.prompt_nP)

    @cached_property
    def path_lengths_nm(self) -> Lengths:
        """Tokens of each path, 0 where a row has none."""
        return lengths(self.paths_nmL)

    @cached_property
    def summary_lengths_n(self) -> Lengths:
        """Tokens of each summary."""
        return lengths(self.summary_nS)

    @cached_property
    def path_counts_n(self) -> Lengths:
        """Paths of each row."""
        counts: Lengths = (self.path_lengths_nm > 0).sum(1)
        return counts

    def take(self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> SegmentTable:
        """The given rows."""
        return SegmentTable(
            prompt_nP=self.prompt_nP[rows], paths_nmL=self.paths_nmL[rows], summary_nS=self.summary_nS[rows]
        )

    @classmethod
    def of_lists(cls, rows: Iterable[tuple[Sequence[int], Sequence[Sequence[int]], Sequence[int]]]) -> SegmentTable:
        """From (prompt, paths, summary) ids, row by row."""
        prompts, paths, summaries = [], [], []
        for prompt, row_paths, summary in rows:
            prompts.append(prompt)
            paths.append(row_paths)
            summaries.append(summary)
        most = max(map(len, paths), default=0)
        flat = padded([path for row in paths for path in (*row, *[()] * (most - len(row)))])
        return cls(
            prompt_nP=padded(prompts),
            paths_nmL=flat.reshape(len(paths), most, flat.shape[1] if most else 0),
            summary_nS=padded(summaries),
        )


def lengths(ids: Ids) -> Lengths:
    """Tokens of each segment: the last axis without its padding."""
    counted: Lengths = (ids != PAD).sum(-1)
    return counted


def padded(rows: Sequence[Sequence[int]]) -> Ids:
    """Rows of ids as one array."""
    table: Ids = np.full((len(rows), max(map(len, rows), default=0)), PAD, dtype=np.int32)
    for target, row in zip(table, rows, strict=True):
        target[: len(row)] = row
    return table


def joined(pieces: Sequence[Ids | Sequence[int]], n: int) -> Ids:
    """Segments end to end, row by row: arrays [n, …] padded by -1, and ids that are the same in every row."""
    widths = [piece.shape[1] if isinstance(piece, np.ndarray) else len(piece) for piece in pieces]
    out: Ids = np.full((n, sum(widths)), PAD, dtype=np.int32)
    for start in range(0, n, _CHUNK):  # bounds the index arrays
        part = out[start : start + _CHUNK]
        at = np.zeros(len(part), dtype=np.int64)
        for piece in pieces:
            if isinstance(piece, np.ndarray):
                rows, columns = np.nonzero(piece[start : start + _CHUNK] != PAD)
                part[rows, at[rows] + columns] = piece[start + rows, columns]
                at += lengths(piece[start : start + _CHUNK])
            elif piece:
                part[np.arange(len(part))[:, None], at[:, None] + np.arange(len(piece))] = piece
                at += len(piece)
    return trimmed(out)


def trimmed(ids: Ids) -> Ids:
    """Without columns that only pad."""
    return ids[..., : int(lengths(ids).max(initial=0))]


Test = Callable[[SegmentTable], npt.NDArray[np.bool_]]


def kept(table: SegmentTable, tests: Sequence[tuple[str, Test]]) -> tuple[SegmentTable, dict[str, int]]:
    """Rows that pass every test, and how many each test dropped, in order."""
    dropped: dict[str, int] = {}
    for name, passes in tests:
        good = passes(table)
        if not good.all():
            dropped[name] = int((~good).sum())
            table = table.take(good)
    return table, dropped
