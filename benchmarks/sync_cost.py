"""What syncs cost: the same canvas under every sync policy, one worker against several, the same run.

    python benchmarks/sync_cost.py                                  # nap-tiny on this machine's CPU, 1 and 3 workers
    python benchmarks/sync_cost.py --shape llada-8b --device cuda   # random 8B weights on two GPUs

Step times are the wall time of a decode divided by its steps, the median of `--repeats` after one decode to warm up.
The first row, one worker with exact sync, is the one-device baseline; every row says whether its ids are that row's.
Nothing here compiles or captures: these are eager times.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nap_runtime import DecodeConfig, SyncPolicy, __version__
from nap_runtime.api import make_executor
from nap_runtime.executor.coordinator import Coordinator, JobFailure
from nap_runtime.job import DecodeJob, DecodeResult
from nap_runtime.metrics.agreement import compare
from nap_runtime.models.loading import ModelCard, read_card
from nap_runtime.models.shapes import make_model_dir

POLICIES = {
    "exact": SyncPolicy("exact"),
    "kv, K = 8": SyncPolicy("kv", every=8),
    "tokens, K = 8": SyncPolicy("tokens", every=8),
    "shared, K = 8": SyncPolicy("shared", every=8),
    "none": SyncPolicy("none"),
}
QUESTION = "A shirt costs $50 and is on sale for 20% off. What is the final price?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The canvas and precision of a run."""

    question: str
    config: DecodeConfig
    dtype: str
    workers: tuple[int, ...]


NAP_TINY = Setting(question=QUESTION, config=DecodeConfig(paths=3, steps=33), dtype="float32", workers=(1, 3))
SHAPE = Setting(
    question="x" * 128,  # a model without a tokenizer reads bytes: a prompt of 128 tokens
    config=DecodeConfig(paths=2, path_tokens=496, summary_tokens=30, steps=64, eos_weight=0.0),
    dtype="bfloat16",
    workers=(1, 2),
)


def main() -> None:
    """Run every row and write the results."""
    args = _arguments()
    setting = SHAPE if args.shape else NAP_TINY
    rows: list[dict[str, Any]] = []
    with _model(args) as card:
        reference: DecodeResult | None = None
        for workers in setting.workers:
            for row, result in _measure_group(card, workers, setting, args):
                reference = reference or result
                same = compare(reference.record, result.record, rtol=2e-2 if setting.dtype == "bfloat16" else 1e-4)
                rows.append(row | {"identical_to_one_device": same.identical, "agrees": same.agrees})
                print(_line(rows[-1]), flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(_environment(args, setting) | {"rows": rows}, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", help="random weights of a shape, such as llada-8b (default: nap-tiny)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scratch", help="folder for random weights (16 GB at 8B)")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    return parser.parse_args()


@contextmanager
def _model(args: argparse.Namespace) -> Iterator[ModelCard]:
    if not args.shape:
        yield read_card("nap-tiny")
        return
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        make_model_dir(args.shape, Path(scratch) / "model", seed=0)
        yield read_card(Path(scratch) / "model")


def _measure_group(
    card: ModelCard, workers: int, setting: Setting, args: argparse.Namespace
) -> Iterator[tuple[dict[str, Any], DecodeResult]]:
    """One warm group, every policy."""
    began = time.perf_counter()
    executor = make_executor(card, workers=workers, dtype=setting.dtype, device=args.device)
    started = time.perf_counter() - began
    try:
        coordinator = Coordinator(card, executor)
        for name, policy in POLICIES.items():
            results = [_decode(coordinator, setting, policy) for _ in range(args.repeats + 1)]
            yield _row(name, workers, started, results[1:]), results[-1]
    finally:
        executor.close()


def _decode(coordinator: Coordinator, setting: Setting, policy: SyncPolicy) -> DecodeResult:
    job = DecodeJob(question=setting.question)
    (result,) = coordinator.decode([job], setting.config.with_values(sync=policy))
    if isinstance(result, JobFailure):
        raise result.error
    return result


def _row(name: str, workers: int, started: float, results: list[DecodeResult]) -> dict[str, Any]:
    figures = [result.metrics.to_json() for result in results]
    steps = results[-1].record.steps
    milliseconds = [1e3 * f["seconds"]["total"] / steps for f in figures]
    return {
        "policy": name,
        "workers": workers,
        "ms_per_step": statistics.median(milliseconds),
        "ms_per_step_all": milliseconds,
        "steps": steps,
        "canvas": results[-1].record.layout.size,
        "start_seconds": started,
        "sync": figures[-1]["sync"],
        "nfe": figures[-1]["nfe"],
        "answer": results[-1].answer,
    }


def _line(row: dict[str, Any]) -> str:
    sync = row["sync"]
    return (
        f"{row['workers']} workers  {row['policy']:14} {row['ms_per_step']:7.2f} ms/step  syncs {sync['syncs']:4}  "
        f"wire {max(sync['wire_bytes']) / 2**20:9.2f} MiB/worker  blocked {sync['blocked_seconds']['max']:.3f} s  "
        f"recompute {sync['recompute_seconds']['max']:.3f} s  agrees {row['agrees']}  answer {row['answer']}"
    )


def _environment(args: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    cuda = args.device == "cuda"
    return {
        "command": "python benchmarks/sync_cost.py"
        + (f" --shape {args.shape} --device {args.device}" if args.shape else "")
        + f" --repeats {args.repeats}",
        "version": __version__,
        "commit": _commit(),
        "device": torch.cuda.get_device_name(0) if cuda else f"{os.cpu_count()}-core {platform.machine()} CPU",
        "devices": torch.cuda.device_count() if cuda else 1,
        "torch": torch.__version__,
        "dtype": setting.dtype,
        "weights": "random" if args.shape else "nap-tiny",
    }


def _commit() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


if __name__ == "__main__":
    main()
