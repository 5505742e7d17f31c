"""Real worker processes: Ray actors joined by gloo give the ids of simulated workers and fail as they should.

Starting a cluster takes seconds, so one group of three workers serves most tests; the last ones break it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.errors import ModelError, UsageError, WorkerError
from nap_runtime.executor import ray_ending
from nap_runtime.executor.coordinator import Coordinator
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.executor.ray_executor import ClusterOptions, RayExecutor
from nap_runtime.job import DecodeConfig, DecodeJob, DecodeResult, SyncPolicy
from nap_runtime.models.loading import load_weights, read_card
from nap_runtime.models.shapes import make_model_dir

# One cluster at a time: with pytest-xdist this wants --dist loadfile.
pytestmark = pytest.mark.timeout(240)
WORKERS = 3


def alive(process: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(processes: set[int], within: float) -> bool:
    deadline = time.monotonic() + within
    while any(map(alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, processes))


def daemons() -> set[int]:
    """Processes of a Ray cluster that this process has started, and all below them."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found, size = {os.getpid()}, 0
    while size != len(found):
        size = len(found)
        found |= {process for process, parent in parents.items() if parent in found}
    return {process for process in found - {os.getpid()} if alive(process)}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "random"
    make_model_dir("llada-tiny", folder, seed=0, dtype=torch.float64, scale=10.0)
    return folder


@pytest.fixture(scope="module")
def no_cluster_given() -> Iterator[None]:
    """The tests start a cluster of their own, of four CPUs by name, so that a fourth worker has room."""
    patch = pytest.MonkeyPatch()
    patch.delenv("RAY_ADDRESS", raising=False)
    patch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 4}')
    yield
    patch.undo()


@pytest.fixture(scope="module")
def group(model_dir: Path, no_cluster_given: None) -> Iterator[RayExecutor]:
    executor = RayExecutor(model_dir, workers=WORKERS, dtype=torch.float64, cluster=ClusterOptions(timeout=20))
    yield executor
    executor.close()


@pytest.fixture(scope="module")
def simulation(model_dir: Path) -> InlineExecutor:
    weights = load_weights(read_card(model_dir), dtype=torch.float64)
    return InlineExecutor(weights, workers=WORKERS, dtype=torch.float64)


@pytest.fixture(scope="module")
def layout(nap_layout: Callable[..., CanvasLayout]) -> CanvasLayout:
    return nap_layout((7, 9, 5))


POLICIES = [
    SyncPolicy("exact"),
    SyncPolicy("tokens"),
    SyncPolicy("tokens", every=3),
    SyncPolicy("tokens", every=3, warmup=2),
    SyncPolicy("shared", every=2),
    SyncPolicy("kv", every=2),
    SyncPolicy("kv", every=2, warmup=3),
    SyncPolicy("none"),
    SyncPolicy("none", topology="isolated"),
    SyncPolicy("tokens", every=2, overlap=True),
    SyncPolicy("kv", overlap=True),
    SyncPolicy("kv", every=3, warmup=1, overlap=True, summary="consensus"),
    SyncPolicy("exact", summary="live"),
    SyncPolicy("tokens", every=2, summary="live", settle=2),
]


@pytest.mark.parametrize("placed", [(0, 1, 2), (2, 0, 1)], ids=str)
@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{p.mode}-{p.sees}-K{p.period}-w{p.warmup}")
def test_ids_are_those_of_the_simulation(
    group: RayExecutor,
    simulation: InlineExecutor,
    layout: CanvasLayout,
    make_task: Any,
    collect: Any,
    prompt_of: Any,
    policy: SyncPolicy,
    placed: tuple[int, ...],
) -> None:
    config = DecodeConfig(paths=3, temperature=1.0, seed=4, sync=policy, control_every=3)
    task = make_task(layout, config, [prompt_of(0), prompt_of(1)], placed)
    real, simulated = collect(group, task), collect(simulation, task)
    assert real.ids == simulated.ids
    for canvas in range(2):
        assert real.commits(canvas) == simulated.commits(canvas)
    for one, other in zip(real.outcomes, simulated.outcomes, strict=True):
        counts = [(m.syncs, m.payload_bytes, m.wire_bytes, m.rows_computed) for m in (one.meters, other.meters)]
        assert counts[0] == counts[1]
        assert (one.worker, one.events, one.forwards) == (other.worker, other.events, other.forwards)


