"""What can be set about the study problems, and the token counts that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from nap_runtime.errors import UsageError

N_PATHS = 3
LIMIT = 99
"""The largest number; the smallest is 1 in a right chain, 0 in a wrong one."""
MAX_PRODUCT = 9
"""The largest product of a problem's multipliers: one digit, and 11 · 9 is still below 100."""
DEPTHS = (2, 8)
MAX_DISTRACTORS = 3

SENTENCE_TOKENS = 7
QUESTION_TOKENS = 5
SUMMARY_TOKENS = 7

_WHOLE = {"min_depth": DEPTHS, "max_depth": DEPTHS, "operand": (1, 50), "distractors": (0, MAX_DISTRACTORS)}
_SHARES = ("times", "slip", "hard_slip", "correlation")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyConfig:
    """How hard the problems are, and how often their paths go wrong. Every knob moves one thing.

    Args:
        min_depth, max_depth: operations between the given number and the asked one, drawn uniformly; 2 to 8.
        operand: the largest number that is added or taken away, 1 to 50.
        times: share of operations that multiply (by 2 or 3), as long as the product of multipliers is at most 9.
        distractors: sentences about persons who are not on the way to the asked one, in every problem; 0 to 3.
        slip: probability that a path slips at an easy step.
        hard_slip: the same at a hard step: a carry, a borrow, a multiplication.
        correlation: probability that a path takes a step's slip (and the wrong number) from the problem instead
            of from a draw of its own. It leaves the error rate as it is.
    """

    min_depth: int = 2
    max_depth: int = 8
    operand: int = 30
    times: float = 0.4
    distractors: int = 0
    slip: float = 0.03
    hard_slip: float = 0.10
    correlation: float = 0.8

    def __post_init__(self) -> None:
        for name, (low, high) in _WHOLE.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise UsageError(f"{name}: {value!r} is not a whole number from {low} to {high}", field=name)
        for name in _SHARES:
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
                raise UsageError(f"{name}: {value!r} is not a number from 0 to 1", field=name)
        if self.min_depth > self.max_depth:
            raise UsageError(f"min_depth: {self.min_depth} exceeds max_depth {self.max_depth}", field="min_depth")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build from parsed YAML or JSON; UsageError for an unknown key or a wrong value."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise UsageError(f"{key}: unknown key; known are {', '.join(known)}", field=str(key))
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Every knob as a plain value."""
        return asdict(self)

    @property
    def depths(self) -> range:
        """Every depth."""
        return range(self.min_depth, self.max_depth + 1)

    def prompt_tokens(self, depth: int) -> int:
        """Tokens of a question: a sentence each for the given number, every operation and every distractor."""
        return SENTENCE_TOKENS * (1 + depth + self.distractors) + QUESTION_TOKENS

    def path_tokens(self, depth: int) -> int:
        """Tokens of the longest path of a depth, end tag not counted."""
        return max(method_tokens(depth))


def method_tokens(depth: int) -> tuple[int, int, int]:
    """Tokens of a path by each of METHODS, end tag not counted."""
    return 6 * depth + 5, 4 * depth + 6, 5 * depth + 11
