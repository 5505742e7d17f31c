"""Commits, closing, fills, and what peers take over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.decoding.state import NEVER, CanvasState, Kind, Region

CPU = torch.device("cpu")
MASK, FILL, END, TAG = 99, 90, 91, 92

# 0 prompt · 1 header, 2-5 path · 6 header, 7 summary
LAYOUT = CanvasLayout(
    kind="nap",
    prompt_tokens=1,
    headers=((50,),),
    budgets=(4,),
    summary_header=(51,),
    summary_budget=1,
    end_ids=((TAG, END), (END,)),
    mask_id=MASK,
    fill_id=FILL,
)
PATH = Region.of(LAYOUT.paths[0], CPU)


def state(batch: int = 1) -> CanvasState:
    return CanvasState.start(LAYOUT, [LAYOUT.initial_ids([5])] * batch, CPU)


def put(canvas: CanvasState, tokens: dict[int, int], step: int = 0, score: float = -0.5) -> None:
    """Commit path slots 0 … 3 of the first canvas."""
    picked = torch.tensor([[place in tokens for place in range(4)]])
    ids = torch.tensor([[tokens.get(place, 0) for place in range(4)]])
    canvas.commit(PATH.positions_S, picked, ids, torch.full((1, 4), score), step)


def test_the_start_has_every_slot_masked_and_nothing_else() -> None:
    canvas = state(batch=2)
    assert canvas.ids.tolist() == [[5, 50, MASK, MASK, MASK, MASK, 51, MASK]] * 2
    assert canvas.masked.nonzero()[:, 1].tolist() == [2, 3, 4, 5, 7] * 2
    assert (canvas.step == NEVER).all()
    assert (canvas.kind == Kind.OPEN).all()


def test_a_commit_changes_the_picked_slots_only() -> None:
    canvas = state()
    put(canvas, {1: 30, 3: 31}, step=4, score=-0.25)
    assert canvas.ids[0].tolist() == [5, 50, MASK, 30, MASK, 31, 51, MASK]
    assert canvas.step[0].tolist() == [-1, -1, -1, 4, -1, 4, -1, -1]
    assert canvas.masked[0].nonzero()[:, 0].tolist() == [2, 4, 7]
    assert canvas.score[0, [3, 5]].tolist() == [-0.25, -0.25]
    assert canvas.kind[0, [2, 3]].tolist() == [Kind.OPEN, Kind.COMMIT]


@pytest.mark.parametrize(
    ("tokens", "closed"),
    [
        ({0: END}, True),
        ({0: TAG}, True),
        ({0: 30, 1: END}, True),
        ({1: END}, False),  # a slot before it is open
        ({0: 30, 2: END}, False),
        ({0: 30, 1: TAG, 3: 31}, True),
        ({0: 30, 1: 31, 2: 32}, False),
        ({1: END, 3: END}, False),
        ({0: 30, 1: 31, 2: 32, 3: END}, True),
        ({0: 30, 1: 31, 2: 32, 3: 33}, False),  # full, but without an end
        ({0: FILL}, False),  # the fill token ends a block only where it is an end id
    ],
)
def test_closing(tokens: dict[int, int], closed: bool) -> None:
    canvas = state()
    put(canvas, tokens, step=3)
    assert bool(canvas.closed(PATH)) is closed
    canvas.close(PATH, FILL, 3)
    for place in range(4):
        slot = 2 + place
        if place in tokens:
            expected: tuple[int, int, int] = (tokens[place], 3, Kind.COMMIT)
        else:
            expected = (FILL, 3, Kind.FILL) if closed else (MASK, NEVER, Kind.OPEN)
        assert (int(canvas.ids[0, slot]), int(canvas.step[0, slot]), int(canvas.kind[0, slot])) == expected
        assert bool(canvas.masked[0, slot]) is (not closed and place not in tokens)


def test_the_mask_id_closes_nothing_even_as_an_end_id() -> None:
    canvas = state()
    odd = Region(PATH.positions_S, torch.tensor([MASK]))
    assert not canvas.closed(odd).any()


def test_closing_twice_changes_nothing() -> None:
    canvas = state()
    put(canvas, {0: END}, step=1)
    canvas.close(PATH, FILL, 1)
    before = (canvas.ids.clone(), canvas.step.clone())
    canvas.close(PATH, FILL, 2)
    assert torch.equal(canvas.ids, before[0])
    assert torch.equal(canvas.step, before[1])


def test_canvases_of_a_batch_close_apart() -> None:
    canvas = state(batch=2)
    picked = torch.tensor([[True, False, False, False]] * 2)
    ids = torch.tensor([[END, 0, 0, 0], [30, 0, 0, 0]])
    canvas.commit(PATH.positions_S, picked, ids, torch.zeros(2, 4), 0)
    assert canvas.closed(PATH).tolist() == [True, False]
    canvas.close(PATH, FILL, 0)
    assert canvas.ids[:, 2:6].tolist() == [[END, FILL, FILL, FILL], [30, MASK, MASK, MASK]]


def test_peers_adopt_tokens_and_leave_open_slots_open() -> None:
    mine, peer = state(), state()
    put(mine, {0: 30, 2: 31}, step=6)
    told = mine.committed_ids(PATH.positions_S)
    assert told.tolist() == [[30, NEVER, 31, NEVER]]
    peer.adopt(PATH.positions_S, told, MASK)
    assert peer.ids[0].tolist() == [5, 50, 30, MASK, 31, MASK, 51, MASK]
    assert peer.masked[0].nonzero()[:, 0].tolist() == [3, 5, 7]
    assert (peer.step == NEVER).all()  # a peer's commit is not one's own


@given(st.data())
def test_closing_is_the_sentence_in_the_design(data: Any) -> None:
    """An end id and every slot before it are committed."""
    tokens = data.draw(st.dictionaries(st.integers(0, 3), st.sampled_from([30, TAG, END]), max_size=4))
    canvas = state()
    put(canvas, tokens)
    expected = any(
        tokens.get(place) in (TAG, END) and all(before in tokens for before in range(place)) for place in range(4)
    )
    assert bool(canvas.closed(PATH)) is expected


def test_start_keeps_the_prompts_apart() -> None:
    canvas = CanvasState.start(LAYOUT, [LAYOUT.initial_ids([token]) for token in (5, 6)], CPU)
    assert canvas.ids[:, 0].tolist() == [5, 6]
