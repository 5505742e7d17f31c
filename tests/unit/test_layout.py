"""Positions, rows and visibility of canvases, by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.errors import UsageError

MASK, FILL = 99, 98

# 0, 1 prompt · 2 header, 3-4 path 0 · 5, 6 header, 7 path 1 · 8 header, 9-10 summary
SMALL = CanvasLayout(
    kind="nap",
    prompt_tokens=2,
    headers=((50,), (51, 52)),
    budgets=(2, 1),
    summary_header=(53,),
    summary_budget=2,
    end_ids=((FILL, 60), (FILL, 61), (FILL, 62)),
    mask_id=MASK,
    fill_id=FILL,
)
PLAIN = CanvasLayout(
    kind="plain",
    prompt_tokens=3,
    headers=((),),
    budgets=(4,),
    summary_header=(),
    summary_budget=0,
    end_ids=((FILL,), (FILL,)),
    mask_id=MASK,
    fill_id=FILL,
)


def picture(matrix: np.ndarray[Any, Any]) -> list[str]:
    return ["".join("#" if seen else "." for seen in row) for row in matrix]


def test_positions_of_the_small_canvas() -> None:
    assert (SMALL.size, SMALL.n_paths, SMALL.n_slots) == (11, 2, 5)
    assert [(block.header, block.slots) for block in SMALL.paths] == [
        (range(2, 3), range(3, 5)),
        (range(5, 7), range(7, 8)),
    ]
    assert SMALL.summary is not None
    assert (SMALL.summary.header, SMALL.summary.slots) == (range(8, 9), range(9, 11))
    assert SMALL.slots == (3, 4, 7, 9, 10)
    assert [block.end_ids for block in SMALL.blocks] == [(98, 60), (98, 61), (98, 62)]
    assert SMALL.initial_ids([7, 8]).tolist() == [7, 8, 50, MASK, MASK, 51, 52, MASK, 53, MASK, MASK]


def test_rows_of_the_small_canvas() -> None:
    assert [SMALL.own_rows(path) for path in range(2)] == [(2, 3, 4), (5, 6, 7)]
    assert SMALL.shared_rows() == (0, 1, 8, 9, 10)


def test_without_a_header_the_row_before_belongs_to_the_region() -> None:
    assert PLAIN.own_rows(0) == (2, 3, 4, 5, 6)
    assert PLAIN.shared_rows() == (0, 1)
    assert PLAIN.summary is None
    assert PLAIN.blocks == PLAIN.paths
    assert PLAIN.initial_ids((1, 2, 3)).tolist() == [1, 2, 3, MASK, MASK, MASK, MASK]


@pytest.mark.parametrize(
    ("topology", "prompt", "path_0", "path_1", "summary"),
    [
        ("full", "###########", "###########", "###########", "###########"),
        ("hub", "###########", "#####...###", "##...######", "###########"),
        ("isolated", "##.........", "#####......", "##...###...", "###########"),
    ],
)
def test_who_sees_whom(topology: Any, prompt: str, path_0: str, path_1: str, summary: str) -> None:
    assert picture(SMALL.visible(topology)) == [prompt] * 2 + [path_0] * 3 + [path_1] * 3 + [summary] * 3


@pytest.mark.parametrize(
    ("topology", "prompt", "region"),
    [("full", "#######", "#######"), ("hub", "#######", "#######"), ("isolated", "###....", "#######")],
)
def test_who_sees_whom_in_a_plain_canvas(topology: Any, prompt: str, region: str) -> None:
    assert picture(PLAIN.visible(topology)) == [prompt] * 3 + [region] * 4


LAYOUTS = st.builds(
    lambda prompt, blocks, header, summary: CanvasLayout(
        kind="nap",
        prompt_tokens=prompt,
        headers=tuple((1,) * size for size, _ in blocks),
        budgets=tuple(budget for _, budget in blocks),
        summary_header=(1,) * header,
        summary_budget=summary,
        end_ids=((FILL,),) * (len(blocks) + 1),
        mask_id=MASK,
        fill_id=FILL,
    ),
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6)), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(1, 5),
)


@given(LAYOUTS)
def test_rows_and_slots_partition_every_canvas(layout: CanvasLayout) -> None:
    rows = [*layout.shared_rows(), *(row for path in range(layout.n_paths) for row in layout.own_rows(path))]
    assert sorted(rows) == list(range(layout.size))
    assert len(layout.slots) == layout.n_slots == len(set(layout.slots))
    masked = np.flatnonzero(layout.initial_ids([2] * layout.prompt_tokens) == MASK)
    assert masked.tolist() == list(layout.slots)


@given(LAYOUTS)
def test_topologies_nest_and_every_row_sees_itself(layout: CanvasLayout) -> None:
    full, hub, isolated = (layout.visible(topology) for topology in ("full", "hub", "isolated"))
    assert full.all()
    assert (hub >= isolated).all()
    assert isolated.diagonal().all()


@given(LAYOUTS)
def test_mapping_round_trip(layout: CanvasLayout) -> None:
    assert CanvasLayout.from_mapping(layout.to_mapping()) == layout


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (lambda: replace(SMALL, prompt_tokens=0), "prompt"),
        (lambda: replace(SMALL, budgets=(2, 0)), "path_tokens"),
        (lambda: replace(SMALL, summary_budget=0), "path_tokens"),
        (lambda: replace(SMALL, headers=((50,), ())), "headers"),
        (lambda: replace(SMALL, budgets=(2,)), "layout"),
        (lambda: replace(SMALL, end_ids=((FILL,),)), "layout"),
        (lambda: replace(SMALL, budgets=(65_530, 1)), "path_tokens"),
        (lambda: CanvasLayout.from_mapping({**SMALL.to_mapping(), "mask_id": "mask"}), "layout"),
        (lambda: CanvasLayout.from_mapping({"kind": "nap"}), "layout"),
    ],
)
def test_bad_layouts_name_their_field(wrong: Callable[[], object], field: str) -> None:
    with pytest.raises(UsageError) as caught:
        wrong()
    assert caught.value.field == field


def test_the_largest_canvas_is_what_a_trace_can_hold() -> None:
    largest = replace(SMALL, budgets=(65_536 - 9, 1))
    assert largest.size == 65_536
    with pytest.raises(UsageError):
        replace(largest, budgets=(65_536 - 8, 1))


def test_a_prompt_of_another_length_is_refused() -> None:
    with pytest.raises(UsageError, match="3 tokens where the layout has 2"):
        SMALL.initial_ids([1, 2, 3])
