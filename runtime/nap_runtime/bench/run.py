"""A whole benchmark: every case in turns on warm workers, then a row of figures for each."""

from __future__ import annotations

import copy
import json
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nap_runtime.api import make_executor
from nap_runtime.bench import cases
from nap_runtime.bench.canvases import Canvases, opened
from nap_runtime.bench.cases import Case, Place, Sample
from nap_runtime.bench.roofline import Rates, floor_seconds, rates_of
from nap_runtime.bench.spec import BenchSpec
from nap_runtime.executor.coordinator import Coordinator
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.metrics.agreement import compare
from nap_runtime.models.compiled import CompileMode
from nap_runtime.models.quantised import FP8, check_fp8, quantise
from nap_runtime.models.transformer import DiffusionTransformer
from nap_runtime.storage import Storage
from nap_runtime.study.environment import environment
from nap_runtime.worker import Denoiser, prepare

SCHEMA = "nap.bench/1"
_RTOL = {"float64": 0.0, "float32": 1e-4, "bfloat16": 2e-2}
_ALONE = 4  # canvases of a batch that are held against a decode of their own
Progress = Callable[[str], None]


@dataclass(slots=True)
class _Timed:
    """A case and its samples; `peak` bytes, None where nobody can see them."""

    case: Case
    samples: list[Sample] = field(default_factory=list)
    peak: int | None = None
    alone: list[Sample] = field(default_factory=list)

    @property
    def last(self) -> Sample:
        return self.samples[-1]

    def median(self, name: str) -> float:
        return float(statistics.median(getattr(sample, name) for sample in self.samples))


def run_bench(spec: BenchSpec, *, command: str, progress: Progress = lambda _: None) -> dict[str, Any]:
    """Measure; the document that `nap bench --out` writes.

    Raises:
        UsageError: a device cannot do what is asked.
    """
    device = torch.device(spec.device)
    if "fp8" in spec.weights:
        check_fp8("weights", device=device, dtype=getattr(torch, spec.dtype))
    rates = rates_of(device, getattr(torch, spec.dtype))
    timed: list[_Timed] = []
    with opened(spec) as (canvases, model):
        for workers in spec.workers:
            progress(f"{workers} {'worker' if workers == 1 else 'workers'}")
            timed += _group(canvases, model, workers, progress)
        rates = rates.best(rates_of(device, getattr(torch, spec.dtype)))
        rows = [_row(one, timed, canvases, rates) for one in timed]
        layout = canvases.layout
        canvas = {"positions": layout.size, "slots": layout.n_slots, "steps": canvases.steps}
    return {
        "schema": SCHEMA,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "environment": environment(spec.device) | {"devices": _devices(spec), "load": os.getloadavg()[0]},
        "spec": json.loads(json.dumps(spec.to_mapping())),
        "key": spec.canvas_key(),
        "canvas": canvas,
        "rates": asdict(rates),
        "rows": rows,
    }


def _devices(spec: BenchSpec) -> int:
    return torch.cuda.device_count() if spec.device == "cuda" else 1


# -- measuring -------------------------------------------------------------------------------------


def _group(canvases: Canvases, model: DiffusionTransformer, workers: int, progress: Progress) -> list[_Timed]:
    """The cases of one size of group."""
    if workers == 1:
        return _in_turns(list(_alone(canvases, model)), canvases.spec, progress)
    timed = []
    for how, weights, kv in product(canvases.spec.compile, canvases.spec.weights, canvases.spec.kv):
        with _started(canvases, workers, how, Storage(weights=weights, kv=kv)) as place:
            timed += _in_turns(list(cases.ours_together(canvases, place)), canvases.spec, progress)
    return timed


