"""Intervals and tests, in numpy alone.

Shapes: n problems, s seeds, R resamples. Same weights are compared over problems (`mcnemar`, `paired_bootstrap`),
different weights over seeds and problems (`two_level_bootstrap`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from nap_trainer.miniature.problems import Array

Z95 = 1.959963984540054
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with the ends of its 95% interval, and a two-sided p against 0 where one was asked for."""

    value: float
    low: float
    high: float
    p: float | None = None


def wilson(hits: int, n: int, z: float = Z95) -> Interval:
    """Wilson's score interval of a share; the whole of [0, 1] for n = 0."""
    if n == 0:
        return Interval(math.nan, 0.0, 1.0)
    share, weight = hits / n, z * z / n
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / n + weight / (4 * n)) / (1 + weight)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def mcnemar(one_n: Array, other_n: Array) -> float:
    """Exact two-sided McNemar p of two raters of the same problems: the discordant pairs against a fair coin."""
    only_one, only_other = int((one_n & ~other_n).sum()), int((~one_n & other_n).sum())
    total, fewer = only_one + only_other, min(only_one, only_other)
    if total == 0:
        return 1.0
    ways, tail = 1, 0
    for hits in range(fewer + 1):
        tail += ways
        ways = ways * (total - hits) // (hits + 1)
    return min(1.0, float(Fraction(2 * tail, 2**total)))


def paired_bootstrap(difference_n: Array, *, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean of paired differences, problems drawn with replacement: percentile interval and p.

    Only how often each value occurs matters, so a resample is one multinomial draw over the distinct values.
    """
    values, counts = np.unique(difference_n, return_counts=True)
    n = len(difference_n)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan)
    draws = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    return _percentiles(float(np.mean(difference_n)), draws @ values / n)


def mean_interval(values_n: Array, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of the values that are defined (no NaN), problems drawn with replacement."""
    return paired_bootstrap(values_n[~np.isnan(values_n)], resamples=resamples, seed=seed)


def two_level_bootstrap(difference_sn: Array, *, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean of a difference over seeds and problems, both drawn with replacement: first the seeds, then the problems.

    Row s is one pair of trainings (the same seed in both arms), column n one problem. All seeds answer the same
    problems, so a resample draws the problems once for all of its seeds; drawing them anew for each seed would
    understate what problems contribute. Few seeds make any such interval too narrow: report the seeds beside it.
    """
    seeds, n = difference_sn.shape
    if seeds == 0 or n == 0:
        return Interval(math.nan, math.nan, math.nan)
    patterns_su, counts = np.unique(difference_sn, axis=1, return_counts=True)
    random = np.random.default_rng(seed)
    seed_rs = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    means = np.empty(resamples)
    for at in range(0, resamples, 1000):
        part_rs = seed_rs[at : at + 1000]
        draws_ru = random.multinomial(n, counts / n, size=len(part_rs)) / n
        means[at : at + 1000] = ((part_rs @ patterns_su) * draws_ru).sum(1)
    return _percentiles(float(difference_sn.mean()), means)


def _percentiles(value: float, means_r: Array) -> Interval:
    """Percentile interval; p is twice the smaller share of resamples on one side of 0, never 0 itself."""
    low, high = np.quantile(means_r, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    side = min(int((means_r <= 0).sum()), int((means_r >= 0).sum()))
    return Interval(value, float(low), float(high), min(1.0, 2 * (side + 1) / (len(means_r) + 1)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm–Bonferroni adjusted p-values of one family, in the given order."""
    by_size = sorted(p_values, key=lambda name: p_values[name])
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(by_size):
        highest = max(highest, min(1.0, (len(by_size) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def stacked(rows: Sequence[Array]) -> Array:
    """Equal rows as [s, n] float64; an empty table where there are none."""
    return np.stack([np.asarray(row, dtype=np.float64) for row in rows]) if rows else np.zeros((0, 0))
