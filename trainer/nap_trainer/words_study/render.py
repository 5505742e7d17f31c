"""Token ids of drawn problems, without a loop over problems.

Shapes: n problems of one depth K, V = K + 1 values, W persons and sentences, P prompt tokens, m paths of L slots,
S summary tokens. Short paths are padded by PAD. ``problem`` writes the same as text.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nap_trainer.words_study.config import QUESTION_TOKENS, SENTENCE_TOKENS, SUMMARY_TOKENS, method_tokens
from nap_trainer.words_study.drawing import Group
from nap_trainer.words_study.numbers import ADD, TAKE, TIMES, Ints, Numbers
from nap_trainer.words_study.slips import Slips
from nap_trainer.words_study.vocabulary import BOX, BRACE, DIGIT_0, IDS, NAMES

PAD = -1
_NAME_IDS = np.array([IDS[name] for name in NAMES], np.int16)
_SIGNS = np.array([IDS["+"], IDS["-"], IDS["*"]], np.int16)
_MOVES = np.array([IDS["up"], IDS["down"], IDS["times"]], np.int16)
_VERBS = np.array([IDS["beats"], IDS["trails"], IDS["has"]], np.int16)


def prompt_ids(group: Group) -> Ints:
    """Questions, [n, P]."""
    numbers, wording = group.numbers, group.wording
    n, persons = wording.name_nW.shape
    name_nW = _NAME_IDS[wording.name_nW]
    sentence_nWt = np.empty((n, persons, SENTENCE_TOKENS), np.int16)
    sentence_nWt[:, 0] = _given(name_nW[:, 0], numbers.given_n)
    of_nD = np.take_along_axis(name_nW, wording.of_nD.astype(np.intp), axis=1)
    sentence_nWt[:, 1:] = _sentences(
        name_nW[:, 1:],
        np.concatenate((name_nW[:, : numbers.depth], of_nD), axis=1),
        np.concatenate((numbers.kind_nK, wording.kind_nD), axis=1),
        np.concatenate((numbers.operand_nK, wording.operand_nD), axis=1),
    )
    shuffled_nWt = sentence_nWt[np.arange(n)[:, None], wording.order_nW]
    ids_nP = np.empty((n, SENTENCE_TOKENS * persons + QUESTION_TOKENS), np.int16)
    ids_nP[:, :-QUESTION_TOKENS] = shuffled_nWt.reshape(n, -1)
    ids_nP[:, -QUESTION_TOKENS:] = [IDS["how"], IDS["many"], IDS["has"], 0, IDS["?"]]
    ids_nP[:, -2] = name_nW[:, numbers.depth]
    return ids_nP


def path_ids(group: Group) -> Ints:
    """Paths in their places, [n, m, L]."""
    numbers, slips = group.numbers, group.slips
    name_nV = _NAME_IDS[group.wording.name_nW[:, : numbers.depth + 1]]
    sizes = method_tokens(numbers.depth)
    ids_nmL = np.full((len(name_nV), len(sizes), max(sizes)), PAD, np.int16)
    for method, write in enumerate((_forward, _plan, _back)):
        ids_nmL[:, method, : sizes[method]] = write(numbers, slips, name_nV)
    return ids_nmL[np.arange(len(name_nV))[:, None], group.method_nm]


def summary_ids(group: Group) -> Ints:
    """Summaries, [n, S]."""
    ids_nS = np.empty((len(group.rows_n), SUMMARY_TOKENS), np.int16)
    ids_nS[:] = [IDS["the"], IDS["answer"], IDS["is"], BOX, 0, 0, BRACE]
    ids_nS[:, 4:6] = _two(group.numbers.answer_n)
    return ids_nS


def back_pass(numbers: Numbers, slips: Slips) -> tuple[Ints, Ints]:
    """What the goal is as factor · value + offset: factor_nV, and offset_nV of the method `back`, slips included."""
    method, later_nV = 2, numbers.later
    offset_nV = np.zeros_like(later_nV)
    for k in reversed(range(numbers.depth)):
        kind_n, operand_n = numbers.kind_nK[:, k], numbers.operand_nK[:, k]
        step_n = np.where(kind_n == TIMES, 0, np.where(kind_n == TAKE, -operand_n, operand_n))
        step_n = step_n + slips.by_nm[:, method] * (slips.at_nm[:, method] == k)
        offset_nV[:, k] = offset_nV[:, k + 1] + later_nV[:, k + 1] * step_n
    return later_nV, offset_nV


# -- sentences ----------------------------------------------------------------------------------------


def _given(name_n: Ints, given_n: Ints) -> Ints:
    """`ann starts out with 12 .`"""
    ids_nt = np.empty((len(name_n), SENTENCE_TOKENS), np.int16)
    ids_nt[:] = [0, IDS["starts"], IDS["out"], IDS["with"], 0, 0, IDS["."]]
    ids_nt[:, 0] = name_n
    ids_nt[:, 4:6] = _two(given_n)
    return ids_nt


def _sentences(name_nw: Ints, of_nw: Ints, kind_nw: Ints, operand_nw: Ints) -> Ints:
    """`bob beats ann by 05 .`, `bob trails ann by 05 .`, `bob has 02 times ann .`"""
    ids_nwt = np.empty((*name_nw.shape, SENTENCE_TOKENS), np.int16)
    times_nw = kind_nw == TIMES
    digits_nw2 = _two(operand_nw)
    ids_nwt[..., 0] = name_nw
    ids_nwt[..., 1] = _VERBS[kind_nw]
    ids_nwt[..., 2] = np.where(times_nw, digits_nw2[..., 0], of_nw)
    ids_nwt[..., 3] = np.where(times_nw, digits_nw2[..., 1], IDS["by"])
    ids_nwt[..., 4] = np.where(times_nw, IDS["times"], digits_nw2[..., 0])
    ids_nwt[..., 5] = np.where(times_nw, of_nw, digits_nw2[..., 1])
    ids_nwt[..., 6] = IDS["."]
    return ids_nwt


# -- methods ------------------------------------------------------------------------------------------


def _forward(numbers: Numbers, slips: Slips, name_nV: Ints) -> Ints:
    """`forward ann 12 + 05 bob 17 - 07 cleo 10 .`"""
    n, depth = numbers.kind_nK.shape
    ids_nL = np.empty((n, method_tokens(depth)[0]), np.int16)
    ids_nL[:, 0] = IDS["forward"]
    ids_nL[:, 1] = name_nV[:, 0]
    ids_nL[:, 2:4] = _two(numbers.given_n)
    step_nK6 = ids_nL[:, 4:-1].reshape(n, depth, 6)
    step_nK6[..., 0] = _SIGNS[numbers.kind_nK]
    step_nK6[..., 1:3] = _two(numbers.operand_nK)
    step_nK6[..., 3] = name_nV[:, 1:]
    step_nK6[..., 4:6] = _two(slips.value_nmV[:, 0, 1:])
    ids_nL[:, 4:-1] = step_nK6.reshape(n, -1)
    ids_nL[:, -1] = IDS["."]
    return ids_nL


def _plan(numbers: Numbers, slips: Slips, name_nV: Ints) -> Ints:
    """`plan cleo bob ann : 12 up 17 down 10 .`"""
    n, depth = numbers.kind_nK.shape
    ids_nL = np.empty((n, method_tokens(depth)[1]), np.int16)
    ids_nL[:, 0] = IDS["plan"]
    ids_nL[:, 1 : depth + 2] = name_nV[:, ::-1]
    ids_nL[:, depth + 2] = IDS[":"]
    ids_nL[:, depth + 3 : depth + 5] = _two(numbers.given_n)
    step_nK3 = np.empty((n, depth, 3), np.int16)
    step_nK3[..., 0] = _MOVES[numbers.kind_nK]
    step_nK3[..., 1:] = _two(slips.value_nmV[:, 1, 1:])
    ids_nL[:, depth + 5 : -1] = step_nK3.reshape(n, -1)
    ids_nL[:, -1] = IDS["."]
    return ids_nL


def _back(numbers: Numbers, slips: Slips, name_nV: Ints) -> Ints:
    """`back bob 1 - 07 ann 1 - 02 : 12 , 12 , 10 .`: the goal is 1 · bob − 7, so 1 · ann − 2, so 10."""
    n, depth = numbers.kind_nK.shape
    factor_nV, offset_nV = back_pass(numbers, slips)
    ids_nL = np.empty((n, method_tokens(depth)[2]), np.int16)
    ids_nL[:, 0] = IDS["back"]
    step_nK5 = np.empty((n, depth, 5), np.int16)
    step_nK5[..., 0] = name_nV[:, -2::-1]
    step_nK5[..., 1] = DIGIT_0 + factor_nV[:, -2::-1]
    step_nK5[..., 2] = _SIGNS[np.where(offset_nV[:, -2::-1] < 0, TAKE, ADD)]
    step_nK5[..., 3:] = _two(np.abs(offset_nV[:, -2::-1]))
    ids_nL[:, 1 : 5 * depth + 1] = step_nK5.reshape(n, -1)
    product_n = factor_nV[:, 0] * numbers.given_n
    ids_nL[:, 5 * depth + 1 :] = [IDS[":"], 0, 0, IDS[","], 0, 0, IDS[","], 0, 0, IDS["."]]
    for end, value_n in ((-7, numbers.given_n), (-4, product_n), (-1, product_n + offset_nV[:, 0])):
        ids_nL[:, end - 2 : end] = _two(value_n)
    return ids_nL


def _two(value: npt.NDArray[np.int16]) -> Ints:
    """Two digits along a new last axis."""
    tens, ones = np.divmod(value, np.int16(10))
    return np.stack((DIGIT_0 + tens, DIGIT_0 + ones), axis=-1).astype(np.int16)
