"""`nap trace show | verify | export`; `render` is in its own module."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nap_runtime.cli import output, render, session
from nap_runtime.cli.parser import FAILURE, Parser
from nap_runtime.cli.settings import Settings
from nap_runtime.errors import RecordError, UsageError
from nap_runtime.job import DTYPES

if TYPE_CHECKING:
    from nap_runtime.decoding.record import CanvasDelta, DecodeRecord
    from nap_runtime.metrics.agreement import Agreement
    from nap_runtime.models.loading import ModelCard
    from nap_runtime.models.tokenizer import Tokenizer

_FORMATS = ("json", "csv", "order")
# How much scores may differ at the first difference; a file holds them rounded to f16, by up to 2^-11 each.
_RTOL = {"float32": 1e-4 + 2**-10, "bfloat16": 2e-2 + 2**-10, "float64": 2**-10}
_VERIFY = """\
Check a trace's seal and that it does not contradict itself.

With --model the prompt is decoded again, inline, with the trace's config and assignment, and compared.
Only an identical decode passes: a near-tie may turn out otherwise on another device, but also by an edit.
"""
_EXPORT = """\
Write a trace as text to stdout.

  json   everything the trace holds
  csv    step, worker, position, id, confidence, kind of each token
  order  {"slots": [...], "steps": [[...], ...]}, which `nap metrics` reads
"""


def register(root: Parser) -> None:
    """Add the commands."""
    group = root.command("trace", "Look into the traces that `nap decode --trace` writes.")
    show = group.command("show", "Print who committed what at which step, and who talked when.", _show)
    show.add_argument("file", metavar="FILE", type=Path)
    show.add_argument(
        "--model", metavar="M", help="print words instead of ids, with this model's tokenizer (default: ids)"
    )
    verify = group.command("verify", _VERIFY, _verify)
    verify.add_argument("file", metavar="FILE", type=Path)
    verify.add_argument("--model", metavar="M", help="decode again with this model (default: do not)")
    verify.add_argument("--dtype", metavar="|".join(DTYPES), help="precision to decode in again (default: float32)")
    render.register(group)
    export = group.command("export", _EXPORT, _export)
    export.add_argument("file", metavar="FILE", type=Path)
    export.add_argument("--format", metavar="|".join(_FORMATS), default="json", help="(default: json)")


def read_record(file: Path) -> DecodeRecord:
    """Read a trace and check its seal.

    Raises:
        UsageError: there is no such file, or it cannot be opened.
        RecordError: it is no trace, or was changed.
    """
    from nap_runtime.decoding.record import DecodeRecord

    data = read_bytes(file)
    try:
        return DecodeRecord.from_bytes(data)
    except RecordError as error:
        raise RecordError(f"{file}: {error}") from error


def read_bytes(file: Path) -> bytes:
    """A file that the caller named; UsageError where it cannot be opened."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error


def read_verified(file: Path) -> DecodeRecord:
    """Read a trace and check that it does not contradict itself; RecordError names the file."""
    from nap_runtime.metrics.verify import verify

    record = read_record(file)
    try:
        verify(record)
    except RecordError as error:
        raise RecordError(f"{file}: {error}") from error
    return record


# -- show ------------------------------------------------------------------------------------------


def _show(args: argparse.Namespace) -> int:
    record = read_verified(args.file)
    tokenizer = session.open_card(Settings(model=args.model)).tokenizer if "model" in args else None
    if "model" in args and tokenizer is None:
        raise UsageError("model: it has no tokenizer; leave it out", field="model")
    print(output.align(_head(record)))
    print()
    for line in _timeline(record, tokenizer):
        print(line)
    if tokenizer is not None:
        print()
        print(output.align(_canvas(record, tokenizer)))
    return 0


def _head(record: DecodeRecord) -> list[output.Row]:
    layout, sync = record.layout, record.config.get("sync", {})
    workers = record.assignment.workers
    slots = " + ".join(map(str, (*layout.budgets, layout.summary_budget)))
    return [
        ("model", f"{record.model.get('name')} ({str(record.model.get('fingerprint'))[:12]})"),
        (
            "canvas",
            f"{layout.size} positions; {layout.prompt_tokens} of the prompt, {slots} slots",
        ),
        ("workers", f"{workers}; path → worker {list(record.assignment.worker_of)}"),
        ("sync", f"{sync.get('mode')} ({sync.get('topology')}), {len(record.syncs)} exchanges"),
        ("steps", f"{record.steps}, of them {record.path_steps} for the paths"),
    ]


def _timeline(record: DecodeRecord, tokenizer: Tokenizer | None) -> Iterator[str]:
    """Syncs and commits in the order of steps."""
    events: list[tuple[int, int, str]] = [(e.step, 0, f"── {e.kind} ──") for e in record.syncs]
    events += [(d.step, 1, _commits(record, d, tokenizer)) for d in record.deltas]
    width = len(str(record.steps))
    for step, _, text in sorted(events, key=lambda event: event[:2]):
        yield f"{step:>{width}}  {text}"


def _commits(record: DecodeRecord, delta: CanvasDelta, tokenizer: Tokenizer | None) -> str:
    from nap_runtime.decoding.state import Kind

    if delta.kind is Kind.FILL:
        return f"worker {delta.worker}  fills {len(delta.ids)} slots after an end"
    if delta.kind is Kind.REMASK:
        slots = "  ".join(_where(record, int(at)) for at in delta.positions)
        return f"worker {delta.worker}  masks again {slots}"
    tokens = [
        f"{_where(record, int(at))}={_word(int(token), tokenizer)}"
        for at, token in zip(delta.positions, delta.ids, strict=True)
    ]
    would = "would say " if delta.kind is Kind.PROVISIONAL else ""
    return f"worker {delta.worker}  {would}{'  '.join(tokens)}"


