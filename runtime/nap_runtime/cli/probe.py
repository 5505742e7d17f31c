"""`nap probe reliance | copying | baselines`: what paths do for the summary, by giving them texts of our own."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nap_runtime.cli import output, session
from nap_runtime.cli.evaluate.common import open_model, share_text
from nap_runtime.cli.options import add_decode_options
from nap_runtime.cli.parser import Parser, integer, positive
from nap_runtime.cli.settings import Settings
from nap_runtime.errors import UsageError
from nap_runtime.job import SyncPolicy

if TYPE_CHECKING:
    from nap_runtime.study.controls.cases import Case
    from nap_runtime.study.controls.decoding import Lab

SCHEMA = "nap.probe/1"
_RELIANCE = """\
Give the paths texts of our own and read the summary: right, masked, another problem's, wrong, most of them wrong.

Beside the summary's accuracy stand the paths' own, their vote, and whether any of them is right.
"""
_COPYING = """\
Give path 1 a wrong number on its way, and count how often the other paths write it, against K.

The base rate, how often they write it when nothing is given, is taken off. One path a worker (--workers M --simulate).
"""
_BASELINES = """\
Spend the same path slots otherwise: a vote over M independent decodes, the surest of them, one long path.

Needs --temperature above 0, so that independent decodes differ.
"""
_EVERY = "values of K of the sync, beside sync none, and exact where the topology allows (default: 1,4,16)"
_Measure = Callable[["Lab", Sequence["Case"], Settings], tuple[dict[str, Any], str]]


def register(root: Parser) -> None:
    """Add the commands."""
    group = root.command("probe", "Find out what paths do for the answer.")
    reliance = group.command("reliance", _RELIANCE, lambda args: _run(args, "reliance", _reliance(args)))
    copying = group.command("copying", _COPYING, lambda args: _run(args, "copying", _copying(args)))
    copying.add_argument("--ks", type=_integers, default=(1, 4, 16), metavar="K,K,…", help=_EVERY)
    baselines = group.command("baselines", _BASELINES, lambda args: _run(args, "baselines", _baselines(args)))
    for parser, without in ((reliance, ()), (copying, ("every",)), (baselines, ())):
        parser.add_argument("--n", type=positive, default=50, metavar="N", help="problems (default: 50)")
        text = "NAP data with right paths, JSONL or parquet (default: held-out word problems)"
        parser.add_argument("--data", type=Path, metavar="FILE", help=text)
        parser.add_argument("--json", action="store_true", help="one JSON object (default: a table)")
        text = "slots committed a step, instead of --steps (default: 1)"
        parser.add_argument("--tokens-per-step", type=positive, metavar="N", help=text)
        add_decode_options(parser, without=("layout", "gen-length", "cache", "cache-every", *without))


def _integers(text: str) -> tuple[int, ...]:
    values = tuple(integer(part) for part in text.split(","))
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' holds a number below 1")
    return values


def _run(args: argparse.Namespace, what: str, measure: _Measure) -> int:
    from nap_runtime.study.controls.cases import read_cases
    from nap_runtime.study.controls.decoding import Lab
    from nap_runtime.study.environment import commit

    card, settings = open_model(args)
    if settings.config.layout != "nap":
        raise UsageError("layout: probes need layout 'nap'", field="layout")
    data, config = getattr(args, "data", None), settings.config
    cases = read_cases(n=args.n, paths=config.n_paths, seed=config.seed, data=data)
    with session.coordinator(card, settings, quiet="json" in args) as coordinator:
        lab = Lab(coordinator=coordinator, config=config, batch_size=settings.batch_size, cancelled=session.interrupted)
        found, text = measure(lab, cases, settings)
    report = {"schema": SCHEMA, "probe": what, "n": len(cases), "data": None if data is None else str(data)}
    report |= {what: found, "config": settings.to_mapping(), "commit": commit()}
    print(output.dumps(report) if "json" in args else f"{_head(report, settings)}\n{text}")
    return 0


def _head(report: Mapping[str, Any], settings: Settings) -> str:
    sync, config = settings.config.sync, settings.config
    return (
        f"{report['n']} problems of {report['data'] or f'words (test, seed {config.seed})'}, {settings.model}, "
        f"{config.n_paths} paths, {settings.workers} workers, sync {sync.mode}, topology {sync.sees}\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as what they hold."""
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    return "\n".join(line.rstrip() for line in lines)


