"""Adapt a causal language model to masked diffusion, and measure ARness on the way.

python -m nap_trainer.adapt corpus | data | pack | unpack | run | report
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

STARTED = time.monotonic()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="nap_trainer.adapt", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    corpus = commands.add_parser("corpus", help="prompt/response rows from a GSM8K file")
    corpus.add_argument("--gsm8k", required=True, type=Path, metavar="TRAIN.jsonl")
    corpus.add_argument("--model", required=True, type=Path, metavar="DIR", help="whose tokenizer counts the tokens")
    corpus.add_argument("--out", required=True, type=Path, metavar="FILE.jsonl")
    corpus.set_defaults(run=_corpus)
    data = commands.add_parser("data", help="corpus and held-out questions as token ids (.npz)")
    data.add_argument("--model", required=True, type=Path, metavar="DIR")
    data.add_argument("--corpus", required=True, type=Path, metavar="FILE.jsonl")
    data.add_argument("--test", required=True, type=Path, metavar="TEST.jsonl", help="GSM8K test questions")
    data.add_argument("--out", required=True, type=Path, metavar="FILE.npz")
    for name, default in (("gen-length", 128), ("max-prompt", 128), ("questions", 96), ("held", 256)):
        data.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"(default: {default})")
    data.set_defaults(run=_data)
    pack = commands.add_parser("pack", help="cut files into parts of a bounded size")
    pack.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    pack.add_argument("--out", required=True, type=Path, metavar="DIR")
    pack.add_argument("--part-bytes", type=int, default=45_000_000, metavar="N", help="(default: 45000000)")
    pack.set_defaults(run=_pack)
    unpack = commands.add_parser("unpack", help="put the parts together again")
    unpack.add_argument("parcel", type=Path, metavar="DIR")
    unpack.add_argument("--out", required=True, type=Path, metavar="DIR")
    unpack.set_defaults(run=_unpack)
    run = commands.add_parser("run", help="train the arms and measure them; the same command goes on")
    run.add_argument("--model", required=True, type=Path, metavar="DIR", help="what `nap model convert` made")
    run.add_argument("--data", required=True, type=Path, metavar="FILE.npz")
    run.add_argument("--config", type=Path, metavar="FILE.yaml", help="see examples/train (default: built in)")
    run.add_argument("--out", required=True, type=Path, metavar="RUN")
    run.add_argument("--deadline", type=float, metavar="SECONDS", help="begin nothing that would end later")
    run.set_defaults(run=_run)
    report = commands.add_parser("report", help="a run as a page with table and figure")
    report.add_argument("folder", type=Path, metavar="RUN")
    report.add_argument("--out", required=True, type=Path, metavar="FILE.md", help="the figure lies beside it, .svg")
    report.set_defaults(run=_report)
    return parser.parse_args(arguments)


def _corpus(args: argparse.Namespace) -> None:
    from nap_trainer.adapt.corpus import write_corpus

    count = write_corpus(args.gsm8k, args.out, args.model)
    print(f"{args.out}: {count.rows:,} rows, {count.tokens:,} tokens")
    print(
        f"{count.prompt_tokens:,} of them in prompts (chat template included), {count.response_tokens:,} in responses"
    )


def _data(args: argparse.Namespace) -> None:
    from nap_trainer.adapt.table import Sizes, tokenise

    sizes = Sizes(gen_length=args.gen_length, max_prompt=args.max_prompt, questions=args.questions, held=args.held)
    made = tokenise(args.model, args.corpus, args.test, sizes)
    made.save(args.out)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")
    print(json.dumps(made.facts, indent=1))


def _pack(args: argparse.Namespace) -> None:
    from nap_trainer.adapt.parcel import pack

    for file in pack(args.paths, args.out, part_bytes=args.part_bytes):
        print(f"{file}: {file.stat().st_size:,} bytes")


def _unpack(args: argparse.Namespace) -> None:
    from nap_trainer.adapt.parcel import unpack

    for file in unpack(args.parcel, args.out):
        print(f"{file}: {file.stat().st_size:,} bytes")


def _run(args: argparse.Namespace) -> None:
    import torch

    from nap_trainer.adapt.config import AdaptConfig
    from nap_trainer.adapt.run import Budget, run

    torch.set_float32_matmul_precision("high")
    config = AdaptConfig() if args.config is None else AdaptConfig.read(args.config)
    budget = Budget(seconds=args.deadline, started=STARTED)
    finished = run(args.model, args.data, config, args.out, budget=budget, say=_say)
    _say("every point is measured" if finished else f"{args.out} is not finished")


def _report(args: argparse.Namespace) -> None:
    from nap_trainer.adapt.report import write_report

    for file in write_report(args.folder, args.out):
        print(file)


def _say(text: str) -> None:
    print(text, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 2 for a wrong option, 1 for another failure."""
    args = parse(arguments)
    from nap_runtime.errors import NapError, UsageError

    try:
        args.run(args)
    except (NapError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
