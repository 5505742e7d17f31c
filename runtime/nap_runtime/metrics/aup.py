"""AUP: accuracy under parallelism, one number for a curve of accuracy against tokens per forward.

With points (ρ_i, y_i), tokens per forward ascending and accuracy in percent,

    AUP = ρ_1·y_1 + Σ_{i≥2} ½·(ρ_i − ρ_{i−1})·(y_i·W_i + y_{i−1}·W_{i−1}),   W_i = min(exp(−α·(1 − y_i/y_max)), 1)

with α = 3 and y_max the best accuracy of all methods compared. Points more than 5 below y_1 are dropped: parallelism
that costs so much accuracy counts for nothing. So defined by the public leaderboard of parallel decoders.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from nap_runtime.errors import UsageError

ALPHA = 3.0
TOLERANCE = 5.0  # percentage points

Point = tuple[float, float]  # tokens per forward, accuracy in percent


@dataclass(frozen=True, slots=True, kw_only=True)
class Aup:
    """One method's score.

    Attributes:
        value: the AUP.
        points: what counted, tokens per forward ascending; `dropped` what lay too far below the first of them.
        best: y_max, in percent.
    """

    value: float
    points: tuple[Point, ...]
    dropped: tuple[Point, ...]
    best: float


def aup(points: Iterable[Point], *, best: float | None = None, alpha: float = ALPHA) -> Aup:
    """The AUP of one curve, its points in any order.

    Args:
        points: tokens per forward, and accuracy from 0 to 100.
        best: y_max (None: this curve's own best).
        alpha: how quickly lost accuracy devalues parallelism.

    Raises:
        UsageError: there is no point, a number is out of range, or a point is better than `best`.
    """
    ordered = sorted(points, key=lambda point: (point[0], -point[1]))
    _check(ordered, alpha)
    top = max(y for _, y in ordered)
    limit = top if best is None else best
    if limit < top:
        raise UsageError(f"best: {limit} is below {top}, which a point reaches", field="best")
    bar = ordered[0][1] - TOLERANCE
    kept, dropped = (tuple(p for p in ordered if (p[1] >= bar) is good) for good in (True, False))
    return Aup(value=_area(kept, limit, alpha), points=kept, dropped=dropped, best=limit)


def compare(curves: Mapping[str, Sequence[Point]], *, alpha: float = ALPHA) -> dict[str, Aup]:
    """The AUP of every method, all against the best accuracy that any point of any of them reaches.

    Raises:
        UsageError: as for `aup`; there is no method.
    """
    if not curves:
        raise UsageError("points: there is no method to compare", field="points")
    for points in curves.values():
        _check(points, alpha)
    best = max(y for points in curves.values() for _, y in points)
    return {name: aup(points, best=best, alpha=alpha) for name, points in curves.items()}


def _area(points: Sequence[Point], best: float, alpha: float) -> float:
    def weighted(y: float) -> float:
        return y * min(math.exp(-alpha * (1 - y / best)), 1.0) if best > 0 else 0.0

    first_rho, first_y = points[0]
    rest = (
        0.5 * (rho - before) * (weighted(y) + weighted(y_before)) for (before, y_before), (rho, y) in pairwise(points)
    )
    return first_rho * first_y + math.fsum(rest)


def _check(points: Sequence[Point], alpha: float) -> None:
    if not points:
        raise UsageError("points: there are none", field="points")
    for rho, y in points:
        if not (0 < rho < math.inf and 0 <= y <= 100):
            text = f"points: ({rho}, {y}) is not a positive number of tokens per forward and an accuracy from 0 to 100"
            raise UsageError(text, field="points")
    if not 0 <= alpha < math.inf:
        raise UsageError(f"alpha: {alpha} is not a finite number of at least 0", field="alpha")
