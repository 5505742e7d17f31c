"""Where the miniature agrees with the paper and where it does not, decided by intervals alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from nap_trainer.miniature import stats
from nap_trainer.miniature.report import contrasts
from nap_trainer.miniature.report.contrasts import Contrast
from nap_trainer.miniature.report.results import Results
from nap_trainer.miniature.report.tables import AO, HEADLINE, arness_of
from nap_trainer.miniature.report.text import signed, spread
from nap_trainer.miniature.stats import Interval

AGREES, DISAGREES, OPEN, MISSING, FEW_SEEDS = "agrees", "disagrees", "undecided", "missing", "too few seeds"
ENOUGH_SEEDS = 3  # with fewer, how far trainings differ among themselves is not in the interval
SMALL = 0.02  # differences within ±2 points count as none
NEAR_LEFT_TO_RIGHT = 0.7


@dataclass(frozen=True, slots=True)
class Claim:
    """What the paper says, what was found, and the verdict."""

    paper: str
    found: str
    verdict: str


def claims(results: Results) -> list[Claim]:
    """Every claim of the plan, in its order."""
    return list(_claims(results))


def _claims(results: Results) -> Iterator[Claim]:
    by_name = {one.name: one for one in contrasts.planned(results)}
    for say, name in (
        ("NAP is more accurate than its twin with a clamped answer at 4 tokens a step", "nap − cot-clamped, 4 a step"),
        ("NAP is more accurate than Long-CoT at 4 tokens a step", "nap − cot, 4 a step"),
        ("NAP is more accurate than Long-CoT at 1 token a step", "nap − cot, 1 a step"),
        ("the gap to Long-CoT grows from 1 to 4 tokens a step", "growth of nap − cot from 1 to 4 a step"),
        ("the same gap, to the twin with a clamped answer", "growth of nap − cot-clamped from 1 to 4 a step"),
    ):
        yield _between(say, by_name[name])
    pf = by_name["nap weights on NAP's canvas, pf − ao, 4 a step"].interval
    yield _positive("parallel-forced beats arbitrary order on NAP's weights at 4 tokens a step (first seed)", pf)
    base = by_name["cot-clamped weights on NAP's canvas, pf − ao, 4 a step"].interval
    yield _negative("parallel-forced harms weights that were not trained for it (first seed)", base)
    yield from _orders(results)
    one, three = contrasts.difference(results, "nap-2", "short", 1), contrasts.difference(results, "nap", "nap-2", 1)
    yield _between("two paths are more accurate than one, at 1 token a step", one)
    yield _between("three paths are more accurate than two, at 1 token a step", three)


def _orders(results: Results) -> Iterator[Claim]:
    """Claims about order: first seed, order settings, one token a step."""
    chain, paths = (results.orders.get((arm, arm, AO, 1)) for arm in ("cot", "nap"))
    found = None if chain is None else arness_of(chain, "set_content")
    high = _above(found, NEAR_LEFT_TO_RIGHT)
    yield Claim("arbitrary order on chains is nearly left to right", f"`cot`: ARness {spread(found)}", high)
    if chain is None or paths is None:
        yield Claim("paths are decoded less from left to right than chains", "", MISSING)
    else:
        say = "arbitrary order is more left to right on chains than on paths"
        for reading, figure in (("canvas", "set_content"), ("per path, chance-corrected", "path_corrected")):
            gap = stats.mean_interval(chain.figure(figure) - paths.figure(figure))
            yield _positive(f"{say} ({reading})", gap)
    inside = None if paths is None else arness_of(paths, HEADLINE)
    yield Claim(
        "order within a path is free", f"`nap`: per-path ARness {spread(inside)}", _below(inside, NEAR_LEFT_TO_RIGHT)
    )
    random = results.orders.get(("cot", "cot", "random", 1))
    if chain is None or random is None:
        yield Claim("random order costs accuracy", "", MISSING)
    else:
        loss = stats.paired_bootstrap(random.right_n.astype(float) - chain.right_n.astype(float))
        yield _negative("random order costs accuracy (`cot`, against arbitrary order)", loss)


def _between(paper: str, found: Contrast) -> Claim:
    """Accuracy of different weights: nothing is decided by less than `ENOUGH_SEEDS` trainings of each."""
    claim = _positive(paper, found.interval)
    if claim.verdict in (MISSING, OPEN) or len(found.each) >= ENOUGH_SEEDS:
        return claim
    return replace(claim, verdict=FEW_SEEDS)


def _positive(paper: str, found: Interval | None) -> Claim:
    return Claim(paper, signed(found), _verdict(found, lambda i: i.low > 0))


def _negative(paper: str, found: Interval | None) -> Claim:
    return Claim(paper, signed(found), _verdict(found, lambda i: i.high < 0))


def _verdict(found: Interval | None, holds: Callable[[Interval], bool]) -> str:
    """Agrees where the interval lies on the claim's side; disagrees on the other side of 0, or within ±2 points.

    An interval without width says nothing: every problem had the same outcome on both sides.
    """
    if found is None:
        return MISSING
    if found.low == found.high:
        return OPEN
    if holds(found):
        return AGREES
    within = found.low > -SMALL and found.high < SMALL
    return DISAGREES if within or found.low > 0 or found.high < 0 else OPEN


def _above(found: Interval | None, line: float) -> str:
    if found is None:
        return MISSING
    return AGREES if found.low > line else DISAGREES if found.high < line else OPEN


def _below(found: Interval | None, line: float) -> str:
    return {AGREES: DISAGREES, DISAGREES: AGREES}.get(_above(found, line), _above(found, line))
