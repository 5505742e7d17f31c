"""Errors of paths: at most one slip each, whose wrong number runs on to the path's end.

Shapes: n problems of one depth K, m = 3 paths in the order of METHODS, V = K + 1 values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nap_trainer.words_study.config import LIMIT, N_PATHS, StudyConfig
from nap_trainer.words_study.numbers import ADD, TAKE, TIMES, Bools, Ints, Numbers, applied

_NEAR = (1, -1, 10, -10, 2, -2)
_KINDS = len(_NEAR) + 1  # the last: the operation is misread
_NONE = -1


@dataclass(frozen=True, slots=True)
class Slips:
    """Where a path slips, at_nm (operation, −1: nowhere), by how much, by_nm, and its values value_nmV."""

    at_nm: Ints
    by_nm: Ints
    value_nmV: Ints


def draw_slips(rng: np.random.Generator, numbers: Numbers, config: StudyConfig) -> Slips:
    """Let paths slip; a path that slips at several steps keeps the first slip only."""
    n, depth = numbers.kind_nK.shape
    chance_nK = np.where(hard_steps(numbers), np.float32(config.hard_slip), np.float32(config.slip))
    sizes = _Sizes.of(numbers)
    common_nK = rng.random((n, depth), np.float32) < chance_nK
    common_by_nK = sizes.draw(rng, (n, depth))
    shares_nmK = rng.random((n, N_PATHS, depth), np.float32) < config.correlation
    own_nmK = rng.random((n, N_PATHS, depth), np.float32) < chance_nK[:, None]
    own_by_nmK = sizes.draw(rng, (n, N_PATHS, depth))
    by_nmK = np.where(shares_nmK, common_by_nK[:, None], own_by_nmK)
    slips_nmK = np.where(shares_nmK, common_nK[:, None], own_nmK) & (by_nmK != 0)
    first_nm = slips_nmK.argmax(axis=2)
    at_nm = np.where(slips_nmK.any(axis=2), first_nm, _NONE).astype(np.int16)
    by_nm = np.take_along_axis(by_nmK, first_nm[..., None], axis=2)[..., 0] * (at_nm != _NONE)
    return Slips(at_nm, by_nm, _followed(numbers, at_nm, by_nm))


def hard_steps(numbers: Numbers) -> Bools:
    """Operations with a carry, a borrow or a multiplication, [n, K]."""
    ones_nK, other_nK = numbers.value_nV[:, :-1] % 10, numbers.operand_nK % 10
    carry_nK = (numbers.kind_nK == ADD) & (ones_nK + other_nK > 9)
    borrow_nK = (numbers.kind_nK == TAKE) & (ones_nK < other_nK)
    hard_nK: Bools = carry_nK | borrow_nK | (numbers.kind_nK == TIMES)
    return hard_nK


def _followed(numbers: Numbers, at_nm: Ints, by_nm: Ints) -> Ints:
    """Every value of every path: right operations, going on from the wrong number."""
    n, depth = numbers.kind_nK.shape
    value_nmV = np.empty((n, N_PATHS, depth + 1), np.int16)
    value_nmV[..., 0] = numbers.given_n[:, None]
    for k in range(depth):
        right_nm = applied(value_nmV[..., k], numbers.kind_nK[:, k, None], numbers.operand_nK[:, k, None])
        value_nmV[..., k + 1] = right_nm + by_nm * (at_nm == k)
    return value_nmV


@dataclass(frozen=True, slots=True)
class _Sizes:
    """How wrong a step may be: low_nK … high_nK keeps later numbers in 0 … 99; misread_nK is another operation's."""

    low_nK: Ints
    high_nK: Ints
    misread_nK: Ints

    @classmethod
    def of(cls, numbers: Numbers) -> _Sizes:
        result_nK, factor_nK = numbers.value_nV[:, 1:], numbers.factors
        low_nK, high_nK = -result_nK, LIMIT - result_nK
        for k in reversed(range(numbers.depth - 1)):
            factor_n = factor_nK[:, k + 1]
            low_nK[:, k] = np.maximum(low_nK[:, k], -(-low_nK[:, k + 1] // factor_n))
            high_nK[:, k] = np.minimum(high_nK[:, k], high_nK[:, k + 1] // factor_n)
        before_nK = numbers.value_nV[:, :-1]
        other_nK = np.where(numbers.kind_nK == ADD, before_nK - numbers.operand_nK, before_nK + numbers.operand_nK)
        return cls(low_nK, high_nK, other_nK - result_nK)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Ints:
        """An error for each step, [n, K] or [n, m, K]; 0 where there is no room for one."""
        kind = rng.integers(_KINDS, size=shape, dtype=np.int8)
        low, high, misread = (self._spread(x_nK, shape) for x_nK in (self.low_nK, self.high_nK, self.misread_nK))
        near = np.array((*_NEAR, 0), np.int16)[kind]
        wanted = np.where(kind == len(_NEAR), misread, near)
        by = np.where(high >= 1, 1, np.where(low <= -1, -1, 0)).astype(np.int16)
        for choice in (-wanted, wanted):
            by = np.where((choice != 0) & (low <= choice) & (choice <= high), choice, by)
        return by

    def _spread(self, x_nK: Ints, shape: tuple[int, ...]) -> npt.NDArray[np.int16]:
        return x_nK if len(shape) == 2 else x_nK[:, None]
