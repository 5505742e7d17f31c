"""What the coordinator does about losses, one after another, and in the middle of a repair; with scripted executors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from nap_runtime.errors import NoRoomError, WorkerLostError
from nap_runtime.executor.base import Repair
from nap_runtime.executor.coordinator import Batch, Coordinator, Observer, Recovery
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.executor.liveness import Straggler
from nap_runtime.job import DecodeConfig, DecodeJob, DecodeResult
from nap_runtime.models.loading import load_weights, read_card
from nap_runtime.models.shapes import make_model_dir
from nap_runtime.service.group import GroupProcess
from nap_runtime.worker import Report

CONFIG = DecodeConfig(paths=2, path_tokens=8, summary_tokens=3, control_every=2, eos_weight=0.0)
JOBS = [DecodeJob(question="one two")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp("models") / "random"
    make_model_dir("llada-tiny", folder, seed=0, dtype=torch.float64, scale=10.0)
    card = read_card(folder)
    return card, load_weights(card, dtype=torch.float64)


class Scripted:
    """Workers of this process. `losses[i]`: the step at which the i-th run is lost; `repairs`: what repairs do."""

    def __init__(self, weights: Any, losses: Sequence[int | None], repairs: Sequence[Exception | None]) -> None:
        self._inner = InlineExecutor(weights, workers=2, dtype=torch.float64)
        self.workers, self.places = 2, self._inner.places
        self._losses, self._repairs = list(losses), list(repairs)
        self.on_straggler: Callable[[tuple[Straggler, ...]], None] | None = None
        self.runs = 0

    def run(self, task: Any, *, on_report: Callable[[Report], None], cancelled: Callable[[], bool]) -> Any:
        self.runs += 1
        lost_at = self._losses.pop(0) if self._losses else None

        def report(given: Report) -> None:
            if lost_at is not None and given.step >= lost_at:
                raise WorkerLostError("worker 1 has not answered for 5 s")
            on_report(given)

        if self.on_straggler is not None and self.runs == 1:
            self.on_straggler((Straggler(worker=1, factor=9.0, host="node1"),))
        return self._inner.run(task, on_report=report, cancelled=cancelled)

    def repair(self) -> Repair | None:
        error = self._repairs.pop(0) if self._repairs else None
        if error is not None:
            raise error
        return Repair(lost=(1,), seconds=0.1, weights="peer")

    def probe(self) -> None:
        pass

    def close(self) -> None:
        pass


class Seen(Observer):
    def __init__(self) -> None:
        self.recoveries: list[Recovery] = []
        self.slow: list[Sequence[Straggler]] = []

    def on_recovery(self, batch: Batch, recovery: Recovery) -> None:
        self.recoveries.append(recovery)

    def on_straggler(self, batch: Batch, slow: Sequence[Straggler]) -> None:
        self.slow.append(slow)


def decode(model: tuple[Any, Any], executor: Scripted) -> tuple[list[Any], Seen]:
    seen = Seen()
    return list(Coordinator(model[0], executor).decode(JOBS, CONFIG, observer=seen)), seen


def ids(results: list[Any]) -> list[list[int]]:
    assert all(isinstance(result, DecodeResult) for result in results)
    return [result.record.final_ids.tolist() for result in results]


@pytest.fixture(scope="module")
def undisturbed(model: tuple[Any, Any]) -> list[list[int]]:
    return ids(decode(model, Scripted(model[1], [], []))[0])


LOST = WorkerLostError("a worker died while the group was formed")


@pytest.mark.parametrize(
    ("losses", "repairs", "recoveries"),
    [
        ([4], [None], 1),
        ([4], [LOST, None], 1),  # another loss in the middle of the repair
        ([4, 6, 8], [None, LOST, None, None], 3),  # what gets on may be lost again and again
        ([2, 2], [None, None], 2),
    ],
)
def test_losses_cost_no_answer(model: Any, undisturbed: Any, losses: Any, repairs: Any, recoveries: int) -> None:
    results, seen = decode(model, Scripted(model[1], losses, repairs))
    assert ids(results) == undisturbed
    assert len(seen.recoveries) == recoveries


@pytest.mark.parametrize("repairs", [[LOST, LOST], [None, LOST], [None, None]])
def test_losses_without_progress_end_the_decode(model: Any, repairs: Any) -> None:
    """Three in a row, of the decode or of its repair."""
    with pytest.raises(WorkerLostError):
        decode(model, Scripted(model[1], [1, 1, 1, 1], repairs))


def test_where_no_host_is_left_nothing_is_tried_again(model: Any) -> None:
    executor = Scripted(model[1], [4], [NoRoomError("no host has room")])
    with pytest.raises(NoRoomError):
        decode(model, executor)
    assert executor.runs == 1


def test_an_executor_that_cannot_repair_fails_as_it_was_lost(model: Any) -> None:
    class Hopeless(Scripted):
        def repair(self) -> None:  # type: ignore[override]
            return None

    with pytest.raises(WorkerLostError, match="worker 1 has not answered"):
        decode(model, Hopeless(model[1], [4], []))


def test_stragglers_are_told(model: Any) -> None:
    _, seen = decode(model, Scripted(model[1], [], []))
    assert [[(one.worker, one.host) for one in slow] for slow in seen.slow] == [[(1, "node1")]]


class Said:
    """A channel that remembers."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def send(self, **message: Any) -> None:
        self.messages.append(message)


@pytest.mark.parametrize(("error", "waits"), [(NoRoomError("no host has room"), True), (LOST, False)])
def test_a_group_without_a_host_starts_anew_and_its_jobs_wait(model: Any, error: Exception, waits: bool) -> None:
    channel = Said()
    group = GroupProcess(channel)  # type: ignore[arg-type]
    executor = Scripted(model[1], [2, 2, 2, 2], [error, error, error])
    group._coordinator = Coordinator(model[0], executor)
    group._places = executor.places
    config = group._coordinator.resolve(CONFIG).to_mapping()
    job = {"question": "one two", "name": "", "gold": None, "prompt": b"\x05\0\0\0\x06\0\0\0"}
    group._decode({"kind": "run", "batch": 7, "config": config, "jobs": [job], "earlier": None})
    (broken,) = [message for message in channel.messages if message["kind"] == "broken"]
    assert broken["batch"] == 7
    assert bool(broken.get("waits")) == waits
    assert group._inbox.empty() != waits  # None in the inbox ends the group; the server starts it again
