"""The table of a study: a row a run, as CSV and parquet."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nap_runtime.models.files import atomic_path

Row = Mapping[str, Any]


def write_tables(out: Path, rows: Sequence[Row], sweeps: Mapping[str, Sequence[str]]) -> None:
    """`runs.csv`, and `runs.parquet` where pyarrow is installed."""
    full = [{"run_id": row["run_id"], "sweeps": ";".join(sweeps.get(row["run_id"], ())), **row} for row in rows]
    columns = list(dict.fromkeys(key for row in full for key in row))
    with atomic_path(out / "runs.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(full)
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError:
        return
    table = pa.table({column: _column([row.get(column) for row in full]) for column in columns})
    with atomic_path(out / "runs.parquet") as temporary:
        parquet.write_table(table, temporary)


def _column(values: Sequence[Any]) -> Any:
    """A column of one type: whole numbers beside fractions become fractions, anything else mixed becomes text."""
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    if not kinds:
        return pa.array(values, pa.float64())
    if len(kinds) > 1 or not kinds <= {int, float, bool, str}:
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    return pa.array(values)
