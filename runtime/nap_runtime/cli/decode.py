"""`nap decode`."""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nap_runtime import places
from nap_runtime.cli import auto, jobs, output, session
from nap_runtime.cli.jobs import BadLine
from nap_runtime.cli.options import add_decode_options, read_job_keys, read_settings
from nap_runtime.cli.parser import FAILURE, USAGE, Parser
from nap_runtime.cli.settings import Settings, to_yaml
from nap_runtime.errors import UsageError
from nap_runtime.job import DecodeJob

if TYPE_CHECKING:
    from nap_runtime.executor.base import Executor
    from nap_runtime.executor.coordinator import Coordinator, JobFailure, Observer
    from nap_runtime.job import DecodeResult
    from nap_runtime.models.loading import ModelCard

_ABOUT = """\
Decode a question, a file of questions, or without either a held-out word problem.

  nap decode 'A shirt costs $50 and is on sale for 20% off. What is the final price?' --workers 3
  nap decode --workers 3 --simulate --sync kv --every 8
  nap decode --file questions.jsonl --batch-size 8 --json

A line of --file that is no question, or that the canvas has no room for, is named and the others are decoded. The
exit code is 2 where that is all that failed, 1 where a decode failed. Blank lines are skipped.
"""
_FILE = 'JSONL, one {"question": ..., "id"?, "gold" or "answer"?} a line (default: none)'
_TRACE = "write the trace; with --file one a prompt, T.nap as T.0.nap, T.1.nap ... (default: none)"


