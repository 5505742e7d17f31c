"""Confidences against the plain formulas, also where probabilities saturate."""

from __future__ import annotations

from decimal import Decimal, getcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nap_runtime.decoding.confidence import LOWEST, log_confidence, weigh_ends

getcontext().prec = 60
ROWS = st.lists(st.lists(st.floats(-8, 8), min_size=5, max_size=5), min_size=1, max_size=6)


@given(ROWS, st.integers(0, 4))
def test_moderate_logits_equal_the_plain_formulas(rows: list[list[float]], chosen: int) -> None:
    logits = torch.tensor([rows], dtype=torch.float64)
    ids = torch.full(logits.shape[:2], chosen)
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    top = p.sort(dim=-1, descending=True).values
    plain = {
        "max-prob": p[..., chosen].log(),
        "margin": (top[..., 0] - top[..., 1]).log().clamp_min(LOWEST),
        "entropy": (p * p.log()).sum(-1),
    }
    for kind, expected in plain.items():
        got = log_confidence(kind, logits, ids)  # type: ignore[arg-type]
        tolerance = 1e-12 if kind != "margin" else 1e-6
        close = torch.isclose(got, expected, rtol=tolerance, atol=1e-12)
        near_tie = (top[..., 0] - top[..., 1] < 1e-6) if kind == "margin" else torch.zeros_like(close)
        assert (close | near_tie).all(), kind


def exact(kind: str, logits: list[float]) -> Decimal:
    """The formulas in 60 digits."""
    weights = [Decimal(value).exp() for value in logits]
    p = sorted((weight / sum(weights) for weight in weights), reverse=True)
    if kind == "max-prob":
        return p[0].ln()
    return (p[0] - p[1]).ln() if kind == "margin" else sum((q * q.ln() for q in p), Decimal(0))


# Ever surer rows: in float32 all but the first have probability 1.
SURE = [[gap, 0.0, -1.0, -2.0] for gap in (10.0, 18.0, 19.0, 24.0, 40.0, 60.0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "kind",
    [
        "max-prob",
        "entropy",
        "margin",
    ],
)
def test_saturated_rows_keep_their_order(kind: Any, dtype: torch.dtype) -> None:
    scores = log_confidence(kind, torch.tensor([SURE], dtype=dtype), torch.zeros(1, len(SURE), dtype=torch.int64))
    assert scores[0].tolist() == sorted(set(scores[0].tolist()))
    for score, row in zip(scores[0].tolist(), SURE, strict=True):
        # Entropy leaves out the sure token's own −p·log p where p rounds to 1: a part of 1/gap.
        assert score == pytest.approx(float(exact(kind, row)), rel=1e-5 if kind == "max-prob" else 0.12)


def test_improbable_candidates_have_finite_confidence() -> None:
    logits = torch.tensor([[[0.0, -900.0, -torch.inf]]])
    for chosen, expected in ((0, 0.0), (1, -900.0), (2, LOWEST)):
        assert float(log_confidence("max-prob", logits, torch.tensor([[chosen]]))) == pytest.approx(expected)
    alone = torch.tensor([[[3.0, -torch.inf, -torch.inf]]])
    for kind in ("max-prob", "margin", "entropy"):
        assert float(log_confidence(kind, alone, torch.tensor([[0]]))) == 0.0  # type: ignore[arg-type]


def test_a_tie_of_the_two_best_has_the_lowest_margin() -> None:
    logits = torch.tensor([[[1.0, 1.0, 0.0]]], dtype=torch.float64)
    assert float(log_confidence("margin", logits, torch.tensor([[0]]))) == LOWEST


def test_end_weight_scales_the_probability_of_ends_only() -> None:
    scores = torch.tensor([[-0.5, -0.1, -3.0]], dtype=torch.float64)
    ids = torch.tensor([[7, 2, 3]])
    ends = torch.tensor([2, 3])
    got = weigh_ends(scores, ids, ends, 0.25).exp()
    assert got[0].tolist() == pytest.approx((scores.exp() * torch.tensor([1.0, 0.25, 0.25]))[0].tolist())
    assert torch.equal(weigh_ends(scores, ids, ends, 1.0), scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_end_weight_zero_comes_after_everything_else(dtype: torch.dtype) -> None:
    scores = torch.tensor([[-1e-9, -1e4, -2.0]], dtype=dtype)
    got = weigh_ends(scores, torch.tensor([[2, 9, 2]]), torch.tensor([2]), 0.0)
    assert got[0].tolist() == pytest.approx([LOWEST, -1e4, LOWEST])
    assert got[0, 0] == got[0, 2]  # so that the lowest position goes first
