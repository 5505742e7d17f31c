"""The page's numbers, on results that are made up so that the right figures are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nap_trainer.miniature import ordering, stats
from nap_trainer.miniature.records import Record
from nap_trainer.miniature.report import contrasts, tables
from nap_trainer.miniature.report.claims import AGREES, DISAGREES, FEW_SEEDS, MISSING, OPEN, claims
from nap_trainer.miniature.report.results import Results
from nap_trainer.miniature.report.text import number, p_value, signed, spread, table
from nap_trainer.miniature.stats import Interval
from nap_trainer.miniature.store import Store
from nap_trainer.miniature.study import Study

N = 2000


def record(accuracy: float, *, seed: int = 0, arness: float = 0.5, paths: int = 3, shared: int = 11) -> Record:
    """A decode of N problems: `shared` draws how hard each problem is, `seed` what is left."""
    hard, own = np.random.default_rng(shared).random(N), np.random.default_rng(seed + 100).normal(0, 0.02, N)
    right = hard + own < accuracy
    path_right = np.stack([np.roll(right, j) for j in range(paths)], axis=1)
    rng = np.random.default_rng(seed)
    return Record(
        answer_n=np.where(right, 7, 8).astype(np.int32),
        path_nm=np.where(path_right, 7, 8).astype(np.int32),
        right_n=right,
        vote_right_n=path_right.sum(1) >= 2,
        path_right_nm=path_right,
        depth_n=(2 + np.arange(N) % 3).astype(np.uint8),
        arness_kF=np.clip(rng.normal(arness, 0.05, (50, len(ordering.FIGURES))), 0, 1).astype(np.float16),
        heat_SQ=rng.integers(1, 5, (20, ordering.BINS)).astype(np.uint32),
    )


ACCURACY = {  # arm → accuracy at 1 and at 4 tokens a step
    "nap": (0.80, 0.70),
    "cot-clamped": (0.78, 0.60),
    "cot": (0.77, 0.40),
    "short": (0.60, 0.50),
    "nap-2": (0.70, 0.62),
}


def made_up(root: Path, seeds: int = 2, **changed: tuple[float, float]) -> Results:
    """Some seeds of every arm, and the order settings."""
    accuracy = ACCURACY | {name.replace("_", "-"): value for name, value in changed.items()}
    study = Study(seeds=dict.fromkeys(accuracy, seeds), per_step=(4, 1), resamples=500, order=50)
    tests = {
        (arm, seed, k): record(values[k > 1], seed=seed)
        for arm, values in accuracy.items()
        for seed in range(seeds)
        for k in (1, 4)
    }
    orders: dict[Any, Record] = {}
    for k in (1, 4):
        orders["cot", "cot", "ao-e0", k] = record(0.75, arness=0.9)
        orders["cot", "cot", "random", k] = record(0.30, arness=0.1)
        orders["short", "short", "ao-e0", k] = record(0.60, arness=0.8)
        orders["nap", "nap", "ao-e0", k] = record(0.70, arness=0.6)
        orders["nap", "nap", "pf-e0", k] = record(0.75, arness=0.4)
        orders["cot-clamped", "nap", "ao-e0", k] = record(0.40)
        orders["cot-clamped", "nap", "pf-e0", k] = record(0.30)
    return Results(study=study, store=Store(root), tests=tests, orders=orders, names={}, missing=())


def row_of(lines: list[str], *begins: str) -> list[str]:
    """Cells of the first row that begins with these cells."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return next(row for row in rows if tuple(row[: len(begins)]) == begins)


def test_primary_contrast_is_the_difference(tmp_path: Path) -> None:
    found = contrasts.planned(made_up(tmp_path))[0]
    assert (found.family, found.name) == ("primary", "nap − cot-clamped, 4 a step")
    assert found.interval is not None
    assert found.interval.value == pytest.approx(0.10, abs=0.02)
    assert found.interval.low > 0
    assert len(found.each) == 2
    assert found.interval.value == pytest.approx(np.mean(found.each))


def test_growth_is_a_difference_of_differences(tmp_path: Path) -> None:
    by_name = {one.name: one for one in contrasts.planned(made_up(tmp_path))}
    growth = by_name["growth of nap − cot from 1 to 4 a step"].interval
    assert growth is not None
    gaps = [by_name[f"nap − cot, {k} a step"].interval for k in (4, 1)]
    assert growth.value == pytest.approx(gaps[0].value - gaps[1].value)  # type: ignore[union-attr]


