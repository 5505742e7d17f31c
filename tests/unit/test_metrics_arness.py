"""ARness and decode orders against hand counts, enumeration, and properties."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from itertools import combinations, permutations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.decoding.schedule import UnmaskingSchedule
from nap_runtime.errors import RecordError, UsageError
from nap_runtime.job import DecodeConfig
from nap_runtime.metrics.arness import ArnessReport, ArnessScore, global_arness, local_arness
from nap_runtime.metrics.order import OPEN_STEP, DecodeOrder

Steps = list[list[int]]


def order_of(steps: Sequence[Sequence[int]]) -> DecodeOrder:
    return DecodeOrder.from_steps([p for step in steps for p in step], steps)


def with_pools(steps: Steps, sizes: Sequence[int]) -> DecodeOrder:
    """An order over slots 0 … n − 1 whose quotas are drawn from consecutive blocks of the given sizes."""
    order = DecodeOrder.from_steps(range(sum(sizes)), steps)
    blocks = np.repeat(np.arange(len(sizes)), sizes)
    return DecodeOrder(
        positions=order.positions,
        step=order.step,
        committed=order.committed,
        content=order.content,
        region=blocks,
        pool=blocks,
        n_paths=len(sizes),
    )


def chunks(positions: Sequence[int], sizes: Sequence[int]) -> Steps:
    ends = np.cumsum(sizes)
    return [list(positions[end - size : end]) for end, size in zip(ends, sizes, strict=True)]


# -- by hand -------------------------------------------------------------------------------------------------


def test_left_to_right_one_a_step_is_one() -> None:
    score = ArnessScore.of(order_of([[p] for p in range(7)]))
    assert (score.set_based, score.step_ordered, score.set_based_corrected) == (1.0, 1.0, 1.0)
    assert score.local == pytest.approx(6 / 7)  # the first commit has no predecessor


def test_left_to_right_four_a_step() -> None:
    score = ArnessScore.of(order_of(chunks(range(32), [4] * 8)))
    assert score.set_based == 1.0
    assert score.step_ordered == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_reversed_hits_only_at_the_end() -> None:
    reverse = order_of([[p] for p in reversed(range(10))])
    assert global_arness(reverse, 1) == pytest.approx((0.1, 0.1))
    assert global_arness(reverse, 3) == pytest.approx((0.3, 0.3))
    assert local_arness(reverse, 1) == 0.0


def test_two_interleaved_paths() -> None:
    # Slots 0-2 and 3-5 in turn, left first: 0 3 1 4 2 5. Leftmost are 0, 1, 2, and at last 5.
    order = with_pools([[0], [3], [1], [4], [2], [5]], [3, 3])
    report = ArnessReport.of(order)
    assert report.canvas.all.set_based == pytest.approx(4 / 6)
    assert [path.all.set_based for path in report.paths] == [1.0, 1.0]
    assert report.path_mean["set_based_corrected"] == 1.0
    assert report.layout_null.all == pytest.approx((4 / 6, 4 / 6))
    assert local_arness(order, 1) == 0.0
    assert report.paths[1].all.local == pytest.approx(2 / 3)


def test_set_based_counts_a_step_against_its_leftmost() -> None:
    # Step 1: {0, 3} against {0, 1}: one of two. Step 2: {1, 2}, all that is left: two of two.
    assert global_arness(order_of([[0, 3], [1, 2]]), 1)[0] == 3 / 4
    # Step-ordered: 0 is smallest (1), 3 never (0); 1 is (1), 2 when it comes after 1 (1/2).
    assert global_arness(order_of([[0, 3], [1, 2]]), 1)[1] == pytest.approx(2.5 / 4)


def test_one_step_has_no_corrected_score() -> None:
    score = ArnessScore.of(order_of([[0, 1, 2, 3]]))
    assert (score.set_based, score.set_based_random, score.steps) == (1.0, 1.0, 1)
    assert score.set_based_corrected is None
    assert score.step_ordered_corrected is None


def test_nothing_committed_scores_nothing() -> None:
    order = order_of([[0], [1]])
    score = ArnessScore.of(order.only(np.zeros(2, dtype=np.bool_)))
    assert score.tokens == 0
    assert score.set_based is score.local is score.step_ordered_random is None


def test_random_expectation_one_a_step() -> None:
    score = ArnessScore.of(order_of([[p] for p in (2, 0, 3, 1)]))
    assert score.set_based_random == pytest.approx((1 / 4 + 1 / 3 + 1 / 2 + 1) / 4)
    assert score.step_ordered_random == pytest.approx(score.set_based_random)


def test_filled_slots_stay_masked_until_their_step_and_count_in_no_score() -> None:
    # Slots 0-2 and 3-4: 0 closes its path at step 0 and slots 1, 2 are filled then; 3, 4 follow.
    order = DecodeOrder(
        positions=np.arange(5),
        step=np.array([0, 0, 0, 1, 2]),
        committed=np.array([True, False, False, True, True]),
        content=np.array([False, False, False, True, True]),
        region=np.array([0, 0, 0, 1, 1]),
        pool=np.array([0, 0, 0, 1, 1]),
        n_paths=2,
    )
    report = ArnessReport.of(order)
    assert (report.canvas.all.tokens, report.canvas.all.set_based) == (3, 1.0)
    assert report.canvas.all.set_based_random == pytest.approx((1 / 3 + 1 / 2 + 1) / 3)
    assert (report.paths[0].content.tokens, report.paths[0].content.set_based) == (0, None)
    assert report.path_mean["set_based"] == 1.0


def test_slots_left_open_stay_masked() -> None:
    order = DecodeOrder.from_steps(range(4), [[1], [2]])
    assert global_arness(order, 1) == (0.0, 0.0)
    assert ArnessScore.of(order).set_based_random == pytest.approx((1 / 4 + 1 / 3) / 2)
    assert order.step[0] == OPEN_STEP


def test_k_is_checked() -> None:
    with pytest.raises(UsageError, match="k: 0"):
        ArnessScore.of(order_of([[0]]), k=0)


# -- the layout null -----------------------------------------------------------------------------------------

NAP_330 = CanvasLayout(
    kind="nap",
    prompt_tokens=5,
    headers=((1,), (1,), (1,)),
    budgets=(330, 330, 330),
    summary_header=(1,),
    summary_budget=32,
    end_ids=((2,),) * 4,
    mask_id=9,
    fill_id=2,
)


def planned(steps: int | None) -> DecodeOrder:
    order = DecodeOrder.planned(NAP_330, UnmaskingSchedule.plan(NAP_330, DecodeConfig(steps=steps)))
    assert order is not None
    return order


def taking_turns(first: Sequence[int]) -> DecodeOrder:
    """Three paths of 330 strictly left to right, one token a step, in the given turns; then the summary."""
    positions = [path * 330 + at for at in range(330) for path in first]
    return DecodeOrder.from_steps(range(1022), [[p] for p in (*positions, *range(990, 1022))])


def test_layout_null_of_the_paper_layout() -> None:
    # One a step hits with path 0's 330 and the summary's 32: 362. Where path 0 begins each round, the last
    # commits of the two others hit too: 364 of 1022, the project's 0.356. Which, the schedule's turns decide.
    assert global_arness(taking_turns([2, 1, 0]), 1)[1] == pytest.approx(362 / 1022)
    assert global_arness(taking_turns([0, 1, 2]), 1)[1] == pytest.approx(364 / 1022)
    turns = [(position - 6) // 331 for step in planned(1022).steps[:3] for position in step]
    assert global_arness(planned(1022), 1) == global_arness(taking_turns(turns), 1)


@pytest.mark.parametrize("steps", [1, 8, 100, 1022])
def test_planned_order_is_left_to_right_in_every_path(steps: int) -> None:
    report = ArnessReport.of(planned(steps), planned=planned(steps))
    assert report.path_mean["set_based"] == 1.0
    assert report.layout_null.planned == report.layout_null.all == report.layout_null.content
    assert report.layout_null.planned == (report.canvas.all.set_based, report.canvas.all.step_ordered)


def test_canvas_scope_and_plain_layout_have_their_nulls() -> None:
    config = DecodeConfig(rule="confidence", scope="canvas", steps=10)
    assert DecodeOrder.planned(NAP_330, UnmaskingSchedule.plan(NAP_330, config)) is None
    plain = CanvasLayout(
        kind="plain",
        prompt_tokens=2,
        headers=((),),
        budgets=(6,),
        summary_header=(),
        summary_budget=0,
        end_ids=((2,), (2,)),
        mask_id=9,
        fill_id=2,
    )
    config = DecodeConfig(layout="plain", scope="path", steps=3)
    order = DecodeOrder.planned(plain, UnmaskingSchedule.plan(plain, config))
    assert order is not None
    assert order.steps == ((2, 3), (4, 5), (6, 7))


def test_a_report_is_quick_and_is_json() -> None:
    rng = np.random.default_rng(0)
    order = with_pools(chunks(rng.permutation(1022).tolist(), [2] * 511), [330, 330, 330, 32])
    start = time.perf_counter()
    report = ArnessReport.of(order)
    assert time.perf_counter() - start < 1.0  # about 30 ms on an idle core
    values = json.loads(json.dumps(report.to_json()))
    assert set(values) == {"k", "all", "content", "paths", "path_mean", "layout_null"}
    assert values["layout_null"]["planned"] is None
    assert abs(values["all"]["set_based_corrected"]) < 0.05


# -- against enumeration -------------------------------------------------------------------------------------


def sequences(steps: Steps) -> Iterator[list[int]]:
    """Every order that a decode may have had within its steps."""
    for orders in product(*(list(permutations(step)) for step in steps)):
        yield [p for step in orders for p in step]


def enumerated(steps: Steps, slots: Sequence[int], k: int) -> tuple[float, float, float]:
    """Set-based, step-ordered and local ARness@k from their definitions."""
    masked, inside = set(slots), 0
    for step in steps:
        inside += len(set(step) & set(sorted(masked)[: len(step) * k]))
        masked -= set(step)
    ordered, local = [], []
    for sequence in sequences(steps):
        masked, hits, runs = set(slots), 0, 0
        for at, p in enumerate(sequence):
            hits += p in sorted(masked)[:k]
            runs += at >= k and set(sequence[at - k : at]) == {p - back for back in range(1, k + 1)}
            masked.discard(p)
        ordered.append(hits / len(sequence))
        local.append(runs / len(sequence))
    return inside / len(sequence), float(np.mean(ordered)), float(np.mean(local))


def choices(quotas: list[list[int]], sizes: Sequence[int]) -> Iterator[Steps]:
    """Every decode of consecutive blocks on the quotas [step][block]: all equally likely under chance."""
    starts = np.cumsum([0, *sizes])
    blocks = [set(range(start, start + size)) for start, size in zip(starts, sizes, strict=False)]

    def go(at: int, left: list[set[int]]) -> Iterator[Steps]:
        if at == len(quotas):
            yield []
            return
        picks = [list(combinations(sorted(block), n)) for block, n in zip(left, quotas[at], strict=True)]
        for pick in product(*picks):
            rest = [block - set(taken) for block, taken in zip(left, pick, strict=True)]
            yield from ([[p for taken in pick for p in taken], *tail] for tail in go(at + 1, rest))

    return go(0, blocks)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize(
    "steps",
    [
        [[0, 1, 2], [3, 4]],
        [[2], [0, 1], [3, 4, 5]],
        [[4, 3], [0, 2, 1]],
        [[1, 2, 5], [0], [3, 4]],
        [[3, 1, 0, 2]],
    ],
)
def test_scores_equal_enumeration(steps: Steps, k: int) -> None:
    order = order_of(steps)
    got = (*global_arness(order, k), local_arness(order, k))
    assert got == pytest.approx(enumerated(steps, order.positions.tolist(), k))


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize(
    ("quotas", "sizes"),
    [
        ([[2], [1], [2]], [5]),
        ([[1, 1], [1, 0], [1, 2]], [3, 3]),
        ([[2, 1], [0, 1], [1, 1]], [3, 3]),
        ([[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 2]], [2, 2, 2]),
    ],
)
def test_chance_equals_enumeration(quotas: list[list[int]], sizes: list[int], k: int) -> None:
    every = list(choices(quotas, sizes))
    scores = [enumerated(steps, range(sum(sizes)), k)[:2] for steps in every]
    score = ArnessScore.of(with_pools(every[0], sizes), k=k)
    assert (score.set_based_random, score.step_ordered_random) == pytest.approx(tuple(np.mean(scores, axis=0)))


# -- properties ----------------------------------------------------------------------------------------------


@st.composite
def decodes(draw: st.DrawFn) -> Steps:
    positions = draw(st.permutations(draw(st.lists(st.integers(0, 60), min_size=1, max_size=24, unique=True))))
    sizes, left = [], len(positions)
    while left:
        sizes.append(draw(st.integers(1, min(left, 6))))
        left -= sizes[-1]
    return chunks(positions, sizes)


@settings(max_examples=60, deadline=None)
@given(decodes(), st.integers(1, 5))
def test_scores_are_shares(steps: Steps, k: int) -> None:
    score = ArnessScore.of(order_of(steps), k=k)
    for name in ("set_based", "step_ordered", "set_based_random", "step_ordered_random", "local"):
        assert 0 <= getattr(score, name) <= 1 + 1e-9
    for value in (score.set_based_corrected, score.step_ordered_corrected):
        assert value is None or value <= 1 + 1e-9


@settings(max_examples=60, deadline=None)
@given(decodes(), st.integers(1, 5))
def test_left_to_right_is_one_on_any_quotas(steps: Steps, k: int) -> None:
    positions = sorted(p for step in steps for p in step)
    order = order_of(chunks(positions, [len(step) for step in steps]))
    assert global_arness(order, k)[0] == 1.0
    assert global_arness(order_of(steps).left_to_right_in_regions(), k) == global_arness(order, k)


@settings(max_examples=60, deadline=None)
@given(decodes(), st.randoms(use_true_random=False))
def test_the_order_within_a_step_changes_nothing(steps: Steps, random: Any) -> None:
    shuffled = [random.sample(step, len(step)) for step in steps]
    assert ArnessScore.of(order_of(steps)) == ArnessScore.of(order_of(shuffled))


@settings(max_examples=40, deadline=None)
@given(decodes(), st.integers(1, 4))
def test_a_larger_k_never_scores_less(steps: Steps, k: int) -> None:
    order = order_of(steps)
    for less, more in zip(global_arness(order, k), global_arness(order, k + 1), strict=True):
        assert less <= more + 1e-12


# -- foreign traces ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '{"slots": [7, 8, 9, 12], "steps": [[7, 8], [12], [9]]}',
        '{"slots": [12, 9, 8, 7], "steps": [[8, 7], [], [12], [9]]}',
        "[[0, 7], [0, 8], [1, 12], [2, 9]]",
        "[0, 7]\n[0, 8]\n\n[1, 12]\n[5, 9]\n",
    ],
)
def test_foreign_forms_say_the_same(text: str) -> None:
    order = DecodeOrder.from_json(text)
    assert order.steps == ((7, 8), (12,), (9,))
    assert order.positions.tolist() == [7, 8, 9, 12]


def test_one_pair_on_one_line() -> None:
    assert DecodeOrder.from_json("[3, 5]").steps == ((5,),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: not JSON"),
        ("{", "line 1: not JSON"),
        ("[0, 1]\n[1, x]", "line 2: not JSON"),
        ("[0, 1]\n[1]", "line 2: .* is not"),
        ("[0, 1]\nnull", "line 2: null is not"),
        ("[0, 1]\n[3, 1]", "line 2: position 1 was committed before"),
        ("[[0, 1], [0, -2]]", "entry 1"),
        ("[[0, 1], [0, 1.5]]", "entry 1"),
        ("[[0, 1], [true, 2]]", "entry 1"),
        ("[]", "nothing is committed"),
        ('"x"', "neither an object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"steps": [[0]]}', "slots:"),
        ('{"slots": -1, "steps": [[0]]}', "slots:"),
        ('{"slots": 99999999999, "steps": [[0]]}', "slots:"),
        ('{"slots": [1, 1], "steps": [[1]]}', "slots:"),
        ('{"slots": 2, "steps": 3}', "steps:"),
        ('{"slots": 2, "steps": [[0], 1]}', r"steps\[1\]"),
        ('{"slots": 2, "steps": [[0], [2]]}', r"steps\[1\]: position 2 is not a slot"),
        ('{"slots": 2, "steps": [[0], [0]]}', r"steps\[1\]: position 0 was committed before"),
        ('{"slots": 2, "order": []}', "order: order: unknown field"),
    ],
)
def test_malformed_foreign_traces(text: str, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        DecodeOrder.from_json(text)
