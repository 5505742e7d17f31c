"""Signs of life in, verdicts out; where a process may be put. All on a clock that the tests turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nap_runtime.distributed.comm import Solo
from nap_runtime.distributed.wire import Clock, Pace, Wire
from nap_runtime.executor.homes import Home, Host, choose
from nap_runtime.executor.liveness import Beat, Liveness, Lost, Patience, Straggler

PATIENCE = Patience(liveness=5.0, progress=60.0, first=600.0)


class Group:
    """Scripted workers: each makes a step in so many seconds of computing, and waits for the slowest (`lockstep`)."""

    def __init__(self, seconds: Mapping[int, float], *, lockstep: bool = True, rows: Mapping[int, int] | None = None):
        self.seconds, self.lockstep = dict(seconds), lockstep
        self.rows = dict(rows or dict.fromkeys(seconds, 100))
        self.liveness = Liveness(len(seconds), PATIENCE)
        self.now = 100.0
        self.silent: set[int] = set()
        self.steps = dict.fromkeys(seconds, 0)
        self.beats = dict.fromkeys(seconds, Beat())
        self.begin()

    def begin(self) -> None:
        self.liveness.begin(self.now)
        self.began = self.now
        self.base = dict(self.steps)

    def beat(self, rank: int) -> Beat:
        each = max(self.seconds.values()) if self.lockstep else self.seconds[rank]
        done = int((self.now - self.began) / each)
        self.steps[rank] = self.base[rank] + done
        counted = max(done - 1, 0)  # the first step of a kind is not counted
        pace = Pace(steps=counted, rows=counted * self.rows[rank], seconds=counted * self.seconds[rank])
        return Beat(steps=self.steps[rank], pace=pace)

    def run(self, seconds: float, change: Callable[[int, Beat], Beat] = lambda _, beat: beat) -> Lost | None:
        """Let time pass, in fifths of a second, until something is lost."""
        until = self.now + seconds
        while self.now < until:
            for rank in self.liveness.due(self.now):
                if rank not in self.silent:
                    self.liveness.heard(rank, change(rank, self.beat(rank)), self.now)
            if (lost := self.liveness.verdict(self.now)) is not None:
                return lost
            self.liveness.stragglers(self.now)
            self.now += 0.2
        return None

    def slow(self) -> list[tuple[int, int]]:
        return [(one.worker, round(one.factor)) for one in self.liveness.stragglers(self.now)]


def test_a_group_that_gets_on_is_left_alone() -> None:
    group = Group({0: 0.1, 1: 0.1, 2: 0.12})
    assert group.run(120) is None
    assert group.slow() == []


@pytest.mark.parametrize("silent", [{1}, {0, 2}])
def test_the_silent_are_named_within_the_liveness_period(silent: set[int]) -> None:
    group = Group({0: 0.1, 1: 0.1, 2: 0.1})
    assert group.run(10) is None
    group.silent, began = silent, group.now
    lost = group.run(30)
    assert lost is not None
    assert set(lost.ranks) == silent
    assert 5.0 < group.now - began < 6.5
    assert "not answered for 5 s" in lost.reason


def test_a_watcher_that_slept_takes_it_for_nobodys_silence() -> None:
    group = Group({0: 0.1, 1: 0.1})
    assert group.run(3) is None
    group.now += 300.0  # this process was stopped; so were its questions
    assert group.liveness.due(group.now) is not None
    assert group.liveness.verdict(group.now) is None
    assert group.run(3) is None


def test_one_that_sits_in_a_step_is_named_and_its_waiting_peers_are_not() -> None:
    group = Group({0: 0.1, 1: 0.1, 2: 0.1})
    assert group.run(10) is None
    at, frozen = group.now, {rank: group.beat(rank) for rank in range(3)}

    def stuck(rank: int, beat: Beat) -> Beat:
        pace = frozen[rank].pace
        current = group.now - at if rank == 2 else 0.0
        return Beat(steps=frozen[rank].steps, pace=Pace(pace.steps, pace.rows, pace.seconds, current))

    lost = group.run(30, stuck)
    assert lost is not None
    assert lost.ranks == (2,)
    assert "in one step" in lost.reason
    assert group.now - at < 6.5


def test_a_first_step_may_take_its_time_but_not_for_ever() -> None:
    group = Group({0: 0.1, 1: 0.1})
    lost = group.run(1000, lambda _, __: Beat(steps=0))
    assert lost == Lost(ranks=(), reason="no worker has made a step for 600 s")


def test_a_long_compilation_in_the_middle_is_no_stuck_step() -> None:
    group = Group({0: 0.1, 1: 0.1})
    assert group.run(10) is None
    held = {rank: group.beat(rank) for rank in range(2)}
    assert group.run(50, lambda rank, _: held[rank]) is None  # `current` is 0: a first step of its kind
    lost = group.run(30, lambda rank, _: held[rank])
    assert lost is not None
    assert lost.ranks == ()  # all wait for each other, and nobody gets on for a minute


@pytest.mark.parametrize("lockstep", [True, False])
def test_a_straggler_at_a_tenth_of_the_speed_is_noticed_in_seconds(lockstep: bool) -> None:
    group = Group({0: 0.05, 1: 0.05, 2: 0.05}, lockstep=lockstep)
    assert group.run(10) is None
    assert group.slow() == []
    group.seconds[1] = 0.5
    group.begin()
    began = group.now
    while not group.slow() and group.now < began + 30:
        assert group.run(0.2) is None
    assert [worker for worker, _ in group.slow()] == [1]
    assert group.now - began < 8.0
    assert group.run(20) is None
    assert group.slow() == [(1, 10)]
    group.seconds[1] = 0.05
    group.begin()
    assert group.run(20) is None
    assert group.slow() == []


def test_a_slow_worker_of_many_short_batches_is_noticed_too() -> None:
    group = Group({0: 0.02, 1: 0.02, 2: 0.2})
    for _ in range(12):
        assert group.run(0.9) is None
        group.now += 5.0  # nothing to do in between
        group.begin()
    assert [worker for worker, _ in group.slow()] == [2]


def test_more_work_is_not_slowness() -> None:
    rows = {0: 60, 1: 60, 2: 600}
    group = Group({0: 0.05, 1: 0.05, 2: 0.5}, rows=rows)
    assert group.run(30) is None
    assert group.slow() == []


def test_a_worker_that_hardly_computes_is_not_a_straggler() -> None:
    """In a group that waits for its network, ten times a millisecond does not matter."""
    group = Group({0: 0.001, 1: 0.001, 2: 0.010})
    group.lockstep = False
    slow_link = 0.2

    def waiting(rank: int, _: Beat) -> Beat:
        steps = int((group.now - group.began) / slow_link)
        return Beat(steps=steps, pace=Pace(steps=steps, rows=steps * 100, seconds=steps * group.seconds[rank]))

    assert group.run(30, waiting) is None
    assert group.slow() == []


def test_a_replaced_worker_is_judged_anew() -> None:
    group = Group({0: 0.05, 1: 0.05, 2: 0.5})
    assert group.run(20) is None
    assert [worker for worker, _ in group.slow()] == [2]
    group.liveness.forget(2)
    assert group.slow() == []


def test_no_straggler_is_looked_for_where_none_is_wanted() -> None:
    group = Group({0: 0.05, 1: 0.05, 2: 0.5})
    group.liveness = Liveness(3, Patience(slow=0.0))
    group.begin()
    assert group.run(20) is None
    assert group.slow() == []
    assert Straggler(worker=0, factor=2.0).host == ""


@given(
    seconds=st.lists(st.floats(0.02, 0.2), min_size=2, max_size=5),
    lockstep=st.booleans(),
    seed=st.lists(st.floats(0.7, 1.3), min_size=5, max_size=5),
)
def test_nobody_is_called_slow_whose_steps_are_not(seconds: list[float], lockstep: bool, seed: list[float]) -> None:
    """Whatever the paces, only who takes at least four times the median of the others is named."""
    paces = {rank: one * seed[rank] for rank, one in enumerate(seconds)}
    group = Group(paces, lockstep=lockstep)
    assert group.run(15) is None
    for worker, _ in group.slow():
        others = sorted(pace for rank, pace in paces.items() if rank != worker)
        middle = (others[(len(others) - 1) // 2] + others[len(others) // 2]) / 2
        assert paces[worker] >= 3.9 * middle


# --- where a process may be put ---


def host(node: str, free: float = 0.0, *, total: float = 1.0, alive: bool = True) -> Host:
    return Host(node=node, address="", port=0, alive=alive, total=total, free=free)


HOSTS = [host("a"), host("b"), host("c", 1.0)]


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        (Home(node="b", how="home"), {"reserved": "b"}),
        (Home(node="c", how="room"), {"reserved": "b", "unfit": {"b"}}),
        (Home(node="c", how="room"), {"reserved": None}),
        (Home(node="c", how="room"), {"reserved": "b", "slow": {"b"}}),
        (Home(node="b", how="home"), {"reserved": "b", "slow": {"b", "c"}}),
        (Home(node="b", how="shared"), {"reserved": "c", "unfit": {"c"}, "crowd": {"a": 2, "b": 1}}),
        (Home(node="a", how="shared"), {"reserved": "c", "unfit": {"c"}, "slow": {"b"}, "crowd": {"a": 2, "b": 1}}),
        (None, {"reserved": "c", "unfit": {"c"}, "share": False}),
        (None, {"reserved": None, "unfit": {"a", "b", "c"}}),
    ],
)
def test_where_a_lost_worker_goes(wanted: Home | None, given: dict[str, object]) -> None:
    assert choose(HOSTS, need=1.0, **given) == wanted  # type: ignore[arg-type]


def test_no_worker_is_put_on_a_host_that_takes_none_or_is_dead() -> None:
    hosts = [host("head", 0.0, total=0.0), host("dead", 4.0, alive=False), host("full")]
    assert choose(hosts, reserved="dead", need=1.0) == Home(node="full", how="shared")
    assert choose(hosts[:2], reserved="dead", need=1.0) is None


# --- what a worker has computed ---


def test_a_pace_leaves_out_exchanges_and_the_first_step_of_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    wire = Wire(Solo(), Clock(torch.device("cpu")))

    def step(rows: int, seconds: float, waiting: float) -> None:
        wire.begin_step(rows=rows, extra_rows=0)
        now[0] += seconds
        with wire.exchanging():
            now[0] += waiting
        wire.end_step(committed=True)

    step(10, 20.0, 0.0)  # compiles
    step(10, 1.0, 7.0)
    step(20, 20.0, 0.0)  # another number of rows: compiles again
    step(10, 2.0, 7.0)
    wire.begin_step(rows=10, extra_rows=0)
    now[0] += 5.0
    assert wire.pace() == Pace(steps=2, rows=20, seconds=3.0, current=5.0)
    with wire.exchanging():
        now[0] += 100.0
        assert wire.pace().current == 5.0
    wire.end_step(committed=True)
    assert wire.pace() == Pace(steps=2, rows=20, seconds=3.0)  # counted when the next begins
    wire.begin_step(rows=30, extra_rows=0)
    now[0] += 50.0
    assert wire.pace() == Pace(steps=3, rows=30, seconds=8.0)  # a first of its kind is exempt