@pytest.mark.parametrize("rule", ["confidence", "random"])
def test_rules_over_the_canvas(
    group: RayExecutor,
    simulation: InlineExecutor,
    layout: CanvasLayout,
    make_task: Any,
    collect: Any,
    prompt_of: Any,
    rule: Any,
) -> None:
    for policy in (SyncPolicy("exact"), SyncPolicy("tokens")):
        config = DecodeConfig(paths=3, steps=12, rule=rule, scope="canvas", sync=policy)
        task = make_task(layout, config, [prompt_of(2)], 3)
        assert collect(group, task).commits() == collect(simulation, task).commits()


def test_workers_are_processes_that_stay_warm(
    group: RayExecutor, layout: CanvasLayout, make_task: Any, collect: Any, prompt_of: Any
) -> None:
    before = [place.process for place in group.places]
    assert len({os.getpid(), *before}) == WORKERS + 1
    assert [place.worker for place in group.places] == list(range(WORKERS))
    task = make_task(layout, DecodeConfig(paths=3, steps=6), [prompt_of(3)], 3)
    started = time.monotonic()
    assert collect(group, task).ids == collect(group, task).ids
    assert time.monotonic() - started < 10
    assert [place.process for place in group.places] == before
    assert all(map(alive, before))


def test_several_prompts_through_the_coordinator(
    group: RayExecutor, simulation: InlineExecutor, model_dir: Path
) -> None:
    """Questions of two lengths, so two layouts; results equal those of simulated workers, job by job."""
    jobs = [DecodeJob(question=q, index=i) for i, q in enumerate(("one", "two", "three", "four"))]
    jobs.insert(1, DecodeJob(question=" ", index=9))
    config = DecodeConfig(paths=3, path_tokens=5, summary_tokens=3, sync=SyncPolicy("kv", every=2))
    decoded = []
    for executor in (group, simulation):
        coordinator = Coordinator(read_card(model_dir), executor)
        results = list(coordinator.decode(jobs, config, batch_size=2))
        failed = [result for result in results if not isinstance(result, DecodeResult)]
        assert [failure.job.index for failure in failed] == [9]
        done = {result.job.index: result for result in results if isinstance(result, DecodeResult)}
        decoded.append({index: result.record.final_ids.tolist() for index, result in done.items()})
    assert sorted(decoded[0]) == [0, 1, 2, 3]
    assert decoded[0] == decoded[1]


def test_cancel_reaches_running_workers(
    group: RayExecutor, nap_layout: Any, make_task: Any, collect: Any, prompt_of: Any
) -> None:
    layout, config = nap_layout((60, 60, 60), ends=(94,)), DecodeConfig(paths=3, control_every=1)
    task = make_task(layout, config, [prompt_of(0)] * 4, 3)
    seen: list[int] = []
    outcomes = group.run(task, on_report=lambda report: seen.append(report.step), cancelled=lambda: bool(seen))
    assert all(outcome.cancelled for outcome in outcomes)
    assert len({max(outcome.forwards) for outcome in outcomes}) == 1
    assert max(outcomes[0].forwards) < task.plan.schedule.steps - 1
    after = make_task(nap_layout((4, 4, 4)), DecodeConfig(paths=3), [prompt_of(0)], 3)
    assert len(collect(group, after).ids) == 1  # the group goes on


def test_a_failure_in_the_step_loop_is_one_clear_line(
    group: RayExecutor, layout: CanvasLayout, make_task: Any, collect: Any, prompt_of: Any
) -> None:
    outside_the_vocabulary = (10**6,) * 5
    with pytest.raises(WorkerError, match=r"^worker \d: IndexError: index out of range in self$"):
        collect(group, make_task(layout, DecodeConfig(paths=3), [outside_the_vocabulary], 3))
    task = make_task(layout, DecodeConfig(paths=3), [prompt_of(0)], 3)
    assert len(collect(group, task).ids) == 1  # all failed alike, before any exchange: the group goes on


