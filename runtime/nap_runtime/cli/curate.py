"""`nap data curate`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nap_runtime import places
from nap_runtime.cli.output import Row, align, dumps
from nap_runtime.cli.parser import FAILURE, Parser, integer, key_value, natural, number, positive
from nap_runtime.errors import UsageError

if TYPE_CHECKING:
    from nap_trainer.data.curate import Progress, Tally
    from nap_trainer.data.judge import Rules
    from nap_trainer.data.teachers import Teacher

_TEACHERS = ("openai", "hf")
_OPENAI = ("base_url", "api_key_env", "concurrency", "timeout", "retries", "backoff", "teacher_arg")
_HF = ("gguf_file", "device", "batch_size")
_KEY = "OPENAI_API_KEY"
_DAY = 86_400
_ABOUT = """\
Let a teacher solve questions several times each, and make rows for training of its traces.

QUESTIONS holds `question` and `answer` (as in GSM8K, "… #### 18", or the answer alone). Each trace is asked for on
its own. Traces that were cut short, or are nearly equal to an earlier one, are dropped and sampled again; those
with a wrong answer are kept and flagged, or a share of them. The summary is made from the right answer.

Every trace is appended to OUT.journal before anything else happens. The same command continues a run that ended or
was killed; other rules (--paths, --keep-wrong, …) use the traces that are there. Exit code 1: a trace could not be
had, run it again.
"""


def register(group: Parser) -> None:
    """Add the command."""
    parser = group.command("curate", _ABOUT, _run)
    parser.add_argument("questions", type=Path, metavar="QUESTIONS")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="where to (required)")
    parser.add_argument("--limit", type=positive, metavar="N", help="the first N questions (default: all)")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON (default: a table)")
    _add_teacher(parser)
    _add_rules(parser)
    _add_endpoint(parser)
    _add_local(parser)


def _add_teacher(parser: Parser) -> None:
    add = parser.add_argument_group("teacher").add_argument
    text = "an OpenAI-compatible endpoint, or a local Hugging Face causal LM (required)"
    add("--teacher", required=True, metavar="|".join(_TEACHERS), help=text)
    add("--model", required=True, metavar="M", help="its name at the endpoint, or its folder (required)")
    add("--temperature", type=number, default=1.0, metavar="X", help="(default: 1.0)")
    add("--max-tokens", type=positive, default=1024, metavar="N", help="of one trace (default: 1024)")
    add("--prompt-file", type=Path, metavar="FILE", help="a prompt with {question} in it (default: a built-in one)")
    text = "a seed of its own for each trace (default: the endpoint's choice; hf: 0)"
    add("--seed", type=integer, metavar="S", help=text)
    text = "end after N failed traces in a row; 0: never (default: 20)"
    add("--give-up", type=natural, default=20, metavar="N", help=text)


def _add_rules(parser: Parser) -> None:
    add = parser.add_argument_group("rows").add_argument
    add("--paths", type=positive, default=3, metavar="P", help="of one row (default: 3)")
    add("--min-paths", type=positive, metavar="N", help="a row with fewer is dropped (default: P)")
    add("--max-traces", type=positive, metavar="N", help="sampled for one question at most (default: 2 P)")
    text = "share of paths with a wrong answer that is kept, flagged in `wrong` (default: 1.0)"
    add("--keep-wrong", type=number, default=1.0, metavar="X", help=text)
    text = "paths with this trigram Jaccard or more are one (default: 0.9)"
    add("--similarity", type=number, default=0.9, metavar="X", help=text)


def _add_endpoint(parser: Parser) -> None:
    add = parser.add_argument_group("--teacher openai").add_argument
    add("--base-url", metavar="URL", help="such as http://host:8000/v1 (required)")
    add("--api-key-env", metavar="NAME", help=f"variable that holds the key (default: {_KEY}, if set)")
    add("--concurrency", type=positive, metavar="N", help="requests at once (default: 8)")
    add("--timeout", type=number, metavar="X", help="seconds for one request (default: 120)")
    add("--retries", type=natural, metavar="N", help="tries after the first (default: 6)")
    add("--backoff", type=number, metavar="X", help="seconds before the first retry, then doubled (default: 1)")
    text = "another field of the request, as JSON or text, such as top_p=0.95; null leaves one out (default: none)"
    add("--teacher-arg", type=key_value, action="append", metavar="KEY=VALUE", help=text)


def _add_local(parser: Parser) -> None:
    add = parser.add_argument_group("--teacher hf").add_argument
    add(
        "--gguf-file",
        metavar="NAME",
        help="a GGUF file in the folder; needs the packages gguf and accelerate (default: none)",
    )
    add("--device", metavar="cpu|cuda", help="(default: cpu)")
    add("--batch-size", type=positive, metavar="N", help="traces made at once (default: 8)")


def _run(args: argparse.Namespace) -> int:
    _check_options(args)
    places.prepare(args.out, "out", args.questions)
    from nap_trainer.data.curate import Curation
    from nap_trainer.data.prompts import PROMPT, read_prompt
    from nap_trainer.data.questions import read_questions

    rules = _rules(args)
    template = read_prompt(args.prompt_file) if "prompt_file" in args else PROMPT
    questions, repeated = read_questions(args.questions, getattr(args, "limit", None))
    teacher = _openai(args) if args.teacher == "openai" else _hf(args)
    with _progress() as progress:
        tally = Curation(
            questions=questions,
            out=args.out,
            teacher=teacher,
            rules=rules,
            template=template,
            give_up=args.give_up,
            progress=progress,
        ).run()
    counts = {"out": str(args.out), **tally.to_json(), "repeated": repeated}
    print(dumps(counts) if "json" in args else align(_table(args, tally, repeated)))
    return FAILURE if tally.failed else 0


# -- options ---------------------------------------------------------------------------------------


def _check_options(args: argparse.Namespace) -> None:
    if args.teacher not in _TEACHERS:
        raise UsageError(f"teacher: unknown value '{args.teacher}'; use one of {', '.join(_TEACHERS)}", field="teacher")
    for name in _HF if args.teacher == "openai" else _OPENAI:
        if name in args:
            raise UsageError(f"{name}: --teacher {args.teacher} does not use it; leave it out", field=name)
    if args.teacher == "openai" and "base_url" not in args:
        raise UsageError("base_url: missing; --teacher openai needs it", field="base_url")
    if not 0 <= args.temperature <= 10:
        raise UsageError(f"temperature: {args.temperature} is not from 0 to 10", field="temperature")
    if not 0 < getattr(args, "timeout", 1) <= _DAY:
        raise UsageError(f"timeout: {args.timeout} is not a number of seconds up to a day", field="timeout")
    if not 0 <= getattr(args, "backoff", 1) <= _DAY:
        raise UsageError(f"backoff: {args.backoff} is not a number of seconds up to a day", field="backoff")


def _rules(args: argparse.Namespace) -> Rules:
    from nap_trainer.data.judge import Rules

    return Rules(
        paths=args.paths,
        min_paths=getattr(args, "min_paths", None),
        max_traces=getattr(args, "max_traces", None),
        keep_wrong=args.keep_wrong,
        similarity=args.similarity,
    )


def _given(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The options that were given; the others keep the defaults of whoever takes them."""
    return {name: getattr(args, name) for name in names if name in args}


