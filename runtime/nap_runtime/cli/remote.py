"""`nap submit`, `watch`, `jobs`, `cancel` and `status`: the service from a terminal."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nap_runtime.cli import output
from nap_runtime.cli.options import add_decode_options, read_job_keys, read_settings
from nap_runtime.cli.parser import FAILURE, Parser, integer, key_value, natural, number, positive
from nap_runtime.cli.settings import Settings
from nap_runtime.errors import JobFailedError, UsageError

if TYPE_CHECKING:
    from nap_runtime.service.answers import JobEvent, JobInfo, JobResult
    from nap_runtime.service.client import Client

_SUBMIT = """\
Submit a job to a server (see nap serve); the default problem is a held-out word problem.

  nap submit --watch 'A shirt costs $50 and is on sale for 20% off. What is the final price?'
  nap submit --within 60 --priority 10 --label run=7 'A question'

Without --watch or --wait it prints the job's id and returns. The server is --server or $NAP_SERVER, the token that of
--token-file or $NAP_TOKEN.
"""
_HERE = ("model", "workers", "simulate", "address", "device", "dtype", "compile", "numerics", "batch-size", "link")
_WATCH = (
    "Follow a job: its canvas as it fills, then its answer.\n\nIt may have ended long ago, and it survives restarts."
)
_JOBS = "List jobs, newest first."
_CANCEL = "Stop a job.\n\nA job that has ended stays as it is; its state is printed either way."
_STATUS = "Show a server's worker groups, queue and model."
_STATES = "queued|running|done|failed|cancelled|expired"


def register(root: Parser) -> None:
    """Add the commands."""
    submit = root.command("submit", _SUBMIT, run_submit)
    submit.add_argument("prompt", metavar="PROMPT", nargs="?", help="a question (default: a held-out word problem)")
    _add_job_options(submit)
    _add_server(submit)
    add_decode_options(submit, without=_HERE)
    watch = root.command("watch", _WATCH, run_watch)
    watch.add_argument("id", metavar="ID", help="the job's id")
    watch.add_argument("--after", type=natural, metavar="N", help="only events after this number (default: 0)")
    watch.add_argument("--json", action="store_true", help="one JSON object an event (default: off)")
    _add_server(watch)
    jobs = root.command("jobs", _JOBS, run_jobs)
    jobs.add_argument("--state", action="append", metavar=_STATES, help="only in this state; repeatable (default: any)")
    text = "only with this label; repeatable (default: any)"
    jobs.add_argument("--label", action="append", type=key_value, metavar="KEY=VALUE", help=text)
    jobs.add_argument("--limit", type=positive, metavar="N", help="how many (default: 20)")
    jobs.add_argument("--json", action="store_true", help="one JSON object a job (default: off)")
    _add_server(jobs)
    cancel = root.command("cancel", _CANCEL, run_cancel)
    cancel.add_argument("id", metavar="ID", help="the job's id")
    cancel.add_argument("--reason", metavar="TEXT", help="kept with the job (default: none)")
    _add_server(cancel)
    status = root.command("status", _STATUS, run_status)
    status.add_argument("--json", action="store_true", help="one JSON object (default: off)")
    _add_server(status)


def _add_job_options(parser: Parser) -> None:
    group = parser.add_argument_group("job")
    group.add_argument("--watch", action="store_true", help="follow it to its end (default: off)")
    group.add_argument("--wait", action="store_true", help="wait for its result, without a picture (default: off)")
    group.add_argument("--json", action="store_true", help="print job or result as one JSON object (default: off)")
    group.add_argument("--gold", metavar="ANSWER", help="the right answer (default: unknown)")
    group.add_argument("--id", metavar="NAME", help="a name of your own, comes back with the result (default: none)")
    group.add_argument("--priority", type=integer, metavar="N", help="-100 to 100, higher runs first (default: 0)")
    group.add_argument("--within", type=number, metavar="S", help="seconds until it expires (default: never)")
    text = "a mark to list by; repeatable (default: none)"
    group.add_argument("--label", action="append", type=key_value, metavar="KEY=VALUE", help=text)
    text = "the same key is the same job, however often it is submitted (default: a random one)"
    group.add_argument("--idempotency-key", metavar="KEY", help=text)


def _add_server(parser: Parser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument("--server", metavar="HOST:PORT", help="the server (default: $NAP_SERVER, else 127.0.0.1:50051)")
    group.add_argument("--token-file", type=Path, metavar="FILE", help="file with the token (default: $NAP_TOKEN)")
    group.add_argument(
        "--ca", type=Path, metavar="FILE", help="authority of the server's certificate: TLS (default: off)"
    )
    group.add_argument("--cert", type=Path, metavar="FILE", help="a certificate of your own, for mTLS (default: none)")
    group.add_argument("--cert-key", type=Path, metavar="FILE", help="its key (default: none)")
    text = "seconds to go on trying while nobody answers or the queue is full (default: 30)"
    group.add_argument("--patience", type=number, metavar="S", help=text)


def client_of(args: argparse.Namespace) -> Client:
    """The client that a command line asks for."""
    from nap_runtime.service.client import Client

    token = None
    if "token_file" in args:
        try:
            token = args.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise UsageError(f"token_file: {args.token_file}: {reason}", field="token_file") from error
    given: dict[str, Any] = vars(args)
    return Client(
        given.get("server"),
        token=token,
        ca=given.get("ca"),
        cert=given.get("cert"),
        key=given.get("cert_key"),
        patience=given.get("patience", 30.0),
    )


def run_submit(args: argparse.Namespace) -> int:
    """Submit one job."""
    settings = read_settings(args)
    if "watch" in args and "wait" in args:
        raise UsageError("wait: --watch waits already; give one of them", field="wait")
    _check_server_side(settings)
    prompt, note, gold = _question(args, settings.config.seed)
    with client_of(args) as client:
        job = client.submit(
            prompt,
            settings.config,
            key=getattr(args, "idempotency_key", None),
            name=getattr(args, "id", ""),
            gold=gold,
            priority=getattr(args, "priority", 0),
            within=getattr(args, "within", None),
            labels=dict(getattr(args, "label", [])),
            auto=settings.auto,
        )
        if settings.auto is not None:
            said = job.chosen or f"sync auto: {job.sync}, chosen when it was first submitted"
            print(f"nap: {said}", file=sys.stderr, flush=True)
        with _left_alone(job):
            if "watch" in args:
                return _follow(client, job, 0, as_json="json" in args, note=note)
            if "wait" in args:
                return _print_result(client.result(job.id), as_json="json" in args)
    print(output.dumps(job_json(job)) if "json" in args else job.id)
    return 0


def _check_server_side(settings: Settings) -> None:
    """A --config file may set what the server decides."""
    if settings.auto is not None and settings.auto.link is not None:
        raise UsageError("link: the server decides it; leave it out", field="link")
    for item in fields(Settings):
        if item.name not in ("config", "auto") and getattr(settings, item.name) != item.default:
            raise UsageError(f"{item.name}: the server decides it; leave it out", field=item.name)


def _question(args: argparse.Namespace, seed: int) -> tuple[str, str, str | None]:
    """Prompt, which held-out problem it is, and the right answer."""
    from nap_runtime.cli.jobs import pick_held_out

    keys = read_job_keys(args)
    if "file" in keys:
        raise UsageError("config: it names a file of prompts; a job has one prompt", field="config")
    prompt = args.prompt if getattr(args, "prompt", None) is not None else keys.get("prompt")
    if prompt is not None:
        if not prompt.strip():
            raise UsageError("prompt: it is empty; give a question", field="prompt")
        return prompt, "", getattr(args, "gold", keys.get("gold") if prompt == keys.get("prompt") else None)
    if "gold" in args:
        raise UsageError("gold: only a PROMPT has one", field="gold")
    job, note = pick_held_out(seed)
    return job.question, note, job.gold


def run_watch(args: argparse.Namespace) -> int:
    """Follow a job."""
    with client_of(args) as client:
        job = client.get(args.id)
        with _left_alone(job):
            return _follow(client, job, getattr(args, "after", 0), as_json="json" in args)


@contextmanager
def _left_alone(job: JobInfo) -> Iterator[None]:
    """Say on Ctrl-C that the server goes on with the job: only the looking has ended."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"job {job.id} goes on: nap watch {job.id}, or nap cancel {job.id}", file=sys.stderr)
        raise