def _where(record: DecodeRecord, position: int) -> str:
    """`2:17`, slot 17 of path 2; `S:3` in the summary."""
    for number, block in enumerate(record.layout.blocks, start=1):
        if position in block.slots:
            name = "S" if number > record.layout.n_paths else str(number)
            return f"{name}:{position - block.slots.start}"
    return str(position)


def _word(token: int, tokenizer: Tokenizer | None) -> str:
    return f"[{token}]" if tokenizer is None else repr(tokenizer.decode([token]))


def _canvas(record: DecodeRecord, tokenizer: Tokenizer) -> list[output.Row]:
    ids = record.canvas()
    rows = [("prompt", tokenizer.decode(list(record.prompt_ids)))]
    for number, block in enumerate(record.layout.blocks, start=1):
        name = "summary" if number > record.layout.n_paths else f"path {number}"
        rows.append((name, tokenizer.decode(ids[block.slots.start : block.slots.stop].tolist())))
    return rows


# -- verify ----------------------------------------------------------------------------------------


def _verify(args: argparse.Namespace) -> int:
    if "dtype" in args and "model" not in args:
        raise UsageError("dtype: only --model uses it; leave it out", field="dtype")
    record = read_verified(args.file)
    tokens = sum(len(delta.ids) for delta in record.commits)
    counts = f"{tokens} commits in {record.steps} steps, {len(record.syncs)} syncs"
    print(f"{args.file}: consistent: {counts}; the seal holds")
    if "model" not in args:
        return 0
    settings = Settings(model=args.model, dtype=getattr(args, "dtype", "float32"))
    agreement = _decode_again(record, settings)
    print(f"{args.file}: decoded again with {args.model} in {settings.dtype}: {_agreement_text(agreement)}")
    return 0 if agreement.identical else FAILURE


def _agreement_text(agreement: Agreement) -> str:
    if agreement.identical:
        return "identical"
    how = "not identical; a near-tie could explain it" if agreement.agrees else "DIFFERS"
    where = f"from step {agreement.step}, positions {list(agreement.positions)}"
    return f"{how} {where}, relative gap {agreement.relative_gap:.2g}"


def _decode_again(record: DecodeRecord, settings: Settings) -> Agreement:
    from nap_runtime.metrics.agreement import compare

    card = session.open_card(settings)
    if record.model.get("fingerprint") != card.fingerprint:
        raise RecordError(f"trace: decoded by {record.model.get('name')} with other weights than --model's")
    return compare(record, _rerun(record, card, settings), rtol=_RTOL[settings.dtype])


def _rerun(record: DecodeRecord, card: ModelCard, settings: Settings) -> DecodeRecord:
    """The same canvas decoded inline, the workers simulated."""
    from nap_runtime.decoding.machine import Plan
    from nap_runtime.executor.coordinator import Batch, JobFailure, Observer
    from nap_runtime.job import DecodeJob
    from nap_runtime.metrics.order import config_of
    from nap_runtime.worker import Task

    config, workers = config_of(record), record.assignment.workers
    plan = Plan.of(record.layout, config, record.assignment)
    batch = Batch(jobs=(DecodeJob(question="(trace)"),), task=Task(plan=plan, prompts=(record.prompt_ids,)))
    again = replace(settings, config=config, workers=workers, simulate=workers > 1)
    with session.coordinator(card, again, quiet=True) as coordinator:
        (result,) = coordinator.run(batch, Observer(), lambda: False)
    if isinstance(result, JobFailure):
        raise result.error
    return result.record


# -- export ----------------------------------------------------------------------------------------


def _export(args: argparse.Namespace) -> int:
    if args.format not in _FORMATS:
        raise UsageError(f"format: unknown value '{args.format}'; use one of {', '.join(_FORMATS)}", field="format")
    record = read_verified(args.file)
    print({"json": _json, "csv": _csv, "order": _order}[args.format](record), end="")
    return 0


def _json(record: DecodeRecord) -> str:
    values: dict[str, Any] = {
        "model": dict(record.model),
        "config": dict(record.config),
        "layout": record.layout.to_mapping(),
        "prompt_ids": list(record.prompt_ids),
        "assignment": list(record.assignment.worker_of),
        "steps": record.steps,
        "path_steps": record.path_steps,
        "order": record.order(),
        "syncs": [asdict(event) for event in record.syncs],
        "forwards": [list(steps) for steps in record.forwards],
        "tokens": record.final_ids.tolist(),
    }
    return output.dumps(values) + "\n"


def _csv(record: DecodeRecord) -> str:
    import numpy as np

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("step", "worker", "position", "id", "confidence", "kind"))
    for delta in record.deltas:
        for at, token, score in zip(delta.positions, delta.ids, delta.log_confidence, strict=True):
            confidence = f"{float(np.exp(score)):.6g}"
            writer.writerow((delta.step, delta.worker, int(at), int(token), confidence, delta.kind.name.lower()))
    return text.getvalue()


def _order(record: DecodeRecord) -> str:
    steps: dict[int, list[int]] = {}
    for delta in record.commits:
        steps.setdefault(delta.step, []).extend(delta.positions.tolist())
    values = {"slots": list(record.layout.slots), "steps": [sorted(steps[step]) for step in sorted(steps)]}
    return output.dumps(values) + "\n"
