"""`nap serve`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nap_runtime.cli.parser import FAILURE, Parser, number, positive
from nap_runtime.errors import UsageError
from nap_runtime.job import COMPILE_MODES, DEVICES, DTYPES
from nap_runtime.numerics import NUMERICS
from nap_runtime.storage import STORED

if TYPE_CHECKING:
    from nap_runtime.service.gate import Chooser
    from nap_runtime.service.settings import ServerSettings

_ABOUT = """\
Serve decoding jobs over gRPC: journaled before they are acknowledged, decoded by worker groups, streamed.

  nap serve                                     one worker, this machine only
  nap serve --workers 3                         each group is three Ray workers
  nap serve --new-token ada:submit --tokens tokens.jsonl     make a token, print it once, and stop
  nap serve --listen 0.0.0.0:50051 --tls-cert c.pem --tls-key k.pem --tokens tokens.jsonl

SIGTERM or Ctrl-C drains: no new jobs, running ones get --drain seconds, what is left goes on at the next start.
"""


def register(root: Parser) -> None:
    """Add the command."""
    parser = root.command("serve", _ABOUT, run)
    _add_doors(parser)
    _add_groups(parser)
    _add_jobs(parser)


def _add_doors(parser: Parser) -> None:
    doors = parser.add_argument_group("where it listens")
    text = "gRPC; other than loopback only with TLS and tokens; port 0 takes a free one (default: 127.0.0.1:50051)"
    doors.add_argument("--listen", metavar="HOST:PORT", help=text)
    doors.add_argument("--http", metavar="HOST:PORT", help="OpenAI-compatible HTTP door (default: off)")
    doors.add_argument("--metrics", metavar="HOST:PORT", help="figures for Prometheus, loopback only (default: off)")
    doors.add_argument("--tokens", type=Path, metavar="FILE", help="who may call (default: whoever reaches the port)")
    text = "add a token to --tokens, print it and stop; scopes are read, submit and admin, joined by + (default: none)"
    doors.add_argument("--new-token", metavar="NAME:SCOPES", help=text)
    doors.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate, PEM (default: plaintext)")
    doors.add_argument("--tls-key", type=Path, metavar="FILE", help="its key, PEM (default: plaintext)")
    text = "ask clients for certificates of this authority, PEM: mTLS (default: off)"
    doors.add_argument("--client-ca", type=Path, metavar="FILE", help=text)


def _add_groups(parser: Parser) -> None:
    group = parser.add_argument_group("worker groups")
    group.add_argument("--groups", type=positive, metavar="N", help="groups, each a process (default: 1)")
    group.add_argument("--workers", type=positive, metavar="W", help="workers of a group (default: 1)")
    text = "run a group's workers as threads of its process (default: off, several workers run on Ray)"
    group.add_argument("--simulate", action="store_true", help=text)
    group.add_argument("--spares", type=positive, metavar="N", help="warm workers in reserve, on Ray (default: 0)")
    text = "a Ray cluster that runs already (default: each group starts a local one)"
    group.add_argument("--address", metavar="HOST:PORT", help=text)
    text = "a bundled model's name, a checkpoint folder or its URL (default: nap-tiny)"
    group.add_argument("--model", metavar="nap-tiny|PATH|URL", help=text)
    group.add_argument("--device", metavar="|".join(DEVICES), help="where the network runs (default: cpu)")
    group.add_argument("--dtype", metavar="|".join(DTYPES), help="precision of the weights (default: float32)")
    text = "compile steps, or capture them in CUDA graphs too (default: none)"
    group.add_argument("--compile", metavar="|".join(COMPILE_MODES), help=text)
    text = "bits that depend neither on the batch nor, under exact, on the workers: invariant; compiled, on GPUs "
    group.add_argument("--numerics", metavar="|".join(NUMERICS), help=text + "(default: fast)")
    text = "numbers of the layers' matrices, made at load (default: native)"
    group.add_argument("--weights", metavar="|".join(STORED), help=text)
    text = "numbers of keys and values, and of what syncs carry of them (default: native)"
    group.add_argument("--kv", metavar="|".join(STORED), help=text)
    group.add_argument("--threads", type=positive, metavar="N", help="torch threads of a group (default: torch's)")
    text = "seconds of silence after which a worker or a group is lost (default: 5)"
    group.add_argument("--liveness", type=number, metavar="S", help=text)
    text = "workers several times slower than their peers: put a spare on another host in their place (replace), only "
    text += "show them (report), or look for none (off); on Ray (default: replace)"
    group.add_argument("--stragglers", metavar="replace|report|off", help=text)
    text = "what workers talk over, for jobs with --sync auto: nvlink, 100g, 25g, 10g, 1g, wan, or a file of nap cost "
    text += "calibrate (default: measured as a group on Ray starts)"
    group.add_argument("--link", metavar="NAME|FILE", help=text)
    text = "hosts of a group: one or none, one where it has room, few, or many (default: pack)"
    group.add_argument("--placement", metavar="strict-pack|one-host|pack|spread", help=text)


def _add_jobs(parser: Parser) -> None:
    jobs = parser.add_argument_group("jobs")
    jobs.add_argument("--journal", type=Path, metavar="FILE", help="the job journal (default: nap-jobs.db)")
    jobs.add_argument("--batch", type=positive, metavar="N", help="jobs decoded together (default: 8)")
    jobs.add_argument("--queue", type=positive, metavar="N", help="jobs that may wait (default: 10000)")
    text = "jobs of one token that may wait; a token's own quota may be lower (default: 10000)"
    jobs.add_argument("--queue-per-token", type=positive, metavar="N", help=text)
    text = "attempts in a row without progress before a job fails (default: 3)"
    jobs.add_argument("--tries", type=positive, metavar="N", help=text)
    jobs.add_argument("--keep", type=number, metavar="S", help="seconds to keep ended jobs (default: 86400)")
    jobs.add_argument("--drain", type=number, metavar="S", help="seconds for running jobs at the end (default: 30)")
    jobs.add_argument("--log", metavar="json|text", choices=("json", "text"), help="form of the log (default: json)")
    text = "the least that is logged: debug, info, warning or error (default: info)"
    jobs.add_argument("--log-level", choices=("debug", "info", "warning", "error"), metavar="LEVEL", help=text)


_GROUP = (
    "workers",
    "simulate",
    "spares",
    "address",
    "model",
    "device",
    "dtype",
    "compile",
    "numerics",
    "weights",
    "kv",
    "threads",
    "liveness",
    "stragglers",
    "placement",
)
_SERVER = (
    "listen",
    "http",
    "metrics",
    "tokens",
    "tls_cert",
    "tls_key",
    "client_ca",
    "groups",
    "journal",
    "batch",
    "tries",
)
_LIMITS = {"queue": "queued", "queue_per_token": "queued_per_token"}
_SECONDS = {"keep": "keep_seconds", "drain": "drain_seconds"}


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop, or make a token."""
    if "new_token" in args:
        return _make_token(args)
    settings = settings_of(args)
    from nap_runtime.cli import auto, session
    from nap_runtime.cli.settings import Settings
    from nap_runtime.service import failpoints

    failpoints.parse(os.environ.get(failpoints.VARIABLE, ""))
    group = settings.group
    session.open_card(Settings(model=group.model, device=group.device, dtype=group.dtype))
    return _serve(args, settings, auto.chooser(group, getattr(args, "link", None)))


