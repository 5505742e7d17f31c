"""A decode on several devices of one host under each sync, beside one device, in one run; and what the host does.

    python benchmarks/group.py                                     # LLaDA-8B's shape on two GPUs over NCCL, captured
    python benchmarks/group.py --shape dream-7b --out out/group-dream.json
    python benchmarks/group.py --device cpu --shape llada-tiny --slots 48 --steps 12 --compile none   # that it runs

A path a device, as long as fits, a summary of `--summary` slots, a prompt of 128. Every case commits the same slots in
the same number of steps, so speeds are ratios of whole decodes. No Ray here, whose workers `nap bench` times: processes
of one group, each with the same random weights, so that a run takes a minute.

`one device, whole canvas` is what speeds are ratios to. `one device, kv …` is one device that computes what a group
does under the same sync: the rows of all paths, at syncs the shared ones too. `sync`: share of the time, on the first
device, that is blocked in exchanges or goes to rows that only a sync asks for; what a captured step waits inside
(`exact`) is not in it, the kernels named after NCCL are (`kernels` in the file). `launch`: milliseconds a step in which
the host hands on work; the rest of the step it is idle, or reads a report. `ids`: share of equal ones, of the slots
that the first worker answers for, with the whole canvas on one device: of `exact` all with `--numerics invariant`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from origin import head
from step import PROMPT, kernels_of, random_model, times_of

from nap_runtime import DecodeConfig, SyncPolicy
from nap_runtime.bench.roofline import wait
from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.decoding.machine import Finish, Plan
from nap_runtime.decoding.placement import Assignment
from nap_runtime.distributed.comm import Communicator, Solo
from nap_runtime.distributed.torch_group import GroupAddress, TorchCommunicator, join_store, open_store
from nap_runtime.job import COMPILE_MODES
from nap_runtime.models.compiled import CompileOptions
from nap_runtime.models.config import ModelConfig
from nap_runtime.numerics import NUMERICS
from nap_runtime.worker import BlockWorker, Outcome, Task, prepare
from nap_runtime.worker.loop import _Run

TIMEOUT = timedelta(seconds=600)
WHOLE = "one device, whole canvas"
POLICIES = {
    "exact": SyncPolicy("exact"),
    "exact, overlap": SyncPolicy("exact", overlap=True),
    "kv, K = 1": SyncPolicy("kv", every=1),
    "kv, K = 8": SyncPolicy("kv", every=8),
    "kv, K = 8, overlap": SyncPolicy("kv", every=8, overlap=True),
    "tokens, K = 8": SyncPolicy("tokens", every=8),
    "none": SyncPolicy("none"),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A decode to time: a sync, and whether all paths are on the first device."""

    name: str
    policy: SyncPolicy
    alone: bool


def main() -> None:
    """Start the processes, print what the first one has measured."""
    args = _arguments()
    context = multiprocessing.get_context("spawn")
    store, address = open_store("127.0.0.1", TIMEOUT)
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        members = [context.Process(target=_member, args=(rank, address, args, answer)) for rank in range(args.workers)]
        for member in members:
            member.start()
        _end_together(members)
        found = json.loads(answer.read_text())
    del store
    print(_table(found))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")


def _end_together(members: Sequence[BaseProcess]) -> None:
    """Wait for all; where one fails, the others would wait for it until the group's timeout."""
    while running := [member for member in members if member.exitcode is None]:
        connection.wait([member.sentinel for member in running])
        if any(member.exitcode for member in members):
            for member in members:
                member.kill()
            raise SystemExit("a process of the group failed; its error stands above")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", default="llada-8b")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32", "float64"))
    parser.add_argument("--workers", type=int, default=2, help="devices, a path each")
    parser.add_argument("--slots", type=int, default=1022, help="of paths and summary together")
    parser.add_argument("--summary", type=int, default=8)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--compile", default="graph", choices=COMPILE_MODES)
    parser.add_argument("--numerics", default="fast", choices=NUMERICS)
    parser.add_argument("--policies", default=",".join(name.replace(", ", ":") for name in POLICIES))
    parser.add_argument("--repeats", type=int, default=5, help="decodes that are timed, at least 5")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    if args.repeats < 5:
        parser.error("--repeats: a median of fewer than 5 says little")
    args.policies = [name.replace(":", ", ") for name in args.policies.split(",")]
    if unknown := set(args.policies) - set(POLICIES):
        known = ", ".join(name.replace(", ", ":") for name in POLICIES)
        parser.error(f"--policies: {sorted(unknown)[0]!r} is none of {known}")
    return args


# -- a process ----------------------------------------------------------------------------------------------------


def _member(rank: int, address: GroupAddress, args: argparse.Namespace, answer: Path) -> None:
    device = torch.device("cuda", rank) if args.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    group = TorchCommunicator(
        join_store(address, TIMEOUT), rank=rank, world=args.workers, device=device, timeout=TIMEOUT
    )
    lines = list(_lines(group, device, args))
    if rank == 0:
        how = {"compile": args.compile, "numerics": args.numerics, "dtype": args.dtype}
        answer.write_text(json.dumps({**head(device.type), **how, "lines": lines}))
    group.close()


