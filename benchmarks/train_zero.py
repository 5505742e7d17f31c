"""Throughput of a training step under ZeRO: tokens/s on each GPU, MFU, peak memory.

    deepspeed --num_gpus 2 benchmarks/train_zero.py --shape llada-8b --sequence 2048 --micro-batch 4 --out FILE.json
    python benchmarks/train_zero.py --shape llada-8b --layers 24 …          (one GPU)

Random weights and random rows: nothing is learnt. The median of the timed steps counts; steps are timed by the host
between two synchronisations. MFU counts useful arithmetic only (`nap_trainer.meters.flops_per_token`), never what
gradient checkpointing computes again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from origin import head

from nap_runtime.models.config import ModelConfig
from nap_runtime.models.loading import ModelCard
from nap_runtime.models.shapes import random_part, shape_config
from nap_trainer import meters
from nap_trainer.batches.formats import Marks
from nap_trainer.batches.segments import SegmentTable
from nap_trainer.loop import Trainer
from nap_trainer.prepare import Prepared
from nap_trainer.ranks import Ranks
from nap_trainer.settings import TrainConfig
from nap_trainer.zero import build

PROMPT = 128


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", default="llada-8b")
    parser.add_argument("--layers", type=int, help="fewer layers of the same width, where a device lacks the memory")
    parser.add_argument("--sequence", type=int, default=2048, help="positions of a canvas")
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--stage", type=int, default=3)
    parser.add_argument("--offload", action="store_true", help="optimizer state in host memory")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--no-checkpointing", action="store_true", help="keep activations")
    parser.add_argument("--compile", action="store_true", help="run.compile")
    parser.add_argument("--head-chunk", type=int, default=2048)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--local_rank", type=int)
    return parser.parse_args()


def settings(args: argparse.Namespace, ranks: Ranks, scratch: str) -> TrainConfig:
    """The training that is timed."""
    total = args.warmup + args.steps
    return TrainConfig.from_mapping(
        {
            "model": {"shape": args.shape, "tokenizer": "none"},
            "data": {
                "train": "random", "format": "text", "answer": "free", "paths": [1],
                "gen_length": args.sequence - PROMPT,
            },
            "optimizer": {"lr": 1e-6},
            "zero": {
                "stage": args.stage, "precision": args.precision,
                "offload_optimizer": "cpu" if args.offload else "none",
            },
            "schedule": {
                "global_batch": args.micro_batch * args.accumulation * ranks.world,
                "micro_batch": args.micro_batch, "max_steps": total,
            },
            "run": {
                "out": scratch, "tensorboard": False, "head_chunk": args.head_chunk,
                "gradient_checkpointing": not args.no_checkpointing, "compile": args.compile,
            },
        }
    )  # fmt: skip


def rows(config: ModelConfig, args: argparse.Namespace) -> SegmentTable:
    """Rows that fill the canvas, of random ids."""
    rng = np.random.default_rng(0)
    count = 4 * args.micro_batch * args.accumulation
    ids = rng.integers(0, config.mask_id, (count, args.sequence), dtype=np.int32)
    none = np.zeros((count, 0), dtype=np.int32)
    return SegmentTable(prompt_nP=ids[:, :PROMPT], paths_nmL=ids[:, None, PROMPT:], summary_nS=none)


def timed(trainer: Trainer, args: argparse.Namespace, device: torch.device) -> list[float]:
    """Seconds of each timed step."""
    seconds = []
    for step, batches in enumerate(trainer.loader.steps(0, args.warmup + args.steps)):
        synchronise(device)
        began = time.perf_counter()
        trainer.step(step, batches)
        synchronise(device)
        if step >= args.warmup:
            seconds.append(time.perf_counter() - began)
    return seconds


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Time it and print one JSON object (rank 0)."""
    args = parse()
    torch.set_float32_matmul_precision("high")
    ranks = Ranks.of_environment(args.local_rank)
    ranks.connect()
    build.random_part = partial(random_part, device=ranks.device)  # a fraction of the time
    config = shape_config(args.shape, **({"n_layers": args.layers} if args.layers else {}))
    card = ModelCard(name=args.shape, path=Path(), config=config, tokenizer=None, fingerprint="random")
    prepared = Prepared(card=card, marks=Marks.of_text(card), table=rows(config, args))
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        trainer = Trainer(settings(args, ranks, scratch), ranks, prepared)
        ready = time.perf_counter() - began
        seconds = timed(trainer, args, ranks.device)
    median = statistics.median(seconds)
    tokens = args.micro_batch * args.accumulation * args.sequence / median
    figures = {
        **head(ranks.device.type),
        "shape": args.shape, "layers": config.n_layers, "weights": config.n_params, "stage": args.stage,
        "offload": args.offload, "precision": args.precision, "checkpointing": not args.no_checkpointing,
        "compile": args.compile, "sequence": args.sequence, "micro_batch": args.micro_batch,
        "accumulation": args.accumulation,
        "gpus": ranks.world, "step_seconds": seconds, "step_median": median,
        "tokens_per_second_per_gpu": tokens,
        "mfu": meters.mfu(config, args.sequence, tokens, ranks.device),
        "peak_memory_gib": (meters.peak_memory(ranks.device) or 0) / 2**30, "ready_seconds": ready,
    }  # fmt: skip
    if ranks.leads:
        print(json.dumps(figures))
        if args.out:
            args.out.write_text(json.dumps(figures, indent=1) + "\n")
    ranks.disconnect()


if __name__ == "__main__":
    main()
