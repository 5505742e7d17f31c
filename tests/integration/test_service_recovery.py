"""Workers that are killed or frozen in the middle of a decode: noticed in seconds, replaced, and the decode goes on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nap_runtime.cli.notes import Notes
from nap_runtime.errors import WorkerLostError
from nap_runtime.executor.coordinator import Batch, Coordinator, Observer, Recovery
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.executor.ray_executor import ClusterOptions, RayExecutor
from nap_runtime.job import DecodeConfig, DecodeJob, DecodeResult, SyncPolicy
from nap_runtime.metrics.verify import verify
from nap_runtime.models.loading import load_weights, read_card
from nap_runtime.models.shapes import make_model_dir
from nap_runtime.worker import Report

# One cluster at a time: with pytest-xdist this wants --dist loadfile.
pytestmark = pytest.mark.timeout(240)
WORKERS = 3
JOBS = [DecodeJob(question=question, index=index) for index, question in enumerate(("one two", "six ten"))]
LIVENESS = 3.0


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "random"
    make_model_dir("llada-tiny", folder, seed=0, dtype=torch.float64, scale=10.0)
    return folder


@pytest.fixture(scope="module")
def group(model_dir: Path) -> Iterator[RayExecutor]:
    patch = pytest.MonkeyPatch()
    patch.delenv("RAY_ADDRESS", raising=False)
    patch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 4}')
    options = ClusterOptions(timeout=20, liveness=LIVENESS, spares=1)
    executor = RayExecutor(model_dir, workers=WORKERS, dtype=torch.float64, cluster=options)
    yield executor
    executor.close()
    patch.undo()


@pytest.fixture(scope="module")
def undisturbed(model_dir: Path) -> Callable[[DecodeConfig], list[Any]]:
    card = read_card(model_dir)
    simulation = InlineExecutor(load_weights(card, dtype=torch.float64), workers=WORKERS, dtype=torch.float64)

    def decode(config: DecodeConfig) -> list[Any]:
        return order(list(Coordinator(card, simulation).decode(JOBS, config, batch_size=2)))

    return decode


def order(results: list[Any]) -> list[Any]:
    assert all(isinstance(result, DecodeResult) for result in results), results
    ordered = sorted(results, key=lambda result: result.job.index)
    return [[entry[:4] for entry in result.record.order()] for result in ordered]


class Strike(Observer):
    """Signals workers when a report says that a step is reached; remembers what followed."""

    def __init__(self, group: RayExecutor, ranks: list[int], step: int, sign: int) -> None:
        self._group, self._ranks, self._step, self._sign = group, ranks, step, sign
        self.struck: float | None = None
        self.recoveries: list[Recovery] = []
        self.seconds = 0.0

    def on_report(self, batch: Batch, report: Report) -> None:
        if self.struck is None and report.step >= self._step:
            self.struck = time.monotonic()
            for rank in self._ranks:
                os.kill(self._group.places[rank].process, self._sign)

    def on_recovery(self, batch: Batch, recovery: Recovery) -> None:
        assert self.struck is not None
        self.recoveries.append(recovery)
        self.seconds = time.monotonic() - self.struck


def config_of(policy: SyncPolicy) -> DecodeConfig:
    return DecodeConfig(
        paths=3, path_tokens=14, summary_tokens=6, temperature=1.0, control_every=2, sync=policy, eos_weight=0.0
    )


CASES = [
    pytest.param([1], signal.SIGKILL, SyncPolicy("exact"), "spare", id="one-killed-exact"),
    pytest.param([0], signal.SIGKILL, SyncPolicy("tokens"), "", id="the-lead-killed-tokens"),
    pytest.param([0, 2], signal.SIGKILL, SyncPolicy("shared"), "", id="two-killed-shared"),
    pytest.param([2], signal.SIGSTOP, SyncPolicy("exact"), "", id="one-frozen-exact"),
    pytest.param([1], signal.SIGKILL, SyncPolicy("kv", every=4), "", id="one-killed-kv"),
]


@pytest.mark.parametrize(("ranks", "sign", "policy", "weights"), CASES)
def test_lost_workers_are_replaced_and_no_id_changes(
    group: RayExecutor,
    undisturbed: Any,
    model_dir: Path,
    ranks: list[int],
    sign: int,
    policy: SyncPolicy,
    weights: str,
) -> None:
    """The model's folder is out of reach meanwhile: what replaces a worker has its weights from a spare or a peer."""
    card = read_card(model_dir)
    strike = Strike(group, ranks, 9, sign)
    before = [place.process for place in group.places]
    away = model_dir.rename(model_dir.with_name("away"))
    try:
        results = list(Coordinator(card, group).decode(JOBS, config_of(policy), batch_size=2, observer=strike))
    finally:
        away.rename(model_dir)
    (recovery,) = strike.recoveries
    after = [place.process for place in group.places]
    print(f"\n{ranks} {signal.Signals(sign).name}: {recovery}, noticed and repaired in {strike.seconds:.2f} s")
    assert recovery.repair.weights == (weights or recovery.repair.weights) != "disk"
    assert set(ranks) <= set(recovery.repair.lost)
    assert [b != a for b, a in zip(before, after, strict=True)] == [r in recovery.repair.lost for r in range(WORKERS)]
    assert strike.seconds < (2 * LIVENESS + 8 if sign == signal.SIGSTOP else 10)
    for result in results:
        verify(result.record)  # type: ignore[union-attr]
    if policy.mode != "kv":
        assert order(results) == undisturbed(config_of(policy))
    else:
        assert "refresh" in [event.kind for event in results[0].record.syncs]  # type: ignore[union-attr]


def test_a_worker_lost_between_jobs_is_replaced(
    group: RayExecutor, undisturbed: Any, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card, config = read_card(model_dir), config_of(SyncPolicy("exact"))
    os.kill(group.places[1].process, signal.SIGKILL)
    results = list(Coordinator(card, group).decode(JOBS, config, batch_size=2, observer=Notes()))
    assert order(results) == undisturbed(config)
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nap decode: ")]
    assert "replaced worker 1" in said
    assert said.endswith("going on from step 0")


def test_all_lost_reads_the_weights_from_disk(group: RayExecutor, undisturbed: Any, model_dir: Path) -> None:
    card, config = read_card(model_dir), config_of(SyncPolicy("exact"))
    strike = Strike(group, [0, 1, 2], 9, signal.SIGKILL)
    results = list(Coordinator(card, group).decode(JOBS, config, batch_size=2, observer=strike))
    assert [recovery.repair.weights for recovery in strike.recoveries] == ["disk"]
    assert order(results) == undisturbed(config)


def test_a_worker_that_dies_each_time_ends_the_decode(group: RayExecutor, model_dir: Path) -> None:
    class Always(Strike):
        def on_report(self, batch: Batch, report: Report) -> None:
            # Whatever step it tells of: on a busy machine the first report comes late.
            self.struck = time.monotonic()
            os.kill(self._group.places[1].process, signal.SIGKILL)

    strike = Always(group, [1], 0, signal.SIGKILL)
    config = config_of(SyncPolicy("exact"))
    with pytest.raises(WorkerLostError):
        list(Coordinator(read_card(model_dir), group).decode(JOBS, config, batch_size=2, observer=strike))
    assert 1 <= len(strike.recoveries) <= 3
