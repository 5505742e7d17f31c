"""That a sweep's values differ in what they run: one without a run of its own is refused, not left out in silence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from nap_runtime.errors import UsageError

Values = Mapping[str, Any]


def check_grid(where: str, grid: Mapping[str, Sequence[Any]], runs: Iterable[Values]) -> None:
    """Check that every value of a grid is in a run; a case may have set the key itself.

    Raises:
        UsageError: a value is in none.
    """
    runs = list(runs)
    for key, values in grid.items():
        for value in values:
            if not any(_same(run.get(key), value) for run in runs):
                text = f"{where}: grid: {key}: no run has {_shown(value)}, because every case sets {key} itself"
                raise UsageError(text, field=key)


def check_runs(where: str, runs: Iterable[tuple[Values, str]]) -> None:
    """Check the runs of a sweep, as settings and id: no key may have two values that give the same runs throughout.

    Raises:
        UsageError: one has; key and values are named.
    """
    runs = list(runs)
    for key in dict.fromkeys(key for values, _ in runs for key in values):
        of_value: dict[str, set[str]] = {}
        for values, run in runs:
            of_value.setdefault(_shown(values.get(key)), set()).add(run)
        for (one, its), (other, others) in combinations(of_value.items(), 2):
            if its == others:
                text = f"{where}: {key}: {one} and {other} give the same runs; leave one out"
                raise UsageError(text, field=key)


def _same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)
