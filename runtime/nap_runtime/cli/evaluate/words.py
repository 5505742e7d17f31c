"""`nap eval words`: how often the answer is right on held-out problems, beside what explains it away."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nap_runtime.cli import output
from nap_runtime.cli.evaluate.common import SCHEMA, Evaluation, add_output_options, open_model, share_text, summary_rows
from nap_runtime.cli.options import add_decode_options
from nap_runtime.cli.parser import FAILURE, Parser, natural, positive
from nap_runtime.cli.settings import Settings
from nap_runtime.errors import UsageError
from nap_runtime.job import DecodeResult
from nap_runtime.metrics.shares import Share
from nap_runtime.study.environment import commit

if TYPE_CHECKING:
    from nap_runtime.models.loading import LoadedModel, ModelCard
    from nap_runtime.study.problems import Problem

_ABOUT = """\
Decode held-out word problems and count right answers, with a 95% Wilson interval.

Beside the accuracy stands what could explain it: each path's own last number, the paths' majority vote, the
answer of the most similar training problem, and the same model's summary with all paths left masked. --seed
picks the problems.
"""
_SHOWS = (
    "This shows how often this model solves problem families it was trained on with numbers it never saw, "
    "and what its paths add to its summary; it says nothing of other problems or other models."
)


def register(group: Parser) -> None:
    """Add the command."""
    parser = group.command("words", _ABOUT, _run)
    parser.add_argument("--n", type=positive, default=500, metavar="N", help="problems (default: 500)")
    text = "training problems that the look-up compares with; 0: no look-up (default: 20000)"
    parser.add_argument("--neighbours", type=natural, default=20_000, metavar="N", help=text)
    add_output_options(parser)
    add_decode_options(parser, without=("layout", "gen-length", "block-length"))


def _run(args: argparse.Namespace) -> int:
    from nap_runtime.study.problems import read_problems

    card, settings = open_model(args)
    if settings.config.layout != "nap":
        raise UsageError("layout: word problems need layout 'nap'", field="layout")
    problems = read_problems("words", n=args.n, seed=settings.config.seed)
    loaded = _load(card, settings)
    evaluation = Evaluation(
        name="words",
        card=card,
        settings=settings,
        problems=problems,
        identity={"seed": settings.config.seed},
        loaded=loaded,
        extra=lambda results: _masked(loaded, results),
    )
    rows, seconds = evaluation.run(getattr(args, "out", None), quiet="json" in args)
    report = _report(args.neighbours, settings, problems, rows) | {"seconds": seconds}
    print(output.dumps(report) if "json" in args else _text(report, settings))
    return FAILURE if report["failed"] == args.n else 0


def _load(card: ModelCard, settings: Settings) -> LoadedModel:
    """The weights in this process: for the decode where it is inline, and for the summary without paths."""
    from nap_runtime.api import check_dtype, load_stored

    return load_stored(card, dtype=check_dtype(settings.dtype), device=settings.device, storage=settings.storage)


def _masked(loaded: LoadedModel, results: list[DecodeResult]) -> list[Mapping[str, Any]]:
    """The answers of summaries whose paths stay masked, as a column."""
    from nap_runtime.cli.controls import answers_without_paths

    return [{"answer_paths_masked": answer} for answer in answers_without_paths(loaded, results)]


# -- what it shows ---------------------------------------------------------------------------------


def _report(
    neighbours: int, settings: Settings, problems: Sequence[Problem], rows: Mapping[int, Mapping[str, Any]]
) -> dict[str, Any]:
    from nap_runtime.cli.controls import look_up
    from nap_runtime.study.evaluation import summarise

    golds = [problem.gold for problem in problems]
    masked = [rows[problem.index].get("answer_paths_masked") for problem in problems]
    copied = look_up([problem.question for problem in problems], neighbours, seed=settings.config.seed)
    return {
        "schema": SCHEMA,
        "set": "words",
        **summarise(problems, rows),
        "seed": settings.config.seed,
        "paths_masked": Share.of(masked, golds).to_json(),
        "look_up": None if copied is None else {**Share.of(copied, golds).to_json(), "problems": neighbours},
        "config": settings.to_mapping(),
        "commit": commit(),
        "shows": _SHOWS,
    }


def _text(report: dict[str, Any], settings: Settings) -> str:
    n, seed = report["n"], report["seed"]
    rows = [
        ("problems", f"{n} of the test split, seed {seed}; {settings.model}, {settings.dtype}{settings.storage.marks}"),
        *summary_rows(report),
        ("paths masked", f"{share_text(report['paths_masked'])}  the summary with every path left masked"),
    ]
    if report["look_up"] is not None:
        problems = report["look_up"]["problems"]
        rows.append(("look-up", f"{share_text(report['look_up'])}  the most similar of {problems} training problems"))
    rows.append(("failures", f"{report['failed']} not decoded, {report['no_answer']} without an answer"))
    rows.append(("time", f"{report['seconds']:.1f} s"))
    return f"{output.align(rows)}\n\n{_SHOWS}"
