"""A whole benchmark: every case in turns on warm workers, then a row of figures for each."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import product
from typing import Any

import torch

from nap_runtime.api import make_executor
from nap_runtime.bench import cases
from nap_runtime.bench.canvases import Canvases, opened
from nap_runtime.bench.cases import Case, Place
from nap_runtime.bench.figures import row_of
from nap_runtime.bench.measure import Progress, Timed, in_turns
from nap_runtime.bench.roofline import Rates, rates_of
from nap_runtime.bench.spec import BenchSpec
from nap_runtime.executor.coordinator import Coordinator
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.models.compiled import CompileMode
from nap_runtime.models.quantised import FP8, check_fp8, quantise
from nap_runtime.models.transformer import DiffusionTransformer
from nap_runtime.storage import Storage
from nap_runtime.study.environment import stamp
from nap_runtime.worker import Denoiser, prepare

SCHEMA = "nap.bench/1"
Document = dict[str, Any]


def run_bench(
    spec: BenchSpec,
    *,
    command: str,
    progress: Progress = lambda _: None,
    save: Callable[[Document], None] = lambda _: None,
) -> Document:
    """Measure; the document that `nap bench --out` writes. `save` gets what there is of it while the run goes on.

    Raises:
        UsageError: a device cannot do what is asked.
    """
    device, dtype = torch.device(spec.device), getattr(torch, spec.dtype)
    if "fp8" in spec.weights:
        check_fp8("weights", device=device, dtype=dtype)
    rates = rates_of(device, dtype)
    timed: list[Timed] = []
    with opened(spec) as (canvases, model):

        def so_far() -> None:
            save(_document(spec, command, canvases, timed, rates))

        for found in _groups(canvases, model):
            fresh = [Timed(case) for case in found]
            timed.extend(fresh)
            in_turns(fresh, spec, progress, so_far)
        rates = rates.best(rates_of(device, dtype))
        return _document(spec, command, canvases, timed, rates)


def _document(spec: BenchSpec, command: str, canvases: Canvases, timed: Sequence[Timed], rates: Rates) -> Document:
    layout = canvases.layout
    measured = [one for one in timed if one.samples]
    return {
        "schema": SCHEMA,
        **stamp(spec.device, command),
        "spec": json.loads(json.dumps(spec.to_mapping())),
        "key": spec.canvas_key(),
        "canvas": {"positions": layout.size, "slots": layout.n_slots, "steps": canvases.steps},
        "rates": asdict(rates),
        "rows": [row_of(one, measured, canvases, rates) for one in measured],
        "failed": [{"case": one.case.key, "error": one.error} for one in timed if one.error is not None],
    }


# -- measuring -------------------------------------------------------------------------------------


def _groups(canvases: Canvases, model: DiffusionTransformer) -> Iterator[list[Case]]:
    """The cases of each group of workers, which is up while they are measured."""
    spec = canvases.spec
    for workers in spec.workers:
        if workers == 1:
            yield list(_alone(canvases, model))
            continue
        for how, weights, kv in product(spec.compile, spec.weights, spec.kv):
            with _started(canvases, workers, how, Storage(weights=weights, kv=kv)) as place:
                yield list(cases.ours_together(canvases, place))


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
        denoiser = prepare(model, spec.fast_options(how))
        yield from cases.one_device(canvases, denoiser, how, dtype=dtype)
        if how != "none":
            yield from cases.peer_loops(canvases, denoiser, how)


@contextmanager
def _started(canvases: Canvases, workers: int, how: CompileMode, storage: Storage) -> Iterator[Place]:
    """A warm group on Ray."""
    spec = canvases.spec
    where: dict[str, Any] = {"dtype": spec.dtype, "device": spec.device, "compile": how, "storage": storage}
    executor = make_executor(canvases.card, workers=workers, numerics=spec.numerics, **where)
    try:
        coordinator = Coordinator(canvases.card, executor)
        yield Place(lambda: coordinator, workers, how, storage.weights, storage.kv)
    finally:
        executor.close()
