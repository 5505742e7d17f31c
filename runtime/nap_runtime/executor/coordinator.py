"""From jobs to results: lay out canvases, batch them, run the workers, put records together.

The coordinator holds ids and records only, kilobytes; weights live with the workers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nap_runtime.decoding.layout import CanvasLayout, Ids
from nap_runtime.decoding.machine import Plan
from nap_runtime.decoding.meters import RunMeters
from nap_runtime.decoding.placement import Assignment
from nap_runtime.decoding.record import DecodeRecord
from nap_runtime.errors import CancelledError, DecodeError, NapError, NoRoomError, WorkerLostError
from nap_runtime.executor.base import Executor, Repair
from nap_runtime.executor.liveness import Straggler
from nap_runtime.executor.progress import Common, Earlier, Progress
from nap_runtime.job import DecodeConfig, DecodeJob, DecodeResult, LiveAnswer, at_least
from nap_runtime.metrics.answers import extract_boxed, same_answer
from nap_runtime.metrics.report import RunMetrics
from nap_runtime.models.loading import ModelCard
from nap_runtime.models.prompting import DecodeDefaults, build_layout, prompt_ids, resolve
from nap_runtime.worker import Outcome, Report, Task

BUCKET = 32  # prompt tokens: lengths that round up to the same multiple share a batch
_REPAIRS = 2  # in a row without progress, before a decode is given up


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
    earlier: Earlier | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """A decode that goes on after a worker was lost: at which step, why, and how its group was repaired."""

    step: int
    reason: str
    repair: Repair


class Observer:
    """What a live view hangs on. Every method may be overridden; they are called in the order of events.

    `report_every`: steps between reports (None: R); a view that draws every step sets 1.
    """

    report_every: int | None = None
    report_early: bool = False

    def on_batch(self, batch: Batch) -> None:
        """A batch begins."""

    def on_report(self, batch: Batch, report: Report) -> None:
        """A worker has committed tokens. May be called from another thread."""

    def on_common(self, batch: Batch, common: Common) -> None:
        """Every worker has reported some steps: no failure takes them back. From the thread of `on_report`."""

    def on_recovery(self, batch: Batch, recovery: Recovery) -> None:
        """A worker was lost, what is not common is forgotten, and the decode goes on."""

    def on_straggler(self, batch: Batch, slow: Sequence[Straggler]) -> None:
        """These workers, and no others, are much slower than their peers now. From the thread that runs the batch."""

    def on_result(self, result: DecodeResult | JobFailure) -> None:
        """A job has ended."""


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
        bucket: int | None = None,
        observer: Observer | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[DecodeResult | JobFailure]:
        """Decode jobs and yield their results, batch by batch; a job that cannot be laid out is yielded as a failure.

        Prompts whose lengths round up to the same multiple of `bucket` share a batch (None: 32; 1: equal lengths only).

        Raises:
            UsageError: there are more workers than paths.
            WorkerError: a worker died.
            CancelledError: `cancelled` returned true.
        """
        at_least("bucket", BUCKET if bucket is None else bucket, 1)
        config = self.resolve(config)
        assignment = self._assignment or Assignment.even(config.n_paths, self.executor.workers)
        observer = observer or Observer()
        for item in self._batches(jobs, config, assignment, batch_size, bucket or BUCKET):
            if cancelled():
                raise CancelledError("the decode was cancelled")
            results: Sequence[DecodeResult | JobFailure]
            results = [item] if isinstance(item, JobFailure) else self.run(item, observer, cancelled)
            for result in results:
                observer.on_result(result)
                yield result

    def _batches(
        self,
        jobs: Iterable[DecodeJob],
        config: DecodeConfig,
        assignment: Assignment,
        batch_size: int,
        bucket: int = BUCKET,
    ) -> Iterator[Batch | JobFailure]:
        """Group jobs by their prompt's bucket. A batch goes out when it is full, the rest at the end, oldest first.

        A batch's layout is that of its longest prompt: a batch of one, or of equal lengths, has no padding.
        """
        waiting: dict[int, list[_Laid]] = {}
        for job in jobs:
            try:
                ids = prompt_ids(self.card, job.question)
                layout = build_layout(self.card, config, len(ids))
                Plan.of(layout, config, assignment)
            except NapError as error:
                yield JobFailure(job=job, error=error)
                continue
            group = waiting.setdefault(-(-len(ids) // bucket), [])
            group.append(_Laid(job, ids, layout))
            if len(group) == batch_size:
                yield _batch(waiting.pop(-(-len(ids) // bucket)), config, assignment)
        for group in waiting.values():
            yield _batch(group, config, assignment)

    def run(self, batch: Batch, observer: Observer, cancelled: Callable[[], bool]) -> list[DecodeResult | JobFailure]:
        """Decode one batch that is laid out already.

        A lost worker is replaced and the decode goes on where all had reported, unless two are lost without progress.

        Raises:
            WorkerError, CancelledError: as for `decode`.
        """
        started = time.perf_counter()
        observer.on_batch(batch)
        progress = Progress(len(batch.jobs), self.executor.workers, batch.earlier)
        outcomes = self._run(batch, progress, observer, cancelled)
        seconds = time.perf_counter() - started
        if any(outcome.cancelled for outcome in outcomes):
            raise CancelledError("the decode was cancelled")
        firsts = [outcome.meters.first_commit_seconds for outcome in outcomes]
        first = min((t for t in firsts if t is not None), default=seconds)

        def meters(canvas: int) -> RunMeters:
            workers = tuple(outcome.meters_of(canvas) for outcome in outcomes)
            return RunMeters(workers=workers, seconds=seconds, seconds_first_commit=first, batch=len(batch.jobs))

        return [self._result(batch, canvas, outcomes, progress, meters(canvas)) for canvas in range(len(batch.jobs))]

    def _run(
        self, batch: Batch, progress: Progress, observer: Observer, cancelled: Callable[[], bool]
    ) -> list[Outcome]:
        """The workers' loops, once more after every repair."""

        turn = threading.Lock()  # simulated workers report from threads of their own, and what is common has an order

        def on_report(report: Report) -> None:
            with turn:
                common = progress.add(report)
                observer.on_report(batch, report)
                if common is not None:
                    observer.on_common(batch, common)

        task = replace(batch.task, report_every=observer.report_every, report_early=observer.report_early)
        self.executor.on_straggler = lambda slow: observer.on_straggler(batch, slow)
        losses, lost_at = 0, -1
        failure: WorkerLostError | None = None
        while True:
            try:
                if failure is not None:
                    self._repair(batch, progress, observer, failure)
                    failure = None
                task = replace(task, resume=progress.roll_back())
                return self.executor.run(task, on_report=on_report, cancelled=cancelled)
            except NoRoomError:
                raise
            except WorkerLostError as error:  # of a decode, or in the middle of a repair
                losses, lost_at, failure = (losses + 1 if progress.step == lost_at else 1), progress.step, error
                if losses > _REPAIRS:
                    raise

    def _repair(self, batch: Batch, progress: Progress, observer: Observer, failure: WorkerLostError) -> None:
        """Make the group whole again, or fail as it did."""
        repair = self.executor.repair()
        if repair is None:
            raise failure
        observer.on_recovery(batch, Recovery(step=progress.step, reason=str(failure), repair=repair))

    def _result(
        self, batch: Batch, canvas: int, outcomes: list[Outcome], progress: Progress, meters: RunMeters
    ) -> DecodeResult | JobFailure:
        job, task = batch.jobs[canvas], batch.task
        record = DecodeRecord(
            layout=task.layout_of(canvas),
            prompt_ids=task.prompts[canvas],
            config=task.plan.config.to_mapping(),
            assignment=task.plan.assignment,
            model={"name": self.card.name, "fingerprint": self.card.fingerprint},
            path_steps=task.plan.path_steps,
            steps=task.plan.schedule.steps,
            deltas=progress.deltas(canvas),
            syncs=progress.events,
            forwards=tuple(
                outcome.forwards_of(canvas, steps) for outcome, steps in zip(outcomes, progress.forwards, strict=True)
            ),
            final_ids=_final_ids(task, canvas, outcomes),
        )
        if unsure := [delta.step for delta in record.deltas if np.isnan(delta.log_confidence).any()]:
            text = f"the network's scores are not numbers from step {unsure[0]} on (NaN logits)"
            return JobFailure(job=job, error=DecodeError(text))
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
            live=tuple(self._live(record)),
        )

    def _live(self, record: DecodeRecord) -> Iterator[LiveAnswer]:
        for step, ids in sorted(record.provisional.items()):
            summary = self.text(ids, record.layout.end_ids[-1])
            yield LiveAnswer(step=step, answer=extract_boxed(summary), summary=summary)

    def text(self, ids: Ids, end_ids: Sequence[int]) -> str:
        """Text of a block's slots up to its first end id; ids in brackets where the model has no tokenizer."""
        ends = np.flatnonzero(np.isin(ids, end_ids))
        content = ids[: ends[0]] if len(ends) else ids
        if self.card.tokenizer is None:
            return " ".join(f"[{token}]" for token in content)
        return self.card.tokenizer.decode(content.tolist()).strip()


@dataclass(frozen=True, slots=True)
class _Laid:
    """A job with the ids of its prompt and its canvas."""

    job: DecodeJob
    ids: tuple[int, ...]
    layout: CanvasLayout


def _batch(group: Sequence[_Laid], config: DecodeConfig, assignment: Assignment) -> Batch:
    widest = max((laid.layout for laid in group), key=lambda layout: layout.prompt_tokens)
    task = Task(plan=Plan.of(widest, config, assignment), prompts=tuple(laid.ids for laid in group))
    return Batch(jobs=tuple(laid.job for laid in group), task=task)


def _final_ids(task: Task, canvas: int, outcomes: list[Outcome]) -> Ids:
    ids = task.layout_of(canvas).initial_ids(task.prompts[canvas])
    for outcome in outcomes:
        ids[outcome.slots - task.pads[canvas]] = outcome.ids[canvas]
    return ids
