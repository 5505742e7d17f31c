"""Traces: round trip, damage, and `view` against a simulation of what workers are told."""

from __future__ import annotations

import hashlib
import math
from dataclasses import fields, replace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nap_runtime.decoding import record as record_module
from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.decoding.placement import Assignment
from nap_runtime.decoding.record import CanvasDelta, DecodeRecord, SyncEvent, deltas_between
from nap_runtime.decoding.state import Kind
from nap_runtime.errors import RecordError
from nap_runtime.job import DecodeConfig, SyncPolicy

MASK = 200_000

# 0, 1 prompt · 2 header, 3-5 path 0 · 6 header, 7-8 path 1 · 9 header, 10-11 summary
LAYOUT = CanvasLayout(
    kind="nap",
    prompt_tokens=2,
    headers=((50,), (51,)),
    budgets=(3, 2),
    summary_header=(52,),
    summary_budget=2,
    end_ids=((2,), (2,), (2,)),
    mask_id=MASK,
    fill_id=2,
)


def delta(step: int, worker: int, tokens: dict[int, int], kind: Kind = Kind.COMMIT, score: float = 0.5) -> CanvasDelta:
    return CanvasDelta(
        step=step,
        worker=worker,
        kind=kind,
        positions=np.array(list(tokens), dtype=np.int64),
        ids=np.array(list(tokens.values()), dtype=np.int64),
        log_confidence=np.full(len(tokens), math.log(score) if kind is Kind.COMMIT else 0.0),
    )


def make_record(**changes: Any) -> DecodeRecord:
    values: dict[str, Any] = {
        "layout": LAYOUT,
        "prompt_ids": (7, 8),
        "config": DecodeConfig(paths=2, steps=6, sync=SyncPolicy("kv", every=2)).to_mapping(),
        "assignment": Assignment((0, 1)),
        "model": {"name": "random", "fingerprint": "0" * 64},
        "path_steps": 4,
        "steps": 6,
        "deltas": (
            delta(0, 0, {4: 151_935}),
            delta(1, 1, {7: 2}, score=0.25),
            delta(1, 1, {8: 2}, Kind.FILL),
            delta(2, 0, {3: 31, 5: 2}),
            delta(4, 0, {10: 40}),
            delta(5, 0, {11: 2}, score=1.0),
        ),
        "syncs": (
            SyncEvent(step=2, kind="kv", sources=((1, 1), (1, 1))),
            SyncEvent(step=4, kind="gather", sources=((4, 4), (4, 4))),
        ),
        "forwards": ((0, 1, 2, 3, 4, 5), (0, 1, 2)),
        "final_ids": np.array([7, 8, 50, 31, 151_935, 2, 51, 2, 2, 52, 40, 2]),
    }
    return DecodeRecord(**values | changes)


def same(a: DecodeRecord, b: DecodeRecord) -> bool:
    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.tolist()
        if isinstance(value, CanvasDelta):
            return [plain(getattr(value, f.name)) for f in fields(value)]
        return list(map(plain, value)) if isinstance(value, tuple) else value

    return all(plain(getattr(a, f.name)) == plain(getattr(b, f.name)) for f in fields(DecodeRecord))


RECORD = make_record()
BYTES = RECORD.to_bytes()


# -- round trip and damage -----------------------------------------------------------------------------------


def test_round_trip() -> None:
    """These scores are exact in f16, so nothing changes."""
    again = DecodeRecord.from_bytes(BYTES)
    assert same(again, RECORD)
    assert again.to_bytes() == BYTES


@given(
    st.lists(
        st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 65_535), st.floats(-1e30, 0)),
        min_size=0,
        max_size=8,
        unique_by=lambda token: token[1],
    ),
    st.integers(0, 10_000),
    st.integers(0, 5),
    st.sampled_from([Kind.COMMIT, Kind.FILL]),
)
def test_deltas_keep_ids_and_positions_and_round_scores_to_f16(
    tokens: list[tuple[int, int, float]], step: int, worker: int, kind: Kind
) -> None:
    one = CanvasDelta(
        step=step,
        worker=worker,
        kind=kind,
        positions=np.array([p for _, p, _ in tokens], dtype=np.int64),
        ids=np.array([i for i, _, _ in tokens], dtype=np.int64),
        log_confidence=np.array([c for _, _, c in tokens], dtype=np.float64),
    )
    again = CanvasDelta.from_wire(one.to_wire())
    assert (again.step, again.worker, again.kind) == (step, worker, kind)
    assert again.positions.tolist() == one.positions.tolist()
    assert again.ids.tolist() == one.ids.tolist()
    for got, (_, _, score) in zip(again.log_confidence, tokens, strict=True):
        assert math.exp(got) == pytest.approx(math.exp(score), rel=2**-11, abs=2**-25)


def test_a_token_takes_eight_bytes() -> None:
    assert len(delta(0, 0, {3: 1, 4: 2, 5: 3}).to_wire()[3]) == 24


@given(st.data())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_any_flipped_bits_are_noticed(data: Any) -> None:
    at = data.draw(st.integers(0, len(BYTES) - 1))
    damaged = bytearray(BYTES)
    damaged[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RecordError):
        DecodeRecord.from_bytes(bytes(damaged))