def _openai(args: argparse.Namespace) -> Teacher:
    from nap_trainer.data.openai import Endpoint, OpenAITeacher, read_key

    key = read_key(getattr(args, "api_key_env", _KEY), required="api_key_env" in args)
    arguments = {name: _json(text) for name, text in getattr(args, "teacher_arg", ())}
    names = ("base_url", "model", "temperature", "max_tokens", "seed", "concurrency", "timeout", "retries", "backoff")
    return OpenAITeacher(Endpoint(api_key=key, arguments=arguments, **_given(args, names)))


def _hf(args: argparse.Namespace) -> Teacher:
    from nap_runtime.api import check_device
    from nap_trainer.data.local import LocalModel, LocalTeacher

    check_device(getattr(args, "device", "cpu"))
    names = ("gguf_file", "temperature", "max_tokens", "seed", "batch_size", "device")
    return LocalTeacher(LocalModel(folder=Path(args.model).expanduser(), **_given(args, names)))


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


# -- what it shows ---------------------------------------------------------------------------------


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, wanted: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("traces"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("traces", total=None)
        yield lambda done, wanted: bar.update(task, completed=done, total=wanted)


def _table(args: argparse.Namespace, tally: Tally, repeated: int) -> list[Row]:
    more = f", {repeated} repeated left out" if repeated else ""
    right = f", {tally.right} of them right" if tally.paths else ""
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(tally.dropped.items()))
    rows = [
        ("questions", f"{tally.questions}{more}"),
        ("rows", f"{tally.rows} written to {args.out}"),
        ("paths", f"{tally.paths}{right}"),
        ("sampled", f"{tally.sampled} traces now; dropped of all: {dropped or 'none'}"),
        ("no row", f"{tally.too_few} with too few paths, {tally.incomplete} incomplete"),
    ]
    if tally.failed:
        rows.append(("failed", f"{tally.failed} traces, the last: {tally.last_failure}; run it again to continue"))
    return rows
