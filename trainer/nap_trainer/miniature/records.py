"""Per-problem records of a decode: what the page is made of, small enough to keep in the repository."""

from __future__ import annotations

from dataclasses import dataclass, fields
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Self

import numpy as np

from nap_runtime.errors import DataError
from nap_runtime.models.files import atomic_path
from nap_trainer.miniature import ordering
from nap_trainer.miniature.decoding import Decoded
from nap_trainer.miniature.driver import Driver
from nap_trainer.miniature.grading import read_answers
from nap_trainer.miniature.problems import Array
from nap_trainer.miniature.study import SEARCH_SEED, Decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One decode, graded.

    Attributes:
        answer_n, path_nm: answers of summary and paths; right_n, vote_right_n, path_right_nm whether they are right.
        depth_n: of the problems, for the breakdown.
        arness_kF: `ordering.FIGURES` of the first k problems.
        heat_SQ: `ordering.heat` of the same.
    """

    answer_n: Array
    path_nm: Array
    right_n: Array
    vote_right_n: Array
    path_right_nm: Array
    depth_n: Array
    arness_kF: Array
    heat_SQ: Array

    def __len__(self) -> int:
        return len(self.right_n)

    @property
    def any_right_n(self) -> Array:
        """Whether any path is right."""
        return np.asarray(self.path_right_nm.any(1))

    def figure(self, name: str) -> Array:
        """One ARness figure by name, float64 [k]."""
        return np.asarray(self.arness_kF[:, ordering.FIGURES.index(name)], dtype=np.float64)

    def save(self, path: Path) -> None:
        """Write a compressed npz, whole or not at all."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays["arness_kF"] = self.arness_kF.astype(np.float16)
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, **arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; DataError if the file is another."""
        try:
            with np.load(path) as arrays:
                return cls(**{field.name: arrays[field.name] for field in fields(cls)})
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{path}: not a record ({error})") from error


class Grader:
    """Makes records of a run's decodes, and keeps them. Close it to stop its processes.

    Args:
        processes: that compute ARness; they are started when the first decode has to be graded.
    """

    def __init__(self, driver: Driver, *, processes: int = 1) -> None:
        self._driver, self._processes = driver, processes
        self._pool: Pool | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.terminate()

    def record(self, unit: Decode) -> Record | None:
        """The record of a unit: the stored one, else made now; None where it has not run."""
        store = self._driver.store
        path = store.graded(unit)
        if not path.exists():
            decoded = store.decoded(unit)
            if decoded is None:
                return None
            self._grade(unit, decoded).save(path)
        return Record.load(path)

    def _grade(self, unit: Decode, decoded: Decoded) -> Record:
        driver, geometry, arm = self._driver, self._driver.study.geometry, unit.arm
        problems = driver.problems(unit.split).take(slice(0, unit.count))
        answers = read_answers(decoded.ids_nS, arm, geometry, driver.tags, driver.source)
        layout = geometry.layout(arm, driver.tags, 1)  # where the prompt ends changes no order
        config = unit.setting.config(arm, geometry, slots=layout.n_slots)
        planned = ordering.Planned(layout=layout, config=config)
        ordered = decoded.first(self._ordered(unit))
        gold_n = problems.answer_n.astype(np.int64)
        return Record(
            answer_n=answers.summary_n,
            path_nm=answers.path_nm,
            right_n=answers.summary_n == gold_n,
            vote_right_n=answers.vote_n == gold_n,
            path_right_nm=answers.path_nm == gold_n[:, None],
            depth_n=problems.depth_n.astype(np.uint8),
            arness_kF=ordering.arness(ordered, planned, self._workers()),
            heat_SQ=ordering.heat(ordered),
        )

    def _workers(self) -> Pool | None:
        if self._pool is None and self._processes > 1:
            self._pool = get_context("spawn").Pool(self._processes)
        return self._pool

    def _ordered(self, unit: Decode) -> int:
        """ARness costs milliseconds a canvas: later seeds are scored on a quarter of the problems."""
        order = self._driver.study.order
        return order if unit.model.seed == SEARCH_SEED else max(1, order // 4)