def _follow(client: Client, job: JobInfo, after: int, *, as_json: bool, note: str = "") -> int:
    from nap_runtime.cli.follow import follow

    events = client.watch(job.id, after=after)
    if as_json:
        last = None
        for event in events:
            print(output.dumps(event_json(event)), flush=True)
            last = event
        return 0 if last is None or getattr(last.body, "result", None) is not None else FAILURE
    finished = follow(events, job, note)
    if finished.result is None:
        info = finished.job
        raise JobFailedError(
            f"job {info.id} {info.state}: {info.error}", job_id=info.id, state=info.state, code=info.code
        )
    return 0


def _print_result(result: JobResult, *, as_json: bool) -> int:
    if as_json:
        print(output.dumps(result_json(result)))
    else:
        print("none" if result.answer is None else result.answer)
    return 0


def run_jobs(args: argparse.Namespace) -> int:
    """List jobs."""
    filters: dict[str, Any] = {"states": getattr(args, "state", []), "labels": dict(getattr(args, "label", []))}
    with client_of(args) as client:
        jobs = client.list(limit=getattr(args, "limit", 20), **filters)
    if "json" in args:
        for job in jobs:
            print(output.dumps(job_json(job)))
        return 0
    rows = [("id", "state", "submitted", "seconds", "question"), *map(_job_row, jobs)]
    print(_columns(rows))
    return 0


