"""Quotas: the staggered schedule, LLaDA's and Dream's, and how steps split between paths and summary."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import floor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_runtime.decoding.schedule import (
    UnmaskingSchedule,
    block_of,
    blockwise,
    dream,
    llada,
    path_planning,
    path_steps,
    staggered,
)
from nap_runtime.errors import UsageError
from nap_runtime.job import DecodeConfig

BUDGETS = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@st.composite
def budgets_and_steps(draw: st.DrawFn) -> tuple[list[int], int]:
    budgets = draw(BUDGETS)
    return budgets, draw(st.integers(1, sum(budgets)))


@pytest.mark.parametrize(
    ("budgets", "steps", "quotas"),
    [
        ((4,), 2, ((2,), (2,))),
        ((3,), 4, ((0,), (1,), (1,), (1,))),
        # path 0 at ⌊s/2⌋, path 1 half a token ahead: they take turns
        ((3, 3), 6, ((0, 1), (1, 0), (0, 1), (1, 0), (0, 1), (1, 0))),
        # path 0: 0 1 2, path 1: ⌊s + 1/3⌋, path 2: ⌊s + 2/3⌋
        ((2, 2, 2), 2, ((1, 1, 1), (1, 1, 1))),
        ((1, 1, 1), 3, ((0, 0, 1), (0, 1, 0), (1, 0, 0))),
        ((4, 2), 2, ((2, 1), (2, 1))),
        ((5, 1), 3, ((1, 0), (2, 1), (2, 0))),
        ((7, 3), 1, ((7, 3),)),
    ],
)
def test_staggered_by_hand(budgets: tuple[int, ...], steps: int, quotas: tuple[tuple[int, ...], ...]) -> None:
    assert staggered(budgets, steps) == quotas


@given(budgets_and_steps())
def test_staggered_is_the_formula_and_spends_every_budget(case: tuple[list[int], int]) -> None:
    budgets, steps = case
    quotas, m = staggered(budgets, steps), len(budgets)
    assert len(quotas) == steps
    for path, budget in enumerate(budgets):
        lag = Fraction(path, m)
        levels = [floor(Fraction(s * budget, steps) + lag) for s in range(steps + 1)]
        mine = [quota[path] for quota in quotas]
        assert mine == [after - before for before, after in pairwise(levels)]
        assert min(mine) >= 0
        assert sum(mine) == budget
        assert max(mine) - min(mine) <= 1  # an even pace


@given(st.integers(1, 40), st.integers(1, 6), st.data())
def test_equal_paths_commit_as_many_at_every_step_as_any_other_step_give_or_take_one(
    budget: int, m: int, data: st.DataObject
) -> None:
    totals = [sum(quota) for quota in staggered((budget,) * m, data.draw(st.integers(1, budget * m)))]
    assert max(totals) - min(totals) <= 1


@given(budgets_and_steps())
def test_uneven_paths_stay_near_an_even_total(case: tuple[list[int], int]) -> None:
    """Each path is within one token of its line, so the total of the first s steps is within m of it."""
    budgets, steps = case
    done = 0
    for step, quota in enumerate(staggered(budgets, steps)):
        done += sum(quota)
        assert abs(done - Fraction(sum(budgets) * (step + 1), steps)) < len(budgets)


@pytest.mark.parametrize(
    ("slots", "steps", "quotas"), [(10, 4, (3, 3, 2, 2)), (8, 8, (1,) * 8), (7, 1, (7,)), (9, 3, (3, 3, 3))]
)
def test_llada_by_hand(slots: int, steps: int, quotas: tuple[int, ...]) -> None:
    assert llada(slots, steps) == quotas


@given(st.integers(1, 600), st.data())
def test_llada_gives_the_remainder_to_the_first_steps(slots: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, slots))
    quotas = llada(slots, steps)
    assert sum(quotas) == slots
    assert list(quotas) == sorted(quotas, reverse=True)
    assert quotas.count(slots // steps + 1) == slots % steps


@given(st.integers(1, 600), st.data())
def test_dream_takes_its_share_and_the_rest_at_the_end(slots: int, data: st.DataObject) -> None:
    """k = int(n·(1 − s/t)) over linspace(1, 0.001, T + 1); in float64, so near-integers may differ by one."""
    steps = data.draw(st.integers(1, slots))
    times, left = np.linspace(1, 1e-3, steps + 1), slots
    quotas = dream(slots, steps)
    assert sum(quotas) == slots
    for step, quota in enumerate(quotas):
        exact = left * (1 - times[step + 1] / times[step]) if step < steps - 1 else left
        assert quota in {int(exact), int(exact + 1e-3), int(exact - 1e-3)}
        left -= quota


def test_dream_by_hand() -> None:
    # t = 1, .75025, .5005, .25075, .001: shares .24975, .33289, .49900 and the rest
    assert dream(8, 4) == (1, 2, 2, 3)
    assert dream(5, 1) == (5,)


@pytest.mark.parametrize(
    ("slots", "steps", "length", "quotas"),
    [(8, 4, 4, (2, 2, 2, 2)), (6, 4, 3, (2, 1, 2, 1)), (4, 4, 1, (1, 1, 1, 1)), (4, 2, 4, (2, 2))],
)
def test_blockwise_by_hand(slots: int, steps: int, length: int, quotas: tuple[int, ...]) -> None:
    assert blockwise(slots, steps, length) == quotas


@pytest.mark.parametrize(("steps", "length", "field"), [(4, 3, "block_length"), (3, 4, "steps"), (1, 4, "steps")])
def test_blocks_that_do_not_divide(steps: int, length: int, field: str) -> None:
    with pytest.raises(UsageError) as caught:
        blockwise(8, steps, length)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("paths", "summary", "steps", "expected"),
    [
        (990, 32, 1022, 990),
        (8, 2, 10, 8),
        (3, 1, 2, 1),  # 1.5 rounds up to 2, clamped to T − 1
        (1, 3, 2, 1),  # 0.5 rounds up
        (1, 9, 4, 1),  # 0.4 rounds to 0, clamped to 1
        (100, 1, 7, 6),
        (5, 5, 5, 3),  # 2.5 rounds up, not to even
        (5, 5, 1, 1),
    ],
)
def test_path_steps(paths: int, summary: int, steps: int, expected: int) -> None:
    assert path_steps(paths, summary, steps) == expected


def test_every_number_of_steps_commits_every_slot(nap_layout: Any) -> None:
    layout = nap_layout((5, 2, 4), summary=3)
    for steps in range(1, layout.n_slots + 1):
        plan = UnmaskingSchedule.plan(layout, DecodeConfig(paths=3, steps=steps))
        assert plan.steps == steps
        assert [sum(column) for column in zip(*plan.paths, strict=True)] == [5, 2, 4]
        assert sum(plan.summary) == 3
        assert plan.at_once == (steps == 1)
        assert len(plan.paths) == path_steps(11, 3, steps)


def test_no_steps_given_is_one_token_a_step(nap_layout: Any) -> None:
    layout = nap_layout((5, 5), summary=3)
    assert UnmaskingSchedule.plan(layout, DecodeConfig(paths=2)).steps == layout.n_slots
    whole = UnmaskingSchedule.plan(layout, DecodeConfig(paths=2, rule="confidence"))
    assert whole.canvas == (1,) * 13


def test_the_rule_chooses_the_schedule(plain_layout: Any) -> None:
    layout = plain_layout(8)

    def quotas(**options: Any) -> tuple[int, ...]:
        return UnmaskingSchedule.plan(layout, DecodeConfig(layout="plain", **options)).canvas

    assert quotas(steps=3) == llada(8, 3) == (3, 3, 2)
    assert quotas(steps=4, rule_args={"schedule": "dream"}) == dream(8, 4)
    assert quotas(steps=4, rule="blockwise", block_length=4) == (2, 2, 2, 2)
    by_path = UnmaskingSchedule.plan(layout, DecodeConfig(layout="plain", steps=3, scope="path"))
    assert by_path.paths == staggered((8,), 3)
    assert (by_path.summary, by_path.canvas, by_path.steps) == ((), (), 3)


def test_more_steps_than_slots_is_refused(nap_layout: Any) -> None:
    with pytest.raises(UsageError, match="14 is more than the 13 slots"):
        UnmaskingSchedule.plan(nap_layout((5, 5), summary=3), DecodeConfig(paths=2, steps=14))


@pytest.mark.parametrize(("slots", "length"), [(128, 32), (132, 22), (40, 20), (7, 7), (37, 1)])
def test_the_default_block_divides_the_slots(slots: int, length: int) -> None:
    assert block_of(slots, None) == length
    assert block_of(slots, 5) == 5


@pytest.mark.parametrize(
    ("slots", "steps", "quotas"), [(8, 4, (2, 2, 2, 2)), (10, 4, (3, 2, 3, 2)), (5, 5, (1,) * 5), (7, 3, (3, 2, 2))]
)
def test_path_planning_by_hand(slots: int, steps: int, quotas: tuple[int, ...]) -> None:
    """10 slots in 4 steps: 7.5, 5 and 2.5 stay masked, rounded down."""
    assert path_planning(slots, steps) == quotas


@given(st.integers(1, 400), st.data())
def test_path_planning_leaves_the_floor_of_its_share_masked(slots: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, slots))
    left = slots
    for step, quota in enumerate(path_planning(slots, steps), start=1):
        left -= quota
        assert left == floor(Fraction(slots * (steps - step), steps))


def test_left_after_is_what_the_quotas_leave(nap_layout: Any) -> None:
    layout = nap_layout((5, 3), summary=2)
    paths = UnmaskingSchedule.plan(layout, DecodeConfig(paths=2, rule="p2", scope="path"))
    for step in range(10):
        blocks = [paths.left_after(step, layout, block) for block in range(3)]
        done = min(step + 1, 8)
        assert blocks[:2] == [5 - done * 5 // 8, 3 - (done * 3 * 2 + 8) // 16]
        assert blocks[2] == min(2, 2 - (step - 7))
    canvas = UnmaskingSchedule.plan(layout, DecodeConfig(paths=2, rule="p2", steps=4))
    assert [canvas.left_after(step, layout, None) for step in range(4)] == [7, 5, 2, 0]


def test_rules_without_quotas_have_bounds(nap_layout: Any, plain_layout: Any) -> None:
    nap = UnmaskingSchedule.plan(nap_layout((5, 3), summary=2), DecodeConfig(paths=2, rule="threshold", scope="path"))
    assert (nap.paths, nap.summary, nap.steps, nap.fixed) == (((5, 3),) * 5, (2, 2), 7, False)
    config = DecodeConfig(layout="plain", rule="factor", block_length=4, cache="dual")
    plain = UnmaskingSchedule.plan(plain_layout(10), config)
    assert (plain.canvas, plain.block_steps, plain.fixed) == ((4,) * 10, (0, 4, 8), False)


def test_blocks_of_a_cached_canvas_begin_when_the_ones_before_are_full(plain_layout: Any) -> None:
    config = DecodeConfig(layout="plain", rule="blockwise", block_length=4, steps=6, cache="prefix")
    assert UnmaskingSchedule.plan(plain_layout(8), config).block_steps == (0, 3)
    free = config.with_values(cache=None)
    assert UnmaskingSchedule.plan(plain_layout(8), free).block_steps == ()


def test_an_answer_beyond_the_region_is_refused(plain_layout: Any) -> None:
    config = DecodeConfig(layout="plain", rule="prophet", rule_args={"answer": "4:9"})
    with pytest.raises(UsageError, match="the region has 8 slots"):
        UnmaskingSchedule.plan(plain_layout(8), config)
