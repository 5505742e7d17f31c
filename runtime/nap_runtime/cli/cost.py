"""`nap cost predict | calibrate`: what syncs cost on links and devices that are not at hand."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nap_runtime import places
from nap_runtime.cli import output
from nap_runtime.cli.parser import Parser, integer, positive
from nap_runtime.errors import DataError, UsageError
from nap_runtime.policy import SyncPolicy
from nap_runtime.storage import STORED

if TYPE_CHECKING:
    from nap_runtime.study.cost.calibrate import Calibration
    from nap_runtime.study.cost.predict import Machine, Prediction
    from nap_runtime.study.cost.scenario import Scenario

_PREDICT = """\
Predict step time, sync overhead and bytes for path counts, links and model shapes (docs/cost-model.md).

One path a worker, and the same canvas on one worker. Rows and bytes are counted from the plan, and exact where no path
closes early; seconds come from data-sheet rates, or with --machine from a calibration.
"""
_CALIBRATE = """\
Fit a machine to measured points, and say how far it is off on points that it has not seen.

POINTS is JSON as benchmarks/sync_scaling.py writes it: `points`, each with name, scenario, seconds.
"""
_MODES = ("exact", "tokens", "shared", "kv", "none")
_KEYS = ("shape", "path_tokens", "summary_tokens", "prompt_tokens", "steps", "dtype", "weights", "kv")


def register(root: Parser) -> None:
    """Add the commands."""
    group = root.command("cost", "Predict what syncs cost.")
    _add_predict(group.command("predict", _PREDICT, _predict))
    calibrate = group.command("calibrate", _CALIBRATE, _calibrate)
    calibrate.add_argument("points", type=Path, metavar="POINTS.json")
    text = "a name or pattern of points to predict only, repeatable (default: those marked so in the file)"
    calibrate.add_argument("--hold-out", action="append", metavar="NAME", help=text)
    text = "parameters to fit (default: flops,launch,forward,latency,bandwidth,start)"
    calibrate.add_argument("--fit", type=_names, metavar="NAME,…", help=text)
    calibrate.add_argument("--device", default="cpu", metavar="NAME", help="where the fit starts (default: cpu)")
    calibrate.add_argument("--link", default="10g", metavar="NAME", help="where the fit starts (default: 10g)")
    calibrate.add_argument("--out", type=Path, metavar="FILE", help="JSON, for --machine (default: none)")


def _add_predict(parser: Parser) -> None:
    parser.add_argument("--shape", default="llada-8b", metavar="NAME|PATH", help="(default: llada-8b)")
    parser.add_argument("--paths", type=_integers, default=(1, 2, 3, 6), metavar="M,…", help="(default: 1,2,3,6)")
    parser.add_argument("--sync", type=_names, default=_MODES, metavar="MODE,…", help="(default: all five)")
    parser.add_argument("--every", type=_integers, default=(1, 8), metavar="K,…", help="(default: 1,8)")
    text = "links of workers (default: nvlink,100g,25g,10g,1g,wan)"
    parser.add_argument("--link", type=_names, metavar="NAME,…", help=text)
    parser.add_argument("--device", metavar="NAME", help="h100, h200, a100 or cpu (default: h100)")
    parser.add_argument("--machine", type=Path, metavar="FILE", help="a calibration (default: none)")
    parser.add_argument("--path-tokens", type=positive, default=330, metavar="N", help="(default: 330)")
    parser.add_argument("--summary-tokens", type=positive, default=32, metavar="N", help="(default: 32)")
    parser.add_argument("--prompt-tokens", type=positive, default=128, metavar="N", help="(default: 128)")
    parser.add_argument("--steps", type=positive, metavar="T", help="(default: one a slot)")
    parser.add_argument("--dtype", default="bfloat16", metavar="TYPE", help="(default: bfloat16)")
    for name, what in (("weights", "numbers of the layers' matrices"), ("kv", "numbers of keys and values")):
        parser.add_argument(f"--{name}", metavar="|".join(STORED), default="native", help=f"{what} (default: native)")
    text = "slots of all paths together, shared out among them, in place of --path-tokens (default: off)"
    parser.add_argument("--total-tokens", type=positive, metavar="N", help=text)
    parser.add_argument("--json", action="store_true", help="one JSON object (default: a table)")


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def _integers(text: str) -> tuple[int, ...]:
    values = tuple(integer(part) for part in text.split(","))
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' holds a number below 1")
    return values


# -- predict ---------------------------------------------------------------------------------------


def _predict(args: argparse.Namespace) -> int:
    from nap_runtime.study.cost.predict import Work

    rows, machines = [], _machines(args)
    for scenario in _scenarios(args):
        work = Work.of(scenario)  # once for all links: counting takes longer than following their clocks
        some = machines if scenario.workers > 1 else machines[:1]
        rows += [(scenario, link, work.on(machine)) for link, machine in some]
    if "json" in args:
        print(output.dumps({"schema": "nap.cost/1", "rows": [_json(*row) for row in rows]}))
    else:
        print(_table(rows))
    return 0


def _scenarios(args: argparse.Namespace) -> Iterator[Scenario]:
    from nap_runtime.study.cost.scenario import Scenario

    values = {key: getattr(args, key) for key in _KEYS if key in args}
    for paths in args.paths:
        if "total_tokens" in args:
            values["path_tokens"] = max(args.total_tokens // paths, 1)
        yield Scenario(paths=paths, workers=1, **values)  # one device: what the others are compared with
        for policy in _policies(args) if paths > 1 else ():
            yield Scenario(paths=paths, workers=paths, sync=policy, **values)


def _policies(args: argparse.Namespace) -> Iterator[SyncPolicy]:
    for mode in args.sync:
        for every in args.every if mode in ("tokens", "shared", "kv") else (None,):
            yield SyncPolicy(mode, every=every)


def _links(args: argparse.Namespace) -> tuple[str, ...]:
    from nap_runtime.study.cost.predict import LINKS

    if "machine" in args and "link" not in args:
        return ("calibrated",)
    links: tuple[str, ...] = getattr(args, "link", tuple(LINKS))
    return links


def _machines(args: argparse.Namespace) -> list[tuple[str, Machine]]:
    """Each link by its name, with the device."""
    from nap_runtime.study.cost.predict import Machine

    if "machine" in args and "device" in args:
        raise UsageError("device: --machine has one; leave it out", field="device")
    values = _read(args.machine) if "machine" in args else {"device": getattr(args, "device", "h100")}
    found = []
    for name in _links(args):
        link = values["link"] if name == "calibrated" else name
        found.append((name, Machine.from_mapping({"device": values["device"], "link": link})))
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"machine: {file}: {error.strerror}", field="machine") from error
    except ValueError as error:
        raise DataError(f"{file}: not JSON") from error
    if not isinstance(values, dict) or not {"device", "link"} <= values.keys():
        raise DataError(f"{file}: no calibration; it has 'device' and 'link'")
    return values


def _json(scenario: Scenario, link: str, found: Prediction) -> dict[str, Any]:
    derived = {key: getattr(found, key) for key in ("step_seconds", "blocked_share", "bytes_per_token")}
    return {"scenario": scenario.to_mapping(), "link": link, **asdict(found), **derived}


def _table(rows: Sequence[tuple[Scenario, str, Prediction]]) -> str:
    head = ("paths", "workers", "sync", "link", "ms/step", "sync ms/step", "blocked", "bytes/token", "rows/step")
    return _columns(head, [_cells(*row) for row in rows])


def _cells(scenario: Scenario, link: str, found: Prediction) -> tuple[str, ...]:
    every = "" if scenario.sync.every is None else f", K = {scenario.sync.every}"
    times = (f"{1e3 * found.step_seconds:.2f}", f"{1e3 * found.sync_seconds / found.steps:.3f}")
    shares = (f"{100 * found.blocked_share:.1f} %", f"{found.bytes_per_token:.0f}", f"{found.rows / found.steps:.0f}")
    where = (str(scenario.paths), str(scenario.workers), f"{scenario.sync.mode}{every}")
    return (*where, link if scenario.workers > 1 else "–", *times, *shares)


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    align: Sequence[Callable[[str, int], str]] = [_left] * 4 + [_right] * (len(head) - 4)
    lines = ["  ".join(put(c, w) for put, c, w in zip(align, row, widths, strict=True)) for row in (head, *rows)]
    return "\n".join(line.rstrip() for line in lines)


def _left(cell: str, width: int) -> str:
    return cell.ljust(width)


def _right(cell: str, width: int) -> str:
    return cell.rjust(width)


# -- calibrate -------------------------------------------------------------------------------------


def _calibrate(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from nap_runtime.models.files import write_text_atomic
    from nap_runtime.study.cost.calibrate import FITTED, calibrate, read_points
    from nap_runtime.study.cost.predict import Machine

    if "out" in args:
        places.prepare(args.out, "out", args.points)
    points = read_points(args.points)
    if "hold_out" in args:
        points = [replace(p, hold_out=any(fnmatch(p.name, pattern) for pattern in args.hold_out)) for p in points]
    start = Machine.from_mapping({"device": args.device, "link": args.link})
    found = calibrate(points, start, fitted=getattr(args, "fit", FITTED))
    if "out" in args:
        write_text_atomic(args.out, json.dumps(found.to_json(), indent=1) + "\n")
    print(_report(found))
    return 0


def _report(found: Calibration) -> str:
    values = {**asdict(found.machine.device), **asdict(found.machine.link)}
    rows = [(name, f"{value:.4g}{'' if name in found.fitted else '  as given'}") for name, value in values.items()]
    for kind, held_out in (("used", False), ("held out", True)):
        error = found.error(held_out=held_out)
        n = sum((name in found.held_out) is held_out for name in found.errors)
        said = "none" if error is None else f"median {100 * error[0]:.1f} %, largest {100 * error[1]:.1f} %"
        rows.append((f"{n} points {kind}", f"relative error {said}"))
    rows += [
        (f"  {name}", f"{100 * error:+.1f} %{'  held out' if name in found.held_out else ''}")
        for name, error in found.errors.items()
    ]
    return output.align(rows)
