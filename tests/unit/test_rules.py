"""Rankings and picks by hand, and against sorting in Python."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nap_runtime.decoding.noise import Purpose, uniform
from nap_runtime.decoding.rules import pick, rank_scores


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
        ranks = rank_scores(rule, scores, positions_S=positions, seed=4, step=step)
        assert ranks.shape == scores.shape
        return ranks[0].argsort(descending=True).tolist()

    for rule in ("parallel-forced", "confidence", "blockwise"):
        assert order(rule) == [1, 2, 0]
    assert order("left-to-right") == [0, 1, 2]
    draws = uniform(4, ids=torch.zeros(3, dtype=torch.int64), positions=positions, step=7, purpose=Purpose.ORDER)
    assert order("random", 7) == draws.argsort(descending=True).tolist()
    assert len({tuple(order("random", step)) for step in range(30)}) == 6  # every order comes up
