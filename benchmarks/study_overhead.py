"""What talking costs in seconds: real workers' benchmarks, and how well the cost model predicts them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from origin import origin
from study_numbers import number, table

from nap_runtime.errors import UsageError
from nap_runtime.study.cost.calibrate import FITTED, Calibration, calibrate, read_points
from nap_runtime.study.cost.predict import Machine

WITHIN = 0.20  # what the cost model is held to on points that it has not seen
_OPTIONAL = ("bandwidth", "forward", "start", "latency")  # left out, in this order, where points are few

Cell = Mapping[str, Any]


def scaling_files(results: Path) -> list[Path]:
    """Files of `benchmarks/sync_scaling.py`, in the order of their names."""
    return sorted(results.glob("*scaling*.json"))


def section(file: Path) -> list[str]:
    """A benchmark: its tables, a sentence each for strong and weak scaling, and the cost model's errors."""
    values = json.loads(file.read_text(encoding="utf-8"))
    cells, made = values["cells"], origin(values)
    lines = [
        f"### {made['device_name']}, {made['cpus']} cores, {shape(cells)}",
        "",
        f"`{made['command']}`; commit {commit(made['commit'])}, torch {made['torch']}, random weights, one canvas, "
        f"one path a worker, policies interleaved, medians of {values['repeats']}.",
        "",
        *([values["note"], ""] if "note" in values else []),
    ]
    for scaling in dict.fromkeys(cell["scaling"] for cell in cells):
        some = [cell for cell in cells if cell["scaling"] == scaling]
        lines += [f"{TITLES.get(scaling, scaling)}:", "", *scaling_table(some), "", *sentences(scaling, some), ""]
    return [*lines, *model_lines(file, cells)]


def findings(file: Path) -> Iterator[tuple[str, str]]:
    """Where it was measured, and what is said of it at the head of the page."""
    values = json.loads(file.read_text(encoding="utf-8"))
    for scaling in dict.fromkeys(cell["scaling"] for cell in values["cells"]):
        some = [cell for cell in values["cells"] if cell["scaling"] == scaling]
        for said in sentences(scaling, some):
            yield f"{origin(values)['device_name']}, {shape(values['cells'])}, {scaling} scaling", said


def commit(name: str) -> str:
    """Its first twelve letters, and whether files differed from it."""
    return name[:12] + "-dirty" * name.endswith("-dirty")


TITLES = {
    "strong": "Strong scaling (one total budget of slots, shared out among the paths)",
    "weak": "Weak scaling (every path has the same budget)",
}


def shape(cells: Sequence[Cell]) -> str:
    """The model's shape and precision."""
    return " and ".join(dict.fromkeys(f"{c['scenario']['shape']} in {c['scenario']['dtype']}" for c in cells))


def _steps(cell: Cell) -> int:
    return int(cell["scenario"]["steps"])


def policy(cell: Cell) -> str:
    """`kv, K = 8`."""
    sync = cell["scenario"]["sync"]
    every = sync.get("every")
    return str(sync["mode"]) + (f", K = {every}" if every and sync["mode"] not in ("exact", "none") else "")


def alone(cell: Cell, cells: Sequence[Cell]) -> Cell | None:
    """The same canvas on one worker."""
    for other in cells:
        same = all(other["scenario"][key] == cell["scenario"][key] for key in ("paths", "path_tokens", "steps"))
        if other["scenario"]["workers"] == 1 and same:
            return other
    return None


def speedup(cell: Cell, cells: Sequence[Cell]) -> float | None:
    """Seconds of one worker over this cell's."""
    other = alone(cell, cells)
    return None if other is None else other["seconds"] / cell["seconds"]


def scaling_table(cells: Sequence[Cell]) -> list[str]:
    """A row a cell; those with more workers than cores are marked."""
    rows = []
    for cell in cells:
        steps, workers = _steps(cell), cell["scenario"]["workers"]
        mark = " (more workers than cores)" if cell["oversubscribed"] else ""
        rows.append(
            [
                f"{cell['scenario']['paths']}",
                f"{workers}{mark}",
                policy(cell) if workers > 1 else "one device",
                number(1e3 * cell["seconds"] / steps, 2),
                number(1e3 * cell["compute_seconds"] / steps, 2),
                number(1e3 * cell["blocked_seconds"] / steps, 2) if workers > 1 else "–",
                f"{cell['wire_bytes'] / 1024:,.0f}" if workers > 1 else "–",
                number(speedup(cell, cells), 2) + "×" if workers > 1 else "–",
            ]
        )
    head = ("paths", "workers", "sync", "ms a step", "compute", "blocked", "wire KiB", "against one device")
    return table(head, rows)


