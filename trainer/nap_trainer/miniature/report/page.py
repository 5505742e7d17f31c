"""The page itself: headings, what is held constant, tables, plots, costs, and what is missing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import yaml

from nap_runtime.models.files import write_text_atomic
from nap_trainer.miniature.driver import Driver
from nap_trainer.miniature.report import contrasts, plots, tables
from nap_trainer.miniature.report.claims import AGREES, DISAGREES, ENOUGH_SEEDS, FEW_SEEDS, MISSING, OPEN, Claim, claims
from nap_trainer.miniature.report.contrasts import MANY
from nap_trainer.miniature.report.results import Results
from nap_trainer.miniature.report.text import signed, spread, table

VERDICTS = {
    AGREES: "agree",
    DISAGREES: "disagree",
    OPEN: "are undecided",
    FEW_SEEDS: "have too few seeds",
    MISSING: "are missing",
}
PLANNED = (0.4, 0.8)
"""Where the plan wants the twin's accuracy at 1 token a step."""


def render(driver: Driver, out: Path, *, processes: int = 0) -> Results:
    """Grade, draw and write the page; plots go into a folder beside it with the page's name."""
    results = Results.collect(driver, processes=processes or os.cpu_count() or 1)
    folder = out.with_suffix("")
    pictures = [f"{folder.name}/{path.name}" for path in plots.draw(results, folder)]
    write_text_atomic(out, "\n".join(_page(results, pictures)) + "\n")
    return results


def _page(results: Results, pictures: list[str]) -> Iterator[str]:
    yield "# The paper's result in miniature"
    yield ""
    yield "Rendered from stored arrays by `python -m nap_trainer.miniature report`: only the paper's figures are typed."
    yield "What is compared and why stands in [study-plan.md](study-plan.md), which was written first."
    yield ""
    found = claims(results)  # bootstraps: some seconds
    yield from _in_short(results, found)
    yield from _setting(results)
    yield from _disagreements(results, found)
    yield from _planned(results)
    yield from _paper_tables(results, pictures)
    yield from _beyond(results, pictures)
    yield from _costs(results)


def _in_short(results: Results, found: list[Claim]) -> Iterator[str]:
    """The primary contrast and how many claims went which way, before everything else."""
    primary, verdicts = contrasts.primary(results), [claim.verdict for claim in found]
    counts = ", ".join(f"{verdicts.count(one)} {say}" for one, say in VERDICTS.items() if one in verdicts)
    yield "**In short.** Primary contrast, accuracy of NAP minus its twin with a clamped answer (one chain),"
    yield f"{_a_step(MANY)}: {signed(primary.interval)}, {len(primary.each)} seeds of each, {primary.n:,} problems."
    yield f"Claims of the paper: {counts}."
    yield ""


def _setting(results: Results) -> Iterator[str]:
    study = results.study
    yield "## Setting"
    yield ""
    yield f"{study.train:,} problems for training, {study.dev:,} for development, {study.test:,} for the test,"
    yield f"of which the first {study.order:,} also for the order settings. Decoding: {study.dtype}, greedy, sync"
    yield "`exact`. Problems and training, the same for every arm:"
    yield ""
    given = {"problem_set": dict(study.problem_set), "training": dict(study.training)}
    yield from (f"    {line}" for line in yaml.safe_dump(given, sort_keys=False).splitlines())
    yield ""
    yield f"Every canvas has {study.geometry.rows} rows behind its prompt."
    yield ""
    yield "An entry is a share with its 95% interval: over seeds and problems, or for one seed Wilson's over problems."
    yield "ARness is set-based @1 over content slots of the first seed, with a bootstrap interval over problems; it is"
    yield "computed on the first problems of each decode (column n). `missing` has not run."
    yield ""
    yield from tables.trainings(results)
    yield ""
    yield from _difficulty(results)


