"""The few figures of the study's page, as small SVG files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from study_numbers import Run, estimate
from study_overhead import policy
from study_sections import Records, at, per_step, rule, runs

from nap_runtime.study.figures import Series, curves, save, stacked


def draw(records: Records, scaling: Sequence[Path], folder: Path) -> None:
    """Write every figure whose records are there."""
    folder.mkdir(parents=True, exist_ok=True)
    if "full" in records:
        found = at(runs(records["full"], "every"), 4)
        _every(found, "accuracy", folder / "every-accuracy.svg")
        _every(found, "path_agree", folder / "every-agreement.svg")
    if {"full", "twin"} <= set(records):
        for measure in ("accuracy", "arness_corrected"):
            _twins(records, measure, folder / f"twins-{measure.partition('_')[0]}.svg")
    if scaling:
        _overhead(scaling[0], folder / "overhead.svg")


def _every(found: Sequence[Run], measure: str, file: Path) -> None:
    modes = dict.fromkeys(run.row["sync_mode"] for run in found)
    some = [(mode, [run for run in found if run.row["sync_mode"] == mode]) for mode in modes]
    series = [_series(name, runs_, lambda run: run.row["sync_every"], measure) for name, runs_ in some]
    title = {"accuracy": "accuracy", "path_agree": "pairs of paths that agree"}[measure]
    save(curves(series, x="K, steps between exchanges", y=title, log_x=True, title="nap-tiny, 4 tokens a step"), file)


def _twins(records: Records, measure: str, file: Path) -> None:
    series = []
    for study, name in (("full", "three paths"), ("twin", "one chain")):
        for wanted in ("parallel-forced", "confidence"):
            found = [run for run in runs(records[study], "rules") if rule(run.row) == wanted]
            if found:
                series.append(_series(f"{name}, {wanted}", found, lambda run: per_step(run.row), measure))
    title = {"accuracy": "accuracy", "arness_corrected": "ARness@1 within a path, chance-corrected"}[measure]
    save(curves(series, x="tokens a step", y=title, log_x=True), file)


def _series(name: str, found: Iterable[Run], x: Callable[[Run], float], measure: str) -> Series:
    found = list(found)
    if measure == "arness_corrected":  # across canvases; kept as a mean alone
        return Series(name=name, x=[x(run) for run in found], y=[run.row[measure] for run in found])
    values = [estimate(run, measure) for run in found]
    return Series(
        name=name,
        x=[x(run) for run in found],
        y=[value.value for value in values],
        low=[value.low for value in values],
        high=[value.high for value in values],
    )


def _overhead(file: Path, target: Path) -> None:
    """Milliseconds a step by workers and sync: computing, blocked, the rest."""
    cells: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["cells"]
    shown = [c for c in cells if c["scaling"] == cells[0]["scaling"] and not c["oversubscribed"]]
    names = [f"{c['scenario']['paths']} paths, {c['scenario']['workers']} w\n{policy(c)}" for c in shown]

    def each(value: Callable[[dict[str, Any]], float]) -> list[float]:
        return [1e3 * value(c) / c["scenario"]["steps"] for c in shown]

    parts = [
        ("compute", each(lambda c: c["compute_seconds"])),
        ("blocked", each(lambda c: c["blocked_seconds"])),
        ("rest", each(lambda c: max(0.0, c["seconds"] - c["compute_seconds"] - c["blocked_seconds"]))),
    ]
    save(stacked(names, parts, x="", y="ms a step", title=f"{cells[0]['scaling']} scaling"), target)