def _job_row(job: JobInfo) -> tuple[str, ...]:
    seconds = "" if job.finished is None else f"{(job.finished - job.submitted).total_seconds():.1f}"
    state = job.state if not job.failures else f"{job.state} ({job.failures} lost)"
    question = " ".join(job.question.split())
    shown = question if len(question) <= 60 else f"{question[:59]}…"
    return job.id, state, job.submitted.astimezone().strftime("%m-%d %H:%M:%S"), seconds, shown


def run_cancel(args: argparse.Namespace) -> int:
    """Stop a job."""
    with client_of(args) as client:
        job = client.cancel(args.id, getattr(args, "reason", ""))
    print(f"{job.id} {job.state}")
    return 0


def run_status(args: argparse.Namespace) -> int:
    """Show what a server runs on."""
    from google.protobuf.json_format import MessageToDict

    with client_of(args) as client:
        cluster, address = client.cluster(), client.address
    if "json" in args:
        shown = MessageToDict(cluster, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        print(output.dumps(shown))
        return 0
    for model in cluster.models:
        name = f"{model.name} ({model.architecture}, {model.dtype}, canvas up to {model.max_canvas})"
        print(f"server {address}  version {cluster.version}  model {name}")
    print(f"jobs   {cluster.jobs_queued} queued, {cluster.jobs_running} running")
    print(_columns(_group_rows(cluster)))
    for group in cluster.groups:
        for slow in group.stragglers:
            what = f"worker {slow.worker} of group {group.index} on {slow.host}"
            print(f"slow   {what}: its steps take {slow.factor:.0f} times as long as its peers'")
    return 0


def _group_rows(cluster: Any) -> Iterable[tuple[str, ...]]:
    from nap_runtime.service.v1 import decoder_pb2 as pb

    yield "group", "state", "workers", "jobs", "restarts", "recoveries", "last recovery", "processes", "hosts"
    for group in cluster.groups:
        state = pb.GroupState.Name(group.state).removeprefix("GROUP_STATE_").lower()
        last = f"{group.last_recovery.ToMilliseconds() / 1000:.2f} s" if group.HasField("last_recovery") else ""
        counts = map(str, (group.workers, len(group.job_ids), group.restarts, group.recoveries))
        processes, hosts = " ".join(map(str, group.processes)), " ".join(group.hosts)
        yield str(group.index), state, *counts, last, processes, hosts


def _columns(rows: Iterable[tuple[str, ...]]) -> str:
    listed = list(rows)
    widths = [max(len(row[column]) for row in listed) for column in range(len(listed[0]))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in listed
    )


# -- JSON -------------------------------------------------------------------------------------------------------------


def job_json(job: JobInfo) -> dict[str, Any]:
    """A job as plain values."""
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in asdict(job).items()}


def result_json(result: JobResult) -> dict[str, Any]:
    """A result as plain values."""
    values = {
        name: getattr(result, name) for name in ("answer", "summary", "paths", "tokens", "unknown_words", "correct")
    }
    return {"job": job_json(result.job), **values, "metrics": result.metrics}


def event_json(event: JobEvent) -> dict[str, Any]:
    """An event as plain values; token ids and positions as lists."""
    from nap_runtime.service.answers import Finished, LaidOut, Update

    body = event.body
    base = {
        "number": event.number,
        "time": event.time.isoformat(),
        "attempt": event.attempt,
        "kind": type(body).__name__,
    }
    if isinstance(body, Finished):
        return base | {"job": job_json(body.job), "result": None if body.result is None else result_json(body.result)}
    if isinstance(body, Update):
        tokens = [
            [delta.step, delta.worker, int(position), int(token)]
            for delta in body.deltas
            for position, token in zip(delta.positions, delta.ids, strict=True)
        ]
        texts = {"summary" if path is None else f"path {path + 1}": text for path, text in body.texts.items()}
        return base | {
            "committed": body.committed,
            "first": body.first,
            "last": body.last,
            "tokens": tokens,
            "texts": texts,
        }
    values = asdict(body)
    if isinstance(body, LaidOut):
        values = json.loads(json.dumps(values, default=lambda r: [r.start, r.stop]))
    return base | values