def _share(values: Mapping[str, Any]) -> str:
    """A share, of how many, and its interval."""
    return f"{values['share']:.2f} [{values['interval'][0]:.2f}, {values['interval'][1]:.2f}]" if values["n"] else "–"


# -- reliance --------------------------------------------------------------------------------------


def _reliance(args: argparse.Namespace) -> _Measure:
    def measure(lab: Lab, cases: Sequence[Case], settings: Settings) -> tuple[dict[str, Any], str]:
        from nap_runtime.study.controls.reliance import CONDITIONS, reliance

        found = reliance(lab, cases, seed=settings.config.seed)
        shown = ("path", "vote", "any_path", "summary", "follows_vote", "follows_wrong")
        rows = [(name, *(_share(values[key]) for key in shown)) for name, values in found.items()]
        head = (
            "paths",
            "path right",
            "vote right",
            "any path right",
            "summary right",
            "follows vote",
            "if it is wrong",
        )
        return found, f"{_table(head, rows)}\n\n{output.align(list(CONDITIONS.items()))}"

    return measure


# -- copying ---------------------------------------------------------------------------------------


def _copying(args: argparse.Namespace) -> _Measure:
    def measure(lab: Lab, cases: Sequence[Case], settings: Settings) -> tuple[dict[str, Any], str]:
        from nap_runtime.study.controls.copying import copying

        found = copying(lab, cases, _policies(lab, args.ks), seed=settings.config.seed)
        head = ("sync", "planted", "base", "difference", "staleness", "summary: planted", "base")
        return found, _table(head, [_copied(name, values) for name, values in found.items()])

    return measure


def _policies(lab: Lab, every: Sequence[int]) -> dict[str, SyncPolicy]:
    sync = lab.config.sync
    if lab.coordinator.executor.workers < 2:
        text = "workers: on one worker paths see each other at every step; give --workers M --simulate"
        raise UsageError(text, field="workers")
    if sync.mode not in ("tokens", "kv", "shared"):
        raise UsageError(f"sync: '{sync.mode}' has no K; use tokens, kv or shared", field="sync")
    policies = {f"{sync.mode}, K = {k}": replace(sync, every=k) for k in every}
    plain = {"topology": sync.topology, "summary": "gather"}
    return {"exact": SyncPolicy("exact", **plain), **policies, "none": SyncPolicy("none", **plain)}  # type: ignore[arg-type]


def _copied(name: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = values["interval"]
    age = values["staleness"]
    rates = (
        f"{values['planted']:.3f}",
        f"{values['base']:.3f}",
        f"{values['difference']:+.3f} [{low:+.3f}, {high:+.3f}]",
    )
    accuracy = (f"{values['accuracy_planted']:.2f}", f"{values['accuracy_base']:.2f}")
    return name, *rates, "–" if age is None else f"{age:.1f}", *accuracy


# -- baselines -------------------------------------------------------------------------------------


def _baselines(args: argparse.Namespace) -> _Measure:
    def measure(lab: Lab, cases: Sequence[Case], settings: Settings) -> tuple[dict[str, Any], str]:
        from nap_runtime.study.controls.baselines import ARMS, baselines

        with session.coordinator(lab.coordinator.card, _on_one(settings), quiet=True) as alone:
            found = baselines(lab, replace(lab, coordinator=alone), cases)
        rows = [
            (name, share_text(arm["accuracy"]), f"{arm['rows']:.0f}", f"{arm['tokens']:.0f}")
            for name, arm in found.items()
        ]
        return found, f"{_table(('arm', 'accuracy', 'rows', 'tokens'), rows)}\n\n{output.align(list(ARMS.items()))}"

    return measure


def _on_one(settings: Settings) -> Settings:
    """The same on one worker of this process."""
    sync = SyncPolicy("exact", topology=settings.config.sync.topology)
    return replace(
        settings, workers=1, simulate=False, address=None, placement=None, config=settings.config.with_values(sync=sync)
    )
