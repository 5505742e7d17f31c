"""Which traces of a question become its paths: pure, so that a journal and the rules always give the same rows."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from nap_runtime.errors import UsageError
from nap_runtime.metrics.answers import find_answer, same_answer
from nap_trainer.data.prompts import cleaned, summary_for
from nap_trainer.data.questions import Question
from nap_trainer.data.schema import MAX_CHARS, MAX_PATHS, NapExample
from nap_trainer.data.teachers import Trace
from nap_trainer.data.texts import Gram, grams, jaccard, words

GRAM = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is kept.

    Args:
        paths: how many a row has.
        min_paths: a row with fewer is dropped (None: `paths`).
        max_traces: traces sampled for one question at most, while paths are missing (None: twice `paths`).
        keep_wrong: share of the paths with a wrong answer, or none, that is kept; NAP trains on noisy paths too.
        similarity: two paths that share more of their word trigrams (Jaccard) are one (1: only equal ones are).
    """

    paths: int = 3
    min_paths: int | None = None
    max_traces: int | None = None
    keep_wrong: float = 1.0
    similarity: float = 0.9

    def __post_init__(self) -> None:
        if not 1 <= self.paths <= MAX_PATHS:
            raise UsageError(f"paths: {self.paths} is not from 1 to {MAX_PATHS}", field="paths")
        if not 1 <= self.least <= self.paths:
            raise UsageError(f"min_paths: {self.least} is not from 1 to --paths {self.paths}", field="min_paths")
        if self.most < self.paths:
            raise UsageError(f"max_traces: {self.most} is less than --paths {self.paths}", field="max_traces")
        for name, value in (("keep_wrong", self.keep_wrong), ("similarity", self.similarity)):
            if not 0 <= value <= 1:
                raise UsageError(f"{name}: {value} is not from 0 to 1", field=name)

    @property
    def least(self) -> int:
        """Paths that a row needs."""
        return self.paths if self.min_paths is None else self.min_paths

    @property
    def most(self) -> int:
        """Traces that a question gets."""
        return 2 * self.paths if self.max_traces is None else self.max_traces


@dataclass(frozen=True, slots=True)
class Path:
    """A trace that is kept."""

    text: str
    answer: str | None
    right: bool


@dataclass(frozen=True, slots=True)
class Judged:
    """The paths of a question, and how many traces fell away for which reason."""

    paths: tuple[Path, ...]
    dropped: Counter[str]


def judge(question: Question, traces: Mapping[int, Trace], rules: Rules) -> Judged:
    """Keep traces in their order until there are enough."""
    paths: list[Path] = []
    kept: list[frozenset[Gram]] = []
    dropped: Counter[str] = Counter()
    for number, trace in sorted(traces.items()):
        if len(paths) == rules.paths:
            dropped["not needed"] += 1
            continue
        text = cleaned(trace.text)
        shingles = grams(words(text), GRAM)
        path = _path(text, question.gold)
        reason = _fault(text, cut=trace.cut)
        if reason is None and any(jaccard(shingles, other) >= rules.similarity for other in kept):
            reason = "duplicate"
        if reason is None and not path.right and _chance(question.key, number) >= rules.keep_wrong:
            reason = "wrong"
        if reason is not None:
            dropped[reason] += 1
            continue
        paths.append(path)
        kept.append(shingles)
    return Judged(tuple(paths), dropped)


def row_of(question: Question, judged: Judged) -> NapExample:
    """The row: its summary is right even where every path is wrong."""
    return NapExample(
        id=question.id or question.key,
        question=question.text,
        paths=tuple(path.text for path in judged.paths),
        summary=summary_for(question.gold),
        answer=question.gold,
        wrong=tuple(not path.right for path in judged.paths),
        extra={"path_answers": [path.answer for path in judged.paths]},
    )


def _path(text: str, gold: str) -> Path:
    answer = find_answer(text)
    return Path(text, answer, same_answer(answer, gold))


def _fault(text: str, *, cut: bool) -> str | None:
    """Why a text can be no path."""
    if cut:
        return "cut short"
    if not text:
        return "empty"
    return "too long" if len(text) > MAX_CHARS["paths"] else None


def _chance(key: str, number: int) -> float:
    """From 0 to 1, the same for the same trace."""
    return int.from_bytes(hashlib.sha256(f"{key}:{number}".encode()).digest()[:6], "big") / 2**48
