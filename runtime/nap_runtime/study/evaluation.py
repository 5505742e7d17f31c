"""Decode a problem set row by row, so that it can be taken up again, and sum the rows up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nap_runtime.errors import DataError
from nap_runtime.job import DecodeConfig, DecodeJob, DecodeResult
from nap_runtime.metrics.shares import PathAgreement, Share, majority, vote
from nap_runtime.study.measures import mean_of, measures_of
from nap_runtime.study.problems import Problem
from nap_runtime.study.rows import RowFile

if TYPE_CHECKING:
    from nap_runtime.executor.coordinator import Coordinator, JobFailure

_SHOWN = ("arness", "arness_corrected", "arness_canvas", "tpf", "nfe_steps")  # means in every evaluation

Extra = Callable[[list[DecodeResult]], list[Mapping[str, Any]]]
Item = tuple[Problem, "DecodeResult | JobFailure"]


def decode_rows(
    coordinator: Coordinator,
    problems: Sequence[Problem],
    config: DecodeConfig,
    rows: RowFile,
    *,
    batch_size: int = 1,
    bucket: int | None = None,
    extra: Extra | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[dict[str, Any]]:
    """Decode the problems that have no row yet, and yield their rows as they are written.

    Args:
        bucket: see `Coordinator.decode`.
        extra: further columns of some results, computed together; their rows are written after it.

    Raises:
        DataError: a row that is there already is of another question or right answer.
        UsageError, WorkerError, CancelledError: see `Coordinator.decode`.
    """
    check_rows(problems, rows)
    by_index = {problem.index: problem for problem in problems}
    jobs = [
        DecodeJob(question=problem.question, index=problem.index, id=problem.id, gold=problem.gold)
        for problem in problems
        if problem.index not in rows.rows
    ]
    waiting: list[Item] = []
    for result in coordinator.decode(jobs, config, batch_size=batch_size, bucket=bucket, cancelled=cancelled):
        waiting.append((by_index[result.job.index], result))
        if len(waiting) >= batch_size:
            yield from _write(waiting, rows, extra)
            waiting = []
    yield from _write(waiting, rows, extra)


def check_rows(problems: Sequence[Problem], rows: RowFile) -> None:
    """Check that rows which are there already are of these problems.

    Raises:
        DataError: one is of another question, or right answer.
    """
    for problem in problems:
        row = rows.rows.get(problem.index)
        if row is not None and (row.get("question"), row.get("gold")) != (problem.question, problem.gold):
            what = "question" if row.get("question") != problem.question else "right answer"
            raise DataError(f"row {problem.index} of the output is of another {what}; give another file")


def _write(items: Sequence[Item], rows: RowFile, extra: Extra | None) -> Iterator[dict[str, Any]]:
    done = [result for _, result in items if isinstance(result, DecodeResult)]
    more = iter(extra(done) if extra is not None and done else [{}] * len(done))
    for problem, result in items:
        if isinstance(result, DecodeResult):
            yield rows.add({**row_of(problem, result), **next(more)})
        else:
            yield rows.add({**_asked(problem), "error": " ".join(str(result.error).split())})


def _asked(problem: Problem) -> dict[str, Any]:
    values = {"index": problem.index, "id": problem.id, "question": problem.question, "gold": problem.gold}
    return values | dict(problem.groups)


def row_of(problem: Problem, result: DecodeResult) -> dict[str, Any]:
    """What is kept of one decode: texts, answers, order and costs."""
    answer, source = problem.read(result.summary, result.answer)
    nap = result.record.layout.summary is not None
    answers = [problem.read_path(path) for path in result.paths] if nap else []
    return {
        **_asked(problem),
        "kind": problem.kind,
        "answer": answer,
        "source": source,
        "correct": problem.is_right(answer),
        "summary": result.summary,
        "paths": list(result.paths) if nap else [],
        "path_answers": answers,
        "paths_right": [problem.is_right(one) for one in answers],
        "batch": result.metrics.batch,
        "measures": measures_of(result),
    }


def summarise(problems: Sequence[Problem], rows: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Shares of right answers with Wilson intervals: summary, each path, vote, any path, by group."""
    found = [rows[problem.index] for problem in problems]
    answers = [row.get("answer") for row in found]
    spoken: list[list[str | None]] = [list(row.get("path_answers") or []) for row in found]
    failed = sum("error" in row for row in found)
    values: dict[str, Any] = {
        "n": len(problems),
        "failed": failed,
        "no_answer": answers.count(None) - failed,
        "accuracy": _right(found).to_json(),
        **{name: mean_of([row.get("measures", {}).get(name) for row in found]) for name in _SHOWN},
        "groups": _groups(problems, rows),
    }
    width = max(map(len, spoken), default=0)
    if width:
        padded = [one or [None] * width for one in spoken]
        values |= {
            "paths": [_share(problems, [one[j] for one in padded]).to_json() for j in range(width)],
            "majority": _share(problems, [_vote(p, one) for p, one in zip(problems, padded, strict=True)]).to_json(),
            "any_path": _any_path(problems, padded).to_json(),
            "agreement": asdict(_agreement(problems, padded)),
        }
    return values


def _right(rows: Sequence[Mapping[str, Any]]) -> Share:
    return Share(sum(row.get("correct") is True for row in rows), len(rows))


def _share(problems: Sequence[Problem], answers: Sequence[str | None]) -> Share:
    return Share(sum(p.is_right(answer) for p, answer in zip(problems, answers, strict=True)), len(problems))


def _vote(problem: Problem, answers: Sequence[str | None]) -> str | None:
    """What most paths say; lists are compared word by word."""
    return majority([problem.form(answer) for answer in answers]) if problem.kind == "list" else vote(answers)


def _agreement(problems: Sequence[Problem], spoken: Sequence[Sequence[str | None]]) -> PathAgreement:
    forms = [[p.form(answer) for answer in said] for p, said in zip(problems, spoken, strict=True)]
    right = [[p.is_right(answer) for answer in said] for p, said in zip(problems, spoken, strict=True)]
    return PathAgreement.of_forms(forms, right)


def _any_path(problems: Sequence[Problem], spoken: Sequence[Sequence[str | None]]) -> Share:
    right = [any(p.is_right(answer) for answer in said) for p, said in zip(problems, spoken, strict=True)]
    return Share(sum(right), len(right))


def _groups(problems: Sequence[Problem], rows: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracy by each group that the set has."""
    names = sorted({name for problem in problems for name in problem.groups})
    values: dict[str, Any] = {}
    for name in names:
        members: dict[str, list[Mapping[str, Any]]] = {}
        for problem in problems:
            members.setdefault(problem.groups.get(name, ""), []).append(rows[problem.index])
        values[name] = {value: _right(some).to_json() for value, some in sorted(members.items())}
    return values
