"""From final ids to answers: of the summary, of every path, of their vote. Shapes: n problems, m paths, S slots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nap_trainer.miniature.arms import Arm, Geometry, Tags
from nap_trainer.miniature.problems import NO_ANSWER, Array, Problems, Source

_BLANK = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a decode says: of the summary [n] and of every path [n, m]; `NO_ANSWER` where it says nothing. int32."""

    summary_n: Array
    path_nm: Array

    @property
    def vote_n(self) -> Array:
        """The most frequent answer of the paths that have one; the first path's among equals."""
        given_nm = self.path_nm != NO_ANSWER
        same_nmm = (self.path_nm[:, :, None] == self.path_nm[:, None, :]) & given_nm[:, :, None]
        best_n = same_nmm.sum(2).argmax(1)  # argmax takes the first among equals
        return np.take_along_axis(self.path_nm, best_n[:, None], axis=1)[:, 0]


def read_answers(ids_nS: Array, arm: Arm, geometry: Geometry, tags: Tags, source: Source) -> Answers:
    """Read the answers of a decode. In a free text the last stated answer counts, wherever it falls."""
    ids_nS = ids_nS.astype(np.int64)
    *paths, summary = _clamped(ids_nS, arm, geometry) if arm.clamped else _free(ids_nS, arm, tags)
    path_nm = np.stack([source.path_answer_of(text) for text in paths], axis=1)
    return Answers(summary_n=source.answer_of(summary).astype(np.int32), path_nm=path_nm.astype(np.int32))


def _clamped(ids_nS: Array, arm: Arm, geometry: Geometry) -> Iterator[Array]:
    """The slots of every block, the summary's last."""
    at = 0
    for budget in (*geometry.budgets(arm), geometry.summary_tokens):
        yield ids_nS[:, at : at + budget]
        at += budget


def _free(ids_nS: Array, arm: Arm, tags: Tags) -> Iterator[Array]:
    """The text behind each path's first tag up to the next tag; last the whole text, its end tags blanked.

    Everything beyond the first end-of-text is blank.
    """
    ended_nS = np.logical_or.accumulate(ids_nS == tags.eos_id, axis=1)
    text_nS = np.where(ended_nS, _BLANK, ids_nS)
    every = (*tags.headers, *tags.ends, tags.summary_header, tags.summary_end)
    is_tag_nS = np.isin(text_nS, every)
    number_nS = is_tag_nS.cumsum(1)  # tags up to and with each slot
    for header in tags.headers[: arm.blocks]:
        is_header_nS = text_nS == header
        first_n = is_header_nS.argmax(1)
        opened_n1 = np.where(is_header_nS.any(1), np.take_along_axis(number_nS, first_n[:, None], 1)[:, 0], -1)[:, None]
        yield np.where((number_nS == opened_n1) & ~is_tag_nS, text_nS, _BLANK)
    yield np.where(np.isin(text_nS, (*tags.ends, tags.summary_end)), _BLANK, text_nS)


def accuracy(answers: Answers, problems: Problems) -> float:
    """Share of right summaries: the criterion of the search."""
    return float((answers.summary_n == problems.answer_n).mean())