def _alone(canvases: Canvases, model: DiffusionTransformer) -> Iterator[Case]:
    """Cases of this process: ours as every way of carrying out steps and of storing numbers, and the peers once."""
    spec = canvases.spec
    device, dtype = torch.device(spec.device), getattr(torch, spec.dtype)
    for how in spec.compile:
        for weights in spec.weights:
            network = model if weights == "native" else quantise(copy.deepcopy(model))
            for kv in spec.kv:
                kind = dtype if kv == "native" else FP8
                options = spec.compile_options(how)
                denoiser = prepare(network, options)

                def start(denoiser: Denoiser = denoiser, kind: Any = kind, options: Any = options) -> Coordinator:
                    executor = InlineExecutor(denoiser, dtype=kind, device=device, compiling=options)
                    return Coordinator(canvases.card, executor)

                yield from cases.ours_alone(canvases, Place(start, 1, how, weights, kv))
    yield from cases.peer_loops(canvases, model, "none")
    ways: tuple[CompileMode, ...] = ("none",) if spec.compile == ("none",) else ("default",)
    for how in ways:
        denoiser = prepare(model, spec.compile_options(how))
        yield from cases.one_device(canvases, denoiser, how, dtype=dtype)
        if how != "none":
            yield from cases.peer_loops(canvases, denoiser, how)


@contextmanager
def _started(canvases: Canvases, workers: int, how: CompileMode, storage: Storage) -> Iterator[Place]:
    """A warm group on Ray."""
    spec = canvases.spec
    where: dict[str, Any] = {"dtype": spec.dtype, "device": spec.device, "compile": how, "storage": storage}
    executor = make_executor(canvases.card, workers=workers, **where)
    try:
        coordinator = Coordinator(canvases.card, executor)
        yield Place(lambda: coordinator, workers, how, storage.weights, storage.kv)
    finally:
        executor.close()


def _in_turns(found: Sequence[Case], spec: BenchSpec, progress: Progress) -> list[_Timed]:
    """Each case once a round, so that what drifts drifts for all; the first round warms up and is not counted.

    On a group that captures graphs each case's rounds follow each other: its workers keep few shapes captured.
    """
    timed = [_Timed(case) for case in found]
    captured = any(case.how == "graph" and case.workers > 1 for case in found)
    rounds, every = range(spec.repeats + 1), range(len(timed))
    turns = [(t, n) for n in every for t in rounds] if captured else [(t, n) for t in rounds for n in every]
    for turn, number in turns:
        progress(f"round {turn} of {spec.repeats}: {timed[number].case.key}")
        _once(timed[number], spec, counts=turn > 0)
    for one in timed:
        if one.case.alone is not None:
            one.alone = [one.case.alone(canvas) for canvas in range(min(one.case.batch, _ALONE))]
    return timed


def _once(one: _Timed, spec: BenchSpec, *, counts: bool) -> None:
    """Decode once; what is not counted warms up."""
    here = one.case.workers == 1
    if here:
        _reset_peak(spec)
    sample = one.case.decode()
    if counts:
        one.samples.append(sample)
        one.peak = max(one.peak or 0, _peak(spec)) if here else None


def _reset_peak(spec: BenchSpec) -> None:
    if spec.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak(spec: BenchSpec) -> int:
    """Bytes: what torch has allocated on the device, weights included; on a CPU the process's largest resident size."""
    if spec.device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


# -- figures ---------------------------------------------------------------------------------------


