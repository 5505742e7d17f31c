"""`nap trace render`: one decode as a page that plays it, and its order as a picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nap_runtime import places
from nap_runtime.cli import session
from nap_runtime.cli.parser import Parser
from nap_runtime.cli.settings import Settings
from nap_runtime.errors import NapError, UsageError

if TYPE_CHECKING:
    from nap_runtime.decoding.record import DecodeRecord
    from nap_runtime.models.tokenizer import Tokenizer

_ABOUT = """\
Draw a trace: a page in which the canvas fills step by step, and a picture of the order.

The page is one file that opens offline: a slider, a play button, and slot against step. FILE.html#step=40 opens it at
step 40. --svg and --png write slot against step as a picture (with matplotlib).
"""


def register(group: Parser) -> None:
    """Add the command to the group `nap trace`."""
    parser = group.command("render", _ABOUT, _run)
    parser.add_argument("file", metavar="FILE", type=Path)
    parser.add_argument("--out", type=Path, metavar="F.html", help="the page (default: FILE with .html)")
    parser.add_argument("--svg", type=Path, metavar="F.svg", help="slot against step (default: none)")
    parser.add_argument("--png", type=Path, metavar="F.png", help="slot against step (default: none)")
    text = "whose tokenizer gives the words (default: the bundled model's where it decoded the trace, else ids)"
    parser.add_argument("--model", metavar="M", help=text)


def _run(args: argparse.Namespace) -> int:
    from nap_runtime.cli.trace import read_verified
    from nap_runtime.models.files import write_text_atomic
    from nap_runtime.study.page import trace_page

    for name in ("svg", "png"):
        if name in args and getattr(args, name).suffix != f".{name}":
            raise UsageError(f"{name}: {getattr(args, name)} does not end in .{name}", field=name)
    record = read_verified(args.file)
    page = getattr(args, "out", args.file.with_suffix(".html"))
    places.prepare(page, "out", args.file)
    pictures = [getattr(args, name) for name in ("svg", "png") if name in args]
    for picture in pictures:
        places.prepare(picture, picture.suffix.lstrip("."))
    write_text_atomic(page, trace_page(record, _tokenizer(args, record), title=args.file.name))
    if pictures:
        from nap_runtime.study.figures import record_figure, save

        save(record_figure(record), *pictures)
    print("\n".join(str(file) for file in [page, *pictures]))
    return 0


def _tokenizer(args: argparse.Namespace, record: DecodeRecord) -> Tokenizer | None:
    if "model" in args:
        found = session.open_card(Settings(model=args.model)).tokenizer
        if found is None:
            raise UsageError("model: it has no tokenizer; leave it out", field="model")
        return found
    if record.model.get("name") != "nap-tiny":
        return None
    try:
        card = session.open_card(Settings(model="nap-tiny"))
    except NapError:  # the bundled model is not installed: ids will do
        return None
    return card.tokenizer if card.fingerprint == record.model.get("fingerprint") else None