def test_only_common_seeds_are_paired(tmp_path: Path) -> None:
    results = made_up(tmp_path)
    del results.tests["cot", 1, 4]
    by_name = {one.name: one for one in contrasts.planned(results)}
    assert len(by_name["nap − cot, 4 a step"].each) == 1
    assert len(by_name["nap − cot, 1 a step"].each) == 2
    assert len(by_name["growth of nap − cot from 1 to 4 a step"].each) == 1


def test_same_weights_use_mcnemar(tmp_path: Path) -> None:
    results = made_up(tmp_path)
    found = next(one for one in contrasts.planned(results) if one.name.startswith("nap weights") and "4 a" in one.name)
    one, other = results.orders["nap", "nap", "pf-e0", 4], results.orders["nap", "nap", "ao-e0", 4]
    assert found.p == stats.mcnemar(one.right_n, other.right_n)
    assert found.interval is not None
    assert found.interval.value == pytest.approx(one.right_n.mean() - other.right_n.mean())


def test_missing_members_count_in_their_family(tmp_path: Path) -> None:
    """Holm's factor is the planned size of the family, not how much of it has run."""
    results = made_up(tmp_path)
    for seed in (0, 1):
        del results.tests["cot", seed, 1]
    found = contrasts.planned(results)
    corrected = contrasts.adjusted(found, "secondary")
    smallest = min(one.p for one in found if one.family == "secondary" and one.p is not None)
    assert min(corrected.values()) == pytest.approx(min(1.0, 5 * smallest))
    assert set(corrected) == {one.name for one in found if one.family == "secondary" and one.p is not None}


def test_verdicts_follow_the_intervals(tmp_path: Path) -> None:
    found = {claim.paper: claim.verdict for claim in claims(made_up(tmp_path, 3))}
    assert found["NAP is more accurate than its twin with a clamped answer at 4 tokens a step"] == AGREES
    assert found["arbitrary order on chains is nearly left to right"] == AGREES
    assert found["order within a path is free"] == AGREES
    assert found["random order costs accuracy (`cot`, against arbitrary order)"] == AGREES
    assert found["parallel-forced harms weights that were not trained for it (first seed)"] == AGREES
    worse = {claim.paper: claim.verdict for claim in claims(made_up(tmp_path, 3, nap=(0.80, 0.50)))}
    assert worse["NAP is more accurate than its twin with a clamped answer at 4 tokens a step"] == DISAGREES
    assert worse["NAP is more accurate than Long-CoT at 4 tokens a step"] == AGREES
    assert worse["the same gap, to the twin with a clamped answer"] == DISAGREES


def test_less_than_three_seeds_decide_nothing_between_arms(tmp_path: Path) -> None:
    """Their interval covers problems, not how far trainings differ by their seed."""
    found = {claim.paper: claim for claim in claims(made_up(tmp_path, 2))}
    twin = found["NAP is more accurate than its twin with a clamped answer at 4 tokens a step"]
    assert (twin.verdict, "[" in twin.found) == (FEW_SEEDS, True)
    assert found["parallel-forced harms weights that were not trained for it (first seed)"].verdict == AGREES


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.001, 0.3, AGREES),
        (-0.3, -0.001, DISAGREES),
        (-0.019, 0.019, DISAGREES),
        (-0.05, 0.01, OPEN),
        (0.0, 0.0, OPEN),
    ],
)
def test_verdict_of_an_interval(low: float, high: float, verdict: str) -> None:
    from nap_trainer.miniature.report.claims import _positive

    assert _positive("", Interval((low + high) / 2, low, high)).verdict == verdict


def test_what_has_not_run_is_missing(tmp_path: Path) -> None:
    results = replace(made_up(tmp_path), tests={}, orders={})
    assert {claim.verdict for claim in claims(results)} == {MISSING}
    for lines in (
        tables.accuracy_by_steps(results),
        tables.data_and_decoding(results),
        tables.width(results),
        tables.data_and_arness(results),
        tables.arness_by_rule(results, 1),
        tables.paths_and_votes(results, 4),
        tables.comparisons(results),
    ):
        assert "missing" in "".join(lines)
    assert tables.every_reading(results, 1) == ["(nothing has run)"]


