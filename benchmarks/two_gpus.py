"""What syncs cost at 8B: one GPU against two, LLaDA's shape with random weights, the same run.

    python benchmarks/two_gpus.py --out benchmarks/results/two_gpus.json [--shape llada-8b] [--repeats 3]

Each row decodes the same canvas (prompt 128, two paths of 496 slots, summary 30) with the same number of steps. Step
times are the wall time of a decode divided by its steps, after one decode to warm up; the first row is the one-device
baseline. Nothing here compiles or captures: these are the eager times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from nap_runtime import DecodeConfig, SyncPolicy, __version__
from nap_runtime.api import make_executor
from nap_runtime.executor.base import Executor
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


def main() -> None:
    """Make the weights, run every row, write the table."""
    args = _arguments()
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder = Path(scratch) / "model"
        began = time.perf_counter()
        make_model_dir(args.shape, folder, seed=0)
        made = time.perf_counter() - began
        card = read_card(folder)
        rows: list[dict[str, Any]] = []
        reference: DecodeResult | None = None
        for workers in (1, 2):
            began = time.perf_counter()
            executor = make_executor(card, workers=workers, dtype="bfloat16", device="cuda")
            started = time.perf_counter() - began
            try:
                for name, policy in POLICIES.items():
                    row, result = _measure(card, executor, policy, args)
                    if reference is None:
                        reference = result
                    same = compare(reference.record, result.record, rtol=2e-2)
                    row |= {"policy": name, "workers": workers, "start_seconds": started,
                            "identical_to_one_device": same.identical, "agrees": same.agrees}  # fmt: skip
                    rows.append(row)
                    print(_line(row), flush=True)
            finally:
                executor.close()
                torch.cuda.empty_cache()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(_environment(args) | {"make_weights_seconds": made, "rows": rows}, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", default="llada-8b")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--path-tokens", type=int, default=496)
    parser.add_argument("--summary-tokens", type=int, default=30)
    parser.add_argument("--scratch", default=None, help="folder for the weights (16 GB at 8B)")
    parser.add_argument("--commit", help="name of the commit, where git cannot tell")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/two_gpus.json"))
    return parser.parse_args()


def _measure(
    card: ModelCard, executor: Executor, policy: SyncPolicy, args: argparse.Namespace
) -> tuple[dict[str, Any], DecodeResult]:
    config = DecodeConfig(
        paths=2,
        path_tokens=args.path_tokens,
        summary_tokens=args.summary_tokens,
        steps=args.steps,
        eos_weight=0.0,
        sync=policy,
    )
    job = DecodeJob(question="x" * 128)
    results = []
    for _ in range(args.repeats + 1):
        (result,) = Coordinator(card, executor).decode([job], config)
        if isinstance(result, JobFailure):
            raise result.error
        results.append(result)
    timed = [result.metrics.to_json() for result in results[1:]]
    milliseconds = [1e3 * t["seconds"]["total"] / args.steps for t in timed]
    last = timed[-1]
    return {
        "ms_per_step": statistics.median(milliseconds),
        "ms_per_step_all": milliseconds,
        "steps": args.steps,
        "canvas": results[-1].record.layout.size,
        "sync": last["sync"],
        "nfe": last["nfe"],
    }, results[-1]


def _line(row: dict[str, Any]) -> str:
    sync = row["sync"]
    return (
        f"{row['workers']} GPU  {row['policy']:14} {row['ms_per_step']:7.2f} ms/step  syncs {sync['syncs']:4}  "
        f"wire {max(sync['wire_bytes']) / 2**20:9.2f} MiB/worker  blocked {sync['blocked_seconds']['max']:.3f} s  "
        f"recompute {sync['recompute_seconds']['max']:.3f} s  agrees {row['agrees']}"
    )


def _commit() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def _environment(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "command": f"python benchmarks/two_gpus.py --shape {args.shape} --steps {args.steps} --repeats {args.repeats}",
        "version": __version__,
        "commit": args.commit or _commit(),
        "device": torch.cuda.get_device_name(0),
        "devices": torch.cuda.device_count(),
        "torch": torch.__version__,
        "dtype": "bfloat16",
        "weights": "random",
    }


if __name__ == "__main__":
    main()
