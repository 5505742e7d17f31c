"""A worker's own process, in this one: whichever of two calls arrives first, a batch is stopped and no other is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nap_runtime.distributed.comm import Solo
from nap_runtime.executor.process import Setup, WorkerProcess
from nap_runtime.job import DecodeConfig
from nap_runtime.storage import NATIVE
from nap_runtime.worker import Outcome


class Alone(Solo):
    """A group of one without torch's: that one a training in this process may have, and keep."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerProcess]:
    monkeypatch.setattr("nap_runtime.executor.process.TorchCommunicator", Alone)
    where: dict[str, Any] = {"device": "cpu", "compile": "none", "threads": 1, "timeout": 20.0}
    alone = WorkerProcess(Setup(model="nap-tiny", dtype="float32", storage=NATIVE, **where))
    alone.load()
    alone.join(alone.open_group("127.0.0.1"), 0, 1)
    yield alone
    assert alone.leave(5.0)


def test_a_cancel_is_of_one_batch(
    process: WorkerProcess, nap_layout: Any, make_task: Callable[..., Any], prompt_of: Any
) -> None:
    task = make_task(nap_layout((6, 6)), DecodeConfig(paths=2, control_every=1), [prompt_of(0)])

    def cancelled(batch: int) -> bool:
        outcome = list(process.run(task, batch))[-1]
        assert isinstance(outcome, Outcome)
        return outcome.cancelled

    process.cancel(1)  # it has overtaken the call that it is about
    assert cancelled(1)
    assert not cancelled(2)
    process.cancel(2)  # it comes after the end
    assert not cancelled(3)