def _lines(group: Communicator, device: torch.device, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    model = random_model(args.shape, device, args.dtype)
    options = CompileOptions(mode=args.compile, numerics=args.numerics)
    denoiser, dtype = prepare(model, options), getattr(torch, args.dtype)
    whole: tuple[dict[str, Any], dict[int, int]] | None = None  # the first case; not on other devices, whom none asks
    for case in _cases(args):
        if case.alone and group.rank:
            continue
        comm = Solo() if case.alone else group
        worker = BlockWorker(denoiser, comm, dtype=dtype, device=device, compiling=options)
        line, ids = _measured(worker, _task(model.config, case, args), case, args)
        whole = whole or (line, ids)
        yield line | {"speed": whole[0]["seconds"] / line["seconds"], "same_ids": _same(whole[1], ids)}


def _same(one: dict[int, int], other: dict[int, int]) -> float:
    """Share of the slots that both answer for with the same id."""
    common = one.keys() & other.keys()
    return sum(one[slot] == other[slot] for slot in common) / len(common)


def _cases(args: argparse.Namespace) -> Iterator[Case]:
    yield Case(WHOLE, SyncPolicy("exact"), alone=True)
    for name in args.policies:
        policy = POLICIES[name]
        if policy.mode in ("kv", "none") and not policy.overlap:
            yield Case(f"one device, {name}", policy, alone=True)
        yield Case(name, policy, alone=False)


def _task(config: ModelConfig, case: Case, args: argparse.Namespace) -> Task:
    """The same canvas for every case; nothing closes, so every slot is committed by the network."""
    text, paths = config.vocab_size // 2, args.workers
    budget = (args.slots - args.summary) // paths
    layout = CanvasLayout(
        kind="nap",
        prompt_tokens=PROMPT,
        headers=((text,),) * paths,
        budgets=(budget,) * paths,
        summary_header=(text,),
        summary_budget=args.summary,
        end_ids=((),) * (paths + 1),
        mask_id=config.mask_id,
        fill_id=config.pad_id,
    )
    wanted = DecodeConfig(
        paths=paths, path_tokens=budget, summary_tokens=args.summary, steps=args.steps, sync=case.policy
    )
    workers = (0,) * paths if case.alone else tuple(range(paths))
    prompt = tuple(7 + at % 64 for at in range(PROMPT))
    return Task(plan=Plan.of(layout, wanted, Assignment(workers)), prompts=(prompt,))


def _measured(
    worker: BlockWorker, task: Task, case: Case, args: argparse.Namespace
) -> tuple[dict[str, Any], dict[int, int]]:
    """Medians over decodes, two before which compile and capture; and ids by slot, of those this worker answers for."""
    decodes = [_decode(worker, task) for _ in range(2 + args.repeats)][2:]
    seconds = statistics.median(seconds for seconds, _, _ in decodes)
    outcome = decodes[-1][1]
    meters, steps = outcome.meters, task.plan.schedule.steps
    shares = [(o.meters.blocked_seconds + o.meters.recompute_seconds) / s for s, o, _ in decodes]
    line = {
        "case": case.name,
        "seconds": seconds,
        "seconds_all": [s for s, _, _ in decodes],
        "ms_per_step": 1e3 * seconds / steps,
        "forwards": meters.forwards,
        "rows_per_forward": meters.rows_computed / meters.forwards,
        "syncs": meters.syncs,
        "wire_bytes": meters.wire_bytes,
        "sync_share": None if case.alone else statistics.median(shares),
        "launch_ms_per_step": 1e3 * statistics.median(launch for _, _, launch in decodes) / steps,
        "kernels": _kernels(worker, task),
    }
    return line, dict(zip(outcome.slots.tolist(), outcome.ids[0].tolist(), strict=True))


def _decode(worker: BlockWorker, task: Task) -> tuple[float, Outcome, float]:
    """Seconds of a decode as the first worker sees it, its outcome, and seconds the host spent on handing on work."""
    _meet(worker.comm, worker.device)
    began, launch = time.perf_counter(), 0.0
    with torch.inference_mode():
        run = _Run(worker, task, None, lambda: False)
        while not isinstance(todo := run.machine.next(run.control()), Finish):
            before = time.perf_counter()
            goes_on = run.obey(todo)
            launch += time.perf_counter() - before
            if not goes_on:
                break
        outcome = run.finish(cancelled=False)
    wait(worker.device)
    return time.perf_counter() - began, outcome, launch


def _kernels(worker: BlockWorker, task: Task) -> list[dict[str, Any]] | None:
    """Of one more decode what ran on the first device: share of the time, by kernel, the ten with most of it."""
    if worker.device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        seconds, _, _ = _decode(worker, task)
    busy = {name: sum(times) for name, times in times_of(kernels_of(trace)).items()}
    longest = sorted(busy.items(), key=lambda item: -item[1])
    named = [item for item in longest[:10] if "nccl" not in item[0].lower()]
    named += [item for item in longest if "nccl" in item[0].lower()]
    return [{"kernel": name[:70], "share": us / 1e6 / seconds} for name, us in named] + [
        {"kernel": "all", "share": sum(busy.values()) / 1e6 / seconds}
    ]


def _meet(comm: Communicator, device: torch.device) -> None:
    """Begin together."""
    one = torch.zeros(1, device=device)
    comm.all_gather(one.new_zeros((comm.world, 1)), one)
    wait(device)


def _table(found: dict[str, Any]) -> str:
    about = found["environment"]
    lines = [f"{about['device_name']} x {about['devices']}, torch {about['torch']}, commit {about['commit']}"]
    lines.append(
        f"{'':26} {'ms/step':>8} {'speed':>7} {'rows':>6} {'sync':>6} {'launch':>7} {'wire MiB':>9} {'ids':>7}"
    )
    for line in found["lines"]:
        share = "" if line["sync_share"] is None else f"{line['sync_share']:.1%}"
        lines.append(
            f"{line['case']:26} {line['ms_per_step']:8.2f} {line['speed']:6.2f}x {line['rows_per_forward']:6.0f} "
            f"{share:>6} {line['launch_ms_per_step']:7.2f} {line['wire_bytes'] / 2**20:9.1f} {line['same_ids']:7.1%}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
