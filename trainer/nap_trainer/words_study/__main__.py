"""Look at the study problems, measure them, or write a table of token ids.

python -m nap_trainer.words_study --stats
python -m nap_trainer.words_study --show 3 --split test --set distractors=1
python -m nap_trainer.words_study --n 500000 --out train.npz
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from nap_runtime.errors import NapError, UsageError
from nap_runtime.yaml_files import yaml_value
from nap_trainer.words_study.config import StudyConfig
from nap_trainer.words_study.problem import StudyProblem, generate
from nap_trainer.words_study.split import SPLITS, check_split
from nap_trainer.words_study.stats import report
from nap_trainer.words_study.table import make_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 2 for a wrong option or setting, 1 for another failure."""
    args = _parse(arguments)
    try:
        _run(args, StudyConfig.from_mapping(_settings(args.set)))
    except (NapError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nap_trainer.words_study", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stats", action="store_true", help="measure errors and guesses")
    parser.add_argument("--show", type=int, default=0, metavar="K", help="print K problems (default: 0)")
    parser.add_argument("--out", type=Path, metavar="FILE.npz", help="write a table")
    parser.add_argument("--n", type=int, default=100_000, help="problems (default: 100000)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default: 0)")
    parser.add_argument("--split", default="train", metavar="|".join(SPLITS), help="(default: train)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a StudyConfig knob")
    args = parser.parse_args(arguments)
    if not (args.stats or args.show or args.out):
        parser.error("give --stats, --show K or --out FILE.npz")
    return args


def _settings(changes: Sequence[str]) -> dict[str, Any]:
    values = {}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise UsageError(f"set: {change!r} is not KEY=VALUE", field="set")
        try:
            values[key] = yaml_value(text)
        except ValueError as error:
            raise UsageError(f"set: {key}: {error}", field="set") from None
    return values


def _run(args: argparse.Namespace, config: StudyConfig) -> None:
    check_split(args.split)
    for problem in islice(generate(args.split, seed=args.seed, config=config), max(0, args.show)):
        print(_shown(problem))
    if args.stats:
        print(report(args.split, seed=args.seed, count=args.n, config=config))
    if args.out:
        make_table(args.split, seed=args.seed, count=args.n, config=config).save(args.out)
        print(f"{args.out}: {args.n} problems of the {args.split} split, seed {args.seed}")


def _shown(problem: StudyProblem) -> str:
    marks = [
        f"    {'wrong' if wrong else 'right'}  {path}" for wrong, path in zip(problem.wrong, problem.paths, strict=True)
    ]
    return "\n".join([f"depth {problem.depth}: {problem.question}", *marks, f"           {problem.summary}", ""])


if __name__ == "__main__":
    sys.exit(main())
