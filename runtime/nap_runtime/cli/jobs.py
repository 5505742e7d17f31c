"""Where prompts come from: the command line, a JSONL file, or the bundled held-out problems."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nap_runtime.errors import UsageError
from nap_runtime.job import DecodeJob

_HELD_OUT = Path(__file__).resolve().parent.parent / "data" / "heldout.jsonl"
_NOT_JSON = "not JSON"


@dataclass(frozen=True, slots=True, kw_only=True)
class BadLine:
    """A line of a batch that holds no job."""

    index: int
    error: str
    id: str | None = None

    @property
    def line(self) -> int:
        """Its number, from 1."""
        return self.index + 1


def read_jobs(file: Path) -> list[DecodeJob | BadLine]:
    """One job a line: `{"question": …, "id"?, "gold"? or "answer"?}`; other keys are left alone.

    Blank lines are skipped. `index` counts them too, so that it tells the line.

    Raises:
        UsageError: the file cannot be read, is empty, or is no such file at all: no line of it is JSON, or it holds
            NUL bytes, which no JSON does.
    """
    try:
        content = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise UsageError(f"file: {file}: {error.strerror}", field="file") from error
    if not content.strip():
        raise UsageError(f"file: {file} is empty", field="file")
    jobs = [] if b"\0" in content else [_job(at, line) for at, line in enumerate(content.splitlines()) if line.strip()]
    if all(isinstance(job, BadLine) and job.error == _NOT_JSON for job in jobs):
        raise UsageError(f"file: {file} is not a text file of one problem a line (JSON lines)", field="file")
    return jobs


def _job(index: int, line: bytes) -> DecodeJob | BadLine:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return BadLine(index=index, error=_NOT_JSON)
    if not isinstance(values, dict):
        return BadLine(index=index, error="not a JSON object")
    return _job_of(index, values)


def _job_of(index: int, values: dict[str, Any]) -> DecodeJob | BadLine:
    name = _text(values.get("id"))
    question = values.get("question")
    if not isinstance(question, str):
        problem = "no 'question'" if question is None else "'question' is not a text"
        return BadLine(index=index, error=problem, id=name)
    if not question.strip():
        return BadLine(index=index, error="'question' is empty", id=name)
    gold = values.get("gold", values.get("answer"))
    if gold is not None and _text(gold) is None:
        return BadLine(index=index, error="the gold answer is neither a text nor a number", id=name)
    return DecodeJob(question=question, index=index, id=name or str(index), gold=_text(gold))


def _text(value: Any) -> str | None:
    """A text, or a number as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return value if isinstance(value, str) else str(value)


@cache
def held_out() -> tuple[dict[str, Any], ...]:
    """The bundled problems, none of which the bundled model was trained on."""
    lines = _HELD_OUT.read_text(encoding="utf-8").splitlines()
    return tuple(json.loads(line) for line in lines)


def pick_held_out(seed: int) -> tuple[DecodeJob, str]:
    """The bundled problem that a seed picks, and which it is, in words."""
    problems = held_out()
    at = seed % len(problems)
    values = problems[at]
    job = DecodeJob(question=values["question"], id=f"heldout-{at}", gold=values["answer"])
    return job, f"held-out problem {at + 1} of {len(problems)}; --seed picks another"


def questions(jobs: Iterable[DecodeJob | BadLine]) -> list[DecodeJob]:
    """The jobs among the lines."""
    return [job for job in jobs if isinstance(job, DecodeJob)]