def test_every_single_byte_counts() -> None:
    for at in range(len(BYTES)):
        damaged = bytearray(BYTES)
        damaged[at] ^= 0x55
        with pytest.raises(RecordError):
            DecodeRecord.from_bytes(bytes(damaged))


def test_every_truncation_is_noticed() -> None:
    for size in range(len(BYTES)):
        with pytest.raises(RecordError):
            DecodeRecord.from_bytes(BYTES[:size])


@given(st.binary(max_size=200))
def test_junk_is_a_record_error(junk: bytes) -> None:
    with pytest.raises(RecordError):
        DecodeRecord.from_bytes(junk)


def test_trailing_bytes_are_refused() -> None:
    with pytest.raises(RecordError):
        DecodeRecord.from_bytes(BYTES + b"\x00")


def test_oversize_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_module, "MAX_BYTES", len(BYTES) - 1)
    with pytest.raises(RecordError, match="exceed the limit"):
        DecodeRecord.from_bytes(BYTES)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version_is_named(version: Any) -> None:
    outer = msgpack.unpackb(BYTES) | {"v": version}
    with pytest.raises(RecordError, match="version"):
        DecodeRecord.from_bytes(msgpack.packb(outer))


def sealed(body: Any) -> bytes:
    """A body with a right seal: only its content is wrong."""
    packed = msgpack.packb(body)
    return msgpack.packb({"v": 1, "sha256": hashlib.sha256(packed).digest(), "body": packed})


def good_body() -> dict[str, Any]:
    return msgpack.unpackb(msgpack.unpackb(BYTES)["body"])


@pytest.mark.parametrize("key", sorted(good_body()))
def test_a_missing_entry_is_a_record_error(key: str) -> None:
    body = good_body()
    del body[key]
    with pytest.raises(RecordError, match=key):
        DecodeRecord.from_bytes(sealed(body))


@pytest.mark.parametrize(
    "change",
    [
        {"layout": []},
        {"layout": {"kind": "nap"}},
        {"deltas": [[0, 0, 1]]},
        {"deltas": [[0, 0, 7, b""]]},
        {"deltas": [[0, 0, 1, b"\x00" * 7]]},
        {"deltas": 3},
        {"assignment": [1, 1]},
        {"assignment": ["0"]},
        {"syncs": [[1, "kv"]]},
        {"forwards": 1},
        {"final_ids": b"\x00" * 3},
        {"steps": "many"},
        {"steps": None},
    ],
    ids=str,
)
def test_wrong_content_under_a_right_seal_is_a_record_error(change: dict[str, Any]) -> None:
    with pytest.raises(RecordError):
        DecodeRecord.from_bytes(sealed(good_body() | change))


@pytest.mark.parametrize("change", [{"steps": math.inf}, {"deltas": [[math.inf, 0, 1, b""]]}], ids=str)
def test_infinite_numbers_under_a_right_seal(change: dict[str, Any]) -> None:
    with pytest.raises(RecordError):
        DecodeRecord.from_bytes(sealed(good_body() | change))


@pytest.mark.parametrize("body", [[], 3, None, b"", "text"])
def test_a_body_that_is_no_mapping(body: Any) -> None:
    with pytest.raises(RecordError):
        DecodeRecord.from_bytes(sealed(body))


# -- replay --------------------------------------------------------------------------------------------------


def test_canvas_and_order() -> None:
    start = [7, 8, 50, MASK, MASK, MASK, 51, MASK, MASK, 52, MASK, MASK]
    assert RECORD.canvas(0).tolist() == start
    assert RECORD.canvas(2).tolist() == [7, 8, 50, MASK, 151_935, MASK, 51, 2, 2, 52, MASK, MASK]
    assert RECORD.canvas().tolist() == RECORD.final_ids.tolist()
    assert RECORD.order()[:3] == [[0, 0, 4, 151_935, 0.5], [1, 1, 7, 2, 0.25], [2, 0, 3, 31, 0.5]]
    assert len(RECORD.order()) == 6  # the fill is no commit
    assert RECORD.nfe_steps == 6


@pytest.mark.parametrize(
    ("worker", "step", "sources", "view"),
    [
        # Before the first sync a worker knows its own path as it is, the peer's as it was at the start.
        (0, 1, (1, 0), [7, 8, 50, MASK, 151_935, MASK, 51, MASK, MASK, 52, MASK, MASK]),
        (1, 1, (0, 1), [7, 8, 50, MASK, MASK, MASK, 51, MASK, MASK, 52, MASK, MASK]),
        # kv at step 2 brings the peer's canvas of step 1.
        (0, 2, (2, 1), [7, 8, 50, MASK, 151_935, MASK, 51, MASK, MASK, 52, MASK, MASK]),
        (1, 2, (1, 2), [7, 8, 50, MASK, 151_935, MASK, 51, 2, 2, 52, MASK, MASK]),
        (1, 3, (1, 3), [7, 8, 50, MASK, 151_935, MASK, 51, 2, 2, 52, MASK, MASK]),
        (0, 3, (3, 1), [7, 8, 50, 31, 151_935, 2, 51, MASK, MASK, 52, MASK, MASK]),
        # gather at step 4
        (0, 4, (4, 4), [7, 8, 50, 31, 151_935, 2, 51, 2, 2, 52, MASK, MASK]),
        (0, 5, (5, 4), [7, 8, 50, 31, 151_935, 2, 51, 2, 2, 52, 40, MASK]),
    ],
)
def test_view_by_hand(worker: int, step: int, sources: tuple[int, int], view: list[int]) -> None:
    assert RECORD.sources(worker, step) == sources
    assert RECORD.view(worker, step).tolist() == view