def _row(one: _Timed, timed: Sequence[_Timed], canvases: Canvases, rates: Rates) -> dict[str, Any]:
    """Every figure of a case. Seconds are medians; ratios are to the whole canvas on one device of the same run."""
    case, last, spec = one.case, one.last, canvases.spec
    seconds, steps = one.median("seconds"), one.median("steps")
    rows_per_step = one.median("rows") / steps / case.workers
    itemsize = getattr(torch, spec.dtype).itemsize
    fp8 = case.weights == "fp8"
    floor = floor_seconds(canvases.card.config, rows=rows_per_step, rates=rates, itemsize=itemsize, fp8_weights=fp8)
    rate = one.median("tokens") / seconds
    base = _whole(timed, case)
    return {
        "case": case.key,
        "name": case.name,
        "family": case.family,
        "workers": case.workers,
        "batch": case.batch,
        "how": case.how,
        "weights": case.weights,
        "kv": case.kv,
        "ms_per_step": 1e3 * seconds / steps,
        "ms_per_step_all": [1e3 * sample.seconds / sample.steps for sample in one.samples],
        "steps": steps,
        "rows_per_step": rows_per_step,
        "tokens_per_second": rate,
        "useful_tokens_per_second": one.median("useful") / seconds,
        "first_commit_ms": 1e3 * one.median("first_commit"),
        "floor_ms": 1e3 * floor,
        "over_floor": seconds / steps / floor,
        "speed": None if base is None else rate / (base.median("tokens") / base.median("seconds")),
        "over_batch_1": _over_alone(one, timed),
        "sync_share": None if last.sync_share is None else one.median("sync_share"),
        "syncs": last.syncs,
        "wire_bytes": last.wire_bytes,
        "staleness": last.staleness,
        "peak_bytes": one.peak,
        "ids": _ids(one, timed, canvases),
    }


def _over_alone(one: _Timed, timed: Sequence[_Timed]) -> float | None:
    """Tokens/s over those of the same case with one canvas; None where that is not measured."""
    alone = [o for o in timed if replace(o.case, batch=one.case.batch).key == one.case.key and o.case.batch == 1]
    if one.case.batch == 1 or not alone:
        return None
    rate, single = (o.median("tokens") / o.median("seconds") for o in (one, alone[0]))
    return rate / single


def _whole(timed: Sequence[_Timed], case: Case) -> _Timed | None:
    """The whole canvas on one device with native numbers, carried out as this case is, or else in the first way."""
    bases = [one for one in timed if one.case.name == cases.WHOLE and one.case.batch == 1]
    bases = [one for one in bases if one.case.weights == one.case.kv == "native"]
    alike = [one for one in bases if one.case.how == case.how]
    return next(iter(alike or bases), None)


def _ids(one: _Timed, timed: Sequence[_Timed], canvases: Canvases) -> dict[str, Any] | None:
    """What its ids are held against, the share of slots with equal ids, and whether the two agree."""
    case = one.case
    if case.batch > 1:
        return _check("each canvas alone", one.last, _joined(one.alone), canvases.spec, must=True)
    if case.name == cases.WHOLE:
        bases = [o for o in timed if o.case.name == cases.WHOLE and o.case.batch == 1 and o is not one]
        base = next((o for o in bases[:1] if timed.index(o) < timed.index(one)), None)
        native = case.weights == case.kv == "native"
        return None if base is None else _check(base.case.key, one.last, base.last, canvases.spec, must=native)
    alike = [other for other in timed if other.case.name == case.against and other.case.batch == 1]
    if not alike:
        return None
    return _check(alike[0].case.key, one.last, alike[0].last, canvases.spec, must=case.must_agree)


def _joined(samples: Sequence[Sample]) -> Sample:
    ids = tuple(ids for sample in samples for ids in sample.ids)
    return replace(samples[0], ids=ids, records=tuple(r for sample in samples for r in sample.records))


def _check(name: str, got: Sample, want: Sample, spec: BenchSpec, *, must: bool) -> dict[str, Any]:
    count = len(want.ids)
    equal = [float(np.mean(a == b)) for a, b in zip(got.ids[:count], want.ids, strict=True)]
    agrees = None
    pairs = list(zip(got.records[:count], want.records, strict=False))
    if pairs and all(a.layout == b.layout for a, b in pairs):
        agrees = all(compare(a, b, rtol=_RTOL[spec.dtype]).agrees for a, b in pairs)
    return {
        "against": name,
        "equal": statistics.mean(equal),
        "agrees": agrees,
        "must_agree": must,
        "canvases": count,
    }