def settings_of(args: argparse.Namespace) -> ServerSettings:
    """The settings of a command line.

    Raises:
        UsageError: a value is wrong, or they contradict each other.
    """
    from nap_runtime.service.settings import GroupSettings, Limits, ServerSettings

    given: dict[str, Any] = vars(args)
    group = {name: given[name] for name in _GROUP if name in given}
    if group.get("model") not in (None, "nap-tiny"):
        group["model"] = str(Path(group["model"]).expanduser().resolve())
    server = {name: given[name] for name in _SERVER if name in given}
    server |= {field: given[name] for name, field in _SECONDS.items() if name in given}
    limits = {field: given[name] for name, field in _LIMITS.items() if name in given}
    return ServerSettings(group=GroupSettings(**group), limits=Limits(**limits), **server)


def _make_token(args: argparse.Namespace) -> int:
    from nap_runtime.service.access import new_token

    if "tokens" not in args:
        raise UsageError("new_token: name the file to add it to with --tokens", field="new_token")
    name, _, scopes = args.new_token.partition(":")
    print(new_token(args.tokens, name, scopes.split("+") if scopes else []))
    return 0


def _serve(args: argparse.Namespace, settings: ServerSettings, chooser: Chooser) -> int:
    import asyncio

    from nap_runtime.service.logs import Log

    as_json = getattr(args, "log", "text" if sys.stderr.isatty() else "json") == "json"
    log = Log(as_json=as_json, level=getattr(args, "log_level", "info"))
    try:
        from nap_runtime.service.server import Server
    except ImportError as error:
        print(f"nap serve: {error.name} is missing: pip install 'nap-runtime[serve]'", file=sys.stderr)
        return FAILURE

    async def serve() -> None:
        server = Server(settings, log, chooser)
        try:
            await server.start()
        except BaseException:
            await server.abandon()
            raise
        await server.wait()
        await server.stop()

    asyncio.run(serve())
    return 0