def test_tables_hold_the_means(tmp_path: Path) -> None:
    results = made_up(tmp_path)
    mean = np.mean([results.tests["nap", seed, 4].right_n.mean() for seed in (0, 1)])
    assert row_of(tables.width(results), "4")[3].startswith(number(float(mean)))
    cells = row_of(tables.accuracy_by_steps(results), str(-(-(3 * 40 + 8) // 4)), "4")
    assert cells[2].startswith(number(float(mean)))
    assert cells[2].endswith(f"(2 seeds, n {N})")
    one = results.orders["cot-clamped", "nap", "pf-e0", 1]
    assert row_of(tables.data_and_decoding(results), "one chain, clamped answer", "parallel-forced")[3].startswith(
        number(float(one.right_n.mean()))
    )


def test_every_seed_is_shown(tmp_path: Path) -> None:
    results = made_up(tmp_path)
    del results.tests["cot", 1, 4]
    shares = [number(float(results.tests["nap", seed, 4].right_n.mean())) for seed in (0, 1)]
    assert row_of(tables.by_seed(results, 4), "`nap`")[1:] == shares
    assert row_of(tables.by_seed(results, 4), "`cot`")[2] == "missing"
    fewer = replace(results, study=replace(results.study, seeds={"nap": 2, "cot": 1}))
    assert row_of(tables.by_seed(fewer, 4), "`cot`")[2] == "–"


def test_paths_and_votes_by_hand(tmp_path: Path) -> None:
    results = made_up(tmp_path)
    right = np.array([1, 1, 0, 0], dtype=bool)
    paths = np.array([[1, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]], dtype=bool)
    small = Record(
        answer_n=np.zeros(4), path_nm=np.zeros((4, 3)), right_n=right, vote_right_n=paths.sum(1) >= 2,
        path_right_nm=paths, depth_n=np.array([2, 2, 3, 3]), arness_kF=np.zeros((1, len(ordering.FIGURES))),
        heat_SQ=np.ones((2, ordering.BINS)),
    )  # fmt: skip
    tests = {("nap", seed, 4): small for seed in (0, 1)}
    lines = tables.paths_and_votes(replace(results, tests=tests), 4)
    assert row_of(lines, "`nap`")[1:] == ["0.500", "0.333", "0.250", "0.750", "0.333", "0.000", "2 × 4"]
    assert row_of(tables.by_depth(replace(results, tests=tests), 4), "`nap`")[1:] == ["1.000", "0.000"]


def test_change_of_arness_is_paired(tmp_path: Path) -> None:
    results = made_up(tmp_path)
    cells = row_of(tables.data_and_arness(results), "one chain, free (Long-CoT)")
    chain, base = (results.orders[arm, arm, "ao-e0", 1].figure("set_content") for arm in ("cot", "short"))
    assert cells[2].startswith(f"+{number(float((chain - base).mean()))}")
    assert row_of(tables.data_and_arness(results), "one trace, clamped answer")[2] == "–"


def test_one_seed_has_wilsons_interval(tmp_path: Path) -> None:
    results = made_up(tmp_path)
    del results.tests["short", 1, 4]
    found = results.accuracy("short", 4)
    assert found is not None
    hits = int(results.tests["short", 0, 4].right_n.sum())
    assert (found[0].low, found[0].high) == (stats.wilson(hits, N).low, stats.wilson(hits, N).high)


def test_numbers_as_text() -> None:
    assert number(-0.1234) == "−0.123"
    assert number(-0.0001) == "0.000"
    assert number(float("nan")) == "–"
    assert spread(Interval(0.5, 0.4, 0.6)) == "0.500 [0.400, 0.600]"
    assert spread(None) == "missing"
    assert signed(Interval(0.5, 0.4, 0.6)).startswith("+0.500")
    assert signed(Interval(-0.5, -0.6, -0.4)) == "−0.500 [−0.600, −0.400]"
    assert p_value(0.00001) == "< 0.0001"
    assert p_value(0.0321) == "0.032"
    assert table(["a", "b"], [["1", "2"]]) == ["| a | b |", "|---|---|", "| 1 | 2 |"]
