"""A decode that loses a worker goes on where all had reported: same ids in the exact modes, a sound record in all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nap_runtime.decoding.placement import Assignment
from nap_runtime.errors import WorkerLostError
from nap_runtime.executor.base import Repair
from nap_runtime.executor.coordinator import Batch, Coordinator, Observer, Recovery
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.executor.progress import Common, Earlier
from nap_runtime.job import DecodeConfig, DecodeJob, DecodeResult, SyncPolicy
from nap_runtime.metrics.verify import verify
from nap_runtime.models.loading import load_weights, read_card
from nap_runtime.models.shapes import make_model_dir
from nap_runtime.worker import Report

QUESTIONS = ("one two", "six ten")
POLICIES = [
    SyncPolicy("exact"),
    SyncPolicy("exact", topology="isolated"),
    SyncPolicy("tokens"),
    SyncPolicy("tokens", every=3),
    SyncPolicy("tokens", every=3, warmup=2),
    SyncPolicy("shared"),
    SyncPolicy("shared", every=2),
    SyncPolicy("kv", every=3),
    SyncPolicy("none"),
    SyncPolicy("none", topology="isolated"),
]


def exact(policy: SyncPolicy) -> bool:
    return policy.refreshes_every_step or (policy.mode == "none" and policy.sees == "isolated")


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("models") / "random"
    make_model_dir("llada-tiny", folder, seed=0, dtype=torch.float64, scale=10.0)
    return read_card(folder)


@pytest.fixture(scope="module")
def weights(card: Any) -> Any:
    return load_weights(card, dtype=torch.float64)


class Flaky:
    """Simulated workers, one of which is lost when a report says that a given step is reached; one loss a run."""

    def __init__(self, weights: Any, workers: int, lost_at: list[tuple[int, int]]) -> None:
        self._inner = InlineExecutor(weights, workers=workers, dtype=torch.float64)
        self.workers, self.places = workers, self._inner.places
        self._lost_at = list(lost_at)
        self.repairs = 0

    def run(self, task: Any, *, on_report: Callable[[Report], None], cancelled: Callable[[], bool]) -> Any:
        worker, step = self._lost_at.pop(0) if self._lost_at else (-1, 0)

        def report(given: Report) -> None:
            if given.worker == worker and given.step >= step:
                raise WorkerLostError(f"worker {worker} died")
            on_report(given)

        return self._inner.run(task, on_report=report, cancelled=cancelled)

    def repair(self) -> Repair:
        self.repairs += 1
        return Repair(lost=(0,), seconds=0.1, weights="peer")

    def close(self) -> None:
        pass


class Watching(Observer):
    def __init__(self) -> None:
        self.common: list[Common] = []
        self.recoveries: list[Recovery] = []

    def on_common(self, batch: Batch, common: Common) -> None:
        self.common.append(common)

    def on_recovery(self, batch: Batch, recovery: Recovery) -> None:
        self.recoveries.append(recovery)


def batch_of(coordinator: Coordinator, config: DecodeConfig, workers: int) -> Batch:
    jobs = [DecodeJob(question=question, index=index) for index, question in enumerate(QUESTIONS)]
    config = coordinator.resolve(config)
    (batch,) = coordinator._batches(jobs, config, Assignment.even(config.n_paths, workers), len(jobs))
    assert isinstance(batch, Batch)
    return batch


def decode(card: Any, executor: Any, config: DecodeConfig, **more: Any) -> tuple[list[DecodeResult], Watching]:
    coordinator, observer = Coordinator(card, executor), Watching()
    batch = replace(batch_of(coordinator, config, executor.workers), **more)
    results = coordinator.run(batch, observer, lambda: False)
    assert all(isinstance(result, DecodeResult) for result in results), results
    return results, observer  # type: ignore[return-value]


def ids(results: list[DecodeResult]) -> list[list[int]]:
    return [result.record.final_ids.tolist() for result in results]


def order(results: list[DecodeResult]) -> list[list[list[float]]]:
    return [[entry[:4] for entry in result.record.order()] for result in results]


CONFIG = {"paths": 3, "path_tokens": 7, "summary_tokens": 5, "temperature": 1.0, "control_every": 2}


@pytest.mark.parametrize("lost", [[(0, 1)], [(2, 8), (0, 14)], [(0, 22), (0, 25)]], ids=str)
@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{p.mode}-{p.sees}-K{p.period}-w{p.warmup}")
def test_a_lost_worker_costs_no_answer(
    card: Any, weights: Any, policy: SyncPolicy, lost: list[tuple[int, int]]
) -> None:
    config = DecodeConfig(**CONFIG, sync=policy)  # type: ignore[arg-type]
    undisturbed, _ = decode(card, InlineExecutor(weights, workers=3, dtype=torch.float64), config)
    executor = Flaky(weights, 3, lost)
    recovered, observer = decode(card, executor, config)
    assert [r.step % 2 for r in observer.recoveries] == [0] * executor.repairs
    assert executor.repairs == len(lost)
    for result in recovered:
        verify(result.record)
        refreshes = [event.step for event in result.record.syncs if event.kind == "refresh"]
        assert refreshes == sorted({r.step for r in observer.recoveries if r.step > 0})
    if exact(policy):
        assert ids(recovered) == ids(undisturbed)
        assert order(recovered) == order(undisturbed)
        assert recovered[0].metrics.nfe.steps == undisturbed[0].metrics.nfe.steps
    steps = [step for common in observer.common for step in (common.since, common.step)]
    assert steps[0] == 0
    assert steps == sorted(steps), "what was common is never taken back"


@pytest.mark.parametrize("rule", ["confidence", "random"])
@pytest.mark.parametrize("mode", ["exact", "tokens"])
def test_rules_over_the_canvas_recover(card: Any, weights: Any, rule: Any, mode: Any) -> None:
    config = DecodeConfig(**CONFIG, rule=rule, scope="canvas", sync=SyncPolicy(mode))  # type: ignore[arg-type]
    undisturbed, _ = decode(card, InlineExecutor(weights, workers=3, dtype=torch.float64), config)
    recovered, _ = decode(card, Flaky(weights, 3, [(1, 6), (2, 16)]), config)
    assert order(recovered) == order(undisturbed)
    verify(recovered[0].record)


OTHERS = [
    {"rule": "threshold", "scope": "path"},
    {"rule": "threshold", "scope": "canvas"},
    {"rule": "factor", "scope": "path", "sync": SyncPolicy("tokens")},
    {"rule": "p2", "scope": "canvas"},
    {"cfg": 0.5},
    {"sync": SyncPolicy("tokens", every=2, overlap=True)},
    {"sync": SyncPolicy("kv", every=2, overlap=True)},
    {"sync": SyncPolicy("none", summary="consensus")},
    {"sync": SyncPolicy("tokens", every=3, summary="live")},
    {"sync": SyncPolicy("tokens", summary="live")},
]


@pytest.mark.parametrize("options", OTHERS, ids=str)
def test_other_rules_and_summaries_recover(card: Any, weights: Any, options: dict[str, Any]) -> None:
    config = DecodeConfig(**{**CONFIG, **options})  # type: ignore[arg-type]
    undisturbed, _ = decode(card, InlineExecutor(weights, workers=3, dtype=torch.float64), config)
    executor = Flaky(weights, 3, [(1, 4), (0, 8), (0, 22)])
    recovered, _ = decode(card, executor, config)
    assert executor.repairs
    for result in recovered:
        verify(result.record)
    if exact(config.sync):
        assert order(recovered) == order(undisturbed)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_caches_recover(card: Any, weights: Any, cache: Any) -> None:
    config = DecodeConfig(layout="plain", gen_length=24, rule="blockwise", block_length=8, cache=cache, control_every=3)
    recovered, _ = decode(card, Flaky(weights, 1, [(0, 9), (0, 15)]), config)
    verify(recovered[0].record)


def test_one_worker_and_a_plain_canvas_recover(card: Any, weights: Any) -> None:
    config = DecodeConfig(layout="plain", gen_length=20, rule="confidence", control_every=3, temperature=0.5)
    undisturbed, _ = decode(card, InlineExecutor(weights, dtype=torch.float64), config)
    recovered, _ = decode(card, Flaky(weights, 1, [(0, 9), (0, 15)]), config)
    assert order(recovered) == order(undisturbed)


def test_without_progress_two_repairs_are_enough(card: Any, weights: Any) -> None:
    executor = Flaky(weights, 3, [(1, 6)] * 9)
    with pytest.raises(WorkerLostError):
        decode(card, executor, DecodeConfig(**CONFIG))  # type: ignore[arg-type]
    assert executor.repairs == 2


@pytest.mark.parametrize("policy", [SyncPolicy("exact"), SyncPolicy("kv", every=3)], ids=str)
def test_another_coordinator_goes_on_from_what_was_common(card: Any, weights: Any, policy: SyncPolicy) -> None:
    """The first coordinator dies with all its workers; the second knows only what the first had handed on."""
    config = DecodeConfig(**CONFIG, sync=policy)  # type: ignore[arg-type]
    undisturbed, _ = decode(card, InlineExecutor(weights, workers=3, dtype=torch.float64), config)
    first = Flaky(weights, 3, [(0, 13)])
    first.repair = lambda: None  # type: ignore[method-assign, assignment, return-value]
    observer = Watching()
    coordinator = Coordinator(card, first)
    with pytest.raises(WorkerLostError):
        coordinator.run(batch_of(coordinator, config, 3), observer, lambda: False)
    known = observer.common
    assert known[-1].step == 12
    earlier = Earlier(
        step=known[-1].step,
        deltas=tuple(tuple(d for common in known for d in common.deltas[canvas]) for canvas in range(2)),
        forwards=tuple(tuple(s for common in known for s in common.forwards[worker]) for worker in range(3)),
        events=tuple(event for common in known for event in common.events),
    )
    second, _ = decode(card, InlineExecutor(weights, workers=3, dtype=torch.float64), config, earlier=earlier)
    for result in second:
        verify(result.record)
    if exact(policy):
        assert order(second) == order(undisturbed)
    assert second[0].metrics.nfe.total >= undisturbed[0].metrics.nfe.total - 3


def test_scores_that_are_no_numbers_fail_their_job_alone(card: Any, tmp_path: Path) -> None:
    """One token of the vocabulary has a broken embedding; only the prompt that holds it suffers."""
    broken = load_weights(card, dtype=torch.float64)
    letter = ord("x") % card.config.vocab_size
    with torch.no_grad():
        next(p for name, p in broken.named_parameters() if p.shape[0] == card.config.vocab_size)[letter] = torch.nan
    coordinator = Coordinator(card, InlineExecutor(broken, workers=3, dtype=torch.float64))
    jobs = [DecodeJob(question=q, index=i) for i, q in enumerate(("one two", "six ten", "two one"))]
    failed, *others = sorted(
        coordinator.decode(jobs, DecodeConfig(**CONFIG), batch_size=3),  # type: ignore[arg-type]
        key=lambda result: isinstance(result, DecodeResult),
    )
    assert "NaN" in str(failed.error)  # type: ignore[union-attr]
    assert failed.job.question == "six ten"
    assert [isinstance(other, DecodeResult) for other in others] == [True, True]
    assert not np.isnan(others[0].record.order()[0][4]).any()  # type: ignore[union-attr]
