"""Slots that are given instead of decoded: they stand, they travel as commits do, the rest is decoded around them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from nap_runtime.decoding.given import give
from nap_runtime.decoding.state import Kind
from nap_runtime.errors import UsageError
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.job import DecodeConfig, SyncPolicy

BUDGETS = (6, 5, 4)
NO_ENDS = (95,)  # the mask id is never predicted: no path closes
TEXTS = {0: (40, 41, 42, 43, 44, 45), 1: (50, 51, 52, 53, 54), 2: (60, 61, 62, 63)}
CONFIG = DecodeConfig(paths=3, steps=12, control_every=4)


@pytest.fixture
def run(tiny_model: Any, nap_layout: Any, prompt_of: Any, make_task: Any, collect: Any) -> Any:
    """`(sync, workers, given)` → the record of one canvas, decoded in float64."""

    def decode(sync: SyncPolicy, workers: int, given: Any, config: DecodeConfig = CONFIG) -> Any:
        layout = nap_layout(BUDGETS, ends=NO_ENDS)
        task = make_task(layout, replace(config, sync=sync), [prompt_of(3)], workers)
        task = replace(task, given=(give(task.plan, given),) if given else ())
        model = tiny_model("llada-tiny")
        return collect(InlineExecutor(model, workers=workers, dtype=torch.float64), task).records[0]

    return decode


def path_ids(record: Any, path: int) -> list[int]:
    slots = record.layout.paths[path].slots
    return record.final_ids[slots.start : slots.stop].tolist()


def without_workers(record: Any) -> list[list[Any]]:
    return sorted([step, position, token] for step, _, position, token, _ in record.order())


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    "sync",
    [
        SyncPolicy("exact"),
        SyncPolicy("tokens", every=2),
        SyncPolicy("tokens", every=2, overlap=True),
        SyncPolicy("kv", every=3),
        SyncPolicy("shared", every=2),
        SyncPolicy("none"),
        SyncPolicy("tokens", every=2, summary="consensus"),
    ],
    ids=str,
)
def test_given_tokens_stand_and_count_as_fills_of_step_0(run: Any, sync: SyncPolicy, workers: int) -> None:
    record = run(sync, workers, {0: TEXTS[0], 2: TEXTS[2][:2]})
    assert path_ids(record, 0) == list(TEXTS[0])
    assert path_ids(record, 2)[:2] == list(TEXTS[2][:2])
    assert record.layout.mask_id not in record.final_ids
    fills = [delta for delta in record.deltas if delta.kind is Kind.FILL]
    assert {delta.step for delta in fills} == {0}
    assert sorted(np.concatenate([d.positions for d in fills]).tolist()) == [6, 7, 8, 9, 10, 11, 19, 20]


def test_where_one_device_is_equalled_it_still_is(run: Any) -> None:
    given = {1: TEXTS[1]}
    alone = run(SyncPolicy("exact"), 1, given)
    for sync in (SyncPolicy("exact"), SyncPolicy("tokens", every=1)):
        assert without_workers(run(sync, 3, given)) == without_workers(alone)
    assert (
        run(SyncPolicy("shared", every=1), 3, given).final_ids.tolist()
        == run(SyncPolicy("exact", topology="hub"), 1, given).final_ids.tolist()
    )


@pytest.mark.parametrize("masked", [False, True])
def test_the_summary_reads_what_is_given(run: Any, tiny_model: Any, prompt_of: Any, masked: bool) -> None:
    """Against a forward of the whole canvas for every commit of the summary."""
    given = {path: [95] * len(ids) if masked else ids for path, ids in TEXTS.items()}
    record = run(SyncPolicy("exact"), 3, given)
    layout, model = record.layout, tiny_model("llada-tiny")
    ids = layout.initial_ids(prompt_of(3))
    for path, tokens in given.items():
        slots = layout.paths[path].slots
        ids[slots.start : slots.stop] = tokens
    summary = list(layout.summary.slots)
    for quota in (1, 1, 2):  # 12 steps: 9 for 15 path slots, 3 for 4 summary slots
        logits = model(torch.from_numpy(ids)[None], None)[0].double()
        logits[:, layout.mask_id] = -torch.inf
        scores = {s: logits[s].log_softmax(-1).max().item() for s in summary if ids[s] == layout.mask_id}
        for slot in sorted(scores, key=lambda s: (-scores[s], s))[:quota]:
            ids[slot] = logits[slot].argmax().item()
    assert record.final_ids.tolist() == ids.tolist()


def test_peers_learn_of_given_tokens_at_syncs_only(run: Any) -> None:
    """Under `none` never, under K = 4 not before step 4, and from then on they do."""
    given = {0: TEXTS[0]}

    def others(record: Any, until: int) -> list[Any]:
        return [entry[:4] for entry in record.order() if entry[0] < until and entry[1] > 0]

    for sync, same, path_steps in ((SyncPolicy("none"), True, 9), (SyncPolicy("kv", every=1), False, 9)):
        with_it, without = run(sync, 3, given), run(sync, 3, None)
        assert (others(with_it, path_steps) == others(without, path_steps)) is same
    late = SyncPolicy("tokens", every=4)
    with_it, without = run(late, 3, given), run(late, 3, None)
    assert others(with_it, 4) == others(without, 4)
    assert others(with_it, 9) != others(without, 9)


def test_scope_canvas_puts_them_on_every_worker(run: Any) -> None:
    config = DecodeConfig(paths=3, steps=12, rule="confidence")
    given = {0: TEXTS[0], 2: TEXTS[2]}
    one, three = (run(SyncPolicy("exact"), workers, given, config) for workers in (1, 3))
    assert path_ids(three, 0) == list(TEXTS[0])
    assert one.final_ids.tolist() == three.final_ids.tolist()


@pytest.mark.parametrize(
    ("values", "given", "said"),
    [
        ({"rule": "p2", "scope": "canvas"}, {0: [1]}, "rule: 'p2'"),
        ({"steps": 1}, {0: [1]}, "steps: in one step"),
        ({}, {3: [1]}, "there is no path 3"),
        ({}, {2: [1] * 5}, "5 tokens for the 4 slots of path 3"),
    ],
)
def test_what_cannot_be_given(
    nap_layout: Any, prompt_of: Any, make_task: Any, values: Any, given: Any, said: str
) -> None:
    task = make_task(nap_layout(BUDGETS), DecodeConfig(paths=3, **values), [prompt_of(1)], 1)
    with pytest.raises(UsageError, match=said):
        give(task.plan, given)
