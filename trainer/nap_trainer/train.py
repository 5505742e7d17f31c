"""Train a masked diffusion model on NAP data with DeepSpeed ZeRO.

deepspeed --num_gpus N --module nap_trainer.train --config FILE
python -m nap_trainer.train --config FILE     (one process; on a CPU too)

A run that was stopped goes on from its last checkpoint when it is started again. --set changes single keys.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    about = (__doc__ or "").strip()
    parser = argparse.ArgumentParser(
        prog="nap_trainer.train", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file (see examples/train)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a key of the file; repeatable"
    )
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)  # the deepspeed launcher's
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a training; 2 for a wrong option or configuration, 1 for another failure, 130 when interrupted."""
    args = parse(arguments)
    from nap_runtime.errors import DataError, ModelError, NapError, UsageError

    try:
        run(args.config, args.set, args.local_rank)
    except KeyboardInterrupt:
        print("nap_trainer.train: interrupted; start it again to go on from the last checkpoint", file=sys.stderr)
        return 130
    except (NapError, OSError) as error:
        print(f"nap_trainer.train: {error}", file=sys.stderr)
        if os.environ.get("NAP_DEBUG"):
            traceback.print_exc()
        return 2 if isinstance(error, UsageError | ModelError | DataError) else 1
    return 0


def run(config: str, changes: Sequence[str] = (), local_rank: int | None = None) -> None:
    """Read a configuration and train; the same on every rank."""
    from nap_trainer.settings import TrainConfig

    settings = TrainConfig.read(config, changes)
    import torch

    from nap_trainer.batches.sources import held_out
    from nap_trainer.evaluation import Evaluator
    from nap_trainer.loop import Trainer
    from nap_trainer.prepare import prepare
    from nap_trainer.ranks import Ranks

    torch.set_float32_matmul_precision("high")
    ranks = Ranks.of_environment(local_rank)
    prepared = prepare(settings, ranks.device)
    evaluate = settings.evaluate
    questions = held_out(settings.data, evaluate.data, evaluate.n) if evaluate.every else []
    ranks.connect()
    try:
        trainer = Trainer(settings, ranks, prepared)
        trainer.fit(Evaluator(prepared.card, settings, questions) if questions else None)
    finally:
        ranks.disconnect()


if __name__ == "__main__":
    sys.exit(main())