def sentences(scaling: str, cells: Sequence[Cell]) -> list[str]:
    """What is seen at the most workers that have a core each."""
    counted = [cell for cell in cells if cell["scenario"]["workers"] > 1 and not cell["oversubscribed"]]
    if not counted:
        return ["No run with several workers had a core a worker, so nothing is claimed of it."]
    most = max(cell["scenario"]["workers"] for cell in counted)
    texts = []
    for cell in counted:
        if cell["scenario"]["workers"] == most:
            share = cell["blocked_seconds"] / cell["seconds"]
            texts.append(f"{policy(cell)} {number(speedup(cell, cells), 2)}× ({100 * share:.0f}% of the time blocked)")
    left_out = sum(cell["oversubscribed"] for cell in cells)
    more = f" {left_out} cells with more workers than cores are shown and left out." if left_out else ""
    beyond = max((speedup(cell, cells) or 0.0) > most for cell in counted)
    rows = "between syncs a worker computes its own paths' rows alone, and nobody those of prompt and summary"
    why = f" More than {most}× is no error: {rows}." if beyond else ""
    return [f"With {most} workers, against the same canvas on one device: {'; '.join(texts)}.{why}{more}"]


def fit(file: Path) -> Calibration | None:
    """The cost model calibrated on the file's own points; None where they are too few."""
    points = read_points(file)
    device = "cpu" if origin(json.loads(file.read_text(encoding="utf-8")))["device"] == "cpu" else "h200"
    start = Machine.from_mapping({"device": device, "link": "10g" if device == "cpu" else "nvlink"})
    names = list(FITTED)
    for leave in (None, *_OPTIONAL):
        names = [name for name in names if name != leave]
        try:
            return calibrate(points, start, fitted=names)
        except UsageError:
            continue
    return None


def model_lines(file: Path, cells: Sequence[Cell]) -> list[str]:
    """The cost model's errors on points that it was not fitted to, runs with more workers than cores left out."""
    found = fit(file)
    crowded = {cell["name"] for cell in cells if cell["oversubscribed"]}
    held = {} if found is None else {n: found.errors[n] for n in found.held_out if n not in crowded}
    if found is None or not held:
        return ["The cost model is not judged here: no point with a core a worker was held out."]
    sizes = np.abs(list(held.values()))
    inside = int((sizes <= WITHIN).sum())
    used = len(found.errors) - len(found.held_out)
    each = "; ".join(f"{name} {_signed(error)}" for name, error in _readable(held).items())
    left_out = sum(name in crowded for name in found.held_out)
    return [
        f"Cost model (`nap cost calibrate`), fitted to {used} other points ({', '.join(found.fitted)}): of {len(held)} "
        f"points that it had not seen, {inside} lie within {100 * WITHIN:.0f}% of what was measured. Predicted over "
        f"measured seconds, less 1: {each}; median size {100 * np.median(sizes):.1f}%.",
        *_beside(found, left_out),
    ]


def _signed(error: float) -> str:
    return f"{100 * error:+.1f}%".replace("-", "−")


def _readable(errors: Mapping[str, float]) -> dict[str, float]:
    """`weak exact m2 w2` as `weak exact, 2 paths on 2 workers`."""
    return {re.sub(r" m(\d+) w(\d+)$", r", \1 paths on \2 workers", name): error for name, error in errors.items()}


def _beside(found: Calibration, left_out: int) -> Iterator[str]:
    """What the model was not judged by, and what the points do not tell."""
    crowd = f"{left_out} points with more workers than cores are left out: the model gives each worker a core. "
    untold = [f"`{name}`" for name in FITTED if name not in found.fitted]
    said = f"The points do not tell {' and '.join(untold)}, which stays as preset. " if untold else ""
    start = 1e3 * found.machine.link.start
    once = f"`start`, {start:.0f} ms a decode, takes up whatever else a group costs and the model has no term for."
    yield from ("", (crowd if left_out else "") + said + once)
