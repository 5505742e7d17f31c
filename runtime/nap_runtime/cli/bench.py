"""`nap bench`: our decodes and their peers in one run on the same weights; histories of ratios."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nap_runtime import places
from nap_runtime.cli import output
from nap_runtime.cli.parser import FAILURE, Parser, integer, positive
from nap_runtime.errors import UsageError
from nap_runtime.job import DEVICES, DTYPES
from nap_runtime.numerics import NUMERICS

if TYPE_CHECKING:
    from nap_runtime.bench.history import Change
    from nap_runtime.bench.spec import BenchSpec

_ABOUT = """\
Measure decodes and their peers in one run on the same weights (docs/bench.md).

Without options: nap-tiny on this CPU, in less than a minute. With --compare nothing is measured: the ratios of two runs
on one kind of device are held against each other, never their milliseconds.
"""
_SYNCS, _STORED = "exact|kv|tokens|shared|none", "native|fp8"


def register(root: Parser) -> None:
    """Add the command."""
    parser = root.command("bench", _ABOUT, _run)
    _add_model(parser)
    _add_ways(parser)
    out = parser.add_argument_group("results")
    out.add_argument("--json", action="store_true", help="one JSON object in place of the table (default: the table)")
    out.add_argument("--out", type=Path, metavar="FILE", help="JSON file of the run (default: none)")
    out.add_argument("--plot", type=Path, metavar="FILE", help="bars as png, svg or pdf (default: none)")
    text = "append the run's ratios to its history in this folder (default: none)"
    out.add_argument("--record", type=Path, metavar="DIR", help=text)
    text = "compare the last two runs of a history, or the last of two files; repeatable (default: measure)"
    out.add_argument("--compare", type=Path, metavar="FILE", action="append", help=text)
    text = "relative change of a ratio that --compare takes for noise (default: 0.1)"
    out.add_argument("--allow", type=float, metavar="X", help=text)


def _add_model(parser: Parser) -> None:
    group = parser.add_argument_group("what is decoded")
    group.add_argument("--model", metavar="nap-tiny|PATH", help="(default: nap-tiny)")
    group.add_argument("--shape", metavar="NAME", help="random weights of a shape, such as llada-8b (default: none)")
    group.add_argument("--device", metavar="|".join(DEVICES), help="(default: cpu)")
    group.add_argument("--dtype", metavar="|".join(DTYPES), help="(default: float32; bfloat16 on cuda)")
    group.add_argument("--paths", type=positive, metavar="M", help="(default: 3)")
    group.add_argument("--path-tokens", type=positive, metavar="N", help="slots of each path (default: the model's)")
    group.add_argument("--summary-tokens", type=positive, metavar="N", help="(default: the model's)")
    group.add_argument("--prompt-tokens", type=positive, metavar="N", help="of a shape (default: 128)")
    text = "slots a step commits, of all paths together (default: 4; of a shape 16)"
    group.add_argument("--tokens-per-step", type=float, metavar="N", help=text)
    group.add_argument("--seed", type=integer, metavar="S", help="of random weights and prompts (default: 0)")


def _add_ways(parser: Parser) -> None:
    group = parser.add_argument_group("how it is decoded; lists are separated by commas")
    text = "ours, views, llada, prefix, dual, branches, sequence (default: all)"
    group.add_argument("--methods", type=_names, metavar="NAME,…", help=text)
    group.add_argument("--workers", type=_integers, metavar="W,…", help="sizes of groups; 1 needs no Ray (default: 1)")
    group.add_argument("--sync", type=_names, metavar=f"{_SYNCS},…", help="(default: all)")
    group.add_argument("--every", type=_integers, metavar="K,…", help="steps between syncs (default: 8)")
    group.add_argument("--batch-size", type=_integers, metavar="B,…", help="of ours (default: 1)")
    text = "how steps are carried out: none, default, graph (default: none)"
    group.add_argument("--compile", type=_names, metavar="MODE,…", help=text)
    group.add_argument("--gemm", metavar="library|tuned", help="products of captured steps (default: library)")
    text = "invariant: bits depend neither on the batch nor, under exact, on the workers; compiled, on cuda"
    group.add_argument("--numerics", metavar="|".join(NUMERICS), help=f"{text} (default: fast)")
    group.add_argument("--attention", metavar="auto|flash|cudnn", help="preferred kernel (default: auto)")
    group.add_argument("--unroll", type=positive, metavar="N", help="steps in one graph (default: 1)")
    group.add_argument("--weights", type=_names, metavar=f"{_STORED},…", help="of the layers (default: native)")
    group.add_argument("--kv", type=_names, metavar=f"{_STORED},…", help="keys and values (default: native)")
    group.add_argument("--branches", type=positive, metavar="N", help="of the peer branches (default: 3)")
    group.add_argument("--repeats", type=positive, metavar="N", help="decodes of each case (default: 5; on cpu 3)")


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(integer(part) for part in text.split(","))


_OUT = ("json", "out", "plot", "record", "compare", "allow", "run", "parser", "command")


def _run(args: argparse.Namespace) -> int:
    if "compare" in args:
        return _compare(args)
    if "allow" in args:
        raise UsageError("allow: only --compare uses it; leave it out", field="allow")
    from nap_runtime.api import check_device
    from nap_runtime.bench import history, report
    from nap_runtime.bench.run import run_bench

    save, spec = _saver(getattr(args, "out", None)), _spec(args)
    check_device(spec.device)
    result = run_bench(spec, command=_command(args), progress=_progress(), save=save)
    save(result)
    if "record" in args:
        print(f"recorded in {history.record(result, args.record)}", file=sys.stderr)
    if "plot" in args:
        report.plot(result, args.plot)
    if "json" in args:
        print(output.dumps(result))
    else:
        report.print_report(result, width=None if sys.stdout.isatty() else 160)
    return FAILURE if _contradicts(result) or result["failed"] else 0


def _saver(file: Path | None) -> Callable[[dict[str, Any]], None]:
    """Writes the file anew, also while the benchmark goes on: what is stopped is not lost."""
    if file is None:
        return lambda _: None
    from nap_runtime.models.files import write_text_atomic

    places.prepare(file, "out")
    return lambda result: write_text_atomic(file, json.dumps(result, indent=1) + "\n")


def _contradicts(result: dict[str, Any]) -> bool:
    """Whether ids that must agree do not; said on stderr."""
    wrong = [row["case"] for row in result["rows"] if row["ids"] and row["ids"]["must_agree"]
             and row["ids"]["agrees"] is False]  # fmt: skip
    for case in wrong:
        print(f"nap bench: {case}: its ids do not agree with what it must equal", file=sys.stderr)
    return bool(wrong)


def _spec(args: argparse.Namespace) -> BenchSpec:
    from nap_runtime.bench.spec import BenchSpec

    given = {name: value for name, value in vars(args).items() if name not in _OUT}
    if "shape" in given and "model" in given:
        raise UsageError("shape: --model has weights of its own; leave one of them out", field="shape")
    if "prompt_tokens" in given and "shape" not in given:
        raise UsageError("prompt_tokens: only --shape uses it; leave it out", field="prompt_tokens")
    if given.get("device") == "cuda":
        given.setdefault("dtype", "bfloat16")
    else:
        given.setdefault("repeats", 3)
    if "shape" in given:
        given.setdefault("tokens_per_step", 16)
    if given.get("numerics") == "invariant":
        given.setdefault("sync", ("exact", "kv", "tokens", "none"))
    return BenchSpec(**given)


def _command(args: argparse.Namespace) -> str:
    """The line that repeats the run; where to put its results is left out."""
    words = ["nap bench"]
    for name, value in vars(args).items():
        if name not in _OUT:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words.append(f"--{name.replace('_', '-')} {shlex.quote(text)}")
    return " ".join(words)


def _progress() -> Callable[[str], None]:
    """What is at work, on a terminal only."""
    if not sys.stderr.isatty():
        return lambda _: None

    def say(text: str) -> None:
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    return say


# -- compare ---------------------------------------------------------------------------------------


def _compare(args: argparse.Namespace) -> int:
    from nap_runtime.bench.history import compare_runs, last_two

    for name in vars(args):
        if name not in ("compare", "allow", "run", "parser", "command", "json"):
            raise UsageError(f"{name}: --compare measures nothing; leave it out", field=name)
    before, after = last_two(args.compare)
    changes = compare_runs(before, after, allowed=getattr(args, "allow", 0.1))
    if "json" in args:
        print(output.dumps([{name: getattr(change, name) for name in change.__slots__} for change in changes]))
    else:
        rows = [("case", "speed before, now; over the floor before, now; equal ids before, now")]
        rows += [(change.case, _line(change)) for change in changes]
        print(output.align([*rows, ("", ""), ("before", _where(before)), ("now", _where(after))]))
    return FAILURE if any(change.worse for change in changes) else 0


def _line(change: Change) -> str:
    pairs = [
        f"{_number(change.before[name])} {_number(change.after[name])}" for name in ("speed", "over_floor", "equal")
    ]
    return f"{'; '.join(pairs)}{'  SLOWER' if change.worse else ''}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _where(entry: dict[str, Any]) -> str:
    made = f"{entry['when']}, commit {entry['commit']}, torch {entry['torch']}"
    return f"{made}, {entry['device_name']}, load {entry['load']:.1f}"
