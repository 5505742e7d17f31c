"""What a user wants to know of a data file before training on it: sizes, variety, agreement, repeats, leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from nap_runtime.metrics.answers import canonical, extract_boxed, find_answer, same_answer
from nap_runtime.models.tokenizer import Tokenizer
from nap_trainer.data.judge import GRAM
from nap_trainer.data.leakage import EvalSet, Leak
from nap_trainer.data.read import read_rows
from nap_trainer.data.schema import TAG, BadRow, NapExample
from nap_trainer.data.texts import grams, mean_pairwise, normalised, words

SCHEMA = "nap.check/1"
_PERCENTILES = (50, 90, 99)
Count = Callable[[str], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """Slots of a path and of the summary; a text and its end tag must fit."""

    path_tokens: int
    summary_tokens: int


@dataclass(frozen=True, slots=True)
class OverBudget:
    """A text that does not fit."""

    row: int
    field: str
    needed: int
    budget: int


def word_count(text: str) -> int:
    """A stand-in for tokens where there is no tokenizer: what stands between spaces; a tag is one."""
    return len(TAG.sub("|", text).split())


def token_count(tokenizer: Tokenizer) -> Count:
    """Tokens as a tokenizer counts them."""
    return lambda text: len(tokenizer.encode(text))


@dataclass(slots=True)
class _Means:
    """Values of which the mean is reported; None has no part in it."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **values: float | None) -> None:
        for name, value in values.items():
            self.values.setdefault(name, []).extend([] if value is None else [float(value)])

    def to_json(self) -> dict[str, float | None]:
        return {name: float(np.mean(each)) if each else None for name, each in self.values.items()}


class Check:
    """Takes rows one by one; `report` says what they are like."""

    def __init__(self, budgets: Budgets, count: Count, unit: str, against: EvalSet | None = None) -> None:
        """`unit` names what `count` counts."""
        self.budgets, self.unit, self._count, self._against = budgets, unit, count, against
        self.rows = 0
        self.bad: list[BadRow] = []
        self.over: list[OverBudget] = []
        self.leaks: list[Leak] = []
        self.repeated: list[tuple[int, int]] = []
        self.same_paths: list[int] = []
        self.contradictory: list[int] = []
        self.sizes: dict[str, list[int]] = {"question": [], "path": [], "summary": []}
        self.paths: Counter[int] = Counter()
        self._variety, self._answers = _Means(), _Means()
        self._first: dict[str, int] = {}

    def read(self, file: Path) -> None:
        """Take every row of a file; UsageError or DataError as `read_rows`."""
        for row in read_rows(file):
            if isinstance(row, BadRow):
                self.bad.append(row)
            else:
                self.add(row.number, row.example)

    def add(self, number: int, example: NapExample) -> None:
        """Take one good row."""
        self.rows += 1
        self.paths[len(example.paths)] += 1
        self._measure(number, example)
        self._compare_paths(number, example)
        self._compare_answers(number, example)
        first = self._first.setdefault(normalised(example.question), number)
        if first != number:
            self.repeated.append((number, first))
        if self._against is not None:
            self.leaks.extend(self._against.leaks(number, example))

    def failed(self, *, strict: bool = False) -> bool:
        """Whether there are malformed rows or leaks; if strict, over-budget or repeated rows too."""
        minor = bool(self.over or self.repeated or self.same_paths or self.contradictory)
        return bool(self.bad or self.leaks) or (strict and minor)

    def report(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            "schema": SCHEMA,
            "rows": self.rows,
            "malformed": [{"row": bad.number, "field": bad.field, "error": bad.complaint} for bad in self.bad],
            "unit": self.unit,
            "budgets": {"path_tokens": self.budgets.path_tokens, "summary_tokens": self.budgets.summary_tokens},
            "lengths": {name: spread(sizes) for name, sizes in self.sizes.items()},
            "over_budget": [
                {"row": o.row, "field": o.field, "needed": o.needed, "budget": o.budget} for o in self.over
            ],
            "paths": {str(count): rows for count, rows in sorted(self.paths.items())},
            "diversity": self._variety.to_json(),
            "answers": {**self._answers.to_json(), "contradictory_rows": self.contradictory},
            "duplicates": {
                "questions": [{"row": row, "first": first} for row, first in self.repeated],
                "paths": self.same_paths,
            },
            "leaks": [leak.to_json() for leak in self.leaks],
        }

    # -- one row -----------------------------------------------------------------------------------

    def _measure(self, number: int, example: NapExample) -> None:
        """Slots that each text takes: the text, a line break, and the end tag."""
        self.sizes["question"].append(self._count(example.question))
        for index, path in enumerate(example.paths, start=1):
            needed = self._count(f"{path}\n</think {index}>")
            self.sizes["path"].append(needed)
            self._compare_budget(number, f"paths.{index}", needed, self.budgets.path_tokens)
        needed = self._count(f"{example.summary}\n</summary>")
        self.sizes["summary"].append(needed)
        self._compare_budget(number, "summary", needed, self.budgets.summary_tokens)

    def _compare_budget(self, row: int, name: str, needed: int, budget: int) -> None:
        if needed > budget:
            self.over.append(OverBudget(row, name, needed, budget))

    def _compare_paths(self, number: int, example: NapExample) -> None:
        split = [words(path) for path in example.paths]
        self._variety.add(jaccard=mean_pairwise(grams(each, GRAM) for each in split))
        if len(set(map(tuple, split))) < len(split):
            self.same_paths.append(number)

    def _compare_answers(self, number: int, example: NapExample) -> None:
        found = [find_answer(path) for path in example.paths]
        right = [same_answer(answer, example.answer) for answer in found]
        vote = majority(found)
        stated = [canonical(answer) for answer in found if answer is not None]
        pairs = [one == other for one, other in combinations(stated, 2)]
        self._variety.add(distinct_answers=len(set(stated)))
        self._answers.add(
            path_right=float(np.mean(right)),
            any_right=any(right),
            majority_right=vote is not None and vote == canonical(example.answer),
            pairs_agree=sum(pairs) / len(pairs) if pairs else None,
            path_without_answer=found.count(None) / len(found),
        )
        boxed = extract_boxed(example.summary)
        if boxed is not None and not same_answer(boxed, example.answer):
            self.contradictory.append(number)


def majority(answers: Sequence[str | None]) -> str | None:
    """The answer of most paths in its canonical form; the earliest path's where several are as many."""
    votes = Counter(canonical(answer) for answer in answers if answer is not None)
    return votes.most_common(1)[0][0] if votes else None


def spread(sizes: Sequence[int]) -> dict[str, float] | None:
    """Mean, percentiles and the largest."""
    if not sizes:
        return None
    marks = np.percentile(sizes, _PERCENTILES, method="inverted_cdf")
    named = {f"p{at}": int(mark) for at, mark in zip(_PERCENTILES, marks, strict=True)}
    return {"mean": float(np.mean(sizes)), **named, "max": max(sizes)}