def _difficulty(results: Results) -> Iterator[str]:
    """Whether the study may be read as it was planned: the twin had to score within a range at 1 token a step."""
    found = results.accuracy("cot-clamped", 1)
    low, high = PLANNED
    if found is None:
        yield f"The plan wants `cot-clamped` between {low} and {high} at 1 token a step. It has not been decoded."
    elif low <= found[0].value <= high:
        yield f"`cot-clamped` lies where the plan wants it at 1 token a step: {spread(found[0])}."
    else:
        yield f"**The twin is outside the planned range**: `cot-clamped` scores {spread(found[0])} at 1 token a step,"
        yield f"and the plan wants {low} to {high}. The models were not trained to where the problems tell them apart,"
        yield "so the comparisons below are shown as they are and settle nothing: the study is to be run again."
    yield ""


def _disagreements(results: Results, found: list[Claim]) -> Iterator[str]:
    yield "## Where this disagrees with the paper"
    yield ""
    against = [claim for claim in found if claim.verdict == DISAGREES]
    yield from (f"- The paper: {claim.paper}. Here: {claim.found or 'see below'}." for claim in against)
    if not against:
        yield "No claim is contradicted by an interval on this page."
    undecided = [claim for claim in found if claim.verdict == OPEN]
    if undecided:
        yield ""
        yield "Left undecided: " + "; ".join(f"{claim.paper} ({claim.found})" for claim in undecided) + "."
    yield ""
    yield "A claim *agrees* where the interval lies wholly on its side of 0, *disagrees* where it lies on the other"
    yield "side or within ±2 points, and is *undecided* else. Claims about order compare ARness with 0.7."
    yield from _seed_spread(results)
    yield ""
    yield from table(["the paper says", "found", "verdict"], [[c.paper, c.found, _bold(c.verdict)] for c in found])
    yield ""


def _seed_spread(results: Results) -> Iterator[str]:
    """Why differences of one training each are not read as differences of the arms."""
    spreads = {}
    for arm in results.study.seeds:
        rights = [results.right(arm, MANY, [seed]).mean() for seed in results.seeds(arm, MANY)]
        if len(rights) >= ENOUGH_SEEDS:
            spreads[arm] = (min(rights), max(rights))
    if spreads:
        ranges = ", ".join(f"`{arm}` from {low:.3f} to {high:.3f}" for arm, (low, high) in spreads.items())
        yield f"*Too few seeds*: less than {ENOUGH_SEEDS} trainings of an arm, so that the interval covers problems"
        yield f"only, while trainings that differ by their seed alone differ as much ({_a_step(MANY)}: {ranges})."


def _a_step(number: int) -> str:
    return f"{number} token{'s' * (number > 1)} a step"


def _bold(verdict: str) -> str:
    return verdict if verdict == AGREES else f"**{verdict}**"


def _planned(results: Results) -> Iterator[str]:
    yield "## Planned comparisons"
    yield ""
    yield from tables.comparisons(results)
    yield ""
    yield "`secondary` and `same weights` are two families, Holm-adjusted apart. With one seed an interval covers"
    yield "problems only. Between different weights p comes from the bootstrap, for the same weights from McNemar."
    yield ""


