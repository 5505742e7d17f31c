"""`nap metrics`: order and cost of a trace, ours or another decoder's."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nap_runtime.cli import output
from nap_runtime.cli.parser import Parser, positive
from nap_runtime.cli.trace import read_bytes
from nap_runtime.errors import RecordError

if TYPE_CHECKING:
    from nap_runtime.decoding.record import DecodeRecord
    from nap_runtime.metrics.arness import ArnessReport, ArnessScore

_ABOUT = """\
Print how far a decode went from left to right (ARness), and what it cost.

FILE is a trace of `nap decode --trace`, or another decoder's order as JSON:
  {"slots": 4, "steps": [[0, 1], [3], [2]]}    positions committed at each step
  [[0, 7], [0, 8], [1, 12]]                    [step, position]; also one such pair a line
"""
_COLUMNS = (
    "tokens",
    "steps",
    "set_based",
    "set_based_random",
    "set_based_corrected",
    "step_ordered",
    "local",
)


def register(root: Parser) -> None:
    """Add the command."""
    parser = root.command("metrics", _ABOUT, _run)
    parser.add_argument("file", metavar="FILE", type=Path)
    text = "k of ARness@k: how many leftmost masked positions count (default: 1)"
    parser.add_argument("-k", "--k", type=positive, default=1, metavar="K", help=text)
    parser.add_argument("--json", action="store_true", help="one JSON object (default: a table)")


def _run(args: argparse.Namespace) -> int:
    values, report = _measure(args.file, args.k)
    if "json" in args:
        print(output.dumps(values))
        return 0
    print(output.align([(key, _text(value)) for key, value in values.items() if key != "arness"]))
    print()
    print(_table(report))
    return 0


def _measure(file: Path, k: int) -> tuple[dict[str, Any], ArnessReport]:
    from nap_runtime.metrics.arness import ArnessReport
    from nap_runtime.metrics.order import DecodeOrder

    data = read_bytes(file)
    try:
        if data.lstrip()[:1] not in (b"{", b"["):
            return _measure_trace(data, k)
        report = ArnessReport.of(DecodeOrder.from_json(data.decode()), k=k)
    except UnicodeDecodeError as error:
        raise RecordError(f"{file}: neither a trace nor JSON") from error
    except RecordError as error:
        raise RecordError(f"{file}: {error}") from error
    return {"kind": "order", "arness": report.to_json()}, report


def _measure_trace(data: bytes, k: int) -> tuple[dict[str, Any], ArnessReport]:
    from nap_runtime.decoding.meters import RunMeters
    from nap_runtime.decoding.record import DecodeRecord
    from nap_runtime.metrics.report import RunMetrics
    from nap_runtime.metrics.verify import verify

    record = DecodeRecord.from_bytes(data)
    verify(record)
    metrics = RunMetrics.of(record, RunMeters(workers=(), seconds=0.0, seconds_first_commit=0.0), k=k)
    nfe = {key: value for key, value in asdict(metrics.nfe).items() if key != "rows"}  # rows are not in a trace
    staleness = metrics.sync.staleness
    values = {
        "kind": "trace",
        "model": record.model.get("name"),
        "steps": record.steps,
        "workers": record.assignment.workers,
        "nfe": nfe,
        "tpf": metrics.tpf,
        "useful_tokens": metrics.useful_tokens,
        "syncs": _syncs(record),
        "staleness": None if staleness is None else asdict(staleness),
        "arness": metrics.arness.to_json(),
    }
    return values, metrics.arness


def _syncs(record: DecodeRecord) -> dict[str, int]:
    return dict(Counter(event.kind for event in record.syncs))


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(one)}" for key, one in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:.2f}"
    return "–" if value is None else str(value)


def _table(report: ArnessReport) -> str:
    """One line a region, content slots alone; the canvas also over all its slots."""
    rows = [("canvas, all slots", report.canvas.all), ("canvas, content", report.canvas.content)]
    if len(report.paths) > 1:
        rows += [(f"path {j}, content", path.content) for j, path in enumerate(report.paths, start=1)]
    head = (
        "tokens",
        "steps",
        f"set@{report.k}",
        "chance",
        "corrected",
        f"ordered@{report.k}",
        f"local@{report.k}",
    )
    lines = [("ARness", "".join(f"{name:>11}" for name in head))]
    lines += [(name, "".join(f"{_cell(score, column):>11}" for column in _COLUMNS)) for name, score in rows]
    null = report.layout_null.content
    if len(report.paths) > 1 and null is not None:
        lines.append(("layout alone", f"{'':>22}{output.number(null[0]):>11}{'':>22}{output.number(null[1]):>11}"))
    return output.align(lines)


def _cell(score: ArnessScore, column: str) -> str:
    value = getattr(score, column)
    return str(value) if isinstance(value, int) else output.number(value)
