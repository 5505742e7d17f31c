"""Opinions about a summary slot by hand, and how they are put together."""

from __future__ import annotations

from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nap_runtime.distributed.comm import Solo
from nap_runtime.distributed.consensus import ConsensusExchange, Opinions, consensus
from nap_runtime.distributed.wire import Clock, Wire

CPU = torch.device("cpu")


def opinions_of(*views: list[float], top: int) -> Opinions:
    """One canvas and slot, each worker's probabilities over the vocabulary."""
    told = []
    for view in views:
        exchange = ConsensusExchange(Wire(Solo(), Clock(CPU)), batch=1, slots=1, top=top, device=CPU)
        told.append(exchange.run(torch.tensor([[view]], dtype=torch.float64).log()))
    return Opinions(*(torch.cat([getattr(one, name) for one in told]) for name in ("ids", "log_p", "rest")))


def decide(opinions: Opinions, temperature: float = 0.0) -> tuple[int, float]:
    ids, scores = consensus(opinions, temperature=temperature, seed=1, positions=torch.tensor([7]), step=3)
    return int(ids), float(scores)


def test_by_hand() -> None:
    """Worker 0 names 0 and 1, worker 1 names 2 and 0; what it did not name has an even share of the rest."""
    opinions = opinions_of([0.5, 0.3, 0.1, 0.1], [0.3, 0.05, 0.6, 0.05], top=2)
    assert opinions.rest[:, 0, 0].tolist() == pytest.approx([log(0.2 / 2), log(0.1 / 2)])
    means = opinions.of(torch.tensor([[[0, 1, 2, 3]]]))[0, 0].tolist()
    expected = [
        (log(0.5) + log(0.3)) / 2,
        (log(0.3) + log(0.05)) / 2,
        (log(0.1) + log(0.6)) / 2,
        (log(0.1) + log(0.05)) / 2,
    ]
    assert means == pytest.approx(expected)
    assert decide(opinions) == (0, pytest.approx(expected[0]))


def test_two_workers_that_disagree_can_agree_on_the_second_best_of_both() -> None:
    assert decide(opinions_of([0.55, 0.4, 0.05], [0.05, 0.4, 0.55], top=2))[0] == 1
    assert decide(opinions_of([0.55, 0.4, 0.05], [0.05, 0.4, 0.55], top=1))[0] == 0


@given(
    st.lists(st.lists(st.floats(0.01, 1), min_size=6, max_size=6), min_size=1, max_size=4),
    st.integers(1, 6),
    st.sampled_from([0.0, 1.0]),
)
def test_all_named_is_the_plain_mean_and_one_worker_is_itself(
    weights: list[list[float]], top: int, temperature: float
) -> None:
    views = [[w / sum(row) for w in row] for row in weights]
    everything = opinions_of(*views, top=6)
    means = [sum(log(view[token]) for view in views) / len(views) for token in range(6)]
    assert everything.of(torch.arange(6)[None, None])[0, 0].tolist() == pytest.approx(means, abs=1e-9)
    token, score = decide(everything)
    assert score == pytest.approx(max(means), abs=1e-9)
    alone = opinions_of(views[0], top=top)
    token, score = decide(alone, temperature)
    assert score == pytest.approx(log(views[0][token]), abs=1e-9)