def _paper_tables(results: Results, pictures: list[str]) -> Iterator[str]:
    few, *_ = sorted(results.study.order_per_step)
    yield "## Table 1: ARness by decoding rule"
    yield ""
    yield f"{_a_step(few)}, first seed; canvas over content slots with its interval, then the mean per path (a free"
    yield "region is one path). The paper: arbitrary order 0.73 (LLaDA) and 0.92 (Dream), Fast-dLLM 0.87 and 0.94,"
    yield "random near 0. Rules are named as in the plan; `e0` commits end-of-text last, `e1` leaves it unweighted."
    yield ""
    yield from tables.arness_by_rule(results, few)
    yield ""
    yield "## Table 2: training data and ARness"
    yield ""
    yield "Arbitrary order, end-of-text last, 1 token a step. The paper compares a pretrained model with itself after"
    yield "Long-CoT training (0.73 → 0.81, 0.92 → 0.93). Nothing is pretrained here: the short chain is the base."
    yield "One seed."
    yield ""
    yield from tables.data_and_arness(results)
    yield ""
    yield "## Table 3: accuracy by tokens a step"
    yield ""
    yield "Each arm with the setting that its search chose. Steps are NAP's."
    yield ""
    yield from tables.accuracy_by_steps(results)
    yield ""
    yield from _picture(pictures, "accuracy-by-steps", "Accuracy and ARness by tokens a step")
    yield from _each(results, (4, 1), "Every training by itself, {}:", tables.by_seed)
    yield "## Table 4: data and decoding"
    yield ""
    yield "NAP's canvas for all, end-of-text last, first seed, order problems. The paper's base is a pretrained model;"
    yield "here it is the twin, which never saw three blocks."
    yield ""
    yield from tables.data_and_decoding(results)
    yield ""
    yield "## Table 5: number of paths"
    yield ""
    yield "Constant: rows behind the prompt, problems, training steps, search. Not: traces shown, target tokens."
    yield ""
    yield from tables.width(results)
    yield ""
    yield "## Figure 2: accuracy against ARness"
    yield ""
    yield from _picture(pictures, "accuracy-against-arness", "Accuracy against ARness, one mark a rule")
    yield from _picture(pictures, "decoding-order", "When each slot is committed (the paper's Figure 1)")


def _each(
    results: Results,
    per_step: Iterable[int],
    caption: str,
    rows: Callable[[Results, int], Iterable[str]],
    *,
    decoded: bool = True,
) -> Iterator[str]:
    """A caption and a table for each number of tokens a step; with `decoded` only for those of the test decodes."""
    for number in per_step:
        if number in results.numbers or not decoded:
            yield caption.format(_a_step(number))
            yield ""
            yield from rows(results, number)
            yield ""


def _picture(pictures: list[str], name: str, title: str) -> Iterator[str]:
    found = [picture for picture in pictures if Path(picture).stem == name]
    yield from (f"![{title}]({picture})" for picture in found)
    if not found:
        yield f"({title}: nothing has run)"
    yield ""


def _beyond(results: Results, pictures: list[str]) -> Iterator[str]:
    yield "## Paths, votes, summary"
    yield ""
    yield from _each(results, (1, 4), "{}, test problems, means over seeds. Exploratory.", tables.paths_and_votes)
    yield "## By depth"
    yield ""
    yield from _each(results, (1, 4), "{}, seeds pooled. Exploratory.", tables.by_depth)
    yield from _picture(pictures, "accuracy-by-depth", "Accuracy by depth")
    yield "## Every reading of ARness"
    yield ""
    yield "Order settings, first seed. Layout null: every path strictly left to right on the schedule as it went."
    yield ""
    yield from _each(results, sorted(results.study.order_per_step), "{}:", tables.every_reading, decoded=False)


def _costs(results: Results) -> Iterator[str]:
    yield "## What the search chose"
    yield ""
    yield f"With accuracy on the {results.study.dev:,} development problems."
    yield ""
    yield from tables.choices(results)
    yield ""
    yield "## Ledger"
    yield ""
    yield from tables.ledger(results)
    yield ""
    yield "## Commands"
    yield ""
    yield "What was run; every call goes on from the last. `python -m nap_trainer.miniature report RUN --out PAGE`"
    yield "makes the page, also from the per-problem records in `benchmarks/results/miniature`."
    yield ""
    yield from tables.commands(results)
    yield ""
    yield "## Decodes behind this page"
    yield ""
    yield "Each is `graded/NAME.npz` among the per-problem records: stage, arm and seed (@ another arm's canvas),"
    yield "rule, e and the weight of end-of-text, k and the tokens a step."
    yield ""
    yield from (f"- `{name}` (n {count:,})" for name, count in results.names.items())
    yield ""
    yield "## Missing"
    yield ""
    if results.missing:
        yield from (f"- {name}" for name in results.missing)
    else:
        yield "Nothing that the study asks for."
