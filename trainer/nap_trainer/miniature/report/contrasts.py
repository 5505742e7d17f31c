"""The planned comparisons (docs/study-plan.md), each with its interval, its p and what it rests on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from nap_trainer.miniature import stats
from nap_trainer.miniature.problems import Array
from nap_trainer.miniature.report.results import Results
from nap_trainer.miniature.stats import Interval

FEW, MANY = 1, 4  # tokens a step that the plan speaks of


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """One comparison: None where a part is missing. `each` holds the seeds' own differences."""

    name: str
    family: str
    interval: Interval | None
    p: float | None = None
    each: tuple[float, ...] = ()
    n: int = 0


def primary(results: Results) -> Contrast:
    """The one comparison that is outside a family."""
    return _difference(results, "primary", "cot-clamped", MANY)


def planned(results: Results) -> list[Contrast]:
    """Every comparison of the plan, in its order."""
    return [*_between(results), *_within(results)]


def adjusted(contrasts: list[Contrast], family: str) -> dict[str, float]:
    """Holm-adjusted p of a family's members that have run; missing ones count in its size."""
    members = [c for c in contrasts if c.family == family]
    known = {c.name: 1.0 if c.p is None else c.p for c in members}
    corrected = stats.holm(known)
    return {c.name: corrected[c.name] for c in members if c.p is not None}


def _between(results: Results) -> Iterator[Contrast]:
    """Different weights."""
    twin, paper = "cot-clamped", "cot"
    yield primary(results)
    yield _difference(results, "secondary", paper, MANY)
    yield _difference(results, "secondary", twin, FEW)
    yield _difference(results, "secondary", paper, FEW)
    yield _growth(results, "secondary", twin)
    yield _growth(results, "secondary", paper)


def difference(results: Results, one: str, other: str, per_step: int) -> Contrast:
    """Accuracy of one arm minus another's, over the seeds that both have."""
    seeds = results.common(one, other, per_step)
    name = f"{one} − {other}, {per_step} a step"
    return _over_seeds(
        results, name, "exploratory", seeds,
        lambda: results.right(one, per_step, seeds) - results.right(other, per_step, seeds),
    )  # fmt: skip


def _difference(results: Results, family: str, other: str, per_step: int) -> Contrast:
    found = difference(results, "nap", other, per_step)
    return Contrast(name=found.name, family=family, interval=found.interval, p=found.p, each=found.each, n=found.n)


def _growth(results: Results, family: str, other: str) -> Contrast:
    seeds = results.common("nap", other, FEW, MANY)

    def gaps() -> Array:
        gap = {k: results.right("nap", k, seeds) - results.right(other, k, seeds) for k in (FEW, MANY)}
        return np.asarray(gap[MANY] - gap[FEW])

    return _over_seeds(results, f"growth of nap − {other} from {FEW} to {MANY} a step", family, seeds, gaps)


def _over_seeds(
    results: Results, name: str, family: str, seeds: list[int], differences: Callable[[], Array]
) -> Contrast:
    if not seeds:
        return Contrast(name=name, family=family, interval=None)
    difference_sn = differences()
    interval = stats.two_level_bootstrap(difference_sn, resamples=results.study.resamples)
    each = tuple(float(value) for value in difference_sn.mean(1))
    return Contrast(name=name, family=family, interval=interval, p=interval.p, each=each, n=difference_sn.shape[1])


def _within(results: Results) -> Iterator[Contrast]:
    """Same weights, NAP's canvas: parallel-forced minus arbitrary order."""
    for weights in ("nap", "cot-clamped"):
        for per_step in (FEW, MANY):
            name = f"{weights} weights on NAP's canvas, pf − ao, {per_step} a step"
            one, other = (results.orders.get((weights, "nap", rule, per_step)) for rule in ("pf-e0", "ao-e0"))
            if one is None or other is None:
                yield Contrast(name=name, family="same weights", interval=None)
                continue
            gap = one.right_n.astype(float) - other.right_n.astype(float)
            yield Contrast(
                name=name,
                family="same weights",
                interval=stats.paired_bootstrap(gap, resamples=results.study.resamples),
                p=stats.mcnemar(one.right_n, other.right_n),
                n=len(gap),
            )
