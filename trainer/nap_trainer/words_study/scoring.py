"""Numbers read out of decoded slots, for many canvases at once.

Shapes: any leading axes, S slots. Slots after the first end tag or end-of-text do not count. −1: no number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nap_trainer.words_study.vocabulary import BOX, BRACE, DIGIT_0, END_IDS

_Ids = npt.NDArray[np.integer[Any]]
_Found = npt.NDArray[np.int64]
_WINDOW = 4


def answer_of(ids: _Ids) -> _Found:
    r"""The two digits of the last whole `\boxed{dd}` of each row; [..., S] → [...].

    A box that is cut short, or holds anything but two digits, counts as none, and the one before it is read.
    """
    ids = _open(ids)
    box, tens, ones, brace = (_shifted(ids, k) for k in range(_WINDOW))
    return _last((box == BOX) & _digit(tens) & _digit(ones) & (brace == BRACE), tens, ones)


def result_of_path(ids: _Ids) -> _Found:
    """The last number of each row; [..., S] → [...]. A last number that has not two digits counts as none."""
    ids = _open(ids)
    ids = np.concatenate((ids[..., -2:], ids), axis=-1)  # two blanks before the first slot
    before, tens, ones, after = (_shifted(ids, k) for k in range(_WINDOW))
    ends = _digit(ones) & ~_digit(after)
    return _last(ends, tens, ones, good=_digit(tens) & ~_digit(before))


def _open(ids: _Ids) -> _Ids:
    """Slots from the first end id on blanked, and a window's worth of blanks, so that there is always one."""
    ids = np.asarray(ids)
    closed = np.logical_or.accumulate(np.isin(ids, END_IDS), axis=-1)
    blank = np.full((*ids.shape[:-1], _WINDOW), -1, ids.dtype)
    return np.concatenate((np.where(closed, ids.dtype.type(-1), ids), blank), axis=-1)


def _last(found: npt.NDArray[np.bool_], tens: _Ids, ones: _Ids, good: npt.NDArray[np.bool_] | None = None) -> _Found:
    """The number at the last place that was found, where it is good."""
    last = found.shape[-1] - 1 - found[..., ::-1].argmax(axis=-1)

    def at(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.take_along_axis(values, last[..., None], axis=-1)[..., 0]

    number = (at(tens).astype(np.int64) - DIGIT_0) * 10 + at(ones).astype(np.int64) - DIGIT_0
    return np.where(at(found if good is None else found & good), number, -1)


def _shifted(ids: _Ids, by: int) -> _Ids:
    """Member `by` of every window of slots."""
    return ids[..., by : ids.shape[-1] - _WINDOW + 1 + by]


def _digit(ids: _Ids) -> npt.NDArray[np.bool_]:
    return (ids >= DIGIT_0) & (ids < DIGIT_0 + 10)