def test_a_model_that_workers_cannot_load_leaves_the_cluster_to_others(
    group: RayExecutor, layout: CanvasLayout, make_task: Any, collect: Any, prompt_of: Any, tmp_path: Path
) -> None:
    before = {place.process for place in group.places}
    with pytest.raises(ModelError, match="missing") as caught:
        RayExecutor(tmp_path / "missing", workers=1, dtype=torch.float64)
    assert "\n" not in str(caught.value)
    assert len(collect(group, make_task(layout, DecodeConfig(paths=3), [prompt_of(0)], 3)).ids) == 1
    assert all(map(alive, before))


def test_a_killed_worker_is_an_error_in_seconds_and_nothing_is_left(
    group: RayExecutor, nap_layout: Any, make_task: Any, prompt_of: Any
) -> None:
    """The last use of the module's group: killed while it decodes, then asked once more, then closed."""
    cluster = daemons()
    assert {place.process for place in group.places} < cluster
    layout, config = nap_layout((60, 60, 60), ends=(94,)), DecodeConfig(paths=3, control_every=1)
    task = make_task(layout, config, [prompt_of(0)] * 4, 3)
    killed: list[int] = []

    def kill_one(report: Any) -> None:
        if not killed:
            os.kill(group.places[2].process, signal.SIGKILL)
            killed.append(report.step)

    for _ in ("in a run", "between runs"):
        started = time.monotonic()
        with pytest.raises(WorkerError) as caught:
            group.run(task, on_report=kill_one, cancelled=lambda: False)
        assert time.monotonic() - started < 15
        assert "\n" not in str(caught.value)
    assert killed[0] < task.plan.schedule.steps
    group.close()
    # Ray gives its raylet a second to end. Where that is not enough, its two agents outlive it for the 60 s that they
    # wait for the control store, which is gone too.
    assert gone(cluster, within=75), "processes of the cluster are left"


FROZEN = """
import os, signal, sys, time
import torch
from nap_runtime.executor import ray_executor
ray_executor.PATIENCE = 3.0
group = ray_executor.RayExecutor(sys.argv[1], workers=1, dtype=torch.float64)
from ray._private.worker import _global_node
daemons = {name: infos[0].process.pid for name, infos in _global_node.all_processes.items()}
os.kill(daemons[sys.argv[2]], signal.SIGSTOP)
started = time.monotonic()
group.close()
print(time.monotonic() - started, *daemons.values(), *(place.process for place in group.places))
"""


@pytest.mark.parametrize("daemon", ["raylet", "gcs_server"])
def test_closing_a_frozen_cluster_ends(no_cluster_given: None, model_dir: Path, daemon: str) -> None:
    """Ray's own shutdown waits for a stopped daemon for ever, and so would the end of this process."""
    command = [sys.executable, "-c", FROZEN, str(model_dir), daemon]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    seconds, *processes = done.stdout.split()
    assert float(seconds) < 30
    assert gone(set(map(int, processes)), within=10), "processes of the cluster are left"
    assert len(done.stderr.splitlines()) <= (daemon != "raylet")  # a line where Ray took longer than 3 s even so


def test_what_cannot_be_closed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon of somebody else's cluster is not ours to kill: the connection is left, and the process can end."""
    let_go, unregistered = threading.Event(), list[Any]()
    monkeypatch.setattr(ray_ending.ray, "shutdown", let_go.wait)
    monkeypatch.setattr(ray_ending, "_daemons", list)
    monkeypatch.setattr(ray_ending.atexit, "unregister", unregistered.append)
    started = time.monotonic()
    said = ray_ending.leave(0.2)
    assert time.monotonic() - started < 5
    assert said.startswith("the connection to the Ray cluster")
    assert "\n" not in said
    assert unregistered == [ray_ending.ray.shutdown]
    let_go.set()


def test_a_cluster_that_is_not_there_is_a_usage_error(no_cluster_given: None, model_dir: Path) -> None:
    with pytest.raises(UsageError) as caught:
        RayExecutor(model_dir, workers=2, dtype=torch.float64, cluster=ClusterOptions(address="127.0.0.1:1"))
    assert caught.value.field == "address"
