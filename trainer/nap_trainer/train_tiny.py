"""Train a bundled-size NAP model on procedural word problems, on the CPU or on the GPUs of one machine.

python -m nap_trainer.train_tiny --config examples/train/nap-tiny.yaml --out DIR
torchrun --nproc_per_node 4 -m nap_trainer.train_tiny --config … --out DIR
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

STARTED = time.monotonic()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="nap_trainer.train_tiny", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", required=True, help="YAML file (see examples/train)")
    parser.add_argument("--out", required=True, type=Path, help="folder for the model and train.jsonl")
    parser.add_argument("--state", type=Path, help="folder for the float32 copy (default: OUT/state)")
    parser.add_argument("--init", type=Path, help="model folder to go on from")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a config key")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a training; 2 for a wrong option or configuration, 1 for another failure."""
    args = parse(arguments)
    # Late, so that the processes that generate data, which import this module, stay light.
    from nap_runtime.errors import NapError, UsageError

    try:
        from nap_trainer.settings import TrainConfig
        from nap_trainer.train import run

        with tempfile.TemporaryDirectory() as scratch:
            run(
                TrainConfig.read(args.config, args.set),
                out=args.out,
                state=args.state or args.out / "state",
                init=args.init,
                scratch=Path(scratch),
                started=STARTED,
            )
    except NapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
