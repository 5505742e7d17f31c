"""A teacher that refuses everything is asked once a thread, however late whoever reads its answers hears of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from nap_runtime.errors import TeacherError
from nap_trainer.data.curate import _each
from nap_trainer.data.teachers import Request, Trace


class Refusing:
    """Refuses the first requests in the way it is told, and answers the rest."""

    batch_size = 1
    identity: Mapping[str, Any] = {}

    def __init__(self, error: Exception, concurrency: int) -> None:
        self.error, self.concurrency = error, concurrency
        self.asked, self.stopped, self._lock = 0, False, threading.Lock()

    def sample(self, requests: Sequence[Request]) -> list[Trace]:
        with self._lock:
            self.asked += 1
        raise self.error

    def stop(self) -> None:
        self.stopped = True


REQUESTS = [[Request("q", number, "?")] for number in range(50)]


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_refusal_stops_all_threads(concurrency: int) -> None:
    teacher = Refusing(TeacherError("no", fatal=True), concurrency)
    answers = _each(REQUESTS, teacher)
    _, first = next(answers)
    time.sleep(0.2)  # the threads have long been through by then
    assert isinstance(first, TeacherError)
    assert teacher.asked <= concurrency
    answers.close()  # type: ignore[attr-defined]
    assert teacher.stopped


def test_a_failure_of_one_trace_stops_nothing() -> None:
    teacher = Refusing(TeacherError("too long"), 3)
    assert len(list(_each(REQUESTS, teacher))) == len(REQUESTS) == teacher.asked


def test_a_defect_is_raised_and_stops_all_threads() -> None:
    teacher = Refusing(ValueError("a defect"), 3)
    with pytest.raises(ValueError, match="a defect"):
        next(_each(REQUESTS, teacher))
    time.sleep(0.1)
    assert teacher.asked <= 3
