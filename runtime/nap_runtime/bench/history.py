"""Ratios of runs over time: a line a run, and what has become slower since.

Milliseconds of two runs are not compared, whatever the hardware: other load, clocks and versions. Each run has its own
baseline, the whole canvas on one device, and only ratios to it, and to the run's own floor, are held against each
other, between runs of one kind of device, model and canvas.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nap_runtime.errors import DataError, UsageError

SCHEMA = "nap.bench.history/1"
RATIOS = ("speed", "over_floor", "equal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A case in two runs. `worse` where its speed fell, or its distance from the floor rose, by more than allowed."""

    case: str
    before: Mapping[str, float | None]
    after: Mapping[str, float | None]
    worse: bool


def entry(result: Mapping[str, Any]) -> dict[str, Any]:
    """A run as a line of a history."""
    env = result["environment"]
    ratios = {
        row["case"]: {
            "speed": row["speed"],
            "over_floor": row["over_floor"],
            "equal": None if row["ids"] is None else row["ids"]["equal"],
        }
        for row in result["rows"]
    }
    return {
        "schema": SCHEMA,
        "when": result["when"],
        "commit": env["commit"],
        "command": result["command"],
        "device_name": env["device_name"],
        "devices": env["devices"],
        "torch": env["torch"],
        "load": env["load"],
        "key": result["key"],
        "ratios": ratios,
    }


def history_name(result: Mapping[str, Any]) -> str:
    """The file of a history: device and model."""
    spec, env = result["spec"], result["environment"]
    model = spec["shape"] or Path(spec["model"]).name
    words = f"{env['device_name']} {model} {spec['dtype']}".lower()
    return re.sub(r"[^a-z0-9.]+", "-", words).strip("-") + ".jsonl"


def record(result: Mapping[str, Any], folder: Path) -> Path:
    """Append a run to its history in a folder; the file."""
    file = folder / history_name(result)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry(result)) + "\n")
    return file


def read_entries(file: Path) -> list[dict[str, Any]]:
    """Runs of a history, or the one run of a file that `--out` wrote, oldest first.

    Raises:
        UsageError: the file cannot be read.
        DataError: it is neither.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"compare: {file}: {error.strerror}", field="compare") from error
    try:
        if file.suffix == ".jsonl":
            entries = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            entries = [entry(json.loads(text))]
        for one in entries:
            if one["schema"] != SCHEMA or not isinstance(one["ratios"], dict):
                raise ValueError(one["schema"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: no benchmark of nap bench ({error})") from error
    if not entries:
        raise DataError(f"{file}: no run in it")
    return entries


def last_two(files: Sequence[Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What to compare: the last runs of two files, or the last two of one."""
    if len(files) == 1:
        entries = read_entries(files[0])
        if len(entries) < 2:
            raise UsageError(f"compare: {files[0]} has one run; give a second file", field="compare")
        return entries[-2], entries[-1]
    if len(files) != 2:
        raise UsageError(f"compare: {len(files)} files; give one history, or two files", field="compare")
    return read_entries(files[0])[-1], read_entries(files[1])[-1]


def compare_runs(before: Mapping[str, Any], after: Mapping[str, Any], *, allowed: float) -> list[Change]:
    """Every case that both have.

    Args:
        allowed: the relative change of a ratio that counts as noise.

    Raises:
        UsageError: they are of other devices, models or canvases: there is nothing that could be compared.
    """
    for name in ("device_name", "key"):
        if before[name] != after[name]:
            text = f"compare: the runs differ in {name} ({before[name]} and {after[name]}); nothing can be compared"
            raise UsageError(text, field="compare")
    cases = [case for case in before["ratios"] if case in after["ratios"]]
    return [_change(case, before["ratios"][case], after["ratios"][case], allowed) for case in cases]


def _change(case: str, before: Mapping[str, Any], after: Mapping[str, Any], allowed: float) -> Change:
    slower = _ratio(after["speed"], before["speed"]) < 1 - allowed
    farther = _ratio(after["over_floor"], before["over_floor"]) > 1 + allowed
    return Change(
        case=case,
        before={name: before[name] for name in RATIOS},
        after={name: after[name] for name in RATIOS},
        worse=slower or farther,
    )


def _ratio(new: float | None, old: float | None) -> float:
    return 1.0 if not new or not old else new / old
