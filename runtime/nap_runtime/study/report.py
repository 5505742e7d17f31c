"""The report of a study: tables and figures of what is finished, in one page that opens offline."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from nap_runtime.errors import RecordError, UsageError
from nap_runtime.metrics.aup import Aup
from nap_runtime.models.files import write_text_atomic
from nap_runtime.study import plots
from nap_runtime.study.figures import save, svg_of
from nap_runtime.study.measures import METRICS
from nap_runtime.study.page import page_of
from nap_runtime.study.rows import RowFile
from nap_runtime.study.table import write_tables

Row = Mapping[str, Any]
_WITH_INTERVAL = ("accuracy", "arness")
_MACHINE = ("commit", "version", "python", "torch", "system", "device_name", "cpus", "threads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """A study's folder, read."""

    folder: Path
    study: Mapping[str, Any]
    rows: Mapping[str, Row]

    def of(self, sweep: Mapping[str, Any]) -> list[Row]:
        """The finished runs of a sweep, in its order."""
        return [self.rows[run] for run in sweep["runs"] if run in self.rows]

    @property
    def missing(self) -> int:
        """Runs that are not finished."""
        return len({run for sweep in self.study["sweeps"] for run in sweep["runs"]} - set(self.rows))


def read_results(folder: Path) -> Results:
    """Read a study's folder.

    Raises:
        UsageError: it is none, or holds no finished run.
    """
    file = folder / "study.json"
    if not file.is_file():
        raise UsageError(f"{folder}: no study.json; give a folder of `nap study run`")
    try:
        study = json.loads(file.read_text(encoding="utf-8"))
        wanted: dict[str, tuple[str, ...]] = {}
        for sweep in study["sweeps"]:
            for run in sweep["runs"]:
                wanted[run] = (*wanted.get(run, ()), sweep["name"])
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{file}: damaged ({error}); run the study again") from None
    with RowFile(folder / "runs.jsonl", key="run_id") as finished:
        rows = {run: row for run, row in finished.rows.items() if run in wanted}
    if not rows:
        raise UsageError(f"{folder}: no run is finished; run the study first")
    write_tables(folder, list(rows.values()), wanted)
    return Results(folder=folder, study=study, rows=rows)


def write_report(folder: Path) -> Path:
    """Write `report.html`, and the figures as SVG and PNG into `figures/`; returns the page's path.

    Raises:
        UsageError: the folder is no study, or matplotlib is missing.
    """
    results = read_results(folder)
    body = "\n".join(_sections(results))
    page = page_of("report", {"TITLE": escape(results.study["title"]), "BODY": body})
    target = folder / "report.html"
    write_text_atomic(target, page)
    return target


def _sections(results: Results) -> Iterator[str]:
    study = results.study
    yield from _paragraphs(study.get("about", ""))
    yield f'<p class="soft">{_state(results)}</p>'
    orders = plots.order_maps(results.folder, list(results.rows.values()))
    if orders is not None:
        yield "<h2>Order of decoding</h2>"
        yield "<p>Slot against step in the first problem. Left to right is a diagonal; paths at once are bands.</p>"
        yield _figures(
            results.folder, [("order", orders, "One decode each; paths in colours, the summary in grey.")], True
        )
    for sweep in study["sweeps"]:
        yield from _sweep(results, sweep)
    talk = list(plots.across_study(list(results.rows.values())))
    if talk:
        yield "<h2>What the talking costs and buys</h2>"
        yield "<p>All runs with several workers. Simulated workers give bytes, ids and scores, but no times.</p>"
        yield _figures(results.folder, talk)
    yield "<h2>Where this was measured</h2>"
    yield _machines(list(results.rows.values()))
    yield _legend(study)


def _state(results: Results) -> str:
    runs, missing = len(results.rows), results.missing
    problems = sum(int(row["n"]) for row in results.rows.values())
    unfinished = f" {missing} runs are not finished and are missing here." if missing else ""
    text = (
        f"{runs} runs, {problems} decodes.{unfinished} Intervals are 95%: Wilson for shares, bootstrap over problems "
    )
    return text + "for ARness. One row a run with every metric: runs.csv and runs.parquet."


