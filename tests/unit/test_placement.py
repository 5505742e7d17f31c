"""Assignments, and how shared rows are split."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.decoding.machine import Rows, rows_of
from nap_runtime.decoding.placement import Assignment
from nap_runtime.errors import UsageError


@pytest.mark.parametrize(
    ("paths", "workers", "worker_of"),
    [(3, 1, (0, 0, 0)), (3, 2, (0, 0, 1)), (3, 3, (0, 1, 2)), (6, 4, (0, 0, 1, 2, 2, 3)), (1, 1, (0,))],
)
def test_even(paths: int, workers: int, worker_of: tuple[int, ...]) -> None:
    assert Assignment.even(paths, workers).worker_of == worker_of


@given(st.integers(1, 6), st.data())
def test_even_gives_neighbours_and_as_many_paths_as_any_other_give_or_take_one(paths: int, data: Any) -> None:
    assignment = Assignment.even(paths, data.draw(st.integers(1, paths)))
    counts = [len(assignment.paths_of(worker)) for worker in range(assignment.workers)]
    assert list(assignment.worker_of) == sorted(assignment.worker_of)
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(("paths", "workers"), [(2, 3), (1, 0), (3, -1)])
def test_even_refuses(paths: int, workers: int) -> None:
    with pytest.raises(UsageError) as caught:
        Assignment.even(paths, workers)
    assert caught.value.field == "workers"


@pytest.mark.parametrize("worker_of", [(0, 2), (1,), (1, 1), (-1, 0)])
def test_every_worker_has_a_path(worker_of: tuple[int, ...]) -> None:
    with pytest.raises(UsageError):
        Assignment(worker_of)


def test_rows_of_two_workers(nap_layout: Any) -> None:
    # 0-2 prompt · 3 header, 4-5 path 0 · 6 header, 7-10 path 1 · 11 header, 12 path 2
    # 13, 14 header, 15-16 summary
    layout = nap_layout((2, 4, 1), summary=2, prompt=3)
    assignment = Assignment((1, 0, 1))
    assert assignment.paths_of(1) == (0, 2)
    assert assignment.own_rows(layout, 0) == (6, 7, 8, 9, 10)
    assert assignment.own_rows(layout, 1) == (3, 4, 5, 11, 12)
    assert assignment.split_shared(layout) == ((0, 1, 2, 13), (14, 15, 16))
    expected = {
        Rows.ALL: tuple(range(17)),
        Rows.OWN: (3, 4, 5, 11, 12),
        Rows.OWN_AND_SHARED: (0, 1, 2, 3, 4, 5, 11, 12, 13, 14, 15, 16),
        Rows.OWN_AND_SHARE: (3, 4, 5, 11, 12, 14, 15, 16),
        Rows.SUMMARY: (13, 14, 15, 16),
    }
    assert {rows: rows_of(rows, layout, assignment, 1) for rows in expected} == expected


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(1, 30), st.data())
def test_shares_partition_the_shared_rows_and_level_the_work(budgets: list[int], prompt: int, data: Any) -> None:
    m = len(budgets)
    layout = CanvasLayout(
        kind="nap",
        prompt_tokens=prompt,
        headers=((1,),) * m,
        budgets=tuple(budgets),
        summary_header=(1,),
        summary_budget=2,
        end_ids=((2,),) * (m + 1),
        mask_id=9,
        fill_id=2,
    )
    workers = data.draw(st.integers(1, m))
    rest = data.draw(st.lists(st.integers(0, workers - 1), min_size=m - workers, max_size=m - workers))
    assignment = Assignment(tuple(data.draw(st.permutations([*range(workers), *rest]))))
    shares = assignment.split_shared(layout)
    assert [row for share in shares for row in share] == list(layout.shared_rows())
    own = [len(assignment.own_rows(layout, worker)) for worker in range(workers)]
    rows = [mine + len(share) for mine, share in zip(own, shares, strict=True)]
    assert sum(rows) == layout.size
    # Nobody gets a shared row while another could take it and stay below.
    assert all(total - 1 <= min(rows) for total, share in zip(rows, shares, strict=True) if share)
