"""`nap study run | report | pack`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nap_runtime.cli import output, session
from nap_runtime.cli.parser import FAILURE, Parser, key_value, positive
from nap_runtime.errors import NapError
from nap_runtime.yaml_files import yaml_value

if TYPE_CHECKING:
    from nap_runtime.study.run import Run

_RUN = """\
Make every run of a study, and its report.

FILE is YAML (see examples/studies): problems, settings that all runs share, sweeps over others. A study that was
stopped goes on where it was: no problem is decoded twice, no row is lost. DIR gets runs.csv and runs.parquet (one row
a run), problems/ (one line a problem), traces/, report.html and figures/.
"""
_REPORT = """\
Write the tables and the report of a study's folder again, from what is finished.
"""
_PACK = """\
Keep a study's records in small: the table of runs, and what is right, problem by problem; no texts.
"""


def register(root: Parser) -> None:
    """Add the commands."""
    group = root.command("study", "Run sweeps over how paths talk, and draw what comes of it.")
    run = group.command("run", _RUN, _run)
    run.add_argument("file", metavar="FILE.yaml", type=Path)
    run.add_argument("--out", required=True, type=Path, metavar="DIR", help="where results go (required)")
    text = "a variable of the study's `set`, repeatable (default: the study's own)"
    run.add_argument("--set", action="append", type=key_value, metavar="NAME=VALUE", help=text)
    run.add_argument("--dry-run", action="store_true", help="check and list the runs, and stop (default: off)")
    text = "runs that are made at once, each in a process of its own; times are then a shared machine's (default: 1)"
    run.add_argument("--jobs", type=positive, metavar="N", help=text)
    run.add_argument("--no-report", action="store_true", help="write the tables only (default: the report too)")
    report = group.command("report", _REPORT, _report)
    report.add_argument("folder", metavar="DIR", type=Path)
    pack = group.command("pack", _PACK, _pack)
    pack.add_argument("folder", metavar="DIR", type=Path)
    pack.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="where records go (required)")


def _run(args: argparse.Namespace) -> int:
    from nap_runtime.study.run import plan, run_study
    from nap_runtime.study.spec import read_study

    study = read_study(args.file, {name: _typed(value) for name, value in getattr(args, "set", [])})
    if "dry_run" in args:
        runs = plan(study)
        print(output.align([(run.id, f"{'; '.join(run.sweeps)}: {_label(run)}") for run in runs]))
        print(f"{len(runs)} runs, {sum(len(run.problems) for run in runs)} decodes")
        return 0
    jobs = getattr(args, "jobs", 1)
    failed = run_study(study, args.out, listener=_progress(args.out), cancelled=session.interrupted, jobs=jobs)
    print(args.out / "runs.csv")
    if "no_report" not in args and (args.out / "runs.csv").stat().st_size > 1:
        from nap_runtime.study.report import write_report

        print(write_report(args.out))
    return FAILURE if failed else 0


def _report(args: argparse.Namespace) -> int:
    from nap_runtime.study.report import write_report

    print(write_report(args.folder))
    return 0


def _pack(args: argparse.Namespace) -> int:
    from nap_runtime.study.pack import pack

    print(pack(args.folder, args.out))
    return 0


def _typed(value: str) -> Any:
    """A variable's value as YAML reads it: a number, a truth value, a text."""
    try:
        return yaml_value(value)
    except ValueError:
        return value


def _label(run: Run) -> str:
    values = run.spec.values
    shown = [f"{key} {value}" for key, value in values.items() if not key.startswith("problems.")]
    return f"{len(run.problems)} problems of {run.spec.problems()['set']}; {', '.join(shown)}"


def _progress(out: Path) -> Any:
    """A listener that says on stderr which run is at work, and on a terminal how long the rest may take."""
    from nap_runtime.study.listener import Listener

    class Progress(Listener):
        def __init__(self) -> None:
            self._started, self._done, self._shown = time.perf_counter(), 0, 0.0

        def on_plan(self, runs: Sequence[Run], done: int) -> None:
            already = f", {done} finished already" if done else ""
            print(f"nap study: {len(runs)} runs{already}; results in {out}", file=sys.stderr)

        def on_run(self, run: Run, number: int, total: int) -> None:
            print(f"{_clear()}run {number} of {total}: {_label(run)}", file=sys.stderr, flush=True)

        def on_problem(self, run: Run, row: Mapping[str, Any], left: int) -> None:
            self._done += 1
            now = time.perf_counter()
            if sys.stderr.isatty() and now - self._shown > 0.2:
                self._shown = now
                rest = (now - self._started) / self._done * left
                print(f"{_clear()}{left} decodes left, about {_duration(rest)}", end="", file=sys.stderr, flush=True)

        def on_failure(self, run: Run, error: NapError) -> None:
            print(f"{_clear()}nap study: run {run.id} failed: {' '.join(str(error).split())}", file=sys.stderr)

    return Progress()


def _clear() -> str:
    return "\r\x1b[K" if sys.stderr.isatty() else ""


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
