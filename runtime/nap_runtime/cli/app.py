"""The `nap` command line: which commands there are, and how each of them may end.

Exit codes: 0 done, 1 failed, 130 interrupted, 2 where the caller gave what cannot be used: a wrong option, a missing
or damaged model, a prompt that cannot be laid out. Whatever goes wrong is one line on stderr; NAP_DEBUG=1 adds the
traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Sequence

from nap_runtime import __version__
from nap_runtime.cli import (
    bench,
    cost,
    data,
    decode,
    doctor,
    evaluate,
    measure,
    models,
    probe,
    remote,
    seqdep,
    serve,
    session,
    study,
    trace,
)
from nap_runtime.cli.options import line_of
from nap_runtime.cli.parser import FAILURE, INTERRUPTED, USAGE, CommandError, Parser, parse
from nap_runtime.errors import CancelledError, ModelError, NapError, UsageError

_ABOUT = """\
Decode diffusion language models as independent paths on several devices.

`nap decode` without a prompt decodes a held-out word problem in this process.
"""
_PIPE_CLOSED = 141


def build_parser() -> Parser:
    """Every command and option."""
    root = Parser("nap", _ABOUT)
    root.add_argument("--version", action="version", version=f"nap {__version__}", help="print the version and stop")
    root.group_of_commands()
    for module in (
        decode,
        serve,
        remote,
        trace,
        measure,
        evaluate,
        study,
        probe,
        cost,
        bench,
        seqdep,
        models,
        data,
        doctor,
    ):
        module.register(root)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code and never raises."""
    args: argparse.Namespace | None = None
    _print_anything()
    try:
        args = parse(build_parser(), sys.argv[1:] if argv is None else argv)
        with session.interruptible():
            code: int = args.run(args)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # --help and --version
        return stop.code if isinstance(stop.code, int) else FAILURE
    except BrokenPipeError:
        _drop_stdout()
        return _PIPE_CLOSED
    except BaseException as error:
        code = _end(error, args)
        if code == INTERRUPTED and argv is None:
            _leave(code)
        return code


def _end(error: BaseException, args: argparse.Namespace | None) -> int:
    prog = args.parser.prog if args is not None else "nap"
    if isinstance(error, CommandError):
        prog = error.prog
    message, code = _message(error, args)
    print(f"{prog}: {' '.join(message.split())}", file=sys.stderr)
    if os.environ.get("NAP_DEBUG"):
        traceback.print_exception(error)
    return code


def _message(error: BaseException, args: argparse.Namespace | None) -> tuple[str, int]:
    if isinstance(error, CommandError):
        return str(error), error.code
    if isinstance(error, KeyboardInterrupt | CancelledError) or session.interrupted():
        return "interrupted", INTERRUPTED
    if isinstance(error, UsageError):
        return line_of(error, args), USAGE
    if isinstance(error, ModelError):
        named = args is not None and "--model" in args.parser.options()
        return f"{'--model: ' if named else ''}{error}", USAGE
    if isinstance(error, NapError):
        return str(error), FAILURE
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}", FAILURE
    return f"{type(error).__name__}: {error} (NAP_DEBUG=1 shows where)", FAILURE


def _print_anything() -> None:
    """Let no text stop a print: what the terminal's encoding lacks is written as an escape."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _leave(code: int) -> None:
    """End the process at once: Ray, interrupted while it starts, may crash where the interpreter shuts down.

    The workers are stopped by now, and Ray's own processes end with this one.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _drop_stdout() -> None:
    """The reader has gone: let nothing complain at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
