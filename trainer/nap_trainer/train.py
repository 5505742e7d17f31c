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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nap_trainer.ranks import Ranks


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
    """Run a training; 2 for a wrong option, configuration, model or row, 1 for another failure, 130 when interrupted.

    What all ranks know is said once, by rank 0.
    """
    args = parse(arguments)
    from nap_runtime.errors import DataError, ModelError, NapError, UsageError

    ranks: Ranks | None = None
    try:
        from nap_trainer.ranks import Ranks

        ranks = Ranks.of_environment(args.local_rank)
        ranks.connect()
        run(args.config, args.set, ranks)
    except KeyboardInterrupt:
        return _end(ranks, "interrupted; the same command goes on from the last checkpoint, if there is one", 130)
    except (NapError, OSError) as error:
        if _in_an_evaluation(error):
            return _end(None, "out of GPU memory: lower evaluate.batch_size", 1)
        wrong = isinstance(error, UsageError | ModelError | DataError)
        return _end(ranks, str(error), 2 if wrong else 1)
    except RuntimeError as error:
        text = _mend(error)
        if text is None:
            raise
        return _end(None if _is_own(error) else ranks, text, 1)
    return 0


def run(config: str, changes: Sequence[str], ranks: Ranks) -> None:
    """Read a configuration and train; every connected rank calls it.

    Raises:
        UsageError, ModelError, DataError: on every rank, with the first rank's text.
    """
    import torch

    from nap_runtime.errors import UsageError
    from nap_trainer.batches.sources import held_out
    from nap_trainer.evaluation import Evaluator
    from nap_trainer.loop import Trainer
    from nap_trainer.prepare import prepare
    from nap_trainer.settings import TrainConfig

    torch.set_float32_matmul_precision("high")
    with ranks.together(UsageError):
        settings = TrainConfig.read(config, changes)
        prepared = prepare(settings, ranks.device)
        evaluate = settings.evaluate
        questions = held_out(settings.data, evaluate.data, evaluate.n) if evaluate.every else []
    trainer = Trainer(settings, ranks, prepared)
    trainer.fit(Evaluator(prepared.card, settings, questions) if questions else None)
    trainer.engine.close()


def _end(ranks: Ranks | None, text: str, code: int) -> int:
    """Say why the training ends, on rank 0 or before there are ranks; the exit code."""
    if ranks is None or ranks.leads:
        print(f"nap_trainer.train: {text}", file=sys.stderr)
    if os.environ.get("NAP_DEBUG"):
        traceback.print_exc()
    return code


def _is_own(error: RuntimeError) -> bool:
    """Whether the memory of this rank's own GPU is full, which the other ranks cannot know."""
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def _in_an_evaluation(error: Exception) -> bool:
    """Whether memory was full while this rank decoded, which is a worker's failure."""
    from nap_runtime.executor.base import out_of_memory

    return out_of_memory(error)


def _mend(error: RuntimeError) -> str | None:
    """One line for a failure that is torch's, but not a defect; None for others."""
    if _is_own(error):
        mend = "lower schedule.micro_batch or run.head_chunk, set run.gradient_checkpointing, or raise zero.stage"
        return f"out of GPU memory: {mend}"
    # NCCL's and the store's errors have classes of torch.distributed, gloo's have not.
    torn = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Read timeout", "Timed out waiting")
    if type(error).__name__.startswith("Dist") or any(text in str(error) for text in torn):
        return "another process of this training is gone; the same command goes on from the last checkpoint"
    return None


def command() -> int:
    """`main` as the last thing that a process does: the process group is left where nothing failed."""
    code = main()
    if code == 0:
        from nap_trainer.ranks import Ranks

        Ranks.of_environment().disconnect()
    return code


if __name__ == "__main__":
    sys.exit(command())
