"""The one core of both front ends: blocks of problems, drawn in groups of equal depth.

A block always holds BLOCK problems, whatever is asked for, and every block, depth and purpose has its own random
stream. So row i of a split and seed is the same in any table that contains it, and error knobs leave questions alone.

Shapes: n problems of one depth K, W = K + 1 + D persons (the chain's in order, then distractors), m = 3 paths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from nap_runtime.errors import UsageError
from nap_trainer.words_study.config import LIMIT, N_PATHS, StudyConfig
from nap_trainer.words_study.numbers import ADD, TAKE, TIMES, Ints, Numbers, applied, draw_numbers
from nap_trainer.words_study.slips import Slips, draw_slips
from nap_trainer.words_study.split import SPLITS, Split, check_split
from nap_trainer.words_study.vocabulary import NAMES

BLOCK = 8192
_INDEX_BITS = 8


class _Purpose(IntEnum):
    DEPTHS = 0
    NUMBERS = 1
    SLIPS = 2
    NAMES = 3
    ORDER = 4
    DISTRACTORS = 5
    METHODS = 6


@dataclass(frozen=True, slots=True)
class Wording:
    """Names and sentences.

    name_nW: indices into NAMES. order_nW: which sentence stands at each place (sentence w is about person w).
    of_nD, kind_nD, operand_nD: the distractors' operations on persons of the chain.
    """

    name_nW: Ints
    order_nW: Ints
    of_nD: Ints
    kind_nD: Ints
    operand_nD: Ints


@dataclass(frozen=True, slots=True)
class Group:
    """The problems of one depth in a block: their rows there, numbers, slips (in the order of METHODS), wording.

    method_nm: which method stands in which path.
    """

    rows_n: npt.NDArray[np.intp]
    numbers: Numbers
    slips: Slips
    wording: Wording
    method_nm: Ints


def draw_block(split: Split, seed: int, block: int, config: StudyConfig) -> Iterator[Group]:
    """Draw one block's groups; UsageError for an unknown split or a negative seed."""
    check_split(split)
    if seed < 0:
        raise UsageError(f"seed: {seed} is negative; use 0 or more", field="seed")
    start = (seed, SPLITS.index(split), block)
    depth_n = np.arange(BLOCK) % len(config.depths)
    _stream(*start, 0, _Purpose.DEPTHS).shuffle(depth_n)
    for number, depth in enumerate(config.depths):
        yield _draw_group(np.flatnonzero(depth_n == number), depth, start, split, config)


def _draw_group(
    rows_n: npt.NDArray[np.intp], depth: int, start: tuple[int, int, int], split: Split, config: StudyConfig
) -> Group:
    def stream(purpose: _Purpose) -> np.random.Generator:
        return _stream(*start, depth, purpose)

    n, persons = len(rows_n), depth + 1 + config.distractors
    numbers = draw_numbers(stream(_Purpose.NUMBERS), n, depth, split, config)
    of_nD, kind_nD, operand_nD = _distractors(stream(_Purpose.DISTRACTORS), numbers, config)
    wording = Wording(
        name_nW=_permutations(stream(_Purpose.NAMES), n, len(NAMES))[:, :persons],
        order_nW=_permutations(stream(_Purpose.ORDER), n, persons),
        of_nD=of_nD,
        kind_nD=kind_nD,
        operand_nD=operand_nD,
    )
    slips = draw_slips(stream(_Purpose.SLIPS), numbers, config)
    return Group(rows_n, numbers, slips, wording, _permutations(stream(_Purpose.METHODS), n, N_PATHS))


def _distractors(rng: np.random.Generator, numbers: Numbers, config: StudyConfig) -> tuple[Ints, Ints, Ints]:
    """Operations on random persons of the chain that the chain's own operations cannot be told from."""
    shape = (len(numbers.given_n), config.distractors)
    of_nD = rng.integers(numbers.depth + 1, size=shape, dtype=np.int16)
    value_nD = np.take_along_axis(numbers.value_nV, of_nD.astype(np.intp), axis=1)
    factor_nD = rng.integers(2, 4, size=shape, dtype=np.int16)
    times_nD = (rng.random(shape, np.float32) < config.times) & (applied(value_nD, np.int16(TIMES), factor_nD) <= LIMIT)
    up_nD = ((rng.random(shape, np.float32) < 0.5) & (value_nD < LIMIT)) | (value_nD == 1)
    room_nD = np.minimum(np.where(up_nD, LIMIT - value_nD, value_nD - 1), config.operand)
    size_nD = (1 + rng.random(shape, np.float32) * room_nD).astype(np.int16)
    kind_nD = np.where(times_nD, TIMES, np.where(up_nD, ADD, TAKE)).astype(np.int16)
    return of_nD, kind_nD, np.where(times_nD, factor_nD, size_nD)


def _permutations(rng: np.random.Generator, count: int, size: int) -> Ints:
    """Random orders of 0 … size − 1, one a row: sorts random numbers that carry the index in their low bits."""
    keys = rng.integers(1 << (32 - _INDEX_BITS), size=(count, size), dtype=np.uint32) << np.uint32(_INDEX_BITS)
    keys |= np.arange(size, dtype=np.uint32)
    keys.sort(axis=1)
    return (keys & np.uint32((1 << _INDEX_BITS) - 1)).astype(np.int16)


def _stream(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
