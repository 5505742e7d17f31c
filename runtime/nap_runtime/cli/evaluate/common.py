"""What the evaluations share: settings, decoding with progress into rows that a second run takes up."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nap_runtime.cli import auto, output, session
from nap_runtime.cli.options import read_settings
from nap_runtime.cli.parser import Parser, positive
from nap_runtime.cli.settings import Settings
from nap_runtime.errors import UsageError
from nap_runtime.study.budget import with_tokens_per_step

if TYPE_CHECKING:
    from nap_runtime.models.loading import LoadedModel, ModelCard
    from nap_runtime.study.evaluation import Extra
    from nap_runtime.study.problems import Problem

SCHEMA = "nap.eval/1"
_OUT = "JSONL, a line a problem, written as it goes; a file that is there is taken up (default: none)"


def add_output_options(parser: Parser) -> None:
    """`--tokens-per-step`, `--json`, `--out`."""
    text = "slots committed a step, instead of --steps (default: 1)"
    parser.add_argument("--tokens-per-step", type=positive, metavar="N", help=text)
    parser.add_argument("--json", action="store_true", help="one JSON object (default: a table)")
    parser.add_argument("--out", type=Path, metavar="FILE", help=_OUT)


def open_model(args: argparse.Namespace) -> tuple[ModelCard, Settings]:
    """The model's card and resolved settings, checked against each other.

    Raises:
        UsageError, ModelError: they cannot be used.
    """
    settings = read_settings(args)
    if "tokens_per_step" in args and settings.config.steps is not None:
        raise UsageError("tokens_per_step: give it or --steps, not both", field="tokens_per_step")
    card = session.open_card(settings)
    if card.tokenizer is None:
        raise UsageError("model: it has no tokenizer; problems need one", field="model")
    settings = settings.resolved(card)
    steps = with_tokens_per_step(settings.config, getattr(args, "tokens_per_step", None))
    settings = replace(settings, config=steps)
    session.check_fits(card, settings)
    return card, auto.settle(card, settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What is to be evaluated. `name` is the set's, `identity` what its rows depend on besides the settings."""

    name: str
    card: ModelCard
    settings: Settings
    problems: Sequence[Problem]
    identity: Mapping[str, Any]
    loaded: LoadedModel | None = None
    extra: Extra | None = None

    @property
    def digest(self) -> str:
        """Of all that decides a row. Not of what leaves the ids alone, such as the batch size."""
        from nap_runtime.study.rows import digest_of

        config = {key: value for key, value in self.settings.config.to_mapping().items() if key != "control_every"}
        own = {"set": self.name, "model": self.card.fingerprint, "config": config}
        return digest_of(
            own
            | {
                "workers": self.settings.workers,
                "dtype": self.settings.dtype + self.settings.storage.marks,
                **self.identity,
            }
        )

    def run(self, out: Path | None, *, quiet: bool) -> tuple[dict[int, dict[str, Any]], float]:
        """Rows by index, and the seconds that decoding took now."""
        from nap_runtime.study.evaluation import check_rows
        from nap_runtime.study.rows import RowFile

        with RowFile(out, key="index", run=self.digest) as rows:
            check_rows(self.problems, rows)
            missing = sum(problem.index not in rows.rows for problem in self.problems)
            if missing < len(self.problems) and not quiet:
                done = len(self.problems) - missing
                print(f"nap eval {self.name}: {out} holds {done} problems; {missing} are left", file=sys.stderr)
            seconds = self._decode(rows, missing, quiet=quiet) if missing else 0.0
            return rows.rows, seconds

    def _decode(self, rows: Any, missing: int, *, quiet: bool) -> float:
        from nap_runtime.study.evaluation import decode_rows

        settings = self.settings
        with session.coordinator(self.card, settings, quiet=quiet, loaded=self.loaded) as coordinator:
            started = time.perf_counter()
            written = decode_rows(
                coordinator,
                self.problems,
                settings.config,
                rows,
                batch_size=settings.batch_size,
                bucket=settings.bucket,
                extra=self.extra,
                cancelled=session.interrupted,
            )
            with progress(written, missing, quiet=quiet) as watched:
                for row in watched:
                    if "error" in row and not quiet:
                        print(f"nap eval {self.name}: problem {row['index']}: {row['error']}", file=sys.stderr)
            return time.perf_counter() - started


@contextmanager
def progress(items: Iterable[Any], total: int, *, quiet: bool) -> Iterator[Iterable[Any]]:
    """A bar with an estimate, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        yield bar.track(items, total=total)


def summary_rows(report: Mapping[str, Any]) -> list[output.Row]:
    """The lines of a table that every set has."""
    rows = [("accuracy", share_text(report["accuracy"]))]
    if "paths" in report:
        rows += [(f"path {j} alone", share_text(path)) for j, path in enumerate(report["paths"], start=1)]
        rows.append(("majority vote", share_text(report["majority"])))
        rows.append(("any path right", share_text(report["any_path"])))
        rows.append(("paths agree", _agreement(report["agreement"])))
    arness = f"{output.number(report['arness'])} of each path, mean; canvas {output.number(report['arness_canvas'])}"
    return [*rows, ("ARness@1", arness)]


def _agreement(values: Mapping[str, Any]) -> str:
    same = output.number(values["same_wrong"])
    return (
        f"{output.number(values['agree'])} of pairs; of {values['both_wrong']} pairs both wrong {same} say the same; "
        f"correlation of errors {output.number(values['wrong_correlation'])}"
    )


def share_text(share: Mapping[str, Any]) -> str:
    """` 92.0 %  [90.1, 93.5]  46/50`."""
    low, high = share["interval"]
    return f"{100 * share['share']:5.1f} %  [{100 * low:.1f}, {100 * high:.1f}]  {share['right']}/{share['n']}"
