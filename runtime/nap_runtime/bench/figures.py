"""What samples come to: every figure of a case, ratios within the run, and what its ids are held against."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from nap_runtime.bench import cases
from nap_runtime.bench.canvases import Canvases
from nap_runtime.bench.cases import Case, Sample
from nap_runtime.bench.measure import Timed
from nap_runtime.bench.roofline import Rates, floor_seconds
from nap_runtime.bench.spec import BenchSpec
from nap_runtime.metrics.agreement import compare

_RTOL = {"float64": 0.0, "float32": 1e-4, "bfloat16": 2e-2}


def row_of(one: Timed, timed: Sequence[Timed], canvases: Canvases, rates: Rates) -> dict[str, Any]:
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


def _over_alone(one: Timed, timed: Sequence[Timed]) -> float | None:
    """Tokens/s over those of the same case with one canvas; None where that is not measured."""
    alone = [o for o in timed if replace(o.case, batch=one.case.batch).key == one.case.key and o.case.batch == 1]
    if one.case.batch == 1 or not alone:
        return None
    rate, single = (o.median("tokens") / o.median("seconds") for o in (one, alone[0]))
    return rate / single


def _whole(timed: Sequence[Timed], case: Case) -> Timed | None:
    """The whole canvas on one device with native numbers, carried out as this case is, or else in the first way."""
    bases = [one for one in timed if one.case.name == cases.WHOLE and one.case.batch == 1]
    bases = [one for one in bases if one.case.weights == one.case.kv == "native"]
    alike = [one for one in bases if one.case.how == case.how]
    return next(iter(alike or bases), None)


def _ids(one: Timed, timed: Sequence[Timed], canvases: Canvases) -> dict[str, Any] | None:
    """What its ids are held against, the share of slots with equal ids, and whether the two agree."""
    case = one.case
    if case.batch > 1:
        if not one.alone:
            return None
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
        rtol = 0.0 if spec.numerics == "invariant" else _RTOL[spec.dtype]
        agrees = all(compare(a, b, rtol=rtol).agrees for a, b in pairs)
    return {
        "against": name,
        "equal": statistics.mean(equal),
        "agrees": agrees,
        "must_agree": must,
        "canvases": count,
    }
