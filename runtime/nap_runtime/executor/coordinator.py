"""From jobs to results: lay out canvases, batch them, run the workers, put records together.

The coordinator holds ids and records only, kilobytes; weights live with the workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from nap_runtime.decoding.layout import CanvasLayout, Ids
from nap_runtime.decoding.machine import Plan
from nap_runtime.decoding.meters import RunMeters
from nap_runtime.decoding.placement import Assignment
from nap_runtime.decoding.record import CanvasDelta, DecodeRecord
from nap_runtime.errors import CancelledError, DecodeError, NapError
from nap_runtime.executor.base import Executor
from nap_runtime.job import DecodeConfig, DecodeJob, DecodeResult
from nap_runtime.metrics.answers import extract_boxed, same_answer
from nap_runtime.metrics.report import RunMetrics
from nap_runtime.models.loading import ModelCard
from nap_runtime.models.prompting import DecodeDefaults, build_layout, prompt_ids, resolve
from nap_runtime.worker import Outcome, Report, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFailure:
    """A job that could not be decoded; the others of its batch go on."""

    job: DecodeJob
    error: NapError


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Jobs whose canvases have one layout, decoded together."""

    jobs: tuple[DecodeJob, ...]
    task: Task


class Observer:
    """What a live view hangs on. Every method may be overridden; they are called in the order of events.

    `report_every`: steps between reports (None: R); a view that draws every step sets 1.
    """

    report_every: int | None = None

    def on_batch(self, batch: Batch) -> None:
        """A batch begins."""

    def on_report(self, batch: Batch, report: Report) -> None:
        """A worker has committed tokens. May be called from another thread."""

    def on_result(self, result: DecodeResult | JobFailure) -> None:
        """A job has ended."""


@dataclass(slots=True)
class _Collected:
    """Reports of one batch as they come in."""

    started: float = field(default_factory=time.perf_counter)
    deltas: dict[int, list[CanvasDelta]] = field(default_factory=dict)

    def add(self, report: Report) -> None:
        for canvas, deltas in enumerate(report.deltas):
            self.deltas.setdefault(canvas, []).extend(deltas)


