"""`nap eval gsm8k | math500 | gpqa | words-study | lists`: accuracy on problems of a file, or on the study's own."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from nap_runtime.cli import output
from nap_runtime.cli.evaluate.common import SCHEMA, Evaluation, add_output_options, open_model, share_text, summary_rows
from nap_runtime.cli.options import add_decode_options
from nap_runtime.cli.parser import FAILURE, Parser, positive
from nap_runtime.study.environment import commit

_ABOUT = {
    "gsm8k": "Grade-school word problems; a row has question and answer (the solution, ending in ####).",
    "math500": "Competition problems; a row has problem and answer.",
    "gpqa": "Multiple-choice science; a row has Question, Correct Answer, Incorrect Answer 1 to 3.",
    "words-study": "Generated word problems of 2 to 8 operations, the test split; --seed picks them.",
    "lists": "Generated list operations, the test split; --seed picks them. Where several lists are right, each is.",
}
_GENERATED = ("words-study", "lists")
_MORE = """

The accuracy has a 95% Wilson interval. Beside it stand each path by itself, the paths' vote, and whether any path is
right. With --out, a run that was stopped goes on where it was; a row is never repeated or lost.
"""
_ASK = "boxed: ask for a boxed answer; question: the bare question, for models trained on those (default: boxed)"
_DATA = "JSONL or parquet with the set's published columns (default: from the hub, if `datasets` is installed)"


def register(group: Parser) -> None:
    """Add the commands."""
    for name, about in _ABOUT.items():
        parser = group.command(name, about + _MORE, partial(_run, name))
        generated = name in _GENERATED
        parser.add_argument(
            "--n", type=positive, metavar="N", help=f"problems (default: {500 if generated else 'all'})"
        )
        if not generated:
            parser.add_argument("--data", type=Path, metavar="FILE", help=_DATA)
            parser.add_argument("--ask", default="boxed", metavar="boxed|question", help=_ASK)
        add_output_options(parser)
        add_decode_options(parser)


def _run(name: str, args: argparse.Namespace) -> int:
    from nap_runtime.study.evaluation import summarise
    from nap_runtime.study.problems import read_problems

    card, settings = open_model(args)
    ask = getattr(args, "ask", "question")
    seed = settings.config.seed
    problems = read_problems(name, data=getattr(args, "data", None), n=getattr(args, "n", None), seed=seed, ask=ask)
    evaluation = Evaluation(
        name=name, card=card, settings=settings, problems=problems, identity={"ask": ask, "seed": seed}
    )
    rows, seconds = evaluation.run(getattr(args, "out", None), quiet="json" in args)
    report = {
        "schema": SCHEMA,
        "set": name,
        **summarise(problems, rows),
        "seed": seed,
        "ask": ask,
        "config": settings.to_mapping(),
        "commit": commit(),
        "seconds": seconds,
    }
    print(output.dumps(report) if "json" in args else _text(report, settings.model))
    return FAILURE if report["failed"] == len(problems) else 0


def _text(report: dict[str, Any], model: str) -> str:
    rows = [("problems", f"{report['n']} of {report['set']}; {model}"), *summary_rows(report)]
    for group, members in report["groups"].items():
        rows += [(f"{group} {value}", share_text(share)) for value, share in members.items()]
    rows.append(("failures", f"{report['failed']} not decoded, {report['no_answer']} without an answer"))
    rows.append(("time", f"{report['seconds']:.1f} s"))
    return output.align(rows)
