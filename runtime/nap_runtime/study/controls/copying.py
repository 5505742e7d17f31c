"""Copying: a wrong number on the way of path 1, and how often the other paths write it too.

Path 1 is given a right text in which one number that it works out is replaced, everywhere, by a number that stands
nowhere in the problem. The base rate is how often the same paths write the same number when nothing is given. What is
left of the rate above it came from path 1, through syncs: with one path a worker and sync `none` it must be nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nap_runtime.errors import DataError
from nap_runtime.job import DecodeResult, SyncPolicy
from nap_runtime.study.controls.cases import Case, intermediate, mentions, replaced, strange_numbers
from nap_runtime.study.controls.decoding import Given, Lab
from nap_runtime.study.measures import bootstrap, mean_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """A case, the text that path 1 is given, and the strange number in it."""

    case: Case
    text: str
    number: str

    @property
    def given(self) -> Given:
        """Path 1's text."""
        return {0: self.text}


def plant(cases: Sequence[Case], *, seed: int = 0) -> list[Planted]:
    """Plant a number in path 1 of every case whose path 1 works one out.

    Raises:
        DataError: no case does, or a canvas has one path.
    """
    planted = []
    for case in cases:
        if len(case.right) < 2:
            raise DataError("copying: it takes two paths")
        right = intermediate(case, 0)
        if right is None:
            continue
        known = (case.problem.question, case.problem.gold, *case.right)
        (number,) = strange_numbers(right, 1, known=known, seed=f"copying/{seed}/{case.problem.id}")
        planted.append(Planted(case=case, text=replaced(case.right[0], right, number), number=number))
    if not planted:
        raise DataError("copying: no path 1 works out a number on its way")
    return planted


def share_of_others(planted: Planted, result: DecodeResult) -> float:
    """The share of the paths after the first that write the planted number."""
    others = result.paths[1:]
    return sum(mentions(text, planted.number) for text in others) / len(others)


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """Rates over problems: with the number planted, without, and the difference with its bootstrap interval."""

    n: int
    planted: float
    base: float
    difference: float
    interval: tuple[float, float]

    @classmethod
    def of(cls, planted: Sequence[float], base: Sequence[float]) -> Copied:
        """From each problem's share with and without it."""
        differences = [a - b for a, b in zip(planted, base, strict=True)]
        low, high = bootstrap(differences)
        rates = [mean_of(values) or 0.0 for values in (planted, base, differences)]
        return cls(
            n=len(planted), planted=rates[0], base=rates[1], difference=rates[2], interval=(low or 0.0, high or 0.0)
        )


def copying(
    lab: Lab, cases: Sequence[Case], policies: Mapping[str, SyncPolicy], *, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """`Copied` under every policy, by its name, with the age of what was read and the summary's accuracy.

    Raises:
        DataError, UsageError: see `plant` and `Lab.decode`.
    """
    planted = plant(cases, seed=seed)
    return {name: _measured(lab, planted, policy) for name, policy in policies.items()}


def _measured(lab: Lab, planted: Sequence[Planted], policy: SyncPolicy) -> dict[str, Any]:
    own = lab.with_config(lab.config.with_values(sync=policy))
    cases = [one.case for one in planted]
    with_it = own.decode(cases, [one.given for one in planted])
    without = own.decode(cases)
    copied = Copied.of(
        [share_of_others(one, result) for one, result in zip(planted, with_it, strict=True)],
        [share_of_others(one, result) for one, result in zip(planted, without, strict=True)],
    )
    ages = [None if r.metrics.sync.staleness is None else r.metrics.sync.staleness.mean for r in with_it]
    return {
        "n": copied.n,
        "planted": copied.planted,
        "base": copied.base,
        "difference": copied.difference,
        "interval": list(copied.interval),
        "staleness": mean_of(ages),
        "accuracy_planted": _accuracy(cases, with_it),
        "accuracy_base": _accuracy(cases, without),
    }


def _accuracy(cases: Sequence[Case], results: Sequence[DecodeResult]) -> float:
    pairs = zip(cases, results, strict=True)
    right = [c.problem.is_right(c.problem.read(r.summary, r.answer)[0]) for c, r in pairs]
    return sum(right) / len(right)