class Coordinator:
    """Decodes jobs with one model on one executor.

    Args:
        card: the model the executor's workers have loaded.
        executor: the workers.
        assignment: path → worker (None: neighbours together, as even as it goes).
    """

    def __init__(self, card: ModelCard, executor: Executor, *, assignment: Assignment | None = None) -> None:
        self.card, self.executor, self._assignment = card, executor, assignment
        self._defaults = DecodeDefaults.of(card.path)

    def resolve(self, config: DecodeConfig) -> DecodeConfig:
        """The config with this model's defaults written out."""
        return resolve(config, self._defaults)

    def decode(
        self,
        jobs: Iterable[DecodeJob],
        config: DecodeConfig,
        *,
        batch_size: int = 1,
        observer: Observer | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[DecodeResult | JobFailure]:
        """Decode jobs and yield their results, batch by batch; a job that cannot be laid out is yielded as a failure.

        Raises:
            UsageError: there are more workers than paths.
            WorkerError: a worker died.
            CancelledError: `cancelled` returned true.
        """
        config = self.resolve(config)
        assignment = self._assignment or Assignment.even(config.n_paths, self.executor.workers)
        observer = observer or Observer()
        for item in self._batches(jobs, config, assignment, batch_size):
            if cancelled():
                raise CancelledError("the decode was cancelled")
            results: Sequence[DecodeResult | JobFailure]
            results = [item] if isinstance(item, JobFailure) else self.run(item, observer, cancelled)
            for result in results:
                observer.on_result(result)
                yield result

    def _batches(
        self, jobs: Iterable[DecodeJob], config: DecodeConfig, assignment: Assignment, batch_size: int
    ) -> Iterator[Batch | JobFailure]:
        """Group jobs by layout. A batch goes out when it is full, the rest at the end, oldest first."""
        waiting: dict[CanvasLayout, list[tuple[DecodeJob, tuple[int, ...]]]] = {}
        for job in jobs:
            try:
                ids = prompt_ids(self.card, job.question)
                layout = build_layout(self.card, config, len(ids))
                Plan.of(layout, config, assignment)
            except NapError as error:
                yield JobFailure(job=job, error=error)
                continue
            group = waiting.setdefault(layout, [])
            group.append((job, ids))
            if len(group) == batch_size:
                yield _batch(waiting.pop(layout), layout, config, assignment)
        for layout, group in waiting.items():
            yield _batch(group, layout, config, assignment)

    def run(self, batch: Batch, observer: Observer, cancelled: Callable[[], bool]) -> list[DecodeResult | JobFailure]:
        """Decode one batch that is laid out already.

        Raises:
            WorkerError, CancelledError: as for `decode`.
        """
        collected = _Collected()
        observer.on_batch(batch)

        def on_report(report: Report) -> None:
            collected.add(report)
            observer.on_report(batch, report)

        task = replace(batch.task, report_every=observer.report_every)
        outcomes = self.executor.run(task, on_report=on_report, cancelled=cancelled)
        seconds = time.perf_counter() - collected.started
        if any(outcome.cancelled for outcome in outcomes):
            raise CancelledError("the decode was cancelled")
        firsts = [outcome.meters.first_commit_seconds for outcome in outcomes]
        meters = RunMeters(
            workers=tuple(outcome.meters for outcome in outcomes),
            seconds=seconds,
            seconds_first_commit=min((t for t in firsts if t is not None), default=seconds),
            batch=len(batch.jobs),
        )
        return [self._result(batch, canvas, outcomes, collected, meters) for canvas in range(len(batch.jobs))]

    def _result(
        self, batch: Batch, canvas: int, outcomes: list[Outcome], collected: _Collected, meters: RunMeters
    ) -> DecodeResult | JobFailure:
        job, task = batch.jobs[canvas], batch.task
        record = DecodeRecord(
            layout=task.plan.layout,
            prompt_ids=task.prompts[canvas],
            config=task.plan.config.to_mapping(),
            assignment=task.plan.assignment,
            model={"name": self.card.name, "fingerprint": self.card.fingerprint},
            path_steps=task.plan.path_steps,
            steps=task.plan.schedule.steps,
            deltas=tuple(sorted(collected.deltas.get(canvas, []), key=lambda d: (d.step, d.worker, d.kind))),
            syncs=outcomes[0].events,
            forwards=tuple(outcome.forwards for outcome in outcomes),
            final_ids=_final_ids(task, canvas, outcomes),
        )
        if not np.array_equal(record.canvas(), record.final_ids):
            return JobFailure(job=job, error=DecodeError("the workers' canvas contradicts their reports"))
        return self._read(job, record, meters)

    def _read(self, job: DecodeJob, record: DecodeRecord, meters: RunMeters) -> DecodeResult:
        texts = [
            self.text(record.final_ids[block.slots.start : block.slots.stop], block.end_ids)
            for block in record.layout.blocks
        ]
        summary = texts[-1]
        answer = extract_boxed(summary)
        source = "summary" if record.layout.summary is not None else "region"
        tokenizer = self.card.tokenizer
        return DecodeResult(
            job=job,
            answer=answer,
            answer_source=None if answer is None else source,
            summary=summary,
            paths=tuple(texts[: record.layout.n_paths] if record.layout.summary is not None else texts),
            record=record,
            metrics=RunMetrics.of(record, meters),
            unknown_words=() if tokenizer is None else tuple(tokenizer.unknown_words(job.question)),
            correct=None if job.gold is None else same_answer(answer, job.gold),
        )

    def text(self, ids: Ids, end_ids: Sequence[int]) -> str:
        """Text of a block's slots up to its first end id; ids in brackets where the model has no tokenizer."""
        ends = np.flatnonzero(np.isin(ids, end_ids))
        content = ids[: ends[0]] if len(ends) else ids
        if self.card.tokenizer is None:
            return " ".join(f"[{token}]" for token in content)
        return self.card.tokenizer.decode(content.tolist()).strip()


def _batch(
    group: list[tuple[DecodeJob, tuple[int, ...]]], layout: CanvasLayout, config: DecodeConfig, assignment: Assignment
) -> Batch:
    jobs, prompts = zip(*group, strict=True)
    return Batch(jobs=jobs, task=Task(plan=Plan.of(layout, config, assignment), prompts=prompts))


def _final_ids(task: Task, canvas: int, outcomes: list[Outcome]) -> Ids:
    ids = task.plan.layout.initial_ids(task.prompts[canvas])
    for outcome in outcomes:
        ids[outcome.slots] = outcome.ids[canvas]
    return ids
