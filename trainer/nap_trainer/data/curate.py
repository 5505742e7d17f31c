"""Curation: sample what the journal lacks, in rounds, then write the rows that journal and rules give.

The rows are a function of questions, journal and rules alone. So a run may be killed at any moment: the next one
asks for what is missing and for nothing else, and other rules can be tried without a teacher.
"""

from __future__ import annotations

import json
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nap_runtime.errors import TeacherError, UsageError
from nap_runtime.models.files import atomic_path
from nap_trainer.data.journal import Journal
from nap_trainer.data.judge import Judged, Rules, judge, row_of
from nap_trainer.data.prompts import PROMPT, asked
from nap_trainer.data.questions import Question
from nap_trainer.data.teachers import Request, Teacher, Trace

Batch = Sequence[Request]
Progress = Callable[[int, int], None]  # traces that ended, traces wanted


@dataclass(slots=True)
class Tally:
    """What a curation did; `to_json` is its report."""

    questions: int = 0
    rows: int = 0
    incomplete: int = 0
    too_few: int = 0
    sampled: int = 0
    failed: int = 0
    last_failure: str | None = None
    paths: int = 0
    right: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        names = ("questions", "rows", "incomplete", "too_few", "sampled", "failed", "last_failure", "paths", "right")
        return {**{name: getattr(self, name) for name in names}, "dropped": dict(sorted(self.dropped.items()))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Curation:
    """One run.

    Args:
        questions: each once.
        out: the file of rows; the journal lies beside it as `OUT.journal`.
        teacher: where traces come from.
        rules: which of them are kept.
        template: of the prompt.
        give_up: the run ends after so many failed traces in a row (0: never).
        progress: told after every trace.
    """

    questions: Sequence[Question]
    out: Path
    teacher: Teacher
    rules: Rules
    template: str = PROMPT
    give_up: int = 20
    progress: Progress = lambda done, wanted: None

    def run(self) -> Tally:
        """Sample and write.

        Raises:
            UsageError: the output exists and is of no curation, or of another one.
            DataError: the journal is damaged.
            TeacherError: the teacher refuses every request. What was sampled stays in the journal.
        """
        journal_file = self.out.with_name(self.out.name + ".journal")
        if self.out.exists() and not journal_file.exists():
            raise UsageError(f"out: {self.out} exists and has no journal beside it; give another file", field="out")
        with Journal(journal_file, {**self.teacher.identity, "prompt": self.template}) as journal:
            tally = Tally(questions=len(self.questions))
            failed: set[str] = set()
            while wanted := [r for q in self.questions if q.key not in failed for r in self._wanted(q, journal)]:
                failed |= self._sample(wanted, journal, tally)
            self._write(journal, failed, tally)
        return tally

    def _wanted(self, question: Question, journal: Journal) -> list[Request]:
        """The next traces of a question: as many as its paths still need, within the most it may have."""
        there = journal.numbers(question.key)
        kept = len(judge(question, journal.traces(question.key), self.rules).paths) if there else 0
        free = [number for number in range(self.rules.most) if number not in there]
        prompt = asked(self.template, question.text)
        return [Request(question.key, number, prompt) for number in free[: self.rules.paths - kept]]

    def _sample(self, wanted: list[Request], journal: Journal, tally: Tally) -> set[str]:
        """One round; returns the questions of which a trace failed."""
        failed: set[str] = set()
        size, in_a_row = self.teacher.batch_size, 0
        batches = [wanted[at : at + size] for at in range(0, len(wanted), size)]
        ended = 0
        for batch, result in _each(batches, self.teacher):
            ended += len(batch)
            if isinstance(result, TeacherError):
                failed |= {request.key for request in batch}
                tally.failed += len(batch)
                tally.last_failure = str(result)
                in_a_row += len(batch)
                self._stop_if_hopeless(result, in_a_row)
            else:
                in_a_row = 0
                tally.sampled += len(batch)
                for request, trace in zip(batch, result, strict=True):
                    journal.append(request.key, request.trace, trace)
            self.progress(ended, len(wanted))
        return failed

    def _stop_if_hopeless(self, error: TeacherError, in_a_row: int) -> None:
        if error.fatal:
            raise error
        if self.give_up and in_a_row >= self.give_up:
            text = f"{in_a_row} requests failed in a row, the last: {error}; run the same command again to continue"
            raise TeacherError(text, fatal=True) from None

    def _write(self, journal: Journal, failed: set[str], tally: Tally) -> None:
        with atomic_path(self.out) as temporary, temporary.open("w", encoding="utf-8") as file:
            for question in self.questions:
                judged = judge(question, journal.traces(question.key), self.rules)
                tally.dropped += judged.dropped
                if self._counted(judged, tally, incomplete=question.key in failed):
                    row = row_of(question, judged).to_json()
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _counted(self, judged: Judged, tally: Tally, *, incomplete: bool) -> bool:
        """Count a question; whether it gives a row: only when nothing that may still come would change it."""
        enough = len(judged.paths) >= (self.rules.paths if incomplete else self.rules.least)
        if not enough:
            tally.incomplete += incomplete
            tally.too_few += not incomplete
            return False
        tally.rows += 1
        tally.paths += len(judged.paths)
        tally.right += sum(path.right for path in judged.paths)
        return True


def _each(batches: Sequence[Batch], teacher: Teacher) -> Iterator[tuple[Batch, list[Trace] | TeacherError]]:
    """Every batch with its traces or its failure, as they end.

    The threads are daemons: when the run ends early, a request that is under way does not hold up the process.
    """
    results: queue.Queue[tuple[Batch, list[Trace] | BaseException] | None] = queue.Queue()
    feed, lock, stopped = iter(batches), threading.Lock(), threading.Event()

    def work() -> None:
        while not stopped.is_set():
            with lock:
                batch = next(feed, None)
            if batch is None:
                break
            try:
                results.put((batch, teacher.sample(batch)))
            except BaseException as error:
                if not isinstance(error, TeacherError) or error.fatal:
                    stopped.set()  # here: until whoever reads the results hears of it, others would go on asking
                results.put((batch, error))
        results.put(None)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(teacher.concurrency, len(batches)))]
    for thread in threads:
        thread.start()
    running, finished = len(threads), False
    try:
        while running:
            item = results.get()
            if item is None:
                running -= 1
                continue
            batch, result = item
            if isinstance(result, BaseException) and not isinstance(result, TeacherError):
                raise result
            yield batch, result
        finished = True
    finally:
        stopped.set()
        if not finished:
            teacher.stop()
