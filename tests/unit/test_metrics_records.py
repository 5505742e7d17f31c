"""Metrics, consistency and agreement of small records, made by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.decoding.meters import RunMeters, WorkerMeters
from nap_runtime.decoding.placement import Assignment
from nap_runtime.decoding.record import CanvasDelta, DecodeRecord, SyncEvent
from nap_runtime.decoding.schedule import UnmaskingSchedule
from nap_runtime.decoding.state import Kind
from nap_runtime.errors import RecordError
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.metrics.agreement import compare
from nap_runtime.metrics.order import DecodeOrder, content_mask
from nap_runtime.metrics.report import RunMetrics, staleness
from nap_runtime.metrics.verify import verify

MASK, END, PAD = 99, 2, 3

# 0, 1 prompt · 2 header, 3-6 path 0 · 7 header, 8-11 path 1 · 12 header, 13-14 summary
LAYOUT = CanvasLayout(
    kind="nap",
    prompt_tokens=2,
    headers=((50,), (51,)),
    budgets=(4, 4),
    summary_header=(52,),
    summary_budget=2,
    end_ids=((END, 60), (END, 61), (END, 62)),
    mask_id=MASK,
    fill_id=PAD,
)


def delta(step: int, worker: int, tokens: dict[int, int], *, fill: bool = False, score: float = 0.5) -> CanvasDelta:
    return CanvasDelta(
        step=step,
        worker=worker,
        kind=Kind.FILL if fill else Kind.COMMIT,
        positions=np.array(list(tokens), dtype=np.int64),
        ids=np.array(list(tokens.values()), dtype=np.int64),
        log_confidence=np.full(len(tokens), 0.0 if fill else math.log(score)),
    )


def record_of(
    deltas: Sequence[CanvasDelta],
    *,
    syncs: Sequence[SyncEvent] = (),
    sync: SyncPolicy | None = None,
    layout: CanvasLayout = LAYOUT,
    steps: int = 5,
    **config: Any,
) -> DecodeRecord:
    """A record of two workers, one path each, whose final ids and step counts fit."""
    settings: dict[str, Any] = {"paths": 2, "sync": sync or SyncPolicy("none"), **config}
    decode = DecodeConfig(steps=steps, **settings)
    schedule = UnmaskingSchedule.plan(layout, decode)
    record = DecodeRecord(
        layout=layout,
        prompt_ids=(10, 11),
        config=decode.to_mapping(),
        assignment=Assignment((0, 1)),
        model={"name": "hand"},
        path_steps=len(schedule.paths) or schedule.steps,
        steps=schedule.steps,
        deltas=tuple(deltas),
        syncs=tuple(syncs),
        forwards=(tuple(range(steps)), tuple(range(4))),
        final_ids=np.zeros(0, dtype=np.int64),
    )
    return replace(record, final_ids=record.canvas())


# Path 0 runs left to right to its end; path 1 ends at its second slot, and its last slot is filled.
GOOD = (
    delta(0, 0, {3: 20}),
    delta(0, 1, {8: 20}),
    delta(1, 0, {4: 21}),
    delta(1, 1, {10: 22}),
    delta(2, 0, {5: 22}),
    delta(2, 1, {9: END}),
    delta(2, 1, {11: PAD}, fill=True),
    delta(3, 0, {6: 60}),
    delta(4, 0, {13: 30, 14: 62}),
)


def good(**changes: Any) -> DecodeRecord:
    return record_of(GOOD, **changes)


def test_the_good_record_is_consistent_and_survives_the_wire() -> None:
    record = good(syncs=[event(4, "gather", 4)])
    verify(record)
    verify(DecodeRecord.from_bytes(record.to_bytes()))


# -- order and content --------------------------------------------------------------------------------------


def test_content_stops_before_the_first_end() -> None:
    assert np.flatnonzero(content_mask(good())).tolist() == [3, 4, 5, 8, 13]


def test_order_of_a_record() -> None:
    order = DecodeOrder.from_record(good())
    assert order.steps == ((3, 8), (4, 10), (5, 9), (6,), (13, 14))
    assert order.positions.tolist() == list(LAYOUT.slots)
    assert order.region.tolist() == order.pool.tolist() == [0] * 4 + [1] * 4 + [2] * 2
    assert order.step[order.positions == 11] == 2
    assert not order.committed[order.positions == 11].any()


def test_scope_canvas_has_one_pool() -> None:
    record = good(sync=SyncPolicy(), rule="confidence", scope="canvas")
    assert set(DecodeOrder.from_record(record).pool.tolist()) == {0}


# -- the report ---------------------------------------------------------------------------------------------


def meters(**values: Any) -> RunMeters:
    one = WorkerMeters(rows_computed=30, rows_recomputed=4, syncs=2, payload_bytes=64, wire_bytes=80)
    two = WorkerMeters(rows_computed=20, blocked_seconds=0.5, compute_seconds=1.0, payload_bytes=32)
    return RunMeters(**{"workers": (one, two), "seconds": 2.0, "seconds_first_commit": 0.25, **values})


def test_report_by_hand() -> None:
    values = json.loads(json.dumps(RunMetrics.of(good(), meters()).to_json()))
    assert values["nfe"] == {"steps": 5, "critical": 5, "total": 9, "rows": 50}
    assert values["tpf"] == 1.0  # 5 content tokens in 5 steps, on two workers
    assert (values["useful_tokens"], values["useful_tokens_per_second"]) == (5, 2.5)
    assert values["seconds"] == {"first_commit": 0.25, "total": 2.0}
    assert values["steps"] == 5
    sync = values["sync"]
    assert (sync["mode"], sync["every"], sync["syncs"], sync["rows_recomputed"]) == ("none", None, 2, 4)
    assert (sync["payload_bytes"], sync["wire_bytes"]) == ([64, 32], [80, 0])
    assert sync["blocked_seconds"] == {"mean": 0.25, "max": 0.5}
    assert sync["staleness"] == {"mean": 2.0, "max": 3.0}  # never told: 1, 2, 3 steps old


def test_arness_of_the_report_by_hand() -> None:
    arness = RunMetrics.of(good(), meters()).to_json()["arness"]
    # Set-based: {3, 8} 1 of 2, {4, 10} 1, {5, 9} 1, {6} 1, then the summary's 2 of 2.
    assert arness["all"]["set_based"] == pytest.approx(6 / 9)
    assert arness["paths"][0]["all"]["set_based"] == 1.0
    assert arness["paths"][1]["all"]["set_based"] == pytest.approx(2 / 3)  # 8, 10, 9
    assert arness["paths"][1]["content"]["tokens"] == 1
    # Content {3, 4, 5}, {8}, {13}: 3 hits, 8 misses, then 4, 5, 13.
    assert arness["content"]["set_based"] == pytest.approx(4 / 5)
    assert arness["layout_null"]["content"]["set_based"] == pytest.approx(4 / 5)
    assert arness["layout_null"]["planned"]["set_based"] < 1


def test_padding_before_the_end_is_content_but_not_useful() -> None:
    record = record_of((delta(0, 0, {3: PAD}), *GOOD[1:]))
    metrics = RunMetrics.of(record, meters(seconds=0.0))
    assert (metrics.tpf, metrics.useful_tokens, metrics.useful_tokens_per_second) == (1.0, 4, None)


def event(step: int, kind: str, source: int) -> SyncEvent:
    return SyncEvent(step=step, kind=kind, sources=((source, source), (source, source)))


@pytest.mark.parametrize(
    ("policy", "syncs", "mean", "largest"),
    [
        (SyncPolicy(), [event(s, "exact", s) for s in (1, 2, 3, 4)], 0, 0),
        (SyncPolicy("tokens", every=2), [event(2, "tokens", 2), event(4, "gather", 4)], 2 / 3, 1),  # 1 0 1
        (SyncPolicy("kv", every=2), [event(2, "kv", 1), event(4, "gather", 4)], 4 / 3, 2),  # 1 1 2
        (SyncPolicy("kv"), [event(s, "kv", s - 1) for s in (1, 2, 3)], 1, 1),
        (SyncPolicy("shared", every=3), [event(3, "shared", 3)], 1, 2),  # hub: 1 2 0
        (SyncPolicy("tokens", topology="hub"), [event(s, "tokens", s) for s in (1, 2, 3)], 0, 0),
    ],
)
def test_staleness_by_hand(policy: SyncPolicy, syncs: list[SyncEvent], mean: float, largest: float) -> None:
    age = staleness(good(sync=policy, syncs=syncs), policy)
    assert age is not None
    assert (age.mean, age.max) == pytest.approx((mean, largest))


def test_staleness_counts_only_steps_that_ran() -> None:
    record = replace(good(), forwards=((0, 3), (0,)))
    age = staleness(record, SyncPolicy("none"))
    assert age is not None
    assert (age.mean, age.max) == (3, 3)


def test_nothing_is_stale_where_no_peer_is_read() -> None:
    assert staleness(good(), SyncPolicy("none", topology="isolated")) is None
    alone = replace(good(), assignment=Assignment((0, 0)), forwards=(tuple(range(5)),))
    assert staleness(alone, SyncPolicy()) is None


# -- verify -------------------------------------------------------------------------------------------------


def swapped(index: int, *instead: CanvasDelta) -> DecodeRecord:
    return record_of((*GOOD[:index], *instead, *GOOD[index + 1 :]))


def bad_final() -> DecodeRecord:
    final = good().final_ids.copy()
    final[3] = 21
    return replace(good(), final_ids=final)


def config_with(**changes: Any) -> DecodeRecord:
    return replace(good(), config={**good().config, **changes})


CORRUPTIONS: dict[str, tuple[Callable[[], DecodeRecord], str]] = {
    "committed twice": (lambda: swapped(2, delta(1, 0, {3: 21})), "position 3 was committed before"),
    "twice in a step": (lambda: swapped(7, delta(3, 0, {5: 60})), "position 5 was committed before"),
    "header": (lambda: swapped(0, delta(0, 0, {2: 20})), "position 2 is not a slot"),
    "outside": (lambda: swapped(0, replace(GOOD[0], positions=np.array([-1]))), "position -1 is not a slot"),
    "mask": (lambda: swapped(0, delta(0, 0, {3: MASK})), "99 is the mask or no id"),
    "negative id": (lambda: swapped(0, delta(0, 0, {3: -5})), "-5 is the mask or no id"),
    "not a number": (lambda: swapped(0, delta(0, 0, {3: 20}, score=math.nan)), "not a number"),
    "open kind": (lambda: swapped(0, replace(GOOD[0], kind=Kind.OPEN)), "none that its config brings forth"),
    "lengths": (lambda: swapped(0, replace(GOOD[0], log_confidence=np.zeros(2))), "differ in number"),
    "descending": (lambda: swapped(8, delta(4, 0, {14: 62, 13: 30})), "positions do not ascend"),
    "another's path": (lambda: swapped(1, delta(0, 0, {8: 20})), "position 8 is in a path of worker 1"),
    "no such worker": (lambda: swapped(1, delta(0, 2, {8: 20})), "there are 2 workers"),
    "steps": (lambda: record_of((GOOD[2], GOOD[0], *GOOD[1:2], *GOOD[3:])), "step 0 does not ascend"),
    "late step": (lambda: swapped(8, delta(5, 0, {13: 30, 14: 62})), "step 5 does not ascend within 5"),
    "path quota": (lambda: swapped(0, delta(0, 0, {3: 20, 4: 21})), "2 slots of path 0, its quota is 1"),
    "summary early": (
        lambda: swapped(7, delta(3, 0, {6: 60, 13: 30})),
        "slots of the summary, its quota is 0",
    ),
    "fill id": (lambda: swapped(6, delta(2, 1, {11: 20}, fill=True)), "another id than 3"),
    "fill while open": (
        lambda: record_of((*GOOD[:4], delta(1, 1, {11: PAD}, fill=True), *GOOD[4:6], *GOOD[7:])),
        "fills the block at 8, which is not closed",
    ),
    "left masked": (lambda: record_of(GOOD[:-1]), "2 slots are never committed, the first at position 13"),
    "final ids": (bad_final, "final ids are not what the deltas give, first at position 3"),
    "final length": (lambda: replace(good(), final_ids=good().final_ids[:-1]), "14 final ids"),
    "assignment": (lambda: replace(good(), assignment=Assignment((0, 1, 0))), "has 3 paths"),
    "forwards order": (lambda: replace(good(), forwards=((0, 0), (1,))), "worker 0 do not ascend"),
    "forwards range": (lambda: replace(good(), forwards=((0, 1), (5,))), "worker 1 do not ascend"),
    "forwards count": (lambda: replace(good(), forwards=((0,),)), "forwards of 1 workers"),
    "prompt": (lambda: replace(good(), prompt_ids=(1,)), "1 prompt ids, the layout has 2"),
    "total steps": (lambda: replace(good(), steps=6), "6 steps, 4 of them for the paths"),
    "path steps": (lambda: replace(good(), path_steps=3), "5 steps, 3 of them for the paths"),
    "config key": (lambda: config_with(colour=1), "config: colour: unknown key"),
    "config value": (lambda: config_with(steps=11), "config: steps: 11 is more than the 10 slots"),
    "config paths": (lambda: config_with(paths=3), "not the 'nap' of 3 paths"),
    "future source": (lambda: good(syncs=[event(1, "kv", 2)]), "lies in the future"),
    "forgets": (lambda: good(syncs=[event(2, "kv", 2), event(3, "kv", 1)]), "knows less of a path"),
    "sync order": (lambda: good(syncs=[event(2, "kv", 1), event(1, "kv", 1)]), "steps do not ascend"),
    "sync late": (lambda: good(syncs=[event(5, "kv", 1)]), "steps do not ascend"),
    "sync kind": (lambda: good(syncs=[event(1, "mail", 1)]), "unknown kind 'mail'"),
    "no gather": (lambda: good(), "not those of its config, between step 4 and 4"),
    "no forward": (lambda: replace(good(), forwards=((0, 1, 2, 3, 4), (0, 2))), "worker 1 commits at step 1 without"),
    "sync shape": (lambda: good(syncs=[SyncEvent(step=1, kind="kv", sources=((0, 0),))]), "2 × 2"),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_verify_rejects(name: str) -> None:
    make, message = CORRUPTIONS[name]
    with pytest.raises(RecordError) as caught:
        verify(make())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_verify_scope_canvas() -> None:
    # Any worker may commit any slot; two a step in all.
    settings: dict[str, Any] = {"sync": SyncPolicy(), "rule": "confidence", "scope": "canvas"}
    deltas = [delta(s, s % 2, {a: 20, b: 21}) for s, (a, b) in enumerate([(3, 8), (4, 9), (5, 10), (6, 11)])]
    deltas.append(delta(4, 0, {13: 30, 14: 62}))
    syncs = [event(step, "exact", step) for step in range(1, 5)]
    verify(record_of(deltas, syncs=syncs, **settings))
    crowded = [delta(0, 0, {3: 20, 4: 20, 8: 21}), delta(1, 0, {9: 21}), *deltas[2:]]
    with pytest.raises(RecordError, match="step 0 commits 3 slots, its quota is 2"):
        verify(record_of(crowded, **settings))


def test_verify_everything_at_once() -> None:
    deltas = [delta(0, 0, {3: 1, 4: 1, 5: 1, 6: 1, 13: 1, 14: 1}), delta(0, 1, {8: 1, 9: 1, 10: 1, 11: 1})]
    verify(replace(record_of(deltas, steps=1), forwards=((0,), (0,))))


# -- agreement ----------------------------------------------------------------------------------------------


def test_a_record_agrees_with_itself_and_with_other_fills_and_workers() -> None:
    other = replace(good(), deltas=(*GOOD[:6], *GOOD[7:]), assignment=Assignment((0, 0)))
    for record in (good(), other):
        result = compare(good(), record, rtol=0.0)
        assert (result.identical, result.agrees, result.step) == (True, True, None)


@pytest.mark.parametrize(("rtol", "agrees"), [(0.0, False), (1e-4, False), (2e-2, True)])
def test_a_near_tie_between_positions(rtol: float, agrees: bool) -> None:
    other = swapped(3, delta(1, 1, {11: 22}, score=0.505))
    result = compare(good(), other, rtol=rtol)
    assert (result.identical, result.agrees, result.step) == (False, agrees, 1)
    assert result.positions == (10, 11)
    assert result.relative_gap == pytest.approx(0.005 / 0.505)


def test_a_near_tie_between_ids() -> None:
    result = compare(good(), swapped(0, delta(0, 0, {3: 25}, score=0.4)), rtol=0.1)
    assert (result.agrees, result.positions) == (False, (3,))
    assert result.relative_gap == pytest.approx(0.2)


def test_only_the_first_difference_counts() -> None:
    other = record_of((*GOOD[:2], delta(1, 0, {5: 21}), *GOOD[3:5], delta(2, 1, {9: 40}, score=0.01), *GOOD[6:]))
    result = compare(good(), other, rtol=1e-4)
    assert (result.step, result.agrees, result.relative_gap) == (1, True, 0.0)


def test_paths_are_paired_apart() -> None:
    # Both paths differ at step 1: 4 against 5 within 1 in 100, 10 against 11 by half. The worst counts.
    other = record_of((*GOOD[:2], delta(1, 0, {5: 21}, score=0.505), delta(1, 1, {11: 22}, score=0.25)))
    assert compare(good(), other, rtol=0.02).relative_gap == pytest.approx(0.5)


def test_a_missing_decision_never_agrees() -> None:
    result = compare(good(), record_of(GOOD[:-1]), rtol=1.0)
    assert (result.agrees, result.step, result.relative_gap) == (False, 4, math.inf)


def test_other_canvases_are_not_compared() -> None:
    with pytest.raises(RecordError, match="different canvases"):
        compare(good(), replace(good(), prompt_ids=(1, 2)), rtol=0.1)
