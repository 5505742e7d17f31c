"""Markdown of `shaped_links.py`: seconds and blocked shares, measured beside predicted, a column a link."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from origin import origin

BEGIN, END = "<!-- links:begin -->", "<!-- links:end -->"
Row = Mapping[str, Any]


def page(found: Mapping[str, Any]) -> str:
    """The whole section."""
    rows: list[Row] = found["rows"]
    parts = ["## Over real networks", _about(found)]
    for workers in dict.fromkeys(row["workers"] for row in rows):
        mine = [row for row in rows if row["workers"] == workers]
        more = ", more than there are cores" if mine[0]["oversubscribed"] else ""
        alone = 1e3 * found["one_device"][f"m{workers}"]
        parts += [
            f"### {workers} workers{more}",
            f"Milliseconds a decode, measured / predicted; one worker alone takes {alone:.0f} ms.",
            _table(mine, _seconds),
            "Share of the time that the worker which waits longest is blocked, in percent, measured / predicted.",
            _table(mine, _blocked),
        ]
    parts += ["### How far the model is off", _errors(rows), _links(found["links"])]
    return "\n\n".join(parts)


def _about(found: Mapping[str, Any]) -> str:
    scenario, rows, made = found["scenario"], found["rows"], origin(found)
    where = f"{made['device_name']}, {made['cpus']} cores"
    runs = [row["n"] for row in rows]
    same = "in every cell all decodes gave the same ids" if all(row["same_ids"] for row in rows) else "ids differed"
    errors = ", ".join(f"{name} {100 * error:+.0f} %" for name, error in found["device_errors"].items())
    return (
        f"nap-tiny, float32, one path of {scenario['path_tokens']} slots a worker, summary "
        f"{scenario['summary_tokens']}, prompt {scenario['prompt_tokens']}, {scenario['steps']} steps, every slot "
        f"committed; one thread a worker, gloo, a network namespace each, on {where} (load "
        f"{made['load']:.1f} at the end). Bandwidth is a token bucket on the way out of each host, delay is added "
        f"one way by a relay in user space. Medians of {min(runs)} to {max(runs)} interleaved decodes "
        f"({statistics.median(runs):g} in the median cell; slow cells ran fewest); {same}. `{made['command']}`, "
        f"version {made['version']}, commit {made['commit']}, torch {made['torch']}.\n\n"
        f"Predictions know one worker's decodes (fit: {errors}) and all-gathers of 64 bytes and 1 MiB over each link; "
        f"they know no cell of the tables."
    )


def _table(rows: Sequence[Row], cell: Callable[[Row], str]) -> str:
    links = list(dict.fromkeys(row["link"] for row in rows))
    by = {(row["sync"], row["every"], row["link"]): row for row in rows}
    lines = [_line("sync", *links), _line(*["---"] + ["---:"] * len(links))]
    for sync, every in dict.fromkeys((row["sync"], row["every"]) for row in rows):
        name = f"`{sync}`" + ("" if every is None else f" K = {every}")
        lines.append(_line(name, *(cell(by[sync, every, link]) for link in links)))
    return "\n".join(lines)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _seconds(row: Row) -> str:
    once = "¹" if row["n"] == 1 else ""
    return f"{1e3 * row['seconds']:.0f}{once} / {1e3 * row['predicted_seconds']:.0f}"


def _blocked(row: Row) -> str:
    return f"{100 * row['blocked_share']:.0f} / {100 * row['predicted_blocked_share']:.0f}"


def _errors(rows: Sequence[Row]) -> str:
    lines = [_line("link", "workers", "median error", "largest", "of"), _line("---", "---:", "---:", "---:", "---")]
    for link, workers in dict.fromkeys((row["link"], row["workers"]) for row in rows):
        mine = [row for row in rows if (row["link"], row["workers"]) == (link, workers)]
        worst = max(mine, key=lambda row: abs(row["error"]))
        middle = statistics.median(abs(row["error"]) for row in mine)
        every = "" if worst["every"] is None else f" K = {worst['every']}"
        lines.append(
            _line(
                link,
                str(workers),
                f"{100 * middle:.0f} %",
                f"{100 * worst['error']:+.0f} %",
                f"`{worst['sync']}`{every}",
            )
        )
    note = "" if all(row["n"] > 1 for row in rows) else "\n\n¹ measured once."
    return "Predicted over measured seconds, less 1.\n\n" + "\n".join(lines) + note


def _links(links: Iterable[Mapping[str, Any]]) -> str:
    names = ("link", "workers", "latency of a round", "bandwidth", "auto", "auto, topology hub")
    lines = [_line(*names), _line("---", "---:", "---:", "---:", "---", "---")]
    for link in links:
        rate, auto = f"{8 * link['bandwidth'] / 1e9:.2f} Gbit/s", link["auto"]
        latency = f"{1e3 * link['latency']:.2f} ms"
        lines.append(_line(link["link"], str(link["workers"]), latency, rate, auto["full"], auto["hub"]))
    about = (
        "What the all-gathers gave and the predictions use, and what `--sync auto` takes on such a link with "
        "overheads of at most 10 %. A round takes one way there and one back: gloo sends when the receiver says that "
        "it is ready."
    )
    return about + "\n\n" + "\n".join(lines)


def fill(file: Path, text: str) -> None:
    """Put the section between its markers; a page without them gets them at its end."""
    page_text = file.read_text(encoding="utf-8") if file.exists() else "# Study\n"
    if BEGIN not in page_text:
        page_text = f"{page_text.rstrip()}\n\n{BEGIN}\n{END}\n"
    before, rest = page_text.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    file.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
