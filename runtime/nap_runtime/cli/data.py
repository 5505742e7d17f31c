"""`nap data make | curate | serialize | check`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nap_runtime import places
from nap_runtime.cli import curate
from nap_runtime.cli.output import Row, align, dumps
from nap_runtime.cli.parser import FAILURE, Parser, integer, natural, number, positive
from nap_runtime.errors import UsageError

if TYPE_CHECKING:
    from nap_trainer.data.check import Budgets, Check, Count
    from nap_trainer.data.leakage import EvalSet

_SPLITS = ("train", "test")
_FORMATS = ("nap", "long-cot")
_WORDS = """\
Generate word problems, each with several worked paths, as JSONL. `nap decode --file` reads it.

The test split shares no numbers with the train split; the bundled model is trained on the train split alone.
"""
_STUDY_SPLITS = ("train", "dev", "test")
_STUDY = """\
Generate the harder problems of studies (docs/words-study.md) as JSONL: chains of 2 to 8 operations, three paths each.

The splits share no numbers. Paths go wrong often, and often in the same way; the summary is right.
"""
_LISTS = """\
Generate list operations (copy, reverse, sort, replace, shuffle, …) as JSONL, three paths each.

Their tokens depend on each other in three degrees (`kind` of a row): each place by itself, on all of the list, on a
choice that all places must share.
"""
_SERIALIZE = """\
Write rows as training texts: JSONL with `prompt` and `response`.

  nap       a <think i> block for each path, then the summary
  long-cot  the same paths as one chain in one <think> block, then the summary
"""
_CHECK = """\
Look a data file over: lengths, budgets, variety of paths, answers, repeats, leaks of an evaluation set.

