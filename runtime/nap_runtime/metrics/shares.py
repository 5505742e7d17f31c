"""Shares of right answers with their intervals, what a path says, what several say, and whether they err together."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from nap_runtime.metrics.answers import canonical, same_answer

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_Z = 1.959963984540054  # 97.5th percentile of the normal distribution


@dataclass(frozen=True, slots=True)
class Share:
    """So many of n are right."""

    right: int
    n: int

    @classmethod
    def of(cls, answers: Sequence[str | None], golds: Sequence[str]) -> Share:
        """Compare answers with the right ones, letter by letter; None is wrong."""
        return cls(sum(a == b for a, b in zip(answers, golds, strict=True)), len(golds))

    @classmethod
    def equal(cls, answers: Sequence[str | None], golds: Sequence[str]) -> Share:
        """Compare answers with the right ones by `same_answer`; None is wrong."""
        return cls(sum(same_answer(a, b) for a, b in zip(answers, golds, strict=True)), len(golds))

    @property
    def share(self) -> float:
        """right / n; 0 of nothing."""
        return self.right / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval."""
        if not self.n:
            return 0.0, 1.0
        share, square = self.right / self.n, _Z * _Z
        middle = (share + square / (2 * self.n)) / (1 + square / self.n)
        spread = share * (1 - share) / self.n + square / (4 * self.n * self.n)
        half = _Z * math.sqrt(spread) / (1 + square / self.n)
        low = 0.0 if self.right == 0 else middle - half
        return low, 1.0 if self.right == self.n else middle + half

    def to_json(self) -> dict[str, Any]:
        """`share`, `right`, `n`, `interval`."""
        return {"share": self.share, "right": self.right, "n": self.n, "interval": list(self.interval)}


def last_number(text: str) -> str | None:
    """The number a path ends with; None where it holds none."""
    found = _NUMBER.findall(text)
    return str(found[-1]) if found else None


def majority(votes: Sequence[str | None]) -> str | None:
    """What most paths say; the earliest path's where several say as much."""
    counted = Counter(vote for vote in votes if vote is not None)
    return counted.most_common(1)[0][0] if counted else None


def vote(answers: Sequence[str | None]) -> str | None:
    """`majority` of answers that count as one when they are equal; in the first path's spelling."""
    spelled: dict[str, str] = {}
    for answer in answers:
        if answer is not None:
            spelled.setdefault(canonical(answer), answer)
    winner = majority([None if answer is None else canonical(answer) for answer in answers])
    return None if winner is None else spelled[winner]


def same_forms(one: str, other: str, *, by_word: bool = False) -> bool:
    """Whether two answers are one; `by_word` compares words in their order, where letters are no algebra."""
    if by_word:
        return one.split() == other.split()
    return canonical(one) == canonical(other)


@dataclass(frozen=True, slots=True, kw_only=True)
class PathAgreement:
    """How far the paths of problems say the same, over all pairs of paths. None where no pair counts.

    Attributes:
        agree: share of pairs, both with an answer, whose answers are equal.
        both_wrong: pairs that both answer and are both wrong; `same_wrong` the share of these with one wrong answer.
        wrong_correlation: Pearson correlation of two paths' being wrong (a path without an answer is), the mean over
            pairs of places. 0: they err independently.
    """

    agree: float | None
    both_wrong: int
    same_wrong: float | None
    wrong_correlation: float | None

    @classmethod
    def of(cls, answers: Sequence[Sequence[str | None]], golds: Sequence[str]) -> PathAgreement:
        """From each problem's path answers, and the right answers."""
        forms = [[None if a is None else canonical(a) for a in paths] for paths in answers]
        wanted = [canonical(gold) for gold in golds]
        right = [[form == gold for form in paths] for paths, gold in zip(forms, wanted, strict=True)]
        return cls.of_forms(forms, right)

    @classmethod
    def of_forms(cls, forms: Sequence[Sequence[str | None]], right: Sequence[Sequence[bool]]) -> PathAgreement:
        """From texts that are equal where answers are, and whether each is right."""
        pairs = [
            (a, b)
            for paths, known in zip(forms, right, strict=True)
            for a, b in combinations(zip(paths, known, strict=True), 2)
            if a[0] is not None and b[0] is not None
        ]
        wrong = [(a, b) for (a, a_right), (b, b_right) in pairs if not a_right and not b_right]
        return cls(
            agree=_mean([a == b for (a, _), (b, _) in pairs]),
            both_wrong=len(wrong),
            same_wrong=_mean([a == b for a, b in wrong]),
            wrong_correlation=_wrong_correlation([[not one for one in known] for known in right if known]),
        )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _wrong_correlation(wrong: Sequence[Sequence[bool]]) -> float | None:
    if not wrong:
        return None
    places = list(zip(*wrong, strict=True))
    found = [_pearson(a, b) for a, b in combinations(places, 2)]
    return _mean([value for value in found if value is not None])


def _pearson(a: Sequence[float], b: Sequence[float]) -> float | None:
    n = len(a)
    mean_a, mean_b = sum(a) / n, sum(b) / n
    var_a, var_b = sum((x - mean_a) ** 2 for x in a), sum((y - mean_b) ** 2 for y in b)
    if not var_a or not var_b:
        return None
    return sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True)) / math.sqrt(var_a * var_b)
