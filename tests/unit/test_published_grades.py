"""The miniature's records in this repository, graded again from the answers that they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nap_trainer.miniature.grading import Answers

RECORDS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "miniature"
GRADED = sorted((RECORDS / "graded").rglob("*.npz"))


@pytest.fixture(scope="module")
def gold_n() -> np.ndarray:
    with np.load(RECORDS / "data" / "test.npz") as test:
        return np.asarray(test["answer_n"], dtype=np.int32)


def test_there_are_records() -> None:
    assert len(GRADED) > 70


@pytest.mark.parametrize("file", GRADED, ids=lambda file: str(file.relative_to(RECORDS / "graded")))
def test_what_is_marked_right_is_right(file: Path, gold_n: np.ndarray) -> None:
    with np.load(file) as stored:
        said = Answers(summary_n=stored["answer_n"], path_nm=stored["path_nm"])
        gold_k = gold_n[: len(said.summary_n)]
        np.testing.assert_array_equal(stored["right_n"], said.summary_n == gold_k)
        np.testing.assert_array_equal(stored["vote_right_n"], said.vote_n == gold_k)
        np.testing.assert_array_equal(stored["path_right_nm"], said.path_nm == gold_k[:, None])
