"""Studies as YAML: what is refused and how it is named, which runs a sweep has, variables, ready-made studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nap_runtime.errors import UsageError
from nap_runtime.study.measures import METRICS, bootstrap, mean_of
from nap_runtime.study.plots import varying
from nap_runtime.study.run import plan, settings_columns
from nap_runtime.study.spec import Study, read_study

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "studies"


def study(text: str, **given: Any) -> Study:
    return Study.from_mapping(yaml.safe_load(text), given)


SMALL = """
study: s
set: {model: nap-tiny, n: 4, data: null}
problems: {set: words, n: "${n}", seed: 3}
base: {model: "${model}", sync.mode: kv, workers: 3, simulate: true}
sweeps:
  - name: a
    x: sync.every
    grid: {sync.every: [1, 4], seed: [0, 1]}
  - name: b
    grid: {tokens_per_step: [1, 2]}
    cases: [{}, {sync.mode: none}, {problems.n: 9, workers: null, simulate: null}]
"""


def test_runs_of_sweeps() -> None:
    a, b = study(SMALL, data="x").sweeps
    assert [(run.values["sync.every"], run.values["seed"]) for run in a.runs] == [(1, 0), (1, 1), (4, 0), (4, 1)]
    assert len(b.runs) == 6
    assert b.runs[2].config().sync.mode == "none"
    assert b.runs[4].problems() == {"set": "words", "n": 9, "seed": 3}
    assert (b.runs[4].place("workers", 1), b.runs[0].place("workers", 1)) == (1, 3)
    assert a.runs[0].problems()["n"] == 4  # a number, not a text
    assert a.runs[2].config().sync.period == 4


def test_equal_runs_of_a_sweep_are_one() -> None:
    (sweep,) = study("sweeps: [{name: a, grid: {seed: [0, 1]}, cases: [{}, {seed: 0}]}]").sweeps
    assert [run.values["seed"] for run in sweep.runs] == [0, 1]


def test_variables() -> None:
    with pytest.raises(UsageError, match="set: data must be given: --set data=VALUE"):
        study(SMALL)
    with pytest.raises(UsageError, match="unknown variable 'm'; the study has model, n, data"):
        study(SMALL, m=1)
    with pytest.raises(UsageError, match=r"\$\{x\}: unknown variable"):
        study("set: {y: 1}\nbase: {model: '${x}'}\nsweeps: [{name: a}]")
    made = study("set: {y: 7}\nbase: {model: 'm/${y}'}\nsweeps: [{name: a}]", y=8)
    assert made.sweeps[0].runs[0].values["model"] == "m/8"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sweepz: []", "sweepz: unknown key; known are"),
        ("study: s", "sweeps: give a list"),
        ("base: {pats: 3}\nsweeps: [{name: a}]", "base: pats: unknown key"),
        ("problems: {size: 3}\nsweeps: [{name: a}]", "problems: size: unknown key"),
        ("sweeps: [{name: A B}]", "sweep 1: name: give one of small letters"),
        ("sweeps: [{name: a}, {name: a}]", "two have the same name"),
        ("sweeps: [{name: a, metrics: [acuracy]}]", "sweep a: unknown metric 'acuracy'; known are accuracy"),
        ("sweeps: [{name: a, metrics: accuracy}]", "sweep a: metrics: not a list"),
        ("sweeps: [{name: a, x: syncs.every}]", "sweep a: x: unknown key 'syncs.every'"),
        ("sweeps: [{name: a, grid: {seed: 3}}]", "sweep a: grid: seed: give a list"),
        ("sweeps: [{name: a, grid: {sync.evry: [3]}}]", "sweep a: grid: sync.evry: unknown key"),
        ("sweeps: [{name: a, cases: [{sync.mode: telepathy}]}]", "sweep a: sync: unknown value 'telepathy'"),
        ("sweeps: [{name: a, cases: [{sync.every: 4}]}]", "sweep a: every: sync 'exact' does not use it"),
        ("sweeps: [{name: a, cases: [{paths: three}]}]", "sweep a: paths"),
        ("sweeps: [{name: a, cases: 3}]", "sweep a: cases: not a list"),
        ("sweeps: [3]", "sweep 1: not a mapping"),
        (
            "sweeps: [{name: a, grid: {seed: [0, 1]}, cases: [{seed: 0}, {seed: 2}]}]",
            "sweep a: grid: seed: no run has 1, because every case sets seed itself",
        ),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("$", r"\$").replace("{", r"\{")) as caught:
        study(text)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    with pytest.raises(UsageError, match="No such file"):
        read_study(file)
    file.write_text("a: [")
    with pytest.raises(UsageError, match=r"s\.yaml: not YAML at line"):
        read_study(file)
    file.write_text("- 1")
    with pytest.raises(UsageError, match="not a mapping"):
        read_study(file)


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
def test_ready_made_studies_are_sound(file: Path) -> None:
    names = yaml.safe_load(file.read_text(encoding="utf-8")).get("set") or {}
    found = read_study(file, {name: f"given/{name}" for name, value in names.items() if value is None})
    assert found.sweeps
    for sweep in found.sweeps:
        assert len(sweep.runs) > 1
        assert set(sweep.metrics) <= set(METRICS)


def test_means_and_intervals() -> None:
    assert mean_of([1, None, 3]) == 2.0
    assert mean_of([None]) is None
    low, high = bootstrap([0.0] * 50 + [1.0] * 50)
    assert low is not None
    assert high is not None
    assert 0.38 < low < 0.45
    assert 0.55 < high < 0.62
    assert bootstrap([]) == (None, None)
    assert bootstrap([0.5, None, 0.5]) == (0.5, 0.5)


PLANNED = """
problems: {set: words, n: 2}
base: {workers: 3, simulate: true, batch_size: 2, tokens_per_step: 8}
sweeps: [SWEEP]
"""


@pytest.mark.parametrize(
    ("sweep", "buckets"),
    [
        ("{name: a, x: bucket, grid: {bucket: [1, 32, 64]}}", [1, 32, 64]),
        ("{name: a, grid: {bucket: [16, null]}}", [16, 32]),
        ("{name: a, cases: [{bucket: 8}, {bucket: 8, seed: 1}, {}]}", [8, 8, 32]),
    ],
)
def test_a_sweep_over_bucket_has_a_run_a_value(sweep: str, buckets: list[int]) -> None:
    runs = plan(study(PLANNED.replace("SWEEP", sweep)))
    assert [run.bucket for run in runs] == buckets
    assert [settings_columns(run)["bucket"] for run in runs] == buckets
    assert len({run.id for run in runs}) == len(buckets)
    assert "bucket" in varying([settings_columns(run) for run in runs])


def test_the_default_bucket_is_no_other_run() -> None:
    """Folders of before it was told apart go on."""
    (run,) = plan(study(PLANNED.replace("SWEEP", "{name: a}")))
    (given,) = plan(study(PLANNED.replace("SWEEP", "{name: b, cases: [{bucket: 32}]}")))
    (alone,) = plan(study(PLANNED.replace("SWEEP", "{name: b, cases: [{bucket: 8, batch_size: 1}]}")))
    assert run.id == given.id
    assert alone.bucket is None


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("{name: a, grid: {bucket: [16, 64], batch_size: [1]}}", "bucket: 16 and 64 give the same runs; leave one out"),
        ("{name: a, grid: {bucket: [null, 32]}}", "bucket: null and 32 give the same runs"),
        ("{name: a, cases: [{label: x}, {label: y}]}", "label: 'x' and 'y' give the same runs"),
        ("{name: a, grid: {simulate: [true, false], workers: [1]}}", "simulate: True and False give the same runs"),
        ("{name: a, grid: {tokens_per_step: [4, 500, 900]}}", "tokens_per_step: 500 and 900 give the same runs"),
    ],
)
def test_values_that_give_no_run_of_their_own_are_refused(sweep: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"^sweep a: {message}") as caught:
        plan(study(PLANNED.replace("SWEEP", sweep)))
    assert "\n" not in str(caught.value)


def test_values_that_matter_somewhere_are_not_refused() -> None:
    """`simulate` does nothing for one worker, `bucket` nothing for one canvas: both matter in the other runs."""
    sweep = "{name: a, grid: {bucket: [16, 64], batch_size: [1, 2], workers: [1, 3], simulate: [true, false]}}"
    assert len(plan(study(PLANNED.replace("SWEEP", sweep)))) == 9  # 3 of batches × 3 of one worker, simulated, real