@st.composite
def histories(draw: st.DrawFn) -> DecodeRecord:
    """A random decode: each slot committed at some step, syncs now and then with some delay."""
    assignment = Assignment(draw(st.sampled_from([(0, 0), (0, 1), (1, 0)])))
    slots = {slot: draw(st.integers(0, 7)) for slot in LAYOUT.slots}
    owner = {slot: assignment.worker_of[path] for path in range(2) for slot in LAYOUT.paths[path].slots}
    deltas = [
        delta(step, owner.get(slot, 0), {slot: 1000 + slot}, draw(st.sampled_from([Kind.COMMIT, Kind.FILL])))
        for slot, step in slots.items()
    ]
    steps = sorted(draw(st.sets(st.integers(1, 7), max_size=5)))
    syncs, told = [], [[0, 0] for _ in range(assignment.workers)]
    for step in steps:
        told = [[draw(st.integers(known, step)) for known in row] for row in told]  # never forgets
        syncs.append(SyncEvent(step=step, kind="tokens", sources=tuple(map(tuple, told))))
    return make_record(
        assignment=assignment,
        deltas=tuple(sorted(deltas, key=lambda d: (d.step, d.worker))),
        syncs=tuple(syncs),
    )


@given(histories())
def test_view_is_what_a_worker_has_been_told(record: DecodeRecord) -> None:
    """Simulated: every worker keeps a canvas, and copies a path from the past when a sync says so."""
    start = LAYOUT.initial_ids(record.prompt_ids)
    truth = [start.copy()]  # truth[s]: the canvas just before step s
    for step in range(9):
        after = truth[-1].copy()
        for one in record.deltas:
            if one.step == step:
                after[one.positions] = one.ids
        truth.append(after)
    events = {event.step: event for event in record.syncs}
    for worker in range(record.assignment.workers):
        mine = start.copy()
        for step in range(9):
            for path, block in enumerate(LAYOUT.paths):
                here = slice(block.slots.start, block.slots.stop)
                if step in events:
                    mine[here] = truth[events[step].sources[worker][path]][here]
                if record.assignment.worker_of[path] == worker:
                    mine[here] = truth[step][here]
            mine[10:12] = truth[step][10:12]
            assert record.view(worker, step).tolist() == mine.tolist()


@pytest.mark.parametrize(
    ("policy", "placed"),
    [
        (SyncPolicy("tokens", every=3), 3),
        (SyncPolicy("kv", every=2, warmup=2), (1, 0, 1)),
        (SyncPolicy("exact"), 2),
    ],
    ids=lambda v: v.mode if isinstance(v, SyncPolicy) else str(v),
)
def test_records_of_decodes_round_trip(
    tiny_model: Any, nap_layout: Any, prompt_of: Any, decode_inline: Any, policy: SyncPolicy, placed: Any
) -> None:
    config = DecodeConfig(paths=3, sync=policy, temperature=1.0)
    got = decode_inline(tiny_model("llada-tiny"), nap_layout((5, 4, 6)), config, [prompt_of(0)], placed)
    again = DecodeRecord.from_bytes(got.records[0].to_bytes())
    exact_scores = replace(again, deltas=got.records[0].deltas)
    assert same(exact_scores, got.records[0])
    assert DecodeConfig.from_mapping(again.config) == config
    for worker in range(again.assignment.workers):
        for step in range(again.steps + 1):
            assert again.view(worker, step).tolist() == got.records[0].view(worker, step).tolist()


def test_deltas_between_cuts_by_step_and_kind() -> None:
    arrays = {
        "ids": np.array([10, 11, 12, 13, 14]),
        "step": np.array([2, 1, 2, -1, 3]),
        "kind": np.array([Kind.FILL, Kind.COMMIT, Kind.COMMIT, Kind.OPEN, Kind.COMMIT]),
        "score": np.array([0.0, -1.0, -2.0, 0.0, -3.0], dtype=np.float32),
    }
    cut = list(deltas_between(arrays, np.arange(20, 25), worker=4, first=1, last=2))
    assert [(d.step, d.worker, d.kind, d.positions.tolist(), d.ids.tolist()) for d in cut] == [
        (1, 4, Kind.COMMIT, [21], [11]),
        (2, 4, Kind.COMMIT, [22], [12]),
        (2, 4, Kind.FILL, [20], [10]),
    ]
    assert cut[1].log_confidence.tolist() == [-2.0]
