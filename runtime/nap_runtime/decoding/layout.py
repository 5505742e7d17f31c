"""Where everything stands on a canvas: prompt, headers, think-blocks, summary (paper, Eq. 5).

    nap:    prompt | B_1 R(1) | B_2 R(2) | … | B_m R(m) | B_S S
    plain:  prompt | region

Positions are canvas positions, 0-based, in every mode and on every worker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from nap_runtime.errors import UsageError
from nap_runtime.job import MAX_CANVAS, MAX_ID, LayoutKind, Topology

Ids = npt.NDArray[np.int64]
BoolMatrix = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkBlock:
    """One path's (or the summary's) rows: a clamped header, then slots to fill.

    `end_ids` close the block: its end tag and every end-of-text id.
    """

    header: range
    slots: range
    end_ids: tuple[int, ...]

    @property
    def rows(self) -> range:
        """Header and slots."""
        return range(self.header.start, self.slots.stop)


@dataclass(frozen=True, slots=True, kw_only=True)
class CanvasLayout:
    """The shape of one canvas. Canvases of equal layout decode together in a batch.

    Args:
        kind: `nap` or `plain`.
        prompt_tokens: length of the prompt.
        headers: ids of B_1 … B_m (`plain`: one empty header).
        budgets: slots of each path (`plain`: of the region).
        summary_header: ids of B_S (`plain`: empty).
        summary_budget: slots of the summary (`plain`: 0).
        end_ids: ids that close each path, then those that close the summary.
        mask_id, fill_id: the mask token, and the token that fills a closed path.

    Raises:
        UsageError: the canvas has no prompt, no slots, or more positions than a trace can hold.
    """

    kind: LayoutKind
    prompt_tokens: int
    headers: tuple[tuple[int, ...], ...]
    budgets: tuple[int, ...]
    summary_header: tuple[int, ...]
    summary_budget: int
    end_ids: tuple[tuple[int, ...], ...]
    mask_id: int
    fill_id: int

    def __post_init__(self) -> None:
        self._check_parts()
        if self.prompt_tokens < 1:
            raise UsageError("prompt: it is empty; give a question", field="prompt")
        if len(self.headers) != len(self.budgets) or len(self.end_ids) != len(self.budgets) + 1:
            raise UsageError("layout: headers, budgets and end_ids do not match", field="layout")
        if min(self.budgets) < 1 or (self.kind == "nap" and self.summary_budget < 1):
            raise UsageError("layout: every path and the summary need at least one slot", field="path_tokens")
        if self.kind == "plain" and (self.summary_budget or self.summary_header):
            raise UsageError("layout: a plain canvas has no summary", field="layout")
        if self.kind == "nap" and min(map(len, (*self.headers, self.summary_header))) < 1:
            raise UsageError("headers: a think-block or summary header is empty", field="headers")
        if self.size > MAX_CANVAS:
            raise UsageError(f"canvas: {self.size} positions exceed the limit of {MAX_CANVAS}", field="path_tokens")

    def _check_parts(self) -> None:
        """Each number by itself: a layout may come out of a file, and nothing is added up or allocated before this."""
        if self.kind not in get_args(LayoutKind):
            raise UsageError(f"layout: unknown kind {self.kind!r}", field="layout")
        for length in (self.prompt_tokens, *self.budgets, self.summary_budget):
            if not 0 <= length <= MAX_CANVAS:
                raise UsageError(
                    f"layout: a part of {length} positions is beyond the limit of {MAX_CANVAS}", field="path_tokens"
                )
        ids = (self.mask_id, self.fill_id, *chain(*self.headers, self.summary_header, *self.end_ids))
        if not all(0 <= token < MAX_ID for token in ids):
            raise UsageError(f"layout: an id is not between 0 and {MAX_ID - 1}", field="layout")

    @property
    def n_paths(self) -> int:
        """m, the number of think-blocks."""
        return len(self.budgets)

    @property
    def size(self) -> int:
        """N, positions of the whole canvas."""
        inner = sum(map(len, self.headers)) + sum(self.budgets)
        return self.prompt_tokens + inner + len(self.summary_header) + self.summary_budget

    @property
    def n_slots(self) -> int:
        """Slots that are decoded: all paths and the summary."""
        return sum(self.budgets) + self.summary_budget

    @property
    def paths(self) -> tuple[ThinkBlock, ...]:
        """The think-blocks in canvas order."""
        blocks, at = [], self.prompt_tokens
        for header, budget, end_ids in zip(self.headers, self.budgets, self.end_ids, strict=False):
            start = at + len(header)
            blocks.append(ThinkBlock(header=range(at, start), slots=range(start, start + budget), end_ids=end_ids))
            at = start + budget
        return tuple(blocks)

    @property
    def summary(self) -> ThinkBlock | None:
        """The summary's block; None in layout `plain`."""
        if not self.summary_budget:
            return None
        at = self.paths[-1].slots.stop
        start = at + len(self.summary_header)
        return ThinkBlock(
            header=range(at, start), slots=range(start, start + self.summary_budget), end_ids=self.end_ids[-1]
        )

    @property
    def blocks(self) -> tuple[ThinkBlock, ...]:
        """Every block that has slots: the paths, then the summary."""
        return self.paths if self.summary is None else (*self.paths, self.summary)

    @property
    def slots(self) -> tuple[int, ...]:
        """Positions of all slots in canvas order."""
        return tuple(position for block in self.blocks for position in block.slots)

    def own_rows(self, path: int) -> tuple[int, ...]:
        """Rows that belong to a path: its header and slots, or without a header the row before and its slots.

        The row before is what a model with shifted logits predicts the first slot from.
        """
        block = self.paths[path]
        start = block.rows.start if len(block.header) else block.rows.start - 1
        return tuple(range(start, block.slots.stop))

    def shared_rows(self) -> tuple[int, ...]:
        """Rows that belong to no path: prompt, summary header, summary slots."""
        own = {row for path in range(self.n_paths) for row in self.own_rows(path)}
        return tuple(row for row in range(self.size) if row not in own)

    def initial_ids(self, prompt_ids: Sequence[int]) -> Ids:
        """The canvas before the first step: prompt, clamped headers, masks. Shape [N].

        Raises:
            UsageError: the prompt's length is not the layout's.
        """
        if len(prompt_ids) != self.prompt_tokens:
            raise UsageError(f"prompt: {len(prompt_ids)} tokens where the layout has {self.prompt_tokens}")
        ids = np.full(self.size, self.mask_id, dtype=np.int64)
        ids[: self.prompt_tokens] = prompt_ids
        for block, header in zip(self.blocks, (*self.headers, self.summary_header), strict=False):
            ids[block.header.start : block.header.stop] = header
        return ids

    def _owner(self) -> npt.NDArray[np.int64]:
        """Region of each row: −1 prompt, 0 … m−1 paths, m summary. Shape [N]."""
        owner = np.full(self.size, -1, dtype=np.int64)
        for index, block in enumerate(self.blocks):
            owner[block.rows.start : block.rows.stop] = index
        return owner

    def visible(self, topology: Topology) -> BoolMatrix:
        """Which row (first axis) sees which (second axis). Shape [N, N].

        `full`: all see all. `hub`: a path sees prompt, summary and itself; prompt and summary see all.
        `isolated`: the prompt sees itself, a path the prompt and itself, the summary all.
        """
        reader, source = self._owner()[:, None], self._owner()[None, :]
        summary = self.n_paths
        visible: BoolMatrix = reader == source
        if topology == "full":
            visible = np.ones_like(visible)
        elif topology == "hub":
            visible = visible | (reader == -1) | (reader == summary) | (source == -1) | (source == summary)
        else:
            visible = visible | (reader == summary) | ((source == -1) & (reader >= 0))
        return visible

    def to_mapping(self) -> dict[str, Any]:
        """Plain values for the trace and JSON; `from_mapping` is its inverse."""
        return {
            "kind": self.kind,
            "prompt_tokens": self.prompt_tokens,
            "headers": [list(h) for h in self.headers],
            "budgets": list(self.budgets),
            "summary_header": list(self.summary_header),
            "summary_budget": self.summary_budget,
            "end_ids": [list(e) for e in self.end_ids],
            "mask_id": self.mask_id,
            "fill_id": self.fill_id,
        }

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> CanvasLayout:
        """Rebuild from `to_mapping`.

        Raises:
            UsageError: a key is missing, unknown, or of a wrong type.
        """
        try:
            return cls(
                kind=values["kind"],
                prompt_tokens=int(values["prompt_tokens"]),
                headers=tuple(tuple(map(int, h)) for h in values["headers"]),
                budgets=tuple(map(int, values["budgets"])),
                summary_header=tuple(map(int, values["summary_header"])),
                summary_budget=int(values["summary_budget"]),
                end_ids=tuple(tuple(map(int, e)) for e in values["end_ids"]),
                mask_id=int(values["mask_id"]),
                fill_id=int(values["fill_id"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"layout: malformed ({error})", field="layout") from error
