"""`nap eval words`: how often the answer is right on held-out problems, beside what explains it away."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nap_runtime.cli import output, session
from nap_runtime.cli.options import add_decode_options, read_settings
from nap_runtime.cli.parser import FAILURE, Parser, natural, positive
from nap_runtime.cli.scores import Share, last_number, majority
from nap_runtime.cli.settings import Settings
from nap_runtime.errors import UsageError
from nap_runtime.job import DecodeJob, DecodeResult

if TYPE_CHECKING:
    from nap_runtime.models.loading import LoadedModel, ModelCard
    from nap_trainer.words import Problem

SCHEMA = "nap.eval/1"
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


def register(root: Parser) -> None:
    """Add the commands."""
    group = root.command("eval", "Measure accuracy.")
    parser = group.command("words", _ABOUT, _run)
    parser.add_argument("--n", type=positive, default=500, metavar="N", help="problems (default: 500)")
    text = "slots committed a step, instead of --steps (default: 1)"
    parser.add_argument("--tokens-per-step", type=positive, metavar="N", help=text)
    text = "training problems that the look-up compares with; 0: no look-up (default: 20000)"
    parser.add_argument("--neighbours", type=natural, default=20_000, metavar="N", help=text)
    add_decode_options(parser, without=("layout", "gen-length", "block-length"))
    parser.add_argument("--json", action="store_true", help="one JSON object (default: a table)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a JSON line a problem (default: none)")


def _run(args: argparse.Namespace) -> int:
    from nap_trainer.words import generate

    settings = read_settings(args)
    if "tokens_per_step" in args and settings.config.steps is not None:
        raise UsageError("tokens_per_step: give it or --steps, not both", field="tokens_per_step")
    if settings.config.layout != "nap":
        raise UsageError("layout: word problems need layout 'nap'", field="layout")
    card = session.open_card(settings)
    if card.tokenizer is None:
        raise UsageError("model: it has no tokenizer; word problems need one", field="model")
    settings = _with_steps(settings.resolved(card), getattr(args, "tokens_per_step", None))
    session.check_fits(card, settings)
    problems = list(islice(generate("test", seed=settings.config.seed), args.n))
    loaded = _load(card, settings)
    results, seconds = _decode(card, settings, loaded, problems, quiet="json" in args)
    report = _report(args, settings, loaded, problems, results) | {"seconds": seconds}
    if "out" in args:
        _write_lines(args.out, problems, results)
    print(output.dumps(report) if "json" in args else _text(report, settings))
    return FAILURE if report["failed"] == args.n else 0


def _with_steps(settings: Settings, tokens_per_step: int | None) -> Settings:
    if tokens_per_step is None:
        return settings
    config = settings.config
    each = config.path_tokens
    slots = sum(each) if isinstance(each, tuple) else (each or 0) * config.n_paths
    steps = -(-(slots + (config.summary_tokens or 0)) // tokens_per_step)
    return replace(settings, config=config.with_values(steps=steps))


def _load(card: ModelCard, settings: Settings) -> LoadedModel:
    """The weights in this process: for the decode where it is inline, and for the summary without paths."""
    from nap_runtime.api import check_dtype
    from nap_runtime.models.loading import LoadedModel, load_weights

    kind = check_dtype(settings.dtype)
    return LoadedModel(card, load_weights(card, dtype=kind, device=settings.device))


# -- decoding --------------------------------------------------------------------------------------


def _decode(
    card: ModelCard, settings: Settings, loaded: LoadedModel, problems: list[Problem], *, quiet: bool
) -> tuple[list[DecodeResult | None], float]:
    """Results by problem, None for a failure; and the seconds it took."""
    import time

    jobs = [
        DecodeJob(question=problem.question, index=index, id=str(index), gold=str(problem.answer))
        for index, problem in enumerate(problems)
    ]
    results: list[DecodeResult | None] = [None] * len(jobs)
    with session.coordinator(card, settings, quiet=quiet, loaded=loaded) as coordinator:
        started = time.perf_counter()
        decoded = coordinator.decode(
            jobs, settings.config, batch_size=settings.batch_size, cancelled=session.interrupted
        )
        with _progress(decoded, len(jobs), quiet=quiet) as watched:
            for result in watched:
                if isinstance(result, DecodeResult):
                    results[result.job.index] = result
                elif not quiet:
                    print(f"nap eval words: problem {result.job.index}: {result.error}", file=sys.stderr)
    return results, time.perf_counter() - started


@contextmanager
def _progress(items: Iterable[Any], total: int, *, quiet: bool) -> Iterator[Iterable[Any]]:
    if quiet or not sys.stderr.isatty():
        yield items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        yield bar.track(items, total=total)


# -- what it shows ---------------------------------------------------------------------------------


def _report(
    args: argparse.Namespace,
    settings: Settings,
    loaded: LoadedModel,
    problems: list[Problem],
    results: list[DecodeResult | None],
) -> dict[str, Any]:
    from nap_runtime.cli.controls import answers_without_paths, look_up

    golds = [str(problem.answer) for problem in problems]
    votes = [[] if result is None else [last_number(path) for path in result.paths] for result in results]
    answers = [None if result is None else result.answer for result in results]
    alone = answers_without_paths(loaded, [result for result in results if result is not None])
    by_index = iter(alone)
    masked = [None if result is None else next(by_index) for result in results]
    paths = range(settings.config.n_paths)
    copied = look_up([problem.question for problem in problems], args.neighbours, seed=settings.config.seed)
    return {
        "schema": SCHEMA,
        "n": len(problems),
        "seed": settings.config.seed,
        "failed": results.count(None),
        "no_answer": answers.count(None) - results.count(None),
        "accuracy": Share.of(answers, golds).to_json(),
        "paths": [Share.of([vote[j] if vote else None for vote in votes], golds).to_json() for j in paths],
        "majority": Share.of([majority(vote) for vote in votes], golds).to_json(),
        "paths_masked": Share.of(masked, golds).to_json(),
        "look_up": None if copied is None else {**Share.of(copied, golds).to_json(), "problems": args.neighbours},
        "config": settings.to_mapping(),
        "commit": output.commit(),
        "shows": _SHOWS,
    }


def _text(report: dict[str, Any], settings: Settings) -> str:
    n, seed = report["n"], report["seed"]
    rows = [
        ("problems", f"{n} of the test split, seed {seed}; {settings.model}, {settings.dtype}"),
        ("accuracy", _share(report["accuracy"])),
        *((f"path {j} alone", _share(path)) for j, path in enumerate(report["paths"], start=1)),
        ("majority vote", _share(report["majority"])),
        ("paths masked", f"{_share(report['paths_masked'])}  the summary with every path left masked"),
    ]
    if report["look_up"] is not None:
        problems = report["look_up"]["problems"]
        rows.append(("look-up", f"{_share(report['look_up'])}  the most similar of {problems} training problems"))
    rows.append(("failures", f"{report['failed']} not decoded, {report['no_answer']} without an answer"))
    rows.append(("time", f"{report['seconds']:.1f} s"))
    return f"{output.align(rows)}\n\n{_SHOWS}"


def _share(share: dict[str, Any]) -> str:
    low, high = share["interval"]
    return f"{100 * share['share']:5.1f} %  [{100 * low:.1f}, {100 * high:.1f}]  {share['right']}/{share['n']}"


def _write_lines(file: Path, problems: list[Problem], results: list[DecodeResult | None]) -> None:
    from nap_runtime.models.files import write_text_atomic

    lines = []
    for index, (problem, result) in enumerate(zip(problems, results, strict=True)):
        values: dict[str, Any] = {"index": index, "family": problem.family, "question": problem.question}
        values["gold"] = str(problem.answer)
        if result is not None:
            values |= {"answer": result.answer, "correct": result.correct, "summary": result.summary}
            values |= {
                "paths": list(result.paths),
                "path_answers": [last_number(path) for path in result.paths],
            }
        lines.append(output.dumps(values))
    write_text_atomic(file, "".join(f"{line}\n" for line in lines))
