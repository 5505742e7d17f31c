"""Records with remasks, early commits and provisional summaries: what `verify` accepts, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nap_runtime.decoding.record import CanvasDelta, DecodeRecord
from nap_runtime.decoding.state import Kind
from nap_runtime.errors import RecordError
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.metrics.agreement import compare
from nap_runtime.metrics.verify import verify

MASK = 95
Decode = Callable[..., DecodeRecord]


@pytest.fixture(scope="module")
def decoded(tiny_model: Any, nap_layout: Any, plain_layout: Any, prompt_of: Any, decode_inline: Any) -> Decode:
    def run(**options: Any) -> DecodeRecord:
        plain = options.get("layout") == "plain"
        layout = plain_layout(20) if plain else nap_layout((7, 8), ends=(94,))
        config = DecodeConfig(**({"gen_length": 20} if plain else {"paths": 2}), **options)
        record = decode_inline(tiny_model("llada-tiny", 1, scale=40.0), layout, config, [prompt_of(0)]).records[0]
        verify(record)
        return record  # type: ignore[no-any-return]

    return run


def changed(record: DecodeRecord, kind: Kind, change: Callable[[CanvasDelta], CanvasDelta | None]) -> DecodeRecord:
    """The record with its first delta of a kind changed, or left out."""
    at = next(index for index, delta in enumerate(record.deltas) if delta.kind is kind)
    instead = change(record.deltas[at])
    middle = () if instead is None else (instead,)
    return replace(record, deltas=(*record.deltas[:at], *middle, *record.deltas[at + 1 :]))


def refused(record: DecodeRecord, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        verify(record)


P2: dict[str, Any] = {"layout": "plain", "rule": "p2", "rule_args": {"eta": "2"}}


def test_remasks_must_balance(decoded: Decode) -> None:
    record = decoded(**P2)
    refused(changed(record, Kind.REMASK, lambda delta: None), "slots and masks 0 again, its quota is 1")


def test_a_remask_masks_what_was_committed(decoded: Decode) -> None:
    record = decoded(**P2)

    def other(delta: CanvasDelta) -> CanvasDelta:
        masked = np.flatnonzero(record.canvas(delta.step) == MASK)[: len(delta.positions)]
        return replace(delta, positions=masked)

    refused(changed(record, Kind.REMASK, other), "again, which is masked")
    refused(
        changed(record, Kind.REMASK, lambda delta: replace(delta, ids=delta.ids - 1)), "masks a slot again with id 94"
    )


def test_only_p2_masks_again(decoded: Decode) -> None:
    record = decoded(**P2)
    config = {**record.config, "rule": "confidence", "rule_args": {}}
    refused(replace(record, config=config), "kind 3 is none that its config brings forth")


def test_prophet_commits_its_quota_or_everything(decoded: Decode) -> None:
    record = decoded(layout="plain", rule="prophet", steps=10, rule_args={"answer": "0:2"})
    at = max(delta.step for delta in record.commits)
    assert at < 8, "it did not stop early: the test shows nothing"
    last = next(delta for delta in record.commits if delta.step == at)
    keep = np.arange(len(last.ids)) > 0
    one = replace(last.only(~keep), step=at + 1)
    deltas = (*(delta for delta in record.deltas if delta is not last), last.only(keep), one)
    refused(replace(record, deltas=deltas), "slots, its quota is 2")


LIVE: dict[str, Any] = {"sync": SyncPolicy("exact", summary="live")}


def test_provisional_summaries_are_of_the_summary(decoded: Decode) -> None:
    record = decoded(**LIVE)
    assert len(record.provisional) == record.path_steps - 1
    first = record.layout.paths[0].slots.start
    n = record.layout.summary_budget
    moved = changed(record, Kind.PROVISIONAL, lambda d: replace(d, positions=np.arange(first, first + n)))
    refused(moved, "outside the summary")
    masks = changed(record, Kind.PROVISIONAL, lambda d: replace(d, ids=np.full(n, MASK)))
    refused(masks, "is the mask or no id")
    config = {**record.config, "sync": {**record.config["sync"], "summary": "gather"}}
    refused(replace(record, config=config), "kind 4 is none that its config brings forth")


def test_provisional_summaries_change_nothing(decoded: Decode) -> None:
    live, plain = decoded(**LIVE), decoded(sync=SyncPolicy("exact"))
    assert live.final_ids.tolist() == plain.final_ids.tolist()
    assert [delta.to_wire() for delta in live.commits] == [delta.to_wire() for delta in plain.commits]
    for step in range(live.steps + 1):
        assert live.view(0, step).tolist() == plain.view(0, step).tolist()


def test_records_that_mask_different_slots_again_do_not_agree(decoded: Decode) -> None:
    record = decoded(**P2)
    assert compare(record, record, rtol=0).identical
    at = next(delta.step for delta in record.deltas if delta.kind is Kind.REMASK)
    agreement = compare(record, changed(record, Kind.REMASK, lambda delta: None), rtol=1e-4)
    assert (agreement.identical, agreement.agrees, agreement.step) == (False, False, at)


def test_a_slot_that_was_masked_again_counts_once(decoded: Decode) -> None:
    record = decoded(**P2)
    assert any(delta.kind is Kind.REMASK for delta in record.deltas)
    positions = [position for _, _, position, *_ in record.order()]
    assert sorted(positions) == list(record.layout.slots)
    for step, _, position, token, _ in record.order():
        assert record.canvas(int(step) + 1)[int(position)] == token
        assert record.final_ids[int(position)] == token