Reads JSONL and parquet. Exit code 1 where a row is malformed or holds a question of the --against set: the same
one, or one of its 13-grams of words.
"""


def register(root: Parser) -> None:
    """Add the commands."""
    group = root.command("data", "Make data.")
    make = group.command("make", "Generate problems.")
    words = make.command("words", _WORDS, _words)
    words.add_argument("--n", type=positive, default=1000, metavar="N", help="problems (default: 1000)")
    words.add_argument("--seed", type=integer, default=0, metavar="S", help="which ones (default: 0)")
    words.add_argument("--split", default="train", metavar="|".join(_SPLITS), help="(default: train)")
    words.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="where to (required)")
    study = make.command("words-study", _STUDY, _words_study)
    study.add_argument("--n", type=positive, default=1000, metavar="N", help="problems (default: 1000)")
    study.add_argument("--seed", type=natural, default=0, metavar="S", help="which ones (default: 0)")
    study.add_argument("--split", default="train", metavar="|".join(_STUDY_SPLITS), help="(default: train)")
    study.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="where to (required)")
    lists = make.command("lists", _LISTS, _lists)
    lists.add_argument("--n", type=positive, default=1000, metavar="N", help="problems (default: 1000)")
    lists.add_argument("--seed", type=natural, default=0, metavar="S", help="which ones (default: 0)")
    lists.add_argument("--split", default="train", metavar="|".join(_SPLITS), help="(default: train)")
    text = "operations, such as copy,sort,shuffle (default: all)"
    lists.add_argument("--operations", metavar="NAME,…", help=text)
    lists.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="where to (required)")
    curate.register(group)
    serialize = group.command("serialize", _SERIALIZE, _serialize)
    serialize.add_argument("file", type=Path, metavar="FILE")
    serialize.add_argument("--format", required=True, metavar="|".join(_FORMATS), help="see above (required)")
    serialize.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="where to (required)")
    _register_check(group.command("check", _CHECK, _check))


def _register_check(check: Parser) -> None:
    check.add_argument("file", type=Path, metavar="FILE")
    text = "count tokens with this model's tokenizer (default: count words)"
    check.add_argument("--model", metavar="nap-tiny|PATH", help=text)
    text = "slots of a {}, its end tag among them (default: the model's own, else {})"
    check.add_argument("--path-tokens", type=positive, metavar="N", help=text.format("path", 330))
    check.add_argument("--summary-tokens", type=positive, metavar="N", help=text.format("summary", 32))
    text = "evaluation set, JSONL or parquet with `question` (default: none)"
    check.add_argument("--against", type=Path, metavar="FILE", help=text)
    text = "a leak shares more than this share of the question's 13-grams (default: 0, any)"
    check.add_argument("--overlap", type=number, metavar="X", help=text)
    text = "rows that are over budget, repeated or contradictory give exit code 1 too (default: off)"
    check.add_argument("--strict", action="store_true", help=text)
    check.add_argument("--show", type=natural, default=10, metavar="N", help="findings of a kind listed (default: 10)")
    check.add_argument("--json", action="store_true", help="one JSON object with all findings (default: a table)")


def _words(args: argparse.Namespace) -> int:
    if args.split not in _SPLITS:
        raise UsageError(f"split: unknown value '{args.split}'; use one of {', '.join(_SPLITS)}", field="split")
    places.prepare(args.out, "out")
    from nap_trainer.words import generate

    return _write_problems(args, (problem.to_json() for problem in generate(args.split, seed=args.seed)))


def _words_study(args: argparse.Namespace) -> int:
    places.prepare(args.out, "out")
    from nap_trainer.words_study import generate

    return _write_problems(args, (problem.to_json() for problem in generate(args.split, seed=args.seed)))


def _lists(args: argparse.Namespace) -> int:
    places.prepare(args.out, "out")
    from nap_trainer.lists import generate

    chosen = args.operations.split(",") if "operations" in args else None
    problems = generate(args.split, seed=args.seed, operations=chosen)
    return _write_problems(args, (problem.to_json() for problem in problems))


def _write_problems(args: argparse.Namespace, rows: Iterator[Mapping[str, Any]]) -> int:
    from nap_runtime.models.files import atomic_path

    with atomic_path(args.out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in islice(rows, args.n):
            file.write(dumps(row) + "\n")
    print(f"{args.out}: {args.n} problems of the {args.split} split, seed {args.seed}")
    return 0


def _serialize(args: argparse.Namespace) -> int:
    if args.format not in _FORMATS:
        raise UsageError(f"format: unknown value '{args.format}'; use one of {', '.join(_FORMATS)}", field="format")
    places.prepare(args.out, "out", args.file)
    from nap_trainer.data.serialize import serialize

    rows = serialize(args.file, args.out, args.format)
    print(f"{args.out}: {rows} rows as {args.format}")
    return 0


# -- check -----------------------------------------------------------------------------------------


def _check(args: argparse.Namespace) -> int:
    if "overlap" in args and "against" not in args:
        raise UsageError("overlap: it needs --against", field="overlap")
    if not 0 <= getattr(args, "overlap", 0) < 1:
        raise UsageError(f"overlap: {args.overlap} is not from 0 to less than 1", field="overlap")
    from nap_trainer.data.check import Check

    budgets, count, unit = _measure(args)
    check = Check(budgets, count, unit, _eval_set(args))
    check.read(args.file)
    if "json" in args:
        print(dumps({"file": str(args.file), **check.report()}))
    else:
        print(_text(args, check))
    return FAILURE if check.failed(strict="strict" in args) else 0


def _measure(args: argparse.Namespace) -> tuple[Budgets, Count, str]:
    """Budgets, and what counts what."""
    from nap_runtime.models.loading import resolve_model
    from nap_runtime.models.prompting import DecodeDefaults
    from nap_runtime.models.tokenizer import load_tokenizer
    from nap_trainer.data.check import Budgets, token_count, word_count

    count: Count = word_count
    defaults, unit = DecodeDefaults(), "words"
    if "model" in args:
        folder = resolve_model(args.model)
        tokenizer = load_tokenizer(folder)
        if tokenizer is None:
            raise UsageError(f"model: {args.model} has no tokenizer; leave it out to count words", field="model")
        defaults, count, unit = DecodeDefaults.of(folder), token_count(tokenizer), "tokens"
    budgets = Budgets(
        path_tokens=getattr(args, "path_tokens", defaults.path_tokens),
        summary_tokens=getattr(args, "summary_tokens", defaults.summary_tokens),
    )
    return budgets, count, unit


def _eval_set(args: argparse.Namespace) -> EvalSet | None:
    if "against" not in args:
        return None
    from nap_trainer.data.leakage import EvalSet

    try:
        return EvalSet.read(args.against, share=getattr(args, "overlap", 0.0))
    except UsageError as error:
        raise UsageError(f"against: {error}", field="against") from None


def _text(args: argparse.Namespace, check: Check) -> str:
    from nap_trainer.data.read import place

    report = check.report()
    lines = [align(_table(args, report))]
    for findings in _findings(report, place(args.file)):
        lines += [f"{args.file}: {text}" for text in findings[: args.show]]
        if len(findings) > args.show:
            lines.append(f"{args.file}: … and {len(findings) - args.show} more of the kind (--show, --json)")
    return "\n".join(lines)


def _table(args: argparse.Namespace, report: Mapping[str, Any]) -> list[Row]:
    paths = ", ".join(f"{rows} with {count}" for count, rows in report["paths"].items())
    answers, variety, repeats = report["answers"], report["diversity"], report["duplicates"]
    budgets = {"path": report["budgets"]["path_tokens"], "summary": report["budgets"]["summary_tokens"]}
    rows = [("rows", f"{report['rows']} good, {len(report['malformed'])} malformed"), ("paths", paths or "none")]
    for name, sizes in report["lengths"].items():
        rows.append((name, _sizes(sizes, report["unit"], budgets.get(name))))
    rows.append(("over budget", f"{len(report['over_budget'])} texts"))
    if report["rows"]:
        same = f"mean trigram Jaccard of a row's paths {_share(variety['jaccard'])}"
        rows.append(("diversity", f"{same}, {variety['distinct_answers']:.2f} distinct answers a row"))
        right = f"path right {_share(answers['path_right'])}, majority {_share(answers['majority_right'])}"
        more = f"any {_share(answers['any_right'])}, pairs agree {_share(answers['pairs_agree'])}"
        rows.append(("answers", f"{right}, {more}, none stated {_share(answers['path_without_answer'])}"))
    rows.append(("duplicates", f"{len(repeats['questions'])} questions, equal paths in {len(repeats['paths'])} rows"))
    if "against" in args:
        kinds = [leak["kind"] for leak in report["leaks"]]
        rows.append(("leaks", f"{kinds.count('exact')} exact, {kinds.count('overlap')} by 13-grams ({args.against})"))
    return rows


def _sizes(sizes: Mapping[str, float] | None, unit: str, budget: int | None) -> str:
    if sizes is None:
        return "none"
    marks = ", ".join(f"{name} {sizes[name]}" for name in ("p50", "p90", "p99", "max"))
    limit = "" if budget is None else f"; budget {budget}"
    return f"{unit}: mean {sizes['mean']:.1f}, {marks}{limit}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _findings(report: Mapping[str, Any], place: str) -> Iterator[Sequence[str]]:
    """Lines of each kind of finding."""
    yield [
        f"{place} {bad['row']}: {bad['field'] + ': ' if bad['field'] else ''}{bad['error']}"
        for bad in report["malformed"]
    ]
    unit = report["unit"]
    yield [
        f"{place} {over['row']}: {over['field']}: needs {over['needed']} {unit}, the budget is {over['budget']}"
        for over in report["over_budget"]
    ]
    yield [
        f"{place} {row}: summary: its \\boxed{{}} is not the answer" for row in report["answers"]["contradictory_rows"]
    ]
    yield [f"{place} {row}: paths: two are equal" for row in report["duplicates"]["paths"]]
    yield [
        f"{place} {one['row']}: question: the same as in {place} {one['first']}"
        for one in report["duplicates"]["questions"]
    ]
    yield [
        f"{place} {leak['row']}: leak ({leak['kind']}, {100 * leak['share']:.0f} % of the 13-grams) of evaluation "
        f"row {leak['eval_row']}: {leak['text']}"
        for leak in report["leaks"]
    ]
