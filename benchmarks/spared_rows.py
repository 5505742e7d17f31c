"""What is not computed, and what it changes: canvases that leave a batch, and rows that caches of paths keep.

    python benchmarks/spared_rows.py --out out/spared-rows.json                 # nap-tiny, 100 word problems, a CPU
    python benchmarks/spared_rows.py --n 4 --batch 4 --cases kv8                # that it runs; no speed is shown

Each case is a sync policy on so many workers (simulated: one device). Every batch is decoded in all ways, one after
another and in turn first, so that a load on the machine meets all of them: `whole` computes every canvas of a batch to
its end, `leaving` (what decodes do) leaves canvases out as they are done, and `closed` and `dkv` are caches on top of
that. Case `threshold` is that rule over the whole canvas, which ends when it is decided. `seconds` are those of
forwards, head and selection, summed over workers and batches, and their ratio to those of `leaving` is taken batch by
batch (median); `same` is the share of canvases with the ids of `leaving`; `rows` those of one canvas.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from origin import head

from nap_runtime.executor.base import Executor
from nap_runtime.executor.coordinator import Coordinator
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.job import DecodeConfig, DecodeJob, DecodeResult, SyncPolicy
from nap_runtime.models.loading import load_model, read_card
from nap_runtime.study.evaluation import row_of
from nap_runtime.study.problems import Problem, read_problems
from nap_runtime.worker import Outcome, Report, Task

CASES: dict[str, tuple[SyncPolicy, int]] = {
    "kv8": (SyncPolicy("kv", every=8), 1),
    "kv8-2": (SyncPolicy("kv", every=8), 2),
    "tokens8-hub": (SyncPolicy("tokens", every=8, topology="hub"), 1),
    "none": (SyncPolicy("none"), 1),
    "threshold": (SyncPolicy("exact"), 1),
}
WAYS = ("whole", "leaving", "closed", "dkv")


class Whole(InlineExecutor):
    """Workers that compute every canvas of a batch until the last is done."""

    def run(
        self, task: Task, *, on_report: Callable[[Report], None] | None, cancelled: Callable[[], bool]
    ) -> list[Outcome]:
        """See `InlineExecutor.run`."""
        return super().run(replace(task, narrow=False), on_report=on_report, cancelled=cancelled)


def main() -> None:
    """Decode every case, print a table, write JSON."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    problems = read_problems("words", n=args.n, seed=args.seed)
    cases = {name: measure(name, problems, args) for name in args.cases}
    print(table(cases))
    asked = {name: getattr(args, name) for name in ("n", "seed", "batch", "steps", "control_every", "threads")}
    values = {**head(), **asked, "cases": cases}
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(values, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=100, help="problems")
    parser.add_argument("--seed", type=int, default=0, help="which problems")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=33, help="T: 33 is four tokens a step")
    parser.add_argument("--control-every", type=int, default=2, help="R: who is done is known 2R steps later at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", type=lambda text: text.split(","), default=list(CASES), help=", ".join(CASES))
    parser.add_argument("--out", type=Path, help="JSON file")
    return parser.parse_args()


def measure(name: str, problems: Sequence[Problem], args: argparse.Namespace) -> dict[str, Any]:
    """One case in all ways: figures by way."""
    (sync, workers), card = CASES[name], read_card("nap-tiny")
    model = load_model(card.path, dtype=torch.float32).model.requires_grad_(False)
    place = {"workers": workers, "dtype": torch.float32}
    executors: dict[str, Executor] = {
        way: (Whole if way == "whole" else InlineExecutor)(model, **place)  # type: ignore[arg-type]
        for way in WAYS
    }
    ways = WAYS[:2] if name == "threshold" else WAYS
    found: dict[str, list[DecodeResult]] = {way: [] for way in ways}
    spent: dict[str, list[float]] = {way: [] for way in ways}
    for number, first in enumerate(range(0, len(problems), args.batch)):
        some = problems[first : first + args.batch]
        turn = number % len(ways)
        for way in (*ways[turn:], *ways[:turn]):
            cache: Any = way if way in ("closed", "dkv") else None
            given: dict[str, Any] = {"steps": args.steps, "control_every": args.control_every, "cache": cache}
            config = DecodeConfig(sync=sync, seed=args.seed, **({"rule": name} if name == "threshold" else given))
            results, seconds = _decode(Coordinator(card, executors[way]), some, config)
            found[way] += results
            spent[way].append(seconds)
    return {way: _figures(problems, found[way], found["leaving"], spent[way], spent["leaving"]) for way in ways}


def _decode(lead: Coordinator, problems: Sequence[Problem], config: DecodeConfig) -> tuple[list[DecodeResult], float]:
    jobs = [DecodeJob(question=problem.question, index=problem.index, gold=problem.gold) for problem in problems]
    results: list[Any] = list(lead.decode(jobs, config, batch_size=len(jobs), bucket=512))
    results.sort(key=lambda result: result.job.index)
    compute = results[0].metrics.sync.compute_seconds
    workers = len(results[0].record.forwards)
    return results, compute.mean * workers


def _figures(
    problems: Sequence[Problem],
    results: Sequence[DecodeResult],
    base: Sequence[DecodeResult],
    seconds: Sequence[float],
    base_seconds: Sequence[float],
) -> dict[str, Any]:
    rows = [row_of(problem, result) for problem, result in zip(problems, results, strict=True)]
    same = [a.record.final_ids.tolist() == b.record.final_ids.tolist() for a, b in zip(results, base, strict=True)]
    pairs = [mine / its for mine, its in zip(seconds, base_seconds, strict=True)]
    arness = [row["measures"]["arness"] for row in rows if row["measures"]["arness"] is not None]
    return {
        "right": sum(row["correct"] is True for row in rows),
        "of": len(rows),
        "arness": statistics.fmean(arness) if arness else None,
        "same": sum(same) / len(same),
        "same_answer": sum(a.answer == b.answer for a, b in zip(results, base, strict=True)) / len(same),
        "rows": statistics.fmean(result.metrics.nfe.rows for result in results),
        "forwards": statistics.fmean(result.metrics.nfe.total for result in results),
        "seconds": sum(seconds),
        "ratio": {"median": statistics.median(pairs), "least": min(pairs), "most": max(pairs)},
    }


def table(cases: dict[str, Any]) -> str:
    """A line for each case and way."""
    lines = [f"{'case':12} {'way':8} {'right':>8} {'ARness':>7} {'same':>6} {'rows':>7} {'seconds':>8} {'ratio':>6}"]
    for case, ways in cases.items():
        for way, one in ways.items():
            arness = "-" if one["arness"] is None else f"{one['arness']:.3f}"
            lines.append(
                f"{case:12} {way:8} {one['right']:>4}/{one['of']:<3} {arness:>7} {one['same']:>6.2f} "
                f"{one['rows']:>7.0f} {one['seconds']:>8.1f} {one['ratio']['median']:>6.2f}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    began = time.perf_counter()
    main()
    print(f"{time.perf_counter() - began:.0f} s")
