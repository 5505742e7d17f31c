"""`nap data make`."""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

from nap_runtime.cli.output import dumps
from nap_runtime.cli.parser import Parser, integer, positive
from nap_runtime.errors import UsageError

_SPLITS = ("train", "test")
_WORDS = """\
Generate word problems, each with several worked paths, as JSONL. `nap decode --file` reads it.

The test split shares no numbers with the train split; the bundled model is trained on the train split alone.
"""


def register(root: Parser) -> None:
    """Add the commands."""
    group = root.command("data", "Make data.")
    make = group.command("make", "Generate problems.")
    words = make.command("words", _WORDS, _words)
    words.add_argument("--n", type=positive, default=1000, metavar="N", help="problems (default: 1000)")
    words.add_argument("--seed", type=integer, default=0, metavar="S", help="which ones (default: 0)")
    words.add_argument("--split", default="train", metavar="|".join(_SPLITS), help="(default: train)")
    words.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="where to (required)")


def _words(args: argparse.Namespace) -> int:
    if args.split not in _SPLITS:
        raise UsageError(f"split: unknown value '{args.split}'; use one of {', '.join(_SPLITS)}", field="split")
    if args.out.is_dir():
        raise UsageError(f"out: {args.out} is a folder; give a file", field="out")
    from nap_runtime.models.files import atomic_path
    from nap_trainer.words import generate

    with atomic_path(args.out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for problem in islice(generate(args.split, seed=args.seed), args.n):
            file.write(dumps(problem.to_json()) + "\n")
    print(f"{args.out}: {args.n} problems of the {args.split} split, seed {args.seed}")
    return 0
