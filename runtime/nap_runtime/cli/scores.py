"""Shares of right answers, and what a path or several say."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_Z = 1.959963984540054  # 97.5th percentile of the normal distribution


@dataclass(frozen=True, slots=True)
class Share:
    """So many of n are right."""

    right: int
    n: int

    @classmethod
    def of(cls, answers: Sequence[str | None], golds: Sequence[str]) -> Share:
        """Compare answers with the right ones; None is wrong."""
        return cls(sum(a == b for a, b in zip(answers, golds, strict=True)), len(golds))

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
        share = self.right / self.n if self.n else 0.0
        return {"share": share, "right": self.right, "n": self.n, "interval": list(self.interval)}


def last_number(text: str) -> str | None:
    """The number a path ends with; None where it holds none."""
    found = _NUMBER.findall(text)
    return str(found[-1]) if found else None


def majority(votes: Sequence[str | None]) -> str | None:
    """What most paths say; the earliest path's where several say as much."""
    counted = Counter(vote for vote in votes if vote is not None)
    return counted.most_common(1)[0][0] if counted else None
