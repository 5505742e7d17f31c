"""A study's records in small: what a page is built from, without texts.

FOLDER/study.json     what was asked for, as in the study's folder
FOLDER/runs.jsonl     a row a run; columns that are null are left out
FOLDER/problems.npz   of each run, problem by problem (shapes: n problems, m paths):
    ID.correct   int8 [n]: 1 right, 0 wrong, −1 not decoded
    ID.arness    float32 [n], NaN where undefined; `ID.corrected` the same, chance-corrected (not in older records)
    ID.paths     int8 [n, m]: 1 right, 0 wrong, −1 no answer
    ID.same      int8 [n]: pairs of paths, both with an answer, that say the same, of `ID.pairs` int8 [n]
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nap_runtime.errors import RecordError, UsageError
from nap_runtime.metrics.answers import same_answer
from nap_runtime.metrics.shares import same_forms
from nap_runtime.models.files import atomic_path, write_text_atomic
from nap_runtime.study.report import Results, read_results
from nap_runtime.study.rows import RowFile

Array = npt.NDArray[Any]
ARRAYS = ("correct", "arness", "paths", "same", "pairs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A packed study, read. `rows` are the runs in the order of the study; `problems[run][name]` the arrays."""

    study: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    problems: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)

    def of(self, sweep: str) -> list[Mapping[str, Any]]:
        """The finished runs of a sweep; UsageError if the study has no such sweep."""
        for one in self.study["sweeps"]:
            if one["name"] == sweep:
                rows = {row["run_id"]: row for row in self.rows}
                return [rows[run] for run in one["runs"] if run in rows]
        raise UsageError(f"{self.study['name']}: no sweep '{sweep}'")


def pack(folder: Path, out: Path) -> Path:
    """Write a study's folder in small; returns `out`.

    Raises:
        UsageError: the folder is no study, or holds no finished run.
    """
    results = read_results(folder)
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({k: v for k, v in row.items() if v is not None}, ensure_ascii=True) for row in results.rows.values()
    ]
    arrays = {f"{run}.{name}": array for run in results.rows for name, array in _arrays(results, run).items()}
    with atomic_path(out / "problems.npz") as temporary, temporary.open("wb") as stream:
        write: Any = np.savez_compressed  # its stub takes names of arrays for an option of its own
        write(stream, **arrays)
    write_text_atomic(out / "runs.jsonl", "".join(f"{line}\n" for line in lines))
    write_text_atomic(out / "study.json", json.dumps(results.study, indent=1) + "\n")
    return out


def _arrays(results: Results, run: str) -> dict[str, Array]:
    file = results.folder / "problems" / f"{run}.jsonl"
    with RowFile(file, key="index", run=run) as kept:
        rows = [kept.rows[index] for index in sorted(kept.rows)]
    answers = [list(row.get("path_answers") or []) for row in rows]
    right = [
        row.get("paths_right") or [same_answer(a, row["gold"]) for a in said]
        for row, said in zip(rows, answers, strict=True)
    ]
    width = max(map(len, answers), default=0)
    counts = [_pairs(said, str(row.get("kind", ""))) for said, row in zip(answers, rows, strict=True)]
    return {
        "correct": np.array([-1 if "error" in row else int(row["correct"]) for row in rows], dtype=np.int8),
        "arness": _measure(rows, "arness"),
        "corrected": _measure(rows, "arness_corrected"),
        "paths": np.array([_known(a, r, width) for a, r in zip(answers, right, strict=True)], dtype=np.int8),
        "same": np.array([same for same, _ in counts], dtype=np.int8),
        "pairs": np.array([pairs for _, pairs in counts], dtype=np.int8),
    }


def _measure(rows: Sequence[Mapping[str, Any]], name: str) -> Array:
    values = [row.get("measures", {}).get(name) for row in rows]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float32)


def _known(answers: Sequence[str | None], right: Sequence[bool], width: int) -> list[int]:
    found = [-1 if answer is None else int(one) for answer, one in zip(answers, right, strict=True)]
    return found + [-1] * (width - len(found))


def _pairs(answers: Sequence[str | None], kind: str) -> tuple[int, int]:
    """Of pairs of paths that both answer, how many say the same; and how many there are."""
    pairs = [(a, b) for a, b in combinations(answers, 2) if a is not None and b is not None]
    return sum(same_forms(a, b, by_word=kind == "list") for a, b in pairs), len(pairs)


def read_packed(folder: Path) -> Packed:
    """Read what `pack` wrote.

    Raises:
        RecordError: a file is missing or damaged.
    """
    try:
        study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in (folder / "runs.jsonl").read_text(encoding="utf-8").splitlines()]
        with np.load(folder / "problems.npz", allow_pickle=False) as arrays:
            problems = {row["run_id"]: _of_run(arrays, row["run_id"]) for row in rows}
        order = list(dict.fromkeys(run for sweep in study["sweeps"] for run in sweep["runs"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{folder}: no packed study ({error})") from None
    return Packed(study=study, rows=sorted(rows, key=lambda row: order.index(row["run_id"])), problems=problems)


def _of_run(arrays: Mapping[str, Array], run: str) -> dict[str, Array]:
    """A run's arrays; KeyError where one that every record has is missing."""
    found = {name: arrays[f"{run}.{name}"] for name in ARRAYS}
    more = f"{run}.corrected"
    return found | ({"corrected": arrays[more]} if more in arrays else {})