def register(root: Parser) -> None:
    """Add the command."""
    parser = root.command("decode", _ABOUT, run)
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="a question (default: a held-out word problem)")
    parser.add_argument("--file", type=Path, metavar="F.jsonl", help=_FILE)
    parser.add_argument("--gold", metavar="ANSWER", help="the right answer to PROMPT (default: unknown)")
    add_decode_options(parser)
    out = parser.add_argument_group("output")
    out.add_argument("--json", action="store_true", help="one JSON object a prompt, one line each (default: off)")
    out.add_argument("--trace", type=Path, metavar="FILE", help=_TRACE)
    text = "print the resolved settings as YAML, for --config, and stop (default: off)"
    out.add_argument("--print-config", action="store_true", help=text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is to be decoded. `name` is a file's, `note` says which held-out problem it is."""

    lines: tuple[DecodeJob | BadLine, ...]
    name: str = ""
    note: str = ""
    keys: dict[str, str]

    @property
    def from_file(self) -> bool:
        """Whether it is a batch from a file."""
        return bool(self.name)

    @property
    def question(self) -> str | None:
        """The first; None where every line is bad."""
        return next((job.question for job in jobs.questions(self.lines)), None)


def run(args: argparse.Namespace) -> int:
    """Decode what the command line asks for."""
    settings = read_settings(args)
    source = _source(args, settings)
    _check_use(args, settings, source)
    card = session.open_card(settings)
    settings = settings.resolved(card)
    session.check_fits(card, settings)
    settings = auto.settle(card, settings, source.question)
    if "print_config" in args:
        if settings.auto is not None:
            with session.coordinator(card, settings, quiet=True, measures=True) as coordinator:
                settings = auto.measured(card, settings, coordinator.executor, source.question)
        print(to_yaml({**source.keys, **settings.to_mapping()}), end="")
        return 0
    if not source.from_file:
        session.check_fits(card, settings, jobs.questions(source.lines)[0].question)
    return _Decode(args, settings, source, card).run()


def _source(args: argparse.Namespace, settings: Settings) -> Source:
    keys = read_job_keys(args)
    prompt = getattr(args, "prompt", None)
    if prompt is not None:
        keys = {"prompt": prompt}
    if "file" in args:
        if prompt is not None:
            raise UsageError("file: give PROMPT or --file, not both", field="file")
        keys = {"file": str(args.file)}
    if "gold" in args:
        keys["gold"] = args.gold
    if "file" in keys and "prompt" in keys:
        raise UsageError("config: it has both prompt and file", field="config")
    if "gold" in keys and "prompt" not in keys:
        raise UsageError("gold: only a PROMPT has one; in a file each line has its own", field="gold")
    if "file" in keys:
        return Source(lines=tuple(jobs.read_jobs(Path(keys["file"]))), name=keys["file"], keys=keys)
    if "prompt" in keys:
        _check_prompt(keys["prompt"])
        return Source(lines=(DecodeJob(question=keys["prompt"], id="0", gold=keys.get("gold")),), keys=keys)
    job, note = jobs.pick_held_out(settings.config.seed)
    return Source(lines=(job,), note=note, keys=keys)


def _check_prompt(text: str) -> None:
    """What can be said of a prompt before a model is opened."""
    if not text.strip():
        raise UsageError("prompt: it is empty; give a question", field="prompt")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError("prompt: it is not valid Unicode text", field="prompt") from None


def _check_use(args: argparse.Namespace, settings: Settings, source: Source) -> None:
    """Options that the others leave unused."""
    if settings.batch_size > 1 and not source.from_file:
        raise UsageError("batch_size: one prompt makes no batch; use it with --file", field="batch_size")
    if "print_config" in args:
        for name in ("json", "trace"):
            if name in args:
                raise UsageError(f"{name}: --print-config does not use it; leave it out", field=name)
    if "trace" in args:
        places.prepare(args.trace, "trace")


class _Decode:
    """One run of the command: decodes, prints in input order, counts failures."""

    def __init__(self, args: argparse.Namespace, settings: Settings, source: Source, card: ModelCard) -> None:
        self._args, self._source, self._card = args, source, card
        self._json = "json" in args
        self._on_terminal = not self._json and sys.stdout.isatty()
        self._live = self._on_terminal and not source.from_file
        self._settings = settings
        self._failed = self._decoded = self._with_gold = self._correct = 0
        self._broken = False  # whether a failure is not of the caller's making
        self._to_print = deque(line.index for line in source.lines)

    def run(self) -> int:
        good = jobs.questions(self._source.lines)
        if good:
            self._run(good)
        else:
            self._print_in_order([])
        if self._source.from_file and not self._json:
            self._print_total()
        if not self._failed:
            return 0
        return FAILURE if self._broken else USAGE

    def _run(self, good: list[DecodeJob]) -> None:
        with session.coordinator(self._card, self._settings, quiet=self._json, measures=True) as coordinator:
            self._settings = auto.measured(self._card, self._settings, coordinator.executor, self._source.question)
            self._executor: Executor = coordinator.executor
            results = self._watch(coordinator, good) if self._live else self._decode(coordinator, good)
            self._print_in_order(results)

    def _decode(
        self, coordinator: Coordinator, good: list[DecodeJob], observer: Observer | None = None
    ) -> Iterator[DecodeResult | JobFailure]:
        from nap_runtime.cli.notes import Notes

        how: dict[str, Any] = {"batch_size": self._settings.batch_size, "bucket": self._settings.bucket}
        how |= {"observer": observer or Notes(), "cancelled": session.interrupted}
        return coordinator.decode(good, self._settings.config, **how)

    def _watch(self, coordinator: Coordinator, good: list[DecodeJob]) -> list[DecodeResult | JobFailure]:
        """Decode under a picture of the canvas."""
        from rich.console import Console

        from nap_runtime.cli.live import LiveView, live_canvas

        view = LiveView(self._settings, self._card.tokenizer, self._source.note)
        with live_canvas(view, Console(highlight=False)):
            return list(self._decode(coordinator, good, view))

    def _print_in_order(self, results: Iterable[DecodeResult | JobFailure]) -> None:
        """Print every line as soon as it and all before it are known."""
        waiting: dict[int, DecodeResult | JobFailure | BadLine] = {
            line.index: line for line in self._source.lines if isinstance(line, BadLine)
        }
        self._print_ready(waiting)
        for result in results:
            waiting[result.job.index] = result
            self._print_ready(waiting)

    def _print_ready(self, waiting: dict[int, DecodeResult | JobFailure | BadLine]) -> None:
        """Print what comes next as far as results are there."""
        while self._to_print and self._to_print[0] in waiting:
            self._print(waiting.pop(self._to_print.popleft()))

    # -- printing ----------------------------------------------------------------------------------

    def _print(self, item: DecodeResult | JobFailure | BadLine) -> None:
        from nap_runtime.job import DecodeResult

        if not isinstance(item, DecodeResult):
            self._print_failure(item)
            return
        self._decoded += 1
        self._with_gold += item.correct is not None
        self._correct += item.correct is True
        if self._json:
            print(output.dumps(output.result_json(item, self._settings, self._executor.places)), flush=True)
        else:
            self._print_text(item)
            if warning := output.unknown_words_line(item, self._card.name):
                print(f"nap decode: {warning}", file=sys.stderr)
        self._write_trace(item)

    def _print_text(self, result: DecodeResult) -> None:
        if self._live:
            from rich.console import Console

            from nap_runtime.cli.live import print_end

            print_end(Console(highlight=False), result, self._settings)
            return
        if self._source.from_file:
            print(f"--- {self._source.name}:{result.job.index + 1}  id {result.job.id}")
        print(output.plain(result, self._settings, self._source.note), flush=True)
        if self._source.from_file:
            print()

    def _print_failure(self, failure: JobFailure | BadLine) -> None:
        self._failed += 1
        self._broken |= not isinstance(failure, BadLine) and not isinstance(failure.error, UsageError)
        if not self._source.from_file:
            assert not isinstance(failure, BadLine), "only files have lines"
            raise failure.error
        if self._json:
            print(output.dumps(output.failure_json(failure)), flush=True)
        else:
            print(f"nap decode: {self._source.name}:{_line(failure)}", file=sys.stderr)

    def _print_total(self) -> None:
        total = self._decoded + self._failed
        right = f"; {self._correct} of {self._with_gold} correct" if self._with_gold else ""
        print(f"{total} lines: {self._decoded} decoded, {self._failed} failed{right}")

    def _write_trace(self, result: DecodeResult) -> None:
        if "trace" not in self._args:
            return
        from nap_runtime.models.files import atomic_path

        file: Path = self._args.trace
        if self._source.from_file:
            file = file.with_name(f"{file.stem}.{result.job.index}{file.suffix}")
        with atomic_path(file) as temporary:
            temporary.write_bytes(result.record.to_bytes())


def _line(failure: JobFailure | BadLine) -> str:
    """Line number and reason."""
    if isinstance(failure, BadLine):
        return f"{failure.line}: {failure.error}"
    return f"{failure.job.index + 1}: {' '.join(str(failure.error).split())}"
