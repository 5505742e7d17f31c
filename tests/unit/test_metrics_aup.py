"""AUP of curves worked out by hand, and properties that follow from its definition."""

from __future__ import annotations

from math import exp

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nap_runtime.errors import UsageError
from nap_runtime.metrics.aup import aup, compare


def test_one_point_is_a_rectangle() -> None:
    assert aup([(1.0, 70.0)]).value == 70.0
    assert aup([(2.5, 40.0)], best=80.0).value == 100.0  # ρ₁·y₁ has no weight


def test_level_curves_are_their_area() -> None:
    """W is 1 everywhere: 1·80 + (3 − 1)·80."""
    assert aup([(1.0, 80.0), (3.0, 80.0)]).value == pytest.approx(240.0)


def test_a_falling_curve_by_hand() -> None:
    """y_max 80: W(80) = 1, W(76) = e^(−0.15), W(78) = e^(−0.075)."""
    got = aup([(1.0, 80.0), (4.0, 76.0), (2.0, 78.0)])
    w76, w78 = 76 * exp(-0.15), 78 * exp(-0.075)
    assert got.value == pytest.approx(80 + 0.5 * (80 + w78) + (w78 + w76))
    assert got.value == pytest.approx(293.96, abs=0.005)  # 80 + 76.18 + 137.78
    assert got.points == ((1.0, 80.0), (2.0, 78.0), (4.0, 76.0))
    assert (got.dropped, got.best) == ((), 80.0)


def test_a_better_method_lowers_the_weights() -> None:
    """y_max 90 comes from the other: W(60) = e^(−1), W(57) = e^(−1.1)."""
    got = compare({"slow": [(1.0, 60.0), (3.0, 57.0)], "good": [(1.0, 90.0)]})
    assert got["good"].value == 90.0
    assert got["slow"].value == pytest.approx(60 + (57 * exp(-1.1) + 60 * exp(-1)))
    assert got["slow"].best == 90.0


def test_points_more_than_five_below_the_first_are_dropped_and_listed() -> None:
    got = aup([(1.0, 80.0), (2.0, 74.9), (3.0, 75.0), (8.0, 40.0)])
    assert got.points == ((1.0, 80.0), (3.0, 75.0))
    assert got.dropped == ((2.0, 74.9), (8.0, 40.0))
    assert got.value == pytest.approx(80 + (80 + 75 * exp(-3 * (1 - 75 / 80))))


def test_a_rising_curve_is_weighed_by_its_own_best() -> None:
    got = aup([(1.0, 50.0), (2.0, 100.0)])
    assert got.value == pytest.approx(50 + 0.5 * (50 * exp(-1.5) + 100))


def test_of_equal_parallelism_the_better_point_is_the_first() -> None:
    got = aup([(1.0, 60.0), (1.0, 70.0)])
    assert got.points[0] == (1.0, 70.0)
    assert got.dropped == ((1.0, 60.0),)
    assert got.value == 70.0


def test_nothing_right_is_nothing() -> None:
    assert aup([(1.0, 0.0), (4.0, 0.0)]).value == 0.0


@pytest.mark.parametrize(
    ("points", "options", "field"),
    [
        ([], {}, "points"),
        ([(0.0, 50.0)], {}, "points"),
        ([(1.0, 101.0)], {}, "points"),
        ([(1.0, float("nan"))], {}, "points"),
        ([(float("inf"), 50.0)], {}, "points"),
        ([(1.0, 50.0)], {"best": 40.0}, "best"),
        ([(1.0, 50.0)], {"alpha": -1.0}, "alpha"),
    ],
)
def test_what_makes_no_sense_is_refused(
    points: list[tuple[float, float]], options: dict[str, float], field: str
) -> None:
    with pytest.raises(UsageError) as caught:
        aup(points, **options)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_no_method_is_refused() -> None:
    with pytest.raises(UsageError, match="no method"):
        compare({})


POINTS = st.lists(st.tuples(st.floats(0.1, 20), st.floats(0, 100)), min_size=1, max_size=8)


@given(POINTS, st.randoms())
@settings(deadline=None)
def test_properties(points: list[tuple[float, float]], random: object) -> None:
    got = aup(points)
    shuffled = list(points)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert aup(shuffled) == got  # the order of points means nothing
    assert sorted([*got.points, *got.dropped]) == sorted(points)
    plain = aup(points, alpha=0.0).value  # without weights: the area under the kept points
    assert 0 <= got.value <= plain * (1 + 1e-9) + 1e-9
    assert aup(points, best=100.0).value <= got.value * (1 + 1e-9) + 1e-9
