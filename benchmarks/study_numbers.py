"""Numbers of the study's page: shares and means with intervals, paired differences, tables.

Shapes: n problems, B resamples. Every interval is 95%, over problems; differences are paired by problem, so both runs
must have decoded the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from nap_runtime.errors import UsageError
from nap_runtime.study.pack import Packed

Row = Mapping[str, Any]
Floats = npt.NDArray[np.float64]
RESAMPLES = 2000
MEASURES = ("accuracy", "arness", "path_accuracy", "path_agree", "path_same_wrong")
NONE = "–"


@dataclass(frozen=True, slots=True)
class Run:
    """A run and the study that it is in."""

    packed: Packed
    row: Row

    @property
    def arrays(self) -> Mapping[str, Any]:
        """Its problems."""
        return self.packed.problems[self.row["run_id"]]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its 95% interval; NaN where it is undefined."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or −1 where the interval leaves out 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)


@cache
def _counts(n: int) -> Floats:
    """How often each of n problems is drawn, [B, n]."""
    return np.random.default_rng(0).multinomial(n, [1 / n] * n, size=RESAMPLES).astype(np.float64)


def ratio_parts(run: Run, measure: str) -> tuple[Floats, Floats]:
    """Per problem what is counted, and out of how much: the measure is Σ one / Σ other. Shapes [n]."""
    arrays = run.arrays
    if measure == "accuracy":
        return (arrays["correct"] == 1).astype(np.float64), np.ones(len(arrays["correct"]))
    if measure == "arness":
        known = ~np.isnan(arrays["arness"])
        return np.where(known, arrays["arness"], 0.0).astype(np.float64), known.astype(np.float64)
    if measure == "path_accuracy":
        paths = arrays["paths"]
        return (paths == 1).sum(1).astype(np.float64), np.full(len(paths), float(paths.shape[1]))
    if measure == "path_agree":
        return arrays["same"].astype(np.float64), arrays["pairs"].astype(np.float64)
    raise UsageError(f"no problems are kept of '{measure}'")


def estimate(run: Run, measure: str) -> Interval:
    """A measure of one run, by bootstrap over problems."""
    return _interval(*(_resampled(run, measure)))


def difference(one: Run, other: Run, measure: str) -> Interval:
    """One run's measure minus the other's, paired by problem.

    Raises:
        UsageError: the runs are of other problems.
    """
    for key in ("problems_set", "problems_seed", "problems_options", "n"):
        if one.row.get(key) != other.row.get(key):
            raise UsageError(f"{key}: {one.row.get(key)} and {other.row.get(key)} cannot be paired")
    (a, sa), (b, sb) = _resampled(one, measure), _resampled(other, measure)
    return _interval(a - b, sa - sb)


def _resampled(run: Run, measure: str) -> tuple[float, Floats]:
    of, out_of = ratio_parts(run, measure)
    if not out_of.sum():
        return float("nan"), np.full(RESAMPLES, np.nan)
    counts = _counts(len(of))
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(of.sum() / out_of.sum()), (counts @ of) / (counts @ out_of)


def _interval(value: float, samples: Floats) -> Interval:
    if np.isnan(value) or np.isnan(samples).all():
        return Interval(float("nan"), float("nan"), float("nan"))
    low, high = np.nanpercentile(samples, [2.5, 97.5])
    return Interval(value, float(low), float(high))


# -- texts -----------------------------------------------------------------------------------------


def number(value: float | None, digits: int = 3) -> str:
    """A number, with a proper minus sign; a dash for none."""
    if value is None or np.isnan(value):
        return NONE
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.replace("-", "")


def spread(found: Interval) -> str:
    """`0.612 [0.580, 0.641]`."""
    if np.isnan(found.value):
        return NONE
    return f"{number(found.value)} [{number(found.low)}, {number(found.high)}]"


def signed(found: Interval) -> str:
    """The same with a plus sign where it is due."""
    return f"+{spread(found)}" if found.value > 0 else spread(found)


def moves(found: Interval, up: str = "rises", down: str = "falls") -> str:
    """A difference in words. One whose interval holds 0 may be there all the same: it cannot be told from 0."""
    if np.isnan(found.value):
        return "is undefined"
    word = {1: up, -1: down, 0: "cannot be told from unchanged"}[found.sign]
    return f"{word} ({signed(found)})"


def cell(run: Run, measure: str) -> str:
    """One metric of a run as it stands in a table."""
    if measure == "accuracy":  # Wilson's interval, as in the study's own table
        return spread(Interval(*(run.row[key] for key in ("accuracy", "accuracy_low", "accuracy_high"))))
    if measure in ("arness", "path_accuracy", "path_agree"):
        return spread(estimate(run, measure))
    value = run.row.get(measure)
    if isinstance(value, float) and (measure.endswith("bytes") or measure == "bytes_per_token"):
        return f"{value:,.0f}"
    return str(value) if isinstance(value, int) else number(value, 2 if measure in ("tpf", "staleness_mean") else 3)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    if not rows:
        return ["(no run of it is finished)"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


def run_table(runs: Sequence[Run], keys: Mapping[str, Callable[[Row], str]], measures: Mapping[str, str]) -> list[str]:
    """A table of runs: `keys` name them, `measures` are columns by their heads."""
    rows = [
        [*(name(run.row) for name in keys.values()), *(cell(run, measure) for measure in measures.values())]
        for run in runs
    ]
    return table([*keys, *measures], rows)
