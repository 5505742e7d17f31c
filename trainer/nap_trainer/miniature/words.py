"""`words-study` as the problem set of the miniature."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nap_runtime.models.tokenizer import Tokenizer
from nap_trainer.miniature.problems import Array, Problems, Split
from nap_trainer.words_study import StudyConfig, answer_of, make_table, result_of_path, study_tokenizer

_SHARE = 65_536  # problems that one process makes at a time


class WordsStudy:
    """The `Source` of `nap_trainer.words_study`."""

    def __init__(self, config: StudyConfig) -> None:
        self.config = config

    def tokenizer(self, folder: Path) -> Tokenizer:
        """See `Source`."""
        folder.mkdir(parents=True, exist_ok=True)
        return study_tokenizer(folder)

    def problems(self, split: Split, count: int, seed: int, processes: int) -> Problems:
        """See `Source`."""
        jobs = [(split, seed, min(_SHARE, count - at), self.config, at) for at in range(0, count, _SHARE)]
        if processes <= 1 or len(jobs) == 1:
            return _joined([_make(*job) for job in jobs])
        with multiprocessing.get_context("spawn").Pool(min(processes, len(jobs))) as pool:
            return _joined(pool.starmap(_make, jobs, chunksize=1))

    def answer_of(self, ids_nS: Array) -> Array:
        """See `Source`."""
        return answer_of(ids_nS)

    def path_answer_of(self, ids_nS: Array) -> Array:
        """See `Source`."""
        return result_of_path(ids_nS)


def source(values: Mapping[str, Any]) -> WordsStudy:
    """The problem set of a study's `problem_set`; UsageError for an unknown knob."""
    return WordsStudy(StudyConfig.from_mapping(values))


def _make(split: Split, seed: int, count: int, config: StudyConfig, start: int) -> Problems:
    return Problems.of(make_table(split, seed=seed, count=count, config=config, start=start))


def _joined(tables: list[Problems]) -> Problems:
    arrays = {name: np.concatenate([getattr(table, name) for table in tables]) for name in Problems.__slots__}
    return Problems(**arrays)
