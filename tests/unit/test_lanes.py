"""Canvases change lanes: what moves, what comes back, and which are left out when."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nap_runtime.decoding.machine import Plan
from nap_runtime.decoding.placement import Assignment
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.worker.crowd import Crowd
from nap_runtime.worker.lanes import Lanes, bucket, rearrange, sources


def test_buckets_are_powers_of_two_or_the_whole_batch() -> None:
    assert [bucket(n, 6) for n in range(1, 7)] == [1, 2, 4, 4, 6, 6]
    assert [bucket(n, 16) for n in (1, 2, 3, 5, 9, 16)] == [1, 2, 4, 8, 16, 16]


@given(st.data(), st.integers(1, 9), st.sampled_from([1, 2]))
def test_content_goes_with_its_canvas(data: Any, batch: int, views: int) -> None:
    """Tensors of two lengths, rearranged through any number of narrowings: each lane holds its canvas's content."""
    lanes, once = Lanes(batch), torch.arange(batch)
    twice = torch.tensor([[canvas, view] for canvas, view in lanes.places(views)])
    for _ in range(4):
        present = lanes.canvases
        needed = data.draw(st.sets(st.sampled_from(present)))
        after = lanes.widened() if data.draw(st.booleans()) else lanes.narrowed(needed)
        if after is None:
            assert not needed or bucket(len(needed), len(present)) == len(present)
            continue
        if after.size < lanes.size:
            assert needed <= set(after.canvases) <= set(present)
            assert after.size == bucket(len(needed), lanes.size)
        rearrange([once], sources(lanes, after))
        rearrange([twice], sources(lanes, after, views))
        lanes = after
        assert once.tolist() == lanes.order
        assert sorted(lanes.order) == list(range(batch))
        assert once[lanes.lane_of()].tolist() == list(range(batch))
        front = [(canvas, view) for view in range(views) for canvas in lanes.canvases]
        assert [tuple(place) for place in twice.tolist()[: views * lanes.size]] == front


def test_a_sixteenth_stays() -> None:
    lanes = Lanes(64).narrowed({5})
    assert lanes is not None
    assert lanes.size == 4
    assert 5 in lanes.canvases


def test_as_few_as_possible_move() -> None:
    lanes = Lanes(8).narrowed({1, 3, 6})
    assert lanes is not None
    assert lanes.order == [6, 1, 2, 3, 4, 5, 0, 7]
    assert lanes.canvases == (6, 1, 2, 3)


def crowd(nap_layout: Any, plain_layout: Any, batch: int, **config: Any) -> Crowd:
    """Of canvases with 12 steps, 10 of them for the paths; or of a plain one."""
    plain = config.get("layout") == "plain"
    layout = plain_layout(12) if plain else nap_layout((5, 5), summary=2)
    plan = Plan.of(layout, DecodeConfig(**({} if plain else {"paths": 2}), **config), Assignment((0,) * layout.n_paths))
    return Crowd(plan, batch, narrow=True)


def test_a_canvas_waits_for_the_summary_and_leaves_for_good(nap_layout: Any, plain_layout: Any) -> None:
    some = crowd(nap_layout, plain_layout, 4)
    some.done = [1, 0, 1, 1]
    lanes = some.narrowed(3)
    assert lanes is not None
    assert lanes.canvases == (1,)
    some.note(lanes, 3, rows=30, extra=1)
    assert some.readmitted(9) is None
    back = some.readmitted(10)
    assert back is not None
    assert back.size == 4
    some.note(back, 10, rows=100, extra=4)
    assert some.narrowed(10) is None  # the summaries are not done
    some.done = [2, 1, 1, 2]
    lanes = some.narrowed(11)
    assert lanes is not None
    assert set(lanes.canvases) == {1, 2}
    some.note(lanes, 11, rows=110, extra=4)
    assert some.readmitted(11) is None
    first, second, third, fourth = some.end(rows=115, extra=5)
    assert [(a.steps, a.rows, a.rows_recomputed) for a in first] == [(range(3, 10), 70, 3), (range(11, 12), 5, 1)]
    assert not second
    assert [a.steps for a in third] == [range(3, 10)]
    assert [a.steps for a in fourth] == [range(3, 10), range(11, 12)]


@pytest.mark.parametrize(
    ("config", "leaves"),
    [
        ({"sync": SyncPolicy("kv", summary="consensus")}, False),  # later syncs change what is read of its paths
        ({"sync": SyncPolicy("none", summary="consensus")}, True),
        ({"rule": "confidence"}, False),  # scope canvas: its summary is under way with its paths
    ],
    ids=str,
)
def test_who_stays_with_closed_paths(nap_layout: Any, plain_layout: Any, config: Any, leaves: bool) -> None:
    some = crowd(nap_layout, plain_layout, 2, **config)
    some.done = [1, 0]
    assert (some.narrowed(4) is not None) == leaves


def test_nobody_leaves_where_it_is_not_wanted_or_all_are_done(nap_layout: Any, plain_layout: Any) -> None:
    some = crowd(nap_layout, plain_layout, 2, layout="plain", rule="threshold")
    some.done = [2, 2]
    assert some.narrowed(4) is None  # the batch ends
    some.done = [0, 2]
    assert some.narrowed(4) is not None
    assert Crowd(some._plan, 2, narrow=False).narrowed(4) is None
