"""Rankings and picks by hand, and against sorting in Python."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nap_runtime.decoding.noise import Purpose, uniform
from nap_runtime.decoding.rules import (
    answer_is_sure,
    leftmost_block,
    pick,
    pick_above,
    pick_by_factor,
    rank_scores,
    replan,
)


def picked(ranks: list[float], masked: list[bool] | None = None, quota: int = 1, **options: Any) -> list[int]:
    mask = torch.tensor([masked or [True] * len(ranks)])
    return pick(torch.tensor([ranks]), mask, quota, **options)[0].nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("ranks", "masked", "quota", "expected"),
    [
        ([0.1, 0.9, 0.5], None, 1, [1]),
        ([0.1, 0.9, 0.5], None, 2, [1, 2]),
        ([0.1, 0.9, 0.5], [True, False, True], 1, [2]),
        ([0.5, 0.5, 0.5], None, 2, [0, 1]),  # ties go to the lowest position
        ([0.1, 0.5, 0.2, 0.5, 0.5], None, 2, [1, 3]),
        ([0.5, 0.5], [False, True], 1, [1]),
        ([-1e30, -1e30, -2.0], None, 2, [0, 2]),
        ([0.1, 0.2], [False, False], 2, []),
        ([0.1, 0.2, 0.3], [True, False, True], 3, [0, 2]),  # fewer where fewer are masked
        ([0.1, 0.2], None, 0, []),
    ],
)
def test_pick(ranks: list[float], masked: list[bool] | None, quota: int, expected: list[int]) -> None:
    assert picked(ranks, masked, quota) == expected


@pytest.mark.parametrize(
    ("masked", "quota", "expected"),
    [
        ([1, 1, 1, 1, 1, 1], 1, [1]),  # best of the first block, whatever the others score
        ([1, 1, 1, 1, 1, 1], 3, [0, 1, 3]),  # the first block in full, then the best of the second
        ([0, 0, 1, 1, 1, 1], 1, [3]),
        ([0, 0, 0, 1, 1, 1], 2, [3, 5]),
        ([1, 0, 1, 1, 0, 0], 2, [0, 3]),
    ],
)
def test_blocks_are_finished_in_order(masked: list[int], quota: int, expected: list[int]) -> None:
    ranks = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert picked(ranks, list(map(bool, masked)), quota, block_length=2) == expected


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans()), min_size=1, max_size=20),
    st.integers(0, 25),
    st.one_of(st.none(), st.integers(1, 7)),
)
def test_pick_is_a_stable_sort(slots: list[tuple[float, bool]], quota: int, length: int | None) -> None:
    ranks, masked = zip(*slots, strict=True)
    block = (lambda i: i // length) if length else (lambda i: 0)
    order = sorted((i for i, open_ in enumerate(masked) if open_), key=lambda i: (block(i), -ranks[i], i))
    assert picked(list(ranks), list(masked), quota, block_length=length) == sorted(order[:quota])


def test_canvases_of_a_batch_are_picked_apart() -> None:
    ranks = torch.tensor([[0.1, 0.9], [0.9, 0.1]])
    assert pick(ranks, torch.tensor([[True, True], [True, True]]), 1).tolist() == [
        [False, True],
        [True, False],
    ]


def test_rankings() -> None:
    scores, positions = torch.tensor([[-3.0, -1.0, -2.0]], dtype=torch.float64), torch.tensor([10, 11, 12])

    def order(rule: Any, step: int = 0) -> list[int]:
        ranks = rank_scores(rule, scores, positions=positions, seed=4, step=step)
        assert ranks.shape == scores.shape
        return ranks[0].argsort(descending=True).tolist()

    for rule in ("parallel-forced", "confidence", "blockwise"):
        assert order(rule) == [1, 2, 0]
    assert order("left-to-right") == [0, 1, 2]
    draws = uniform(4, ids=torch.zeros(3, dtype=torch.int64), positions=positions, step=7, purpose=Purpose.ORDER)
    assert order("random", 7) == draws.argsort(descending=True).tolist()
    assert len({tuple(order("random", step)) for step in range(30)}) == 6  # every order comes up


# -- rules without quotas ----------------------------------------------------------------------------------------


def slots_of(mask: Any) -> list[int]:
    return mask[0].nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("probabilities", "open_", "threshold", "expected"),
    [
        ([0.5, 0.95, 0.9, 0.2], None, 0.9, [1, 2]),  # at the threshold is enough
        ([0.5, 0.6, 0.6], None, 0.9, [1]),  # the best anyway, of a tie the lowest
        ([0.99, 0.5, 0.4], [False, True, True], 0.9, [1]),
        ([0.3, 0.3], None, 0.0, [0, 1]),
        ([0.3, 0.3], [False, False], 0.0, []),
        ([1.0, 1.0, 0.999], None, 1.0, [0, 1]),
    ],
)
def test_threshold(probabilities: list[float], open_: list[bool] | None, threshold: float, expected: list[int]) -> None:
    scores = torch.tensor([probabilities], dtype=torch.float64).log()
    mask = torch.tensor([open_ or [True] * len(probabilities)])
    assert slots_of(pick_above(scores, mask, threshold)) == expected


@pytest.mark.parametrize(
    ("probabilities", "open_", "factor", "expected"),
    [
        # The n-th best needs 1 − 1/(n + 1): 1/2, 2/3, 3/4.
        ([0.9, 0.7, 0.76], None, 1.0, [0, 2]),
        ([0.9, 0.6, 0.76], None, 1.0, [0, 2]),
        ([0.4, 0.3], None, 1.0, [0]),
        ([0.8, 0.8, 0.8, 0.8], None, 1.0, [0, 1, 2, 3]),  # 4/5 is exactly what the fourth needs
        ([0.79, 0.8, 0.8, 0.8], None, 1.0, [1, 2, 3]),
        ([0.5, 0.5], None, 3.0, [0, 1]),  # 1 − 3/2 and 1 − 3/3 ask for nothing
        ([0.9, 0.9], [False, True], 1.0, [1]),
        ([0.9, 0.9], [False, False], 1.0, []),
        ([0.9, 0.9, 0.9], None, 0.0, [0]),
    ],
)
def test_factor(probabilities: list[float], open_: list[bool] | None, factor: float, expected: list[int]) -> None:
    scores = torch.tensor([probabilities], dtype=torch.float64).log()
    mask = torch.tensor([open_ or [True] * len(probabilities)])
    assert slots_of(pick_by_factor(scores, mask, factor)) == expected


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.7, 0.9, 0.99]), st.booleans()), min_size=1), st.floats(0.01, 4))
def test_factor_takes_as_many_as_the_paper_allows(slots: list[tuple[float, bool]], factor: float) -> None:
    """The largest n with (n + 1)·(1 − c_n) ≤ factor, and at least one."""
    p, open_ = zip(*slots, strict=True)
    ranked = sorted((i for i, free in enumerate(open_) if free), key=lambda i: (-p[i], i))
    gaps = [(n + 1) * (1 - p[slot]) - factor for n, slot in enumerate(ranked, start=1)]
    if any(abs(gap) < 1e-9 for gap in gaps):
        return  # rounding decides
    most = max((n for n, gap in enumerate(gaps, start=1) if gap < 0), default=1)
    got = pick_by_factor(torch.tensor([p], dtype=torch.float64).log(), torch.tensor([open_]), factor)
    assert slots_of(got) == sorted(ranked[:most])


def test_the_leftmost_block_with_an_open_slot() -> None:
    masked = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1]]).bool()
    expected = [[3, 4, 5], [0, 2], [6]]
    assert [row.nonzero()[:, 0].tolist() for row in leftmost_block(masked, 3)] == expected
    assert not leftmost_block(torch.zeros(1, 4, dtype=torch.bool), 2).any()


@pytest.mark.parametrize(
    ("scores", "masked", "left", "commits", "remasks"),
    [
        ([0.1, 0.9, 0.5], [1, 1, 1], 2, [1], []),
        ([0.1, 0.9, 0.5], [1, 0, 1], 1, [2], []),
        ([0.6, 0.1, 0.5], [1, 0, 1], 1, [0, 2], [1]),  # the committed one is the worst
        ([0.5, 0.5, 0.5], [1, 0, 1], 1, [0], []),  # of a tie the lowest positions stay
        ([0.5, 0.5, 0.5], [1, 1, 0], 1, [0, 1], [2]),
        ([0.1, 0.2, 0.3], [0, 0, 0], 0, [], []),
        ([0.1, 0.2, 0.3], [1, 1, 1], 0, [0, 1, 2], []),
        ([0.1, 0.2, 0.3], [1, 1, 1], 3, [], []),
    ],
)
def test_replan(scores: list[float], masked: list[int], left: int, commits: list[int], remasks: list[int]) -> None:
    picked, again = replan(torch.tensor([scores]), torch.tensor([masked]).bool(), left)
    assert (slots_of(picked), slots_of(again)) == (commits, remasks)


@given(st.data())
def test_replan_always_leaves_what_it_should(data: Any) -> None:
    n = data.draw(st.integers(1, 12))
    scores = torch.tensor([data.draw(st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=n, max_size=n))])
    masked = torch.tensor([data.draw(st.lists(st.booleans(), min_size=n, max_size=n))])
    left = data.draw(st.integers(0, n))
    picked, again = replan(scores, masked, left)
    after = (masked & ~picked) | again
    assert int(after.sum()) == left
    assert not (picked & ~masked).any()
    assert not (again & masked).any()
    order = sorted(range(n), key=lambda i: (-float(scores[0, i]), i))
    assert slots_of(after) == sorted(order[n - left :])


@pytest.mark.parametrize(
    ("gaps", "progress", "sure"),
    [
        ([7.5, 7.5], 0.1, True),
        ([7.4, 7.5], 0.32, False),
        ([4.0, 6.0], 0.33, True),
        ([4.0, 5.9], 0.66, False),
        ([2.5], 0.67, True),
        ([2.4], 1.0, False),
    ],
)
def test_the_answer_is_sure(gaps: list[float], progress: float, sure: bool) -> None:
    assert answer_is_sure(torch.tensor([gaps], dtype=torch.float64), progress).tolist() == [[sure]]
