"""Sync overhead against path count on real workers (Ray with gloo, or NCCL), strong and weak scaling apart.

    OMP_NUM_THREADS=1 python benchmarks/sync_scaling.py --out out/scaling.json      # nap-tiny's shape, two cores
    python benchmarks/sync_scaling.py --shape llada-8b --device cuda --workers 1,2 --dtype bfloat16 --out out/8b.json

Weak scaling keeps the slots of a path (--path-tokens); strong keeps those of all paths together (--total-tokens). One
path a worker; one worker decodes each of these canvases too, as the one-device baseline. Policies are interleaved (each
round decodes once under each; not with `--compile graph`), and the groups of workers are started anew in turn,
`--visits` times, so that what drifts drifts for all. A figure is the median of `--repeats` decodes. Runs with more
workers than cores are marked (`oversubscribed`): they say nothing about a machine with a core a worker.

Several workers are given the cores in equal parts, one has as many threads as torch takes: set OMP_NUM_THREADS to cores
over workers where one worker is to have no more than each of two. A scenario says what its workers had.

The file holds every decode's seconds (`cells`), and `points` as `nap cost calibrate` reads them: one worker, and strong
scaling on two, are fitted; all others are held out. So that no canvas is both, the two kinds of scaling must not meet:
--total-tokens must not be --path-tokens times one of the numbers of workers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from origin import head

from nap_runtime import SyncPolicy
from nap_runtime.api import make_executor
from nap_runtime.decoding.machine import Plan
from nap_runtime.decoding.placement import Assignment
from nap_runtime.executor.coordinator import Batch, Coordinator, JobFailure, Observer
from nap_runtime.job import COMPILE_MODES, DecodeJob, DecodeResult
from nap_runtime.models.loading import ModelCard, read_card
from nap_runtime.models.prompting import build_layout
from nap_runtime.models.shapes import shape_config, write_random
from nap_runtime.study.cost.scenario import Scenario
from nap_runtime.worker import Task

POLICIES = {
    "exact": SyncPolicy("exact"),
    "kv-8": SyncPolicy("kv", every=8),
    "tokens-8": SyncPolicy("tokens", every=8),
    "shared-8": SyncPolicy("shared", every=8),
    "none": SyncPolicy("none"),
}


@dataclass(slots=True)
class Cell:
    """One policy on one canvas and number of workers, with what was measured of it."""

    name: str
    scaling: str
    scenario: Scenario
    seconds: list[float] = field(default_factory=list)
    blocked: list[float] = field(default_factory=list)
    compute: list[float] = field(default_factory=list)
    wire_bytes: int = 0

    @property
    def oversubscribed(self) -> bool:
        """Whether there are more workers than cores."""
        return self.scenario.workers > cores()

    def to_json(self) -> dict[str, Any]:
        """A point for `nap cost calibrate`, and what is beside it."""
        workers = self.scenario.workers
        return {
            "name": self.name,
            "scaling": self.scaling,
            "scenario": self.scenario.to_mapping(),
            "seconds": statistics.median(self.seconds),
            "seconds_all": self.seconds,
            "blocked_seconds": statistics.median(self.blocked),
            "compute_seconds": statistics.median(self.compute),
            "wire_bytes": self.wire_bytes,
            "oversubscribed": self.oversubscribed,
            "hold_out": self.oversubscribed or not (workers == 1 or (workers == 2 and self.scaling == "strong")),
        }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def main() -> None:
    """Measure every cell and write the points."""
    args = _arguments()
    if args.scratch:
        args.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        write_random(shape_config(args.shape), Path(scratch) / "model", seed=0, draw=args.device)
        card = read_card(Path(scratch) / "model")
        cells = {workers: list(_cells(args, workers)) for workers in args.workers}
        for visit in range(args.visits):
            for workers, group in cells.items():
                _visit(card, workers, group, args)
                print(f"visit {visit + 1} of {args.visits}: {workers} workers", file=sys.stderr, flush=True)
    found = [cell for group in cells.values() for cell in group]
    print(_table(found))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        cells_json = [cell.to_json() for cell in found]
        points = [{key: cell[key] for key in ("name", "scenario", "seconds", "hold_out")} for cell in cells_json]
        about = {**head(args.device), "weights": "random", "compile": args.compile, "repeats": args.repeats}
        args.out.write_text(json.dumps(about | {"cells": cells_json, "points": points}, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", default="nap-tiny", help="random weights of a shape")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--workers", type=_integers, default=(1, 2, 3, 4), help="one path each")
    parser.add_argument("--policies", type=lambda text: text.split(","), default=list(POLICIES))
    parser.add_argument("--scaling", type=lambda text: text.split(","), default=["strong", "weak"])
    parser.add_argument("--path-tokens", type=int, default=96, help="of a path, weak scaling")
    parser.add_argument("--total-tokens", type=int, default=240, help="of all paths, strong scaling")
    parser.add_argument("--summary-tokens", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--tokens-per-step", type=int, default=4, help="of a path")
    parser.add_argument("--repeats", type=int, default=20, help="decodes a cell, over all visits")
    parser.add_argument("--visits", type=int, default=2, help="times a group of workers is started")
    parser.add_argument("--compile", default="none", choices=COMPILE_MODES, help="how steps are carried out")
    parser.add_argument("--scratch", type=Path, help="folder for random weights")
    parser.add_argument("--out", type=Path, help="JSON file for the points")
    args = parser.parse_args()
    if any(args.total_tokens == args.path_tokens * workers for workers in args.workers if workers > 1):
        parser.error("--total-tokens: weak scaling has this canvas too: it would be fitted and held out; take another")
    return args


def _integers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _cells(args: argparse.Namespace, workers: int) -> Iterator[Cell]:
    """Several workers: a path each, every policy. One worker: every canvas of those, as the one-device baseline."""
    for scaling in args.scaling:
        for paths in args.workers if workers == 1 else (workers,):
            for policy in ("exact",) if workers == 1 else args.policies:
                name = f"{scaling} {policy} m{paths} w{workers}"
                yield Cell(name=name, scaling=scaling, scenario=_scenario(args, scaling, paths, workers, policy))


def _scenario(args: argparse.Namespace, scaling: str, paths: int, workers: int, policy: str) -> Scenario:
    slots = args.path_tokens if scaling == "weak" else args.total_tokens // paths
    return Scenario(
        shape=args.shape,
        paths=paths,
        path_tokens=slots,
        summary_tokens=args.summary_tokens,
        prompt_tokens=args.prompt_tokens,
        header_tokens=1,
        steps=max((slots + args.summary_tokens) // args.tokens_per_step, 2),  # a path's pace is the same everywhere
        workers=workers,
        threads=1 if args.device == "cuda" else _threads(workers),
        dtype=args.dtype,
        sync=POLICIES[policy],
    )


def _threads(workers: int) -> int:
    """What torch has in this process, where one worker decodes; several are given the host's cores in equal parts."""
    import torch  # not before nap_runtime, which decides how its threads wait

    return torch.get_num_threads() if workers == 1 else max(1, (os.cpu_count() or 1) // workers)


def _visit(card: ModelCard, workers: int, cells: Sequence[Cell], args: argparse.Namespace) -> None:
    """Start a group, warm every cell up, then measure them in turns."""
    executor = make_executor(card, workers=workers, dtype=args.dtype, device=args.device, compile=args.compile)
    try:
        coordinator = Coordinator(card, executor)
        # Workers keep few shapes captured, so captured cells follow one another; a graph is captured at a second step.
        turns, warm = ([[cell] for cell in cells], 2) if args.compile == "graph" else ([list(cells)], 1)
        for turn in turns:
            for at in range(warm - (-args.repeats // args.visits)):
                for cell in turn:
                    result = _decode(coordinator, cell.scenario)
                    if at >= warm:
                        _note(cell, result)
    finally:
        executor.close()


def _decode(coordinator: Coordinator, scenario: Scenario) -> DecodeResult:
    """One canvas whose paths never close, so that every slot is committed as the cost model counts."""
    config = coordinator.resolve(scenario.config.with_values(eos_weight=0.0))
    layout = build_layout(coordinator.card, config, scenario.prompt_tokens)
    layout = replace(layout, end_ids=((layout.mask_id,),) * (scenario.paths + 1))  # the mask is never predicted
    plan = Plan.of(layout, config, Assignment.even(scenario.paths, scenario.workers))
    prompt = tuple(2 + at % 50 for at in range(scenario.prompt_tokens))
    batch = Batch(jobs=(DecodeJob(question="-"),), task=Task(plan=plan, prompts=(prompt,)))
    (result,) = coordinator.run(batch, Observer(), lambda: False)
    if isinstance(result, JobFailure):
        raise result.error
    return result


def _note(cell: Cell, result: DecodeResult) -> None:
    sync = result.metrics.sync
    assert sync.blocked_seconds is not None
    assert sync.compute_seconds is not None
    cell.seconds.append(result.metrics.seconds)
    cell.blocked.append(sync.blocked_seconds.mean)
    cell.compute.append(sync.compute_seconds.mean)
    cell.wire_bytes = sum(sync.wire_bytes)


def _table(cells: Sequence[Cell]) -> str:
    lines = [f"{'':28} {'ms/step':>9} {'compute':>9} {'blocked':>9} {'wire KiB':>9}"]
    for cell in cells:
        steps = cell.scenario.steps or 1
        times = [1e3 * statistics.median(v) / steps for v in (cell.seconds, cell.compute, cell.blocked)]
        more = "  more workers than cores" if cell.oversubscribed else ""
        lines.append(
            f"{cell.name:28} {times[0]:9.3f} {times[1]:9.3f} {times[2]:9.3f} {cell.wire_bytes / 1024:9.1f}{more}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
