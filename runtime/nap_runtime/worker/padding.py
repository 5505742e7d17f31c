"""Prompts of different lengths in one batch: shorter ones stand to the right of columns that nobody sees.

A batch is computed in columns 0 … N − 1 of its layout. Canvas b, whose prompt is `pads[b]` tokens shorter than the
layout's, begins at column `pads[b]`: its position p stands in column p + `pads[b]`. Blocks therefore stand in the same
columns on every canvas, while rotary positions, noise and all that is reported go by positions, which are those of the
canvas alone. The columns before are computed and read by nothing.

Shapes: B canvases, V views of each (2 with guidance), R rows, N columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from nap_runtime.decoding.layout import CanvasLayout, Ids
from nap_runtime.decoding.record import CanvasDelta

Deltas = tuple[CanvasDelta, ...]


def padded_ids(layout: CanvasLayout, prompt: Sequence[int]) -> Ids:
    """A canvas before the first step in the columns of `layout`, whose prompt may be longer. Shape [N]."""
    missing = layout.prompt_tokens - len(prompt)
    return layout.initial_ids((layout.fill_id,) * missing + tuple(prompt))


def in_columns(deltas: Sequence[Deltas], pads: Sequence[int]) -> tuple[Deltas, ...]:
    """Deltas at positions, `deltas[canvas]`, as deltas at columns."""
    if not any(pads):
        return tuple(map(tuple, deltas))
    return tuple(
        tuple(replace(delta, positions=delta.positions + pad) for delta in one)
        for one, pad in zip(deltas, pads, strict=True)
    )


@dataclass(frozen=True)
class Padding:
    """How far each canvas of a batch stands to the right; one without any is `Padding.none`."""

    pads: tuple[int, ...]
    columns: int
    device: torch.device

    @property
    def any(self) -> bool:
        """Whether a canvas is padded at all: without, everything goes by columns, which are positions then."""
        return any(self.pads)

    def positions(self, columns: Tensor, *, views: int = 1) -> Tensor:
        """Positions of columns [R] or [B·V, R]: as given where nothing is padded, else [B·V, R]; 0 in the padding."""
        if not self.any:
            return columns
        return (columns - self._before.repeat(views, 1)).clamp_min(0)

    def mask(self, visible: Tensor | None, *, views: int = 1, columns: Tensor | None = None) -> Tensor | None:
        """What rows see of a canvas's own columns: `visible` [R, M] (None: all) without the padding; [B·V, 1, R, M].

        `columns` [M]: those of the keys, where these are not all of them.
        """
        if not self.any:
            return visible
        real_BN = self._real if columns is None else self._real[:, columns]
        real_B11M = real_BN.repeat(views, 1)[:, None, None, :]
        return real_B11M if visible is None else real_B11M & visible

    def first_columns(self, *, views: int = 1) -> Tensor | None:
        """Each canvas's own first column, int64 [B·V]; None where nothing is padded: it is 0."""
        return self._before.repeat(views, 1).flatten() if self.any else None

    @cached_property
    def _before(self) -> Tensor:
        return torch.tensor(self.pads, dtype=torch.int64, device=self.device).unsqueeze(1)

    @cached_property
    def _real(self) -> Tensor:
        return torch.arange(self.columns, device=self.device) >= self._before

    def host_positions(self, columns: Ids, canvas: int) -> Ids:
        """The same for one canvas, on the host."""
        pad = self.pads[canvas]
        return columns - pad if pad else columns
