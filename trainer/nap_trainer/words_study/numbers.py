"""The numbers of problems: one chain of operations each, drawn for many problems of one depth at once.

Shapes: n problems of one depth K; k = 0 … K − 1 operations; V = K + 1 values, the given number first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from nap_trainer.words_study.config import LIMIT, MAX_PRODUCT, StudyConfig
from nap_trainer.words_study.split import Split, in_split

Ints = npt.NDArray[np.int16]
Bools = npt.NDArray[np.bool_]

ADD, TAKE, TIMES = 0, 1, 2
_POOL = 4096  # candidates per round, so that a split of one in sixteen needs few rounds
_MAX_TRIES = 64


@dataclass(frozen=True, slots=True)
class Numbers:
    """Chains: given_n, kind_nK (ADD, TAKE, TIMES), operand_nK, and the right values value_nV."""

    given_n: Ints
    kind_nK: Ints
    operand_nK: Ints
    value_nV: Ints

    @property
    def depth(self) -> int:
        """K, operations."""
        return int(self.kind_nK.shape[1])

    @property
    def answer_n(self) -> Ints:
        """The last value."""
        return self.value_nV[:, -1]

    @property
    def factors(self) -> Ints:
        """The multiplier of each operation, 1 where it adds or takes, [n, K]."""
        return np.where(self.kind_nK == TIMES, self.operand_nK, np.int16(1))

    @property
    def later(self) -> Ints:
        """Product of the multipliers after each value, [n, V]: what an error there grows by until the end."""
        return _later(self.factors)

    def take(self, rows: npt.NDArray[np.intp]) -> Self:
        """Some of the problems, in the given order."""
        return type(self)(self.given_n[rows], self.kind_nK[rows], self.operand_nK[rows], self.value_nV[rows])


def draw_numbers(rng: np.random.Generator, count: int, depth: int, split: Split, config: StudyConfig) -> Numbers:
    """Draw problems of one depth and split. Even the narrowest settings leave every split some: this ends."""
    shapes: tuple[tuple[int, ...], ...] = ((count,), (count, depth), (count, depth), (count, depth + 1))
    found = Numbers(*(np.zeros(shape, np.int16) for shape in shapes))
    pending = np.arange(count)
    while len(pending):
        tries = min(_MAX_TRIES, max(2, _POOL // len(pending)))
        drawn = _candidates(rng, len(pending) * tries, depth, config)
        fits_pt = in_split(split, drawn.given_n, drawn.kind_nK, drawn.operand_nK).reshape(len(pending), tries)
        hit_p = fits_pt.any(axis=1)
        first_p = np.arange(len(pending)) * tries + fits_pt.argmax(axis=1)
        _store(found, pending[hit_p], drawn.take(first_p[hit_p]))
        pending = pending[~hit_p]
    return found


def applied(value_n: Ints, kind_n: Ints | np.int16, operand_n: Ints) -> Ints:
    """One operation, elementwise."""
    signed_n = np.where(kind_n == TAKE, -operand_n, operand_n)
    return np.where(kind_n == TIMES, value_n * operand_n, value_n + signed_n)


def _store(found: Numbers, rows: npt.NDArray[np.intp], drawn: Numbers) -> None:
    found.given_n[rows] = drawn.given_n
    found.kind_nK[rows] = drawn.kind_nK
    found.operand_nK[rows] = drawn.operand_nK
    found.value_nV[rows] = drawn.value_nV


def _candidates(rng: np.random.Generator, count: int, depth: int, config: StudyConfig) -> Numbers:
    """Chains whose values are 1 … 99, and stay so where later multipliers are pulled forward (`back` needs that)."""
    factor_nK = _factors(rng, count, depth, config.times)
    bound_nV = LIMIT // _later(factor_nK)
    up_nK = rng.random((count, depth), np.float32) < 0.5
    size_nK = rng.random((count, depth), np.float32)
    value_nV = np.empty((count, depth + 1), np.int16)
    value_nV[:, 0] = _uniform(rng.random(count, np.float32), bound_nV[:, 0])
    kind_nK = np.full((count, depth), TIMES, np.int16)
    operand_nK = factor_nK.copy()
    for k in range(depth):
        value_n = value_nV[:, k]
        plain_n = factor_nK[:, k] == 1
        above_n, below_n = bound_nV[:, k + 1] - value_n, value_n - 1
        up_n = (up_nK[:, k] & (above_n > 0)) | (below_n == 0)
        room_n = np.minimum(np.where(up_n, above_n, below_n), np.int16(config.operand))
        kind_nK[:, k] = np.where(plain_n, np.where(up_n, ADD, TAKE), TIMES)
        operand_nK[:, k] = np.where(plain_n, _uniform(size_nK[:, k], room_n), operand_nK[:, k])
        value_nV[:, k + 1] = applied(value_n, kind_nK[:, k], operand_nK[:, k])
    return Numbers(value_nV[:, 0].copy(), kind_nK, operand_nK, value_nV)


def _factors(rng: np.random.Generator, count: int, depth: int, times: float) -> Ints:
    """Multipliers 2 and 3, else 1, with a bounded product; kept in random order, so that no place is preferred."""
    size_nK = 2 + (rng.random((count, depth), np.float32) < 0.5)
    wanted_nK = np.where(rng.random((count, depth), np.float32) < times, size_nK, 1).astype(np.int16)
    order_nK = rng.random((count, depth), np.float32).argsort(axis=1)
    product_n = np.ones(count, np.int16)
    rows_n = np.arange(count)
    for k_n in order_nK.T:
        factor_n = wanted_nK[rows_n, k_n]
        kept_n = np.where(product_n * factor_n <= MAX_PRODUCT, factor_n, 1)
        wanted_nK[rows_n, k_n] = kept_n
        product_n *= kept_n
    return wanted_nK


def _later(factor_nK: Ints) -> Ints:
    later_nV = np.ones((len(factor_nK), factor_nK.shape[1] + 1), np.int16)
    for k in reversed(range(factor_nK.shape[1])):
        later_nV[:, k] = later_nV[:, k + 1] * factor_nK[:, k]
    return later_nV


def _uniform(chance_n: npt.NDArray[np.float32], high_n: Ints) -> Ints:
    """A number from 1 to `high` for a chance below 1."""
    return 1 + (chance_n * high_n).astype(np.int16)
