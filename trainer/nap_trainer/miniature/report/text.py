"""Numbers and tables as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nap_trainer.miniature.stats import Interval

MISSING = "missing"
UNDEFINED = "–"


def number(value: float, digits: int = 3) -> str:
    """A plain number, with a proper minus sign."""
    if math.isnan(value):
        return UNDEFINED
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.replace("-", "")


def spread(interval: Interval | None, digits: int = 3) -> str:
    """`0.612 [0.580, 0.641]`."""
    if interval is None:
        return MISSING
    if math.isnan(interval.value):
        return UNDEFINED
    return f"{number(interval.value, digits)} [{number(interval.low, digits)}, {number(interval.high, digits)}]"


def signed(interval: Interval | None) -> str:
    """The same with a plus sign where it is due."""
    text = spread(interval)
    return text if interval is None or not interval.value > 0 else f"+{text}"


def p_value(p: float | None) -> str:
    """A p-value with two digits that count."""
    if p is None or math.isnan(p):
        return UNDEFINED
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; a line that says so where there are no rows."""
    if not rows:
        return ["(nothing has run)"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]