def _paragraphs(text: str) -> Iterator[str]:
    yield from (f"<p>{escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def _sweep(results: Results, sweep: Mapping[str, Any]) -> Iterator[str]:
    rows = results.of(sweep)
    yield f'<h2 id="{escape(sweep["name"])}">{escape(sweep["title"])}</h2>'
    yield from _paragraphs(sweep.get("about", ""))
    if not rows:
        yield '<p class="soft">No run of it is finished.</p>'
        return
    keys = plots.varying(rows)
    yield _figures(results.folder, list(plots.of_sweep(sweep, rows, keys)))
    yield _table(sweep, rows, keys)
    yield from _aup(sweep, rows, keys)


def _figures(folder: Path, found: Sequence[tuple[str, Any, str]], wide: bool = False) -> str:
    """Figures in the page, and as files beside it."""
    parts = []
    for name, figure, caption in found:
        target = folder / "figures" / name
        save(figure, target.with_suffix(".png"), target.with_suffix(".svg"), close=False)
        picture = svg_of(figure)
        kind = ' class="wide"' if wide else ""
        parts.append(f"<figure{kind}>{picture}<figcaption>{escape(caption)}</figcaption></figure>")
    return f'<div class="figures">{"".join(parts)}</div>'


def _table(sweep: Mapping[str, Any], rows: Sequence[Row], keys: Sequence[str]) -> str:
    shown = list(sweep["metrics"])
    head = "".join(f'<th class="key">{escape(key)}</th>' for key in keys) + "".join(
        f"<th>{m}</th>" for m in ["n", *shown]
    )
    body = "".join(f"<tr>{_cells(row, keys, shown)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _aup(sweep: Mapping[str, Any], rows: Sequence[Row], keys: Sequence[str]) -> Iterator[str]:
    """AUP of the curves, with the points that were too far below their first."""
    found = plots.aup_of_sweep(sweep, rows, keys)
    if not found:
        return
    best = next(iter(found.values())).best
    head = '<th class="key">curve</th><th>AUP</th><th>points</th><th>dropped</th>'
    body = "".join(f"<tr>{_aup_cells(name, one)}</tr>" for name, one in found.items())
    yield f"<h3>AUP, accuracy under parallelism (best accuracy {best:.1f} %)</h3>"
    yield f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _aup_cells(name: str, one: Aup) -> str:
    cells = f"<td>{one.value:.1f}</td><td>{len(one.points)}</td><td>{_points(one.dropped)}</td>"
    return f'<td class="key">{escape(name)}</td>{cells}'


def _points(points: Sequence[tuple[float, float]]) -> str:
    return ", ".join(f"{y:.1f} % at {x:.2f}" for x, y in points) or "–"


def _cells(row: Row, keys: Sequence[str], shown: Sequence[str]) -> str:
    names = "".join(f'<td class="key">{escape(plots.text(row.get(key)))}</td>' for key in keys)
    return names + f"<td>{row['n']}</td>" + "".join(f"<td>{_value(row, name)}</td>" for name in shown)


def _value(row: Row, name: str) -> str:
    value = row.get(name)
    if value is None:
        return '<span class="none">–</span>'
    shown = plots.text(value)
    if name in _WITH_INTERVAL and row.get(f"{name}_low") is not None:
        return f"{shown} [{plots.text(row[f'{name}_low'])}, {plots.text(row[f'{name}_high'])}]"
    return shown


def _machines(rows: Sequence[Row]) -> str:
    kinds = {tuple(row.get(key) for key in _MACHINE): row for row in rows}
    head = "".join(f'<th class="key">{key}</th>' for key in _MACHINE)
    body = "".join(
        "<tr>" + "".join(f'<td class="key">{escape(plots.text(value))}</td>' for value in kind) + "</tr>"
        for kind in kinds
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _legend(study: Mapping[str, Any]) -> str:
    shown = dict.fromkeys(name for sweep in study["sweeps"] for name in sweep["metrics"])
    rows = "".join(
        f'<tr><td class="key">{name}</td><td class="key">{escape(METRICS[name])}</td></tr>' for name in shown
    )
    return f"<h3>What the columns mean</h3><table><tbody>{rows}</tbody></table>"
