"""One denoising step on one device: LLaDA's own loop, ours eager, compiled, and captured in CUDA graphs, in one run.

    python benchmarks/step.py                                        # 8B and 7B shapes, random weights, one GPU
    python benchmarks/step.py --device cpu --shapes llada-tiny       # a check that it runs, on a CPU
    python benchmarks/step.py --variants graph,graph:compiler,graph:tuned

Rows: `canvas`, all 1,152 rows of a prompt of 128 and 1,024 slots; `path`, one path of 330 and its header with keys and
values of the whole canvas; `narrow`, 32 rows of it. A step is rows, head, picking, commit and closing, as a worker runs
it, reports every 8 steps included; the head runs over all slots of the rows' paths, as at a decode's beginning. A time
is the median over steps of what passes from the end of one to the end of the next, by events on the GPU. Floor: the
larger of 2 · weights · rows / 790 TFLOP/s (embedding left out) and bytes of all weights / 4.3 TB/s.

A variant is `llada` (`llada_loop.py`), `eager`, `compiled`, `graph` or `graphN` (N steps in a graph), with options
behind colons: `flash`, `cudnn` (attention kernel), `tuned` (products), `static` (each number of rows compiled by
itself), `dynamic`, `compiler` (no kernels of our own), `plain` (nothing is compiled), `invariant` (numerics). All start
from one canvas; `ids` compares with the first variant of the same rows. `TORCHINDUCTOR_CACHE_DIR` keeps compiled code.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from llada_loop import PublishedLoop
from origin import head

from nap_runtime import DecodeConfig, SyncPolicy
from nap_runtime.bench.roofline import wait
from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.decoding.machine import Finish, Plan
from nap_runtime.decoding.placement import Assignment
from nap_runtime.distributed.comm import Solo
from nap_runtime.errors import UsageError
from nap_runtime.models.compiled import CompileOptions
from nap_runtime.models.config import ModelConfig
from nap_runtime.models.shapes import shape_config
from nap_runtime.models.transformer import DiffusionTransformer
from nap_runtime.worker import BlockWorker, Denoiser, Task, prepare, stepping
from nap_runtime.worker.loop import _Run

FLOPS, BANDWIDTH = 790e12, 4.3e12
ROWS = ("canvas", "path", "narrow")
VARIANTS = "llada,eager,compiled,graph:compiler,graph,graph8,graph:tuned"
PROMPT, STEPS = 128, 256
# Of log-confidences of one canvas by two orders of the same sums. Logits here have a width of 6.4, so the largest are
# above 16, where two numbers of bfloat16 lie 0.125 apart: two such steps.
_APART = {"bfloat16": 0.25, "float32": 1e-3, "float64": 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A way to run a step; `options` None is LLaDA's own loop."""

    name: str
    options: CompileOptions | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Steps that were run: seconds each, and the canvas afterwards (ids, step and score of each position)."""

    seconds: list[float]
    first: float
    ids: torch.Tensor
    step: torch.Tensor
    score: torch.Tensor
    forwards: int


def main() -> None:
    """Run every variant on every shape and print a line each."""
    args = _arguments()
    stepping._HEAD_SIZES = 1
    began = time.perf_counter()
    device = torch.device(args.device)
    lines: list[dict[str, Any]] = []
    print(f"# {' '.join(sys.argv)}", json.dumps(_about(device)), sep="\n# ", flush=True)
    for shape in args.shapes.split(","):
        model = random_model(shape, device, args.dtype)
        prepared: dict[Any, Denoiser] = {}
        for rows in args.rows.split(","):
            for line in _lines(model, prepared, shape, rows, args, began):
                lines.append(line)
                print(_text(line), flush=True)
        del model, prepared
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        report = {**_about(device), "lines": lines}
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"# {time.perf_counter() - began:.0f} s in all")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", default="llada-8b,dream-7b")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--variants", default=VARIANTS)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32", "float64"))
    parser.add_argument("--slots", type=int, default=1024, help="slots of the canvas")
    parser.add_argument("--path-slots", type=int, default=330)
    parser.add_argument("--repeats", type=int, default=10, help="steps that are timed, at least 5")
    parser.add_argument("--seconds", type=float, default=170, help="begin no variant after so long")
    parser.add_argument(
        "--profile", default="graph", help="variants whose kernels are listed, on the rows `canvas` and `path`"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    if args.repeats < 5:
        parser.error("--repeats: a median of fewer than 5 says little")
    return args


def parse_variant(text: str) -> Variant:
    """`graph8:cudnn:static` and the like."""
    name, *flags = text.split(":")
    if name in ("llada", "eager"):
        return Variant(name=text, options=None if name == "llada" else CompileOptions())
    mode = {"compiled": "default"}.get(name, "graph")
    options: dict[str, Any] = {"mode": mode, "unroll": int(name.removeprefix("graph") or 1) if mode == "graph" else 1}
    known = {
        "flash": {"attention": "flash"},
        "cudnn": {"attention": "cudnn"},
        "tuned": {"gemm": "tuned"},
        "static": {"dynamic": False},
        "dynamic": {"dynamic": True},
        "compiler": {"kernels": False},
        "plain": {"regions": False},
        "invariant": {"numerics": "invariant"},
    }
    for flag in flags:
        options |= known[flag]
    return Variant(name=text, options=CompileOptions(**options))


def random_model(shape: str, device: torch.device, dtype: str) -> DiffusionTransformer:
    """Random weights, made where they are used. The head's are wider, so that logits differ as a trained model's do."""
    config = shape_config(shape)
    model = DiffusionTransformer(config, dtype=getattr(torch, dtype), device=device).requires_grad_(False).eval()
    draw = torch.Generator(device=device).manual_seed(0)
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            weight.fill_(1.0)
        else:
            weight.normal_(0.0, 0.1 if name == "head.weight" else 0.02, generator=draw)
    if not config.tied_head:
        model.head.weight[config.mask_id] = 0  # as a trained model, it never predicts the mask
    model.embed.weight.mul_(50)  # of the size that norms give: tokens, not positions, decide what attention sees
    return model


# -- what is decoded ----------------------------------------------------------------------------------------------


def task_of(rows: str, config: ModelConfig, args: argparse.Namespace) -> Task:
    """A canvas whose first worker computes these rows from step 1 on."""
    slots, path, text = args.slots, args.path_slots, config.vocab_size // 2
    prompt = tuple(7 + at % 64 for at in range(PROMPT))
    ends: tuple[int, ...] = ()  # nothing closes: every step is a whole one
    common = {"prompt_tokens": PROMPT, "mask_id": config.mask_id, "fill_id": config.pad_id}
    if rows == "canvas":
        layout = CanvasLayout(kind="plain", headers=((),), budgets=(slots,), summary_header=(), summary_budget=0,
                              end_ids=(ends, ends), **common)  # type: ignore[arg-type]  # fmt: skip
        wanted = DecodeConfig(layout="plain", gen_length=slots, steps=min(STEPS, slots), rule="confidence")
        return Task(plan=Plan.of(layout, wanted, Assignment((0,))), prompts=(prompt,))
    own = path if rows == "path" else 31
    rest = slots - own - 3 - 31  # headers of two paths and of the summary, and its slots
    layout = CanvasLayout(kind="nap", headers=((text,), (text,)), budgets=(own, rest), summary_header=(text,),
                          summary_budget=31, end_ids=(ends,) * 3, **common)  # type: ignore[arg-type]  # fmt: skip
    steps = STEPS if rows == "path" else 32  # so that each commits a slot of the path
    wanted = DecodeConfig(paths=2, path_tokens=(own, rest), summary_tokens=31, steps=min(steps, layout.n_slots),
                          sync=SyncPolicy("none"))  # fmt: skip
    return Task(plan=Plan.of(layout, wanted, Assignment((0, 1))), prompts=(prompt,))


def measure(variant: Variant, model: DiffusionTransformer, denoiser: Denoiser, task: Task, repeats: int) -> Measured:
    """Run the first steps of a decode."""
    first = next(model.parameters())
    with torch.inference_mode():
        if variant.options is None:
            loop = PublishedLoop(model, task)
            return _measure(loop.step, loop.held, 2, repeats, 1, first.device)
        worker = BlockWorker(denoiser, Solo(), dtype=first.dtype, device=first.device, compiling=variant.options)
        run = _Run(worker, task, None, lambda: False)
        held = (run.state.ids, run.state.step, run.state.score)
        size = variant.options.unroll
        # Step 0 has all rows; then one run (a graph's steps) to compile with, one to capture, and one to begin with.
        warm, repeats = (4, repeats) if size == 1 else (3 * size, max(5, repeats // size))
        return _measure(lambda: _one_step(run), held, warm, repeats, size, first.device)


def _one_step(run: _Run) -> None:
    todo = run.machine.next(run.control())
    assert not isinstance(todo, Finish), "the decode ended: fewer --repeats"
    run.obey(todo)


def _measure(
    step: Any, held: tuple[torch.Tensor, ...], warm: int, repeats: int, unroll: int, device: torch.device
) -> Measured:
    began = time.perf_counter()
    for _ in range(warm):
        step()
    wait(device)
    first = time.perf_counter() - began
    marks = [_mark(device)]
    for _ in range(repeats):
        for _ in range(unroll):
            step()
        marks.append(_mark(device))
    wait(device)
    seconds = [_between(a, b) / unroll for a, b in pairwise(marks)]
    ids, steps, score = (tensor[0].cpu() for tensor in held)
    return Measured(seconds=seconds, first=first, ids=ids, step=steps, score=score, forwards=warm + repeats * unroll)


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(a: Any, b: Any) -> float:
    return b - a if isinstance(a, float) else float(a.elapsed_time(b)) / 1e3


# -- a line -------------------------------------------------------------------------------------------------------


def _lines(
    model: DiffusionTransformer,
    prepared: dict[Any, Denoiser],
    shape: str,
    rows: str,
    args: argparse.Namespace,
    began: float,
) -> Iterator[dict[str, Any]]:
    config = model.config
    task = task_of(rows, config, args)
    reference: Measured | None = None
    for text in args.variants.split(","):
        variant = parse_variant(text)
        line: dict[str, Any] = {"shape": shape, "rows": rows, "variant": text}
        unrolled = variant.options is not None and variant.options.unroll > 1
        if (variant.options is None and rows != "canvas") or (unrolled and rows == "narrow"):
            continue  # LLaDA's loop has no other rows; 31 slots are not enough steps
        if time.perf_counter() - began > args.seconds:
            yield line | {"failed": "not begun: time is up (--seconds)"}
            continue
        try:
            if variant.options is not None:
                variant.options.check(torch.device(args.device))
            got, memory = _run(variant, model, prepared, task, args)
            reference = reference or got
            yield line | _figures(got, reference, memory, config, task, args)
            if text in args.profile.split(",") and rows != "narrow" and args.device == "cuda":
                _profile(variant, model, prepared, task)
        except UsageError as error:
            yield line | {"failed": str(error)}
        except Exception as error:
            traceback.print_exc(limit=-6)
            yield line | {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}


def _run(
    variant: Variant, model: DiffusionTransformer, prepared: dict[Any, Denoiser], task: Task, args: argparse.Namespace
) -> tuple[Measured, int]:
    cuda = args.device == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    got = measure(variant, model, _denoiser(variant, model, prepared), task, args.repeats)
    return got, torch.cuda.max_memory_allocated() if cuda else 0


def _denoiser(variant: Variant, model: DiffusionTransformer, prepared: dict[Any, Denoiser]) -> Denoiser:
    """One compiled denoiser for `compiled` and every `graph` of the same options."""
    if variant.options is None:
        return model
    key = replace(variant.options, mode="none" if variant.options.mode == "none" else "default", unroll=1)
    if key not in prepared:
        prepared[key] = prepare(model, key)
    return prepared[key]


def _figures(
    got: Measured, reference: Measured, memory: int, config: ModelConfig, task: Task, args: argparse.Namespace
) -> dict[str, Any]:
    plan = task.plan
    alone = plan.assignment.workers == 1
    rows = plan.layout.size if alone else len(plan.assignment.own_rows(plan.layout, 0))
    itemsize = getattr(torch, args.dtype).itemsize
    weights = config.n_params - config.vocab_size * config.d_model
    floor = max(2 * weights * rows / FLOPS, config.n_params * itemsize / BANDWIDTH)
    median = statistics.median(got.seconds)
    return {
        "computed_rows": rows,
        "ms": 1e3 * median,
        "ms_least": 1e3 * min(got.seconds),
        "ms_most": 1e3 * max(got.seconds),
        "timed": len(got.seconds),
        "floor_ms": 1e3 * floor,
        "ratio": median / floor,
        "peak_gib": memory / 2**30,
        "warm_up_seconds": got.first,
        "ids": compare(reference, got, steps=min(reference.forwards, got.forwards), apart=_APART[args.dtype]),
    }


def compare(one: Measured, other: Measured, *, steps: int, apart: float) -> str:
    """Whether both committed the same at the first steps; if not, where they part and how close log-confidences are.

    Up to there both saw the same canvas. Later they do not, and nothing can be compared.
    """
    for step in range(steps):
        mine, its = one.step == step, other.step == step
        if torch.equal(mine, its) and torch.equal(one.ids[mine], other.ids[its]):
            continue
        a, b = one.score[mine].sort().values, other.score[its].sort().values
        if len(a) != len(b):
            return f"DIFFER at step {step}: {len(a)} and {len(b)} commits"
        gap = float((a - b).abs().max())
        verdict = "agree" if gap <= apart else "DIFFER"
        return f"{verdict}: same for {step} steps, then scores {gap:.1e} apart"
    return f"same for {steps} steps"


def _text(line: dict[str, Any]) -> str:
    head = f"{line['shape']:10} {line['rows']:7} {line['variant']:22}"
    if "failed" in line:
        return f"{head} {line['failed']}"
    return (
        f"{head} {line['ms']:8.2f} ms ({line['ms_least']:.2f} to {line['ms_most']:.2f}, {line['timed']})  "
        f"{line['ratio']:5.2f} x floor {line['floor_ms']:.2f}  {line['computed_rows']} rows  "
        f"peak {line['peak_gib']:.1f} GiB  warm-up {line['warm_up_seconds']:.1f} s  ids {line['ids']}"
    )


def _profile(variant: Variant, model: DiffusionTransformer, prepared: dict[Any, Denoiser], task: Task) -> None:
    """Print which kernels a step runs, and how much of it no kernel ran."""
    from torch.profiler import ProfilerActivity, profile

    assert variant.options is not None
    first, steps = next(model.parameters()), 4
    worker = BlockWorker(
        _denoiser(variant, model, prepared), Solo(), dtype=first.dtype, device=first.device, compiling=variant.options
    )
    with torch.inference_mode():
        run = _Run(worker, task, None, lambda: False)
        for _ in range(9):  # the last of them reads a report
            _one_step(run)
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            for _ in range(steps):
                _one_step(run)
            torch.cuda.synchronize()
    kernels = kernels_of(trace)
    if not kernels:
        return print("#   the profiler saw no kernels")
    span = max(event.time_range.end for event in kernels) - min(event.time_range.start for event in kernels)
    busy = times_of(kernels)
    total = sum(map(sum, busy.values()))
    print(f"#   a step: {span / steps / 1e3:.2f} ms, {total / steps / 1e3:.2f} ms in {len(kernels) // steps} kernels")
    for name, times in sorted(busy.items(), key=lambda item: -sum(item[1]))[:10]:
        mean = statistics.mean(times)
        print(f"#   {sum(times) / steps / 1e3:7.3f} ms  {len(times) / steps:6.1f} x {mean:8.1f} us  {name[:70]}")


def kernels_of(trace: Any) -> list[Any]:
    """Events of a profile that ran on a GPU."""
    return [event for event in trace.events() if event.device_type == torch.autograd.DeviceType.CUDA]


def times_of(kernels: Sequence[Any]) -> dict[str, list[float]]:
    """Microseconds of each run, by kernel."""
    busy: dict[str, list[float]] = {}
    for event in kernels:
        busy.setdefault(event.name, []).append(event.time_range.end - event.time_range.start)
    return busy


def _about(device: torch.device) -> dict[str, Any]:
    return {
        **head(device.type),
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "inductor_cache": os.environ.get("TORCHINDUCTOR_CACHE_DIR"),
        "weights": "random",
    }


if __name__ == "__main__":
    main()
